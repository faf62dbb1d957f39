//! What a host says of shared memory, and refers to, as its worker takes it.
#![no_main]

use errback_fuzz::{arenas, values::Source};

libfuzzer_sys::fuzz_target!(|data: &[u8]| arenas::worker_is_shown(Source::new(data)));

//! Valid messages with a few bytes changed, read by both sides.
#![no_main]

use errback_fuzz::{bytes, values::Source};

libfuzzer_sys::fuzz_target!(|data: &[u8]| bytes::mutated(Source::new(data)));

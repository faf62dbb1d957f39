//! The frame reader, fed in arbitrary pieces with an arbitrary limit, against a plain one.
#![no_main]

use errback_fuzz::{bytes, values::Source};

libfuzzer_sys::fuzz_target!(|data: &[u8]| bytes::frames(Source::new(data)));

//! The host's parser and every decoder behind it.
#![no_main]

use errback_fuzz::bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bytes::host_reads(data));

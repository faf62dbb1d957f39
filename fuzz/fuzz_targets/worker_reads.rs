//! The worker's parser, its decoders, and the answers that it gives.
#![no_main]

use errback_fuzz::bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bytes::worker_reads(data));

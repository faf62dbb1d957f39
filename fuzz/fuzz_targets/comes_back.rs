//! Values there and back, by way of readers that are not ours.
#![no_main]

use errback_fuzz::{
    bytes,
    values::{Source, Tree},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut source = Source::new(data);
    let id = source.number();
    let encoded = bytes::comes_back(&Tree::new(&mut source), id);
    // rmpv writes the shortest form of everything; what it reads from us and writes again is the same to the byte.
    let mut rest = &encoded[..];
    let value = rmpv::decode::read_value(&mut rest).expect("a value");
    assert!(rest.is_empty());
    let mut again = Vec::new();
    rmpv::encode::write_value(&mut again, &value).expect("a vector takes everything");
    assert_eq!(again, encoded);
});

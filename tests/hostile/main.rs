//! Bytes from a stranger: whatever a worker sends, its host stays whole, and the other way round.
//!
//! `bytes` holds for any bytes at all, and `fuzz/` runs the same for hours; `workers` are real processes that break the
//! rules over a socket, against a real pool.

// `fuzz/` makes a library of these, for which they are public.
#[allow(unreachable_pub)]
mod arenas;
#[allow(unreachable_pub)]
mod bytes;
#[allow(unreachable_pub)]
mod memory;
#[allow(unreachable_pub)]
mod values;
mod workers;

use errback::wire::{self, Answer, FrameReader, Outcome};
use proptest::prelude::*;

use values::{Source, Tree};

#[global_allocator]
static COUNTING: memory::Counting = memory::Counting;

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..400)
}

proptest! {
    #[test]
    fn frames_are_those_of_a_plain_reader_and_cost_what_came(bytes in some_bytes()) {
        bytes::frames(Source::new(&bytes));
    }

    #[test]
    fn a_host_reads_any_bytes(bytes in some_bytes()) {
        bytes::host_reads(&bytes);
    }

    #[test]
    fn a_worker_reads_any_bytes(bytes in some_bytes()) {
        bytes::worker_reads(&bytes);
    }

    #[test]
    fn both_read_what_is_almost_right(bytes in some_bytes()) {
        bytes::mutated(Source::new(&bytes));
    }

    #[test]
    fn a_host_reads_only_sound_memory_of_its_workers(bytes in some_bytes()) {
        arenas::host_is_shown(Source::new(&bytes));
    }

    #[test]
    fn a_worker_reads_only_sound_memory_of_its_host(bytes in some_bytes()) {
        arenas::worker_is_shown(Source::new(&bytes));
    }

    #[test]
    fn a_value_comes_back(bytes in some_bytes()) {
        let mut source = Source::new(&bytes);
        let id = source.number();
        bytes::comes_back(&Tree::new(&mut source), id);
    }
}

/// An answer to call 7 with this in the place of its error.
fn answer_with_error(error: &[u8]) -> Vec<u8> {
    [&[0x94, 1, 7][..], error, &[0xc0]].concat()
}

/// An array of `count` times the same.
fn many(count: u32, value: &[u8]) -> Vec<u8> {
    [
        &[0xdd][..],
        &count.to_be_bytes(),
        &value.repeat(count as usize),
    ]
    .concat()
}

const MANY: u32 = 1 << 18;

#[test]
fn a_call_with_more_references_than_a_frame_may_have_is_refused() {
    assert!(arenas::worker_takes(64));
    assert!(!arenas::worker_takes(65));
}

#[test]
fn more_results_than_calls_are_refused_unread() {
    let results = many(MANY, &[0x92, 0xc0, 0xc0]);
    let (parsed, cost) = memory::cost(|| wire::parse_chunk_results(&results, 1));
    assert!(parsed.is_err());
    assert!(cost.peak < 4096, "{cost:?}");
    let results = [b"\x81\xa3all", &many(MANY, &[0xc0])[..]].concat();
    let (parsed, cost) = memory::cost(|| wire::parse_chunk_results(&results, 1));
    assert!(parsed.is_err());
    assert!(cost.peak < 4096, "{cost:?}");
}

#[test]
fn causes_beyond_those_that_travel_are_not_kept_even_for_a_moment() {
    let chain = many(MANY, &[0xa1, b'x']);
    let answer = answer_with_error(&[b"\x81\xa5chain", &chain[..]].concat());
    let (parsed, cost) = memory::cost(|| Answer::parse(&answer).expect("an answer"));
    let Outcome::Error(error) = parsed.outcome else {
        panic!("a value")
    };
    assert_eq!(error.chain, vec!["x"; 50]);
    assert!(cost.peak < 65536, "{cost:?}");
}

#[test]
fn an_error_about_a_long_string_is_not_as_long() {
    // Each of these takes five bytes where an error shows it.
    let text = [&[0xdb][..], &MANY.to_be_bytes(), &vec![1; MANY as usize]].concat();
    let error = wire::decode_value::<u8>(&text).expect_err("no number");
    assert!(error.to_string().len() < 70_000);
    let answer = answer_with_error(&[b"\x81\xa5chain", &text[..]].concat());
    let error = Answer::parse(&answer).expect_err("no chain");
    assert!(error.to_string().len() < 70_000);
}

#[test]
fn the_buffer_of_a_big_frame_is_given_back_though_another_has_begun() {
    let (reader, cost) = memory::cost(|| {
        let mut reader = FrameReader::new(wire::MAX_FRAME);
        reader.extend(&MANY.to_be_bytes());
        reader.extend(&vec![0; MANY as usize]);
        reader.extend(&[0, 0]);
        assert!(reader.next_frame().expect("below the limit").is_some());
        reader.room();
        reader
    });
    assert!(!reader.is_empty());
    assert!(cost.kept < 150_000, "{cost:?}");
}

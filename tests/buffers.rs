//! Large buffers between a host and its workers, with shared memory and without.

use std::collections::BTreeMap;
use std::sync::Mutex;

use errback::{Buffer, NotSerialisable, Pool};
use serde::{Deserialize, Serialize};

/// Enough to be shared.
const LARGE: usize = 100_000;

fn numbers(length: usize, first: u8) -> Buffer {
    Buffer::with_len(length, |bytes| {
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = (n as u8).wrapping_add(first);
        }
    })
}

fn filled(length: usize, byte: u8) -> Buffer {
    Buffer::with_len(length, |bytes| bytes.fill(byte))
}

#[errback::task]
fn inverted(bytes: Buffer) -> Buffer {
    Buffer::with_len(bytes.len(), |to| {
        for (to, from) in to.iter_mut().zip(&bytes[..]) {
            *to = !from;
        }
    })
}

#[errback::task]
fn same(bytes: Buffer) -> Buffer {
    bytes
}

#[errback::task]
fn first_of(bytes: Buffer) -> u8 {
    bytes[0]
}

#[errback::task]
fn made(length: usize, byte: u8) -> Buffer {
    filled(length, byte)
}

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
struct Album {
    name: String,
    pictures: BTreeMap<String, Vec<Picture>>,
    cover: Option<Buffer>,
}

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
enum Picture {
    Raw(Buffer),
    Named { name: String, bytes: Buffer },
    None,
}

#[errback::task]
fn same_album(album: Album) -> Album {
    album
}

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
#[serde(untagged)]
enum Either {
    Number(u64),
    Bytes(Buffer),
}

#[errback::task]
fn same_either(either: Vec<Either>) -> Vec<Either> {
    either
}

static KEPT: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

/// Keeps it beyond its job.
#[errback::task]
fn keep(bytes: Buffer) -> usize {
    let mut kept = KEPT.lock().unwrap();
    kept.push(bytes.slice(10..20));
    kept.len()
}

/// The first bytes of what was kept.
#[errback::task]
fn first_kept() -> Vec<u8> {
    KEPT.lock().unwrap().iter().map(|bytes| bytes[0]).collect()
}

#[errback::task]
fn let_go() {
    KEPT.lock().unwrap().clear();
}

/// What is shared of the memory of this process, in KiB.
#[errback::task]
fn shared_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssShmem:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// A pool in each of the ways in which buffers can travel.
fn pools(size: usize) -> [Pool; 3] {
    let builder = || Pool::builder().size(size);
    [
        builder().build().expect("a pool"),
        builder().trust_workers(true).build().expect("a pool"),
        builder().shared_buffers(None).build().expect("a pool"),
    ]
}

#[test]
fn buffers_of_all_sizes_come_back_as_they_should() {
    for pool in pools(1) {
        for size in [0, 1, 4095, 65_535, 65_536, 65_537, LARGE, 1 << 20, 5 << 20] {
            let bytes = numbers(size, 3);
            let expected: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
            let result = pool
                .apply_async(inverted, (bytes.clone(),))
                .get()
                .expect("a result");
            assert!(result == expected, "{size} bytes");
            assert!(
                pool.apply_async(same, (bytes.clone(),))
                    .get()
                    .expect("it comes back")
                    == bytes
            );
        }
    }
}

#[test]
fn memory_is_used_again_and_nobody_sees_it() {
    for pool in pools(2) {
        let mut before: Vec<(Buffer, u8)> = Vec::new();
        for round in 0..100_u8 {
            let jobs: Vec<_> = (0..4)
                .map(|n| pool.apply_async(inverted, (numbers(LARGE, round + n),)))
                .collect();
            for (n, job) in (0..).zip(jobs) {
                let result = job.get().expect("a result");
                assert!(
                    result
                        .iter()
                        .enumerate()
                        .all(|(at, byte)| !byte == (at as u8).wrapping_add(round + n))
                );
                before.push((result, !(round + n)));
            }
            assert!(
                before
                    .iter()
                    .all(|(bytes, first)| bytes[0] == *first && bytes[256] == *first)
            );
            before.truncate(usize::from(round % 7));
        }
    }
}

#[test]
fn buffers_travel_anywhere_in_a_value() {
    let large = |n| numbers(LARGE, n);
    let named = |n| Picture::Named {
        name: "x".into(),
        bytes: large(n),
    };
    let album = Album {
        name: "summer".into(),
        pictures: BTreeMap::from([
            (
                "a".into(),
                vec![Picture::Raw(large(1)), Picture::None, named(2)],
            ),
            ("b".into(), vec![Picture::Raw(numbers(3, 0)); 3]),
        ]),
        cover: Some(large(4).slice(1000..99_000)),
    };
    let either = vec![
        Either::Number(7),
        Either::Bytes(large(5)),
        Either::Bytes(numbers(9, 9)),
    ];
    for pool in pools(1) {
        let back = pool
            .apply_async(same_album, (album.clone(),))
            .get()
            .expect("a result");
        assert!(back == album);
        let back = pool
            .apply_async(same_either, (either.clone(),))
            .get()
            .expect("a result");
        assert!(back == either);
    }
}

#[test]
fn one_buffer_serves_many_jobs_and_the_items_of_a_map() {
    let one = numbers(LARGE, 42);
    for pool in pools(2) {
        let results = pool.map(first_of, (0..500).map(|_| one.clone()));
        assert!(
            results
                .map(|result| result.expect("a result"))
                .all(|byte| byte == 42)
        );
        let jobs: Vec<_> = (0..100)
            .map(|_| pool.apply_async(first_of, (one.clone(),)))
            .collect();
        assert!(
            jobs.into_iter()
                .all(|job| job.get().expect("a result") == 42)
        );
        let results = pool.map(same, (0..200).map(|n| numbers(LARGE, n)));
        for (n, result) in (0..).zip(results) {
            assert_eq!(result.expect("a result")[0], n);
        }
    }
}

#[test]
fn a_failure_among_the_items_of_a_map_does_not_move_their_buffers() {
    for pool in pools(1) {
        let mut results = pool.map(made_if_lucky, 0..20).chunk_size(20);
        for n in 0..20 {
            let result = results.next().expect("a result");
            match n {
                7 | 13 => assert!(result.is_err()),
                n => assert_eq!(result.expect("bytes"), filled(LARGE + usize::from(n), n)),
            }
        }
        assert!(results.next().is_none());
    }
}

#[errback::task]
fn made_if_lucky(n: u8) -> Result<Buffer, String> {
    match n {
        7 | 13 => Err(format!("{n} is unlucky")),
        n => Ok(filled(LARGE + usize::from(n), n)),
    }
}

#[test]
fn what_a_task_keeps_stays_as_it_was() {
    for pool in pools(1) {
        for n in 0..100 {
            assert_eq!(
                pool.apply_async(keep, (numbers(LARGE, n),))
                    .get()
                    .expect("kept"),
                usize::from(n) + 1
            );
            // What lies in the same memory next, if it is not the memory of the one that was kept.
            pool.apply_async(first_of, (numbers(LARGE, 200),))
                .get()
                .expect("a result");
        }
        let expected: Vec<u8> = (10..110).collect();
        assert_eq!(
            pool.apply_async(first_kept, ()).get().expect("bytes"),
            expected
        );
        pool.apply_async(let_go, ()).get().expect("gone");
        for _ in 0..10 {
            pool.apply_async(first_of, (numbers(LARGE, 1),))
                .get()
                .expect("a result");
        }
    }
}

#[test]
fn a_result_outlives_its_worker_and_its_pool() {
    for pool in pools(1) {
        let results: Vec<_> = (0..5_u8)
            .map(|n| pool.apply_async(made, (LARGE, n)).get().expect("bytes"))
            .collect();
        pool.terminate();
        pool.join();
        for (n, result) in (0..).zip(results) {
            assert!(result.iter().all(|byte| *byte == n));
        }
    }
}

#[test]
fn more_buffers_than_there_is_room_for_travel_in_the_message() {
    for pool in pools(1) {
        let held: Vec<Buffer> = (0..400).map(|n| numbers(65_536, n as u8)).collect();
        let jobs: Vec<_> = held
            .iter()
            .map(|bytes| pool.apply_async(first_of, (bytes.clone(),)))
            .collect();
        for (n, job) in (0..400).zip(jobs) {
            assert_eq!(job.get().expect("a result"), n as u8);
        }
        // The other way round.
        let results: Vec<_> = (0..200)
            .map(|n| pool.apply_async(made, (65_536, n)).get().expect("bytes"))
            .collect();
        for (n, result) in (0..).zip(results) {
            assert_eq!((result[0], result[65_535]), (n, n));
        }
    }
}

#[test]
fn what_was_too_large_to_be_kept_is_let_go_of() {
    let pool = Pool::builder().size(1).build().expect("a pool");
    let size = 160 << 20;
    let large = pool.apply_async(made, (size, 9)).get().expect("bytes");
    assert!(large.len() == size && large[size - 1] == 9);
    assert_eq!(
        pool.apply_async(first_of, (large,))
            .get()
            .expect("a result"),
        9
    );
    let left = pool.apply_async(shared_kib, ()).get().expect("a number");
    assert!(left <= 128 * 1024, "{left} KiB");
    Buffer::trim();
}

#[test]
fn a_worker_with_little_memory_fails_the_job_that_asks_for_more() {
    let pool = Pool::builder()
        .size(1)
        .memory_limit(256 << 20)
        .build()
        .expect("a pool");
    let failure = pool
        .apply_async(first_of, (filled(300 << 20, 1),))
        .get()
        .expect_err("no room");
    assert!(failure.is::<NotSerialisable>(), "{failure:?}");
    // And its space is its jobs' own: mappings do not pile up.
    for n in 0..60 {
        let bytes = filled((5 << 20) + usize::from(n) * 700_000, n);
        assert_eq!(
            pool.apply_async(first_of, (bytes,))
                .get()
                .expect("a result"),
            n
        );
    }
    assert_eq!(pool.stats().died, 0);
    Buffer::trim();
}

//! What takes minutes or gigabytes: `.ci/nightly` runs these, each alone in its process.

use std::fs;

use errback::{Buffer, EncodeError, Pool};

#[errback::task]
fn add_one(n: u64) -> u64 {
    n + 1
}

#[errback::task]
fn reverse(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

fn pool(size: usize) -> Pool {
    Pool::builder().size(size).build().expect("a pool")
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    let number = line.split_whitespace().next().expect("a number");
    number.parse().expect("a number")
}

/// Calls by themselves, so many, with some hundred at a time in the pool.
fn call_one_by_one(pool: &Pool, count: u64) {
    for first in (0..count).step_by(500) {
        let jobs: Vec<_> = (first..count.min(first + 500))
            .map(|n| (n, pool.apply_async(add_one, (n,))))
            .collect();
        for (n, job) in jobs {
            assert_eq!(job.get().expect("a sum"), n + 1);
        }
    }
}

fn call_by_map(pool: &Pool, count: u64) {
    for (n, sum) in (0..count).zip(pool.map(add_one, 0..count)) {
        assert_eq!(sum.expect("a sum"), n + 1, "map keeps the order");
    }
}

#[test]
#[ignore = "takes a minute"]
fn ten_million_jobs_leave_nothing_behind() {
    /// What allocators, and how many jobs happen to wait at a time, may make of it: a fifth of a byte for each job.
    const PLAY: u64 = 2048;
    let pool = pool(2);
    let millions = |count| {
        for _ in 0..count {
            call_one_by_one(&pool, 500_000);
            call_by_map(&pool, 500_000);
        }
        resident_kib()
    };
    // So that what is allocated once is there, in the same sizes: buffers are kept.
    let before = millions(4);
    let after = millions(10);
    println!("{before} KiB before, {after} KiB after ten million jobs");
    assert!(after <= before + PLAY, "{before} KiB became {after}");
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.died), (stats.finished, 0));
}

#[test]
#[ignore = "takes gigabytes"]
fn payloads_of_256_mebibytes_come_back_equal() {
    let pool = pool(2);
    let bytes: Vec<u8> = (0..256_u32 << 20)
        .map(|n| (n.wrapping_mul(7) ^ n >> 11) as u8)
        .collect();
    let jobs: Vec<_> = (0..2)
        .map(|_| pool.apply_async(reverse, (bytes.clone(),)))
        .collect();
    for job in jobs {
        let turned = job.get().expect("bytes");
        assert!(turned.iter().rev().eq(&bytes), "other bytes");
    }
}

#[errback::task]
fn reversed(bytes: Buffer) -> Buffer {
    Buffer::with_len(bytes.len(), |to| {
        to.iter_mut()
            .zip(bytes.iter().rev())
            .for_each(|(to, from)| *to = *from);
    })
}

#[test]
#[ignore = "takes gigabytes"]
fn a_buffer_above_four_gibibytes_goes_there_and_back() {
    let length = (4 << 30) + 1;
    let byte = |n: usize| (n ^ n >> 13 ^ n >> 29) as u8;
    let bytes = Buffer::with_len(length, |bytes| {
        (0..).zip(bytes).for_each(|(n, to)| *to = byte(n));
    });
    let pool = pool(1);
    let turned = pool.apply_async(reversed, (bytes,)).get().expect("bytes");
    assert_eq!(turned.len(), length);
    assert!(
        turned
            .iter()
            .rev()
            .enumerate()
            .all(|(n, it)| *it == byte(n))
    );
}

#[test]
#[ignore = "takes gigabytes"]
fn an_argument_above_four_gibibytes_is_refused_at_submit() {
    // More than a length of 32 bits can say, whatever limit is asked for.
    let pool = Pool::builder()
        .size(1)
        .max_message(usize::MAX)
        .build()
        .expect("a pool");
    let job = pool.apply_async(reverse, (vec![0; (4 << 30) + 1],));
    assert!(job.ready(), "it failed on the spot");
    let failure = job.get().expect_err("too large");
    assert!(
        matches!(failure.check(), Some(EncodeError::TooLarge { .. })),
        "{failure:?}"
    );
    assert_eq!(
        pool.apply_async(reverse, (vec![1, 2],)).get().expect("few"),
        [2, 1]
    );
}

//! What workers do here.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use errback::{Buffer, Failure, Pool};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use crate::machine::cpu_time_of_thread;
use crate::options::{Options, WORKERS};

#[errback::task]
pub(crate) fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[errback::task]
pub(crate) fn increment(n: i64) -> i64 {
    n + 1
}

#[errback::task]
pub(crate) fn increment_all(numbers: Vec<i64>) -> Vec<i64> {
    numbers.into_iter().map(|n| n + 1).collect()
}

#[errback::task]
pub(crate) fn echo(bytes: Bytes) -> Bytes {
    bytes
}

#[errback::task]
pub(crate) fn echo_buffer(bytes: Buffer) -> Buffer {
    bytes
}

#[errback::task]
pub(crate) fn echo_list(numbers: Vec<u8>) -> Vec<u8> {
    numbers
}

/// Sleeps, and says which worker it was.
#[errback::task]
pub(crate) fn slow(milliseconds: u64) -> u32 {
    std::thread::sleep(Duration::from_millis(milliseconds));
    std::process::id()
}

/// Uses so much CPU time.
#[errback::task]
pub(crate) fn busy(milliseconds: u64) -> u64 {
    let end = cpu_time_of_thread() + Duration::from_millis(milliseconds);
    while cpu_time_of_thread() < end {
        for i in 0..1000 {
            black_box(i);
        }
    }
    milliseconds
}

/// Runs until there is such a file.
#[errback::task]
pub(crate) fn until_file(path: String) -> u32 {
    while !Path::new(&path).exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::process::id()
}

/// Bytes that travel as bytes. (A `Vec<u8>` is a list of numbers to serde, and goes one by one; the crate `serde_bytes`
/// has a type like this.)
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes(bytes.to_vec()))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(Bytes(bytes))
    }
}

/// A pool all of whose workers have done something; and their process ids.
pub(crate) fn warm_pool(options: &Options) -> Result<(Pool, Vec<u32>), Failure> {
    let pool = options.pool().build()?;
    let pids = warm(&pool, WORKERS)?;
    Ok((pool, pids))
}

/// Makes a pool's workers start, if they have not, and waits until all of them have worked.
pub(crate) fn warm(pool: &Pool, workers: usize) -> Result<Vec<u32>, Failure> {
    let mut pids = Vec::new();
    for _ in 0..100 {
        let results: Vec<_> = (0..workers * 2)
            .map(|_| pool.apply_async(slow, (50,)))
            .collect();
        for result in results {
            pids.push(result.get()?);
        }
        pids.sort_unstable();
        pids.dedup();
        if pids.len() == workers {
            return Ok(pids);
        }
    }
    errback::bail!("only {} of {workers} workers took a job", pids.len())
}

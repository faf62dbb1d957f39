//! Bench D: large arguments and results. Bytes of 1 KiB to 512 MiB go to a worker and come back.

use std::time::{Duration, Instant};

use errback::{Buffer, Failure, Pool, Reactor, Task, defer_to_process_pool};

use crate::options::{Options, WORKERS};
use crate::report::{Row, microseconds, percentile};
use crate::tasks::{Bytes, echo, echo_buffer, echo_list, warm, warm_pool};
use crate::{Done, on_a_reactor};

const SIZES: [(&str, usize); 5] = [
    ("1KiB", 1 << 10),
    ("64KiB", 1 << 16),
    ("1MiB", 1 << 20),
    ("64MiB", 1 << 26),
    ("512MiB", 1 << 29),
];

/// A list of numbers is slow: not beyond this size, in bytes.
const LARGEST_LIST: usize = 1 << 20;

pub(crate) fn payload(options: &Options) -> Done {
    let (pool, _) = warm_pool(options)?;
    let trusting = options.pool().trust_workers(true).build()?;
    warm(&trusting, WORKERS)?;
    let bytes = options.row("D", "");
    let buffers = options.row("D", "_Buffer");
    let in_place = options.row("D", "_Buffer_in_place");
    let list = options.row("D", "_plain_Vec_u8");
    let largest = options.max.unwrap_or(match options.quick {
        true => 1 << 26,
        false => 1 << 29,
    });
    let patience = Duration::from_millis(if options.quick { 200 } else { 1500 });
    on_a_reactor(move |reactor| async move {
        for (tag, size) in SIZES.into_iter().filter(|(_, size)| *size <= largest) {
            // Another way for bytes to travel is one more line here.
            let data = || Bytes(sample(size));
            let buffer = || Buffer::from(sample(size));
            let times = echoes(&reactor, &pool, echo_buffer, buffer, patience).await?;
            report(&buffers, tag, size, &times);
            let times = echoes(&reactor, &trusting, echo_buffer, buffer, patience).await?;
            report(&in_place, tag, size, &times);
            report(
                &bytes,
                tag,
                size,
                &echoes(&reactor, &pool, echo, data, patience).await?,
            );
            if size <= LARGEST_LIST {
                let times = echoes(&reactor, &pool, echo_list, || sample(size), patience).await?;
                report(&list, tag, size, &times);
            }
        }
        Ok(())
    })
}

pub(crate) fn sample(size: usize) -> Vec<u8> {
    (0..size).map(|i| ((i * 31) >> 3) as u8).collect()
}

/// How long each of some round trips took, in ascending order; as many as fit into `patience`. What is sent is made before the time
/// begins, and what comes back is compared with it, once.
pub(crate) async fn echoes<F, T>(
    reactor: &Reactor,
    pool: &Pool,
    task: F,
    data: impl Fn() -> T,
    patience: Duration,
) -> Result<Vec<Duration>, Failure>
where
    F: Task<Args = (T,), Output = T>,
    T: Clone + PartialEq + 'static,
{
    let data = data();
    let start = Instant::now();
    let back = defer_to_process_pool(reactor, pool, task, (data.clone(),)).await?;
    let first = start.elapsed();
    assert!(back == data);
    drop(back);
    let mut times = Vec::new();
    for _ in 0..rounds_for(first, patience) {
        let args = (data.clone(),);
        let start = Instant::now();
        let back = defer_to_process_pool(reactor, pool, task, args).await?;
        times.push(start.elapsed());
        drop(back);
    }
    times.sort_unstable();
    Ok(times)
}

fn rounds_for(first: Duration, patience: Duration) -> usize {
    let rounds = patience.as_secs_f64() / first.as_secs_f64().max(1e-6);
    (rounds as usize).clamp(3, 2000)
}

/// The size over the median round trip, in which the bytes cross twice.
pub(crate) fn report(row: &Row, tag: &str, size: usize, times: &[Duration]) {
    let median = microseconds(percentile(times, 0.5));
    row.say(&format!("echo_{tag}_us"), median, "us");
    let rate = size as f64 / median / 1e3;
    row.say(&format!("echo_{tag}_GBps"), rate, "GB/s there and back");
}

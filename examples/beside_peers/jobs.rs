//! Bench D: jobs in worker processes. One tiny job at a time, many at once, and jobs that use the CPU.
//!
//! Through Deferreds on a reactor, and (`_get`) without one: `apply_async`, and then `get`.

use std::time::{Duration, Instant};

use errback::{Failure, Pool, Reactor, Task, defer_to_process_pool, gather_results};

use crate::options::{Options, WORKERS};
use crate::report::median;
use crate::tasks::{add, busy, warm_pool};
use crate::{Done, on_a_reactor};

/// One tiny job at a time, there and back.
pub(crate) fn latency(options: &Options) -> Done {
    let count = options.count(3000) as i64;
    let (pool, _) = warm_pool(options)?;
    let row = options.row("D", "");
    let pool_of_reactor = pool.clone();
    on_a_reactor(move |reactor| async move {
        let mut times = one_at_a_time(&reactor, &pool_of_reactor, add, count).await?;
        row.say_percentiles("job1", &mut times);
        Ok(())
    })?;
    let mut times = one_at_a_time_got(&pool, count)?;
    options.row("D", "_get").say_percentiles("job1", &mut times);
    Ok(())
}

pub(crate) async fn one_at_a_time(
    reactor: &Reactor,
    pool: &Pool,
    task: impl Task<Args = (i64, i64), Output = i64>,
    count: i64,
) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    for i in -count / 10..count {
        let start = Instant::now();
        let sum = defer_to_process_pool(reactor, pool, task, (i, 1)).await?;
        let took = start.elapsed();
        assert_eq!(sum, i + 1);
        times.extend((i >= 0).then_some(took));
    }
    Ok(times)
}

fn one_at_a_time_got(pool: &Pool, count: i64) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    for i in -count / 10..count {
        let start = Instant::now();
        let sum = pool.apply_async(add, (i, 1)).get()?;
        let took = start.elapsed();
        assert_eq!(sum, i + 1);
        times.extend((i >= 0).then_some(took));
    }
    Ok(times)
}

/// 20,000 tiny jobs at once, and 200,000.
pub(crate) fn burst(options: &Options) -> Done {
    let sizes: &[i64] = match options.quick {
        true => &[20_000],
        false => &[20_000, 200_000],
    };
    let (pool, _) = warm_pool(options)?;
    let row = options.row("D", "");
    let pool_of_reactor = pool.clone();
    on_a_reactor(move |reactor| async move {
        for many in sizes {
            let mut rates = Vec::new();
            for _ in 0..3 {
                rates.push(*many as f64 / deferred(&reactor, &pool_of_reactor, *many).await?);
            }
            row.say(&burst_metric(*many), median(&rates), "jobs/s");
        }
        Ok(())
    })?;
    for many in sizes {
        let mut rates = Vec::new();
        for _ in 0..3 {
            rates.push(*many as f64 / got(&pool, *many)?);
        }
        let row = options.row("D", "_get");
        row.say(&burst_metric(*many), median(&rates), "jobs/s");
    }
    Ok(())
}

fn burst_metric(many: i64) -> String {
    format!("burst{}k_per_s", many / 1000)
}

/// How many seconds so many jobs take, through Deferreds.
pub(crate) async fn deferred(reactor: &Reactor, pool: &Pool, many: i64) -> Result<f64, Failure> {
    let start = Instant::now();
    let jobs = (0..many).map(|i| defer_to_process_pool(reactor, pool, add, (i, 1)));
    let sums = gather_results(jobs).await?;
    let took = start.elapsed();
    assert!(sums.into_iter().eq(1..=many));
    Ok(took.as_secs_f64())
}

/// The same with `apply_async` and `get`.
pub(crate) fn got(pool: &Pool, many: i64) -> Result<f64, Failure> {
    let start = Instant::now();
    let results: Vec<_> = (0..many).map(|i| pool.apply_async(add, (i, 1))).collect();
    for (i, result) in (1..).zip(results) {
        assert_eq!(result.get()?, i);
    }
    Ok(start.elapsed().as_secs_f64())
}

/// 400 jobs of 2 ms of CPU each: how much of the workers' cores is put to work.
pub(crate) fn scale(options: &Options) -> Done {
    let (pool, _) = warm_pool(options)?;
    let row = options.row("D", "");
    let rounds = options.rounds(7);
    on_a_reactor(move |reactor| async move {
        let mut shares = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            let jobs = (0..400).map(|_| defer_to_process_pool(&reactor, &pool, busy, (2,)));
            let worked = gather_results(jobs).await?.into_iter().sum::<u64>();
            let all = start.elapsed().as_secs_f64() * WORKERS as f64;
            shares.push(worked as f64 / 1e3 / all);
        }
        row.say("scale_efficiency", median(&shares), "of two cores");
        Ok(())
    })
}

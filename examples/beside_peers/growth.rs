//! How cost grows with work: sweeps over many sizes, each a table and, with `--plots DIR`, a plot.
//!
//! On a plot with two logarithmic axes, cost that is proportional to work is a straight line as steep as the dashed one. What is done
//! only once shows as a flat beginning.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use errback::{Buffer, Failure, Pool};

use crate::options::{Options, WORKERS};
use crate::plot::{Curve, Plot, Unit};
use crate::tasks::{Bytes, echo, echo_buffer, increment, warm, warm_pool};
use crate::timers::{Plan, loaded};
use crate::{Done, deferreds, jobs, on_a_reactor, payloads};

/// A point is measured again until so much time has gone by, and its best time counts.
const PATIENCE: Duration = Duration::from_millis(300);

/// 1 to 1,000,000 tiny jobs at once, and a map over as many numbers.
pub(crate) fn of_jobs(options: &Options) -> Done {
    let (pool, _) = warm_pool(options)?;
    let mut map = Curve::new("map, by number of items");
    for many in sizes(1, options.largest(1_000_000), 10) {
        let best = best_of(|| {
            let start = Instant::now();
            let results = pool.map(increment, 0..many as i64);
            let numbers = results.collect::<Result<Vec<_>, _>>()?;
            assert!(numbers.into_iter().eq(1..=many as i64));
            Ok(start.elapsed().as_secs_f64())
        })?;
        map.push(many, best);
    }
    let at_once = Rc::new(RefCell::new(Curve::new("jobs at once")));
    let curve = Rc::clone(&at_once);
    let largest = options.largest(1_000_000);
    on_a_reactor(move |reactor| async move {
        for many in sizes(1, largest, 10) {
            let begun = Instant::now();
            let mut best = f64::INFINITY;
            while best.is_infinite() || begun.elapsed() < PATIENCE {
                best = best.min(jobs::deferred(&reactor, &pool, many as i64).await?);
            }
            curve.borrow_mut().push(many, best);
        }
        Ok(())
    })?;
    Plot {
        file: "jobs",
        title: "Time for tiny jobs, two workers",
        across: ("jobs", Unit::Count),
        up: ("time", Unit::Seconds),
        curves: vec![at_once.take(), map],
    }
    .show(options)
}

/// Bytes that go to a worker and come back: 1 byte to 1 GiB, as a vector of one's own and as a buffer.
pub(crate) fn of_payload(options: &Options) -> Done {
    /// What a frame has besides.
    const BESIDES: usize = 64;
    let (pool, _) = warm_pool(options)?;
    let largest = options.max.unwrap_or(options.largest(1 << 30));
    let curves = Rc::new(RefCell::new(vec![
        Curve::new("bytes, there and back"),
        Curve::new("the same in a Buffer"),
    ]));
    let points = Rc::clone(&curves);
    on_a_reactor(move |reactor| async move {
        for size in sizes(1, largest, 4) {
            // Another way for bytes to travel is another curve.
            let size = size.min(errback::wire::MAX_FRAME - BESIDES);
            let data = || Bytes(payloads::sample(size));
            let times = payloads::echoes(&reactor, &pool, echo, data, PATIENCE).await?;
            points.borrow_mut()[0].push(size, times[0].as_secs_f64());
            let data = || Buffer::from(payloads::sample(size));
            let times = payloads::echoes(&reactor, &pool, echo_buffer, data, PATIENCE).await?;
            points.borrow_mut()[1].push(size, times[0].as_secs_f64());
        }
        Ok(())
    })?;
    Plot {
        file: "payload",
        title: "Time for bytes to a worker and back",
        across: ("bytes", Unit::Bytes),
        up: ("time", Unit::Seconds),
        curves: curves.take(),
    }
    .show(options)
}

/// 1 to 64 workers: until all have worked, and what 20,000 tiny jobs take with them.
pub(crate) fn of_workers(options: &Options) -> Done {
    let mut start = Curve::new("until all have started");
    let mut burst = Curve::new("20,000 tiny jobs");
    for workers in sizes(1, options.largest(64).max(4), 2) {
        let (started, pool) = started(options, workers)?;
        start.push(workers, started);
        warm(&pool, workers)?;
        burst.push(workers, best_of(|| jobs::got(&pool, 20_000))?);
        pool.terminate();
        pool.join();
    }
    Plot {
        file: "workers",
        title: "Time by number of workers",
        across: ("workers", Unit::Few),
        up: ("time", Unit::Seconds),
        curves: vec![start, burst],
    }
    .show(options)
}

/// A pool of so many workers, and the seconds until all of them are there.
fn started(options: &Options, workers: usize) -> Result<(f64, Pool), Failure> {
    let start = Instant::now();
    let pool = options.pool().size(workers).min_size(workers).build()?;
    while pool.stats().workers.len() < workers {
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok((start.elapsed().as_secs_f64(), pool))
}

/// 1 to 10,000,000 timers, nine of ten cancelled.
pub(crate) fn of_timers(options: &Options) -> Done {
    let mut time = Curve::new("CPU time");
    for many in sizes(10, options.largest(10_000_000), 10) {
        let found = Rc::new(RefCell::new(f64::INFINITY));
        let best = Rc::clone(&found);
        let offset = Duration::from_millis(200) + Duration::from_micros(2) * many as u32;
        on_a_reactor(move |reactor| async move {
            let costs = loaded(&reactor, Plan::new(many, offset)).await?;
            best.replace(costs.each() * many as f64 / 1e9);
            Ok(())
        })?;
        time.push(many, found.take());
    }
    Plot {
        file: "timers",
        title: "CPU time for timers, nine of ten cancelled",
        across: ("timers", Unit::Count),
        up: ("CPU time", Unit::Seconds),
        curves: vec![time],
    }
    .show(options)
}

/// 1 to 1,000,000 Deferreds that each return the next, and as many that are gathered.
pub(crate) fn of_chains(options: &Options) -> Done {
    let mut chained = Curve::new("each returns the next");
    let mut gathered = Curve::new("gathered");
    for many in sizes(1, options.largest(1_000_000), 10) {
        let time = |work: &dyn Fn() -> bool| {
            best_of(|| {
                let start = Instant::now();
                assert!(work());
                Ok(start.elapsed().as_secs_f64())
            })
        };
        chained.push(many, time(&|| deferreds::chained(many))?);
        let sum = (0..many as i64).sum::<i64>();
        gathered.push(many, time(&|| deferreds::gathered(many) == sum)?);
    }
    Plot {
        file: "chains",
        title: "Time for Deferreds",
        across: ("Deferreds", Unit::Count),
        up: ("time", Unit::Seconds),
        curves: vec![chained, gathered],
    }
    .show(options)
}

/// From the first to the last, each `factor` times the one before; where that is ten, also thrice as many.
fn sizes(first: usize, last: usize, factor: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut size = first;
    while size < last {
        sizes.push(size);
        if factor == 10 && size * 3 < last {
            sizes.push(size * 3);
        }
        size *= factor;
    }
    sizes.push(last);
    sizes
}

fn best_of(mut measure: impl FnMut() -> Result<f64, Failure>) -> Result<f64, Failure> {
    let begun = Instant::now();
    let mut best = measure()?;
    while begun.elapsed() < PATIENCE {
        best = best.min(measure()?);
    }
    Ok(best)
}

const _: () = assert!(WORKERS == 2, "a title says so");

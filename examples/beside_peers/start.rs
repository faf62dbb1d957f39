//! Bench D: from nothing to a pool's first result.

use std::time::Instant;

use errback::Failure;

use crate::Done;
use crate::options::Options;
use crate::report::{least, median};
use crate::tasks::add;

/// So many come first, as the limit of the machine is measured when a thousand processes have been started: a machine that was
/// at something else, or asleep, takes a while to start processes quickly.
const BEFORE: usize = 100;
/// From so many the figures are, as those of the limit.
const POOLS: usize = 20;

pub(crate) fn start(options: &Options) -> Done {
    let (_, first_of_all) = pool_and_result(options)?;
    for _ in 1..options.rounds(BEFORE) {
        pool_and_result(options)?;
    }
    let (mut made, mut first) = (Vec::new(), Vec::new());
    for _ in 0..POOLS {
        let (pool, result) = pool_and_result(options)?;
        made.push(pool);
        first.push(result);
    }
    let row = options.row("D", "");
    row.say("start_create_ms", median(&made), "ms");
    row.say("start_first_result_ms", median(&first), "ms");
    row.say("start_first_result_min_ms", least(&first), "ms");
    row.say("start_first_of_all_ms", first_of_all, "ms");
    Ok(())
}

/// How long it takes until there is a pool, and until it has a result, in milliseconds.
fn pool_and_result(options: &Options) -> Result<(f64, f64), Failure> {
    let start = Instant::now();
    let since_start = || start.elapsed().as_secs_f64() * 1e3;
    let pool = options.pool().build()?;
    let made = since_start();
    let sum = pool.apply_async(add, (1, 2)).get()?;
    let first = since_start();
    assert_eq!(sum, 3);
    pool.terminate();
    pool.join();
    Ok((made, first))
}

//! Bench D: from nothing to a pool's first result.

use std::time::Instant;

use crate::Done;
use crate::options::Options;
use crate::report::{least, median};
use crate::tasks::add;

/// As many as the limit of the machine is the median of.
const POOLS: usize = 20;

/// Pools, one after another.
pub(crate) fn start(options: &Options) -> Done {
    let (mut made, mut first) = (Vec::new(), Vec::new());
    for _ in 0..POOLS {
        let start = Instant::now();
        let pool = options.pool().build()?;
        made.push(start.elapsed().as_secs_f64() * 1e3);
        let sum = pool.apply_async(add, (1, 2)).get()?;
        first.push(start.elapsed().as_secs_f64() * 1e3);
        assert_eq!(sum, 3);
        pool.terminate();
        pool.join();
    }
    let row = options.row("D", "");
    row.say("start_create_ms", median(&made), "ms");
    row.say("start_first_result_ms", median(&first), "ms");
    row.say("start_first_result_min_ms", least(&first), "ms");
    Ok(())
}

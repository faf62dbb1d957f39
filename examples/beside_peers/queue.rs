//! Bench D: a hundred thousand jobs that wait behind two that do not end. What each submit costs, and what they hold.
//!
//! Through Deferreds and (`_get`) without are parts of their own, so that one does not live in memory that the other gave
//! back.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use errback::{defer_later, defer_to_process_pool, gather_results};

use crate::machine::{forget_peak, peak, resident};
use crate::options::{Options, WORKERS};
use crate::report::{Row, microseconds};
use crate::tasks::{add, until_file, warm_pool};
use crate::{Done, on_a_reactor};

const JOBS: i64 = 100_000;
/// Until the workers have begun with the jobs that do not end.
const SETTLED: Duration = Duration::from_millis(300);

pub(crate) fn memory(options: &Options) -> Done {
    let row = options.row("D", "");
    let (pool, _) = warm_pool(options)?;
    on_a_reactor(move |reactor| async move {
        let gate = Gate::new();
        let blockers: Vec<_> = (0..WORKERS)
            .map(|_| defer_to_process_pool(&reactor, &pool, until_file, (gate.path(),)))
            .collect();
        defer_later(&reactor, SETTLED, || ()).await?;
        let before = Before::now();
        let jobs: Vec<_> = (0..JOBS)
            .map(|i| defer_to_process_pool(&reactor, &pool, add, (i, 1)))
            .collect();
        let queued = before.queued();
        gate.open()?;
        gather_results(blockers).await?;
        assert!(gather_results(jobs).await?.into_iter().eq(1..=JOBS));
        queued.report(&row);
        Ok(())
    })
}

pub(crate) fn memory_get(options: &Options) -> Done {
    let (pool, _) = warm_pool(options)?;
    let gate = Gate::new();
    let blockers: Vec<_> = (0..WORKERS)
        .map(|_| pool.apply_async(until_file, (gate.path(),)))
        .collect();
    std::thread::sleep(SETTLED);
    let before = Before::now();
    let jobs: Vec<_> = (0..JOBS).map(|i| pool.apply_async(add, (i, 1))).collect();
    let queued = before.queued();
    gate.open()?;
    for blocker in blockers {
        blocker.get()?;
    }
    for (i, job) in (1..).zip(jobs) {
        assert_eq!(job.get()?, i);
    }
    queued.report(&options.row("D", "_get"));
    Ok(())
}

/// What was resident before the jobs were queued, and when that began.
struct Before {
    resident: f64,
    start: Instant,
}

impl Before {
    fn now() -> Before {
        forget_peak();
        Before {
            resident: resident(),
            start: Instant::now(),
        }
    }

    fn queued(self) -> Queued {
        let submits = self.start.elapsed();
        Queued {
            submits,
            held: resident() - self.resident,
            before: self.resident,
        }
    }
}

/// What the queued jobs cost.
struct Queued {
    submits: Duration,
    held: f64,
    before: f64,
}

impl Queued {
    /// To be called when all are done: the peak is that of the results too.
    fn report(&self, row: &Row) {
        let each = microseconds(self.submits) / JOBS as f64;
        row.say("queue100k_held_mib", self.held, "MiB");
        row.say("queue100k_peak_mib", peak() - self.before, "MiB");
        row.say("queue100k_submit_us_each", each, "us");
    }
}

/// A file that is not there until the workers may go on.
struct Gate(PathBuf);

impl Gate {
    fn new() -> Gate {
        let name = format!("beside-peers-gate-{}", std::process::id());
        Gate(std::env::temp_dir().join(name))
    }

    fn path(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }

    fn open(&self) -> std::io::Result<()> {
        File::create(&self.0).map(drop)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

//! What a pool tells of itself: a snapshot, taken under the lock.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Histogram, Shared};

/// What a pool is doing, at one moment.
#[derive(Clone, PartialEq, Default, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that wait for a worker.
    pub queued: usize,
    /// Jobs that workers hold.
    pub running: usize,
    /// The process ids of the workers that are there.
    pub workers: Vec<u32>,
    /// Jobs taken since the pool was built.
    pub submitted: u64,
    /// Jobs that came to an end, whichever.
    pub finished: u64,
    /// Jobs whose result was a failure, whichever: those that were cancelled or timed out too, and those that were refused,
    /// which were never `submitted`.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// Jobs that ran, or waited, for too long.
    pub timed_out: u64,
    /// Worker processes made.
    pub spawned: u64,
    /// Those of them that came in the place of one that had died or left.
    pub restarted: u64,
    /// Worker processes that ended other than by leaving when they were told to.
    pub died: u64,
    /// Worker processes that were replaced because they had done enough jobs, or had grown too large.
    pub recycled: u64,
    /// Times that a job was sent to another worker because its own died before it began.
    pub resent: u64,
    /// How many starts of workers in a row have failed.
    pub failed_starts: u32,
    /// Whether workers are started.
    pub breaker: Breaker,
    /// How long jobs waited, from their submit until they were sent to a worker.
    pub queue_time: Histogram,
    /// How long jobs took, from when they were sent to a worker, or came to be the first there, until the answer.
    pub run_time: Histogram,
}

/// Whether a pool starts workers: not while they keep dying at their start.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub enum Breaker {
    /// It does.
    #[default]
    Closed,
    /// The last start, or the last few, failed. The next try comes after a pause; jobs wait.
    BackingOff {
        /// Why the last one failed.
        reason: String,
        /// How long until the next try; zero when it is due.
        retry_in: Duration,
    },
    /// Starts keep failing: jobs fail with a [`SpawnFailed`](crate::SpawnFailed), until one comes after the pause, for which a start is tried.
    Open {
        /// Why the last one failed.
        reason: String,
        /// How long jobs are still refused; zero when the next one leads to a try.
        retry_in: Duration,
    },
}

impl Shared {
    pub(super) fn stats(&self) -> Stats {
        if self.forked().is_some() {
            return Stats::default();
        }
        let state = self.state.lock();
        let counts = state.counts;
        let processes = state
            .places
            .iter()
            .filter_map(|place| place.process.as_ref());
        Stats {
            queued: state.backlog.queued(),
            running: state.backlog.out(),
            workers: processes.map(|it| it.pid()).collect(),
            submitted: counts.submitted,
            finished: counts.finished,
            failed: self.home.failed.load(Ordering::Relaxed),
            cancelled: counts.cancelled,
            timed_out: counts.timed_out,
            spawned: counts.spawned,
            restarted: counts.restarted,
            died: counts.died,
            recycled: counts.recycled,
            resent: counts.resent,
            failed_starts: state.breaker.failures(),
            breaker: state.breaker.stats(Instant::now()),
            queue_time: state.queue_time.clone(),
            run_time: state.run_time.clone(),
        }
    }
}

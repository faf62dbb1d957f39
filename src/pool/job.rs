//! A job: the bytes of one call, and what is to be done with its outcome.
//!
//! It is made on the caller's thread, lies in the backlog until its outcome is there, and ends by [`Job::finish`], which takes
//! it by value: it cannot be finished twice. One that is lost on the way (a fault of ours) still tells its caller: that is
//! what its [`End`] does when it is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use errback_deferred::Failure;

use super::packed::Packed;
use crate::wire;

/// What a job ends with: the worker's answer, still in bytes and borrowed from the connection, or the reason why there
/// is none.
#[allow(clippy::large_enum_variant)] // as `wire::Outcome`
pub(crate) enum Outcome<'a> {
    Answer(wire::Outcome<'a>),
    Failed(Failure),
}

/// Who waits for a job. Called on a thread of the pool, on the one that cancels, or on one that waits for a result.
pub(crate) trait Ending: Send + Sync {
    /// Decodes the outcome and hands it over. Called once.
    fn end(&self, outcome: Outcome<'_>, called: Called<'_>);
    /// The job was lost, or its end panicked: whoever waits is told, if he was not.
    fn lost(&self);
    /// All that was to be said has been said. Called once, after the others.
    fn hand_over(self: Arc<Self>, on: On) {
        let _ = on;
    }
}

/// On whose thread a job ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum On {
    /// That of who submits it, at this moment: it was not taken.
    Submitter,
    /// Anybody's.
    Any,
}

/// What was called, and where.
#[derive(Clone, Copy)]
pub(crate) struct Called<'a> {
    pub(super) task: &'static str,
    pub(super) home: &'a Home,
}

/// What a job's end has to know of its pool.
pub(crate) struct Home {
    /// Whether the pool's workers are Python's.
    pub(super) python: bool,
    /// How many jobs have failed. Counted where a result is decoded, before it is handed over.
    pub(super) failed: AtomicU64,
}

impl Called<'_> {
    /// Counts a result that is about to be handed over.
    pub(crate) fn note<T>(self, result: Result<T, Failure>) -> Result<T, Failure> {
        if result.is_err() {
            self.home.failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// Somebody who waits for a job, and is told when it is lost.
#[derive(Default)]
pub(crate) struct End(Option<Arc<dyn Ending>>);

impl End {
    pub(crate) fn new(ending: Arc<dyn Ending>) -> End {
        End(Some(ending))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(ending) = self.0.take() {
            ending.lost();
            ending.hand_over(On::Any);
        }
    }
}

/// Which waiter, and so which worker process at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WorkerId(pub(super) u32);

/// Where a job is. There is one winner among answer, cancel, timeout and death: whoever brings it to `Done`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum JobState {
    /// In the backlog.
    Queued,
    /// With a worker, or about to be, perhaps behind others; it is not known whether it has begun.
    Sent(WorkerId),
    /// Known to have begun. The worker's counter tells, which is read when it matters: for a cancel, or after a while.
    Running(WorkerId),
    /// Finished, or about to be by the one who brought it here.
    Done,
}

/// Why a job that is out ends without its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Somebody cancelled it.
    Cancelled,
    /// It ran past its timeout.
    TimedOut,
    /// The pool was terminated.
    Closed,
}

/// A job's name in the backlog; good for ever, because the number is never given twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JobKey {
    pub(super) index: u32,
    pub(super) id: u64,
}

impl JobKey {
    /// That of a job which was refused: there is none with this number.
    pub(crate) const NONE: JobKey = JobKey { index: 0, id: 0 };

    /// Its two numbers, which are shorter apart.
    pub(crate) fn parts(self) -> (u32, u64) {
        (self.index, self.id)
    }

    pub(crate) fn from_parts(index: u32, id: u64) -> JobKey {
        JobKey { index, id }
    }
}

/// See the module.
pub(crate) struct Job {
    pub(super) id: u64,
    pub(super) task: &'static str,
    pub(super) packed: Packed,
    pub(super) end: End,
    pub(super) submitted: Instant,
}

impl Job {
    /// A job whose number is not known yet. It is submitted now.
    pub(crate) fn new(task: &'static str, packed: Packed, end: End) -> Self {
        Job {
            id: 0,
            task,
            packed,
            end,
            submitted: Instant::now(),
        }
    }

    /// The number in its pool, from 1; 0 before it has been submitted.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The name of its task.
    pub(super) fn task(&self) -> &'static str {
        self.task
    }

    /// How long it may run.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.packed.timeout()
    }

    /// How long it may wait.
    pub(super) fn expires(&self) -> Option<Duration> {
        self.packed.expires()
    }

    /// When it was submitted.
    pub(super) fn submitted(&self) -> Instant {
        self.submitted
    }

    /// Lets go of the buffers that it refers to, before anybody hears of its end: the next one can lie where they have been.
    pub(super) fn let_go(&mut self) {
        self.packed.let_go();
    }

    /// Ends the job. What user code does in there (a result's `Deserialize`, a waker) may panic and harms nobody.
    pub(crate) fn finish(self, outcome: Outcome<'_>, home: &Home) {
        self.finish_on(On::Any, outcome, home);
    }

    /// Ends a job that was not taken, on the thread that submits it.
    pub(crate) fn refuse(self, why: Failure, home: &Home) {
        self.finish_on(On::Submitter, Outcome::Failed(why), home);
    }

    fn finish_on(mut self, on: On, outcome: Outcome<'_>, home: &Home) {
        let called = Called {
            task: self.task,
            home,
        };
        let Some(ending) = self.end.0.take() else {
            return;
        };
        // A panic has been reported by the panic hook.
        let ended = catch_unwind(AssertUnwindSafe(|| ending.end(outcome, called)));
        if ended.is_err() {
            ending.lost();
        }
        let _ = catch_unwind(AssertUnwindSafe(|| ending.hand_over(on)));
    }

    /// Ends the job with a failure.
    pub(crate) fn fail(self, failure: impl Into<Failure>, home: &Home) {
        self.finish(Outcome::Failed(failure.into()), home);
    }
}

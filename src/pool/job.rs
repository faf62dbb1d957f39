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
use crate::error::InternalError;
use crate::wire;

/// What a job ends with: the worker's answer, still in bytes and borrowed from the connection, or the reason why there
/// is none.
#[allow(clippy::large_enum_variant)] // as `wire::Outcome`
pub(crate) enum Outcome<'a> {
    Answer(wire::Outcome<'a>),
    Failed(Failure),
}

/// Who waits for jobs: for one, or for many, which it knows by numbers of its own. For each job one of the two is called, once:
/// on a thread of the pool, on the one that submits or cancels, or on one that waits for a result.
pub(crate) trait Ending: Send + Sync {
    /// Makes a result of the outcome ([`Called::result`]), and hands it over.
    fn end(&self, number: u32, outcome: Outcome<'_>, called: Called<'_>);
    /// The job was lost.
    fn lost(&self, number: u32);
    /// For whom it waits, if that matters to somebody.
    fn owner(&self) -> Option<Owner> {
        None
    }
}

/// Somebody who has jobs, by an address of his that is nobody else's as long as they are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner(usize);

impl Owner {
    pub(crate) fn of<T>(it: &Arc<T>) -> Owner {
        Owner(Arc::as_ptr(it).addr())
    }
}

/// What was called, and where.
#[derive(Clone, Copy)]
pub(crate) struct Called<'a> {
    pub(super) task: &'static str,
    /// Of how many items it is a chunk; 1 for a plain call.
    pub(super) items: usize,
    pub(super) home: &'a Home,
}

/// The result that an outcome stands for.
pub(crate) type Decode<T> = fn(Called<'_>, Outcome<'_>) -> Result<T, Failure>;

/// What a job's end has to know of its pool.
pub(crate) struct Home {
    /// Whether the pool's workers are Python's.
    pub(super) python: bool,
    /// How many jobs have failed. Counted where a result is decoded, before it is handed over.
    pub(super) failed: AtomicU64,
}

impl Called<'_> {
    /// The result that an outcome stands for, which is about to be handed over: it is counted here. What a result's own
    /// `Deserialize` does may panic, and harms nobody.
    pub(crate) fn result<T>(self, decode: Decode<T>, outcome: Outcome<'_>) -> Result<T, Failure> {
        // A panic has been reported by the panic hook.
        let result = catch_unwind(AssertUnwindSafe(|| decode(self, outcome)));
        let result = result.unwrap_or_else(|payload| {
            wire::panic_text(payload); // whose drop may panic too
            Err(lost())
        });
        if result.is_err() {
            self.home.failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// What somebody is told whose job was lost, by a fault of ours.
pub(crate) fn lost() -> Failure {
    let message = "a job was lost".to_string();
    InternalError { message }.into()
}

/// Somebody who waits for a job, and is told when it is lost.
#[derive(Default)]
pub(crate) struct End {
    ending: Option<Arc<dyn Ending>>,
    number: u32,
}

impl End {
    /// `ending` waits for no other job.
    pub(crate) fn new(ending: Arc<dyn Ending>) -> End {
        End::numbered(ending, 0)
    }

    /// `ending` knows the job by this number.
    pub(crate) fn numbered(ending: Arc<dyn Ending>, number: u32) -> End {
        End {
            ending: Some(ending),
            number,
        }
    }

    /// It in its two parts, which are shorter apart.
    pub(super) fn into_parts(mut self) -> (Option<Arc<dyn Ending>>, u32) {
        (self.ending.take(), self.number)
    }

    pub(super) fn from_parts(ending: Option<Arc<dyn Ending>>, number: u32) -> End {
        End { ending, number }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(ending) = self.ending.take() {
            ending.lost(self.number);
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

    /// It in one number; see [`Backlog::find`](super::backlog::Backlog::find). It is no other job's until four thousand million
    /// more have been submitted.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.id as u32)
    }

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

    fn called<'a>(&self, home: &'a Home) -> Called<'a> {
        Called {
            task: self.task,
            items: self.packed.items(),
            home,
        }
    }

    /// Ends the job. What user code does in there (a waker) may panic and harms nobody.
    pub(crate) fn finish(mut self, outcome: Outcome<'_>, home: &Home) {
        let called = self.called(home);
        if let Some(ending) = self.end.ending.take() {
            let number = self.end.number;
            let ended = catch_unwind(AssertUnwindSafe(|| ending.end(number, outcome, called)));
            ended.unwrap_or_else(|payload| drop(wire::panic_text(payload)));
        }
    }

    /// The result of a job that was not taken, for who submits it and says by himself whoever waits.
    pub(crate) fn refused<T>(
        mut self,
        why: Failure,
        decode: Decode<T>,
        home: &Home,
    ) -> Result<T, Failure> {
        self.end.ending = None;
        self.called(home).result(decode, Outcome::Failed(why))
    }

    /// Ends the job with a failure.
    pub(crate) fn fail(self, failure: impl Into<Failure>, home: &Home) {
        self.finish(Outcome::Failed(failure.into()), home);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use errback_deferred::CancelledError;

    /// Its drop panics.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("once more")
        }
    }

    #[test]
    fn whatever_a_panic_carries_there_is_a_result() {
        let home = Home {
            python: false,
            failed: AtomicU64::new(0),
        };
        let called = Called {
            task: "t",
            items: 1,
            home: &home,
        };
        let decode: Decode<()> = |_, _| std::panic::panic_any(Bomb);
        let result = called.result(decode, Outcome::Failed(CancelledError.into()));
        assert!(result.expect_err("there is none").is::<InternalError>());
        assert_eq!(home.failed.load(Ordering::Relaxed), 1);
    }
}

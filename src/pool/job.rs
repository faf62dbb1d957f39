//! A job: the bytes of one call, and what is to be done with its outcome.
//!
//! It is made on the caller's thread, moves through the backlog and a waiter, and ends by [`Job::finish`], which takes
//! it by value: it cannot be finished twice. One that is lost on the way (a fault of ours) still tells its caller, because
//! what it was to be finished with says so when it is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use errback_deferred::Failure;

use crate::buffer::travel::Attachment;
use crate::task::Limits;
use crate::wire::{self, WithAttachments};

/// What a job ends with: the worker's answer, still in bytes and borrowed from the connection, or the reason why there
/// is none.
#[allow(clippy::large_enum_variant)] // as `wire::Outcome`
pub(crate) enum Outcome<'a> {
    Answer(wire::Outcome<'a>),
    Failed(Failure),
}

/// Decodes the outcome and hands it to whoever waits. Runs on a thread of the pool, or on the one that cancels.
pub(crate) type Finish = Box<dyn for<'a> FnOnce(Outcome<'a>) + Send>;

/// Which waiter, and so which worker process at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WorkerId(pub(super) u32);

/// Where a job is. There is one winner among answer, cancel, timeout and death: whoever brings it to `Done`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum JobState {
    /// In the backlog.
    Queued,
    /// Written to a worker's socket, or about to be, perhaps behind others; it is not known whether it has begun.
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

/// See the module.
pub(crate) struct Job {
    id: u64,
    task: &'static str,
    frame: Vec<u8>,
    /// The buffers that it refers to.
    attachments: Vec<Attachment>,
    /// Whether it is many calls in one.
    chunk: bool,
    finish: Finish,
    resends: u8,
    limits: Limits,
    submitted: Instant,
}

impl Job {
    /// A job from the frame of its call, whose number is not known yet. It is submitted now.
    pub(crate) fn new(
        task: &'static str,
        frame: WithAttachments,
        chunk: bool,
        finish: Finish,
    ) -> Self {
        let (frame, attachments) = frame;
        Job {
            id: 0,
            task,
            frame,
            attachments,
            chunk,
            finish,
            resends: 0,
            limits: Limits::default(),
            submitted: Instant::now(),
        }
    }

    /// The same with limits of how long it may wait and run.
    pub(crate) fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
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
        self.limits.timeout
    }

    /// How long it may wait.
    pub(super) fn expires(&self) -> Option<Duration> {
        self.limits.expires
    }

    /// When it was submitted.
    pub(super) fn submitted(&self) -> Instant {
        self.submitted
    }

    /// Whether it may be on a worker's socket with others: it is one call, is small and refers to nothing, and nobody counts its time, which
    /// would be that of the others too.
    pub(super) fn goes_with_others(&self) -> bool {
        const SMALL: usize = 4096;
        let is_whole = self.attachments.is_empty();
        !self.chunk && is_whole && self.limits == Limits::default() && self.frame.len() <= SMALL
    }

    /// How often it was put back because a worker may have died of it.
    pub(super) fn resends(&self) -> u8 {
        self.resends
    }

    /// Gives it its number.
    pub(super) fn set_id(&mut self, id: u64) {
        self.id = id;
    }

    /// The bytes to write. The waiter keeps them until the answer is there, in case they must be written again.
    pub(super) fn take_frame(&mut self, wire_id: u64) -> WithAttachments {
        wire::patch_call_id(&mut self.frame, wire_id);
        let attachments = std::mem::take(&mut self.attachments);
        (std::mem::take(&mut self.frame), attachments)
    }

    /// The worker died before it began this. `blamed`: it may have died of it.
    pub(super) fn put_back(&mut self, frame: WithAttachments, blamed: bool) {
        (self.frame, self.attachments) = frame;
        self.resends += u8::from(blamed);
    }

    /// Ends the job. What user code does in there (a result's `Deserialize`, a waker) may panic and harms nobody.
    pub(crate) fn finish(self, outcome: Outcome<'_>) {
        let finish = self.finish;
        // A panic has been reported by the panic hook; the job's own end of the channel tells its caller when dropped.
        let _ = catch_unwind(AssertUnwindSafe(move || finish(outcome)));
    }

    /// Ends the job with a failure.
    pub(crate) fn fail(self, failure: impl Into<Failure>) {
        self.finish(Outcome::Failed(failure.into()));
    }
}

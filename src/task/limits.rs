//! How long a job may wait and run, as a part of the task that is asked for.
//!
//! It goes with the task and not with the call, so that each way to ask for a task (a Deferred, an `AsyncResult`, a map)
//! takes it without knowing of it.

use std::time::Duration;

use super::{Task, TaskEntry};
use crate::wire::{DecodeError, RemoteErrorBody, ValueReader};

/// How long a job may take. Nothing by default: it may take for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub struct Limits {
    /// From when the job is sent to a worker; see [`Task::timeout`].
    pub timeout: Option<Duration>,
    /// From when it is submitted until it is sent to a worker; see [`Task::expires`].
    pub expires: Option<Duration>,
}

/// A task with [`Limits`]: what [`Task::timeout`] and [`Task::expires`] give.
///
/// ```
/// use std::time::Duration;
/// use errback::Task;
///
/// #[errback::task]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// let limited = square.timeout(Duration::from_secs(2)).expires(Duration::from_secs(60));
/// assert_eq!(limited.limits().timeout, Some(Duration::from_secs(2)));
/// assert_eq!(limited.name(), square.name());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a limited task does nothing until it is submitted"]
pub struct Limited<F> {
    task: F,
    limits: Limits,
}

impl<F: Task> Limited<F> {
    pub(super) fn new(task: F) -> Limited<F> {
        let limits = task.limits();
        Limited { task, limits }
    }

    /// The same with a [`timeout`](Task::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Limited<F> {
        self.limits.timeout = Some(timeout);
        self
    }

    /// The same with an [expiry](Task::expires).
    pub fn expires(mut self, after: Duration) -> Limited<F> {
        self.limits.expires = Some(after);
        self
    }
}

impl<F: Task> Task for Limited<F> {
    type Args = F::Args;
    type Output = F::Output;

    fn name(&self) -> &'static str {
        self.task.name()
    }

    fn entry(&self) -> Option<&'static TaskEntry> {
        self.task.entry()
    }

    fn decode_result(bytes: &[u8]) -> Result<Self::Output, DecodeError> {
        F::decode_result(bytes)
    }

    fn decode_next(values: &mut ValueReader<'_>) -> Result<Self::Output, DecodeError> {
        F::decode_next(values)
    }

    fn decode_error(body: RemoteErrorBody) -> anyhow::Error {
        F::decode_error(body)
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

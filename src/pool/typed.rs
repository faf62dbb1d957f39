//! Between a job, which is bytes, and a task, which has types.

use errback_deferred::Failure;

use super::job::{Job, Outcome};
use super::{JobHandle, Pool};
use crate::error::{JobPanicked, NotSerialisable, RemoteError, UnknownTask};
use crate::task::Task;
use crate::wire::{self, ErrorKind, RemoteErrorBody};

/// What a job's result is handed to. It is called once, on a thread of the pool or on the caller's own.
pub(crate) trait Sink<T>: FnOnce(Result<T, Failure>) + Send + 'static {}

impl<T, S: FnOnce(Result<T, Failure>) + Send + 'static> Sink<T> for S {}

impl Pool {
    /// The job that runs `task` with `args` and hands the result to `sink`.
    ///
    /// On failure the arguments cannot be encoded, and `sink` has not been called.
    pub(crate) fn job<F: Task, S: Sink<F::Output>>(&self, task: F, args: &F::Args, sink: S) -> Result<Job, (Failure, S)> {
        task.entry(); // keeps the linker from dropping the task
        let name = task.name();
        match wire::encode_call(0, name, args, self.shared().settings.max_frame) {
            Ok(frame) => Ok(Job::new(name, frame, Box::new(move |outcome| sink(decode::<F>(name, outcome))))),
            Err(error) => Err((error.into(), sink)),
        }
    }

    /// Submits a job; one that is refused fails right here.
    pub(crate) fn submit(&self, job: Job) -> Option<JobHandle> {
        match self.shared().submit(job) {
            Ok(handle) => Some(handle),
            Err(refused) => {
                refused.job.fail(refused.why);
                None
            }
        }
    }
}

/// The result that an outcome stands for. `decode_result` catches what a result's own `Deserialize` may do.
fn decode<F: Task>(task: &'static str, outcome: Outcome<'_>) -> Result<F::Output, Failure> {
    match outcome {
        Outcome::Answer(wire::Outcome::Value(bytes)) => Ok(F::decode_result(bytes)?),
        Outcome::Answer(wire::Outcome::Error(body)) => Err(decode_failure::<F>(task, body)),
        Outcome::Failed(failure) => Err(failure),
    }
}

/// The failure that a worker's error stands for.
fn decode_failure<F: Task>(task: &str, body: RemoteErrorBody) -> Failure {
    let task = task.to_string();
    let RemoteErrorBody { message, location, backtrace, .. } = body;
    match body.kind {
        ErrorKind::Panic => JobPanicked { task, message, location, backtrace }.into(),
        ErrorKind::UnknownTask => UnknownTask { task, message }.into(),
        ErrorKind::DecodeArgs => NotSerialisable { task, result: false, message }.into(),
        ErrorKind::EncodeResult => NotSerialisable { task, result: true, message }.into(),
        _ => task_error::<F>(RemoteErrorBody { message, location, backtrace, ..body }),
    }
}

/// What the task returned as `Err`. Where its type did not travel, its name does.
fn task_error<F: Task>(body: RemoteErrorBody) -> Failure {
    let error = F::decode_error(body);
    match error.downcast::<RemoteError>() {
        Ok(remote) => {
            let name = remote.type_name.clone();
            Failure::with_type_names(remote, [name])
        }
        Err(error) => error.into(),
    }
}

//! Between a job, which is bytes, and a task, which has types.

use errback_deferred::Failure;

use super::job::{Job, Outcome};
use super::{JobHandle, Pool};
use crate::error::{EncodeError, JobPanicked, NotSerialisable, RemoteError, UnknownTask};
use crate::task::Task;
use crate::wire::{self, ErrorKind, RemoteErrorBody};

/// What a job's result is handed to. It is called once, on a thread of the pool or on the caller's own.
pub(crate) trait Sink<T>: FnOnce(Result<T, Failure>) + Send + 'static {}

impl<T, S: FnOnce(Result<T, Failure>) + Send + 'static> Sink<T> for S {}

/// A call of a task, encoded; it only lacks what is to be done with the result.
pub(crate) struct Encoded<F> {
    task: F,
    frame: Vec<u8>,
}

impl<F: Task> Encoded<F> {
    /// The job that hands its result to `sink`.
    pub(crate) fn job(self, sink: impl Sink<F::Output>) -> Job {
        let name = self.task.name();
        Job::new(
            name,
            self.frame,
            Box::new(move |outcome| sink(decode::<F>(name, outcome))),
        )
    }
}

impl Pool {
    /// The bytes of a call.
    pub(crate) fn encode<F: Task>(
        &self,
        task: F,
        args: &F::Args,
    ) -> Result<Encoded<F>, EncodeError> {
        task.entry(); // keeps the linker from dropping the task
        let frame = wire::encode_call(0, task.name(), args, self.shared().settings.max_frame)?;
        Ok(Encoded { task, frame })
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
    let RemoteErrorBody {
        message,
        location,
        backtrace,
        ..
    } = body;
    match body.kind {
        ErrorKind::Panic => JobPanicked {
            task,
            message,
            location,
            backtrace,
        }
        .into(),
        ErrorKind::UnknownTask => UnknownTask { task, message }.into(),
        ErrorKind::DecodeArgs => NotSerialisable {
            task,
            result: false,
            message,
        }
        .into(),
        ErrorKind::EncodeResult => NotSerialisable {
            task,
            result: true,
            message,
        }
        .into(),
        _ => task_error::<F>(RemoteErrorBody {
            message,
            location,
            backtrace,
            ..body
        }),
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

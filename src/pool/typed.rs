//! Between a job, which is bytes, and a task, which has types.

use std::fmt;
use std::sync::Arc;

use errback_deferred::Failure;

use parking_lot::Mutex;

use super::job::{Called, Decode, End, Ending, Home, Job, Outcome};
use super::packed::Packed;
use super::{Pool, Refused, Settings, Submitted};
use crate::error::{
    EncodeError, JobPanicked, NotSerialisable, ProtocolError, RemoteError, UnknownTask,
};
use crate::task::Task;
use crate::wire::{self, ErrorKind, NoValue, RemoteErrorBody};

/// What a job's result is handed to. It is called once, on a thread of the pool or on the caller's own.
pub(crate) trait Sink<T>: FnOnce(Result<T, Failure>) + Send + 'static {}

impl<T, S: FnOnce(Result<T, Failure>) + Send + 'static> Sink<T> for S {}

/// A call of a task, encoded, whose result is a `T`; it only lacks what is to be done with that.
pub(crate) struct Encoded<T> {
    task: &'static str,
    packed: Packed,
    decode: Decode<T>,
}

/// Who waits for a job's result with a closure.
struct Told<T, S> {
    decode: Decode<T>,
    /// `None`: it was told.
    sink: Mutex<Option<S>>,
}

impl<T: 'static, S: Sink<T>> Ending for Told<T, S> {
    fn end(&self, _: u32, outcome: Outcome<'_>, called: Called<'_>) {
        let result = called.result(self.decode, outcome);
        let sink = self.sink.lock().take();
        if let Some(sink) = sink {
            sink(result);
        }
    }

    fn lost(&self, _: u32) {
        // Dropped without having been told, it says that.
        let sink = self.sink.lock().take();
        drop(sink);
    }
}

impl<T: 'static> Encoded<T> {
    /// The job that hands its result to `sink`.
    fn job(self, sink: impl Sink<T>) -> Job {
        let told = Told {
            decode: self.decode,
            sink: Mutex::new(Some(sink)),
        };
        Job::new(self.task, self.packed, End::new(Arc::new(told)))
    }

    /// What makes a result of its outcome.
    pub(crate) fn decode(&self) -> Decode<T> {
        self.decode
    }

    /// The job that ends so.
    pub(crate) fn job_for(self, end: End) -> Job {
        Job::new(self.task, self.packed, end)
    }
}

impl<T> Encoded<T> {
    /// Of how many items it is.
    pub(crate) fn items(&self) -> usize {
        self.packed.items()
    }
}

/// A result for each item of a chunk.
pub(crate) type Results<F> = Vec<Result<<F as Task>::Output, Failure>>;

impl Pool {
    /// The bytes of a call.
    pub(crate) fn encode<F: Task>(
        &self,
        task: F,
        args: &F::Args,
    ) -> Result<Encoded<F::Output>, EncodeError> {
        task.entry(); // keeps the linker from dropping the task
        let name = task.name();
        let Settings {
            max_frame,
            share_from,
            ..
        } = self.shared().settings;
        let limits = task.limits();
        Ok(Encoded {
            task: name,
            packed: Packed::call(name, args, limits, max_frame, share_from)?,
            decode: decode::<F>,
        })
    }

    /// The bytes of many calls of one task, to travel as one. Its result is no failure, whatever
    /// becomes of them, but when it is lost by a fault.
    pub(crate) fn encode_chunk<F: Task>(
        &self,
        task: F,
        chunk: &[F::Args],
    ) -> Result<Encoded<Results<F>>, EncodeError> {
        task.entry();
        let name = task.name();
        let Settings {
            max_frame,
            share_from,
            ..
        } = self.shared().settings;
        let frame = wire::encode_chunk_sharing(0, name, chunk, max_frame, share_from)?;
        Ok(Encoded {
            task: name,
            packed: Packed::whole(frame, task.limits(), Some(chunk.len())),
            decode: decode_chunk::<F>,
        })
    }

    /// Submits a call, whose result goes to `sink`; one that is refused fails right here.
    pub(crate) fn submit<T: 'static>(&self, call: Encoded<T>, sink: impl Sink<T>) {
        self.submit_job(call.job(sink));
    }

    /// Submits a job; one that is refused fails right here.
    pub(crate) fn submit_job(&self, job: Job) -> Option<Submitted> {
        let refused = match self.try_submit(job) {
            Ok(job) => return Some(job),
            Err(refused) => *refused,
        };
        refused.job.fail(refused.why, &self.shared().home);
        None
    }

    /// Submits a job, or gives it back.
    pub(crate) fn try_submit(&self, job: Job) -> Result<Submitted, Box<Refused>> {
        self.shared().submit(job)
    }
}

impl Refused {
    /// The result of the call, for who submits it and tells whoever waits by himself.
    pub(crate) fn result<T>(self, decode: Decode<T>, pool: &Pool) -> Result<T, Failure> {
        self.job.refused(self.why, decode, &pool.shared().home)
    }
}

/// What a worker is made ready with: a call of a task before all others.
#[derive(Clone)]
pub(super) struct Initializer {
    task: &'static str,
    frame: Vec<u8>,
    failure: fn(Called<'_>, RemoteErrorBody) -> Failure,
}

impl Initializer {
    pub(super) fn new<F: Task>(task: F, args: &F::Args) -> Result<Self, EncodeError> {
        task.entry();
        Ok(Initializer {
            task: task.name(),
            frame: wire::encode_call(0, task.name(), args, wire::MAX_FRAME)?,
            failure: |called, body| decode_failure::<F>(called, body),
        })
    }

    /// The frame of the call, which has the number 0.
    pub(super) fn call(&self) -> Vec<u8> {
        self.frame.clone()
    }

    /// Why the worker is not ready, if it is not.
    pub(super) fn failure(&self, outcome: wire::Outcome<'_>, home: &Home) -> Option<Failure> {
        let task = self.task;
        match outcome {
            wire::Outcome::Value(_) => None,
            wire::Outcome::Error(body) => {
                let items = 1;
                let called = Called { task, items, home };
                Some((self.failure)(called, body))
            }
        }
    }
}

impl fmt::Debug for Initializer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Initializer").field(&self.task).finish()
    }
}

/// The result that an outcome stands for. `decode_result` catches what a result's own `Deserialize` may do.
fn decode<F: Task>(called: Called<'_>, outcome: Outcome<'_>) -> Result<F::Output, Failure> {
    match outcome {
        Outcome::Answer(wire::Outcome::Value(bytes)) => Ok(F::decode_result(bytes)?),
        Outcome::Answer(wire::Outcome::Error(body)) => Err(decode_failure::<F>(called, body)),
        Outcome::Failed(failure) => Err(failure),
    }
}

/// The results that the outcome of a chunk stands for: its own failure is that of each item.
fn decode_chunk<F: Task>(called: Called<'_>, outcome: Outcome<'_>) -> Result<Results<F>, Failure> {
    let whole = match outcome {
        Outcome::Answer(wire::Outcome::Value(bytes)) => match decode_items::<F>(called, bytes) {
            Ok(results) => return Ok(results),
            Err(error) => error.into(),
        },
        Outcome::Answer(wire::Outcome::Error(body)) => decode_failure::<F>(called, body),
        Outcome::Failed(failure) => failure,
    };
    Ok((0..called.items).map(|_| Err(whole.clone())).collect())
}

fn decode_items<F: Task>(called: Called<'_>, bytes: &[u8]) -> Result<Results<F>, ProtocolError> {
    let items = called.items;
    let outcomes = wire::ChunkResults::parse(bytes, items)?;
    // As many as were asked for, and none has less than a byte.
    let mut results: Results<F> = Vec::with_capacity(items.min(bytes.len()));
    outcomes.read_all(&mut results, F::decode_next, |why| match why {
        NoValue::Unreadable(error) => error.into(),
        NoValue::Failed(body) => decode_failure::<F>(called, *body),
    })?;
    Ok(results)
}

/// The failure that a worker's error stands for.
fn decode_failure<F: Task>(called: Called<'_>, body: RemoteErrorBody) -> Failure {
    let task = called.task.to_string();
    let python = called.home.python;
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
        ErrorKind::UnknownTask => UnknownTask {
            task,
            message,
            python,
        }
        .into(),
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
            let names: Vec<String> = remote.type_names().map(str::to_owned).collect();
            Failure::with_type_names(remote, names)
        }
        Err(error) => error.into(),
    }
}

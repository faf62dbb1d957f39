//! Running what a call asks for: one job, or a chunk of jobs of one task.
//!
//! Whatever a job does short of ending the process becomes an answer. Which one a panic becomes depends on whose code
//! it was that panicked, so a [`Call`] keeps track of its step.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::arenas::Arenas;
use super::{panics, requests};
use crate::buffer::travel::with_received;
use crate::task::{Call, Calls, Ran, Step, TaskEntry, TaskTable, too_long};
use crate::wire::{self, Chunk, DecodeError, Encoder, ErrorKind, RemoteErrorBody};

/// The tasks of this worker, and the counter by which its host knows that it has begun with a call.
pub(super) struct Jobs {
    tasks: TaskTable,
    begun: Counter,
    /// Borrowed only while none of a task's code runs.
    arenas: RefCell<Arenas>,
}

/// Where calls are counted that have begun. The host looks when it matters: for a cancel, or when this process has died.
pub(super) enum Counter {
    Lane,
    Eventfd(OwnedFd),
    None,
}

/// A call, as it came.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) id: u64,
    pub(super) task: &'a str,
    pub(super) args: &'a [u8],
    /// Whether the arguments refer to buffers.
    pub(super) refers: bool,
}

impl Jobs {
    pub(super) fn new(tasks: TaskTable, begun: Counter, arenas: Arenas) -> Jobs {
        Jobs {
            tasks,
            begun,
            arenas: RefCell::new(arenas),
        }
    }

    /// Runs one call and leaves its answer, a whole frame, in `frame`.
    pub(super) fn answer(&self, frame: &mut Encoder, asked: Asked<'_>) {
        let id = asked.id;
        let _entered = requests::enter(id);
        wire::begin_answer(frame, id).expect("every limit has room for the beginning of an answer");
        match self.run_call(frame, asked) {
            Ok(()) => wire::finish(frame),
            Err(error) => wire::error_answer(frame, id, *error),
        }
        let mut arenas = self.arenas.borrow_mut();
        if let Err(error) = arenas.lend(frame) {
            wire::error_answer(frame, id, unsendable(&error));
        }
        arenas.finish_call();
    }

    /// What is to be said to the host before the answer.
    pub(super) fn notice(&self) -> Option<wire::BuffersNotice> {
        self.arenas.borrow_mut().take_notice()
    }

    fn run_call(&self, frame: &mut Encoder, asked: Asked<'_>) -> Ran {
        let Asked { id, task, args, .. } = asked;
        // In this order: a host that has asked for a stop and then finds the call not counted knows that it will not run.
        self.count();
        if requests::is_revoked(id) {
            let message = "a request to stop came before the call began";
            return Err(Box::new(RemoteErrorBody::new(
                ErrorKind::Cancelled,
                "",
                message,
            )));
        }
        if asked.refers {
            let received = self.arenas.borrow_mut().receive(args);
            let received =
                received.map_err(|why| RemoteErrorBody::new(ErrorKind::DecodeArgs, "", why))?;
            let limit = frame.limit();
            return with_received(received, limit, || self.run_tasks(frame, task, args));
        }
        self.arenas.borrow_mut().tidy();
        self.run_tasks(frame, task, args)
    }

    fn run_tasks(&self, frame: &mut Encoder, task: &str, args: &[u8]) -> Ran {
        match task {
            wire::MAP => self.run_chunk(frame, args, false),
            wire::EACH => self.run_chunk(frame, args, true),
            task => run(self.tasks.find(task)?, Call::new(args, frame)),
        }
    }

    /// A chunk, of calls of one argument `each` or of any number. The failure of one is no matter to the others.
    fn run_chunk(&self, frame: &mut Encoder, args: &[u8], each: bool) -> Ran {
        let ran = self.run_calls(frame, args, each);
        frame.keep_free(0, 0);
        ran
    }

    fn run_calls(&self, frame: &mut Encoder, args: &[u8], each: bool) -> Ran {
        let refused =
            |error: DecodeError| RemoteErrorBody::new(ErrorKind::DecodeArgs, "", error.to_string());
        let chunk = Chunk::parse(args).map_err(refused)?;
        let entry = self.tasks.find(chunk.task)?;
        let mut calls = Calls::new(&chunk, each, frame).map_err(too_long)?;
        while !calls.are_done() {
            let outcome =
                panics::recorded(|| catch_unwind(AssertUnwindSafe(|| entry.run_all(&mut calls))));
            match outcome {
                (Ok(ran), _) => ran?,
                (Err(payload), record) => {
                    let text = wire::panic_text(payload);
                    let error = panicked(calls.step(), entry.name(), text, record);
                    calls.fail(error)?;
                }
            }
        }
        Ok(())
    }

    fn count(&self) {
        match &self.begun {
            Counter::Lane => requests::count(),
            // It does not block: it would take 2^64 jobs that nobody reads to fill the counter.
            Counter::Eventfd(begun) => drop(rustix::io::write(begun, &1u64.to_ne_bytes())),
            Counter::None => {}
        }
    }
}

fn unsendable(error: &wire::EncodeError) -> RemoteErrorBody {
    let message = format!("the result cannot be sent: {error}");
    RemoteErrorBody::new(ErrorKind::EncodeResult, "", message)
}

/// Runs one job. Its result has then been added to its frame, or, where it failed, some part of it.
fn run(entry: &TaskEntry, mut call: Call<'_>) -> Ran {
    let outcome = panics::recorded(|| catch_unwind(AssertUnwindSafe(|| entry.run(&mut call))));
    match outcome {
        (Ok(result), _) => result,
        (Err(payload), record) => Err(panicked(
            call.step(),
            entry.name(),
            wire::panic_text(payload),
            record,
        )),
    }
}

fn panicked(
    step: Step,
    task: &str,
    text: String,
    record: Option<panics::Record>,
) -> Box<RemoteErrorBody> {
    let (kind, message) = match step {
        Step::Decoding => (
            ErrorKind::DecodeArgs,
            format!("decoding the arguments of `{task}` panicked: {text}"),
        ),
        Step::Running => (ErrorKind::Panic, text),
        Step::Encoding => (
            ErrorKind::EncodeResult,
            format!("encoding the result of `{task}` panicked: {text}"),
        ),
    };
    let mut body = RemoteErrorBody::new(kind, "", message);
    if let Some(record) = record {
        body.location = record.location;
        body.backtrace = record.backtrace;
    }
    Box::new(body)
}

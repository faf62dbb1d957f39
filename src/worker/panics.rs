//! What a panicking task says goes to the host, not to the screen.
//!
//! The process has one panic hook. Ours records the panic of a job, whose answer it becomes, and hands every other on to
//! the hook that was there: those of threads that a task has started, and those that end the process, because nobody
//! would hear of them otherwise.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::panic::PanicHookInfo;

use crate::task::PANICKED;

/// A panic of a job.
pub(super) struct Record {
    pub(super) location: Option<String>,
    pub(super) backtrace: Option<String>,
    /// As the standard hook would have printed it.
    printed: String,
}

thread_local! {
    /// Whether this thread is running a job.
    static IN_JOB: Cell<bool> = const { Cell::new(false) };
    /// The last panic of the job, until it has become an answer.
    static LAST: RefCell<Option<Record>> = const { RefCell::new(None) };
}

pub(super) fn install() {
    let inner = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if cfg!(panic = "abort") || !IN_JOB.get() {
            return inner(info);
        }
        // A second panic: either the task has caught the first, which would have been printed in any program; or it
        // comes from a destructor while the first is unwinding, and the process is about to abort.
        if let Some(first) = LAST.take() {
            first.print();
            LAST.set(Some(Record::of(info)));
            return inner(info);
        }
        LAST.set(Some(Record::of(info)));
        PANICKED.set(true);
    }));
}

/// Runs a job, or those of a chunk up to the first that panics, and gives what was recorded of its panic. A panic that a job
/// has caught itself is printed.
pub(super) fn recorded<T, E>(job: impl FnOnce() -> Result<T, E>) -> (Result<T, E>, Option<Record>) {
    IN_JOB.set(true);
    let outcome = job();
    IN_JOB.set(false);
    PANICKED.set(false);
    match (outcome, LAST.take()) {
        (Ok(value), record) => {
            if let Some(caught) = record {
                caught.print();
            }
            (Ok(value), None)
        }
        (error, record) => (error, record),
    }
}

impl Record {
    fn of(info: &PanicHookInfo<'_>) -> Record {
        // Only where it was asked for, as everywhere in Rust: reading a big binary's debug information takes time and
        // memory, of which the worker may have a limit.
        let backtrace = Backtrace::capture();
        Record {
            location: info.location().map(ToString::to_string),
            backtrace: (backtrace.status() == BacktraceStatus::Captured)
                .then(|| backtrace.to_string()),
            printed: info.to_string(),
        }
    }

    fn print(&self) {
        let _ = writeln!(std::io::stderr(), "a task {}", self.printed);
    }
}

//! What both sides agree a job is: a function, found by its name, and the tuple of its arguments.
//!
//! `#[errback::task]` turns a function into a type that implements [`Task`] and still can be called. In the host the
//! type says how arguments are encoded and results decoded; in the worker its [`TaskEntry`] runs the function. A name
//! rather than an address travels, so that a mismatch is a readable error, and so that a worker in another language, or
//! on another machine, can serve the same call.
//!
//! Entries find their way into the table by linkme: the linker collects them, and the table is complete before `main`
//! runs, which is when a worker needs it. A program that cannot have that lists its tasks by hand.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use linkme::distributed_slice;
use serde::Serialize;

use crate::wire::{DecodeError, ErrorKind, RemoteErrorBody, ValueReader};

mod expansion;
mod limits;

#[doc(hidden)]
pub use expansion::*;
pub use limits::{Limited, Limits};

/// A function that can run in another process.
///
/// `#[errback::task]` implements it. The name of the function then is a value of a type of its own, which implements
/// this trait and dereferences to the function, so that it is called as ever:
///
/// ```
/// use errback::Task;
///
/// /// How many numbers divide `n`.
/// #[errback::task]
/// fn divisors(n: u64) -> usize {
///     (1..=n).filter(|d| n % d == 0).count()
/// }
///
/// assert_eq!(divisors(12), 6);
/// assert!(divisors.name().ends_with("::divisors"));
/// ```
///
/// A function without the attribute is refused, with a sentence that says what to write:
///
/// ```compile_fail,E0277
/// fn plain(n: u64) -> u64 {
///     n
/// }
///
/// let pool = errback::Pool::new()?;
/// pool.apply_async(plain, (1,)); // error: `fn(u64) -> u64 {plain}` is not a task
/// # Ok::<(), errback::Failure>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task",
    label = "this runs in another process, and needs `#[errback::task]`",
    note = "write `#[errback::task]` above the function: its name is then a task, and can still be called",
    note = "a closure, a method or a generic function cannot be one: it has no name that a worker could find it by"
)]
pub trait Task: Copy + Send + Sync + 'static {
    /// The tuple of the arguments. What the function takes by reference is owned here: `&str` is a `String`.
    type Args: Serialize;

    /// What a successful call gives: the function's return type, or the `T` of its `Result<T, E>`.
    type Output: Send + 'static;

    /// The name by which a worker knows it: the path of the function, or what `#[errback::task(name = "…")]` says.
    fn name(&self) -> &'static str;

    /// Its place in the table of this program's tasks; `None` for one that only lives in another program.
    fn entry(&self) -> Option<&'static TaskEntry>;

    /// Makes a result of the bytes that a worker answered with.
    ///
    /// # Errors
    /// The bytes are not an [`Output`](Task::Output).
    fn decode_result(bytes: &[u8]) -> Result<Self::Output, DecodeError>;

    /// The same from the next of many values, for what is made for the task's types.
    #[doc(hidden)]
    fn decode_next(values: &mut ValueReader<'_>) -> Result<Self::Output, DecodeError> {
        Self::decode_result(values.raw()?)
    }

    /// Makes an error of what a worker says about the `Err` that the function returned: the error itself, where its
    /// type can be encoded, or else a [`RemoteError`].
    fn decode_error(body: RemoteErrorBody) -> anyhow::Error;

    /// How long a job of this task may take; see [`timeout`](Task::timeout) and [`expires`](Task::expires).
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// The same task, whose jobs may run for so long: then the job is asked to stop
    /// ([`cancel_requested`](crate::worker::cancel_requested)), and after the pool's grace its worker is killed. It fails with
    /// [`TimedOut`](crate::TimedOut).
    ///
    /// The time begins when the job is sent to its worker, which then has nothing else to do, and runs on a monotonic clock.
    /// The failure comes when the job has stopped or its worker is gone, so up to the grace (200 ms) later. Such jobs travel
    /// alone, also in a `map`, which makes tiny ones several times slower. `Deferred::add_timeout` counts the wait in the
    /// backlog too, cancels, and gives `TimeoutError`.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use errback::{Task, defer_to_process};
    ///
    /// #[errback::task]
    /// fn factor(n: u64) -> Vec<u64> {
    ///     (2..n).filter(|d| n % d == 0).collect()
    /// }
    ///
    /// # let reactor = errback::Reactor::new()?;
    /// let d = defer_to_process(&reactor, factor.timeout(Duration::from_secs(1)), (u64::MAX,))
    ///     .add_errback(|failure| {
    ///         failure.trap::<errback::TimedOut>()?;
    ///         Ok(vec![])
    ///     });
    /// # d.log_failure();
    /// # Ok::<(), errback::Failure>(())
    /// ```
    fn timeout(self, timeout: Duration) -> Limited<Self>
    where
        Self: Sized,
    {
        Limited::new(self).timeout(timeout)
    }

    /// The same task, whose jobs may wait in the pool's backlog for so long (Celery's name for it); one that waited longer
    /// fails with [`TimedOut`](crate::TimedOut) and does not run.
    fn expires(self, after: Duration) -> Limited<Self>
    where
        Self: Sized,
    {
        Limited::new(self).expires(after)
    }
}

/// A task as a worker sees it: a name, and a function from bytes to bytes.
pub struct TaskEntry {
    name: &'static str,
    run: fn(&mut Call<'_>) -> Ran,
    /// The same for the calls of a chunk.
    run_all: fn(&mut Calls<'_>) -> Ran,
}

impl TaskEntry {
    #[doc(hidden)]
    pub const fn new(
        name: &'static str,
        run: fn(&mut Call<'_>) -> Ran,
        run_all: fn(&mut Calls<'_>) -> Ran,
    ) -> TaskEntry {
        TaskEntry { name, run, run_all }
    }

    /// The task's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where its function is.
    pub(crate) fn address(&self) -> usize {
        self.run as usize
    }

    /// Decodes the arguments, runs the function, encodes its result. What panics in it panics here.
    pub(crate) fn run(&self, call: &mut Call<'_>) -> Ran {
        (self.run)(call)
    }

    /// The same for many, each of which has its own result. An error is that of all.
    pub(crate) fn run_all(&self, calls: &mut Calls<'_>) -> Ran {
        (self.run_all)(calls)
    }
}

impl fmt::Debug for TaskEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TaskEntry").field(&self.name).finish()
    }
}

/// A task of whatever type, in a list: see [`run_if_worker`](crate::worker::run_if_worker).
///
/// Every [`Task`] is one.
pub trait ListedTask {
    #[doc(hidden)]
    fn listed(&self) -> Option<&'static TaskEntry>;
}

impl<F: Task> ListedTask for F {
    fn listed(&self) -> Option<&'static TaskEntry> {
        self.entry()
    }
}

// The name holds the version: two versions of this crate in one program must not share a table.
/// The table of tasks that the linker collects.
#[doc(hidden)]
#[distributed_slice]
pub static ERRBACK_TASKS_0_1: [TaskEntry];

/// The tasks of a program by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskTable {
    /// Sorted by name.
    entries: Vec<&'static TaskEntry>,
}

impl TaskTable {
    /// A table in which every name stands for one function.
    pub(crate) fn new(
        entries: impl IntoIterator<Item = &'static TaskEntry>,
    ) -> Result<TaskTable, DuplicateTask> {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|entry| entry.name);
        // A list may name a task twice, and that is no harm.
        entries.dedup_by(|a, b| std::ptr::eq(*a, *b));
        match entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(DuplicateTask { name: pair[0].name }),
            None => Ok(TaskTable { entries }),
        }
    }

    /// The tasks that the linker has collected.
    pub(crate) fn linked() -> Result<TaskTable, DuplicateTask> {
        TaskTable::new(ERRBACK_TASKS_0_1.static_slice())
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The task of this name, or an error that helps to find out why there is none.
    pub(crate) fn find(&self, name: &str) -> Result<&'static TaskEntry, Box<RemoteErrorBody>> {
        match self.entries.binary_search_by(|entry| entry.name.cmp(name)) {
            Ok(at) => Ok(self.entries[at]),
            Err(_) => Err(Box::new(RemoteErrorBody::new(
                ErrorKind::UnknownTask,
                "",
                self.missing(name),
            ))),
        }
    }

    fn missing(&self, name: &str) -> String {
        let count = self.entries.len();
        let mut sentence = format!("no task `{name}` among the {count} that this worker knows");
        let last = |name: &str| name.rsplit("::").next().unwrap_or_default().to_owned();
        if let Some(like) = self
            .entries
            .iter()
            .find(|entry| last(entry.name) == last(name))
        {
            sentence.push_str(&format!("; did you mean `{}`?", like.name));
        } else if count == 0 {
            sentence.push_str("; a program that lists its tasks names them in `run_if_worker`");
        }
        sentence
    }
}

/// Whether this program's tasks have names of their own. A worker would refuse to start otherwise, so a pool looks
/// before it starts any.
pub(crate) fn check_registered() -> Result<(), DuplicateTask> {
    static CHECKED: OnceLock<Result<(), DuplicateTask>> = OnceLock::new();
    CHECKED
        .get_or_init(|| TaskTable::linked().map(drop))
        .clone()
}

/// Two tasks have one name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DuplicateTask {
    /// The name.
    pub name: &'static str,
}

impl fmt::Display for DuplicateTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        write!(
            f,
            "two tasks are named `{name}`; give one another name: #[errback::task(name = \"…\")]"
        )
    }
}

impl std::error::Error for DuplicateTask {}

/// An error that a task returned in its worker, and that could not travel as itself; or an exception that a Python function
/// raised.
///
/// It says what the error said there. An error type that implements `Serialize`, `Deserialize`, `Display` and `Debug`
/// comes back as itself instead. The [`Failure`](crate::Failure) around it goes by the names of its type and of the
/// type's bases: `failure.check_name("builtins.ValueError")`, `failure.trap_name("builtins.Exception")?`.
///
/// `{}` is what the error says, in one go; `{:#}` is its whole story, for a person to read: Python's traceback.
///
/// ```no_run
/// #[errback::task]
/// fn length(path: String) -> std::io::Result<usize> {
///     Ok(std::fs::read(path)?.len())
/// }
///
/// let pool = errback::Pool::new()?;
/// let failure = pool.apply_async(length, ("/nowhere".into(),)).get().unwrap_err();
/// let error = failure.check::<errback::RemoteError>().expect("std's error cannot be encoded");
/// assert_eq!(error.type_name, "std::io::error::Error");
/// # Ok::<(), errback::Failure>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RemoteError {
    /// The error's type, by its full name: `std::io::error::Error`, `builtins.ValueError`.
    pub type_name: String,
    /// What it says of itself.
    pub message: String,
    /// What its causes say, the nearest first.
    pub chain: Vec<String>,
    /// Where it came about, when that was recorded there: Rust's backtrace, or Python's traceback with its causes.
    pub backtrace: Option<String>,
    /// The full names of the type's bases, the nearest first: `builtins.Exception`. Rust's errors have none.
    pub bases: Vec<String>,
    /// What was added to the error on its way (`add_note` in Python).
    pub notes: Vec<String>,
    /// The members of a group of errors (`ExceptionGroup` in Python): 50 at the most, those of inner groups included.
    pub exceptions: Vec<RemoteError>,
    /// The next cause, as an error of its own, so that `source()` leads along the chain.
    cause: Option<Box<RemoteCause>>,
}

impl From<RemoteErrorBody> for RemoteError {
    fn from(body: RemoteErrorBody) -> RemoteError {
        let cause = body.chain.iter().rev().fold(None, |cause, message| {
            let message = message.clone();
            Some(Box::new(RemoteCause { message, cause }))
        });
        RemoteError {
            type_name: body.type_name,
            message: body.message,
            chain: body.chain,
            backtrace: body.backtrace,
            bases: body.bases,
            notes: body.notes,
            exceptions: body.exceptions.into_iter().map(Into::into).collect(),
            cause,
        }
    }
}

impl RemoteError {
    /// The names of the error's type and of the type's bases, its own first.
    pub fn type_names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.type_name)
            .chain(&self.bases)
            .map(String::as_str)
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backtrace {
            // Python's traceback ends with the message; Rust's backtrace does not have it.
            Some(story) if f.alternate() && story.contains(&self.message) => {
                f.write_str(story.trim_end())
            }
            Some(story) if f.alternate() => {
                write!(f, "{}\n{}", self.message, story.trim_end())
            }
            // `raise ValueError` says nothing but its name.
            _ if self.message.is_empty() => f.write_str(&self.type_name),
            _ => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for RemoteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct RemoteCause {
    message: String,
    cause: Option<Box<RemoteCause>>,
}

impl fmt::Display for RemoteCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RemoteCause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(_: &mut Call<'_>) -> Ran {
        Ok(())
    }

    fn run_all(calls: &mut Calls<'_>) -> Ran {
        calls.run(run)
    }

    static FIRST: TaskEntry = TaskEntry::new("first", run, run_all);
    static SECOND: TaskEntry = TaskEntry::new("demo::second", run, run_all);
    static FIRST_AGAIN: TaskEntry = TaskEntry::new("first", run, run_all);

    #[test]
    fn an_exception_has_its_names_its_members_and_its_story() {
        let member = RemoteErrorBody::new(ErrorKind::Error, "builtins.KeyError", "'x'");
        let body = RemoteErrorBody {
            bases: vec!["builtins.Exception".into()],
            notes: vec!["while counting".into()],
            exceptions: vec![member],
            backtrace: Some("Traceback (most recent call last):\nm.E: two\n".into()),
            ..RemoteErrorBody::new(ErrorKind::Error, "m.E", "two")
        };
        let error = RemoteError::from(body);
        let names: Vec<&str> = error.type_names().collect();
        assert_eq!(names, ["m.E", "builtins.Exception"]);
        assert_eq!(error.exceptions[0].type_name, "builtins.KeyError");
        assert_eq!(error.to_string(), "two");
        assert!(format!("{error:#}").ends_with("m.E: two"), "{error:#}");
    }

    #[test]
    fn an_error_that_says_nothing_says_what_it_is() {
        let error = |message: &str, story: &str| {
            RemoteError::from(RemoteErrorBody {
                backtrace: Some(story.into()),
                ..RemoteErrorBody::new(ErrorKind::Error, "builtins.ValueError", message)
            })
        };
        assert_eq!(error("", "").to_string(), "builtins.ValueError");
        // Rust's backtraces do not end in the message.
        assert_eq!(format!("{:#}", error("no", "0: main")), "no\n0: main");
    }

    #[test]
    fn a_name_stands_for_one_task() {
        let refused = TaskTable::new([&FIRST, &SECOND, &FIRST_AGAIN]).unwrap_err();
        assert_eq!(refused, DuplicateTask { name: "first" });
        assert!(refused.to_string().contains("#[errback::task(name = "));
        // The same one twice is no harm: it may be listed and linked.
        assert_eq!(TaskTable::new([&FIRST, &SECOND, &FIRST]).unwrap().len(), 2);
    }

    #[test]
    fn a_task_that_is_not_there_is_missed_with_what_is_there() {
        let table = TaskTable::new([&FIRST, &SECOND]).unwrap();
        assert!(std::ptr::eq(table.find("demo::second").unwrap(), &SECOND));
        let sentence = |name| table.find(name).unwrap_err().message;
        assert_eq!(
            sentence("other::second"),
            "no task `other::second` among the 2 that this worker knows; did you mean `demo::second`?"
        );
        assert_eq!(
            sentence("third"),
            "no task `third` among the 2 that this worker knows"
        );
        let none = TaskTable::default().find("x").unwrap_err();
        assert!(none.message.contains("run_if_worker"), "{}", none.message);
    }
}

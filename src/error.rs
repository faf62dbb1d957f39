//! Why a job failed: one type for each reason, with the data to act on, and one readable line.
//!
//! An errback asks for them by type (`failure.check::<WorkerDied>()`). What a task itself returns as `Err(e)` is not
//! here: it arrives as `e`, or as [`RemoteError`] where its type could not travel. The wire's own reasons
//! ([`EncodeError`], [`DecodeError`], [`ProtocolError`]) stand where the bytes are made.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use errback_deferred::Failure;

use crate::python::is_python_name;
pub(crate) use crate::task::RemoteError;
pub use crate::wire::{DecodeError, EncodeError, ProtocolError};

/// The worker process ended while it held the job.
///
/// Only the job that it was running fails; a job that it had not begun is sent to another worker, and fails like this
/// (`started: false`) when four workers in a row died under it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerDied {
    /// The name of the task.
    pub task: String,
    /// The number of the job in its pool.
    pub job: u64,
    /// The process that died.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
    /// Whether the task's function had begun to run.
    pub started: bool,
    /// From when the job was written to the worker until the worker had died.
    pub elapsed: Duration,
    /// What the process had used in its whole life, all of its jobs together.
    pub usage: Usage,
    /// Whether it was the kernel's out-of-memory killer that ended the process, by the count that the memory control
    /// group keeps. `false` where there is no such count.
    pub oom_killed: bool,
    /// The last 16 KiB that the worker wrote to its standard error. When it wrote more, a line before them says how
    /// much was cut off (`[truncated: 4096 bytes of stderr before this]`).
    pub stderr: String,
}

/// What a process had used by its end, its own children included that it had waited for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Usage {
    /// The most memory that it held at a time (its resident set), in bytes.
    ///
    /// `None` when it is not known: the kernel has one figure for the process and for what it was before it became this
    /// program, which was a moment in its host's own memory. So the worker's peak is known only when it was clearly
    /// above that of the host.
    pub peak_memory: Option<u64>,
    /// The CPU time of its own code.
    pub user: Duration,
    /// The CPU time of the kernel on its behalf.
    pub system: Duration,
}

impl fmt::Display for Usage {
    /// `peak memory 512 MiB, CPU 1.2 s`, as far as it is worth the words; else empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WORTH_IT: Duration = Duration::from_millis(50);
        let cpu = self.user.saturating_add(self.system);
        let cpu = (cpu >= WORTH_IT).then(|| format!("CPU {:.1} s", cpu.as_secs_f64()));
        let memory = self
            .peak_memory
            .map(|bytes| format!("peak memory {} MiB", bytes.div_ceil(1 << 20)));
        let words: Vec<String> = [memory, cpu].into_iter().flatten().collect();
        f.write_str(&words.join(", "))
    }
}

/// The job took too long: it ran past its [`timeout`](crate::Task::timeout), or waited past the moment at which it
/// [expires](crate::Task::expires). (Not [`TimeoutError`](crate::TimeoutError), which is that of `Deferred::add_timeout`.)
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TimedOut {
    /// The name of the task.
    pub task: String,
    /// The number of the job in its pool.
    pub job: u64,
    /// How long it might have taken.
    pub limit: Duration,
    /// How long it did: since it was sent to its worker, or since it was submitted.
    pub elapsed: Duration,
    /// Whether it waited all that time, and never ran.
    pub queued: bool,
    /// The worker that was killed for it; `None` when the job stopped by itself, or never ran.
    pub pid: Option<u32>,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TimedOut {
            task, job, limit, ..
        } = self;
        if self.queued {
            return write!(
                f,
                "{task} waited for a worker for longer than {limit:?}, and was not run (job {job})"
            );
        }
        write!(f, "{task} ran for longer than {limit:?} and ")?;
        match self.pid {
            Some(pid) => write!(f, "was killed, with worker {pid} (job {job})"),
            None => write!(f, "was stopped (job {job})"),
        }
    }
}

impl Error for TimedOut {}
/// The status of a program that cannot be a worker as it is, and says so itself.
const CANNOT_BE_A_WORKER: i32 = 78;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// It left by itself, with this status.
    Status(i32),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether it left a core file.
        core_dumped: bool,
    },
    /// Somebody else collected its exit status: the program ignores `SIGCHLD`, or waits for any child.
    Unknown,
    /// It was killed, and was still not gone seconds later (a system call that cannot be interrupted).
    Unkillable,
}

impl Exit {
    /// The signal that ended the process, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self {
            Exit::Signal { signal, .. } => Some(*signal),
            _ => None,
        }
    }

    /// The status with which the process left by itself, if it did.
    pub fn status(&self) -> Option<i32> {
        match self {
            Exit::Status(status) => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Status(status) => write!(f, "exited with status {status}"),
            Exit::Signal {
                signal,
                core_dumped,
            } => {
                let core = if *core_dumped { ", core dumped" } else { "" };
                match signal_name(*signal) {
                    Some(name) => write!(f, "died of signal {signal} ({name}{core})"),
                    None => write!(f, "died of signal {signal}{core}"),
                }
            }
            Exit::Unknown => f.write_str("died (its exit status was collected by somebody else)"),
            Exit::Unkillable => f.write_str("was killed, but is still not gone"),
        }
    }
}

/// The names of the signals that end processes. Their numbers are the same on all of Linux's architectures that we run on.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

impl WorkerDied {
    /// The last line of the worker's standard error that says something: not a backtrace, nor a note of Rust's on how to get
    /// one.
    pub fn last_words(&self) -> Option<&str> {
        last_words(&self.stderr)
    }
}

impl fmt::Display for WorkerDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = if self.started {
            "while running"
        } else {
            "before it began"
        };
        write!(f, "worker {} {}", self.pid, self.exit)?;
        if self.oom_killed {
            f.write_str(", killed by the control group's out-of-memory killer,")?;
        }
        write!(f, " {when} {} (job {}", self.task, self.job)?;
        match self.usage.to_string() {
            usage if usage.is_empty() => f.write_str(")")?,
            usage => write!(f, "; {usage})")?,
        }
        write_last_words(f, &self.stderr)
    }
}

impl Error for WorkerDied {}

/// No worker could be started, and no other worker is there to run the job.
///
/// The pool tried several times, with growing pauses, unless it was clear that trying is no use. It tries again with a job that is submitted after the present
/// pause (at most five seconds).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpawnFailed {
    /// The program that was to become a worker.
    pub program: String,
    /// How many starts in a row had failed by then.
    pub attempts: u32,
    /// What went wrong the last time.
    pub reason: SpawnFailure,
    /// The last 16 KiB that the child wrote to its standard error.
    pub stderr: String,
    /// Whether a Python worker was to become of it, for the advice.
    pub(crate) python: bool,
}

/// What can go wrong when a worker is started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SpawnFailure {
    /// The operating system refused to make the process, or what the pool needs for it.
    Refused(Arc<io::Error>),
    /// The process ended before it had said hello, or right after.
    Ended(Exit),
    /// The process did not say hello in time.
    Silent(Duration),
    /// What the process said was not what a worker says.
    NotAWorker(String),
    /// The pool's [initializer](crate::Builder::initializer) failed in the worker.
    Initializer(Failure),
    /// The worker was made from another build of this program.
    BuildMismatch {
        /// The build of this program.
        ours: String,
        /// The build of the worker.
        theirs: String,
    },
}

impl fmt::Display for SpawnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpawnFailure::Refused(why) => write!(f, "{why}"),
            SpawnFailure::Ended(exit) => write!(f, "it {exit} before it could take a job"),
            SpawnFailure::Silent(after) => write!(f, "it did not say hello within {after:?}"),
            SpawnFailure::Initializer(why) => write!(f, "its initializer failed: {why}"),
            SpawnFailure::NotAWorker(what) => write!(f, "it is not an errback worker ({what})"),
            SpawnFailure::BuildMismatch { ours, theirs } => {
                write!(
                    f,
                    "it is another build of this program ({theirs}, not {ours})"
                )
            }
        }
    }
}

impl SpawnFailure {
    /// Whether the next try will come to the same.
    pub(crate) fn is_hopeless(&self) -> bool {
        match self {
            SpawnFailure::Refused(why) => {
                [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied].contains(&why.kind())
                    || why.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error())
            }
            SpawnFailure::Initializer(_) => false,
            // The child's own word for it (docs/protocol.md, End).
            SpawnFailure::Ended(exit) => exit.status() == Some(CANNOT_BE_A_WORKER),
            SpawnFailure::Silent(_)
            | SpawnFailure::NotAWorker(_)
            | SpawnFailure::BuildMismatch { .. } => true,
        }
    }

    /// What the reader may do about it, when it is not in what the child said.
    fn advice(&self, python: bool) -> Option<&'static str> {
        match self {
            SpawnFailure::Ended(Exit::Status(CANNOT_BE_A_WORKER)) => None,
            SpawnFailure::Refused(why) if python && why.kind() == io::ErrorKind::NotFound => Some(
                "install Python 3.9 or later, or say with Builder::python_interpreter or python_venv where it is",
            ),
            SpawnFailure::Ended(_) | SpawnFailure::NotAWorker(_) if python => {
                Some("check that its modules can be imported in a plain interpreter")
            }
            SpawnFailure::Silent(_) if python => {
                Some("check that its modules are imported in less than the builder's boot_deadline")
            }
            SpawnFailure::Refused(why) => match why.kind() {
                io::ErrorKind::NotFound => {
                    Some("check the command that was given to the pool's builder")
                }
                io::ErrorKind::PermissionDenied => Some("check that it may be executed"),
                _ if why.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
                    Some("check that it is a program, and that a script begins with #!")
                }
                _ => None,
            },
            SpawnFailure::Ended(_) | SpawnFailure::Silent(_) | SpawnFailure::NotAWorker(_) => Some(
                "a worker program must call errback::worker::run_if_worker first in main, or link errback's hook",
            ),
            SpawnFailure::Initializer(_) => None,
            SpawnFailure::BuildMismatch { .. } => Some("start the program anew"),
        }
    }
}

impl fmt::Display for SpawnFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpawnFailed {
            program,
            attempts,
            reason,
            stderr,
            python,
        } = self;
        write!(
            f,
            "no worker could be started from {program} ({attempts} attempts): {reason}"
        )?;
        if let Some(advice) = reason.advice(*python) {
            write!(f, "; {advice}")?;
        }
        write_last_words(f, stderr)
    }
}

impl Error for SpawnFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            SpawnFailure::Refused(why) => Some(&**why),
            SpawnFailure::Initializer(why) => Some(&**why.error()),
            _ => None,
        }
    }
}

/// How the line begins that stands where the beginning of a worker's standard error was cut off.
pub(crate) const TRUNCATED: &str = "[truncated: ";

/// See [`WorkerDied::last_words`].
fn last_words(stderr: &str) -> Option<&str> {
    let words = stderr
        .rsplit_once("stack backtrace:")
        .map_or(stderr, |(words, _)| words);
    let mut lines = words.lines().rev().map(str::trim);
    lines.find(|line| {
        !line.is_empty() && !line.starts_with("note: ") && !line.starts_with(TRUNCATED)
    })
}

/// The last words, cut to a length that fits a log.
fn write_last_words(f: &mut fmt::Formatter<'_>, stderr: &str) -> fmt::Result {
    const LONGEST: usize = 200;
    let Some(line) = last_words(stderr) else {
        return Ok(());
    };
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => write!(f, "; its last words: {}...", &line[..end]),
        None => write!(f, "; its last words: {line}"),
    }
}

/// The reactor has a process pool already; see [`set_process_pool`](crate::set_process_pool).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolInUse;

impl fmt::Display for PoolInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this reactor has a process pool already: set one before the first defer_to_process",
        )
    }
}

impl Error for PoolInUse {}

/// The pool was closed before the job was done: it takes no jobs any more, or gave this one up.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PoolClosed {
    /// The pool's name.
    pub pool: String,
    /// Whether the job had been sent to a worker, which was then killed.
    pub running: bool,
}

impl fmt::Display for PoolClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.running {
            false => write!(
                f,
                "the pool {} is closed, and the job was not run",
                self.pool
            ),
            true => write!(
                f,
                "the pool {} was closed, and the job killed while it ran",
                self.pool
            ),
        }
    }
}

impl Error for PoolClosed {}

/// The pool belongs to the process that this one was forked from: its threads are there and not here, so that no job can
/// be submitted here, and no result awaited. The remedy is a pool that is built after the fork.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ForkedHost {
    /// The pool's name.
    pub pool: String,
}

impl fmt::Display for ForkedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the pool {} is of the process that this one was forked from: build a pool after the fork",
            self.pool
        )
    }
}

impl Error for ForkedHost {}

/// The pool's backlog is full: the job was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Overloaded {
    /// The pool's name.
    pub pool: String,
    /// How many jobs may wait.
    pub backlog: usize,
}

impl fmt::Display for Overloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the backlog of the pool {} is full ({} jobs wait): submit later, or ask the builder for a larger one",
            self.pool, self.backlog
        )
    }
}

impl Error for Overloaded {}

/// The task panicked. Its worker caught the panic and goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct JobPanicked {
    /// The name of the task.
    pub task: String,
    /// What the panic said.
    pub message: String,
    /// File, line and column of the panic.
    pub location: Option<String>,
    /// The worker's backtrace, as text.
    pub backtrace: Option<String>,
}

impl fmt::Display for JobPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked", self.task)?;
        if let Some(location) = &self.location {
            write!(f, " at {location}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Error for JobPanicked {}

/// The worker knows no task of this name.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct UnknownTask {
    /// The name of the task.
    pub task: String,
    /// What the worker said.
    pub message: String,
    /// Whether it is the worker of a Python pool, for the advice.
    pub(crate) python: bool,
}

impl fmt::Display for UnknownTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnknownTask { task, message, .. } = self;
        write!(f, "the worker knows no task {task}")?;
        match (is_python_name(task), self.python) {
            (true, false) => write!(
                f,
                ": that is a Python function, and this pool's workers are not Python's; give it to one of Builder::python ({message})"
            ),
            (false, true) => write!(
                f,
                ": that is a Rust function, and this pool's workers are Python's; give it to another pool ({message})"
            ),
            (false, false) => write!(
                f,
                ": write #[errback::task] above it, and name it in run_if_worker where that is used ({message})"
            ),
            (true, true) => write!(f, ": {message}"),
        }
    }
}

impl Error for UnknownTask {}

/// The worker could not read the arguments, or could not write the result: the job is at fault, not the worker.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NotSerialisable {
    /// The name of the task.
    pub task: String,
    /// Whether it was the result (otherwise the arguments).
    pub result: bool,
    /// What the worker said.
    pub message: String,
}

impl fmt::Display for NotSerialisable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.result {
            true => write!(
                f,
                "the result of {} cannot be sent: {}",
                self.task, self.message
            ),
            false => write!(
                f,
                "the arguments of {} cannot be read by the worker: {}",
                self.task, self.message
            ),
        }
    }
}

impl Error for NotSerialisable {}

/// The job failed by a fault of this library's own: a panic in one of its threads, which took nothing else with it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct InternalError {
    /// What is known.
    pub message: String,
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a fault inside errback: {}", self.message)
    }
}

impl Error for InternalError {}

/// Why a pool could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// A pool of no processes would never run anything.
    ZeroSize,
    /// This process was started as a worker, but nothing took it up as one: a pool here would start its like for ever.
    NotTakenUp,
    /// Pools inside of jobs inside of pools, too deep.
    TooDeep {
        /// How many pools above this process.
        depth: u32,
    },
    /// Two tasks have the same name.
    DuplicateTask(String),
    /// The arguments of the initializer cannot be encoded.
    Initializer(EncodeError),
    /// The builder's options do not fit together, or one of them is not what it should be.
    Options(String),
    /// The operating system refused a thread or a descriptor.
    Refused(io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::ZeroSize => f.write_str("a pool needs at least one process: give a size of 1 or more"),
            BuildError::NotTakenUp => f.write_str(
                "this process was started as a worker, but it runs the program instead: call errback::worker::run_if_worker first in main",
            ),
            BuildError::TooDeep { depth } => {
                write!(f, "this process is a worker of a pool {depth} deep: pools inside of jobs may not go deeper")
            }
            BuildError::Initializer(why) => write!(f, "the initializer's arguments: {why}"),
            BuildError::DuplicateTask(message) | BuildError::Options(message) => f.write_str(message),
            BuildError::Refused(why) => write!(f, "the pool could not be made: {why}"),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BuildError::Refused(why) => Some(why),
            _ => None,
        }
    }
}

impl From<io::Error> for BuildError {
    fn from(why: io::Error) -> Self {
        BuildError::Refused(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died(exit: Exit, started: bool, stderr: &str) -> String {
        let task = "thumbnail".to_string();
        WorkerDied {
            task,
            job: 32,
            pid: 4711,
            exit,
            started,
            elapsed: Duration::ZERO,
            usage: Usage::default(),
            oom_killed: false,
            stderr: stderr.into(),
        }
        .to_string()
    }

    #[test]
    fn a_death_tells_its_cause_and_what_it_had_used() {
        let died = WorkerDied {
            task: "thumbnail".to_string(),
            job: 32,
            pid: 4711,
            exit: Exit::Signal {
                signal: 9,
                core_dumped: false,
            },
            started: true,
            elapsed: Duration::ZERO,
            usage: Usage {
                peak_memory: Some(512 << 20),
                user: Duration::from_millis(900),
                system: Duration::from_millis(280),
            },
            oom_killed: true,
            stderr: String::new(),
        };
        assert_eq!(
            died.to_string(),
            "worker 4711 died of signal 9 (SIGKILL), killed by the control group's out-of-memory killer, \
             while running thumbnail (job 32; peak memory 512 MiB, CPU 1.2 s)"
        );
    }

    #[test]
    fn the_mark_of_what_was_cut_is_nobodys_last_words() {
        assert_eq!(
            last_words("[truncated: 7 bytes of stderr before this]\n\n"),
            None
        );
    }

    #[test]
    fn a_death_reads_as_one_line() {
        assert_eq!(
            died(
                Exit::Signal {
                    signal: 9,
                    core_dumped: false
                },
                true,
                "working\nout of memory\n\n"
            ),
            "worker 4711 died of signal 9 (SIGKILL) while running thumbnail (job 32); its last words: out of memory"
        );
        assert_eq!(
            died(Exit::Status(0), false, ""),
            "worker 4711 exited with status 0 before it began thumbnail (job 32)"
        );
    }

    #[test]
    fn last_words_are_cut_between_characters() {
        let line = died(Exit::Unknown, true, &"ä".repeat(1000));
        assert!(
            line.ends_with("ä...") && line.chars().count() < 400,
            "{line}"
        );
    }

    #[test]
    fn a_failed_start_says_what_to_do() {
        let reason = SpawnFailure::Refused(Arc::new(io::Error::from(io::ErrorKind::NotFound)));
        let failed = SpawnFailed {
            program: "worker.py".into(),
            attempts: 1,
            reason,
            stderr: String::new(),
            python: false,
        };
        assert!(failed.to_string().contains("check the command"), "{failed}");
        assert!(failed.source().is_some());
        let failed = SpawnFailed {
            python: true,
            ..failed
        };
        assert!(failed.to_string().contains("python_venv"), "{failed}");
    }

    #[test]
    fn a_program_that_says_that_it_cannot_be_a_worker_is_not_started_again() {
        let ended = |status| SpawnFailure::Ended(Exit::Status(status));
        assert!(ended(78).is_hopeless() && !ended(1).is_hopeless());
        // It has said why.
        assert_eq!(ended(78).advice(false), None);
        let advice = ended(1).advice(true).expect("an advice");
        assert!(!advice.contains("run_if_worker"), "{advice}");
    }
}

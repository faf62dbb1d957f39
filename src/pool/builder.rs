//! How a pool is asked for.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::child::{Launch, Program};
use super::python::{self, PythonOptions};
use super::size::default_size;
use super::typed::Initializer;
use super::{Pool, Settings, WhenFull};
use crate::buffer::arena;
use crate::error::{BuildError, EncodeError};
use crate::task::Task;
use crate::wire::{self, HostHello};
use crate::{task, worker};

/// Describes a pool; see [`Pool::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// let pool = errback::Pool::builder()
///     .name("thumbs")
///     .size(4)
///     .memory_limit(512 << 20)
///     .boot_deadline(Duration::from_secs(10))
///     .build()?;
/// # Ok::<(), errback::BuildError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    name: String,
    size: Option<usize>,
    backlog: usize,
    command: Option<(OsString, Vec<OsString>)>,
    pub(super) python: PythonOptions,
    environment: Vec<(OsString, Option<OsString>)>,
    clear_environment: bool,
    directory: Option<PathBuf>,
    memory_limit: Option<u64>,
    cpu_limit: Option<Duration>,
    open_files_limit: Option<u64>,
    min_size: usize,
    idle_timeout: Option<Duration>,
    when_full: WhenFull,
    cancel_grace: Duration,
    initializer: Option<Result<Initializer, EncodeError>>,
    max_jobs: Option<u64>,
    max_memory: Option<u64>,
    batches: bool,
    lanes: bool,
    spin: Duration,
    boot_deadline: Duration,
    max_message: usize,
    share_from: Option<usize>,
    trusts_workers: bool,
    pass_output: bool,
}

impl Builder {
    pub(super) fn new() -> Self {
        Builder {
            name: "errback".to_string(),
            size: None,
            backlog: 10_000_000,
            command: None,
            python: PythonOptions::default(),
            environment: Vec::new(),
            clear_environment: false,
            directory: None,
            memory_limit: None,
            cpu_limit: None,
            open_files_limit: None,
            min_size: 0,
            idle_timeout: None,
            when_full: WhenFull::Refuse,
            cancel_grace: Duration::from_millis(200),
            initializer: None,
            max_jobs: None,
            max_memory: None,
            batches: true,
            lanes: true,
            spin: Duration::from_micros(20),
            boot_deadline: Duration::from_secs(30),
            max_message: wire::MAX_FRAME,
            share_from: Some(arena::SHARE_FROM),
            trusts_workers: false,
            pass_output: true,
        }
    }

    /// How many workers there may be. Default: the CPUs that this process may use, by its affinity and by the quota of
    /// its control group.
    pub fn size(mut self, workers: usize) -> Self {
        self.size = Some(workers);
        self
    }

    /// How many workers there are at least: they are started at once, and an idle pool does not shrink below them.
    /// Default: none.
    ///
    /// More than the [size](Builder::size) mean the size.
    pub fn min_size(mut self, workers: usize) -> Self {
        self.min_size = workers;
        self
    }

    /// After how long without a job a worker leaves, as long as there are more than the [least](Builder::min_size). Default:
    /// they stay.
    pub fn idle_timeout(mut self, after: Duration) -> Self {
        self.idle_timeout = Some(after);
        self
    }

    /// What the pool is called, in errors and as the beginning of its threads' names. Default: `errback`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many jobs may wait; the next one fails with [`Overloaded`](crate::Overloaded), unless
    /// [something else](Builder::when_full) was asked for. Default: 10,000,000.
    pub fn backlog(mut self, jobs: usize) -> Self {
        self.backlog = jobs;
        self
    }

    /// What becomes of a job that comes when the backlog is full. Default: it is refused.
    pub fn when_full(mut self, policy: WhenFull) -> Self {
        self.when_full = policy;
        self
    }

    /// A task that each worker runs before its first job: to open what the jobs share, to warm something up, to drop
    /// privileges. What it leaves in statics is the worker's own state; jobs run one after another on one thread.
    ///
    /// The worker takes jobs when it has returned. When it fails, panics, or takes longer than the
    /// [boot deadline](Builder::boot_deadline), the start of the worker has failed: it is tried again, with growing pauses,
    /// and after some failures in a row the jobs fail with a [`SpawnFailed`](crate::SpawnFailed) that holds the reason.
    ///
    /// ```no_run
    /// use std::sync::OnceLock;
    ///
    /// static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    ///
    /// #[errback::task]
    /// fn load_words(path: &str) -> std::io::Result<()> {
    ///     let text = std::fs::read_to_string(path)?;
    ///     let _ = WORDS.set(text.lines().map(str::to_owned).collect());
    ///     Ok(())
    /// }
    ///
    /// #[errback::task]
    /// fn is_word(word: String) -> bool {
    ///     WORDS.get().is_some_and(|words| words.contains(&word))
    /// }
    ///
    /// let pool = errback::Pool::builder().initializer(load_words, ("words.txt".into(),)).build()?;
    /// let result = pool.apply_async(is_word, ("errback".into(),));
    /// # Ok::<(), errback::BuildError>(())
    /// ```
    pub fn initializer<F: Task>(mut self, task: F, args: F::Args) -> Self {
        self.initializer = Some(Initializer::new(task, &args));
        self
    }

    /// After how many jobs a worker is replaced, at the most; up to a tenth fewer, by chance, so that workers do not leave
    /// all at once. (`multiprocessing` calls it `maxtasksperchild`.) Default: it stays.
    ///
    /// A [map](crate::Pool::map)'s chunk is one job. 0 means 1.
    pub fn max_jobs_per_worker(mut self, jobs: u64) -> Self {
        self.max_jobs = Some(jobs.max(1));
        self
    }

    /// How much memory a worker may have resident, in bytes, when it has finished a job: one that has more is replaced. For
    /// tasks that leak. What it has mapped of large [buffers](crate::Buffer) counts. Default: any. See [`memory_limit`](Builder::memory_limit) for a limit within a job.
    pub fn max_worker_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// How long a job that is cancelled, or whose [timeout](crate::Task::timeout) has passed, may go on after it was asked
    /// to stop (see [`cancel_requested`](crate::worker::cancel_requested)) before its worker is killed. Zero kills at once. It is the
    /// pool's: a task that needs another goes to a pool of its own. Default: 200 ms.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.cancel_grace = grace;
        self
    }

    /// Whether several jobs may be sent to a worker at once when the last jobs of their task were short: at most a millisecond's
    /// worth. It saves most of what tiny jobs cost, and each job still ends for itself; when one turns out long, those
    /// behind it go to other workers. Jobs with a timeout or an expiry go alone. Default: yes.
    pub fn batching(mut self, batches: bool) -> Self {
        self.batches = batches;
        self
    }

    /// Whether calls and answers go through memory that the host shares with each worker, which saves most of their system
    /// calls. Some hundred KiB for each worker, and two descriptors. Workers that do not know of it (those in Python, at
    /// present) use their socket, and so do all on a machine that refuses the memory. Default: yes.
    ///
    /// The host only reads what a worker writes there, and checks it as it does what comes over a socket.
    pub fn shared_memory(mut self, shared: bool) -> Self {
        self.lanes = shared;
        self
    }

    /// For how long one who waits for a short answer, or a worker for its next call, looks for it before it goes to sleep: up to
    /// 20 microseconds by default, a millisecond at the most, and never with [`Duration::ZERO`]. To be woken takes longer than
    /// that where the other side is on another processor. (On a loop it is the loop's own time that counts, as in
    /// [the reactor's](errback_reactor::Builder::spin).)
    ///
    /// It becomes rare when it does not pay, because jobs take longer or others need the processors. One look is up to eight
    /// times as long: the first of all, and one after a sleep so short that the other side may just have had to be woken. It
    /// costs nothing at rest, and there is none where this process has one processor, or without
    /// [`shared_memory`](Builder::shared_memory).
    pub fn spin(mut self, limit: Duration) -> Self {
        const MOST: Duration = Duration::from_millis(1);
        self.spin = limit.min(MOST);
        self
    }

    /// Another program as worker, which speaks errback's protocol on its standard input. Default: this program itself,
    /// which becomes a worker before its `main` begins.
    pub fn command<A: Into<OsString>>(
        mut self,
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.command = Some((
            program.into(),
            arguments.into_iter().map(Into::into).collect(),
        ));
        self
    }

    /// Sets a variable in the workers' environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), Some(value.into())));
        self
    }

    /// Takes a variable out of the workers' environment.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), None));
        self
    }

    /// Starts workers with an empty environment, but for what [`env`](Builder::env) sets. Default: this process's.
    pub fn env_clear(mut self) -> Self {
        self.clear_environment = true;
        self.environment.clear();
        self
    }

    /// The workers' working directory. Default: this process's.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// How much address space a worker may have, in bytes. One that asks for more gets a failed allocation, of which a
    /// Rust program dies: its job fails with [`WorkerDied`](crate::WorkerDied). Default: no limit.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// How much CPU time a worker may use in its life, in whole seconds (rounded up): then it dies of SIGXCPU, and its job
    /// fails with [`WorkerDied`](crate::WorkerDied). With [`max_jobs_per_worker(1)`](Builder::max_jobs_per_worker) that is a
    /// limit for each job. Default: no limit.
    pub fn cpu_limit(mut self, time: Duration) -> Self {
        self.cpu_limit = Some(time);
        self
    }

    /// How many descriptors a worker may have open; it needs about eight for itself. Default: as many as this process.
    pub fn open_files_limit(mut self, descriptors: u64) -> Self {
        self.open_files_limit = Some(descriptors);
        self
    }

    /// How long a worker may take from its start until it is ready: its hello, and the
    /// [initializer](Builder::initializer). Default: 30 seconds.
    pub fn boot_deadline(mut self, deadline: Duration) -> Self {
        self.boot_deadline = deadline;
        self
    }

    /// The largest call or answer, in bytes. Default: 1 GiB. What
    /// [buffers](crate::Buffer) share does not count; other byte strings do, wherever they travel.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes.max(wire::MIN_FRAME);
        self
    }

    /// From how many bytes on a [`Buffer`](crate::Buffer) lies in memory that host and worker share, and only a reference to
    /// it travels; `None`: never, its bytes are part of the message. Below some ten thousand bytes that is quicker.
    /// Default: 65,536; less than 4,096 means 4,096. Byte strings of other types (a `Vec<u8>`, `serde_bytes`) travel the same
    /// way, and are copied out of that memory, if they have as many and 262,144 at least.
    ///
    /// A worker can go on reading in memory that it was shown once, also when it has come to hold another job's data, a buffer
    /// or another byte string; see [`Buffer`](crate::Buffer).
    pub fn shared_buffers(mut self, from: Option<usize>) -> Self {
        const LEAST: usize = 4096;
        self.share_from = from.map(|bytes| bytes.max(LEAST));
        self
    }

    /// Whether the [buffers](crate::Buffer) that workers return are read where the workers have put them, without a copy.
    /// Default: no.
    ///
    /// It asks that the workers keep to the protocol: one that goes on writing to what it has returned, as a job could that was
    /// taken over by the file it decodes, changes bytes that this program takes for unchangeable, and one that takes memory
    /// away again may end it. Without it nothing that a worker does can.
    pub fn trust_workers(mut self, trust: bool) -> Self {
        self.trusts_workers = trust;
        self
    }

    /// Whether what workers print goes on to this program's own stdout and stderr. Default: yes.
    ///
    /// Without, it is read and dropped, but for the end of stderr, which is kept for the story of a death
    /// ([`WorkerDied::stderr`](crate::WorkerDied)). For programs that draw on their terminal.
    pub fn pass_output(mut self, pass: bool) -> Self {
        self.pass_output = pass;
        self
    }

    /// Makes the pool. No worker is started before there is a job for it, but for the [least](Builder::min_size).
    ///
    /// # Errors
    /// A size of 0; a process that is itself a worker which nothing took up, or a worker too many pools deep (so that a
    /// program which starts itself never does so without end); two tasks of one name; arguments of an initializer that cannot
    /// be encoded; options that do not fit together; no thread or descriptor to be had.
    pub fn build(self) -> Result<Pool, BuildError> {
        check_process()?;
        let size = self.size.unwrap_or_else(default_size);
        if size == 0 {
            return Err(BuildError::ZeroSize);
        }
        let hello = HostHello {
            max_frame: self.max_message as u64,
            memory_limit: self.memory_limit,
            cpu_limit: self.cpu_limit.map(|time| {
                time.as_secs()
                    .saturating_add(u64::from(time.subsec_nanos() > 0))
            }),
            open_files: self.open_files_limit,
            buffers: self.share_from.map(|bytes| bytes as u64),
            spin: u64::try_from(self.spin.as_micros()).unwrap_or(u64::MAX),
            ..HostHello::default()
        };
        let program = python::program(self.python, self.command)?;
        // Another program is another build by nature.
        let build = matches!(program, Program::Own).then(worker::build_id);
        let settings = Settings {
            name: self.name,
            size,
            backlog: self.backlog,
            min_size: self.min_size.min(size),
            idle_timeout: self.idle_timeout,
            when_full: self.when_full,
            cancel_grace: self.cancel_grace,
            initializer: self
                .initializer
                .transpose()
                .map_err(BuildError::Initializer)?,
            max_jobs: self.max_jobs,
            max_memory: self.max_memory,
            batches: self.batches,
            boot_deadline: self.boot_deadline,
            max_frame: self.max_message,
            spin: self.spin,
            share_from: self.share_from,
            trusts_workers: self.trusts_workers,
            pass_output: self.pass_output,
            hello,
            build,
            launch: Launch {
                program,
                environment: self.environment,
                clear_environment: self.clear_environment,
                directory: self.directory,
                lanes: self.lanes,
            },
        };
        Ok(Pool::start(settings)?)
    }
}

/// Whether a pool may be made in this process at all.
fn check_process() -> Result<(), BuildError> {
    worker::keep_hook();
    if worker::unclaimed_start() {
        return Err(BuildError::NotTakenUp);
    }
    if worker::depth() >= worker::MAX_NESTING {
        return Err(BuildError::TooDeep {
            depth: worker::depth(),
        });
    }
    task::check_registered().map_err(|duplicate| BuildError::DuplicateTask(duplicate.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_of_zero_is_refused_with_advice() {
        let error = Builder::new()
            .size(0)
            .build()
            .expect_err("no pool of nobody");
        assert!(matches!(error, BuildError::ZeroSize));
        assert!(error.to_string().contains("1 or more"), "{error}");
    }
}

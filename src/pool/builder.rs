//! How a pool is asked for.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::child::{Launch, Program};
use super::size::default_size;
use super::{Pool, Settings};
use crate::error::BuildError;
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
    environment: Vec<(OsString, Option<OsString>)>,
    clear_environment: bool,
    directory: Option<PathBuf>,
    memory_limit: Option<u64>,
    boot_deadline: Duration,
    max_message: usize,
    pass_output: bool,
}

impl Builder {
    pub(super) fn new() -> Self {
        Builder {
            name: "errback".to_string(),
            size: None,
            backlog: 10_000_000,
            command: None,
            environment: Vec::new(),
            clear_environment: false,
            directory: None,
            memory_limit: None,
            boot_deadline: Duration::from_secs(30),
            max_message: wire::MAX_FRAME,
            pass_output: true,
        }
    }

    /// How many workers there may be. Default: the CPUs that this process may use, by its affinity and by the quota of
    /// its control group.
    pub fn size(mut self, workers: usize) -> Self {
        self.size = Some(workers);
        self
    }

    /// What the pool is called, in errors and as the beginning of its threads' names. Default: `errback`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many jobs may wait; the next one fails with [`Overloaded`](crate::Overloaded). Default: 10,000,000.
    pub fn backlog(mut self, jobs: usize) -> Self {
        self.backlog = jobs;
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

    /// How long a worker may take from its start to its hello. Default: 30 seconds.
    pub fn boot_deadline(mut self, deadline: Duration) -> Self {
        self.boot_deadline = deadline;
        self
    }

    /// The largest call or answer, in bytes. Default: 1 GiB, which is also the most that the default workers take.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes.max(wire::MIN_FRAME);
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

    /// Makes the pool. No worker is started before there is a job for it.
    ///
    /// # Errors
    /// A size of 0; a process that is itself a worker which nothing took up, or a worker too many pools deep (so that a
    /// program which starts itself never does so without end); two tasks of one name; no thread or descriptor to be had.
    pub fn build(self) -> Result<Pool, BuildError> {
        check_process()?;
        let size = self.size.unwrap_or_else(default_size);
        if size == 0 {
            return Err(BuildError::ZeroSize);
        }
        let hello = HostHello {
            max_frame: self.max_message as u64,
            memory_limit: self.memory_limit,
            ..HostHello::default()
        };
        // Another program is another build by nature.
        let build = self.command.is_none().then(worker::build_id);
        let settings = Settings {
            name: self.name,
            size,
            backlog: self.backlog,
            boot_deadline: self.boot_deadline,
            max_frame: self.max_message,
            pass_output: self.pass_output,
            hello: hello.encode(),
            build,
            launch: Launch {
                program: self.command.map_or(Program::Own, |(program, arguments)| {
                    Program::Command { program, arguments }
                }),
                environment: self.environment,
                clear_environment: self.clear_environment,
                directory: self.directory,
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

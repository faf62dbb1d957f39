//! The pool of worker processes, as its user and its own threads share it.
//!
//! A [`Pool`] is threads and processes only: it needs no event loop, and knows none. A job goes in by
//! [`Pool::apply_async`] (or `defer_to_process`, which stands on the same submit), waits in the backlog, is taken by a
//! waiter thread, and ends in one call of the job's `finish`. The files of this folder, in the order of a job's life:
//!
//! - `asked`: what callers ask for; `service`: what the pool's own threads tell each other;
//! - `job`, `backlog`, `hand`: what is to be done, what waits, and what a worker holds; who ends a job is decided there;
//! - `state`: what the one lock protects; `deadlines`, `pace`: parts of it;
//! - `waiter`, `connection`: one thread for each worker process, and its socket;
//! - `arenas`: the memory that large buffers travel in;
//! - `supervisor`, `child`, `breaker`: the one thread that starts workers, and how they are started, killed and paced;
//! - `cgroup`: whether the kernel killed one for its memory;
//! - `room`: who waits for a place in the backlog; `stats`, `histogram`: what the pool tells of itself;
//! - `python`: workers in Python, and how they get our package;
//! - `output`: what workers print; `size`: how many there are; `builder`: how it is all asked for.
//!
//! Threads: the supervisor, one waiter for each worker, one for output. All are the pool's own and are named.
//! Lock order: the state's lock is the only one that is held while another piece of the pool is called, and nothing that
//! is called under it blocks or runs user code.

mod answers;
mod arenas;
mod asked;
mod backlog;
mod breaker;
mod builder;
mod cgroup;
mod child;
mod connection;
mod deadlines;
mod hand;
mod histogram;
mod job;
mod output;
mod pace;
mod packed;
mod python;
mod room;
mod service;
mod size;
mod state;
mod stats;
mod supervisor;
mod typed;
mod waiter;
mod wakeup;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use errback_deferred::Failure;
use parking_lot::{Condvar, Mutex};

use crate::async_result::AsyncResult;
use crate::error::ForkedHost;
use crate::hook;
use crate::task::Task;
use crate::wire::HostHello;
pub(crate) use answers::Watch;
use cgroup::OomKills;
use child::Launch;
use job::Home;
use job::Job;
pub(crate) use job::{Called, Decode, End, Ending, JobKey, Outcome, Owner, lost};
use output::Output;
use state::{Closing, State};
use wakeup::Wakeup;

#[doc(hidden)]
pub use arenas::MemoryOfWorker;
pub use builder::Builder;
pub use histogram::Histogram;
pub use room::Room;
pub use stats::{Breaker, Stats};
use typed::Initializer;
pub(crate) use typed::{Encoded, Results};

/// A pool of worker processes that run tasks.
///
/// It is a handle: clones are the same pool, and results are handles too: an [`AsyncResult`], and a
/// [`Deferred`](crate::defer_to_process_pool) until it has fired. When the last one is dropped the pool is
/// [terminated](Pool::terminate), without waiting for it.
///
/// ```no_run
/// use errback::Pool;
///
/// #[errback::task]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// let pool = Pool::builder().size(2).build()?;
/// let result = pool.apply_async(square, (7,));
/// assert_eq!(result.get()?, 49);
/// # Ok::<(), errback::Failure>(())
/// ```
///
/// Workers are started when there are jobs for them, one after another up to the pool's size, and stay. One that dies is
/// replaced. The [`Builder`] can have it otherwise, and has more to ask for: an initializer, limits, recycling. Jobs start in the
/// order of their submit. Workers are in process groups of their own, so that Ctrl-C in a terminal reaches the host alone.
///
/// A process that this one forks (by `fork`, without running another program) has the handle, but not the pool: jobs fail
/// there with [`ForkedHost`](crate::ForkedHost), results that were not there at the fork too, and all else does nothing. A
/// pool that is built after the fork works.
#[derive(Clone)]
pub struct Pool {
    handle: Arc<Handle>,
}

/// What all clones of a pool share; its end is the end of the pool.
struct Handle {
    shared: Arc<Shared>,
}

/// The pool as its own threads hold it.
pub(crate) struct Shared {
    settings: Settings,
    /// In which process the threads are; see `forked`.
    generation: u32,
    /// What is said elsewhere. It is made before there is an elsewhere, because a failure may capture a backtrace, and a
    /// fork may find the lock held that the standard library has for that.
    forked: Failure,
    state: Mutex<State>,
    /// One for each place: rung when there is a worker, or an end, for a waiter that has none.
    bells: Box<[Condvar]>,
    /// Wakes the supervisor.
    supervisor: Wakeup,
    output: Arc<Output>,
    oom_kills: OomKills,
    home: Home,
    /// Notified when the phase is `Ended`.
    ended: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the builder was told; never changes.
struct Settings {
    name: String,
    size: usize,
    backlog: usize,
    min_size: usize,
    idle_timeout: Option<Duration>,
    when_full: WhenFull,
    boot_deadline: Duration,
    cancel_grace: Duration,
    initializer: Option<Initializer>,
    max_jobs: Option<u64>,
    max_memory: Option<u64>,
    batches: bool,
    max_frame: usize,
    /// For how long a waiter looks for an answer before it sleeps.
    spin: Duration,
    /// From how many bytes on a buffer is shared with workers.
    share_from: Option<usize>,
    /// Whether what workers share is read in place.
    trusts_workers: bool,
    pass_output: bool,
    launch: Launch,
    /// The first message to each worker.
    hello: HostHello,
    /// What a worker's build must be; `None` for other programs.
    build: Option<String>,
}

/// What a waiter is to do next.
enum Next {
    /// There are calls to write, or answers to wait for.
    Jobs,
    /// There is nothing, until then.
    Sit(Option<Instant>),
    /// The worker died while it was idle.
    Died,
    /// The worker is to leave.
    Leave(Leave),
}

/// Why a worker is told to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leave {
    /// There is nothing for it to do.
    Unwanted,
    /// It has done as many jobs, or has grown as large, as one worker may.
    WornOut,
}

/// What becomes of a job that comes when the backlog is full.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum WhenFull {
    /// It fails with [`Overloaded`](crate::Overloaded).
    #[default]
    Refuse,
    /// It waits all the same, behind the others. Whoever submits has to keep to [`Pool::when_room`] or
    /// [`Pool::wait_for_room`] by himself.
    Wait,
}

/// Longer than any pool lives, for durations that do not fit a clock.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// A job that was not taken, and why.
pub(crate) struct Refused {
    job: Job,
    why: Failure,
}

/// A job that was taken.
#[derive(Clone, Copy)]
pub(crate) struct Submitted {
    pub(crate) key: JobKey,
    /// Whether a worker has it already. Whoever waits for it may look for its answer then.
    pub(crate) is_out: bool,
}

impl Shared {
    /// Whether who waits for an answer looks for it before he sleeps.
    pub(crate) fn spins(&self) -> bool {
        !self.settings.spin.is_zero()
    }
}

impl Pool {
    /// A pool to be described.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A pool of the default size, of this program's own tasks.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Pool, crate::error::BuildError> {
        Builder::new().build()
    }

    /// Runs a task in a worker process (Python's name for it).
    ///
    /// The arguments are encoded here and now; nothing else takes time. It never blocks and never fails: whatever goes
    /// wrong is in the result.
    ///
    /// ```no_run
    /// # #[errback::task] fn square(n: u64) -> u64 { n * n }
    /// # let pool = errback::Pool::new()?;
    /// let results: Vec<_> = (0..10).map(|n| pool.apply_async(square, (n,))).collect();
    /// for result in results {
    ///     println!("{}", result.get()?);
    /// }
    /// # Ok::<(), errback::Failure>(())
    /// ```
    ///
    /// # Errors
    /// In the result: what the task returned as `Err`, or [`WorkerDied`](crate::WorkerDied),
    /// [`JobPanicked`](crate::JobPanicked), [`TimedOut`](crate::TimedOut), [`CancelledError`](crate::CancelledError), [`SpawnFailed`](crate::SpawnFailed), [`PoolClosed`](crate::PoolClosed), [`Overloaded`](crate::Overloaded),
    /// [`ForkedHost`]; [`EncodeError`](crate::EncodeError) when the arguments cannot be sent,
    /// [`NotSerialisable`](crate::NotSerialisable) when the worker cannot read them or not send the result,
    /// [`DecodeError`](crate::DecodeError) when the result cannot be read here; [`UnknownTask`](crate::UnknownTask),
    /// [`ProtocolError`](crate::ProtocolError), [`InternalError`](crate::InternalError).
    pub fn apply_async<F: Task>(&self, task: F, args: F::Args) -> AsyncResult<F::Output> {
        AsyncResult::submit(self, task, &args)
    }

    /// Takes no jobs any more. Those that were taken are run to their end, and then the workers leave.
    ///
    /// Returns at once; [`join`](Pool::join) waits.
    pub fn close(&self) {
        self.shared().close(Closing {
            drop_queued: false,
            kill_at: None,
        });
    }

    /// As [`close`](Pool::close), but what is not done after `patience` is [terminated](Pool::terminate).
    pub fn close_within(&self, patience: Duration) {
        self.shared().close(Closing {
            drop_queued: false,
            kill_at: Instant::now().checked_add(patience),
        });
    }

    /// Ends the pool now: jobs that wait fail with [`PoolClosed`](crate::PoolClosed), workers are killed, and the jobs that they ran fail
    /// with the same. They are not asked to stop before.
    ///
    /// Returns at once; [`join`](Pool::join) waits.
    pub fn terminate(&self) {
        self.shared().terminate();
    }

    /// Blocks until the pool has ended: all jobs are finished, all workers are gone and collected, all threads but this
    /// one's callers have ended. Somebody must close or terminate it, before or meanwhile, or it does not return.
    ///
    /// Not to be called where a result is handed over (in a waker): those run on the pool's own threads.
    pub fn join(&self) {
        self.shared().join(None);
    }

    /// As [`join`](Pool::join), for a while. Returns whether the pool has ended.
    pub fn join_timeout(&self, patience: Duration) -> bool {
        self.shared().join(Instant::now().checked_add(patience))
    }

    /// Blocks until there is room in the backlog, or the pool closes, for `patience` at the most.
    ///
    /// On a loop's thread use [`when_room`](Pool::when_room), which is also where the [`Room`] is explained.
    pub fn wait_for_room(&self, patience: Duration) -> Option<Room> {
        let (sender, receiver) = std::sync::mpsc::channel();
        // The room of who does not wait any more is given back when the message is dropped.
        let ticket = self.shared().on_room(Box::new(move |room| {
            let _ = sender.send(room);
        }));
        let room = receiver.recv_timeout(patience).ok();
        if room.is_none() {
            self.shared().leave_line(ticket);
        }
        room
    }

    /// How many workers there may be.
    pub fn size(&self) -> usize {
        self.shared().settings.size
    }

    /// The pool's name, which its threads have too.
    pub fn name(&self) -> &str {
        &self.shared().settings.name
    }

    /// What the pool is doing.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Starts the supervisor of a new pool.
    fn start(settings: Settings) -> std::io::Result<Pool> {
        hook::count_forks()?;
        let forked = ForkedHost {
            pool: settings.name.clone(),
        };
        let bells = (0..settings.size).map(|_| Condvar::new()).collect();
        let output = Arc::new(Output::new(settings.pass_output)?);
        let home = Home {
            python: settings.launch.is_python(),
            failed: AtomicU64::new(0),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(settings.min_size)),
            settings,
            generation: hook::generation(),
            forked: forked.into(),
            bells,
            supervisor: Wakeup::new()?,
            output,
            oom_kills: OomKills::default(),
            home,
            ended: Condvar::new(),
            thread: Mutex::new(None),
        });
        let supervisor = supervisor::Supervisor::new(Arc::clone(&shared));
        let name = thread_name(&shared.settings.name, "super");
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || supervisor.run())?;
        *shared.thread.lock() = Some(thread);
        Ok(Pool {
            handle: Arc::new(Handle { shared }),
        })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    /// Never waits: the last handle may go on an event loop's thread. The supervisor goes on by itself.
    fn drop(&mut self) {
        if self.shared.forked().is_some() {
            return;
        }
        self.shared.terminate();
        // The program may end right now, and the thread that does this with it.
        self.shared.output.flush();
    }
}

/// The kernel keeps 15 bytes of a thread's name: the role matters more than the end of a long pool's name.
fn thread_name(pool: &str, role: &str) -> String {
    let room = 14_usize.saturating_sub(role.len());
    let end = pool
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= room)
        .last()
        .unwrap_or(0);
    format!("{}-{role}", &pool[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_names_keep_their_role() {
        assert_eq!(thread_name("errback", "super"), "errback-super");
        assert_eq!(thread_name("a-very-long-name", "output"), "a-very-l-output");
        assert_eq!(thread_name("ääääääää", "output"), "ääää-output");
        assert_eq!(thread_name("", "0"), "-0");
    }

    #[test]
    fn a_pool_can_go_anywhere() {
        fn is<T: Send + Sync>() {}
        is::<Pool>();
    }
}

//! The pool of worker processes, as its user and its own threads share it.
//!
//! A [`Pool`] is threads and processes only: it needs no event loop, and knows none. A job goes in by
//! [`Pool::apply_async`] (or `defer_to_process`, which stands on the same submit), waits in the backlog, is taken by a
//! waiter thread, and ends in one call of the job's `finish`. The files of this folder, in the order of a job's life:
//!
//! - `job`, `backlog`, `hand`: what is to be done, what waits, and what a worker holds; who ends a job is decided there;
//! - `state`: what the one lock protects; `deadlines`, `pace`: parts of it;
//! - `waiter`, `connection`: one thread for each worker process, and its socket;
//! - `supervisor`, `child`, `breaker`: the one thread that starts workers, and how they are started, killed and paced;
//! - `cgroup`: whether the kernel killed one for its memory;
//! - `room`: who waits for a place in the backlog; `stats`, `histogram`: what the pool tells of itself;
//! - `python`: workers in Python, and how they get our package;
//! - `output`: what workers print; `size`: how many there are; `builder`: how it is all asked for.
//!
//! Threads: the supervisor, one waiter for each worker, one for output. All are the pool's own and are named.
//! Lock order: the state's lock is the only one that is held while another piece of the pool is called, and nothing that
//! is called under it blocks or runs user code.

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
mod python;
mod room;
mod size;
mod state;
mod stats;
mod supervisor;
mod typed;
mod waiter;
mod wakeup;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use errback_deferred::{CancelledError, Failure};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;

use crate::async_result::AsyncResult;
use crate::error::{
    Exit, ForkedHost, InternalError, Overloaded, PoolClosed, SpawnFailed, SpawnFailure, TimedOut,
};
use crate::hook;
use crate::task::Task;
use cgroup::OomKills;
use child::{Child, Ended, Launch, Process};
use connection::{Connection, Sent};
use deadlines::Due;
use hand::Answered;
use job::{Job, JobKey, JobState, Verdict, WorkerId};
use output::Output;
use state::{Closing, Phase, Place, Stage, State};
use wakeup::Wakeup;

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
    /// One for each place: rung when there is a job, a worker, or an end for that waiter.
    bells: Box<[Condvar]>,
    /// Wakes the supervisor.
    supervisor: Wakeup,
    output: Arc<Output>,
    oom_kills: OomKills,
    /// How many jobs have failed. Counted where a result is decoded, before it is handed over.
    failed: Arc<AtomicU64>,
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
    pass_output: bool,
    launch: Launch,
    /// The first message to each worker.
    hello: Vec<u8>,
    /// What a worker's build must be; `None` for other programs.
    build: Option<String>,
}

/// What a waiter is to do next.
enum Next {
    /// There are calls to write, or answers to wait for.
    Jobs,
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
    /// It fails with [`Overloaded`].
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
    pub(crate) job: Job,
    pub(crate) why: Failure,
}

/// A job that was taken, to cancel it by.
#[derive(Clone)]
pub(crate) struct JobHandle {
    /// Weak: a result that somebody keeps does not keep what is left of a pool that has ended.
    shared: Weak<Shared>,
    key: JobKey,
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
    /// [`JobPanicked`](crate::JobPanicked), [`TimedOut`], [`CancelledError`], [`SpawnFailed`], [`PoolClosed`], [`Overloaded`],
    /// [`ForkedHost`]; [`EncodeError`](crate::EncodeError) when the arguments cannot be sent,
    /// [`NotSerialisable`](crate::NotSerialisable) when the worker cannot read them or not send the result,
    /// [`DecodeError`](crate::DecodeError) when the result cannot be read here; [`UnknownTask`](crate::UnknownTask),
    /// [`ProtocolError`](crate::ProtocolError), [`InternalError`].
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

    /// Ends the pool now: jobs that wait fail with [`PoolClosed`], workers are killed, and the jobs that they ran fail
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
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(settings.min_size)),
            settings,
            generation: hook::generation(),
            forked: forked.into(),
            bells,
            supervisor: Wakeup::new()?,
            output,
            oom_kills: OomKills::default(),
            failed: Arc::default(),
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

/// What callers ask for.
impl Shared {
    /// In a process that the pool's own has forked there is a copy of the pool's memory, but none of its threads: nobody
    /// would ever take a job, and a lock that one of them held at the fork would never be free. So this is asked before
    /// any lock is taken.
    pub(crate) fn forked(&self) -> Option<Failure> {
        (hook::generation() != self.generation).then(|| self.forked.clone())
    }

    /// Takes a job, or gives it back. Never blocks.
    pub(crate) fn submit(self: &Arc<Self>, job: Job) -> Result<JobHandle, Box<Refused>> {
        if let Some(why) = self.forked() {
            return Err(Box::new(Refused { job, why }));
        }
        let expiry = job
            .expires()
            .and_then(|after| job.submitted().checked_add(after));
        let mut state = self.state.lock();
        if let Some(why) = self.refusal_in(&state) {
            drop(state);
            return Err(Box::new(Refused { job, why }));
        }
        let key = state.backlog.push(job);
        state.counts.submitted += 1;
        let is_next = expiry.is_some_and(|at| state.schedule(at, Due::Expire(key)));
        self.find_worker(state);
        if is_next {
            self.supervisor.wake();
        }
        Ok(JobHandle {
            shared: Arc::downgrade(self),
            key,
        })
    }

    /// Why a job would not be taken now.
    pub(crate) fn refusal(&self) -> Option<Failure> {
        if let Some(why) = self.forked() {
            return Some(why);
        }
        self.refusal_in(&self.state.lock())
    }

    fn refusal_in(&self, state: &State) -> Option<Failure> {
        let pool = || self.settings.name.clone();
        if state.phase.is_closing() {
            return Some(
                PoolClosed {
                    pool: pool(),
                    running: false,
                }
                .into(),
            );
        }
        if state.backlog.queued() >= self.settings.backlog
            && self.settings.when_full == WhenFull::Refuse
        {
            return Some(
                Overloaded {
                    pool: pool(),
                    backlog: self.settings.backlog,
                }
                .into(),
            );
        }
        let hopeless = state.breaker.failures() > 0 && state.alive() == 0;
        if hopeless {
            state.breaker.refusal(Instant::now()).cloned()
        } else {
            None
        }
    }

    /// Sees to it that somebody takes the job that has just been queued: the idle waiter that worked last, or a new worker.
    fn find_worker(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        if let Some(id) = state.idle.pop() {
            drop(state);
            self.bells[id.0 as usize].notify_one();
            return;
        }
        let grow = state.wanted < self.settings.size && state.is_short_of_workers();
        state.wanted += usize::from(grow);
        let retry = state.breaker.failures() > 0 && state.starting() == 0;
        drop(state);
        if grow || retry {
            self.supervisor.wake();
        }
    }

    /// See [`JobHandle::cancel`].
    fn cancel(self: &Arc<Self>, key: JobKey) {
        self.cancel_with(key, self.settings.cancel_grace);
    }

    /// As [`cancel`](Self::cancel), for a job that has had its grace.
    fn cancel_now(self: &Arc<Self>, key: JobKey) {
        self.cancel_with(key, Duration::ZERO);
    }

    fn cancel_with(self: &Arc<Self>, key: JobKey, grace: Duration) {
        if self.forked().is_some() {
            return;
        }
        let mut state = self.state.lock();
        if let JobState::Queued = state.backlog.state(key) {
            return self.withdraw(state, key, Verdict::Cancelled);
        }
        let job = state.stop(key, Verdict::Cancelled, grace);
        drop(state);
        if let Some(job) = job {
            job.fail(CancelledError);
        }
    }

    /// A job that waits has waited too long, if it still waits.
    fn expire(self: &Arc<Self>, key: JobKey) {
        let state = self.state.lock();
        if let JobState::Queued = state.backlog.state(key) {
            self.withdraw(state, key, Verdict::TimedOut);
        }
    }

    /// Ends a job that waits.
    fn withdraw(
        self: &Arc<Self>,
        mut state: parking_lot::MutexGuard<'_, State>,
        key: JobKey,
        verdict: Verdict,
    ) {
        let job = state.backlog.withdraw(key);
        state.counts.note_end(Some(verdict));
        let closing = state.phase.is_closing();
        self.admit(state);
        if let Some(job) = job {
            match verdict {
                Verdict::TimedOut => {
                    let late = TimedOut {
                        task: job.task().to_string(),
                        job: job.id(),
                        limit: job.expires().unwrap_or_default(),
                        elapsed: job.submitted().elapsed(),
                        queued: true,
                        pid: None,
                    };
                    job.fail(late);
                }
                _ => job.fail(CancelledError),
            }
        }
        if closing {
            self.supervisor.wake();
        }
    }

    /// See [`JobHandle::cancel_within`].
    fn cancel_within(self: &Arc<Self>, key: JobKey, grace: Duration) {
        if self.forked().is_some() {
            return;
        }
        let mut state = self.state.lock();
        if let JobState::Sent(_) | JobState::Running(_) = state.backlog.state(key) {
            let at = Instant::now().checked_add(grace);
            let is_next = at.is_some_and(|at| state.schedule(at, Due::Cancel(key)));
            drop(state);
            if is_next {
                self.supervisor.wake();
            }
            return;
        }
        drop(state);
        self.cancel(key);
    }

    /// Step 1 of the end of a pool (see `supervisor`).
    fn close(self: &Arc<Self>, order: Closing) {
        if self.forked().is_some() {
            return;
        }
        let mut state = self.state.lock();
        state.phase.close(order);
        self.rouse(&state);
        self.admit(state);
        self.supervisor.wake();
    }

    pub(crate) fn terminate(self: &Arc<Self>) {
        self.close(Closing {
            drop_queued: true,
            kill_at: Some(Instant::now()),
        });
    }

    /// Fails what waits, gives what runs a grace, and then kills it.
    pub(crate) fn shut_down(self: &Arc<Self>, grace: Duration) {
        self.close(Closing {
            drop_queued: true,
            kill_at: Instant::now().checked_add(grace),
        });
    }

    /// Calls `call` when the pool has ended: on the supervisor's thread, or here if it has ended already, or is not here.
    pub(crate) fn on_end(&self, call: Box<dyn FnOnce() + Send>) {
        if self.forked().is_some() {
            return call();
        }
        let mut state = self.state.lock();
        match state.phase {
            Phase::Ended => {
                drop(state);
                call();
            }
            _ => state.on_end.push(call),
        }
    }

    fn join(&self, until: Option<Instant>) -> bool {
        if self.forked().is_some() {
            return true;
        }
        let mut state = self.state.lock();
        while !matches!(state.phase, Phase::Ended) {
            match until {
                None => self.ended.wait(&mut state),
                Some(until) if self.ended.wait_until(&mut state, until).timed_out() => {
                    return matches!(state.phase, Phase::Ended);
                }
                Some(_) => {}
            }
        }
        drop(state);
        // The supervisor has nothing left to do but to return.
        let thread = self.thread.lock().take();
        thread
            .filter(|thread| thread.thread().id() != std::thread::current().id())
            .map(JoinHandle::join);
        true
    }
}

/// What waiters and the supervisor tell each other.
impl Shared {
    /// The next worker for this waiter; `None` when the pool needs none any more.
    fn next_child(&self, id: WorkerId) -> Option<Child> {
        let mut state = self.state.lock();
        loop {
            let running_out = state.is_running_out();
            let place = state.place(id);
            match std::mem::replace(&mut place.stage, Stage::Vacant) {
                Stage::Handed(child) => {
                    place.stage = Stage::Starting;
                    return Some(*child);
                }
                Stage::Vacant if running_out => {
                    place.stage = Stage::Ended;
                    drop(state);
                    self.supervisor.wake();
                    return None;
                }
                other => place.stage = other,
            }
            self.bells[id.0 as usize].wait(&mut state);
        }
    }

    /// The worker said hello, and is ready.
    fn enter_service(&self, id: WorkerId, pipelines: bool) {
        let mut state = self.state.lock();
        let place = state.place(id);
        place.stage = Stage::Serving;
        place.pipelines = pipelines;
        state.proven = true;
        if state.alive() < state.wanted {
            self.supervisor.wake();
        }
    }

    /// Whether a worker that is starting will be needed.
    fn is_wanted(&self) -> bool {
        !self.state.lock().is_running_out()
    }

    /// How many calls a new worker may be given. Not the same for all: they shall not leave all at once.
    fn calls_for_a_worker(&self) -> Option<u64> {
        let most = self.settings.max_jobs?;
        let spread = most / 10;
        Some(most - (spread as f64 * state::jitter()) as u64)
    }

    /// Whether a worker has been given enough calls, or has grown too large.
    fn is_worn_out(&self, worker: &Connection) -> bool {
        let large = |most: u64| worker.process.resident_memory() > Some(most);
        worker.calls_left == Some(0)
            || (worker.answered > 0 && self.settings.max_memory.is_some_and(large))
    }

    /// Gives a worker its next jobs. Blocks, if it has none, until there is one, or it is to leave.
    fn next_jobs(self: &Arc<Self>, id: WorkerId, worker: &mut Connection) -> Next {
        let mut state = self.state.lock();
        let mut idle_until = None;
        loop {
            if state.place(id).dead {
                return Next::Died;
            }
            let took = state.waiting() > 0 && self.take_jobs(&mut state, id, worker);
            if took || !worker.sent.is_empty() {
                if took && state.is_running_out() {
                    self.supervisor.wake(); // the others may go now
                }
                self.admit(state);
                return Next::Jobs;
            }
            if state.phase.is_closing() {
                return Next::Leave(Leave::Unwanted);
            }
            state.idle.push(id);
            let bell = &self.bells[id.0 as usize];
            let late = match self.settings.idle_timeout {
                None => {
                    bell.wait(&mut state);
                    false
                }
                Some(timeout) => {
                    let until = *idle_until.get_or_insert_with(|| {
                        let now = Instant::now();
                        now.checked_add(timeout).unwrap_or(now + FOR_EVER)
                    });
                    bell.wait_until(&mut state, until).timed_out()
                }
            };
            // Who rings for a job has taken us off the list; who rings for another reason has not.
            state.idle.retain(|it| *it != id);
            if late && state.waiting() == 0 && state.wanted > self.settings.min_size {
                state.wanted -= 1;
                state.place(id).stage = Stage::Leaving;
                return Next::Leave(Leave::Unwanted);
            }
        }
    }

    /// Takes a job for a worker that has none; and behind it, or behind those that it has, as many as may go together.
    /// Whether there was one.
    fn take_jobs(&self, state: &mut State, id: WorkerId, worker: &mut Connection) -> bool {
        let now = Instant::now();
        let had = worker.sent.len();
        let take = |state: &mut State, worker: &mut Connection| {
            let Some(call) = state.backlog.take(id) else {
                return false;
            };
            state.place(id).hand.give(call.key, call.wire_id);
            let waited = now.saturating_duration_since(call.submitted);
            state.queue_time.record(waited);
            worker.calls_left = worker.calls_left.map(|left| left - 1);
            worker.push(call, now);
            true
        };
        if had == 0 && !take(state, worker) {
            return false;
        }
        worker.refill_at = 0;
        let last = &worker.sent[worker.sent.len() - 1].call;
        if !self.settings.batches || !worker.pipelines || !last.with_others {
            return had == 0;
        }
        let task = last.task;
        // An equal share for each worker: several that go to one while another has nothing to do are no gain.
        let jobs = state.backlog.queued() + worker.sent.len();
        let share = jobs.div_ceil(state.serving().max(1));
        let together = state.paces.together(task).min(share);
        while worker.sent.len() < together
            && worker.calls_left != Some(0)
            && state
                .backlog
                .next_with_others()
                .is_some_and(|next| std::ptr::eq(next, task))
        {
            take(state, worker);
        }
        if worker.sent.len() >= together {
            worker.refill_at = together / 2;
        }
        worker.sent.len() > had
    }

    /// The worker answered a call, which took so long.
    fn complete(&self, id: WorkerId, sent: &Sent, first: bool, took: Duration) -> Answered {
        let mut state = self.state.lock();
        if first {
            state.breaker.succeeded();
        }
        state.run_time.record(took);
        if sent.call.with_others {
            state.paces.note(sent.call.task, took);
        }
        let State {
            places,
            backlog,
            counts,
            ..
        } = &mut *state;
        let answered = places[id.0 as usize].hand.answer(sent.call.key, backlog);
        match answered {
            Answered::Finish(_) => counts.note_end(None),
            Answered::Stopped(_, verdict) => counts.note_end(Some(verdict)),
            Answered::Dropped | Answered::TooLate(..) => {}
        }
        answered
    }

    /// A job has run for as long as it may. It is returned if it had not even begun.
    fn time_out(&self, key: JobKey) -> Option<Job> {
        let grace = self.settings.cancel_grace;
        self.state.lock().stop(key, Verdict::TimedOut, grace)
    }

    /// When a worker is to be killed for a job that was asked to stop.
    fn kill_at(&self, id: WorkerId) -> Option<Instant> {
        self.state.lock().place(id).hand.kill_at()
    }

    /// The grace of a worker's job is over. Whether the worker was killed for it.
    fn kill_overdue(&self, id: WorkerId) -> bool {
        self.state.lock().kill_overdue(id, Instant::now())
    }

    /// Whether a worker has begun the first of its jobs.
    fn has_begun(&self, id: WorkerId) -> bool {
        self.state.lock().has_begun(id)
    }

    /// Gives the jobs behind the first, which takes long, to others.
    fn take_back(&self, id: WorkerId, worker: &mut Connection) {
        let mut state = self.state.lock();
        let jobs = state.take_back(id, &worker.sent);
        worker.refill_at = 0;
        for _ in 0..jobs.min(state.idle.len()) {
            self.rouse_one(&mut state);
        }
        if jobs > 0 && state.wanted < self.settings.size && state.is_short_of_workers() {
            state.wanted += 1;
            drop(state);
            self.supervisor.wake();
        }
    }

    /// Whether the first of a worker's jobs was taken back.
    fn first_has_ended(&self, id: WorkerId) -> bool {
        self.state.lock().place(id).hand.first_has_ended()
    }

    /// A worker is told to leave.
    fn take_leave(&self, id: WorkerId) {
        self.state.lock().place(id).stage = Stage::Leaving;
    }

    /// Kills the worker of a place, if it has not been collected.
    fn kill(&self, id: WorkerId) {
        if let Some(process) = &self.state.lock().place(id).process {
            process.kill();
        }
    }

    /// Collects a worker. From here on nobody can kill it: its number may become another's.
    fn reap(&self, id: WorkerId, process: &Arc<Process>) -> Ended {
        let mut state = self.state.lock();
        state.place(id).process = None;
        process.reap().unwrap_or_else(|| {
            state.undead.push(Arc::clone(process));
            Ended::never()
        })
    }

    /// The supervisor saw the process end. If that is still the worker of the place, its waiter is told.
    fn note_death(&self, id: WorkerId, process: &Arc<Process>) {
        let mut state = self.state.lock();
        let place = state.place(id);
        if place
            .process
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, process))
        {
            place.dead = true;
            state.idle.retain(|it| *it != id);
            self.bells[id.0 as usize].notify_one();
        }
    }

    /// A worker has been buried: its place is free for another.
    fn vacate(&self, state: &mut State, id: WorkerId, failed: Option<SpawnFailed>) {
        let place = state.place(id);
        (place.stage, place.pipelines, place.dead) = (Stage::Vacant, false, false);
        if let Some(failed) = failed {
            state.note_failed_start(failed);
        }
        self.supervisor.wake();
    }

    /// A job was put back: wakes somebody for it. (The supervisor sees to the rest.)
    fn rouse_one(&self, state: &mut State) {
        if let Some(id) = state.idle.pop() {
            self.bells[id.0 as usize].notify_one();
        }
    }

    /// Wakes every waiter that waits for a job or a worker, to look whether the pool closes.
    fn rouse(&self, state: &State) {
        for bell in &self.bells[..state.places.len()] {
            bell.notify_all();
        }
        // One that has just been handed over finds the wake-up when it begins to wait.
        let starting = |place: &&Place| matches!(place.stage, Stage::Handed(_) | Stage::Starting);
        let starting = state.places.iter().filter(starting);
        for process in starting.filter_map(|place| place.process.as_ref()) {
            process.wakeup().wake();
        }
    }

    /// A waiter panicked over its worker: kills it, fails its jobs, and goes on.
    fn abandon(&self, id: WorkerId, process: &Arc<Process>) {
        let mut state = self.state.lock();
        if state.place(id).process.take().is_some() {
            process.kill();
            state.undead.push(Arc::clone(process));
        }
        let jobs = state.abandon(id);
        state.counts.died += 1;
        state.counts.finished += jobs.len() as u64;
        // With the pauses of a failed start: the next worker may meet with the same.
        let failed = SpawnFailed {
            program: self.settings.launch.name(),
            attempts: 0,
            python: self.settings.launch.is_python(),
            reason: SpawnFailure::Ended(Exit::Unknown),
            stderr: String::new(),
        };
        self.vacate(&mut state, id, Some(failed));
        drop(state);
        let message = "a waiter thread panicked; see the report on stderr".to_string();
        for job in jobs {
            job.fail(InternalError {
                message: message.clone(),
            });
        }
    }
}

impl JobHandle {
    /// A job that waits is taken out and fails now; one that runs is asked to stop, and after a grace is killed with its
    /// worker, and fails when it has stopped or that is dead and collected; one that is done stays as it is. Never blocks.
    pub(crate) fn cancel(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.cancel(self.key);
        }
    }

    /// As [`cancel`](Self::cancel), but a job that runs may go on for `grace`.
    pub(crate) fn cancel_within(&self, grace: Duration) {
        if let Some(shared) = self.shared.upgrade() {
            shared.cancel_within(self.key, grace);
        }
    }
}

/// Waits for one of `fds`, until a deadline, through any number of signals.
fn poll(fds: &mut [PollFd<'_>], until: Option<Instant>) {
    loop {
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match rustix::event::poll(fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Ok(_) => return,
            // Out of memory, or of descriptors. The callers look at everything anew; they must not spin meanwhile.
            Err(_) => {
                fds.iter_mut().for_each(PollFd::clear_revents);
                return std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
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
        is::<JobHandle>();
    }
}

//! The call: `defer_to_process(&reactor, task, (arguments,))`, and hops 1 and 8 of a job's life.
//!
//! 1. Here and in `defer_to_process/desk.rs`, on the loop's thread: the arguments become bytes, a Deferred and a job are made.
//! 2. `Shared::submit` (in `pool/asked.rs`): into the backlog.
//! 3. to 6. A waiter thread (`pool/waiter.rs`), the worker (`worker.rs`), and the waiter again.
//! 7. `desk.rs` again: `call_from_thread` wakes the loop, once for all answers that are there by then.
//! 8. The Deferred fires, on the loop's thread.
//!
//! This file and its folder are the only place that knows both the pool and an event loop. It needs little of the loop: calls from other
//! threads, and to be told of its end. With our own [`Reactor`] the pool need not even be made: the first call makes one
//! and hangs it on the reactor, and the reactor's shutdown ends it.

mod desk;
mod listener;
mod loop_end;

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use errback_deferred::{
    Deferred, LoopGone, Phase, ReactorCore, ReactorFromThreads, RemoteResolver, SystemEvent, fail,
};
use errback_reactor::Reactor;

use crate::error::{BuildError, PoolInUse};
use crate::pool::{Encoded, Pool, Room};
use crate::task::Task;
use desk::Desk;

/// How long jobs that run may go on when their loop shuts down, before they are killed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Runs a task in a worker process, as `defer_to_thread` runs a function in a thread.
///
/// The worker is this program started anew: `main` does not run in it, and statics that this process has set are not set
/// there. What a task needs comes in its arguments (a tuple: `(x,)` for one), or is made by an
/// [initializer](crate::Builder::initializer).
/// ```no_run
/// use errback::{Reactor, defer_to_process};
///
/// #[errback::task]
/// fn count_primes(from: u64, to: u64) -> usize {
///     (from.max(2)..to).filter(|n| (2..*n).all(|d| n % d != 0)).count()
/// }
///
/// let reactor = Reactor::new()?;
/// let end = reactor.clone();
/// defer_to_process(&reactor, count_primes, (1, 10_000))
///     .add_callback(|count| println!("{count} primes"))
///     .add_errback(|failure| eprintln!("{failure}"))
///     .add_both(move |_| end.stop().map_err(Into::into))
///     .log_failure();
/// reactor.run()?;
/// # Ok::<(), errback::Failure>(())
/// ```
///
/// The first call makes a [`Pool`] of the default size, which stays with the reactor; see [`process_pool`]. When the
/// reactor stops, jobs that wait fail with [`PoolClosed`](crate::PoolClosed) at once, jobs that run have two seconds and are then killed and
/// fail with the same, and `run` returns when all their Deferreds have fired.
///
/// Cancelling the Deferred takes the job out if it waits, or its worker has not begun it. If it runs, it is asked to stop
/// ([`cancel_requested`](crate::worker::cancel_requested)), and after a [grace](crate::Builder::cancel_grace) its worker is
/// killed, and replaced. The Deferred fails with [`CancelledError`](crate::CancelledError) when the job has stopped or its
/// process is gone. Dropping the Deferred changes nothing for the job. For a limit of its time see
/// [`Task::timeout`] and [`Task::expires`].
///
/// # Errors
/// On the Deferred, never by a panic: what the task returned as `Err`, or one of those of [`Pool::apply_async`], or a
/// [`BuildError`] when there can be no pool.
#[track_caller]
pub fn defer_to_process<F: Task>(reactor: &Reactor, task: F, args: F::Args) -> Deferred<F::Output> {
    let pool = match process_pool(reactor) {
        Ok(pool) => pool,
        Err(why) => return fail(why),
    };
    match pool.encode(task, &args) {
        // The reactor waits for the pool itself.
        Ok(call) => submit(reactor, &pool, call, false),
        Err(error) => fail(error),
    }
}

/// As [`defer_to_process`], in a pool of one's own and with any event loop that implements [`ReactorCore`].
///
/// To be called on the loop's thread. When that loop shuts down, the jobs that it submitted and that wait are cancelled,
/// those that run have two seconds and are then cancelled too; the pool itself goes on. (The loop is recognised by its
/// [`from_threads`](ReactorCore::from_threads), which should be clones of one `Arc`.)
///
/// ```no_run
/// # #[errback::task] fn square(n: u64) -> u64 { n * n }
/// # let reactor = errback::Reactor::new()?;
/// let pool = errback::Pool::builder().size(2).build()?;
/// let d = errback::defer_to_process_pool(&reactor, &pool, square, (7,));
/// # d.log_failure();
/// # Ok::<(), errback::Failure>(())
/// ```
///
/// # Errors
/// As [`defer_to_process`], and [`LoopGone`] for what is submitted when the loop shuts down or has ended.
#[track_caller]
pub fn defer_to_process_pool<F: Task>(
    event_loop: &impl ReactorCore,
    pool: &Pool,
    task: F,
    args: F::Args,
) -> Deferred<F::Output> {
    match pool.encode(task, &args) {
        Ok(call) => defer_call(event_loop, pool, call),
        Err(error) => fail(error),
    }
}

/// Runs a call in a pool that is not the loop's own: the loop's end waits for it.
#[track_caller]
pub(crate) fn defer_call<T: Send + 'static>(
    event_loop: &impl ReactorCore,
    pool: &Pool,
    call: Encoded<T>,
) -> Deferred<T> {
    submit(event_loop, pool, call, true)
}

/// The rest of hop 1, and hop 2. `waits`: the loop's end waits for the job.
#[track_caller]
fn submit<T: Send + 'static>(
    event_loop: &impl ReactorCore,
    pool: &Pool,
    call: Encoded<T>,
    waits: bool,
) -> Deferred<T> {
    // Before the loop is asked, which was forked too.
    if let Some(why) = pool.shared().forked() {
        return fail(why);
    }
    let threads = event_loop.from_threads();
    match Desk::of(event_loop, &threads, pool, waits) {
        Ok(desk) => desk.submit(&threads, pool, call),
        Err(gone) => fail(gone),
    }
}

/// How a pool is to end; see [`Pool::shutdown`]. Workers that are killed are not asked to stop before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shutdown {
    /// Jobs that were taken are run to their end: [`Pool::close`].
    Drain,
    /// The same for so long; what is not done then is ended: [`Pool::close_within`].
    DrainWithin(Duration),
    /// Everything ends now: [`Pool::terminate`].
    Now,
}

impl Pool {
    /// Ends the pool; the Deferred fires when it has ended: all jobs are finished, all workers gone and collected.
    ///
    /// It can be asked for again, also while an earlier one is under way, which it can make stricter: each Deferred fires at
    /// the end. Never blocks. Cancelling the Deferred does not take the end back.
    ///
    /// To be called on the loop's thread. Shutting the pool of the reactor itself down ([`process_pool`]) leaves the reactor
    /// without one: [`defer_to_process`] fails then.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use errback::{Pool, Shutdown};
    ///
    /// # let reactor = errback::Reactor::new()?;
    /// let pool = Pool::new()?;
    /// let ended = pool
    ///     .shutdown(&reactor, Shutdown::DrainWithin(Duration::from_secs(5)))
    ///     .add_callback(|()| println!("nobody left"));
    /// # ended.log_failure();
    /// # Ok::<(), errback::Failure>(())
    /// ```
    ///
    /// # Errors
    /// [`LoopGone`] when the loop has ended.
    #[track_caller]
    pub fn shutdown(&self, event_loop: &impl ReactorCore, how: Shutdown) -> Deferred<()> {
        match how {
            Shutdown::Drain => self.close(),
            Shutdown::DrainWithin(patience) => self.close_within(patience),
            Shutdown::Now => self.terminate(),
        }
        match from_threads(event_loop) {
            Ok(threads) => {
                let (remote, d) = RemoteResolver::new(threads);
                self.shared().on_end(Box::new(move || remote.fire(Ok(()))));
                d
            }
            Err(gone) => fail(gone),
        }
    }

    /// A Deferred that fires when there is room in the backlog: at once, or in the order of those who ask, one for each
    /// place that becomes free. When the pool closes they all fire, as the next submit tells.
    ///
    /// For producers that would fill a backlog faster than the workers empty it. The [`Room`] keeps the place from the
    /// others who ask until it is dropped, which should be after the submit. (Not from those who submit without asking.)
    ///
    /// ```no_run
    /// # #[errback::task] fn square(n: u64) -> u64 { n * n }
    /// use errback::{Pool, defer_to_process_pool};
    ///
    /// # let reactor = errback::Reactor::new()?;
    /// let pool = Pool::builder().backlog(100).build()?;
    /// let (to, on) = (pool.clone(), reactor.clone());
    /// let d = pool.when_room(&reactor).add_callback(move |room| {
    ///     let result = defer_to_process_pool(&on, &to, square, (7,));
    ///     drop(room);
    ///     result
    /// });
    /// # d.log_failure();
    /// # Ok::<(), errback::Failure>(())
    /// ```
    ///
    /// A cancel leaves the line.
    ///
    /// # Errors
    /// [`LoopGone`] when the loop has ended.
    #[track_caller]
    pub fn when_room(&self, event_loop: &impl ReactorCore) -> Deferred<Room> {
        let threads = match from_threads(event_loop) {
            Ok(threads) => threads,
            Err(gone) => return fail(gone),
        };
        let ticket: Rc<OnceCell<u64>> = Rc::default();
        let (shared, taken) = (Arc::clone(self.shared()), Rc::clone(&ticket));
        let (resolver, d) = Deferred::with_canceller(move || {
            taken
                .get()
                .into_iter()
                .for_each(|it| shared.leave_line(*it));
            None
        });
        let remote = RemoteResolver::of(threads, resolver);
        let call = Box::new(move |room| remote.fire(Ok(room)));
        let _ = ticket.set(self.shared().on_room(call));
        d
    }
}

/// The way to a loop from other threads, if it has not ended: one that has would never fire a Deferred.
fn from_threads(event_loop: &impl ReactorCore) -> Result<Arc<dyn ReactorFromThreads>, LoopGone> {
    let threads = event_loop.from_threads();
    threads.call_from_thread(Box::new(|| ()))?;
    Ok(threads)
}

/// The pool that [`defer_to_process`] uses on this reactor; made now if there is none yet.
///
/// # Errors
/// As [`Builder::build`](crate::Builder::build).
pub fn process_pool(reactor: &Reactor) -> Result<Pool, BuildError> {
    if let Some(pool) = reactor.services().get::<Pool>() {
        return Ok(Pool::clone(&pool));
    }
    let pool = reactor.services().get_or_try_init(Pool::new)?;
    close_with(reactor, &pool);
    Ok(Pool::clone(&pool))
}

/// Makes `pool` the one that [`defer_to_process`] uses on this reactor, which ends it when it shuts down.
///
/// For a pool that is not as [`Pool::new`] makes it: another size, a memory limit, another program.
///
/// ```no_run
/// use errback::{Pool, react, set_process_pool, try_deferred, defer_to_process};
/// # #[errback::task] fn square(n: u64) -> u64 { n * n }
///
/// fn main() -> std::process::ExitCode {
///     react(|reactor| {
///         let reactor = reactor.clone();
///         try_deferred(move || {
///             set_process_pool(&reactor, Pool::builder().memory_limit(512 << 20).build()?)?;
///             Ok(defer_to_process(&reactor, square, (7,)).add_callback(|n| println!("{n}")))
///         })
///     })
/// }
/// ```
///
/// # Errors
/// [`PoolInUse`] when the reactor has a pool already, set by an earlier call or made by the first `defer_to_process`.
pub fn set_process_pool(reactor: &Reactor, pool: Pool) -> Result<(), PoolInUse> {
    let mut pool = Some(pool);
    let set = reactor
        .services()
        .get_or_init(|| pool.take().expect("it is made once"));
    if pool.is_some() {
        return Err(PoolInUse);
    }
    close_with(reactor, &set);
    Ok(())
}

/// Ends the reactor's own pool with the reactor. The shutdown waits for it.
fn close_with(reactor: &Reactor, pool: &Pool) {
    let threads = reactor.from_threads();
    // A reactor that has stopped already has no shutdown any more.
    if threads.call_from_thread(Box::new(|| ())).is_err() {
        return pool.terminate();
    }
    let pool = Arc::clone(pool.shared());
    let close = move || {
        let (ended, d) = RemoteResolver::new(threads);
        pool.shut_down(SHUTDOWN_GRACE);
        pool.on_end(Box::new(move || ended.fire(Ok(()))));
        Some(d)
    };
    ReactorCore::add_system_event_trigger(
        reactor,
        Phase::Before,
        SystemEvent::Shutdown,
        Box::new(close),
    );
}

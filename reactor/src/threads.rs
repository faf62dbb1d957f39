//! The thread pool: blocking functions run beside the loop, and their results come back as Deferreds.
//!
//! It is made by the first call that needs it, and it starts a thread only when there are more unfinished jobs than
//! threads. Threads take jobs from one queue (`jobs.rs`); a job never touches a Deferred, it refers to a [`ParkedResolver`].
//! At the reactor's shutdown the queue closes: what is in it is still done, each thread says farewell when it leaves, and
//! the loop turns until the last one has.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use errback_deferred::{
    CancelledError, Deferred, Failure, PanicError, ParkedResolver, contain, fail, log_err,
};

use crate::ReactorHandle;
use crate::jobs::{Job, Jobs};

/// As in Twisted.
const DEFAULT_SIZE: usize = 10;

/// The thread pool of one reactor, made or not.
pub(crate) struct Threads {
    size: Cell<usize>,
    /// How long a thread looks for jobs before it sleeps.
    spin: Duration,
    closed: Cell<bool>,
    pool: RefCell<Option<Pool>>,
}

struct Pool {
    jobs: Arc<Jobs>,
    /// Takes a job back that has this number.
    take_back: Rc<dyn Fn(u64)>,
    threads: HashMap<usize, JoinHandle<()>>,
    started: usize,
}

impl Threads {
    pub(crate) fn new(size: Option<usize>, spin: Duration) -> Threads {
        let threads = Threads {
            size: Cell::new(DEFAULT_SIZE),
            spin,
            closed: Cell::new(false),
            pool: RefCell::new(None),
        };
        size.into_iter().for_each(|size| threads.suggest_size(size));
        threads
    }

    pub(crate) fn suggest_size(&self, size: usize) {
        self.size.set(size.max(1));
    }

    pub(crate) fn call_in_thread(
        &self,
        reactor: &ReactorHandle,
        f: impl FnOnce() + Send + 'static,
    ) -> Result<(), ThreadPoolError> {
        self.make_room(reactor)?.jobs.add(Call(f));
        Ok(())
    }

    #[track_caller]
    pub(crate) fn defer_to_thread<R: ThreadResult>(
        &self,
        reactor: &ReactorHandle,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> Deferred<R::Value> {
        let pool = match self.make_room(reactor) {
            Ok(pool) => pool,
            Err(error) => return fail(error),
        };
        let (parked, deferred) = ParkedResolver::new();
        let number = pool.jobs.add(DeferredCall { f, parked });
        deferred.set_take_back(pool.take_back.clone(), number);
        deferred
    }

    /// The pool, in such a state that a job which is queued now will be done: it is open and has a thread.
    fn make_room(&self, reactor: &ReactorHandle) -> Result<RefMut<'_, Pool>, ThreadPoolError> {
        if self.closed.get() {
            return Err(ThreadPoolError::Closed);
        }
        let pool = self.pool.borrow_mut();
        let mut pool = RefMut::map(pool, |pool| pool.get_or_insert_with(Pool::new));
        let may_start = pool.threads.len() < self.size.get();
        if may_start && pool.jobs.unfinished() >= pool.threads.len() {
            match pool.start_thread(reactor, self.spin) {
                Err(error) if pool.threads.is_empty() => return Err(ThreadPoolError::Start(error)),
                _ => (), // started, or one of the others will come to it
            }
        }
        Ok(pool)
    }

    /// Takes no more jobs. The threads do what is queued, and leave.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        if let Some(pool) = &*self.pool.borrow() {
            pool.jobs.close();
        }
    }

    /// Whether every thread has left.
    pub(crate) fn are_gone(&self) -> bool {
        self.pool
            .borrow()
            .as_ref()
            .is_none_or(|pool| pool.threads.is_empty())
    }

    /// A thread's farewell, on the loop's thread. It has nothing left to do, so that joining it does not block.
    pub(crate) fn left(&self, number: usize) {
        let thread = self
            .pool
            .borrow_mut()
            .as_mut()
            .and_then(|pool| pool.threads.remove(&number));
        if let Some(thread) = thread {
            // It catches the panics of its jobs; one of its own has been printed by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Pool {
    fn new() -> Pool {
        let jobs = Arc::<Jobs>::default();
        let queue = jobs.clone();
        Pool {
            jobs,
            take_back: Rc::new(move |number| queue.take_back(number)),
            threads: HashMap::new(),
            started: 0,
        }
    }

    fn start_thread(&mut self, reactor: &ReactorHandle, spin: Duration) -> io::Result<()> {
        let jobs = self.jobs.clone();
        let number = self.started + 1;
        let farewell = Farewell {
            reactor: reactor.clone(),
            number,
        };
        let thread = thread::Builder::new()
            .name(format!("reactor-pool-{number}"))
            .spawn(move || jobs.work(&farewell.reactor, spin))?;
        self.threads.insert(number, thread);
        self.started = number;
        Ok(())
    }
}

/// A function for whose end nobody waits.
struct Call<F>(F);

impl<F: FnOnce() + Send + 'static> Job for Call<F> {
    fn work(self) -> impl FnOnce(&ReactorHandle) {
        let result = contain(self.0);
        move |reactor| result.unwrap_or_else(|panic| report(reactor, panic))
    }

    fn taken_back(self) {}
}

/// A function whose result fires a Deferred.
struct DeferredCall<F, T> {
    f: F,
    parked: ParkedResolver<T>,
}

impl<F, R> Job for DeferredCall<F, R::Value>
where
    R: ThreadResult,
    F: FnOnce() -> R + Send + 'static,
{
    fn work(self) -> impl FnOnce(&ReactorHandle) {
        let DeferredCall { f, parked } = self;
        let result = contain(|| f().into_result()).unwrap_or_else(|panic| Err(panic.into()));
        move |reactor| {
            // The loop is gone: then nobody can be told.
            let _ = reactor.call_from_thread(move |_| parked.fire(result));
        }
    }

    /// On the reactor's thread: its Deferred was cancelled.
    fn taken_back(self) {
        drop(self.f);
        self.parked.fire(Err(CancelledError.into()));
    }
}

/// Tells the loop that a thread leaves, however it leaves.
struct Farewell {
    reactor: ReactorHandle,
    number: usize,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let number = self.number;
        // If the loop is gone, nobody waits for this.
        let _ = self
            .reactor
            .call_from_thread(move |reactor| reactor.threads().left(number));
    }
}

/// Reports a panic on the reactor's thread, where its observers are.
fn report(reactor: &ReactorHandle, panic: PanicError) {
    const WHAT: &str = "a call in a thread";
    let failure = Failure::from(panic);
    let there = failure.clone();
    if reactor
        .call_from_thread(move |_| log_err(there, WHAT))
        .is_err()
    {
        log_err(failure, WHAT);
    }
}

/// What a function that is deferred to a thread may return: a `Result<T, Failure>` (where `?` works), or nothing.
///
/// No Deferred, as a callback may: a Deferred belongs to the thread on which it was made.
#[diagnostic::on_unimplemented(
    message = "a function deferred to a thread cannot return `{Self}`",
    label = "returns neither a `Result` nor `()`",
    note = "wrap the value in `Ok(...)`"
)]
pub trait ThreadResult {
    /// What the Deferred fires with.
    type Value: Send + 'static;

    /// The value, or the failure.
    ///
    /// # Errors
    /// The failure that the function returned.
    fn into_result(self) -> Result<Self::Value, Failure>;
}

impl<T: Send + 'static> ThreadResult for Result<T, Failure> {
    type Value = T;

    fn into_result(self) -> Result<T, Failure> {
        self
    }
}

impl ThreadResult for () {
    type Value = ();

    fn into_result(self) -> Result<(), Failure> {
        Ok(())
    }
}

/// Why the thread pool did not take a job.
#[derive(Debug)]
pub enum ThreadPoolError {
    /// The reactor is shutting down or has stopped.
    Closed,
    /// The operating system gave us no thread, and there is none yet that could do it.
    Start(io::Error),
}

impl fmt::Display for ThreadPoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ThreadPoolError::Closed => {
                "the reactor is shutting down and its thread pool takes no more jobs"
            }
            ThreadPoolError::Start(_) => "the thread pool could not start a thread",
        })
    }
}

impl std::error::Error for ThreadPoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ThreadPoolError::Closed => None,
            ThreadPoolError::Start(error) => Some(error),
        }
    }
}

//! The thread pool: blocking functions run beside the loop, and their results come back as Deferreds.
//!
//! It is made by the first call that needs it, and it starts a thread only when there are more unfinished jobs than
//! threads. Threads take jobs from one channel; a job never touches a Deferred, it fires a [`RemoteResolver`]. At the
//! reactor's shutdown the channel closes: what is queued is still done, each thread says farewell when it leaves, and
//! the loop turns until the last one has.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use errback_deferred::{Deferred, Failure, PanicError, RemoteResolver, contain, fail, log_err};

use crate::ReactorHandle;

/// What a thread is to do. The counter goes down as soon as the function has returned and before its result is known to
/// anybody: who waits for the result and then sends the next job must find this thread counted as free.
type Job = Box<dyn FnOnce(&AtomicUsize) + Send>;

/// As in Twisted.
const DEFAULT_SIZE: usize = 10;

/// The thread pool of one reactor, made or not.
pub(crate) struct Threads {
    size: Cell<usize>,
    closed: Cell<bool>,
    pool: RefCell<Option<Pool>>,
}

struct Pool {
    /// `None` once closed. Without a bound: a full channel would block the reactor's thread.
    jobs: Option<Sender<Job>>,
    queue: Receiver<Job>,
    /// How many jobs are queued or running.
    unfinished: Arc<AtomicUsize>,
    threads: HashMap<usize, JoinHandle<()>>,
    started: usize,
}

impl Threads {
    pub(crate) fn new(size: Option<usize>) -> Threads {
        let threads = Threads {
            size: Cell::new(DEFAULT_SIZE),
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
        self.make_room(reactor)?;
        let handle = reactor.clone();
        self.submit(move |unfinished| {
            let result = contain(f);
            unfinished.fetch_sub(1, Ordering::Relaxed);
            result.unwrap_or_else(|panic| report(&handle, panic));
        });
        Ok(())
    }

    #[track_caller]
    pub(crate) fn defer_to_thread<R: ThreadResult>(
        &self,
        reactor: &ReactorHandle,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> Deferred<R::Value> {
        if let Err(error) = self.make_room(reactor) {
            return fail(error);
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let cancel = cancelled.clone();
        let (resolver, deferred) = Deferred::with_canceller(move || {
            cancel.store(true, Ordering::Relaxed);
            None // CancelledError, at once; what a running function returns is dropped
        });
        let remote = RemoteResolver::of(reactor.0.clone(), resolver);
        self.submit(move |unfinished| {
            if cancelled.load(Ordering::Relaxed) {
                unfinished.fetch_sub(1, Ordering::Relaxed);
                return; // its Deferred has fired already
            }
            let result = contain(|| f().into_result()).unwrap_or_else(|panic| Err(panic.into()));
            unfinished.fetch_sub(1, Ordering::Relaxed);
            remote.fire(result);
        });
        deferred
    }

    /// Sees to it that a job which is sent now will be done: the pool is open and has a thread.
    fn make_room(&self, reactor: &ReactorHandle) -> Result<(), ThreadPoolError> {
        if self.closed.get() {
            return Err(ThreadPoolError::Closed);
        }
        let mut pool = self.pool.borrow_mut();
        let pool = pool.get_or_insert_with(Pool::new);
        let all_busy = pool.unfinished.load(Ordering::Relaxed) >= pool.threads.len();
        if all_busy && pool.threads.len() < self.size.get() {
            match pool.start_thread(reactor) {
                Err(error) if pool.threads.is_empty() => return Err(ThreadPoolError::Start(error)),
                _ => (), // started, or one of the others will come to it
            }
        }
        Ok(())
    }

    /// Sends a job. To be called right after `make_room`.
    fn submit(&self, job: impl FnOnce(&AtomicUsize) + Send + 'static) {
        let pool = self.pool.borrow();
        let pool = pool.as_ref().expect("`make_room` has made it");
        pool.unfinished.fetch_add(1, Ordering::Relaxed);
        let jobs = pool.jobs.as_ref().expect("`make_room` has found it open");
        jobs.send(Box::new(job))
            .expect("the pool itself holds a receiver");
    }

    /// Takes no more jobs. The threads do what is queued, and leave.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        if let Some(pool) = &mut *self.pool.borrow_mut() {
            pool.jobs = None;
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
        let (jobs, queue) = unbounded();
        Pool {
            jobs: Some(jobs),
            queue,
            unfinished: Arc::default(),
            threads: HashMap::new(),
            started: 0,
        }
    }

    fn start_thread(&mut self, reactor: &ReactorHandle) -> io::Result<()> {
        let (queue, unfinished) = (self.queue.clone(), self.unfinished.clone());
        let number = self.started + 1;
        let farewell = Farewell {
            reactor: reactor.clone(),
            number,
        };
        let thread = thread::Builder::new()
            .name(format!("reactor-pool-{number}"))
            .spawn(move || {
                let _farewell = farewell;
                queue.into_iter().for_each(|job| job(&unfinished));
            })?;
        self.threads.insert(number, thread);
        self.started = number;
        Ok(())
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

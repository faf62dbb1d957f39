//! Calls from other threads: the only way into a reactor that is not its own thread.
//!
//! One list under one lock, swapped out whole by the loop. The loop says under the same lock that it is going to sleep,
//! and only the first call after that wakes it: while it is awake a call costs no system call at all, however many
//! threads make them. The order is kept for each thread, not between threads. The list has no bound, because a
//! reactor's own thread may call too and must not wait for itself.

use std::convert::Infallible;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use errback_deferred::{Failure, IntoOutcome, maybe_deferred};
use errback_deferred::{LoopGone, ReactorFromThreads};
use mio::Waker;
use parking_lot::Mutex;

use crate::Reactor;
use crate::reports::contained;

/// What another thread wants done. The two forms spare the second box that turning one into the other would need.
enum Call {
    /// Through the trait, which knows no reactor.
    Plain(Box<dyn FnOnce() + Send>),
    /// Through [`ReactorHandle`]: a `Send` closure cannot own a [`Reactor`], so it is given one.
    OnReactor(Box<dyn FnOnce(&Reactor) + Send>),
}

/// The calls that wait for one reactor.
pub(crate) struct ThreadCalls {
    /// Protects the list and the two facts that must change together with it.
    queue: Mutex<Queue>,
    waker: Waker,
    loop_thread: ThreadId,
    /// Never receives anything: disconnected, it says that threads must no longer wait for this loop.
    hang_up: Receiver<Infallible>,
}

#[derive(Default)]
struct Queue {
    calls: Vec<Call>,
    /// The loop sleeps, or is about to: the next call has to wake it.
    asleep: bool,
    /// The loop is gone.
    closed: bool,
}

/// The loop's own end. Dropping the sender releases the threads that wait in `block_on_from_thread`.
pub(crate) type HangUp = Sender<Infallible>;

/// A batch's memory is kept for the next one up to this many calls (24 bytes each).
const KEPT: usize = 1 << 14;

impl ThreadCalls {
    pub(crate) fn new(waker: Waker) -> (Arc<ThreadCalls>, HangUp) {
        let (hang_up, receiver) = bounded(0);
        let loop_thread = thread::current().id();
        let calls = ThreadCalls {
            queue: Mutex::default(),
            waker,
            loop_thread,
            hang_up: receiver,
        };
        (Arc::new(calls), hang_up)
    }

    fn push(&self, call: Call) -> Result<(), LoopGone> {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue); // first: the call may own anything, and its drop may call us
            drop(call);
            return Err(LoopGone);
        }
        queue.calls.push(call);
        let wake = mem::take(&mut queue.asleep);
        drop(queue);
        if wake && self.waker.wake().is_err() {
            // The call is in the list all the same; leave it to the next one to try again.
            self.queue.lock().asleep = true;
        }
        Ok(())
    }

    // ---- the loop's side

    /// Makes the calls that are there now; those that come meanwhile wait for the next turn.
    pub(crate) fn run_batch(&self, reactor: &Reactor) {
        let batch = mem::take(&mut self.queue.lock().calls);
        self.make(batch, reactor);
    }

    /// Closes the queue and makes the calls that are in it: what was accepted is made.
    pub(crate) fn run_last(&self, reactor: &Reactor) {
        let batch = self.shut();
        self.make(batch, reactor);
    }

    fn make(&self, mut batch: Vec<Call>, reactor: &Reactor) {
        let mut calls = batch.drain(..);
        // One guard for the whole batch; after a panic another for what is left of it.
        while calls.len() > 0 {
            contained("a call from a thread", || {
                calls.by_ref().for_each(|call| call.make(reactor))
            });
        }
        drop(calls);
        self.keep(batch);
    }

    /// Gives the emptied list back, so that its memory serves again.
    fn keep(&self, batch: Vec<Call>) {
        if batch.capacity() > 0 && batch.capacity() <= KEPT {
            let mut queue = self.queue.lock();
            if queue.calls.capacity() == 0 {
                queue.calls = batch;
            }
        }
    }

    /// Whether the loop may sleep. From here until [`wake_up`](Self::wake_up) the first call wakes it.
    pub(crate) fn go_to_sleep(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.asleep = queue.calls.is_empty();
        queue.asleep
    }

    pub(crate) fn wake_up(&self) {
        self.queue.lock().asleep = false;
    }

    /// Closes the queue if nothing waits in it: nothing can slip in between the look and the closing.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.closed |= queue.calls.is_empty();
        queue.closed
    }

    /// Closes the queue and drops the calls that are in it, for there is no loop to make them.
    pub(crate) fn close(&self) {
        for call in self.shut() {
            contained("dropping a call from a thread", || drop(call));
        }
    }

    fn shut(&self) -> Vec<Call> {
        let mut queue = self.queue.lock();
        queue.closed = true;
        mem::take(&mut queue.calls)
    }
}

impl Call {
    fn make(self, reactor: &Reactor) {
        match self {
            Call::Plain(call) => call(),
            Call::OnReactor(call) => call(reactor),
        }
    }
}

impl ReactorFromThreads for ThreadCalls {
    fn call_from_thread(&self, call: Box<dyn FnOnce() + Send>) -> Result<(), LoopGone> {
        self.push(Call::Plain(call))
    }
}

/// The handle by which other threads reach a reactor: `Clone`, `Send`, `Sync`. It does not keep the reactor alive.
///
/// From [`Reactor::handle`].
#[derive(Clone)]
pub struct ReactorHandle(pub(crate) Arc<ThreadCalls>);

impl ReactorHandle {
    /// Runs `call` on the reactor's thread, in its next turn, with the reactor as argument.
    ///
    /// The calls of one thread are made in the order in which it asks. It never blocks, and it may be called from the
    /// reactor's own thread too. A panic in `call` is reported (see [`errback_deferred::observe_unhandled`]) and the
    /// reactor goes on.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::Reactor;
    ///
    /// let reactor = Reactor::new()?;
    /// let handle = reactor.handle();
    /// let thread = std::thread::spawn(move || handle.call_from_thread(|reactor| reactor.stop().unwrap()));
    /// reactor.run()?;
    /// thread.join().unwrap()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`LoopGone`] when the reactor's `run` has returned or the reactor was dropped; `call` has been dropped.
    pub fn call_from_thread(
        &self,
        call: impl FnOnce(&Reactor) + Send + 'static,
    ) -> Result<(), LoopGone> {
        self.0.push(Call::OnReactor(Box::new(call)))
    }

    /// Runs `f` on the reactor's thread and waits for what it returns; Twisted's `blockingCallFromThread`.
    ///
    /// A Deferred that `f` returns is waited for too.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::Reactor;
    ///
    /// let reactor = Reactor::new()?;
    /// let handle = reactor.handle();
    /// let thread = std::thread::spawn(move || {
    ///     let running = handle.block_on_from_thread(|reactor| Ok(reactor.is_running()));
    ///     handle.call_from_thread(|reactor| reactor.stop().unwrap()).unwrap();
    ///     running
    /// });
    /// reactor.run()?;
    /// assert!(thread.join().unwrap()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The failure that `f` or its Deferred came to, a panic included. [`LoopGone`] when the reactor is no more, or when
    /// its shutdown comes to the `during` phase while this thread waits: from then on nothing promises an answer, and a
    /// thread of the pool that waited for one would keep the reactor from ending. `f` may still be run then.
    /// [`OnLoopThread`] when called from the reactor's own thread, which would wait for itself.
    pub fn block_on_from_thread<R>(
        &self,
        f: impl FnOnce(&Reactor) -> R + Send + 'static,
    ) -> Result<R::Value, Failure>
    where
        R: IntoOutcome + 'static,
        R::Value: Send + 'static,
    {
        if self.is_loop_thread() {
            return Err(OnLoopThread.into());
        }
        let (answer, answered) = unbounded();
        self.call_from_thread(move |reactor| {
            // Nobody listens any more when that thread was released by the shutdown.
            drop(maybe_deferred(|| f(reactor)).add_both(move |result| drop(answer.send(result))));
        })?;
        select! {
            recv(answered) -> result => result.unwrap_or(Err(LoopGone.into())),
            recv(self.0.hang_up) -> _ => answered.try_recv().unwrap_or(Err(LoopGone.into())),
        }
    }

    /// Whether this is the reactor's own thread.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let handle = errback_reactor::Reactor::new()?.handle();
    /// assert!(handle.is_loop_thread());
    /// assert!(!std::thread::spawn(move || handle.is_loop_thread()).join().unwrap());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_loop_thread(&self) -> bool {
        thread::current().id() == self.0.loop_thread
    }
}

impl ReactorFromThreads for ReactorHandle {
    fn call_from_thread(&self, call: Box<dyn FnOnce() + Send>) -> Result<(), LoopGone> {
        self.0.call_from_thread(call)
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.0.queue.lock();
        f.debug_struct("ReactorHandle")
            .field("waiting", &queue.calls.len())
            .field("gone", &queue.closed)
            .finish()
    }
}

/// `block_on_from_thread` was called from the reactor's own thread, which would have waited for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnLoopThread;

impl fmt::Display for OnLoopThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reactor's own thread cannot wait for the reactor; use the Deferred")
    }
}

impl std::error::Error for OnLoopThread {}

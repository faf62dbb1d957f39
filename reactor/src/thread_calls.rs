//! Calls from other threads: the only way into a reactor that is not its own thread.
//!
//! One list under one lock, swapped out whole by the loop, so that calls come in the order in which they were asked for.
//! Whether something is in it, and whether the loop sleeps, are two atomic flags beside it: the loop looks at the list
//! only when there is something, and only the first call after it has gone to sleep wakes it. While it is awake a call
//! costs no system call at all, however many threads make them. The list has no bound, because a reactor's own thread may
//! call too and must not wait for itself.

use std::convert::Infallible;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread::{self, ThreadId};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use errback_deferred::{Failure, IntoOutcome, maybe_deferred};
use errback_deferred::{LoopGone, ReactorFromThreads};
use mio::Waker;
use parking_lot::Mutex;

use crate::Reactor;
use crate::call_list::CallList;

/// The calls that wait for one reactor.
pub(crate) struct ThreadCalls {
    /// Protects the list, and that nothing is added to it after the end.
    queue: Mutex<Queue>,
    flags: Flags,
    waker: Waker,
    loop_thread: ThreadId,
    /// Never receives anything: disconnected, it says that threads must no longer wait for this loop.
    hang_up: Receiver<Infallible>,
}

#[derive(Default)]
struct Queue {
    calls: CallList,
    /// The loop is gone.
    closed: bool,
}

/// Who adds a call sets `waiting` and then looks at `asleep`; the loop sets `asleep` and then looks at `waiting`. Each in
/// the one order that all threads see (`SeqCst`), so that at least one of the two sees the other.
///
/// On a cache line of their own: the loop looks at them again and again while it is awake for nothing.
#[derive(Default)]
#[repr(align(64))]
struct Flags {
    /// There are calls in the list. Changed under the lock.
    waiting: AtomicBool,
    /// The loop sleeps, or is about to: the next call has to wake it.
    asleep: AtomicBool,
}

/// The loop's own end. Dropping the sender releases the threads that wait in `block_on_from_thread`.
pub(crate) type HangUp = Sender<Infallible>;

impl ThreadCalls {
    pub(crate) fn new(waker: Waker) -> (Arc<ThreadCalls>, HangUp) {
        let (hang_up, receiver) = bounded(0);
        let loop_thread = thread::current().id();
        let calls = ThreadCalls {
            queue: Mutex::default(),
            flags: Flags::default(),
            waker,
            loop_thread,
            hang_up: receiver,
        };
        (Arc::new(calls), hang_up)
    }

    pub(crate) fn push<F>(&self, call: F) -> Result<(), LoopGone>
    where
        F: FnOnce(&Reactor) + Send + 'static,
    {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue); // first: the call may own anything, and its drop may call us
            drop(call);
            return Err(LoopGone);
        }
        queue.calls.push(call);
        if !self.flags.waiting.load(Relaxed) {
            self.flags.waiting.store(true, SeqCst);
        } // else who set it looks, or has looked, whether the loop is asleep
        let wake = self.flags.asleep.load(SeqCst) && self.flags.asleep.swap(false, SeqCst);
        drop(queue);
        if wake && self.waker.wake().is_err() {
            // The call is in the list all the same; leave it to the next one to try again.
            self.flags.asleep.store(true, SeqCst);
        }
        Ok(())
    }

    // ---- the loop's side

    /// Whether a call is there.
    pub(crate) fn is_waiting(&self) -> bool {
        self.flags.waiting.load(Relaxed)
    }

    /// Makes the calls that are there now; those that come meanwhile wait for the next turn.
    pub(crate) fn run_batch(&self, reactor: &Reactor) {
        if self.is_waiting() {
            let batch = self.take(&mut self.queue.lock());
            self.make(batch, reactor);
        }
    }

    /// Closes the queue and makes the calls that are in it: what was accepted is made.
    pub(crate) fn run_last(&self, reactor: &Reactor) {
        let batch = self.shut();
        self.make(batch, reactor);
    }

    fn make(&self, mut batch: CallList, reactor: &Reactor) {
        batch.make(reactor);
        self.queue.lock().calls.reuse(batch);
    }

    fn take(&self, queue: &mut Queue) -> CallList {
        self.flags.waiting.store(false, SeqCst);
        mem::take(&mut queue.calls)
    }

    /// Whether the loop may sleep. From here until [`wake_up`](Self::wake_up) the first call wakes it.
    pub(crate) fn go_to_sleep(&self) -> bool {
        self.flags.asleep.store(true, SeqCst);
        !self.flags.waiting.load(SeqCst)
    }

    pub(crate) fn wake_up(&self) {
        self.flags.asleep.store(false, SeqCst);
    }

    /// Closes the queue if nothing waits in it: nothing can slip in between the look and the closing.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.closed |= !self.is_waiting();
        queue.closed
    }

    /// Closes the queue and drops the calls that are in it, for there is no loop to make them.
    pub(crate) fn close(&self) {
        self.shut().discard();
    }

    fn shut(&self) -> CallList {
        let mut queue = self.queue.lock();
        queue.closed = true;
        self.take(&mut queue)
    }
}

impl ReactorFromThreads for ThreadCalls {
    fn call_from_thread(&self, call: Box<dyn FnOnce() + Send>) -> Result<(), LoopGone> {
        self.push(move |_| call())
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
        self.0.push(call)
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

//! Deferreds and futures: await a Deferred, write callbacks as a coroutine, make a Deferred of any future.
//!
//! [`ensure_deferred`] is Twisted's `inlineCallbacks`. Its coroutine starts at once and is polled by nobody: each Deferred that
//! it awaits carries, among its levels, the way back into the coroutine, so that it resumes inside the call that fires that
//! Deferred, in the same place in the order as a callback would run. Only wake-ups from foreign futures, which may come from
//! any thread at any time, go through the event loop.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};

use crate::event_loop::{ReactorFromThreads, current_loop};
use crate::node::{Canceller, Node, NodeRef, Step, WeakNode};
use crate::remote::{Place, Table};
use crate::store::Entry;
use crate::{CancelledError, Deferred, Failure, IntoOutcome, Outcome, contain};

// ---------------------------------------------------------------- awaiting a Deferred

/// Awaiting a Deferred takes its result.
///
/// In a coroutine of [`ensure_deferred`] the code after the `await` runs inside the firing of the Deferred. On any other
/// single-threaded executor (tokio's `LocalSet`, smol's `LocalExecutor`) the task is woken. Dropping the future cancels
/// nothing.
///
/// ```
/// use errback_deferred::{ensure_deferred, Deferred, Failure};
/// let (resolver, d) = Deferred::new();
/// let sum = ensure_deferred(async move {
///     let n: i64 = d.await?;
///     Ok(n + 1)
/// });
/// resolver.callback(41)?;
/// # sum.add_callback(|n| assert_eq!(n, 42));
/// # Ok::<(), Failure>(())
/// ```
impl<T: 'static> Future for Deferred<T> {
    type Output = Result<T, Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.node.poll_result().or_else(|| self.node.visible_copy()) {
            return Poll::Ready(result);
        }
        wake_when_done(&self.node, context);
        Poll::Pending
    }
}

/// Leaves word with `node` whom to tell. A later word replaces an earlier one: futures are polled again at will.
fn wake_when_done(node: &NodeRef, context: &Context<'_>) {
    let wake: Box<dyn FnOnce() -> Option<NodeRef>> = match Running::polled_with(context.waker()) {
        Some(coroutine) => {
            coroutine.awaits(node.downgrade());
            Box::new(move || coroutine.resume())
        }
        None => {
            let waker = context.waker().clone();
            Box::new(move || {
                waker.wake();
                None
            })
        }
    };
    let (before, already) = node.extra(|extra| {
        (
            extra.wake.replace(wake),
            std::mem::replace(&mut extra.wake_level, true),
        )
    });
    drop(before);
    if !already {
        node.add(WakeLevel);
    }
}

/// The level that tells whoever awaits. It leaves the result where it is, for them to take.
struct WakeLevel;

impl Entry<Node> for WakeLevel {
    type Output = Step;
    fn run(self, node: &Node) -> Step {
        let wake = node.extra(|extra| {
            extra.wake_level = false;
            extra.waking = true;
            extra.wake.take()
        });
        let finished = wake.and_then(|wake| wake());
        node.extra(|extra| extra.waking = false);
        match finished {
            Some(finished) => Step::Resumed(finished),
            None => Step::Done,
        }
    }
}

// ---------------------------------------------------------------- coroutines

/// Runs an async block as a coroutine over Deferreds; the Deferred that it returns has the block's result.
///
/// It is Twisted's `ensureDeferred` and `inlineCallbacks`: the block starts at once, runs up to the first Deferred that has no
/// result yet, and goes on inside the firing of that one. It needs no executor.
///
/// ```
/// use errback_deferred::{ensure_deferred, CancelledError, Deferred};
/// let (_resolver, answer) = Deferred::<i64>::new();
/// let d = ensure_deferred(async move {
///     match answer.await {
///         Ok(n) => Ok(n),
///         Err(failure) => failure.trap::<CancelledError>().map(|_| -1), // the cancel arrives here
///     }
/// });
/// d.cancel();
/// # d.add_callback(|n| assert_eq!(n, -1));
/// ```
///
/// Cancelling cancels the Deferred that is awaited just then, whose failure the block may catch; if it awaits something else,
/// the block is dropped and the Deferred fails with [`CancelledError`]. A panic in the block becomes its failure.
///
/// Futures that are not Deferreds are woken through the event loop that runs on this thread. Where none is known, the Deferred
/// fails with [`NoEventLoop`]; see [`ensure_deferred_on`].
#[track_caller]
#[doc(alias = "inlineCallbacks")]
#[doc(alias = "returnValue")]
#[doc(alias = "ensureDeferred")]
pub fn ensure_deferred<R: IntoOutcome>(
    body: impl Future<Output = R> + 'static,
) -> Deferred<R::Value> {
    start(current_loop(), body)
}

/// As [`ensure_deferred`], on a loop that this thread does not know by itself.
#[track_caller]
pub fn ensure_deferred_on<R: IntoOutcome>(
    event_loop: Arc<dyn ReactorFromThreads>,
    body: impl Future<Output = R> + 'static,
) -> Deferred<R::Value> {
    start(Some(event_loop), body)
}

/// A Deferred with the output of any future, which is polled by this thread's event loop.
///
/// ```
/// use errback_deferred::from_future;
/// from_future(std::future::ready(3)).add_callback(|n| assert_eq!(n, 3));
/// ```
///
/// Cancelling drops the future.
#[track_caller]
pub fn from_future<T: 'static>(future: impl Future<Output = T> + 'static) -> Deferred<T> {
    ensure_deferred(async move { Ok(future.await) })
}

#[track_caller]
fn start<R: IntoOutcome>(
    home: Option<Arc<dyn ReactorFromThreads>>,
    body: impl Future<Output = R> + 'static,
) -> Deferred<R::Value> {
    let node = NodeRef::unfired();
    let coroutine = Rc::new(Coroutine {
        body: Cell::new(Some(Box::pin(async move { body.await.into_outcome() }))),
        result: Cell::new(Some(node.clone())),
        awaited: RefCell::new(Vec::new()),
        running: Cell::new(false),
        again: Cell::new(false),
        home,
    });
    // Weak: what the coroutine waits for owns the coroutine, and the coroutine owns its result.
    let weak = Rc::downgrade(&coroutine);
    node.set_canceller(Canceller::Instead(Rc::new(move |node| {
        if let Some(coroutine) = weak.upgrade() {
            coroutine.cancel(node);
        }
    })));
    let finished = coroutine.resume();
    debug_assert!(
        finished
            .as_ref()
            .is_none_or(|f| f.address() == node.address())
    );
    Deferred::of(node)
}

type Body<T> = Pin<Box<dyn Future<Output = Outcome<T>>>>;

struct Coroutine<T> {
    /// Gone while it runs, and when it has ended.
    body: Cell<Option<Body<T>>>,
    /// The Deferred that gets its result; gone when it has it.
    result: Cell<Option<NodeRef>>,
    /// The Deferreds that it has awaited in vain since it was resumed.
    awaited: RefCell<Vec<WeakNode>>,
    running: Cell<bool>,
    /// Something that it awaits came while it was running.
    again: Cell<bool>,
    home: Option<Arc<dyn ReactorFromThreads>>,
}

/// A coroutine, whatever its result.
trait Resume {
    /// Runs it until it waits or ends. Returns its Deferred when it has ended, with the result in it and its levels still to
    /// be run: by the loop that we are called from, so that coroutines that await each other do not recurse.
    fn resume(self: Rc<Self>) -> Option<NodeRef>;
    /// It awaits this Deferred.
    fn awaits(&self, node: WeakNode);
}

impl<T: 'static> Resume for Coroutine<T> {
    fn resume(self: Rc<Self>) -> Option<NodeRef> {
        if self.running.get() {
            self.again.set(true);
            return None;
        }
        let mut body = self.body.take()?;
        self.running.set(true);
        let outcome = loop {
            self.again.set(false);
            self.awaited.borrow_mut().clear();
            let foreign = Arc::new(Foreign::of(self.clone()));
            let waker = Waker::from(foreign.clone());
            let polled = Running::with(self.clone(), waker.clone(), || {
                contain(|| body.as_mut().poll(&mut Context::from_waker(&waker)))
            });
            drop(waker);
            match polled {
                Ok(Poll::Ready(outcome)) => break outcome,
                Err(panic) => break Outcome::Now(Err(panic.into())),
                Ok(Poll::Pending) if self.again.get() => {}
                Ok(Poll::Pending) => {
                    let unreachable = self.home.is_none() && self.awaited.borrow().is_empty();
                    if unreachable {
                        break Outcome::Now(Err(NoEventLoop.into()));
                    }
                    self.running.set(false);
                    self.body.set(Some(body));
                    return None;
                }
            }
        };
        drop(body);
        self.running.set(false);
        self.end(outcome)
    }

    fn awaits(&self, node: WeakNode) {
        self.awaited.borrow_mut().push(node);
    }
}

impl<T: 'static> Coroutine<T> {
    fn end(&self, outcome: Outcome<T>) -> Option<NodeRef> {
        let node = self.result.take()?;
        let result = match outcome {
            Outcome::Now(result) => result,
            Outcome::Later(d) => {
                d.add_both(move |result| drop(crate::deferred::fire(&node, result)));
                return None;
            }
        };
        match node.accept(result) {
            Ok(true) => Some(node),
            _ => None,
        }
    }

    /// Cancels what it awaits. Whatever the block makes of that, the callbacks of its own Deferred run afterwards. While its
    /// own Deferred is paused, so is the cancel: in Twisted it goes through that Deferred's callbacks.
    fn cancel(self: Rc<Self>, node: &NodeRef) {
        if node.paused() {
            let coroutine = self.clone();
            let later = Box::new(move |node: &NodeRef| coroutine.cancel(node));
            let again = node.extra(|extra| extra.when_unpaused.replace(later));
            return drop(again);
        }
        let awaited = self.awaited.borrow().clone();
        if !awaited.is_empty() {
            node.pause();
            awaited
                .iter()
                .filter_map(WeakNode::upgrade)
                .for_each(|inner| inner.cancel());
            return node.unpause();
        }
        if let Some(body) = self.body.take() {
            drop(body);
            if let Some(node) = self.end(Outcome::Now(Err(CancelledError.into()))) {
                crate::node::run(&node);
            }
        }
    }
}

impl<T> Drop for Coroutine<T> {
    /// Nothing can resume it any more: its Deferred fails as if a resolver had been dropped.
    fn drop(&mut self) {
        if let Some(node) = self.result.take() {
            node.abandon();
        }
    }
}

/// The coroutine that is being polled on this thread, and the waker that it is polled with.
struct Running {
    coroutine: Rc<dyn Resume>,
    waker: Waker,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

impl Running {
    fn with<R>(coroutine: Rc<dyn Resume>, waker: Waker, f: impl FnOnce() -> R) -> R {
        let outer = RUNNING.replace(Some(Running { coroutine, waker }));
        let result = f();
        drop(RUNNING.replace(outer));
        result
    }

    /// The running coroutine, if `waker` is its own: then a Deferred can lead straight back into it. A combinator that polls
    /// with a waker of its own has to be woken by that.
    fn polled_with(waker: &Waker) -> Option<Rc<dyn Resume>> {
        RUNNING.with_borrow(|running| {
            let running = running.as_ref()?;
            running
                .waker
                .will_wake(waker)
                .then(|| running.coroutine.clone())
        })
    }
}

thread_local! {
    /// The coroutines that foreign futures may wake.
    static PARKED: RefCell<Table<Rc<dyn Resume>>> = const { RefCell::new(Table::new()) };
}

fn unpark(place: Place) -> Option<Rc<dyn Resume>> {
    // The table is gone when the thread ends, and what lay in it with it.
    PARKED
        .try_with(|parked| parked.borrow_mut().take(place))
        .ok()?
}

/// What a foreign future wakes. It keeps the coroutine alive, in a table of the thread that owns it.
struct Foreign {
    home: Option<Arc<dyn ReactorFromThreads>>,
    thread: ThreadId,
    place: Place,
}

impl Foreign {
    fn of<T: 'static>(coroutine: Rc<Coroutine<T>>) -> Foreign {
        let home = coroutine.home.clone();
        let coroutine: Rc<dyn Resume> = coroutine;
        Foreign {
            home,
            thread: thread::current().id(),
            place: PARKED.with_borrow_mut(|parked| parked.put(coroutine)),
        }
    }
}

impl Wake for Foreign {
    fn wake(self: Arc<Self>) {
        if let Some(home) = self.home.clone() {
            // The coroutine is looked up by its place, which is ours as long as `self` lives: it travels along.
            let _ = home.call_from_thread(Box::new(move || {
                let coroutine = PARKED.with_borrow(|parked| parked.get(self.place).cloned());
                if let Some(finished) = coroutine.and_then(|coroutine| coroutine.resume()) {
                    crate::node::run(&finished);
                }
            }));
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let place = self.place;
        if thread::current().id() == self.thread {
            drop(unpark(place));
        } else if let Some(home) = &self.home {
            let _ = home.call_from_thread(Box::new(move || drop(unpark(place))));
        }
    }
}

/// A coroutine awaited something that is not a Deferred on a thread where no event loop is known that could wake it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoEventLoop;

impl fmt::Display for NoEventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a coroutine awaits a future that is not a Deferred, and no event loop runs on this thread to wake it: \
             run it inside one, or name one with ensure_deferred_on",
        )
    }
}

impl std::error::Error for NoEventLoop {}

// ---------------------------------------------------------------- awaiting on another thread

/// A Deferred's result as a future that may cross threads; see [`Deferred::into_send_future`].
#[must_use = "a future does nothing until it is awaited"]
pub struct SendFuture<T> {
    shared: Arc<Mutex<Awaited<T>>>,
}

enum Awaited<T> {
    Pending(Option<Waker>),
    Here(Result<T, Failure>),
    Taken,
}

impl<T: Send + 'static> Deferred<T> {
    /// The result as a future that any executor may poll on any thread. The Deferred itself stays here.
    ///
    /// ```
    /// use errback_deferred::succeed;
    /// fn spawn<F: Future + Send + 'static>(_: F) {}
    /// spawn(succeed(1).into_send_future());
    /// ```
    ///
    /// Dropping it cancels nothing.
    pub fn into_send_future(self) -> SendFuture<T> {
        let shared = Arc::new(Mutex::new(Awaited::Pending(None)));
        let producer = shared.clone();
        self.add_both(move |result| {
            let mut awaited = producer
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            let before = std::mem::replace(&mut *awaited, Awaited::Here(result));
            drop(awaited);
            if let Awaited::Pending(Some(waker)) = before {
                waker.wake();
            }
        });
        SendFuture { shared }
    }
}

impl<T> Future for SendFuture<T> {
    type Output = Result<T, Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut awaited = self
            .shared
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match std::mem::replace(&mut *awaited, Awaited::Taken) {
            Awaited::Here(result) => Poll::Ready(result),
            Awaited::Taken => Poll::Ready(Err(crate::ResultTaken.into())),
            Awaited::Pending(_) => {
                *awaited = Awaited::Pending(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl<T> fmt::Debug for SendFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<SendFuture>")
    }
}

//! What an event loop offers to Deferreds: time, calls from other threads, and shutdown triggers.
//!
//! Small traits rather than one loop, so that the same Deferreds, timeouts and process pools run on our reactor, on
//! somebody else's runtime, and on a [`Clock`](crate::Clock) that a test turns by hand. They are object safe and take
//! boxed closures: a loop is chosen at run time, and what it is asked to do is rare beside what a Deferred does.
//! Twisted's `IReactorTime`, `IReactorFromThreads` and `IReactorCore` are the models.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::Deferred;
pub use crate::store::SmallCall;

/// Calls to be made later, on the loop's own thread.
pub trait ReactorTime {
    /// The time on this loop's clock, from an origin of its own. It never goes back (Twisted's `seconds`).
    fn seconds(&self) -> Duration;

    /// Calls `call` once, `delay` from now. Calls due at the same time run in the order in which they were asked for.
    #[doc(alias = "callLater")]
    fn call_later(&self, delay: Duration, call: Box<dyn FnOnce()>) -> DelayedCall;
}

/// So that a loop chosen at run time can be handed to whoever keeps one: a `LoopingCall`, a `Cooperator`.
impl<R: ReactorTime + ?Sized> ReactorTime for Rc<R> {
    fn seconds(&self) -> Duration {
        (**self).seconds()
    }

    fn call_later(&self, delay: Duration, call: Box<dyn FnOnce()>) -> DelayedCall {
        (**self).call_later(delay, call)
    }
}

/// What other threads may ask of a loop: the only way in that is not its own thread.
pub trait ReactorFromThreads: Send + Sync {
    /// Runs `call` on the loop's thread, soon, in the order in which one thread asks. Wakes the loop; never blocks.
    ///
    /// # Errors
    /// [`LoopGone`] when the loop is no more and will not run anything again; `call` has then been dropped.
    #[doc(alias = "callFromThread")]
    fn call_from_thread(&self, call: Box<dyn FnOnce() + Send>) -> Result<(), LoopGone>;
}

/// A loop with an end, and things to do before it ends.
pub trait ReactorCore: ReactorTime {
    /// The handle by which other threads reach this loop.
    #[allow(clippy::wrong_self_convention)] // not a conversion: it is the loop as seen from threads
    fn from_threads(&self) -> Arc<dyn ReactorFromThreads>;

    /// Runs `trigger` when the loop starts or shuts down. In the [`Phase::Before`] phase of a shutdown the loop waits
    /// for a Deferred that a trigger returns before it goes on to the next phase.
    #[doc(alias = "addSystemEventTrigger")]
    fn add_system_event_trigger(
        &self,
        phase: Phase,
        event: SystemEvent,
        trigger: Box<dyn FnOnce() -> Option<Deferred<()>>>,
    ) -> TriggerId;

    /// Takes a trigger back. Returns whether it was still there.
    fn remove_system_event_trigger(&self, id: TriggerId) -> bool;

    /// Has the loop ask `poll` when it would otherwise sleep, for as long as somebody holds the `Rc`. Returns whether
    /// this loop ever does so; unless it says otherwise, it does not.
    fn add_busy_poll(&self, poll: Weak<dyn BusyPoll>) -> bool {
        drop(poll);
        false
    }
}

/// Something that a loop can look at while it is awake and has nothing to do.
///
/// Putting a thread to sleep and waking it costs more than a short answer takes to come. So a loop may *spin*: look for
/// some microseconds before it sleeps, in turns at its own queues and at these. Whether and how long it does so is its own
/// affair: it stops when it finds that this does not pay, and may never look at all. So what is looked at in this way must
/// wake the loop by other means, but for the time of the look: that ends with [`done`](Self::done).
///
/// ```
/// use errback_deferred::{BusyPoll, ReactorCore};
/// use std::rc::Rc;
///
/// struct Answers;
///
/// impl BusyPoll for Answers {
///     fn poll(&self) -> bool {
///         // … read without blocking, and fire the Deferreds of the answers that are there …
///         false
///     }
///
///     fn done(&self) {
///         // … leave the waiting to a thread again …
///     }
/// }
///
/// fn watch(event_loop: &impl ReactorCore) -> Rc<dyn BusyPoll> {
///     let answers: Rc<dyn BusyPoll> = Rc::new(Answers);
///     let _spins = event_loop.add_busy_poll(Rc::downgrade(&answers));
///     answers // asked until it is dropped
/// }
/// ```
pub trait BusyPoll {
    /// Looks for what is awaited, deals with it, and returns whether there was something. Called on the loop's thread,
    /// again and again: it has to be quick when there is nothing, and must not block. It may do anything that another
    /// callback of the loop may do.
    fn poll(&self) -> bool;

    /// The loop has ceased to look, because there is something to do or because it is going to sleep: from here on, what is
    /// awaited must wake it.
    ///
    /// Called on the loop's thread, after any number of polls. A call from a thread that is made in here is not missed.
    fn done(&self) {}
}

thread_local! {
    static CURRENT: RefCell<Vec<(u64, Arc<dyn ReactorFromThreads>)>> = const { RefCell::new(Vec::new()) };
}

/// For those who write event loops: makes `event_loop` the one that runs on this thread, until the guard is dropped.
///
/// Coroutines that await something else than Deferreds are woken through it (see
/// [`ensure_deferred`](crate::ensure_deferred)).
#[must_use = "the loop is known only as long as this guard lives"]
pub fn enter_loop(event_loop: Arc<dyn ReactorFromThreads>) -> EnteredLoop {
    let id = CURRENT.with_borrow_mut(|current| {
        let id = current.last().map_or(0, |(id, _)| id + 1);
        current.push((id, event_loop));
        id
    });
    EnteredLoop {
        id,
        _this_thread: PhantomData,
    }
}

/// The event loop that runs on this thread, if one has said so.
pub fn current_loop() -> Option<Arc<dyn ReactorFromThreads>> {
    CURRENT.with_borrow(|current| current.last().map(|(_, event_loop)| event_loop.clone()))
}

/// As long as it lives, this thread has an event loop; see [`enter_loop`].
#[derive(Debug)]
pub struct EnteredLoop {
    id: u64,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for EnteredLoop {
    fn drop(&mut self) {
        let _ = CURRENT.try_with(|current| current.borrow_mut().retain(|(id, _)| *id != self.id));
    }
}

/// When a trigger runs, relative to its event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// First; the event waits for the Deferreds that these triggers return.
    Before,
    /// The event itself.
    During,
    /// Last.
    After,
}

/// What a trigger waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SystemEvent {
    /// The loop begins to run.
    Startup,
    /// The loop has been asked to stop.
    Shutdown,
}

/// Names a trigger, to take it back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TriggerId(pub u64);

/// The loop that a call was meant for is no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoopGone;

impl fmt::Display for LoopGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the event loop is gone and runs nothing any more")
    }
}

impl std::error::Error for LoopGone {}

/// A call that a loop will make later; Twisted's `IDelayedCall`.
///
/// Dropping it changes nothing: the call is made all the same.
#[derive(Clone)]
pub struct DelayedCall {
    calls: Rc<dyn DelayedCalls>,
    id: u64,
}

/// How a loop answers for the [`DelayedCall`]s that it gave out; `id` is what it passed to [`DelayedCall::new`].
pub trait DelayedCalls {
    /// Takes the call back.
    fn cancel(&self, id: u64) -> Result<(), NotActive>;
    /// Moves the call to `delay` from now.
    fn reset(&self, id: u64, delay: Duration) -> Result<(), NotActive>;
    /// Moves the call to `delay` after the time for which it was due.
    fn delay(&self, id: u64, delay: Duration) -> Result<(), NotActive>;
    /// When the call is due, on the loop's clock; or why it never will be again.
    fn due(&self, id: u64) -> Result<Duration, NotActive>;
}

impl DelayedCall {
    /// For those who write event loops: the call that `calls` knows by `id`.
    pub fn new(calls: Rc<dyn DelayedCalls>, id: u64) -> Self {
        DelayedCall { calls, id }
    }

    /// Takes the call back: it will not be made.
    ///
    /// # Errors
    /// [`NotActive`] when it was made or taken back already.
    pub fn cancel(&self) -> Result<(), NotActive> {
        self.calls.cancel(self.id)
    }

    /// Moves the call to `delay` from now.
    ///
    /// # Errors
    /// [`NotActive`] when it was made or taken back already.
    pub fn reset(&self, delay: Duration) -> Result<(), NotActive> {
        self.calls.reset(self.id, delay)
    }

    /// Moves the call to `delay` after the time for which it was due.
    ///
    /// # Errors
    /// [`NotActive`] when it was made or taken back already.
    pub fn delay(&self, delay: Duration) -> Result<(), NotActive> {
        self.calls.delay(self.id, delay)
    }

    /// Whether the call is still to be made.
    pub fn active(&self) -> bool {
        self.calls.due(self.id).is_ok()
    }

    /// When the call is due, on its loop's clock (Twisted's `getTime`).
    ///
    /// # Errors
    /// [`NotActive`] when it was made or taken back already.
    pub fn get_time(&self) -> Result<Duration, NotActive> {
        self.calls.due(self.id)
    }
}

impl fmt::Debug for DelayedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get_time() {
            Ok(due) => write!(f, "<DelayedCall due at {due:?}>"),
            Err(why) => write!(f, "<DelayedCall: {why}>"),
        }
    }
}

/// Why a [`DelayedCall`] can no longer be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotActive {
    /// The call has been made (Twisted's `AlreadyCalled`).
    AlreadyCalled,
    /// The call was taken back (Twisted's `AlreadyCancelled`).
    AlreadyCancelled,
}

impl fmt::Display for NotActive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotActive::AlreadyCalled => "this delayed call has already been made",
            NotActive::AlreadyCancelled => "this delayed call was cancelled",
        })
    }
}

impl std::error::Error for NotActive {}

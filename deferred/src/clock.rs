//! A clock that one advances by hand: Twisted's `task.Clock`.
//!
//! It is the test double of an event loop's time, shipped beside the real thing, so that a test of timeouts neither waits
//! nor guesses.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::event_loop::{DelayedCall, DelayedCalls, NotActive, ReactorTime};

/// Time that passes when it is told to.
///
/// ```
/// use errback_deferred::{Clock, ReactorTime};
/// use std::{cell::Cell, rc::Rc, time::Duration};
///
/// let clock = Clock::new();
/// let rung = Rc::new(Cell::new(false));
/// let bell = rung.clone();
/// clock.call_later(Duration::from_secs(3), Box::new(move || bell.set(true)));
/// clock.advance(Duration::from_secs(2));
/// assert!(!rung.get());
/// clock.advance(Duration::from_secs(1));
/// assert!(rung.get());
/// ```
#[derive(Clone, Default)]
pub struct Clock {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    now: Cell<Duration>,
    calls: RefCell<Calls>,
}

/// When a call is due, and its turn among those due at the same time.
type Due = (Duration, u64);

type Call = Box<dyn FnOnce()>;

#[derive(Default)]
struct Calls {
    next_id: u64,
    next_order: u64,
    /// By time due, then by when it was asked for that time.
    queue: BTreeMap<Due, (u64, Call)>,
    /// Where an id stands in the queue, or how it ended.
    states: HashMap<u64, Result<Due, NotActive>>,
}

impl Clock {
    /// A clock at zero.
    pub fn new() -> Self {
        Clock::default()
    }

    /// Lets `by` pass and makes all calls that are due by then, in order.
    ///
    /// As in Twisted, the time is set first: a call sees the end of the advance, whenever it was due.
    pub fn advance(&self, by: Duration) {
        self.inner.now.set(self.inner.now.get().saturating_add(by));
        while let Some(call) = self.inner.next_due() {
            call();
        }
    }

    /// Advances by each of these in turn.
    pub fn pump(&self, steps: impl IntoIterator<Item = Duration>) {
        steps.into_iter().for_each(|by| self.advance(by));
    }

    /// When the calls that are still to be made are due, in order.
    pub fn delayed_calls(&self) -> Vec<Duration> {
        self.inner
            .calls
            .borrow()
            .queue
            .keys()
            .map(|(due, _)| *due)
            .collect()
    }
}

impl Inner {
    fn next_due(&self) -> Option<Call> {
        let mut calls = self.calls.borrow_mut();
        let first = calls.queue.first_entry()?;
        if first.key().0 > self.now.get() {
            return None;
        }
        let (id, call) = first.remove();
        calls.states.insert(id, Err(NotActive::AlreadyCalled));
        Some(call)
    }

    fn reschedule(&self, id: u64, due: impl FnOnce(Duration) -> Duration) -> Result<(), NotActive> {
        let mut calls = self.calls.borrow_mut();
        let (before, order) = calls.state(id)?;
        let after = (due(before), order);
        let entry = calls
            .queue
            .remove(&(before, order))
            .expect("an active call is in the queue");
        calls.queue.insert(after, entry);
        calls.states.insert(id, Ok(after));
        Ok(())
    }
}

impl Calls {
    fn state(&self, id: u64) -> Result<Due, NotActive> {
        self.states
            .get(&id)
            .copied()
            .unwrap_or(Err(NotActive::AlreadyCalled))
    }
}

impl ReactorTime for Clock {
    fn seconds(&self) -> Duration {
        self.inner.now.get()
    }

    fn call_later(&self, delay: Duration, call: Box<dyn FnOnce()>) -> DelayedCall {
        let due = self.seconds().saturating_add(delay);
        let mut calls = self.inner.calls.borrow_mut();
        let (id, order) = (calls.next_id, calls.next_order);
        calls.next_id += 1;
        calls.next_order += 1;
        calls.queue.insert((due, order), (id, call));
        calls.states.insert(id, Ok((due, order)));
        DelayedCall::new(self.inner.clone(), id)
    }
}

impl DelayedCalls for Inner {
    fn cancel(&self, id: u64) -> Result<(), NotActive> {
        let mut calls = self.calls.borrow_mut();
        let at = calls.state(id)?;
        let call = calls.queue.remove(&at);
        calls.states.insert(id, Err(NotActive::AlreadyCancelled));
        drop(calls);
        drop(call); // it may own anything
        Ok(())
    }

    fn reset(&self, id: u64, delay: Duration) -> Result<(), NotActive> {
        let now = self.now.get();
        self.reschedule(id, |_| now.saturating_add(delay))
    }

    fn delay(&self, id: u64, delay: Duration) -> Result<(), NotActive> {
        self.reschedule(id, |due| due.saturating_add(delay))
    }

    fn due(&self, id: u64) -> Result<Duration, NotActive> {
        self.calls.borrow().state(id).map(|(due, _)| due)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<Clock at {:?}, {} calls>",
            self.inner.now.get(),
            self.inner.calls.borrow().queue.len()
        )
    }
}

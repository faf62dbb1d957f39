//! A clock that one advances by hand: Twisted's `task.Clock`.
//!
//! It is the test double of an event loop's time, shipped beside the real thing, so that a test of timeouts neither waits
//! nor guesses.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::event_loop::{DelayedCall, DelayedCalls, NotActive, ReactorTime};

/// Time that passes when it is told to.
///
/// ```
/// use errback_deferred::Clock;
/// use std::{cell::Cell, rc::Rc, time::Duration};
///
/// let clock = Clock::new();
/// let rung = Rc::new(Cell::new(false));
/// let bell = rung.clone();
/// clock.call_later(Duration::from_secs(3), move || bell.set(true));
/// clock.advance(Duration::from_secs(2));
/// assert!(!rung.get());
/// clock.advance(Duration::from_secs(1));
/// assert!(rung.get());
/// ```
#[derive(Clone)]
pub struct Clock {
    inner: Rc<Inner>,
}

struct Inner {
    now: Cell<Duration>,
    calls: RefCell<Calls>,
    /// What the DelayedCalls hold: a call may own the DelayedCall that is to cancel it, which must not keep all this alive.
    handle: Rc<Handle>,
}

struct Handle(Weak<Inner>);

type Call = Box<dyn FnOnce()>;

#[derive(Default)]
struct Calls {
    next_id: u64,
    next_turn: u64,
    queue: BTreeMap<Turn, (u64, Call)>,
    /// Where an id stands in the queue, or how it ended.
    states: HashMap<u64, Result<Place, NotActive>>,
    /// Whether calls have been moved to other times, so that the queue is to be sorted before it is used.
    moved: bool,
}

/// The order of the queue: by the time due, then as they stood before.
type Turn = (Duration, u64);

#[derive(Clone, Copy)]
struct Place {
    turn: Turn,
    /// When the call is due; it differs from the time in `turn` until the queue has been sorted again.
    due: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

impl Clock {
    /// A clock at zero.
    pub fn new() -> Self {
        Clock {
            inner: Rc::new_cyclic(|inner| Inner {
                now: Cell::new(Duration::ZERO),
                calls: RefCell::default(),
                handle: Rc::new(Handle(inner.clone())),
            }),
        }
    }

    /// Calls `call` once, when `delay` has passed; as [`ReactorTime::call_later`], without the box.
    #[doc(alias = "callLater")]
    pub fn call_later(&self, delay: Duration, call: impl FnOnce() + 'static) -> DelayedCall {
        ReactorTime::call_later(self, delay, Box::new(call))
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
        let mut calls = self.inner.calls.borrow_mut();
        calls.sort();
        calls.queue.keys().map(|(due, _)| *due).collect()
    }
}

impl Inner {
    fn next_due(&self) -> Option<Call> {
        let mut calls = self.calls.borrow_mut();
        calls.sort();
        let first = calls.queue.first_entry()?;
        if first.key().0 > self.now.get() {
            return None;
        }
        let (id, call) = first.remove();
        calls.states.insert(id, Err(NotActive::AlreadyCalled));
        Some(call)
    }
}

impl Calls {
    fn place(&self, id: u64) -> Result<Place, NotActive> {
        self.states
            .get(&id)
            .copied()
            .unwrap_or(Err(NotActive::AlreadyCalled))
    }

    fn add(&mut self, due: Duration, call: Call) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        // Behind all others while the queue is out of order, as in a list to which Twisted would append it.
        let time = if self.moved { Duration::MAX } else { due };
        self.insert(time, due, id, call);
        self.sort();
        id
    }

    fn insert(&mut self, time: Duration, due: Duration, id: u64, call: Call) {
        let turn = (time, self.next_turn);
        self.next_turn += 1;
        self.queue.insert(turn, (id, call));
        self.states.insert(id, Ok(Place { turn, due }));
    }

    fn move_to(
        &mut self,
        id: u64,
        due: impl FnOnce(Duration) -> Duration,
    ) -> Result<(), NotActive> {
        let place = self.place(id)?;
        let due = due(place.due);
        self.states.insert(id, Ok(Place { due, ..place }));
        self.moved = true;
        Ok(())
    }

    /// Twisted keeps a list and sorts it, in a stable way, when a call is added and before one is made. So a call that was
    /// moved keeps its place among those due at the same time only if it does not have to pass them.
    fn sort(&mut self) {
        if !std::mem::take(&mut self.moved) {
            return;
        }
        let mut list: Vec<(Duration, u64, Call)> = std::mem::take(&mut self.queue)
            .into_values()
            .map(|(id, call)| (self.due(id), id, call))
            .collect();
        list.sort_by_key(|(due, ..)| *due);
        for (due, id, call) in list {
            self.insert(due, due, id, call);
        }
    }

    fn due(&self, id: u64) -> Duration {
        let place = self.place(id);
        place.expect("what is in the queue is still to be made").due
    }
}

impl ReactorTime for Clock {
    fn seconds(&self) -> Duration {
        self.inner.now.get()
    }

    /// Calls due at the same time are made in the order of Twisted's `Clock`: in that of `call_later`, as far as none was reset
    /// or delayed.
    fn call_later(&self, delay: Duration, call: Box<dyn FnOnce()>) -> DelayedCall {
        let due = self.seconds().saturating_add(delay);
        let id = self.inner.calls.borrow_mut().add(due, call);
        DelayedCall::new(self.inner.handle.clone(), id)
    }
}

impl Handle {
    fn clock(&self) -> Result<Rc<Inner>, NotActive> {
        self.0.upgrade().ok_or(NotActive::AlreadyCancelled) // its clock is gone, and the call with it
    }
}

impl DelayedCalls for Handle {
    fn cancel(&self, id: u64) -> Result<(), NotActive> {
        let clock = self.clock()?;
        let mut calls = clock.calls.borrow_mut();
        let place = calls.place(id)?;
        let call = calls.queue.remove(&place.turn);
        calls.states.insert(id, Err(NotActive::AlreadyCancelled));
        drop(calls);
        drop(call); // it may own anything
        Ok(())
    }

    fn reset(&self, id: u64, delay: Duration) -> Result<(), NotActive> {
        let clock = self.clock()?;
        let due = clock.now.get().saturating_add(delay);
        clock.calls.borrow_mut().move_to(id, |_| due)
    }

    fn delay(&self, id: u64, delay: Duration) -> Result<(), NotActive> {
        let clock = self.clock()?;
        let mut calls = clock.calls.borrow_mut();
        calls.move_to(id, |due| due.saturating_add(delay))
    }

    fn due(&self, id: u64) -> Result<Duration, NotActive> {
        let place = self.clock()?.calls.borrow().place(id)?;
        Ok(place.due)
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

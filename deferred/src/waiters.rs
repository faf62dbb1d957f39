//! Those who wait in line: for a lock, for a token of a semaphore, for an item of a queue.
//!
//! Two things are decided here. A waiter that is cancelled leaves the line at once, in constant time on average. And what
//! is handed over is handed over inside the call that lets go of it, as in Twisted, but only [`DEEPEST`] calls deep:
//! a callback that releases what it has just been given would otherwise put one more round of frames on the stack for
//! each waiter. What is let go of further in waits until the innermost waiter's callbacks have returned.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::{CancelledError, Deferred, Resolver};

/// The Deferreds that wait for a `T`, first come first.
pub(crate) struct Waiters<T> {
    line: Rc<Line<T>>,
}

struct Line<T> {
    places: RefCell<VecDeque<Rc<Place<T>>>>,
    /// How many places in the line are empty.
    empty: Cell<usize>,
}

/// A place in the line; empty when its waiter was cancelled.
type Place<T> = RefCell<Option<Resolver<T>>>;

impl<T: 'static> Waiters<T> {
    pub(crate) fn new() -> Self {
        Waiters {
            line: Rc::new(Line {
                places: RefCell::new(VecDeque::new()),
                empty: Cell::new(0),
            }),
        }
    }

    /// One more at the end. Cancelling it takes it out.
    #[track_caller]
    pub(crate) fn join(&self) -> Deferred<T> {
        let place = Rc::new(Place::new(None));
        // Weak, because the line owns the place, that the resolver, and that the canceller.
        let (line, mine) = (Rc::downgrade(&self.line), Rc::downgrade(&place));
        let (resolver, d) = Deferred::with_canceller(move || {
            let (line, mine) = (line.upgrade()?, mine.upgrade()?);
            let resolver = line.leave(&mine)?;
            let _ = resolver.errback(CancelledError); // dropping it would say that its lock is gone
            None
        });
        place.replace(Some(resolver));
        self.line.places.borrow_mut().push_back(place);
        d
    }

    /// The first one's firing end.
    pub(crate) fn next(&self) -> Option<Resolver<T>> {
        let mut places = self.line.places.borrow_mut();
        loop {
            if let Some(resolver) = places.pop_front()?.take() {
                return Some(resolver);
            }
            self.line.empty.set(self.line.empty.get() - 1);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.line.places.borrow().len() - self.line.empty.get()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Line<T> {
    fn leave(&self, place: &Place<T>) -> Option<Resolver<T>> {
        let resolver = place.take()?;
        self.empty.set(self.empty.get() + 1);
        let mut places = self.places.borrow_mut();
        // Tidied when half of it is empty: each cancelled waiter pays for a constant part of that.
        if self.empty.get() > places.len() / 2 {
            places.retain(|place| place.borrow().is_some());
            self.empty.set(0);
        }
        Some(resolver)
    }
}

// ---------------------------------------------------------------- handing over

/// So many handovers may be nested on the stack of a thread. Twisted's own end, by Python's recursion limit, is not far
/// beyond.
pub(crate) const DEEPEST: u32 = 64;

/// What gives something to the first in its line.
pub(crate) trait HandOver {
    /// Once: to the first who waits, if there still is one.
    fn hand_over(self: Rc<Self>);
}

struct Nest {
    depth: Cell<u32>,
    /// Handovers asked for at the deepest level; empty whenever the depth is less.
    put_off: RefCell<VecDeque<Rc<dyn HandOver>>>,
}

thread_local! {
    static NEST: Nest = const { Nest { depth: Cell::new(0), put_off: RefCell::new(VecDeque::new()) } };
}

/// Has `giver` hand over now, or, far down in nested handovers, soon.
pub(crate) fn hand_over(giver: Rc<dyn HandOver>) {
    let mut giver = Some(giver);
    let depth = NEST.try_with(|nest| {
        let depth = nest.depth.get();
        if depth == DEEPEST {
            nest.put_off.borrow_mut().extend(giver.take());
        }
        depth
    });
    let Some(giver) = giver else { return };
    match depth {
        Ok(depth) => nested(giver, depth + 1),
        Err(_) => giver.hand_over(), // the thread is ending
    }
}

fn nested(giver: Rc<dyn HandOver>, depth: u32) {
    struct Up(u32);
    impl Drop for Up {
        fn drop(&mut self) {
            let _ = NEST.try_with(|nest| nest.depth.set(self.0 - 1));
        }
    }
    let _ = NEST.try_with(|nest| nest.depth.set(depth));
    let _up = Up(depth);
    giver.hand_over();
    while depth == DEEPEST
        && let Ok(Some(next)) = NEST.try_with(|nest| nest.put_off.borrow_mut().pop_front())
    {
        next.hand_over();
    }
}

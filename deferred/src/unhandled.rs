//! Who is told of a failure that nobody handled.
//!
//! A Deferred that is dropped while its result is a failure has lost that failure: no errback will ever see it. It is
//! reported to the observer of the thread on which that happens, with the place where the Deferred was made. Observers are
//! scoped and belong to one thread, so that tests that run side by side do not see each other's failures.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::panic::Location;
use std::rc::Rc;

use crate::Failure;

/// A failure that nobody handled.
#[derive(Clone)]
pub struct Unhandled {
    /// The failure.
    pub failure: Failure,
    /// Where the Deferred was made that held it, or where it was reported.
    pub made_at: &'static Location<'static>,
    /// What it came from, when that was no Deferred: "a delayed call", say.
    pub what: Option<Cow<'static, str>>,
}

impl fmt::Display for Unhandled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Some(what) => write!(f, "unhandled failure in {what}: {:#}", self.failure),
            None => write!(
                f,
                "unhandled failure in the Deferred made at {}: {:#}",
                self.made_at, self.failure
            ),
        }
    }
}

impl fmt::Debug for Unhandled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}\n{:?}", self.failure)
    }
}

type Observer = Rc<dyn Fn(&Unhandled)>;

thread_local! {
    /// The innermost observer is the last; entries go when their guards do, in any order.
    static OBSERVERS: RefCell<Vec<(u64, Observer)>> = const { RefCell::new(Vec::new()) };
}

/// Tells `observer` of every unhandled failure on this thread, until the guard is dropped.
///
/// The innermost observer is told, alone. Without any, a line goes to standard error.
///
/// ```
/// use errback_deferred::{fail, observe_unhandled, Failure};
/// use std::{cell::RefCell, rc::Rc};
///
/// let seen = Rc::new(RefCell::new(Vec::new()));
/// let log = seen.clone();
/// let guard = observe_unhandled(move |u| log.borrow_mut().push(u.failure.to_string()));
/// drop(fail::<()>(Failure::msg("lost")));
/// drop(guard);
/// assert_eq!(*seen.borrow(), ["lost"]);
/// ```
#[must_use = "the observer is told of failures only as long as this guard lives"]
pub fn observe_unhandled(observer: impl Fn(&Unhandled) + 'static) -> ObserverGuard {
    let id = OBSERVERS.with_borrow_mut(|observers| {
        let id = observers.last().map_or(0, |(id, _)| id + 1);
        observers.push((id, Rc::new(observer)));
        id
    });
    ObserverGuard {
        id,
        _this_thread: std::marker::PhantomData,
    }
}

/// Keeps an observer in place; see [`observe_unhandled`].
#[derive(Debug)]
pub struct ObserverGuard {
    id: u64,
    _this_thread: std::marker::PhantomData<*const ()>,
}

impl Drop for ObserverGuard {
    fn drop(&mut self) {
        let gone = OBSERVERS.try_with(|observers| {
            let mut observers = observers.borrow_mut();
            observers
                .iter()
                .position(|(id, _)| *id == self.id)
                .map(|at| observers.remove(at))
        });
        drop(gone); // outside the borrow: it may own anything
    }
}

/// Reports a failure that has nowhere else to go, as Twisted's `log.err` does: to this thread's observer.
///
/// `what` says what failed, for instance "a delayed call". To log the failures of a Deferred, end its chain with
/// [`log_failure`](crate::Deferred::log_failure) or [`log_failure_as`](crate::Deferred::log_failure_as).
///
/// ```
/// use errback_deferred::{log_err, Failure};
/// # let _seen = errback_deferred::observe_unhandled(|_| ());
/// log_err(Failure::msg("no disk"), format!("job {}", 3));
/// ```
#[track_caller]
pub fn log_err(failure: impl Into<Failure>, what: impl Into<Cow<'static, str>>) {
    let what = Some(what.into());
    tell(&Unhandled {
        failure: failure.into(),
        made_at: Location::caller(),
        what,
    });
}

pub(crate) fn report(
    failure: Failure,
    made_at: &'static Location<'static>,
    what: Option<Cow<'static, str>>,
) {
    tell(&Unhandled {
        failure,
        made_at,
        what,
    });
}

fn tell(unhandled: &Unhandled) {
    let observer = OBSERVERS
        .try_with(|observers| observers.borrow().last().map(|(_, o)| o.clone()))
        .ok()
        .flatten();
    match observer {
        Some(observer) => {
            if let Err(panic) = crate::contain(|| observer(unhandled)) {
                eprintln!("{unhandled}; and the observer of unhandled failures {panic}");
            }
        }
        None => eprintln!("{unhandled}"),
    }
}

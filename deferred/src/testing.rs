//! Help for tests of code that returns Deferreds, after `twisted.trial`'s `SynchronousTestCase`.
//!
//! A test that turns a [`Clock`](crate::Clock) by hand knows when a Deferred must have its result, and can ask for it instead
//! of waiting. The panics point at the test's own line.
//!
//! ```
//! use errback_deferred::{testing::*, Clock, Deferred, TimeoutError};
//! let _guard = NoUnhandledFailures::new();
//! let (resolver, d) = Deferred::<i64>::new();
//! assert_no_result(&d);
//! resolver.callback(1).unwrap();
//! assert_eq!(success_result_of(d), 1);
//! ```

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::Location;
use std::rc::Rc;
use std::thread;

use crate::{Deferred, Failure, ObserverGuard, State, Unhandled, observe_unhandled};

/// The value of a Deferred that must have one now.
///
/// # Panics
/// When it has no result yet, or a failure.
#[track_caller]
#[doc(alias = "successResultOf")]
pub fn success_result_of<T: 'static>(d: Deferred<T>) -> T {
    match result_of(d) {
        Ok(value) => value,
        Err(failure) => panic!(
            "expected a value, got the failure {}: {failure:#}",
            failure.type_name()
        ),
    }
}

/// The failure of a Deferred that must have one now.
///
/// # Panics
/// When it has no result yet, or a value.
#[track_caller]
#[doc(alias = "failureResultOf")]
pub fn failure_result_of<T: 'static>(d: Deferred<T>) -> Failure {
    match result_of(d) {
        Ok(_) => panic!(
            "expected a failure, got a value of type {}",
            std::any::type_name::<T>()
        ),
        Err(failure) => failure,
    }
}

/// The result of a Deferred that must have one now.
///
/// # Panics
/// When it has no result yet.
#[track_caller]
pub fn result_of<T: 'static>(d: Deferred<T>) -> Result<T, Failure> {
    let seen = Rc::new(Cell::new(None));
    let sink = seen.clone();
    let (state, paused) = (d.state(), d.node.paused());
    d.add_both(move |result| sink.set(Some(result)));
    match seen.take() {
        Some(result) => result,
        None if paused && state != State::Waiting => {
            panic!("expected a result, but the Deferred is paused")
        }
        None => panic!("expected a result, but the Deferred is {state:?} and has none yet"),
    }
}

/// Makes sure that a Deferred has no result yet.
///
/// # Panics
/// When it has one.
#[track_caller]
#[doc(alias = "assertNoResult")]
pub fn assert_no_result<T: 'static>(d: &Deferred<T>) {
    match d.state() {
        State::Unfired | State::Waiting => {}
        state => panic!("expected no result, but the Deferred has one: {state:?}"),
    }
}

/// Fails the test at its end if a failure went unhandled on this thread while the guard lived.
///
/// # Panics
/// When it is dropped and failures are left that [`flush`](Self::flush) did not take, unless the thread panics already.
pub struct NoUnhandledFailures {
    seen: Rc<RefCell<Vec<Unhandled>>>,
    made_at: &'static Location<'static>,
    _observer: ObserverGuard,
}

impl NoUnhandledFailures {
    /// Watches this thread from now on.
    #[track_caller]
    #[allow(clippy::new_without_default)] // it does something, and its place counts
    pub fn new() -> Self {
        let seen: Rc<RefCell<Vec<Unhandled>>> = Rc::default();
        let sink = seen.clone();
        let observer =
            observe_unhandled(move |unhandled| sink.borrow_mut().push(unhandled.clone()));
        NoUnhandledFailures {
            seen,
            made_at: Location::caller(),
            _observer: observer,
        }
    }

    /// The failures that went unhandled so far, which the test then knows of (Twisted's `flushLoggedErrors`).
    #[doc(alias = "flushLoggedErrors")]
    pub fn flush(&self) -> Vec<Unhandled> {
        self.seen.take()
    }
}

impl Drop for NoUnhandledFailures {
    fn drop(&mut self) {
        let left = self.flush();
        if !left.is_empty() && !thread::panicking() {
            let lines: Vec<String> = left.iter().map(ToString::to_string).collect();
            panic!(
                "unhandled failures under the guard made at {}:\n{}",
                self.made_at,
                lines.join("\n")
            );
        }
    }
}

impl fmt::Debug for NoUnhandledFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<NoUnhandledFailures, {} so far>",
            self.seen.borrow().len()
        )
    }
}

//! What these tests share.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::cell::RefCell;
use std::panic::Location;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use errback_deferred::{ObserverGuard, observe_unhandled};
use errback_reactor::Reactor;

/// How long anything may take before we call it hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Runs the reactor to its end. A test that hangs is ended, with the place of the call.
#[track_caller]
pub(crate) fn run(reactor: &Reactor) {
    let _watchdog = watchdog();
    reactor.run().expect("the reactor runs and stops");
}

/// Ends the process, with the place of the call, unless it is dropped in time.
#[track_caller]
pub(crate) fn watchdog() -> Sender<()> {
    let (alive, watched) = channel();
    let place = Location::caller();
    thread::spawn(move || {
        if watched.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("hung: {place}");
            std::process::abort();
        }
    });
    alive
}

/// A callback that stops the reactor.
pub(crate) fn stop(reactor: &Reactor) -> impl FnOnce() + use<> {
    let reactor = reactor.clone();
    move || reactor.stop().expect("it is running")
}

/// A log that callbacks write to, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, entry: impl ToString) {
        self.0.borrow_mut().push(entry.to_string());
    }

    /// A callback that writes `entry`.
    pub(crate) fn note<T: ToString>(&self, entry: T) -> impl FnOnce() + use<T> {
        let (log, entry) = (self.clone(), entry.to_string());
        move || log.add(entry)
    }

    pub(crate) fn sort(&self) {
        self.0.borrow_mut().sort();
    }

    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    #[track_caller]
    pub(crate) fn assert(&self, expected: &[&str]) {
        assert_eq!(*self.0.borrow(), expected);
    }

    #[track_caller]
    pub(crate) fn assert_one_with(&self, part: &str) {
        let entries = self.0.borrow();
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert!(entries[0].contains(part), "{entries:?}");
    }
}

/// Collects the failures that nobody handles on this thread.
pub(crate) fn unhandled() -> (Log, ObserverGuard) {
    let log = Log::default();
    let seen = log.clone();
    (log, observe_unhandled(move |unhandled| seen.add(unhandled)))
}

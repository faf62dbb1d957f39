//! One result for many who wait: Synapse's `ObservableDeferred`; Twisted has been asked for it in twisted#6365.
//!
//! A Deferred has one chain and one result that passes down it. Several parties that each add a callback to it get each other's
//! results. Here each gets a Deferred of its own, with a copy of the one result.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use crate::{Deferred, Failure, Resolver};

/// Hands the one result of a Deferred to everybody who asks, before it is there and after.
///
/// ```
/// use errback_deferred::{Deferred, Failure, ObservableDeferred};
/// let (resolver, d) = Deferred::<i64>::new();
/// let shared = ObservableDeferred::new(d);
/// let (one, other) = (shared.observe(), shared.observe());
/// resolver.callback(7)?;
/// let late = shared.observe();
/// # for d in [one, other, late] { d.add_callback(|n| assert_eq!(n, 7)); }
/// # Ok::<(), Failure>(())
/// ```
///
/// Cancelling what [`observe`](Self::observe) returned concerns that observer only; [`cancel`](Self::cancel) cancels the
/// Deferred itself. A failure goes to all observers, and is reported as unhandled when there never was one.
pub struct ObservableDeferred<T> {
    shared: Rc<RefCell<Shared<T>>>,
    origin: crate::CancelHandle,
}

enum Shared<T> {
    Waiting(Vec<Resolver<T>>),
    /// The result lies in a Deferred, which reports a failure that nobody looks at.
    Here(Result<T, Failure>, Option<Deferred<T>>),
}

impl<T: Clone + 'static> ObservableDeferred<T> {
    /// Takes over `d`.
    pub fn new(d: Deferred<T>) -> Self {
        let origin = d.cancel_handle();
        let shared = Rc::new(RefCell::new(Shared::Waiting(Vec::new())));
        let sink = shared.clone();
        d.add_both(move |result| tell_all(&sink, result));
        ObservableDeferred { shared, origin }
    }

    /// A Deferred with a copy of the result.
    #[track_caller]
    pub fn observe(&self) -> Deferred<T> {
        let (resolver, d) = Deferred::new();
        let mut shared = self.shared.borrow_mut();
        match &mut *shared {
            Shared::Waiting(observers) => observers.push(resolver),
            Shared::Here(result, unseen) => {
                let (result, unseen) = (result.clone(), unseen.take());
                drop(shared);
                drop(unseen.map(|unseen| unseen.add_both(drop))); // somebody looks at it
                let _ = resolver.fire(result);
            }
        }
        d
    }

    /// Whether the result is there (Synapse's `has_called`).
    pub fn called(&self) -> bool {
        matches!(*self.shared.borrow(), Shared::Here(..))
    }

    /// How many wait for it.
    pub fn observers(&self) -> usize {
        match &*self.shared.borrow() {
            Shared::Waiting(observers) => observers.len(),
            Shared::Here(..) => 0,
        }
    }

    /// A copy of the result, if it is there.
    pub fn result(&self) -> Option<Result<T, Failure>> {
        match &*self.shared.borrow() {
            Shared::Waiting(_) => None,
            Shared::Here(result, _) => Some(result.clone()),
        }
    }

    /// Cancels the Deferred that all of them wait for.
    pub fn cancel(&self) {
        self.origin.cancel();
    }
}

fn tell_all<T: Clone + 'static>(shared: &RefCell<Shared<T>>, result: Result<T, Failure>) {
    let before = shared.replace(Shared::Here(result.clone(), None));
    let Shared::Waiting(observers) = before else {
        return;
    };
    if observers.is_empty()
        && let Err(failure) = &result
        && let Shared::Here(_, unseen) = &mut *shared.borrow_mut()
    {
        *unseen = Some(crate::fail(failure.clone()));
    }
    for observer in observers {
        let _ = observer.fire(result.clone()); // it was cancelled
    }
}

impl<T> Clone for ObservableDeferred<T> {
    fn clone(&self) -> Self {
        ObservableDeferred {
            shared: self.shared.clone(),
            origin: self.origin.clone(),
        }
    }
}

impl<T> fmt::Debug for ObservableDeferred<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.shared.borrow() {
            Shared::Waiting(observers) => {
                write!(f, "<ObservableDeferred, {} observers>", observers.len())
            }
            Shared::Here(..) => f.write_str("<ObservableDeferred, fired>"),
        }
    }
}

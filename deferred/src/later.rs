//! A function whose call is made later, and its result as a Deferred: Twisted's `deferLater`.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

use crate::{CancelledError, Deferred, DelayedCall, IntoOutcome, ReactorTime, Resolver};

/// Calls `f` after `delay`; the Deferred has its result.
///
/// Cancelling the Deferred before that takes the call back; afterwards it cancels the Deferred that `f` returned, if any.
/// When the event loop ends first, the Deferred fails with [`ResolverDropped`](crate::ResolverDropped). Twisted's `deferLater`.
///
/// ```
/// use errback_deferred::{defer_later, Clock};
/// use std::time::Duration;
///
/// let clock = Clock::new();
/// let d = defer_later(&clock, Duration::from_secs(2), || Ok("later"));
/// clock.advance(Duration::from_secs(2));
/// # d.add_callback(|s| assert_eq!(s, "later"));
/// ```
#[track_caller]
#[doc(alias = "deferLater")]
pub fn defer_later<R: IntoOutcome>(
    clock: &(impl ReactorTime + ?Sized),
    delay: Duration,
    f: impl FnOnce() -> R + 'static,
) -> Deferred<R::Value> {
    let pending = Rc::new(Pending::default());
    // Weak, because the call owns what is pending, that the resolver, and that the canceller.
    let weak = Rc::downgrade(&pending);
    let (resolver, d) = Deferred::with_canceller(move || {
        weak.upgrade()?.cancel();
        None
    });
    pending.resolver.set(Some(resolver));
    let d = d.add_callback(|()| f());
    let due = pending.clone();
    let call = clock.call_later(delay, Box::new(move || due.fire()));
    let _ = pending.call.set(call);
    d
}

#[derive(Default)]
struct Pending {
    resolver: Cell<Option<Resolver<()>>>,
    call: OnceCell<DelayedCall>,
}

impl Pending {
    fn fire(&self) {
        if let Some(resolver) = self.resolver.take() {
            let _ = resolver.callback(()); // cannot have fired: a cancel takes the resolver
        }
    }

    fn cancel(&self) {
        let resolver = self.resolver.take();
        if let Some(call) = self.call.get() {
            let _ = call.cancel(); // refused when the call is being made just now
        }
        if let Some(resolver) = resolver {
            let _ = resolver.errback(CancelledError); // dropping it would say that the loop is gone
        }
    }
}

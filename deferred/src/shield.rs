//! Work that is not to be cancelled because one who waits for it was.
//!
//! A cancel travels inwards to the innermost Deferred. Between a request and a transaction there is often a place where it
//! must stop; Synapse, a large Twisted program, has `stop_cancellation` and `delay_cancellation` for that.

use std::cell::Cell;
use std::rc::Rc;

use crate::deferred::fire;
use crate::node::Canceller;
use crate::{CancelledError, Deferred, Pause, Resolver};

impl<T: 'static> Deferred<T> {
    /// The same result, but a cancel stops here: the new Deferred fails with [`CancelledError`] at once and this one goes on.
    /// (Synapse's `stop_cancellation`.)
    ///
    /// The result that then comes too late is dropped; a failure is reported as unhandled.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Deferred};
    /// let (resolver, work) = Deferred::<i64>::new();
    /// let d = work.stop_cancellation().add_errback(|f| f.trap::<CancelledError>().map(|_| -1));
    /// d.cancel();
    /// assert!(!resolver.called()); // the work does not know
    /// # d.add_callback(|n| assert_eq!(n, -1));
    /// ```
    #[track_caller]
    pub fn stop_cancellation(self) -> Deferred<T> {
        let (resolver, d) = Deferred::with_canceller(|| None);
        forward(self, resolver);
        d
    }

    /// The same result, but a cancel waits: the new Deferred fails with [`CancelledError`] when this one has come to its end.
    /// (Synapse's `delay_cancellation`.)
    ///
    /// So what comes after does not run beside work that was cancelled but goes on, such as a transaction that holds a lock.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Deferred, Failure};
    /// let (resolver, work) = Deferred::<i64>::new();
    /// let d = work.delay_cancellation();
    /// d.cancel();
    /// assert!(!resolver.called());
    /// let d = d.add_errback(|f| f.trap::<CancelledError>().map(|_| -1)); // not yet
    /// resolver.callback(7)?;
    /// # d.add_callback(|n| assert_eq!(n, -1));
    /// # Ok::<(), Failure>(())
    /// ```
    #[track_caller]
    pub fn delay_cancellation(self) -> Deferred<T> {
        // The token that holds the cancelled Deferred back until the work is done.
        let pause: Rc<Cell<Option<Pause>>> = Rc::default();
        let (resolver, d) = Deferred::new();
        let held = pause.clone();
        d.node.set_canceller(Canceller::Once(Box::new(move |node| {
            held.set(Some(Pause::of(node)));
            let _ = fire::<T>(node, Err(CancelledError.into()));
        })));
        self.add_both(move |result| {
            match pause.take() {
                Some(pause) => drop((result, pause)), // cancelled: nobody wants it, and the CancelledError may go on
                None => drop(resolver.fire(result)),
            }
        });
        d
    }
}

fn forward<T: 'static>(from: Deferred<T>, to: Resolver<T>) {
    from.add_both(move |result| match to.fire(result) {
        Ok(()) => Ok(()),
        Err(late) => late.result.map(drop),
    });
}

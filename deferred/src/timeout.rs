//! A Deferred that is cancelled when it takes too long: Twisted's `addTimeout`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::{CancelledError, Deferred, Failure, IntoOutcome, ReactorTime, TimeoutError};

impl<T: 'static> Deferred<T> {
    /// Cancels this Deferred when it has no result after `timeout`; it then fails with a [`TimeoutError`].
    ///
    /// The time covers what was added before, and nothing that is added after. If a canceller makes a value of it, or
    /// another failure than [`CancelledError`], that is the result. A cancel by others stays a `CancelledError`, and lets
    /// the timeout go. Twisted's `addTimeout`.
    ///
    /// ```
    /// use errback_deferred::{Clock, Deferred, TimeoutError};
    /// use std::time::Duration;
    ///
    /// let clock = Clock::new();
    /// let (_resolver, answer) = Deferred::<i64>::new();
    /// let answer = answer
    ///     .add_timeout(Duration::from_secs(5), &clock)
    ///     .add_errback(|failure| failure.trap::<TimeoutError>().map(|_| -1));
    /// clock.advance(Duration::from_secs(5));
    /// # answer.add_callback(|n| assert_eq!(n, -1));
    /// ```
    #[doc(alias = "addTimeout")]
    pub fn add_timeout(
        self,
        timeout: Duration,
        clock: &(impl ReactorTime + ?Sized),
    ) -> Deferred<T> {
        self.add_timeout_with(timeout, clock, timed_out)
    }

    /// As [`add_timeout`](Deferred::add_timeout); `on_timeout` says what the result is when the time was up.
    ///
    /// It is given what the cancel made of the Deferred (most often a failure, [`CancelledError`]) and `timeout`. It is not
    /// called when somebody else cancelled. Twisted's `addTimeout(…, onTimeoutCancel=…)`.
    ///
    /// ```
    /// use errback_deferred::{Clock, Deferred};
    /// use std::time::Duration;
    ///
    /// let clock = Clock::new();
    /// let (_resolver, answer) = Deferred::<i64>::new();
    /// let answer = answer.add_timeout_with(Duration::from_secs(5), &clock, |_, _| Ok(0));
    /// clock.advance(Duration::from_secs(5));
    /// # answer.add_callback(|n| assert_eq!(n, 0));
    /// ```
    pub fn add_timeout_with<R: IntoOutcome<Value = T>>(
        self,
        timeout: Duration,
        clock: &(impl ReactorTime + ?Sized),
        on_timeout: impl FnOnce(Result<T, Failure>, Duration) -> R + 'static,
    ) -> Deferred<T> {
        let time_is_up = Rc::new(Cell::new(false));
        let (handle, set) = (self.cancel_handle(), time_is_up.clone());
        let call = clock.call_later(
            timeout,
            Box::new(move || {
                set.set(true);
                handle.cancel();
            }),
        );
        self.add_both(move |result| {
            let _ = call.cancel(); // refused when it has been made
            match time_is_up.get() {
                true => on_timeout(result, timeout).into_outcome(),
                false => result.into_outcome(),
            }
        })
    }
}

fn timed_out<T>(result: Result<T, Failure>, timeout: Duration) -> Result<T, Failure> {
    result.map_err(|failure| match failure.is::<CancelledError>() {
        true => TimeoutError {
            after: Some(timeout),
        }
        .into(),
        false => failure,
    })
}

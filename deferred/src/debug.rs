//! The debugging switch: where Deferreds are made and first fired.

use std::backtrace::Backtrace;
use std::sync::atomic::{AtomicBool, Ordering};

static DEBUGGING: AtomicBool = AtomicBool::new(false);

/// Switches the recording of stacks on or off, for the whole process (Twisted's `setDebugging`).
///
/// While it is on, each Deferred remembers the stack that made it and the one that fired it first, and an
/// [`AlreadyCalledError`](crate::AlreadyCalledError) shows both. That costs tens of microseconds for each Deferred.
///
/// ```
/// use errback_deferred::{set_debugging, Deferred};
/// set_debugging(true);
/// let (resolver, d) = Deferred::<i64>::new();
/// let resolver = resolver.into_shared();
/// resolver.callback(1)?;
/// let error = resolver.callback(2).unwrap_err();
/// assert!(error.history.unwrap().contains("first fired at"));
/// set_debugging(false);
/// # drop(d);
/// # Ok::<(), errback_deferred::Failure>(())
/// ```
pub fn set_debugging(on: bool) {
    DEBUGGING.store(on, Ordering::Relaxed);
}

/// Whether stacks are being recorded; see [`set_debugging`].
pub fn debugging() -> bool {
    DEBUGGING.load(Ordering::Relaxed)
}

pub(crate) fn stack() -> String {
    Backtrace::force_capture().to_string()
}

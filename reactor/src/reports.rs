//! What becomes of a panic in a callback: it is contained, reported, and the loop goes on, as Twisted logs and goes on.
//!
//! The report goes where unhandled failures go: to the observer of the reactor's thread, or to standard error.

use errback_deferred::{contain, log_err};

/// Runs `call`; its panic is reported as a failure in `what`.
pub(crate) fn contained(what: &'static str, call: impl FnOnce()) {
    if let Err(panic) = contain(call) {
        log_err(panic, what);
    }
}

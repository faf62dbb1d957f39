//! Panics of the code that we call, turned into [`PanicError`]s.
//!
//! `catch_unwind` gives the payload of a panic but neither its place nor its stack: those only a panic hook sees. So the
//! first call through [`contain`] in a process installs one hook, which notes both for the thread that is inside
//! `contain` and forwards every panic to the hook that was there before. It is the crate's one process-wide state.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use crate::PanicError;

thread_local! {
    /// How many `contain`s this thread is inside of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Place and stack of this thread's last panic inside a `contain`.
    static LAST: RefCell<Option<(String, Option<String>)>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `f`; its panic becomes an error.
///
/// For loops and pools that call other people's code and must go on. The panic is still printed by the program's panic
/// hook; the one that this crate installs at the first use only notes where the panic happened.
///
/// ```
/// let error = errback_deferred::contain(|| panic!("no {}", 7)).unwrap_err();
/// assert_eq!(error.message, "no 7");
/// assert!(error.location.unwrap().contains(":"));
/// ```
///
/// # Errors
/// What the panic said, and where.
#[inline]
pub fn contain<R>(f: impl FnOnce() -> R) -> Result<R, PanicError> {
    HOOK.call_once(install);
    let entered = Entered::new();
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    drop(entered);
    result.map_err(describe)
}

struct Entered;

impl Entered {
    #[inline]
    fn new() -> Self {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
        Entered
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
    }
}

#[cold]
fn install() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        note(info);
        before(info);
    }));
}

fn note(info: &PanicHookInfo<'_>) {
    if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
        return;
    }
    let backtrace = Backtrace::capture();
    let stack = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let _ = LAST.try_with(|last| last.replace(Some((place, stack))));
}

#[cold]
fn describe(payload: Box<dyn Any + Send>) -> PanicError {
    let message = match payload.downcast_ref::<&str>() {
        Some(text) => (*text).to_owned(),
        None => match payload.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => "a payload that is not a string".to_owned(),
        },
    };
    // A payload's own `drop` may panic too; that must not get out either.
    let _ = panic::catch_unwind(AssertUnwindSafe(move || drop(payload)));
    let (location, backtrace) = LAST.try_with(|last| last.take()).ok().flatten().unzip();
    PanicError {
        message,
        location: location.filter(|l| !l.is_empty()),
        backtrace: backtrace.flatten(),
    }
}

//! One at a time: Twisted's `DeferredLock`, a semaphore with one token.

use std::fmt;
use std::rc::Rc;

use crate::semaphore::Tokens;
use crate::{Deferred, IntoOutcome, NotHeld, Permit};

/// Lets one party in at a time; the others wait for their turn, first come first.
///
/// ```
/// use errback_deferred::{Deferred, DeferredLock};
/// let lock = DeferredLock::new();
/// let (query_done, query) = Deferred::<i64>::new();
/// let first = lock.run(|| query);
/// let second = lock.run(|| Ok(2)); // waits until `first` has its result
/// query_done.callback(1)?;
/// # first.add_callback(|n| assert_eq!(n, 1));
/// # second.add_callback(|n| assert_eq!(n, 2));
/// # Ok::<(), errback_deferred::Failure>(())
/// ```
///
/// A clone is another handle to the same lock. It is for callbacks of one thread; nothing ever blocks.
#[derive(Clone)]
pub struct DeferredLock {
    tokens: Rc<Tokens>,
}

impl DeferredLock {
    /// A lock that nobody holds.
    pub fn new() -> Self {
        DeferredLock {
            tokens: Tokens::new(1),
        }
    }

    /// Waits for the lock.
    ///
    /// The Deferred fires with a [`Permit`], at once if the lock is free; dropping the permit releases the lock.
    /// Cancelling the Deferred while it waits takes it out of the line.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, DeferredLock};
    /// let lock = DeferredLock::new();
    /// let first = lock.acquire();
    /// let second = lock.acquire();
    /// second.cancel();
    /// # second.add_errback(|f| { f.trap::<CancelledError>()?; Err(f) }).add_callbacks(|_| (), |_| ());
    /// drop(first);
    /// assert!(!lock.locked());
    /// ```
    #[track_caller]
    pub fn acquire(&self) -> Deferred<Permit> {
        self.tokens.acquire()
    }

    /// Releases the lock when its permit was [forgotten](Permit::forget); whoever is first in line gets it, and their
    /// callbacks have run when this returns.
    ///
    /// # Errors
    /// [`NotHeld`] when nobody holds the lock.
    pub fn release(&self) -> Result<(), NotHeld> {
        self.tokens.release()
    }

    /// Waits for the lock, calls `f`, and releases the lock when its result is there.
    ///
    /// The Deferred has `f`'s result. Cancelling it takes it out of the line, or, when `f` has been called, cancels the
    /// Deferred that `f` returned. If `f` panics the lock is released and the Deferred fails.
    #[track_caller]
    pub fn run<R: IntoOutcome>(&self, f: impl FnOnce() -> R + 'static) -> Deferred<R::Value> {
        self.tokens.run(f)
    }

    /// Whether somebody holds it.
    pub fn locked(&self) -> bool {
        self.tokens.held()
    }

    /// How many wait for it.
    pub fn waiting(&self) -> usize {
        self.tokens.waiting()
    }
}

impl Default for DeferredLock {
    fn default() -> Self {
        DeferredLock::new()
    }
}

impl fmt::Debug for DeferredLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.locked() { "locked" } else { "free" };
        write!(f, "<DeferredLock: {state}, {} waiting>", self.waiting())
    }
}

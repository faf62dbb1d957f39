//! A number of tokens, and a line of those who wait for one: Twisted's `DeferredSemaphore`.
//!
//! The lock in `lock.rs` is the same with one token. What a waiter gets is a [`Permit`], which gives its token back when
//! it is dropped, so that no path through a program forgets to.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use crate::waiters::{self, HandOver, Waiters};
use crate::{Deferred, IntoOutcome, maybe_deferred, succeed};

/// Lets at most so many parties in at once; the others wait for their turn, first come first.
///
/// ```
/// use errback_deferred::{DeferredSemaphore, State};
/// let connections = DeferredSemaphore::new(2);
/// let one = connections.acquire();
/// let two = connections.acquire();
/// let three = connections.acquire();
/// assert_eq!((two.state(), three.state()), (State::Value, State::Unfired));
/// drop(one); // its permit is dropped with it
/// assert_eq!(three.state(), State::Value);
/// ```
///
/// A clone is another handle to the same semaphore. Twisted's `DeferredSemaphore`.
#[derive(Clone)]
pub struct DeferredSemaphore {
    tokens: Rc<Tokens>,
}

impl DeferredSemaphore {
    /// A semaphore with so many tokens, all of them free.
    ///
    /// # Panics
    /// When there are none: nobody would ever get in.
    pub fn new(tokens: usize) -> Self {
        assert!(tokens > 0, "a semaphore needs at least one token");
        DeferredSemaphore {
            tokens: Tokens::new(tokens),
        }
    }

    /// Waits for a token.
    ///
    /// The Deferred fires with a [`Permit`], at once if a token is free. Cancelling it while it waits takes it out of the
    /// line; dropping it lets its permit go when it comes.
    #[track_caller]
    pub fn acquire(&self) -> Deferred<Permit> {
        self.tokens.acquire()
    }

    /// Gives a token back whose permit was [forgotten](Permit::forget); whoever is first in line gets it, and their
    /// callbacks have run when this returns.
    ///
    /// ```
    /// use errback_deferred::{DeferredSemaphore, NotHeld};
    /// let semaphore = DeferredSemaphore::new(1);
    /// let _ = semaphore.acquire().add_callback(|permit| permit.forget());
    /// assert_eq!(semaphore.release(), Ok(()));
    /// assert_eq!(semaphore.release(), Err(NotHeld));
    /// ```
    ///
    /// # Errors
    /// [`NotHeld`] when all tokens are free.
    pub fn release(&self) -> Result<(), NotHeld> {
        self.tokens.release()
    }

    /// Waits for a token, calls `f`, and gives the token back when its result is there.
    ///
    /// The Deferred has `f`'s result. Cancelling it takes it out of the line, or, when `f` has been called, cancels the
    /// Deferred that `f` returned.
    ///
    /// ```
    /// use errback_deferred::DeferredSemaphore;
    /// let semaphore = DeferredSemaphore::new(2);
    /// let d = semaphore.run(|| Ok(6 * 7));
    /// # d.add_callback(|n| assert_eq!(n, 42));
    /// ```
    #[track_caller]
    pub fn run<R: IntoOutcome>(&self, f: impl FnOnce() -> R + 'static) -> Deferred<R::Value> {
        self.tokens.run(f)
    }

    /// How many tokens are free.
    pub fn tokens(&self) -> usize {
        self.tokens.free.get()
    }

    /// How many tokens there are.
    pub fn limit(&self) -> usize {
        self.tokens.limit
    }

    /// How many wait for a token.
    pub fn waiting(&self) -> usize {
        self.tokens.waiters.len()
    }
}

impl fmt::Debug for DeferredSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, limit, waiting) = (self.tokens(), self.limit(), self.waiting());
        write!(
            f,
            "<DeferredSemaphore: {free} of {limit} tokens free, {waiting} waiting>"
        )
    }
}

/// The inside of a semaphore and of a lock.
pub(crate) struct Tokens {
    limit: usize,
    free: Cell<usize>,
    /// Releases that were asked for but are still to be carried out (see `waiters.rs`).
    owed: Cell<usize>,
    waiters: Waiters<Permit>,
}

impl Tokens {
    pub(crate) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Tokens {
            limit,
            free: Cell::new(limit),
            owed: Cell::new(0),
            waiters: Waiters::new(),
        })
    }

    #[track_caller]
    pub(crate) fn acquire(self: &Rc<Self>) -> Deferred<Permit> {
        if self.free.get() == 0 {
            return self.waiters.join();
        }
        self.free.set(self.free.get() - 1);
        succeed(self.permit())
    }

    pub(crate) fn release(self: &Rc<Self>) -> Result<(), NotHeld> {
        if self.free.get() + self.owed.get() == self.limit {
            return Err(NotHeld);
        }
        if self.waiters.is_empty() {
            self.free.set(self.free.get() + 1);
        } else {
            self.owed.set(self.owed.get() + 1);
            waiters::hand_over(self.clone());
        }
        Ok(())
    }

    #[track_caller]
    pub(crate) fn run<R: IntoOutcome>(
        self: &Rc<Self>,
        f: impl FnOnce() -> R + 'static,
    ) -> Deferred<R::Value> {
        self.acquire().add_callback(|permit| {
            maybe_deferred(f).add_both(|result| {
                permit.release();
                result
            })
        })
    }

    pub(crate) fn held(&self) -> bool {
        self.free.get() < self.limit
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    fn permit(self: &Rc<Self>) -> Permit {
        Permit {
            of: Some(self.clone()),
        }
    }
}

impl HandOver for Tokens {
    fn hand_over(self: Rc<Self>) {
        self.owed.set(self.owed.get() - 1);
        match self.waiters.next() {
            Some(waiter) => drop(waiter.callback(self.permit())),
            None => self.free.set(self.free.get() + 1),
        }
    }
}

/// The right to be where a [`DeferredLock`](crate::DeferredLock) or a [`DeferredSemaphore`] lets one in; dropping it
/// lets the next one in.
///
/// ```
/// use errback_deferred::DeferredLock;
/// let lock = DeferredLock::new();
/// let d = lock.acquire().add_callback(|permit| {
///     // … what must not happen twice at a time …
///     permit.release(); // or let it go out of scope
/// });
/// assert!(!lock.locked());
/// # drop(d);
/// ```
///
/// The callbacks of the next one run inside the drop, as they run inside `release` in Twisted.
#[must_use = "the lock is released when the permit is dropped"]
pub struct Permit {
    /// Gone when it was forgotten.
    of: Option<Rc<Tokens>>,
}

impl Permit {
    /// Lets the next one in; the same as dropping the permit.
    pub fn release(self) {}

    /// Stays inside: somebody will call `release` on the lock or semaphore itself, as ported code does.
    ///
    /// ```
    /// use errback_deferred::DeferredLock;
    /// let lock = DeferredLock::new();
    /// let _ = lock.acquire().add_callback(|permit| permit.forget());
    /// assert!(lock.locked());
    /// lock.release()?;
    /// assert!(!lock.locked());
    /// # Ok::<(), errback_deferred::Failure>(())
    /// ```
    pub fn forget(mut self) {
        self.of = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(tokens) = self.of.take() {
            let _ = tokens.release(); // refused only if somebody released it behind our back
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<Permit>")
    }
}

/// Nobody holds what was to be released (Twisted's assertion in `release`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotHeld;

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody holds what was to be released")
    }
}

impl std::error::Error for NotHeld {}

//! A lock between processes, in the file system: Twisted's `DeferredFilesystemLock`.
//!
//! The lock is a symbolic link whose target is the owner's process id, as Twisted's is on POSIX systems: a program in Python and
//! one in Rust that use the same path exclude each other. Making a link is atomic. A link whose process is gone is left over
//! from a crash and is broken: it is renamed away first, so that of several who find it only one removes it.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use errback_deferred::{Deferred, DelayedCall, Failure, ReactorTime, Resolver, TimeoutError, fail};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// How often a lock that somebody else holds is tried again.
const INTERVAL: Duration = Duration::from_secs(1);

/// A lock that processes on one machine share by its path.
///
/// ```
/// use errback::{Clock, DeferredFilesystemLock, testing::success_result_of};
///
/// let path = std::env::temp_dir().join(format!("errback-example-{}", std::process::id()));
/// let lock = DeferredFilesystemLock::new(&path, Clock::new());
/// success_result_of(lock.defer_until_locked(None));
/// assert!(lock.locked());
/// lock.unlock()?;
/// # Ok::<(), errback::Failure>(())
/// ```
///
/// A clone is another handle to the same lock. When the last handle goes, a lock that is held is released.
#[derive(Clone)]
pub struct DeferredFilesystemLock {
    inner: Rc<Inner>,
}

struct Inner {
    path: PathBuf,
    clock: Box<dyn ReactorTime>,
    locked: Cell<bool>,
    clean: Cell<bool>,
    /// Somebody waits.
    trying: RefCell<Option<Trying>>,
}

struct Trying {
    resolver: Resolver<()>,
    again: DelayedCall,
    give_up: Option<DelayedCall>,
}

impl DeferredFilesystemLock {
    /// The lock at `path`, tried on `clock`: a reactor, or a [`Clock`](crate::Clock) in tests. Nothing is touched yet.
    pub fn new(path: impl AsRef<Path>, clock: impl ReactorTime + 'static) -> Self {
        let inner = Inner {
            path: path.as_ref().to_owned(),
            clock: Box::new(clock),
            locked: Cell::new(false),
            clean: Cell::new(true),
            trying: RefCell::new(None),
        };
        DeferredFilesystemLock {
            inner: Rc::new(inner),
        }
    }

    /// Waits until the lock is ours. It is tried now and then once a second (Twisted's `deferUntilLocked`).
    ///
    /// Cancelling gives up.
    ///
    /// # Errors
    /// On the Deferred: [`TimeoutError`] when it was not to be had for `timeout`; [`AlreadyTryingToLock`] when another
    /// Deferred of this lock waits already; an [`io::Error`] when the file system refuses.
    #[doc(alias = "deferUntilLocked")]
    #[track_caller]
    pub fn defer_until_locked(&self, timeout: Option<Duration>) -> Deferred<()> {
        if self.inner.trying.borrow().is_some() {
            return fail(AlreadyTryingToLock);
        }
        let (resolver, d) = Deferred::new();
        let lock = Rc::downgrade(&self.inner);
        d.set_canceller(move || {
            if let Some(lock) = lock.upgrade() {
                lock.stop_trying();
            }
            None
        });
        match self.inner.lock() {
            Ok(true) => drop(resolver.callback(())),
            Ok(false) => self.inner.try_again(resolver, timeout),
            Err(error) => drop(resolver.errback(error)),
        }
        d
    }

    /// Tries to take the lock now. Returns whether it is ours.
    ///
    /// # Errors
    /// When the file system refuses, for another reason than that there is such a file.
    pub fn lock(&self) -> io::Result<bool> {
        self.inner.lock()
    }

    /// Lets go of the lock.
    ///
    /// # Errors
    /// When it is not ours, or the file system refuses.
    pub fn unlock(&self) -> io::Result<()> {
        self.inner.unlock()
    }

    /// Whether this object holds the lock.
    pub fn locked(&self) -> bool {
        self.inner.locked.get()
    }

    /// Whether the last owner had let go of it properly; false when its lock was left over and had to be broken.
    pub fn clean(&self) -> bool {
        self.inner.clean.get()
    }
}

impl Inner {
    fn lock(&self) -> io::Result<bool> {
        self.clean.set(true);
        loop {
            match symlink(std::process::id().to_string(), &self.path) {
                Ok(()) => {
                    self.locked.set(true);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            let Some(owner) = self.owner()? else { continue };
            if is_alive(owner) {
                return Ok(false);
            }
            self.break_lock_of(owner)?;
            self.clean.set(false);
        }
    }

    /// Who holds the lock; `None` when it has gone in the meantime.
    fn owner(&self) -> io::Result<Option<i32>> {
        match fs::read_link(&self.path) {
            Ok(target) => match target.to_str().and_then(|pid| pid.parse().ok()) {
                Some(pid) => Ok(Some(pid)),
                None => Err(io::Error::other(format!(
                    "{} is no lock: it links to {}",
                    self.path.display(),
                    target.display()
                ))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what a process that is gone has left. Another may have done so and taken the lock since we looked: then what we
    /// have moved away is its lock, and goes back.
    fn break_lock_of(&self, gone: i32) -> io::Result<()> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(format!(".{}.broken", std::process::id()));
        match fs::rename(&self.path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            moved => moved?,
        }
        let target = fs::read_link(&aside)?;
        if target.to_str() != Some(gone.to_string().as_str()) {
            let _ = symlink(&target, &self.path); // an error: there is a newer owner yet
        }
        fs::remove_file(&aside)
    }

    fn unlock(&self) -> io::Result<()> {
        if !self.locked.replace(false) {
            return Err(io::Error::other(format!(
                "the lock {} is not held",
                self.path.display()
            )));
        }
        match self.owner()? {
            Some(owner) if owner == std::process::id() as i32 => fs::remove_file(&self.path),
            _ => Err(io::Error::other(format!(
                "the lock {} has been taken by another process",
                self.path.display()
            ))),
        }
    }

    fn try_again(self: &Rc<Self>, resolver: Resolver<()>, timeout: Option<Duration>) {
        let again = self.call_again();
        let lock = self.clone();
        let give_up = timeout.map(|after| {
            let give_up = move || lock.end(Err(TimeoutError { after: Some(after) }.into()));
            self.clock.call_later(after, Box::new(give_up))
        });
        self.trying.replace(Some(Trying {
            resolver,
            again,
            give_up,
        }));
    }

    fn call_again(self: &Rc<Self>) -> DelayedCall {
        let lock = self.clone();
        self.clock
            .call_later(INTERVAL, Box::new(move || lock.try_once_more()))
    }

    fn try_once_more(self: &Rc<Self>) {
        match self.lock() {
            Ok(true) => self.end(Ok(())),
            Err(error) => self.end(Err(error.into())),
            Ok(false) => {
                let again = self.call_again();
                if let Some(trying) = &mut *self.trying.borrow_mut() {
                    trying.again = again;
                }
            }
        }
    }

    fn end(&self, result: Result<(), Failure>) {
        if let Some(resolver) = self.stop_trying() {
            let _ = resolver.fire(result);
        }
    }

    fn stop_trying(&self) -> Option<Resolver<()>> {
        let Trying {
            resolver,
            again,
            give_up,
        } = self.trying.take()?;
        let _ = again.cancel(); // it may be the one that runs
        let _ = give_up.map(|call| call.cancel());
        Some(resolver)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.locked.get() {
            let _ = self.unlock();
        }
    }
}

/// Whether there is such a process; one of another user's is there too.
fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

impl fmt::Debug for DeferredFilesystemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.locked() { "held" } else { "not held" };
        write!(
            f,
            "<DeferredFilesystemLock {} {state}>",
            self.inner.path.display()
        )
    }
}

/// Somebody waits for this lock already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AlreadyTryingToLock;

impl fmt::Display for AlreadyTryingToLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("defer_until_locked was called while its earlier Deferred still waits")
    }
}

impl Error for AlreadyTryingToLock {}

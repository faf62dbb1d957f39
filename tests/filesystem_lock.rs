//! The lock in the file system, among objects, processes, and what crashes leave behind.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use errback::testing::*;
use errback::{AlreadyTryingToLock, CancelledError, Clock, DeferredFilesystemLock, TimeoutError};

const SECOND: Duration = Duration::from_secs(1);

/// A path of this test's own.
fn path(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("errback-lock-{test}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

#[test]
fn it_waits_until_the_other_lets_go() {
    let (path, clock) = (path("waits"), Clock::new());
    let one = DeferredFilesystemLock::new(&path, clock.clone());
    let other = DeferredFilesystemLock::new(&path, clock.clone());
    assert!(one.lock().unwrap());
    let d = other.defer_until_locked(None);
    clock.advance(SECOND);
    assert_no_result(&d);
    one.unlock().unwrap();
    clock.advance(SECOND);
    success_result_of(d);
    assert!(other.locked() && other.clean() && !one.locked());
    drop(other);
    assert!(!path.is_symlink(), "the last handle lets go");
}

#[test]
fn it_gives_up_in_time_and_when_cancelled() {
    let (path, clock) = (path("gives-up"), Clock::new());
    let holder = DeferredFilesystemLock::new(&path, clock.clone());
    assert!(holder.lock().unwrap());
    let lock = DeferredFilesystemLock::new(&path, clock.clone());
    let d = lock.defer_until_locked(Some(3 * SECOND));
    assert!(failure_result_of(lock.defer_until_locked(None)).is::<AlreadyTryingToLock>());
    clock.pump([SECOND; 3]);
    assert!(failure_result_of(d).is::<TimeoutError>());
    let d = lock.defer_until_locked(None);
    d.cancel();
    assert!(failure_result_of(d).is::<CancelledError>());
    assert!(clock.delayed_calls().is_empty());
}

#[test]
fn a_lock_of_a_process_that_is_gone_is_broken() {
    let path = path("broken");
    let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    child.wait().unwrap();
    symlink(child.id().to_string(), &path).unwrap();
    let lock = DeferredFilesystemLock::new(&path, Clock::new());
    assert!(lock.lock().unwrap());
    assert!(!lock.clean());
    lock.unlock().unwrap();
}

#[test]
fn a_lock_of_a_process_that_lives_is_respected() {
    let path = path("respected");
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    symlink(child.id().to_string(), &path).unwrap();
    let clock = Clock::new();
    let lock = DeferredFilesystemLock::new(&path, clock.clone());
    let d = lock.defer_until_locked(None);
    clock.advance(SECOND);
    assert_no_result(&d);
    child.kill().unwrap();
    child.wait().unwrap();
    clock.advance(SECOND);
    success_result_of(d);
}

#[test]
fn what_is_no_lock_is_an_error() {
    let lock = DeferredFilesystemLock::new("/nowhere/at/all", Clock::new());
    assert!(failure_result_of(lock.defer_until_locked(None)).is::<std::io::Error>());
    assert!(lock.unlock().is_err());
    let path = path("no-lock");
    symlink("elsewhere", &path).unwrap();
    let lock = DeferredFilesystemLock::new(&path, Clock::new());
    assert!(lock.lock().unwrap_err().to_string().contains("is no lock"));
    std::fs::remove_file(&path).unwrap();
}

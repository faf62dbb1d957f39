//! The two orders of steps on which a lane stands, in every order in which they can meet: loom tries them all.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;

/// A ring with a sleeper at one end, or the worker's count beside the host's requests.
#[derive(Default)]
struct Shared {
    tail: AtomicU64,
    sleeps: AtomicBool,
    rung: AtomicBool,
    requested: AtomicBool,
    begun: AtomicBool,
}

#[test]
fn nobody_sleeps_beside_what_was_given_without_being_rung_for() {
    loom::model(|| {
        let shared = Arc::new(Shared::default());
        let giver = Arc::clone(&shared);
        let giver = thread::spawn(move || {
            giver.tail.store(1, Ordering::Release);
            fence(Ordering::SeqCst);
            if giver.sleeps.load(Ordering::Relaxed) {
                giver.rung.store(true, Ordering::Release);
            }
        });
        shared.sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let sleeps = shared.tail.load(Ordering::Acquire) == 0;
        giver.join().unwrap();
        assert!(!sleeps || shared.rung.load(Ordering::Acquire));
    });
}

#[test]
fn a_call_that_was_asked_for_and_not_found_begun_never_runs() {
    loom::model(|| {
        let shared = Arc::new(Shared::default());
        let worker = Arc::clone(&shared);
        let worker = thread::spawn(move || {
            worker.begun.store(true, Ordering::Release);
            fence(Ordering::SeqCst);
            !worker.requested.load(Ordering::Acquire)
        });
        shared.requested.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let taken_back = !shared.begun.load(Ordering::Acquire);
        let runs = worker.join().unwrap();
        assert!(!(runs && taken_back));
    });
}

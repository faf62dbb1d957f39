//! Calls from other threads, and threads that wait for the reactor.

mod common;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{run, stop, watchdog};
use errback_deferred::{Deferred, Failure, LoopGone, PanicError, ReactorFromThreads};
use errback_reactor::{OnLoopThread, Phase, Reactor, ReactorHandle, SystemEvent};

thread_local! {
    static SEEN: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
}

#[test]
fn calls_of_many_threads_all_come_and_each_thread_in_its_order() {
    const THREADS: usize = 4;
    const CALLS: u64 = 5_000;
    let reactor = Reactor::new().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (handle, done) = (reactor.handle(), done.clone());
            thread::spawn(move || {
                for n in 0..CALLS {
                    handle
                        .call_from_thread(move |_| {
                            SEEN.with_borrow_mut(|seen| seen.push((thread, n)))
                        })
                        .unwrap();
                }
                let last = done.fetch_add(1, Ordering::SeqCst) + 1 == THREADS as u64;
                if last {
                    handle
                        .call_from_thread(|reactor| reactor.stop().unwrap())
                        .unwrap();
                }
            })
        })
        .collect();
    run(&reactor);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let seen = SEEN.take();
    assert_eq!(seen.len(), THREADS * CALLS as usize);
    for thread in 0..THREADS {
        assert!(
            seen.iter()
                .filter(|(t, _)| *t == thread)
                .map(|(_, n)| *n)
                .eq(0..CALLS)
        );
    }
}

#[test]
fn a_call_wakes_a_sleeping_reactor_every_time() {
    let reactor = Reactor::new().unwrap();
    let handle = reactor.handle();
    let thread = thread::spawn(move || {
        // Each waits for the one before, so that the reactor has gone to sleep or is about to.
        for n in 0..2_000 {
            let (answer, answered) = crossbeam_channel::bounded(1);
            handle
                .call_from_thread(move |_| answer.send(n).unwrap())
                .unwrap();
            assert_eq!(answered.recv_timeout(common::DEADLINE), Ok(n));
        }
        handle
            .call_from_thread(|reactor| reactor.stop().unwrap())
            .unwrap();
    });
    run(&reactor);
    thread.join().unwrap();
}

#[test]
fn a_call_is_made_or_refused_but_never_lost() {
    // Threads call while the reactor ends: what was accepted has been made when `run` returns.
    for _ in 0..50 {
        let reactor = Reactor::new().unwrap();
        let made = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (handle, made) = (reactor.handle(), made.clone());
                thread::spawn(move || {
                    let mut accepted = 0;
                    let call = || {
                        let made = made.clone();
                        move |_: &Reactor| {
                            made.fetch_add(1, Ordering::SeqCst);
                        }
                    };
                    while handle.call_from_thread(call()).is_ok() {
                        accepted += 1;
                        if accepted % 64 == 0 {
                            thread::yield_now();
                        }
                    }
                    accepted
                })
            })
            .collect();
        reactor.call_later(Duration::from_millis(1), stop(&reactor));
        run(&reactor);
        let made_in_time = made.load(Ordering::SeqCst);
        let accepted: u64 = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum();
        assert_eq!(made_in_time, accepted);
    }
}

#[test]
fn calls_that_bring_about_others_for_ever_do_not_keep_the_reactor_from_ending() {
    fn again(reactor: &Reactor) {
        reactor.call_from_thread(again);
    }
    let reactor = Reactor::new().unwrap();
    reactor.call_from_thread(again);
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
}

#[test]
fn after_the_end_a_call_is_refused_and_dropped() {
    let reactor = Reactor::new().unwrap();
    let handle = reactor.handle();
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    let owned = Arc::new(());
    let call = owned.clone();
    assert_eq!(handle.call_from_thread(move |_| drop(call)), Err(LoopGone));
    let call = owned.clone();
    let as_trait: Arc<dyn ReactorFromThreads> = Arc::new(handle);
    assert_eq!(
        as_trait.call_from_thread(Box::new(move || drop(call))),
        Err(LoopGone)
    );
    assert_eq!(Arc::strong_count(&owned), 1);
}

/// Runs `ask` in a thread beside a reactor, which `ask` need not stop.
fn beside_a_reactor<T: Send + 'static>(
    ask: impl FnOnce(&ReactorHandle) -> T + Send + 'static,
) -> T {
    let reactor = Reactor::new().unwrap();
    let handle = reactor.handle();
    let thread = thread::spawn(move || {
        let answer = ask(&handle);
        let _ = handle.call_from_thread(|reactor| {
            let _ = reactor.stop();
        });
        answer
    });
    run(&reactor);
    let _watchdog = watchdog();
    thread.join().unwrap()
}

#[test]
fn block_on_from_thread_gives_the_value_of_a_deferred_that_fires_later() {
    let answer = beside_a_reactor(|handle| {
        handle.block_on_from_thread(|reactor| {
            let (resolver, deferred) = Deferred::<u32>::new();
            reactor.call_later(Duration::from_millis(2), move || {
                drop(resolver.callback(42))
            });
            deferred
        })
    });
    assert_eq!(answer.unwrap(), 42);
}

#[test]
fn block_on_from_thread_gives_failures_and_panics() {
    let failure = beside_a_reactor(|handle| {
        handle.block_on_from_thread(|_| Err::<(), _>(Failure::msg("no")))
    });
    assert_eq!(failure.unwrap_err().to_string(), "no");
    let panic = beside_a_reactor(|handle| handle.block_on_from_thread(|_| -> () { panic!("oh") }));
    assert_eq!(
        panic.unwrap_err().check::<PanicError>().unwrap().message,
        "oh"
    );
}

#[test]
fn a_thread_that_waits_for_what_never_comes_is_released_by_the_shutdown() {
    let failure = beside_a_reactor(|handle| {
        handle.block_on_from_thread(|reactor| {
            reactor.stop().unwrap();
            let (resolver, deferred) = Deferred::<()>::new();
            std::mem::forget(resolver);
            deferred
        })
    });
    assert!(failure.unwrap_err().is::<LoopGone>());
}

#[test]
fn the_before_phase_may_wait_for_a_thread_that_waits_for_the_reactor() {
    let reactor = Reactor::new().unwrap();
    let inner = reactor.clone();
    reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move || {
        let handle = inner.handle();
        inner
            .defer_to_thread(move || {
                handle.block_on_from_thread(|reactor| Ok(reactor.is_running()))
            })
            .add_callback(|running| assert!(running))
    });
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
}

#[test]
fn the_reactors_own_thread_cannot_wait_for_itself() {
    let reactor = Reactor::new().unwrap();
    let failure = reactor.handle().block_on_from_thread(|_| ()).unwrap_err();
    assert!(failure.is::<OnLoopThread>());
}

#[test]
fn a_thread_that_waits_for_a_reactor_that_is_dropped_is_released() {
    let reactor = Reactor::new().unwrap();
    let handle = reactor.handle();
    let (began, has_begun) = crossbeam_channel::bounded(1);
    let thread = thread::spawn(move || {
        began.send(()).unwrap();
        handle.block_on_from_thread(|_| ())
    });
    has_begun.recv().unwrap();
    let _watchdog = watchdog();
    drop(reactor);
    assert!(thread.join().unwrap().unwrap_err().is::<LoopGone>());
}

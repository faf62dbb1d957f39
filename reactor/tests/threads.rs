//! The thread pool: defer_to_thread, call_in_thread, and how it ends.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use common::{Log, run, stop, unhandled};
use errback_deferred::{CancelledError, PanicError, gather_results};
use errback_reactor::{Phase, Reactor, SystemEvent, ThreadPoolError};

#[test]
fn the_value_the_error_and_the_panic_of_a_function_come_back() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    let noted = log.clone();
    let ok = reactor
        .defer_to_thread(|| Ok("7".parse::<u8>()?))
        .add_callback(move |n| noted.add(n));
    let noted = log.clone();
    let bad = reactor
        .defer_to_thread(|| Ok("x".parse::<u8>()?))
        .add_both(move |result| noted.add(result.unwrap_err()));
    let noted = log.clone();
    let panic = reactor
        .defer_to_thread(|| -> () { panic!("boom") })
        .add_errback(move |failure| {
            let panic = failure.trap::<PanicError>()?;
            noted.add(&panic.message);
            assert!(panic.location.as_ref().unwrap().contains("threads.rs"));
            Ok(())
        });
    let unit = reactor.defer_to_thread(|| ());
    let end = stop(&reactor);
    let all = gather_results([ok, bad, panic, unit]).add_callback(move |_| end());
    run(&reactor);
    drop(all);
    log.sort();
    log.assert(&["7", "boom", "invalid digit found in string"]);
}

#[test]
fn functions_run_side_by_side_up_to_the_size_in_named_threads() {
    let reactor = Reactor::builder().thread_pool_size(3).build().unwrap();
    let barrier = Arc::new(Barrier::new(3));
    let names = (0..9).map(|_| {
        let barrier = barrier.clone();
        reactor.defer_to_thread(move || {
            barrier.wait(); // three at a time, or nobody gets through
            Ok(std::thread::current().name().unwrap_or_default().to_owned())
        })
    });
    let end = stop(&reactor);
    let all = gather_results(names.collect::<Vec<_>>()).add_callback(move |mut names| {
        names.sort();
        names.dedup();
        assert_eq!(
            names,
            ["reactor-pool-1", "reactor-pool-2", "reactor-pool-3"]
        );
        end();
    });
    run(&reactor);
    drop(all);
}

#[test]
fn one_job_after_the_other_needs_one_thread() {
    let reactor = Reactor::new().unwrap();
    let names = Rc::new(RefCell::new(Vec::new()));
    fn next(reactor: &Reactor, names: &Rc<RefCell<Vec<String>>>) {
        let (inner, all) = (reactor.clone(), names.clone());
        let name = reactor
            .defer_to_thread(|| Ok(std::thread::current().name().unwrap_or_default().to_owned()));
        let done = name.add_callback(move |name| {
            all.borrow_mut().push(name);
            if all.borrow().len() < 200 {
                next(&inner, &all)
            } else {
                inner.stop().unwrap()
            }
        });
        drop(done);
    }
    next(&reactor, &names);
    run(&reactor);
    names.borrow_mut().dedup();
    assert_eq!(*names.borrow(), ["reactor-pool-1"]);
}

#[test]
fn jobs_that_are_queued_at_the_shutdown_are_done_and_their_deferreds_fire_before_run_returns() {
    let reactor = Reactor::builder().thread_pool_size(2).build().unwrap();
    let fired = Rc::new(RefCell::new(0));
    let (open, gate) = crossbeam_channel::bounded::<()>(0);
    for n in 0..100 {
        let (fired, gate) = (fired.clone(), gate.clone());
        let job = reactor.defer_to_thread(move || {
            if n < 2 {
                let _ = gate.recv(); // until the shutdown has begun
            }
            Ok(n)
        });
        drop(job.add_callback(move |_| *fired.borrow_mut() += 1));
    }
    reactor.add_system_event_trigger(Phase::During, SystemEvent::Shutdown, move || drop(open));
    let seen_after = Rc::new(RefCell::new(0));
    let (fired_then, seen) = (fired.clone(), seen_after.clone());
    reactor.add_system_event_trigger(Phase::After, SystemEvent::Shutdown, move || {
        seen.replace(*fired_then.borrow());
    });
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    assert_eq!(*fired.borrow(), 100);
    assert_eq!(*seen_after.borrow(), 100);
}

#[test]
fn no_thread_of_the_pool_is_left_when_run_returns() {
    let (sender, receiver) = mpsc::channel::<()>();
    let reactor = Reactor::new().unwrap();
    for _ in 0..5 {
        let sender = sender.clone();
        reactor
            .call_in_thread(move || KEPT.with(|kept| drop(kept.replace(Some(sender)))))
            .unwrap();
    }
    drop(sender);
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    // A thread's own variables are dropped at its very end.
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

thread_local! {
    static KEPT: std::cell::Cell<Option<mpsc::Sender<()>>> = const { std::cell::Cell::new(None) };
}

#[test]
fn a_job_submitted_after_the_shutdown_fails_at_once() {
    let (reports, _guard) = unhandled();
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    let (late, noted) = (reactor.clone(), log.clone());
    reactor.add_system_event_trigger(Phase::After, SystemEvent::Shutdown, move || {
        late.defer_to_thread(|| Ok(1))
            .add_both(move |result| noted.add(result.unwrap_err()))
    });
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    let noted = log.clone();
    drop(
        reactor
            .defer_to_thread(|| Ok(1))
            .add_both(move |result| noted.add(result.unwrap_err())),
    );
    assert_eq!(log.len(), 2);
    assert!(matches!(
        reactor.call_in_thread(|| unreachable!()),
        Err(ThreadPoolError::Closed)
    ));
    assert_eq!(reports.len(), 0);
}

#[test]
fn a_panic_in_call_in_thread_is_reported_on_the_reactors_thread() {
    let (reports, _guard) = unhandled();
    let reactor = Reactor::new().unwrap();
    reactor.call_in_thread(|| panic!("far away")).unwrap();
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    reports.assert_one_with("far away");
}

#[test]
fn cancelling_takes_a_queued_function_back_and_drops_the_result_of_a_running_one() {
    let (reports, _guard) = unhandled();
    let reactor = Reactor::builder().thread_pool_size(1).build().unwrap();
    let log = Log::default();
    let (began, has_begun) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let running = reactor.defer_to_thread(move || {
        began.send(()).unwrap();
        let _ = gate.recv();
        Ok("too late")
    });
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let queued = reactor.defer_to_thread(move || Ok(count.fetch_add(1, Ordering::SeqCst)));
    let (cancel_running, cancel_queued) = (running.cancel_handle(), queued.cancel_handle());
    let noted = log.clone();
    drop(running.add_both(move |result| noted.add(result.unwrap_err().is::<CancelledError>())));
    let noted = log.clone();
    drop(queued.add_both(move |result| noted.add(result.unwrap_err().is::<CancelledError>())));
    let (end, noted) = (stop(&reactor), log.clone());
    reactor.call_when_running(move || {
        has_begun.recv_timeout(common::DEADLINE).unwrap();
        cancel_running.cancel();
        cancel_queued.cancel();
        noted.add("now");
        drop(open);
        end();
    });
    run(&reactor);
    log.assert(&["true", "true", "now"]);
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    assert_eq!(reports.len(), 0);
}

#[test]
fn a_queued_function_is_dropped_when_it_is_cancelled_and_the_others_keep_their_order() {
    let reactor = Reactor::builder().thread_pool_size(1).build().unwrap();
    let (began, has_begun) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let first = reactor.defer_to_thread(move || {
        began.send(()).unwrap();
        let _ = gate.recv();
    });
    let log = Log::default();
    let owned = Arc::new(());
    let jobs: Vec<_> = (0..10)
        .map(|n| {
            let (owned, noted) = (owned.clone(), log.clone());
            let job = reactor.defer_to_thread(move || {
                drop(owned);
                Ok(n)
            });
            let cancel = job.cancel_handle();
            drop(job.add_both(move |result| match result {
                Ok(n) => noted.add(n),
                Err(failure) => assert!(failure.is::<CancelledError>()),
            }));
            cancel
        })
        .collect();
    let end = stop(&reactor);
    reactor.call_when_running(move || {
        has_begun.recv_timeout(common::DEADLINE).unwrap();
        let queued = Arc::strong_count(&owned);
        for n in [0, 3, 4, 9] {
            jobs[n].cancel();
            jobs[n].cancel();
        }
        assert_eq!(queued - Arc::strong_count(&owned), 4);
        drop(open);
        end();
    });
    run(&reactor);
    drop(first);
    log.assert(&["1", "2", "5", "6", "7", "8"]);
}

#[test]
fn jobs_that_come_in_waves_are_all_done_whoever_sleeps() {
    // Pauses of all lengths about that of a look, so that jobs come while threads look, fall asleep, and sleep.
    let reactor = Reactor::builder().thread_pool_size(3).build().unwrap();
    fn wave(reactor: &Reactor, n: u64, done: Rc<RefCell<u64>>) {
        if n == 300 {
            return reactor.stop().unwrap();
        }
        let jobs = (0..n % 7).map(|k| reactor.defer_to_thread(move || Ok(k)));
        let inner = reactor.clone();
        let all = gather_results(jobs.collect::<Vec<_>>()).add_callback(move |values| {
            *done.borrow_mut() += values.len() as u64;
            let next = inner.clone();
            let pause = Duration::from_micros(n * 13 % 100);
            inner.call_later(pause, move || wave(&next, n + 1, done));
        });
        drop(all);
    }
    let done = Rc::new(RefCell::new(0));
    let (inner, count) = (reactor.clone(), done.clone());
    reactor.call_when_running(move || wave(&inner, 0, count));
    run(&reactor);
    assert_eq!(*done.borrow(), (0..300).map(|n| n % 7).sum::<u64>());
}

#[test]
fn long_jobs_run_side_by_side_when_they_are_queued_while_all_threads_sleep() {
    let reactor = Reactor::builder().thread_pool_size(4).build().unwrap();
    fn round(reactor: &Reactor, left: u32) {
        if left == 0 {
            return reactor.stop().unwrap();
        }
        let barrier = Arc::new(Barrier::new(4));
        let jobs = (0..4).map(|_| {
            let barrier = barrier.clone();
            reactor.defer_to_thread(move || {
                barrier.wait(); // all four, or none gets through
            })
        });
        let inner = reactor.clone();
        let all = gather_results(jobs.collect::<Vec<_>>()).add_callback(move |_| {
            let next = inner.clone();
            let pause = Duration::from_millis(u64::from(left % 2));
            inner.call_later(pause, move || round(&next, left - 1));
        });
        drop(all);
    }
    let inner = reactor.clone();
    reactor.call_when_running(move || round(&inner, 50));
    run(&reactor);
}

#[test]
fn a_job_before_run_fires_in_run() {
    let reactor = Reactor::new().unwrap();
    let (done, is_done) = mpsc::channel();
    let end = stop(&reactor);
    let job = reactor
        .defer_to_thread(move || Ok(done.send(())?))
        .add_callback(move |()| end());
    is_done.recv_timeout(common::DEADLINE).unwrap();
    run(&reactor);
    drop(job);
}

#[test]
fn a_pool_whose_reactor_is_dropped_ends_too() {
    let (sender, receiver) = mpsc::channel::<()>();
    let reactor = Reactor::new().unwrap();
    reactor.call_in_thread(move || drop(sender)).unwrap();
    drop(reactor);
    assert_eq!(
        receiver.recv_timeout(Duration::from_secs(60)),
        Err(mpsc::RecvTimeoutError::Disconnected)
    );
}

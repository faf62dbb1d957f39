//! run, stop, the order of a turn, timers.

mod common;

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{Log, run, stop, unhandled};
use errback_deferred::{Deferred, NotActive, ReactorCore, ReactorTime};
use errback_reactor::mio::Interest;
use errback_reactor::mio::net::UnixStream;
use errback_reactor::{Phase, Reactor, ReactorNotRunning, RunError, SystemEvent};

const SOON: Duration = Duration::from_millis(1);

#[test]
fn a_turn_does_calls_then_timers_then_shutdown_then_one_poll() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    // Arranged in the reverse order, all before the first turn.
    let (resolver, shutdown_may_go_on) = Deferred::<()>::new();
    let (ready, mut peer) = UnixStream::pair().unwrap();
    let mut resolver = Some(resolver);
    let noted = log.clone();
    let _source = reactor
        .register(ready, Interest::READABLE, move |_, _| {
            noted.add("source");
            resolver.take().map(|resolver| resolver.callback(()));
        })
        .unwrap();
    peer.write_all(b"x").unwrap();
    let noted = log.clone();
    reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move || {
        noted.add("shutdown");
        shutdown_may_go_on
    });
    reactor.call_later(Duration::ZERO, log.note("timer"));
    reactor.call_when_running(stop(&reactor));
    let (handle, noted) = (reactor.handle(), log.clone());
    reactor.call_when_running(move || {
        // From the same thread it is a call like any other.
        let place = Rc::new(noted);
        let kept = PARKED.with(|parked| parked.replace(Some(place)));
        assert!(kept.is_none());
        handle
            .call_from_thread(|_| PARKED.with(|parked| parked.take().unwrap().add("call")))
            .unwrap();
    });
    run(&reactor);
    log.assert(&["call", "timer", "shutdown", "source"]);
}

thread_local! {
    /// What a `Send` call wants to find on the reactor's thread.
    static PARKED: Cell<Option<Rc<Log>>> = const { Cell::new(None) };
}

#[test]
fn a_reactor_runs_once_and_others_run_after_it_and_inside_it() {
    let first = Reactor::new().unwrap();
    assert_eq!(first.stop(), Err(ReactorNotRunning));
    assert!(!first.is_running());
    let outer = first.clone();
    first.call_when_running(move || {
        assert!(outer.is_running());
        assert!(matches!(outer.run(), Err(RunError::AlreadyRunning)));
        let second = Reactor::new().unwrap();
        second.call_later(SOON, stop(&second));
        second.run().unwrap();
        outer.stop().unwrap();
        assert_eq!(outer.stop(), Err(ReactorNotRunning));
    });
    run(&first);
    assert!(!first.is_running());
    assert!(matches!(first.run(), Err(RunError::NotRestartable)));
    assert_eq!(first.stop(), Err(ReactorNotRunning));
    let third = Reactor::new().unwrap();
    third.call_later(SOON, stop(&third));
    run(&third);
}

#[test]
fn reactors_run_side_by_side_in_threads() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                let reactor = Reactor::new().unwrap();
                let log = Log::default();
                for n in 0..10 {
                    reactor.call_later(SOON * n, log.note(n));
                }
                reactor.call_later(SOON * 10, stop(&reactor));
                run(&reactor);
                assert_eq!(log.len(), 10);
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn startup_triggers_run_by_phase_and_call_when_running_after_them() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    reactor.call_when_running(log.note("running"));
    for (phase, name) in [
        (Phase::After, "after"),
        (Phase::During, "during"),
        (Phase::Before, "before"),
    ] {
        reactor.add_system_event_trigger(phase, SystemEvent::Startup, log.note(name));
    }
    let (inner, noted) = (reactor.clone(), log.clone());
    reactor.call_when_running(move || {
        inner.call_when_running(noted.note("at once"));
        noted.add("then");
        inner.stop().unwrap();
    });
    run(&reactor);
    log.assert(&["before", "during", "running", "after", "at once", "then"]);
}

#[test]
fn callbacks_that_panic_are_reported_and_the_reactor_goes_on() {
    let (reports, _guard) = unhandled();
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    reactor.call_when_running(|| panic!("at the start"));
    reactor.call_later(Duration::ZERO, || panic!("in a timer"));
    let noted = log.clone();
    reactor.call_later(Duration::ZERO, move || noted.add("next timer"));
    reactor.call_from_thread(|_| panic!("in a call"));
    reactor.call_from_thread(|reactor| drop(reactor.call_later(SOON, stop(reactor))));
    reactor.add_system_event_trigger(Phase::During, SystemEvent::Shutdown, || -> () {
        panic!("at the end")
    });
    reactor.add_system_event_trigger(
        Phase::During,
        SystemEvent::Shutdown,
        log.note("next trigger"),
    );
    run(&reactor);
    log.assert(&["next timer", "next trigger"]);
    assert_eq!(reports.len(), 4);
}

#[test]
fn a_timer_without_delay_that_repeats_itself_does_not_starve_sources() {
    let reactor = Reactor::new().unwrap();
    let (ready, mut peer) = UnixStream::pair().unwrap();
    let end = reactor.clone();
    let _source = reactor
        .register(ready, Interest::READABLE, move |_, _| end.stop().unwrap())
        .unwrap();
    fn again(reactor: &Reactor) {
        let next = reactor.clone();
        reactor.call_later(Duration::ZERO, move || again(&next));
    }
    again(&reactor);
    peer.write_all(b"x").unwrap();
    run(&reactor);
}

#[test]
fn a_call_that_repeats_itself_does_not_starve_timers_nor_the_end() {
    let reactor = Reactor::new().unwrap();
    fn again(reactor: &Reactor) {
        reactor.call_from_thread(again);
    }
    again(&reactor);
    reactor.call_later(SOON, stop(&reactor));
    run(&reactor);
}

#[test]
fn a_timer_is_never_early_and_waiting_for_it_is_not_busy() {
    let reactor = Reactor::new().unwrap();
    let delay = Duration::from_micros(30_250);
    let started = Instant::now();
    let fired = Rc::new(Cell::new(None));
    let (at, end) = (fired.clone(), stop(&reactor));
    reactor.call_later(delay, move || {
        at.set(Some(Instant::now()));
        end();
    });
    let cpu = cpu_time();
    run(&reactor);
    assert!(fired.get().unwrap() - started >= delay);
    assert!(cpu_time() - cpu < Duration::from_millis(20), "it spun");
}

#[test]
fn no_timer_is_early_whichever_is_set_after_which() {
    const TIMERS: u64 = 400;
    let reactor = Reactor::new().unwrap();
    let early = Rc::new(Cell::new(0));
    let left = Rc::new(Cell::new(TIMERS));
    for n in 0..TIMERS {
        // Set from inside a timer, in groups of five of which each is due before the one that was set before it.
        let (inner, early, left) = (reactor.clone(), early.clone(), left.clone());
        let delay = Duration::from_nanos((TIMERS - n) % 5 * 1_000_000 + n * 7919 % 1_000_000);
        reactor.call_later(Duration::from_micros(n * 20), move || {
            let (same, set) = (inner.clone(), Instant::now());
            inner.call_later(delay, move || {
                early.set(early.get() + u32::from(set.elapsed() < delay));
                left.set(left.get() - 1);
                if left.get() == 0 {
                    same.stop().unwrap();
                }
            });
        });
    }
    run(&reactor);
    assert_eq!(early.get(), 0);
}

/// The processor time of this thread, from the scheduler's own account in nanoseconds.
fn cpu_time() -> Duration {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(
        account
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0),
    )
}

#[test]
fn timers_run_in_order_of_time() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    let calls = [3, 1, 2].map(|delay| reactor.call_later(delay * SOON, log.note(delay)));
    // However long it took to get here, this is the order that was asked for.
    let mut expected: Vec<_> = calls
        .iter()
        .zip(["3", "1", "2"])
        .map(|(c, name)| (c.get_time().unwrap(), name))
        .collect();
    expected.sort();
    let last = expected[2].0;
    let end = reactor.call_later(Duration::MAX, stop(&reactor));
    end.reset((last + SOON).saturating_sub(reactor.seconds()))
        .unwrap();
    run(&reactor);
    log.assert(
        &expected
            .into_iter()
            .map(|(_, name)| name)
            .collect::<Vec<_>>(),
    );
}

#[test]
fn a_delayed_call_can_be_moved_and_taken_back_and_says_what_became_of_it() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    let cancelled = reactor.call_later(SOON, log.note("cancelled"));
    cancelled.cancel().unwrap();
    let moved = reactor.call_later(Duration::MAX, stop(&reactor));
    moved.reset(SOON).unwrap();
    moved.delay(SOON).unwrap();
    run(&reactor);
    log.assert(&[]);
    assert_eq!(cancelled.cancel(), Err(NotActive::AlreadyCancelled));
    assert_eq!(moved.cancel(), Err(NotActive::AlreadyCalled));
}

#[test]
fn what_is_left_when_run_returns_is_dropped_and_what_comes_later_too() {
    let reactor = Reactor::new().unwrap();
    let alive = Rc::new(());
    let owned = (alive.clone(), reactor.clone());
    let left = reactor.call_later(Duration::from_secs(3600), move || drop(owned));
    let (source, _peer) = UnixStream::pair().unwrap();
    let owned = (alive.clone(), reactor.clone());
    reactor
        .register(source, Interest::READABLE, move |_, _| drop(owned.clone()))
        .unwrap()
        .keep();
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    assert_eq!(left.cancel(), Err(NotActive::AlreadyCancelled));
    assert_eq!(Rc::strong_count(&alive), 1);

    let owned = alive.clone();
    let late = reactor.call_later(Duration::ZERO, move || drop(owned));
    assert!(!late.active());
    let owned = alive.clone();
    assert_eq!(reactor.call_when_running(move || drop(owned)), None);
    let owned = alive.clone();
    let id =
        reactor.add_system_event_trigger(Phase::After, SystemEvent::Shutdown, move || drop(owned));
    assert!(!reactor.remove_system_event_trigger(id));
    let (source, _peer) = UnixStream::pair().unwrap();
    assert!(
        reactor
            .register(source, Interest::READABLE, |_, _| ())
            .is_err()
    );
    assert_eq!(Rc::strong_count(&alive), 1);
}

#[test]
fn a_resolver_that_a_dropped_timer_owned_fails_its_deferred() {
    let reactor = Reactor::new().unwrap();
    let (resolver, deferred) = Deferred::<()>::new();
    reactor.call_later(Duration::MAX, move || drop(resolver.callback(())));
    let log = Log::default();
    let noted = log.clone();
    let deferred = deferred.add_errback(move |_| noted.add("failed"));
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    log.assert(&["failed"]);
    drop(deferred);
}

#[test]
fn the_traits_of_an_event_loop_lead_to_the_same_reactor() {
    fn use_any_loop(any: &dyn ReactorCore, log: &Log, end: impl FnOnce() + 'static) {
        let before = ReactorTime::seconds(any);
        any.call_later(SOON, Box::new(log.note("timer")));
        any.add_system_event_trigger(Phase::During, SystemEvent::Startup, {
            let noted = log.clone();
            let from_threads = any.from_threads();
            Box::new(move || {
                noted.add("startup");
                std::thread::spawn(move || from_threads.call_from_thread(Box::new(|| ())))
                    .join()
                    .unwrap()
                    .unwrap();
                None
            })
        });
        let gone = any.add_system_event_trigger(
            Phase::After,
            SystemEvent::Startup,
            Box::new(|| unreachable!()),
        );
        assert!(any.remove_system_event_trigger(gone));
        any.call_later(2 * SOON, Box::new(end));
        assert!(any.seconds() >= before);
    }
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    use_any_loop(&reactor, &log, stop(&reactor));
    run(&reactor);
    log.assert(&["startup", "timer"]);
}

#[test]
fn a_reactor_that_never_ran_lets_go_of_everything() {
    let reactor = Reactor::new().unwrap();
    let handle = reactor.handle();
    let alive = Rc::new(());
    let owned = alive.clone();
    reactor.call_later(SOON, move || drop(owned));
    let owned = alive.clone();
    reactor.call_when_running(move || drop(owned));
    reactor.services().get_or_init(|| alive.clone());
    drop(reactor);
    assert_eq!(Rc::strong_count(&alive), 1);
    assert!(handle.call_from_thread(|_| ()).is_err());
}

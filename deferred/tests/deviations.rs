//! What differs from Twisted on purpose: `docs/deviations.md` says why.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use errback_deferred::testing::*;
use errback_deferred::*;

const SECOND: Duration = Duration::from_secs(1);

type Log = Rc<RefCell<Vec<String>>>;

/// The failures that nobody handles from now on.
fn unhandled() -> (Log, ObserverGuard) {
    let log = Log::default();
    let seen = log.clone();
    let guard = observe_unhandled(move |it| seen.borrow_mut().push(it.failure.to_string()));
    (log, guard)
}

#[test]
fn a_dropped_firing_end_fails_its_deferred() {
    let (resolver, d) = Deferred::<()>::new();
    drop(resolver);
    assert!(failure_result_of(d).is::<ResolverDropped>());
}

#[test]
fn a_canceller_that_panics_still_cancels() {
    let (log, _guard) = unhandled();
    let (_resolver, d) = Deferred::<()>::with_canceller(|| panic!("cannot"));
    d.cancel();
    assert!(failure_result_of(d).is::<CancelledError>());
    assert!(log.borrow()[0].contains("cannot"));
}

#[test]
fn a_callback_that_returns_its_own_deferred_fails_it() {
    let own = Rc::new(Cell::new(None));
    let given = own.clone();
    let (resolver, d) = Deferred::<()>::new();
    let d = d.add_callback(move |()| given.take().unwrap_or_else(|| succeed(())));
    let handle = d.cancel_handle();
    let (log, _guard) = unhandled();
    own.set(Some(d));
    resolver.callback(()).unwrap();
    handle.cancel();
    let itself = Failure::from(ReturnedItself).to_string();
    assert_eq!(*log.borrow(), [itself]);
}

#[test]
fn a_canceller_that_cancels_its_own_deferred_is_called_once() {
    let (handle, calls) = (Rc::new(Cell::new(None)), Rc::new(Cell::new(0)));
    let (own, count) = (handle.clone(), calls.clone());
    let (_resolver, d) = Deferred::<()>::with_canceller(move || {
        count.set(count.get() + 1);
        let own: Option<CancelHandle> = own.take();
        own.into_iter().for_each(|own| own.cancel());
        None
    });
    handle.set(Some(d.cancel_handle()));
    d.cancel();
    assert!(failure_result_of(d).is::<CancelledError>());
    assert_eq!(calls.get(), 1);
}

#[test]
fn the_first_of_nothing_fails() {
    assert!(failure_result_of(race::<()>([])).is::<EmptyList>());
    let list = DeferredList::<()>::new([]).fire_on_one_callback().start();
    assert!(failure_result_of(list).is::<EmptyList>());
}

#[test]
fn stopping_a_cooperator_ends_all_tasks() {
    let cooperator = Cooperator::new(Clock::new());
    let done: Vec<_> = (0..3)
        .map(|_| cooperator.coiterate(std::iter::repeat(())))
        .collect();
    cooperator.stop();
    for d in done {
        let failure = failure_result_of(d);
        assert_eq!(
            failure.check::<TaskFinished>(),
            Some(&TaskFinished::SchedulerStopped)
        );
    }
}

#[test]
fn a_late_failure_of_a_stopped_task_is_reported_itself() {
    let (log, _guard) = unhandled();
    let clock = Clock::new();
    let cooperator = Cooperator::new(clock.clone());
    let (resolver, waited_for) = Deferred::<()>::new();
    let task = cooperator.cooperate([waited_for]);
    let done = task.when_done();
    clock.advance(SECOND);
    task.stop().unwrap();
    resolver.errback(Failure::msg("too late")).unwrap();
    assert!(failure_result_of(done).is::<TaskFinished>());
    assert_eq!(*log.borrow(), ["too late"]);
}

#[test]
fn a_coroutine_takes_what_was_paused_under_it() {
    let (own, awaited) = (Rc::new(Cell::new(None)), Rc::new(Cell::new(None)));
    let (inside, result) = (own.clone(), awaited.clone());
    let (resolver, d) = Deferred::<i64>::new();
    let d = d.add_callback(move |n| {
        let d: Deferred<i64> = inside.take().unwrap();
        let pause = d.pause();
        let d = ensure_deferred(async move { Ok(d.await? + 1) });
        result.set(Some((d, pause)));
        Ok(n)
    });
    own.set(Some(d));
    resolver.callback(1).unwrap();
    let (d, pause) = awaited.take().unwrap();
    assert_eq!(success_result_of(d), 2);
    drop(pause);
}

#[test]
fn a_paused_coroutine_that_ends_before_its_cancel_arrives_keeps_its_result() {
    let (resolver, awaited) = Deferred::<i64>::new();
    let d = ensure_deferred(awaited);
    let pause = d.pause();
    d.cancel();
    resolver.callback(1).unwrap();
    drop(pause);
    assert_eq!(success_result_of(d), 1);
}

#[test]
fn a_loop_whose_last_call_is_under_way_cannot_be_started() {
    let (resolver, waited_for) = Deferred::<()>::new();
    let once = Cell::new(Some(waited_for));
    let looping = LoopingCall::new(Clock::new(), move || once.take().unwrap());
    let first = looping.start(SECOND, true);
    looping.stop();
    assert!(failure_result_of(looping.start(SECOND, true)).is::<AlreadyRunning>());
    resolver.callback(()).unwrap();
    success_result_of(first);
}

#[test]
fn a_restarted_loop_counts_from_its_start() {
    let (clock, counts) = (Clock::new(), Rc::new(RefCell::new(vec![])));
    let log = counts.clone();
    let looping = LoopingCall::with_count(clock.clone(), move |n| log.borrow_mut().push(n));
    for _ in 0..2 {
        let stopped = looping.start(SECOND, true);
        clock.advance(SECOND * 2);
        looping.stop();
        success_result_of(stopped);
        clock.advance(SECOND * 10);
    }
    assert_eq!(*counts.borrow(), [1, 2, 1, 2]);
}

#[test]
fn a_release_far_down_is_put_off() {
    let lock = DeferredLock::new();
    let held = lock.acquire();
    let log = Rc::new(RefCell::new(Vec::new()));
    let runs: Vec<_> = (0..100)
        .map(|i| {
            let after = log.clone();
            lock.run(|| ())
                .add_callback(move |()| after.borrow_mut().push(i))
        })
        .collect();
    drop(held);
    // Nested, the last waiter's result is there first; the put-off ones follow each other.
    let nested = (0..63).rev();
    let put_off = 63..100;
    assert_eq!(*log.borrow(), put_off.chain(nested).collect::<Vec<_>>());
    drop(runs);
}

#[test]
fn the_clock_orders_moved_calls_as_twisteds_does() {
    let (clock, log) = (Clock::new(), Log::default());
    let call = |after: u32, name: &'static str| {
        let log = log.clone();
        clock.call_later(SECOND * after, move || log.borrow_mut().push(name.into()))
    };
    let later = call(5, "moved to an earlier time");
    let earlier = call(1, "moved to a later time");
    call(2, "not moved");
    later.reset(SECOND * 2).unwrap();
    earlier.delay(SECOND).unwrap();
    clock.advance(SECOND * 2);
    let want = [
        "moved to a later time",
        "not moved",
        "moved to an earlier time",
    ];
    assert_eq!(*log.borrow(), want);
}

#[test]
fn a_running_callback_owns_its_input() {
    let returned_while_it_runs = |visible: bool| {
        let own = Rc::new(Cell::new(None));
        let inside = own.clone();
        let (other_fires, other) = Deferred::<()>::new();
        let given = own.clone();
        let other = other.add_callback(move |()| given.take().unwrap());
        let (resolver, d) = Deferred::<i64>::new();
        let d = if visible { d.with_visible_input() } else { d };
        let d = d.add_callback(move |n| {
            drop(inside);
            other_fires.callback(())?;
            Ok(n + 1)
        });
        own.set(Some(d));
        resolver.callback(1).unwrap();
        success_result_of(other)
    };
    assert_eq!(returned_while_it_runs(false), 2);
    assert_eq!(returned_while_it_runs(true), 1);
}

#[test]
fn a_permit_releases_when_it_is_dropped_unless_forgotten() {
    let lock = DeferredLock::new();
    drop(success_result_of(lock.acquire()));
    assert!(!lock.locked());
    success_result_of(lock.acquire()).forget();
    assert!(lock.locked());
    assert_eq!(lock.release(), Ok(()));
    assert_eq!(lock.release(), Err(NotHeld));
}

#[test]
fn a_get_too_many_fails() {
    let queue = DeferredQueue::<i64>::with_limits(Some(0), Some(0));
    assert!(failure_result_of(queue.get()).is::<QueueUnderflow>());
    assert_eq!(queue.put(7).unwrap_err().into_item(), 7);
}

#[test]
fn stopping_what_does_not_run_does_nothing() {
    let looping = LoopingCall::new(Clock::new(), || ());
    looping.stop();
    looping.reset();
    let stopped = looping.start(SECOND, false);
    assert!(failure_result_of(looping.start(SECOND, false)).is::<AlreadyRunning>());
    looping.stop();
    success_result_of(stopped);
}

#[test]
fn a_list_consumes_errors() {
    let (log, _guard) = unhandled();
    let list = DeferredList::new([fail::<()>(Failure::msg("mine"))]);
    drop(success_result_of(list.results()));
    assert_eq!(*log.borrow(), Vec::<String>::new());
}

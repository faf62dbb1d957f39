//! What a chain does, in the order of its life: firing, levels, waiting, cancelling, pausing, letting go.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::num::ParseIntError;
use std::rc::Rc;
use std::time::Duration;

use errback_deferred::testing::*;
use errback_deferred::*;

/// A place for a handle that callbacks want to use.
type Held<T> = Rc<RefCell<Option<Deferred<T>>>>;

#[test]
fn the_handle_is_one_pointer() {
    assert_eq!(size_of::<Deferred<[u64; 9]>>(), size_of::<usize>());
    assert_eq!(size_of::<Failure>(), size_of::<usize>());
}

#[test]
fn values_and_failures_take_turns_on_their_levels() {
    let (resolver, d) = Deferred::<String>::new();
    let d = d
        .add_callback(|s| Ok(s.parse::<i64>()?))
        .add_callback(|_| -> Result<i64, Failure> { bail!("the failure should pass by") })
        .add_errback(|f| f.trap::<ParseIntError>().map(|_| -1))
        .add_errback(|f| Err(Failure::msg(format!("it was handled: {f}"))))
        .add_callbacks(|n| Ok(n - 1), |_| Ok(0));
    resolver.callback("x".into()).unwrap();
    assert_eq!(success_result_of(d), -2);
}

#[test]
fn a_levels_errback_does_not_see_its_own_callbacks_failure() {
    let d = succeed(1).add_callbacks(|_| -> Result<i64, Failure> { bail!("mine") }, |_| Ok(0));
    assert_eq!(failure_result_of(d).to_string(), "mine");
}

#[test]
fn a_chain_waits_for_the_deferred_that_a_callback_returned() {
    let (inner, waited_for) = Deferred::<i64>::new();
    let d = succeed(())
        .add_callback(move |()| waited_for)
        .add_callback(|n| Ok(n + 1));
    assert_eq!(d.state(), State::Waiting);
    inner.callback(1).unwrap();
    assert_eq!(success_result_of(d), 2);
}

#[test]
fn a_cancel_goes_to_the_innermost() {
    let (inner, waited_for) = Deferred::<i64>::with_canceller(|| Some(Ok(9)));
    let middle = succeed(()).add_callback(move |()| waited_for);
    let d = succeed(()).add_callback(move |()| middle);
    d.cancel();
    assert!(inner.called());
    assert_eq!(success_result_of(d), 9);
}

#[test]
fn one_late_firing_after_a_cancel_is_swallowed_and_only_one() {
    let (resolver, d) = Deferred::<i64>::new();
    let resolver = resolver.into_shared();
    d.cancel();
    assert!(resolver.callback(1).is_ok());
    assert_eq!(resolver.callback(2).unwrap_err().result.unwrap(), 2);
    assert!(failure_result_of(d).is::<CancelledError>());
}

#[test]
fn after_a_canceller_a_firing_is_told_that_it_is_late() {
    let (resolver, d) = Deferred::<i64>::with_canceller(|| None);
    d.cancel();
    assert_eq!(resolver.callback(1).unwrap_err().result.unwrap(), 1);
    assert!(failure_result_of(d).is::<CancelledError>());
}

#[test]
fn a_canceller_that_panics_cancels_all_the_same() {
    let guard = NoUnhandledFailures::new();
    let (_resolver, d) = Deferred::<i64>::with_canceller(|| panic!("no"));
    d.cancel();
    assert!(failure_result_of(d).is::<CancelledError>());
    let logged = guard.flush();
    assert_eq!(logged.len(), 1);
    assert!(logged[0].failure.is::<PanicError>());
}

#[test]
fn a_resolver_that_goes_with_the_work_that_the_canceller_stops_is_no_failure() {
    let clock = Clock::new();
    for fire_with in [None, Some(-1)] {
        let (resolver, d) = Deferred::<i64>::new();
        let call = clock.call_later(Duration::from_secs(1), move || drop(resolver.callback(1)));
        d.set_canceller(move || {
            call.cancel().unwrap();
            fire_with.map(Ok)
        });
        d.cancel();
        match fire_with {
            None => assert!(failure_result_of(d).is::<CancelledError>()),
            Some(value) => assert_eq!(success_result_of(d), value),
        }
    }
}

#[test]
fn a_resolver_dropped_by_a_cancel_request_cancels() {
    let held = Rc::new(Cell::new(None));
    let dropped = held.clone();
    let (resolver, d) = Deferred::<i64>::with_cancel_request(move || drop(dropped.take()));
    held.set(Some(resolver));
    d.cancel();
    assert!(failure_result_of(d).is::<CancelledError>());
}

#[test]
fn a_numbered_cancel_request_asks_each_time_until_the_deferred_fires() {
    let asked = Rc::new(RefCell::new(vec![]));
    let held = Rc::new(RefCell::new(HashMap::new()));
    let (seen, dropped) = (asked.clone(), held.clone());
    let stop: Rc<dyn Fn(u64)> = Rc::new(move |number| {
        seen.borrow_mut().push(number);
        drop(dropped.borrow_mut().remove(&number));
    });
    let working = |number| {
        let (resolver, d) = Deferred::<i64>::new();
        d.set_cancel_request(stop.clone(), number);
        (resolver, d)
    };

    let (resolver, d) = working(1);
    d.cancel();
    d.cancel();
    assert!(!d.called());
    assert_eq!(Rc::strong_count(&stop), 2);
    resolver.callback(1).unwrap();
    assert_eq!(Rc::strong_count(&stop), 1);
    d.cancel();
    assert_eq!(success_result_of(d), 1);
    assert_eq!(*asked.borrow(), [1, 1]);

    // The cancel is passed on to the one that is waited for.
    let (resolver, inner) = working(2);
    let outer = succeed(()).add_callback(move |()| inner);
    outer.cancel();
    resolver.errback(CancelledError).unwrap();
    assert!(failure_result_of(outer).is::<CancelledError>());
    assert_eq!(*asked.borrow(), [1, 1, 2]);

    // Nobody is left who would fire it.
    let (resolver, d) = working(3);
    held.borrow_mut().insert(3, resolver);
    d.cancel();
    assert!(failure_result_of(d).is::<CancelledError>());

    // Each of the two takes the other's place.
    let (_resolver, d) = working(4);
    d.set_canceller(|| Some(Ok(-4)));
    d.cancel();
    assert_eq!(success_result_of(d), -4);
    assert_eq!(*asked.borrow(), [1, 1, 2, 3]);

    let (resolver, dropped) = working(5);
    drop(dropped);
    drop(resolver);
    assert_eq!(Rc::strong_count(&stop), 1);
}

#[test]
fn an_errback_may_trap_and_then_return_a_deferred() {
    let d = fail::<i64>(CancelledError).add_errback(|failure| {
        try_deferred(|| {
            failure.trap_any::<(TimeoutError, CancelledError)>()?;
            Ok(succeed(7))
        })
    });
    assert_eq!(success_result_of(d), 7);
    assert!(!Failure::msg("x").is_any::<(TimeoutError, CancelledError)>());
}

#[test]
fn a_cancel_handle_reaches_a_deferred_that_was_given_away() {
    let (_resolver, d) = Deferred::<i64>::new();
    let handle = d.cancel_handle();
    let d = gather_results([d]);
    handle.cancel();
    let failure = failure_result_of(d);
    let first = failure.check::<FirstError>().unwrap();
    assert_eq!(first.index, 0);
    assert!(first.failure.is::<CancelledError>());
}

#[test]
fn pauses_count() {
    let (resolver, d) = Deferred::<i64>::new();
    let (one, two) = (d.pause(), d.pause());
    let seen = Rc::new(Cell::new(0));
    let sink = seen.clone();
    let d = d.add_callback(move |n| sink.set(n));
    resolver.callback(3).unwrap();
    drop(one);
    assert_eq!(seen.get(), 0);
    two.unpause();
    assert_eq!(seen.get(), 3);
    drop(d);
}

#[test]
fn a_callback_may_add_to_its_own_deferred() {
    let held: Held<i64> = Rc::default();
    let (resolver, d) = Deferred::<i64>::new();
    let order: Rc<RefCell<Vec<i64>>> = Rc::default();
    let (inside, log, log2) = (held.clone(), order.clone(), order.clone());
    let d = d.add_callback(move |n| {
        let d = inside.take().unwrap();
        let d = d.add_callback(move |n: i64| {
            log.borrow_mut().push(n);
            Ok(n)
        });
        inside.replace(Some(d));
        log2.borrow_mut().push(n);
        Ok(n + 1)
    });
    held.replace(Some(d));
    resolver.callback(1).unwrap();
    assert_eq!(*order.borrow(), [1, 2]);
}

#[test]
fn a_callback_that_returns_its_own_deferred_fails() {
    let held: Held<i64> = Rc::default();
    let inside = held.clone();
    let (resolver, d) = Deferred::<i64>::new();
    let d = d.add_callback(move |_| inside.take().unwrap());
    let (witness, last) = Deferred::<i64>::new();
    held.replace(Some(d.add_both(move |r| {
        witness.fire(r).unwrap();
        Ok(0)
    })));
    resolver.callback(1).unwrap();
    assert!(failure_result_of(last).is::<ReturnedItself>());
}

#[test]
fn a_panic_becomes_a_failure_with_its_place() {
    let d = succeed(1).add_callback(|_| -> Result<i64, Failure> { panic!("at {}", "this line") });
    let failure = failure_result_of(d);
    let panic = failure.check::<PanicError>().unwrap();
    assert_eq!(panic.message, "at this line");
    assert!(
        panic.location.as_ref().unwrap().contains("chains.rs:"),
        "{panic}"
    );
}

#[test]
fn a_resolver_dropped_unfired_fails_its_deferred() {
    let (resolver, d) = Deferred::<i64>::new();
    drop(resolver);
    let failure = failure_result_of(d);
    assert!(
        failure
            .check::<ResolverDropped>()
            .unwrap()
            .made_at
            .file()
            .ends_with("chains.rs")
    );
}

#[test]
fn a_dropped_failure_is_reported_once_with_the_place_of_its_deferred() {
    let guard = NoUnhandledFailures::new();
    let line = line!() + 1;
    let d = fail::<i64>(Failure::msg("lost"));
    drop(d.add_callback(|_| ()));
    let seen = guard.flush();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].made_at.line(), seen[0].failure.to_string()),
        (line, "lost".to_owned())
    );
}

#[test]
fn observers_are_scoped_and_the_innermost_is_told() {
    let outer = NoUnhandledFailures::new();
    let inner = NoUnhandledFailures::new();
    drop(fail::<()>(Failure::msg("one")));
    assert_eq!(inner.flush().len(), 1);
    drop(inner);
    drop(fail::<()>(Failure::msg("two")));
    assert_eq!(outer.flush().len(), 1);
}

#[test]
fn dropping_a_deferred_cancels_nothing() {
    let ran = Rc::new(Cell::new(false));
    let flag = ran.clone();
    let (resolver, d) = Deferred::<i64>::new();
    drop(d.add_callback(move |_| flag.set(true)));
    resolver.callback(1).unwrap();
    assert!(ran.get());
}

#[test]
fn debug_shows_what_twisteds_repr_does() {
    let (resolver, d) = Deferred::<i64>::new();
    let unfired = format!("{d:?}");
    assert!(
        unfired.starts_with("<Deferred at 0x") && unfired.ends_with('>'),
        "{unfired}"
    );
    let waiting = succeed(()).add_callback(move |()| d);
    assert!(format!("{waiting:?}").contains(" waiting on Deferred at 0x"));
    resolver.callback(5).unwrap();
    assert!(format!("{waiting:?}").ends_with("current result: 5>"));
    let failed = fail::<i64>(CancelledError);
    assert!(format!("{failed:?}").contains("CancelledError"));
    failed.log_failure();
}

#[test]
fn a_chained_resolver_that_was_used_fails_the_chain() {
    let (resolver, d) = Deferred::<i64>::new();
    let resolver = resolver.into_shared();
    resolver.callback(1).unwrap();
    let rest = succeed(2).chain_deferred(resolver);
    assert!(failure_result_of(rest).is::<AlreadyCalledError>());
    assert_eq!(success_result_of(d), 1);
}

#[test]
fn a_tuple_of_deferreds_keeps_its_types() {
    let (resolver, d) = Deferred::<String>::new();
    let both = gather_tuple((succeed(1u8), d));
    resolver.callback("two".into()).unwrap();
    assert_eq!(success_result_of(both), (1, "two".to_owned()));
}

#[test]
fn an_observable_gives_everybody_the_one_result() {
    let guard = NoUnhandledFailures::new();
    let (resolver, d) = Deferred::<i64>::new();
    let shared = ObservableDeferred::new(d);
    let early = shared.observe();
    let cancelled = shared.observe();
    cancelled.cancel();
    resolver.errback(CancelledError).unwrap();
    assert!(failure_result_of(early).is::<CancelledError>());
    assert!(failure_result_of(cancelled).is::<CancelledError>());
    assert!(failure_result_of(shared.observe()).is::<CancelledError>());
    drop(shared);
    drop(ObservableDeferred::new(fail::<i64>(Failure::msg(
        "nobody looked",
    ))));
    assert_eq!(guard.flush().len(), 1);
}

#[test]
fn a_delayed_cancel_waits_for_the_work() {
    let (resolver, work) = Deferred::<i64>::new();
    let d = work.delay_cancellation();
    let seen = Rc::new(Cell::new(false));
    let flag = seen.clone();
    d.cancel();
    let d = d.add_both(move |result| {
        flag.set(result.unwrap_err().is::<CancelledError>());
    });
    assert!(!seen.get());
    resolver.callback(1).unwrap();
    assert!(seen.get());
    drop(d);
}

#[test]
fn a_cancel_takes_queued_work_back_once_whatever_else_is_set_and_a_firing_forgets_it() {
    let asked = Rc::new(RefCell::new(vec![]));
    let seen = asked.clone();
    let queue: Rc<dyn Fn(u64)> = Rc::new(move |number| seen.borrow_mut().push(number));
    let queued = |number| {
        let (resolver, d) = Deferred::<i64>::new();
        d.set_take_back(queue.clone(), number);
        (resolver, d)
    };
    let (_resolver, paused) = queued(1);
    let pause = paused.pause();
    paused.cancel();
    paused.cancel();
    assert_eq!(*asked.borrow(), [1]);
    drop(pause);
    assert!(failure_result_of(paused).is::<CancelledError>());

    let (_resolver, inner) = queued(2);
    inner.set_canceller(|| Some(Ok(-1)));
    let outer = succeed(()).add_callback(move |()| inner);
    outer.cancel();
    assert_eq!(*asked.borrow(), [1, 2]);
    assert_eq!(success_result_of(outer), -1);

    let (resolver, fired) = queued(3);
    assert_eq!(Rc::strong_count(&queue), 2);
    resolver.callback(3).unwrap();
    assert_eq!(Rc::strong_count(&queue), 1);
    fired.cancel();
    assert_eq!(success_result_of(fired), 3);

    let (resolver, dropped) = queued(4);
    drop(dropped);
    drop(resolver);
    assert_eq!((Rc::strong_count(&queue), asked.borrow().len()), (1, 2));
}

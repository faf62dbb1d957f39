//! Jobs and Deferreds on tokio's loop, with no `Reactor` in the program: the loop of `examples/on_tokio.rs`.

#[allow(dead_code, reason = "its main is another program's")]
#[path = "../examples/on_tokio.rs"]
mod on_tokio;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use errback::{
    CancelledError, Deferred, Failure, LoopGone, NotActive, Pool, ReactorCore, ReactorTime,
    WorkerDied, defer_to_process_pool,
};
use on_tokio::{TokioLoop, count_primes, crash};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// Longer than any machine needs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `body` on a loop, and stops that.
#[track_caller]
fn on_loop<R>(body: impl AsyncFnOnce(TokioLoop) -> Result<R, Failure>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let result = LocalSet::new().block_on(&runtime, async {
        timeout(DEADLINE, async {
            let event_loop = TokioLoop::new();
            let result = body(event_loop.clone()).await;
            event_loop.stop().await;
            result
        })
        .await
    });
    result
        .expect("it ends before the deadline")
        .expect("it succeeds")
}

fn pool() -> Pool {
    Pool::builder().size(2).build().expect("a pool")
}

#[errback::task]
fn never() {
    loop {
        std::thread::park();
    }
}

#[test]
fn a_job_is_awaited() {
    let pool = pool();
    let count = on_loop(async |event_loop| {
        defer_to_process_pool(&event_loop, &pool, count_primes, (0, 100)).await
    });
    assert_eq!(count, 25);
}

#[test]
fn callbacks_run_on_the_loops_thread() {
    let (pool, here) = (pool(), std::thread::current().id());
    let there = on_loop(async |event_loop| {
        let d = defer_to_process_pool(&event_loop, &pool, count_primes, (0, 100));
        d.add_callback(|_| Ok(std::thread::current().id())).await
    });
    assert_eq!(there, here);
}

#[test]
fn a_worker_that_dies_fails_only_its_own_job() {
    on_loop(async |event_loop| {
        let pool = pool();
        let crashed = defer_to_process_pool(&event_loop, &pool, crash, ());
        let counted = defer_to_process_pool(&event_loop, &pool, count_primes, (0, 100));
        assert_eq!(counted.await?, 25);
        let failure = crashed.await.expect_err("an abort");
        assert_eq!(failure.trap::<WorkerDied>()?.exit.signal(), Some(6));
        Ok(())
    });
}

#[test]
fn a_job_that_runs_can_be_cancelled() {
    on_loop(async |event_loop| {
        let pool = pool();
        let d = defer_to_process_pool(&event_loop, &pool, never, ());
        let cancel = d.cancel_handle();
        event_loop.call_later(Duration::from_millis(20), Box::new(move || cancel.cancel()));
        let failure = d.await.expect_err("it never ends by itself");
        failure.trap::<CancelledError>()?;
        Ok(())
    });
}

#[test]
fn a_loop_that_stops_fires_what_is_outstanding() {
    let outcomes = Rc::new(RefCell::new(Vec::new()));
    let pool = pool();
    on_loop(async |event_loop| {
        for _ in 0..5 {
            let outcomes = outcomes.clone();
            defer_to_process_pool(&event_loop, &pool, never, ())
                .add_both(move |result| outcomes.borrow_mut().push(result.is_err()))
                .log_failure();
        }
        Ok(())
    });
    assert_eq!(*outcomes.borrow(), [true; 5]);
}

#[test]
fn a_loop_that_is_gone_says_so() {
    let threads = on_loop(async |event_loop| Ok(event_loop.from_threads()));
    assert_eq!(threads.call_from_thread(Box::new(|| ())), Err(LoopGone));
}

#[test]
fn a_call_that_panics_stops_no_other() {
    on_loop(async |event_loop| {
        let (resolver, d) = Deferred::new();
        let threads = event_loop.from_threads();
        threads.call_from_thread(Box::new(|| panic!("on purpose")))?;
        event_loop.call_later(Duration::ZERO, Box::new(|| panic!("on purpose")));
        event_loop.call_later(
            Duration::from_millis(1),
            Box::new(move || drop(resolver.callback(()))),
        );
        d.await
    });
}

#[test]
fn delayed_calls_are_made_in_the_order_in_which_they_are_due() {
    on_loop(async |event_loop| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let call = |number: usize, millis: u64| {
            let order = order.clone();
            let call = Box::new(move || order.borrow_mut().push(number));
            event_loop.call_later(Duration::from_millis(millis), call)
        };
        let calls = [
            call(0, 3),
            call(1, 5_000),
            call(2, 2),
            call(3, 1),
            call(4, 3),
        ];
        calls[1].reset(Duration::ZERO)?;
        calls[3].delay(Duration::from_millis(7))?;
        calls[4].cancel()?;
        assert_eq!(calls[4].cancel(), Err(NotActive::AlreadyCancelled));
        let mut expected = Vec::new();
        for (number, call) in calls.iter().enumerate().filter(|(_, call)| call.active()) {
            expected.push((call.get_time()?, number));
        }
        expected.sort();

        let (resolver, last) = Deferred::new();
        event_loop.call_later(
            Duration::from_millis(20),
            Box::new(move || drop(resolver.callback(()))),
        );
        last.await?;
        let expected: Vec<usize> = expected.into_iter().map(|(_, number)| number).collect();
        assert_eq!(*order.borrow(), expected);
        assert_eq!(
            calls[1].reset(Duration::ZERO),
            Err(NotActive::AlreadyCalled)
        );
        Ok(())
    });
}

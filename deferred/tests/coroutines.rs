//! Coroutines over Deferreds: where they resume, what a cancel does, and what wakes them.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use errback_deferred::testing::*;
use errback_deferred::*;

type Log = Rc<RefCell<Vec<String>>>;

fn log(log: &Log, what: impl Into<String>) {
    log.borrow_mut().push(what.into());
}

#[test]
fn a_coroutine_starts_at_once_and_resumes_inside_the_firing() {
    let _guard = NoUnhandledFailures::new();
    let seen = Log::default();
    let (resolver, d) = Deferred::<i64>::new();
    let inside = seen.clone();
    let done = ensure_deferred(async move {
        log(&inside, "started");
        let n = d.await?;
        log(&inside, format!("resumed with {n}"));
        Ok(n * 2)
    });
    log(&seen, "returned");
    resolver.callback(21).unwrap();
    log(&seen, "fired");
    assert_eq!(
        *seen.borrow(),
        ["started", "returned", "resumed with 21", "fired"]
    );
    assert_eq!(success_result_of(done), 42);
}

#[test]
fn a_cancel_arrives_where_a_deferred_is_awaited_and_may_be_caught() {
    let _guard = NoUnhandledFailures::new();
    let (_first, one) = Deferred::<i64>::new();
    let (second, two) = Deferred::<i64>::new();
    let done = ensure_deferred(async move {
        let caught = one.await.unwrap_err();
        caught.trap::<CancelledError>()?;
        two.await
    });
    done.cancel();
    assert_no_result(&done);
    second.callback(5).unwrap();
    assert_eq!(success_result_of(done), 5);
}

#[test]
fn a_second_cancel_goes_to_what_is_awaited_then() {
    let _guard = NoUnhandledFailures::new();
    let (_first, one) = Deferred::<i64>::new();
    let (_second, two) = Deferred::<i64>::new();
    let done = ensure_deferred(async move {
        let _ = one.await;
        two.await
    });
    done.cancel();
    assert_no_result(&done);
    done.cancel();
    assert!(failure_result_of(done).is::<CancelledError>());
}

#[test]
fn a_cancel_of_a_paused_coroutine_comes_when_it_is_unpaused() {
    let _guard = NoUnhandledFailures::new();
    let (resolver, d) = Deferred::<i64>::new();
    let done = ensure_deferred(d);
    let pause = done.pause();
    done.cancel();
    assert!(!resolver.called());
    drop(pause);
    assert!(resolver.called());
    assert!(failure_result_of(done).is::<CancelledError>());
}

#[test]
fn a_panic_in_a_coroutine_is_its_failure() {
    let d = ensure_deferred(async {
        if true {
            panic!("no {}", 7);
        }
        Ok(())
    });
    let failure = failure_result_of(d);
    let panic = failure.check::<PanicError>().unwrap();
    assert_eq!(panic.message, "no 7");
    assert!(panic.location.as_ref().unwrap().contains("coroutines.rs:"));
}

#[test]
fn coroutines_that_await_each_other_do_not_recurse() {
    let _guard = NoUnhandledFailures::new();
    let (resolver, first) = Deferred::<u64>::new();
    let mut last = first;
    for _ in 0..100_000 {
        let before = last;
        last = ensure_deferred(async move { Ok(before.await? + 1) });
    }
    resolver.callback(0).unwrap();
    assert_eq!(success_result_of(last), 100_000);
}

#[test]
fn a_million_awaits_of_fired_deferreds_in_one_coroutine() {
    let _guard = NoUnhandledFailures::new();
    let d = ensure_deferred(async {
        let mut sum = 0u64;
        for i in 0..1_000_000 {
            sum += succeed(i).await?;
        }
        Ok(sum)
    });
    assert_eq!(success_result_of(d), 499_999_500_000);
}

#[test]
fn awaiting_two_at_once_resumes_for_each() {
    let _guard = NoUnhandledFailures::new();
    let (first, one) = Deferred::<i64>::new();
    let (second, two) = Deferred::<i64>::new();
    let done = ensure_deferred(async move {
        let (mut one, mut two) = (pin!(one), pin!(two));
        let (mut a, mut b) = (None, None);
        poll_fn(move |cx| {
            if a.is_none()
                && let Poll::Ready(r) = one.as_mut().poll(cx)
            {
                a = Some(r);
            }
            if b.is_none()
                && let Poll::Ready(r) = two.as_mut().poll(cx)
            {
                b = Some(r);
            }
            match (&a, &b) {
                (Some(Ok(a)), Some(Ok(b))) => Poll::Ready(Ok(a + b)),
                _ => Poll::Pending,
            }
        })
        .await
    });
    second.callback(2).unwrap();
    assert_no_result(&done);
    first.callback(1).unwrap();
    assert_eq!(success_result_of(done), 3);
}

/// A loop that a test turns by hand.
struct Mailbox(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl ReactorFromThreads for Mailbox {
    fn call_from_thread(&self, call: Box<dyn FnOnce() + Send>) -> Result<(), LoopGone> {
        self.0.send(call).map_err(|_| LoopGone)
    }
}

#[test]
fn a_foreign_future_is_woken_through_the_loop() {
    let _guard = NoUnhandledFailures::new();
    let (sender, mailbox) = mpsc::channel();
    let entered = enter_loop(Arc::new(Mailbox(sender)));
    let (value, future) = oneshot();
    let d = ensure_deferred(async move { Ok::<i64, Failure>(future.await) });
    std::thread::spawn(move || value(7)).join().unwrap();
    assert_no_result(&d);
    let call = mailbox.recv().unwrap();
    call();
    assert_eq!(success_result_of(d), 7);
    drop(entered);
}

/// What the thread sends, and the future of it.
fn oneshot() -> (impl FnOnce(i64) + Send, impl Future<Output = i64>) {
    let shared: Arc<std::sync::Mutex<(Option<i64>, Option<Waker>)>> = Arc::default();
    let far = shared.clone();
    let send = move |value| {
        let waker = {
            let mut shared = far.lock().unwrap();
            shared.0 = Some(value);
            shared.1.take()
        };
        waker.unwrap().wake();
    };
    let receive = poll_fn(move |cx| {
        let mut shared = shared.lock().unwrap();
        match shared.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                shared.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    });
    (send, receive)
}

#[test]
fn without_a_loop_a_foreign_future_is_refused() {
    let d = from_future(std::future::pending::<()>());
    assert!(failure_result_of(d).is::<NoEventLoop>());
}

#[test]
fn a_cancel_drops_a_foreign_future() {
    let _guard = NoUnhandledFailures::new();
    let (sender, _mailbox) = mpsc::channel();
    let _entered = enter_loop(Arc::new(Mailbox(sender)));
    let alive = Rc::new(());
    let held = alive.clone();
    let (_value, future) = oneshot();
    let d = ensure_deferred(async move {
        let _held = held;
        Ok::<i64, Failure>(future.await)
    });
    assert_eq!(Rc::strong_count(&alive), 2);
    d.cancel();
    assert_eq!(Rc::strong_count(&alive), 1);
    assert!(failure_result_of(d).is::<CancelledError>());
}

#[test]
fn a_coroutine_that_nobody_can_wake_fails() {
    let (sender, _mailbox) = mpsc::channel();
    let _entered = enter_loop(Arc::new(Mailbox(sender)));
    let d = from_future(std::future::pending::<()>());
    assert!(failure_result_of(d).is::<ResolverDropped>());
}

#[test]
fn any_executor_may_await_a_deferred() {
    let (resolver, d) = Deferred::<i64>::new();
    let mut d = pin!(d);
    let mut context = Context::from_waker(Waker::noop());
    assert!(d.as_mut().poll(&mut context).is_pending());
    assert!(d.as_mut().poll(&mut context).is_pending());
    resolver.callback(1).unwrap();
    match d.as_mut().poll(&mut context) {
        Poll::Ready(Ok(1)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_send_form_crosses_threads() {
    let (resolver, d) = Deferred::<String>::new();
    let future = d.into_send_future();
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Tell(tell)));
        loop {
            if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return result.unwrap();
            }
            told.recv().unwrap();
        }
    });
    resolver.callback("over there".to_owned()).unwrap();
    assert_eq!(thread.join().unwrap(), "over there");
}

struct Tell(mpsc::Sender<()>);

impl std::task::Wake for Tell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

#[test]
fn a_coroutine_that_is_never_resumed_leaks_nothing() {
    let alive = Rc::new(());
    let guard = observe_unhandled(|_| ());
    let (resolver, d) = Deferred::<i64>::new();
    let held = alive.clone();
    let done = ensure_deferred(async move {
        let _held = held;
        d.await
    });
    drop(done);
    assert_eq!(Rc::strong_count(&alive), 2);
    drop(resolver);
    assert_eq!(Rc::strong_count(&alive), 1);
    drop(guard);
}

#[test]
fn a_result_is_taken_once() {
    let d = succeed(1);
    let cell = Rc::new(Cell::new(None));
    let sink = cell.clone();
    ensure_deferred(async move {
        let mut d = pin!(d);
        sink.set(Some((d.as_mut().await.is_ok(), d.await.is_err())));
    });
    assert_eq!(cell.get(), Some((true, true)));
}

#[test]
fn a_second_await_of_one_deferred_finds_the_result_taken() {
    let (resolver, d) = Deferred::<i64>::new();
    let done = ensure_deferred(async move {
        let mut d = d;
        let first = (&mut d).await?;
        let second = (&mut d).await;
        assert!(second.unwrap_err().is::<ResultTaken>());
        Ok(first)
    });
    resolver.callback(1).unwrap();
    assert_eq!(success_result_of(done), 1);
}

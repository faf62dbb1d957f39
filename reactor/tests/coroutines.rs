//! Futures that are not Deferreds, awaited in coroutines that the reactor wakes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use errback_deferred::{Failure, ensure_deferred};
use errback_reactor::Reactor;

#[test]
fn a_future_that_another_thread_wakes_resumes_its_coroutine_on_the_reactors() {
    let reactor = Reactor::new().unwrap();
    let answer: Rc<RefCell<Option<u32>>> = Rc::default();
    let (sink, running) = (answer.clone(), reactor.clone());
    reactor.call_when_running(move || {
        let home = std::thread::current().id();
        ensure_deferred(async move {
            let n = answer_of_a_thread().await;
            assert_eq!(std::thread::current().id(), home);
            sink.replace(Some(n));
            running.stop()?;
            Ok::<(), Failure>(())
        });
    });
    reactor.run().unwrap();
    assert_eq!(answer.take(), Some(42));
}

async fn answer_of_a_thread() -> u32 {
    #[derive(Default)]
    struct Shared {
        answer: Option<u32>,
        waker: Option<Waker>,
    }
    let shared: Arc<Mutex<Shared>> = Arc::default();
    let far = shared.clone();
    let thread = std::thread::spawn(move || {
        let mut shared = far.lock().unwrap();
        shared.answer = Some(42);
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
    });
    let answer = poll_fn(move |cx| {
        let mut shared = shared.lock().unwrap();
        match shared.answer {
            Some(answer) => Poll::Ready(answer),
            None => {
                shared.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await;
    thread.join().unwrap();
    answer
}

//! Whatever is dropped in whatever order, nothing stays behind: allocations are counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::time::Duration;

use errback_deferred::*;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// A counting allocator is an `unsafe impl` by its nature; it passes everything on.
#[allow(unsafe_code)]
// SAFETY: the system's allocator does the work, with the arguments that we are given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LIVE.try_with(|live| live.set(live.get() + 1));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|live| live.set(live.get() - 1));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

type Things = Vec<Box<dyn Any>>;

/// Makes some things that hold each other, and drops them in every order.
#[track_caller]
fn nothing_stays(make: impl Fn() -> Things) {
    let _quiet = observe_unhandled(|_| ());
    let count = make().len();
    for order in orders(count) {
        drop_in(make(), &order); // what threads keep for themselves is there now
        let before = LIVE.get();
        drop_in(make(), &order);
        assert_eq!(LIVE.get() - before, 0, "dropped in the order {order:?}");
    }
}

fn drop_in(things: Things, order: &[usize]) {
    let mut things: Vec<_> = things.into_iter().map(Some).collect();
    order.iter().for_each(|&i| drop(things[i].take()));
}

fn orders(n: usize) -> Vec<Vec<usize>> {
    match n {
        0 => vec![vec![]],
        _ => orders(n - 1)
            .into_iter()
            .flat_map(|order| {
                (0..n).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, n - 1);
                    order
                })
            })
            .collect(),
    }
}

macro_rules! things {
    ($($thing:expr),* $(,)?) => { vec![$(Box::new($thing) as Box<dyn Any>),*] };
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_ends_with_callbacks() {
    nothing_stays(|| {
        let owned = Box::new([1, 2, 3]);
        let (resolver, d) = Deferred::with_canceller(|| None);
        let d = d
            .add_callback(move |n: usize| Ok(owned[n]))
            .add_errback(|_| Ok(0));
        let (handle, pause) = (d.cancel_handle(), d.pause());
        things![resolver, d, handle, pause]
    });
}

#[test]
fn a_deferred_that_waits_for_another() {
    nothing_stays(|| {
        let (outer, first) = Deferred::<()>::new();
        let (inner, second) = Deferred::<String>::new();
        let first = first.add_callback(move |()| second);
        outer.callback(()).unwrap();
        let handle = first.cancel_handle();
        things![inner, first, handle]
    });
}

#[test]
fn a_deferred_that_is_cancelled_while_it_waits() {
    nothing_stays(|| {
        let (inner, second) = Deferred::<String>::with_canceller(|| Some(Ok("x".into())));
        let first = succeed(()).add_callback(move |()| second);
        first.cancel();
        let (late, third) = Deferred::<i64>::new();
        third.cancel();
        things![inner, first, late, third]
    });
}

#[test]
fn links() {
    nothing_stays(|| {
        let (start, a) = Deferred::<i64>::new();
        let (middle, b) = Deferred::<i64>::new();
        let (end, c) = Deferred::<i64>::new();
        let a = a.chain_deferred(middle);
        let b = b.chain_deferred(end.into_shared());
        things![start, a, b, c]
    });
}

#[test]
fn lists_and_races() {
    nothing_stays(|| {
        let (one, a) = Deferred::<i64>::new();
        let (two, b) = Deferred::<i64>::new();
        let (three, c) = Deferred::<i64>::new();
        let racing = race([gather_results([a, b]).add_callback(|v| Ok(v[0])), c]);
        things![one, two, three, racing]
    });
}

#[test]
fn locks_and_permits() {
    nothing_stays(|| {
        let lock = DeferredLock::new();
        let held = lock.acquire();
        let inside = lock.clone();
        let runs = lock.run(move || inside.locked().then_some(()).ok_or(Failure::msg("free")));
        let waits = lock.acquire();
        things![lock, held, runs, waits]
    });
}

#[test]
fn a_lock_kept_by_its_own_waiter() {
    nothing_stays(|| {
        let lock = DeferredLock::new();
        let held = lock.acquire().add_callback(Permit::forget);
        let waits = lock.acquire().add_callback(|permit| permit.release());
        waits.cancel();
        things![lock, held, waits]
    });
}

#[test]
fn queues() {
    nothing_stays(|| {
        let queue = DeferredQueue::new();
        let (one, two) = (queue.get(), queue.get());
        one.cancel();
        let three = queue.get();
        queue.put(String::from("x")).unwrap();
        things![queue, one, two, three]
    });
}

#[test]
fn timeouts_and_later_calls() {
    nothing_stays(|| {
        let clock = Clock::new();
        let (resolver, d) = Deferred::<i64>::new();
        let d = d.add_timeout(SECOND, &clock);
        let later = defer_later(&clock, SECOND, || Ok(1)).add_timeout(SECOND * 2, &clock);
        things![clock, resolver, d, later]
    });
}

#[test]
fn timeouts_that_came() {
    nothing_stays(|| {
        let clock = Clock::new();
        let (resolver, d) = Deferred::<i64>::new();
        let d = d.add_timeout(SECOND, &clock);
        let later = defer_later(&clock, SECOND, || Ok(1));
        clock.advance(SECOND);
        things![clock, resolver, d, later]
    });
}

#[test]
fn loops_that_were_stopped() {
    nothing_stays(|| {
        let clock = Clock::new();
        let looping = LoopingCall::new(clock.clone(), || ());
        let d = looping.start(SECOND, true);
        looping.stop();
        let (waits, w) = Deferred::<()>::new();
        let once = Cell::new(Some(w));
        let waiting = LoopingCall::new(clock.clone(), move || once.take().unwrap());
        let e = waiting.start(SECOND, true);
        waiting.stop();
        drop((looping, waits));
        things![clock, d, waiting, e]
    });
}

#[test]
fn tasks_that_came_to_their_end() {
    nothing_stays(|| {
        let clock = Clock::new();
        let cooperator = Cooperator::new(clock.clone());
        let task = cooperator.cooperate([(), ()]);
        let other = cooperator.cooperate([succeed(1)]);
        clock.advance(SECOND);
        cooperator.stop();
        things![clock, cooperator, task.when_done(), other.when_done()]
    });
}

#[test]
fn coroutines() {
    nothing_stays(|| {
        let (one, a) = Deferred::<i64>::new();
        let (two, b) = Deferred::<i64>::new();
        let inner = ensure_deferred(async move { Ok(a.await? + b.await?) });
        let handle = inner.cancel_handle();
        let outer = ensure_deferred(inner);
        things![one, two, handle, outer]
    });
}

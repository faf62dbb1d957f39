//! What a chain of ten callbacks costs, beside what it cannot beat and what else one would use.
//!
//! `cargo bench -p errback-deferred`: each is made, filled and fired; the times of one run may be compared with each other,
//! on a noisy machine nothing else may. Allocations are exact.

#![allow(unsafe_code)] // the counting allocator is an allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use errback_deferred::{Deferred, ensure_deferred, gather_results, succeed};
use futures::future::{FutureExt, LocalBoxFuture};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.store(ALLOCATIONS.load(Relaxed) + 1, Relaxed); // one thread: no need for an atomic addition
        // SAFETY: the caller's promises are the ones that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.store(ALLOCATIONS.load(Relaxed) + 1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn closures_in_a_vec() -> i64 {
    let mut callbacks: Vec<Box<dyn FnOnce(i64) -> i64>> = Vec::new();
    for i in 0..10 {
        let k = black_box(i);
        callbacks.push(Box::new(move |n| n + k));
    }
    callbacks.into_iter().fold(0, |n, callback| callback(n))
}

fn boxed_futures() -> i64 {
    let (sender, receiver) = futures::channel::oneshot::channel::<i64>();
    let mut future: LocalBoxFuture<'static, i64> = receiver.map(Result::unwrap).boxed_local();
    for i in 0..10 {
        let k = black_box(i);
        future = future.map(move |n| n + k).boxed_local();
    }
    sender.send(0).unwrap();
    future.now_or_never().unwrap()
}

fn deferred() -> i64 {
    let (resolver, mut d) = Deferred::<i64>::new();
    for i in 0..10 {
        let k = black_box(i);
        d = d.add_callback(move |n| Ok(n + k));
    }
    resolver.callback(0).unwrap();
    black_box(d);
    0
}

fn deferred_fired_first() -> i64 {
    let mut d = succeed(0i64);
    for i in 0..10 {
        let k = black_box(i);
        d = d.add_callback(move |n| Ok(n + k));
    }
    black_box(d);
    0
}

fn coroutine_of_ten_awaits() -> i64 {
    let d = ensure_deferred(async {
        let mut n = 0;
        for i in 0..10 {
            n += succeed(black_box(i)).await?;
        }
        Ok(n)
    });
    errback_deferred::testing::success_result_of(d)
}

fn gather_a_thousand() -> i64 {
    let (resolvers, deferreds): (Vec<_>, Vec<_>) =
        (0..1000).map(|_| Deferred::<i64>::new()).unzip();
    let all = gather_results(deferreds);
    for (i, resolver) in resolvers.into_iter().enumerate() {
        resolver.callback(i as i64).unwrap();
    }
    errback_deferred::testing::success_result_of(all).len() as i64
}

fn measure(name: &str, repeat: u32, work: fn() -> i64) -> f64 {
    for _ in 0..repeat / 10 {
        black_box(work());
    }
    let before = ALLOCATIONS.load(Relaxed);
    black_box(work());
    let allocations = ALLOCATIONS.load(Relaxed) - before;
    let mut best = f64::MAX;
    for _ in 0..7 {
        let start = Instant::now();
        for _ in 0..repeat {
            black_box(work());
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(repeat));
    }
    println!("{name:<44} {best:>10.1} ns {allocations:>8} allocations");
    best
}

fn main() {
    println!("ten callbacks: made, filled, fired");
    let closures = measure("  ten boxed closures in a Vec", 200_000, closures_in_a_vec);
    measure("  boxed futures", 200_000, boxed_futures);
    let ours = measure("  Deferred", 200_000, deferred);
    measure(
        "  Deferred, fired before the callbacks",
        200_000,
        deferred_fired_first,
    );
    measure(
        "  coroutine, ten awaits of fired Deferreds",
        100_000,
        coroutine_of_ten_awaits,
    );
    println!("  Deferred / closures: {:.2}", ours / closures);
    println!("\nothers");
    measure("  gather_results of 1,000", 500, gather_a_thousand);
}

//! What Deferreds cost, beside what one would use in their place: `cargo bench -p errback-deferred`.
//!
//! The times of one run may be compared with each other, and on a noisy machine nothing else may. Allocations, which are
//! printed at the end, are exact.

#[allow(unsafe_code)] // an allocator that counts
#[path = "../../../examples/beside_peers/allocations.rs"]
mod allocations;
#[path = "../../../benches/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::task::Context;

use criterion::{Criterion, Throughput};
use errback_deferred::testing::success_result_of;
use errback_deferred::{Deferred, ensure_deferred, gather_results, succeed};
use futures::channel::oneshot;
use futures::future::{FutureExt, LocalBoxFuture, join_all};
use support::OURS;

/// How many Deferreds are chained, and gathered.
const MANY: usize = 10_000;

fn main() {
    let mut criterion = support::criterion();
    ten_callbacks(&mut criterion);
    ten_awaits(&mut criterion);
    chained(&mut criterion);
    gathered(&mut criterion);
    criterion.final_summary();
    print_allocations();
    support::print_table();
}

/// A way to add up ten numbers.
type Way = (&'static str, fn() -> i64);

fn compare(criterion: &mut Criterion, what: &str, elements: usize, ways: &[Way]) {
    let mut group = criterion.benchmark_group(what);
    group.throughput(Throughput::Elements(elements as u64));
    let expected = ways[0].1();
    for (name, way) in ways {
        assert_eq!(way(), expected, "{name}");
        group.bench_function(*name, |bencher| bencher.iter(way));
    }
}

// ---------------------------------------------------------------- ten callbacks: made, filled, fired

const TEN_CALLBACKS: &[Way] = &[
    (OURS, deferred),
    ("boxed futures, mapped", mapped_futures),
    ("boxed closures in a Vec", closures),
];

fn ten_callbacks(criterion: &mut Criterion) {
    compare(criterion, "ten callbacks, made and fired", 1, TEN_CALLBACKS);
}

fn deferred() -> i64 {
    let (resolver, mut d) = Deferred::<i64>::new();
    for i in 0..10 {
        let k = black_box(i);
        d = d.add_callback(move |n| Ok(n + k));
    }
    resolver.callback(0).expect("it is fired once");
    // Not a look at the result, which would be an eleventh callback.
    black_box(d);
    45
}

fn mapped_futures() -> i64 {
    let (sender, receiver) = oneshot::channel::<i64>();
    let mut future: LocalBoxFuture<'static, i64> = receiver.map(Result::unwrap).boxed_local();
    for i in 0..10 {
        let k = black_box(i);
        future = future.map(move |n| n + k).boxed_local();
    }
    sender.send(0).expect("it is listened to");
    future.now_or_never().expect("it is ready")
}

/// What cannot be beaten by anything that stores closures one by one.
fn closures() -> i64 {
    let mut callbacks: Vec<Box<dyn FnOnce(i64) -> i64>> = Vec::new();
    for i in 0..10 {
        let k = black_box(i);
        callbacks.push(Box::new(move |n| n + k));
    }
    callbacks.into_iter().fold(0, |n, callback| callback(n))
}

// ---------------------------------------------------------------- ten awaits of what is there

const TEN_AWAITS: &[Way] = &[(OURS, awaited), ("oneshot channels", awaited_channels)];

fn ten_awaits(criterion: &mut Criterion) {
    compare(criterion, "ten awaits of what is there", 1, TEN_AWAITS);
}

fn awaited() -> i64 {
    success_result_of(ensure_deferred(async {
        let mut sum = 0;
        for i in 0..10 {
            sum += succeed(black_box(i)).await?;
        }
        Ok(sum)
    }))
}

fn awaited_channels() -> i64 {
    let sum = async {
        let mut sum = 0;
        for i in 0..10 {
            let (sender, receiver) = oneshot::channel();
            sender.send(black_box(i)).expect("it is listened to");
            sum += receiver.await.expect("it was sent");
        }
        sum
    };
    sum.boxed_local().now_or_never().expect("it is ready")
}

// ---------------------------------------------------------------- a long chain

fn chained(criterion: &mut Criterion) {
    let ways: &[Way] = &[
        (OURS, chained_deferreds),
        ("nested boxed futures", nested_futures),
    ];
    compare(
        criterion,
        "10,000 that each return the next, each",
        MANY,
        ways,
    );
}

fn chained_deferreds() -> i64 {
    let (last, mut next) = Deferred::<i64>::new();
    let mut resolvers = vec![last];
    for _ in 1..MANY {
        let (resolver, d) = Deferred::<i64>::new();
        resolvers.push(resolver);
        next = d.add_callback(move |_| next);
    }
    for resolver in resolvers.into_iter().rev() {
        resolver.callback(7).expect("it is fired once");
    }
    success_result_of(next)
}

/// These recurse, so ten times as many would use up most of a stack.
fn nested_futures() -> i64 {
    let (sender, receiver) = oneshot::channel::<i64>();
    let mut future: LocalBoxFuture<'static, i64> = receiver.map(Result::unwrap).boxed_local();
    for _ in 1..MANY {
        let before = future;
        future = async move { before.await + 1 }.boxed_local();
    }
    let mut context = Context::from_waker(futures::task::noop_waker_ref());
    assert!(future.as_mut().poll(&mut context).is_pending());
    sender.send(7).expect("it is listened to");
    future.now_or_never().expect("it is ready") - (MANY as i64 - 1)
}

// ---------------------------------------------------------------- many gathered

fn gathered(criterion: &mut Criterion) {
    let ways: &[Way] = &[
        (OURS, gathered_deferreds),
        ("join_all of oneshots", joined_channels),
    ];
    compare(criterion, "gathering 10,000, each", MANY, ways);
}

fn gathered_deferreds() -> i64 {
    let (resolvers, deferreds): (Vec<_>, Vec<_>) =
        (0..MANY).map(|_| Deferred::<i64>::new()).unzip();
    let all = gather_results(deferreds);
    for (i, resolver) in resolvers.into_iter().enumerate() {
        resolver.callback(i as i64).expect("it is fired once");
    }
    success_result_of(all).into_iter().sum()
}

fn joined_channels() -> i64 {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..MANY).map(|_| oneshot::channel::<i64>()).unzip();
    let mut all = join_all(receivers).boxed_local();
    let mut context = Context::from_waker(futures::task::noop_waker_ref());
    assert!(all.as_mut().poll(&mut context).is_pending());
    for (i, sender) in senders.into_iter().enumerate() {
        sender.send(i as i64).expect("it is listened to");
    }
    let all = all.now_or_never().expect("it is ready");
    all.into_iter().map(|n| n.expect("it was sent")).sum()
}

// ---------------------------------------------------------------- allocations

fn print_allocations() {
    println!("\nallocations");
    print_allocations_of("ten callbacks", TEN_CALLBACKS);
    print_allocations_of("ten awaits", TEN_AWAITS);
}

fn print_allocations_of(what: &str, ways: &[Way]) {
    for (name, way) in ways {
        way(); // memory that is kept for the next one is there after this
        let (_, count) = allocations::count(way);
        let allocations::Count { calls, bytes, peak } = count;
        println!("  {what}, {name:<28} {calls:>3}: {bytes:>5} bytes, {peak:>5} at a time");
    }
}

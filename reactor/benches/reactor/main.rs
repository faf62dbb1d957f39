//! What the reactor costs, beside channels and tokio: `cargo bench -p errback-reactor`.
//!
//! What crosses threads depends on where the scheduler puts them; `taskset -c 0` before the command takes that away.

#[path = "../../../benches/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use errback_deferred::{Deferred, Failure, ensure_deferred};
use errback_reactor::{Reactor, ReactorHandle};
use support::OURS;

/// How many calls, or timers, there are at once.
const MANY: u64 = 10_000;

fn main() {
    let mut criterion = support::criterion();
    one_call(&mut criterion);
    many_calls(&mut criterion);
    a_function_in_a_thread(&mut criterion);
    cancelled_timers(&mut criterion);
    one_timer(&mut criterion);
    criterion.final_summary();
    support::print_table();
}

/// Runs a coroutine on a reactor of its own; gives what it gives.
fn on_a_reactor<F>(work: impl FnOnce(Reactor) -> F + 'static) -> Duration
where
    F: Future<Output = Result<Duration, Failure>> + 'static,
{
    let reactor = Reactor::new().expect("there are descriptors");
    let (sender, receiver) = mpsc::channel();
    let inside = reactor.clone();
    reactor.call_when_running(move || {
        let end = inside.clone();
        drop(ensure_deferred(work(inside)).add_both(move |took| {
            sender.send(took)?;
            Ok(end.stop()?)
        }));
    });
    reactor.run().expect("it runs once");
    let took = receiver.recv().expect("the coroutine has ended");
    took.expect("nothing fails")
}

fn on_tokio<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("there are descriptors").block_on(work)
}

/// Runs something with a reactor that runs on another thread.
fn beside_a_reactor<R>(work: impl FnOnce(&ReactorHandle) -> R) -> R {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        let reactor = Reactor::new().expect("there are descriptors");
        sender.send(reactor.handle()).expect("it is waited for");
        reactor.run().expect("it runs once");
    });
    let handle = receiver.recv().expect("it is sent first of all");
    handle.block_on_from_thread(|_| Ok(())).expect("it runs");
    let result = work(&handle);
    let stop = handle.call_from_thread(|reactor| reactor.stop().expect("it runs"));
    stop.expect("it runs");
    thread.join().expect("nothing panics there");
    result
}

type Call = Box<dyn FnOnce() + Send>;

/// Runs something with a thread that makes the calls which it is sent.
fn beside_a_channel<R>(work: impl FnOnce(&Sender<Call>) -> R) -> R {
    let (sender, receiver): (Sender<Call>, Receiver<Call>) = unbounded();
    let thread = thread::spawn(move || receiver.into_iter().for_each(|call| call()));
    let result = work(&sender);
    drop(sender);
    thread.join().expect("nothing panics there");
    result
}

// ---------------------------------------------------------------- calls from threads

fn one_call(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a call from a thread, and its answer");
    let (answer, answered) = bounded(1);
    beside_a_reactor(|reactor| {
        group.bench_function(OURS, |bencher| {
            bencher.iter(|| {
                let answer = answer.clone();
                let called =
                    reactor.call_from_thread(move |_| answer.send(()).expect("it is waited for"));
                called.expect("it runs");
                answered.recv()
            });
        });
    });
    beside_a_channel(|calls| {
        group.bench_function("crossbeam channel (its reader spins)", |bencher| {
            bencher.iter(|| {
                let answer = answer.clone();
                let call: Call = Box::new(move || answer.send(()).expect("it is waited for"));
                calls.send(call).expect("it is listened to");
                answered.recv()
            });
        });
    });
}

fn many_calls(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10,000 calls from a thread, each");
    group.throughput(Throughput::Elements(MANY));
    let (answer, answered) = bounded(1);
    // The last call answers: calls of one thread are made in their order.
    beside_a_reactor(|reactor| {
        group.bench_function(OURS, |bencher| {
            bencher.iter(|| {
                for i in 1..MANY {
                    let called = reactor.call_from_thread(move |_| drop(black_box(Box::new(i))));
                    called.expect("it runs");
                }
                let answer = answer.clone();
                let called =
                    reactor.call_from_thread(move |_| answer.send(()).expect("it is waited for"));
                called.expect("it runs");
                answered.recv()
            });
        });
    });
    beside_a_channel(|calls| {
        group.bench_function("crossbeam channel (its reader spins)", |bencher| {
            bencher.iter(|| {
                let send = |call: Call| calls.send(call).expect("it is listened to");
                for i in 1..MANY {
                    send(Box::new(move || drop(black_box(Box::new(i)))));
                }
                let answer = answer.clone();
                send(Box::new(move || answer.send(()).expect("it is waited for")));
                answered.recv()
            });
        });
    });
}

// ---------------------------------------------------------------- functions in threads

fn a_function_in_a_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a function in a thread, and its result");
    group.bench_function(OURS, |bencher| {
        bencher.iter_custom(|times| {
            on_a_reactor(move |reactor| async move {
                reactor.defer_to_thread(|| Ok(black_box(1))).await?; // the thread is there now
                let start = Instant::now();
                for _ in 0..times {
                    reactor.defer_to_thread(|| Ok(black_box(1))).await?;
                }
                Ok(start.elapsed())
            })
        });
    });
    group.bench_function("tokio, spawn_blocking", |bencher| {
        bencher.iter_custom(|times| {
            on_tokio(async {
                let one = || async { tokio::task::spawn_blocking(|| black_box(1)).await };
                one().await.expect("nothing panics there");
                let start = Instant::now();
                for _ in 0..times {
                    one().await.expect("nothing panics there");
                }
                start.elapsed()
            })
        });
    });
}

// ---------------------------------------------------------------- timers

/// Set, and taken back before they are due, as most timeouts are.
fn cancelled_timers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10,000 timers, set and cancelled, each");
    group.throughput(Throughput::Elements(MANY));
    let delay = |i: u64| Duration::from_millis(10_000 + i * 7919 % 1000);
    let reactor = Reactor::new().expect("there are descriptors");
    group.bench_function(OURS, |bencher| {
        bencher.iter(|| {
            let timers: Vec<_> = (0..MANY)
                .map(|i| reactor.call_later(delay(i), move || assert!(black_box(i) < MANY)))
                .collect();
            timers
                .into_iter()
                .for_each(|timer| timer.cancel().expect("it is not due"));
        });
    });
    group.bench_function("tokio, sleep", |bencher| {
        on_tokio(async {
            bencher.iter(|| {
                let mut context = Context::from_waker(Waker::noop());
                let timers: Vec<_> = (0..MANY)
                    .map(|i| {
                        let mut timer = Box::pin(tokio::time::sleep(delay(i)));
                        assert!(timer.as_mut().poll(&mut context).is_pending());
                        timer
                    })
                    .collect();
                drop(timers);
            });
        });
    });
}

/// From the call to the time when it is made: a millisecond, and how late it is.
fn one_timer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a timer of 1 ms");
    let delay = Duration::from_millis(1);
    group.bench_function(OURS, |bencher| {
        bencher.iter_custom(|times| {
            on_a_reactor(move |reactor| async move {
                let start = Instant::now();
                for _ in 0..times {
                    let (resolver, fired) = Deferred::new();
                    reactor.call_later(delay, move || drop(resolver.callback(())));
                    fired.await?;
                }
                Ok(start.elapsed())
            })
        });
    });
    group.bench_function("tokio, sleep", |bencher| {
        bencher.iter_custom(|times| {
            on_tokio(async {
                let start = Instant::now();
                for _ in 0..times {
                    pin!(tokio::time::sleep(delay)).await;
                }
                start.elapsed()
            })
        });
    });
}

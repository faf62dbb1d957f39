//! Bench A: Deferreds alone. Ten callbacks; a million that each return the next; a hundred thousand gathered.

use std::hint::black_box;
use std::time::Instant;

use errback::testing::success_result_of;
use errback::{Deferred, Resolver, ensure_deferred, gather_results, succeed};

use crate::Done;
use crate::allocations::count;
use crate::machine::{forget_peak, peak, resident};
use crate::options::Options;
use crate::report::{Row, least};

/// Ten callbacks each: made, filled and fired. The best of five rounds.
pub(crate) fn chain(options: &Options) -> Done {
    let chains = options.count(200_000);
    let measure = |variant: &str, make: fn() -> Deferred<i64>| {
        assert_eq!(success_result_of(make()), (0..10).sum::<i64>());
        measure_chain(&options.row("A", variant), chains, make);
    };
    measure("", fired_last);
    measure("_already_fired", fired_first);
    measure("_await_10", ten_awaits);
    Ok(())
}

fn fired_last() -> Deferred<i64> {
    let (resolver, d) = Deferred::new();
    let d = ten_callbacks(d);
    resolver.callback(0).expect("it is fired once");
    d
}

fn fired_first() -> Deferred<i64> {
    ten_callbacks(succeed(0))
}

fn ten_callbacks(mut d: Deferred<i64>) -> Deferred<i64> {
    for i in 0..10 {
        let k = black_box(i);
        d = d.add_callback(move |n| Ok(n + k));
    }
    d
}

/// A coroutine that waits ten times for what is there.
fn ten_awaits() -> Deferred<i64> {
    ensure_deferred(async {
        let mut sum = 0;
        for i in 0..10 {
            sum += succeed(black_box(i)).await?;
        }
        Ok(sum)
    })
}

fn measure_chain(row: &Row, chains: usize, make: fn() -> Deferred<i64>) {
    for _ in 0..1000 {
        black_box(make());
    }
    let rounds: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..chains {
                black_box(make());
            }
            start.elapsed().as_nanos() as f64 / chains as f64
        })
        .collect();
    let best = least(&rounds);
    let ((), allocated) = count(|| drop(black_box(make())));
    row.say("chain10_ns", best, "ns/chain");
    row.say("chain10_ns_per_cb", best / 10.0, "ns/callback");
    row.say(
        "chain10_allocs",
        allocated.calls as f64,
        "allocations/chain",
    );
    row.say("chain10_alloc_bytes", allocated.bytes as f64, "B/chain");
}

/// A million, each of which waits for the next. In a process of its own, as it measures the peak of memory.
pub(crate) fn million(options: &Options) -> Done {
    let row = options.row("A", "");
    let before = resident();
    forget_peak();
    let start = Instant::now();
    let ok = chained(1_000_000);
    row.say("chained1m_s", start.elapsed().as_secs_f64(), "s");
    row.say("chained1m_peak_mib", peak() - before, "MiB");
    row.say("chained1m_ok", f64::from(u8::from(ok)), "bool");
    let (_, allocated) = count(|| chained(1_000_000));
    let each = allocated.calls as f64 / 1e6;
    row.say("chained1m_allocs_each", each, "allocations/deferred");
    Ok(())
}

/// Makes `length` Deferreds whose callbacks return the next, and fires them from the first to the last. Whether the
/// first had the right value in the end.
pub(crate) fn chained(length: usize) -> bool {
    let (mut resolvers, mut next): (Vec<Resolver<i64>>, _) = (Vec::with_capacity(length), None);
    for _ in 0..length {
        let (resolver, d) = Deferred::<i64>::new();
        resolvers.push(resolver);
        next = Some(match next {
            Some(next) => d.add_callback(move |_| next),
            None => d.add_callback(Ok),
        });
    }
    for resolver in resolvers.into_iter().rev() {
        resolver.callback(7).expect("it is fired once");
    }
    next.is_some_and(|first| success_result_of(first) == 7)
}

/// A hundred thousand, gathered and then fired. The best of five rounds.
pub(crate) fn gather(options: &Options) -> Done {
    let many = 100_000;
    let row = options.row("A", "");
    let sum = (0..many as i64).sum::<i64>();
    let rounds: Vec<f64> = (0..options.rounds(5))
        .map(|_| {
            let start = Instant::now();
            assert_eq!(gathered(many), sum);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let (_, allocated) = count(|| gathered(many));
    let each = |figure: usize| figure as f64 / many as f64;
    row.say("gather100k_ms", least(&rounds), "ms");
    row.say(
        "gather100k_allocs_each",
        each(allocated.calls),
        "allocations/deferred",
    );
    row.say(
        "gather100k_peak_bytes_each",
        each(allocated.peak),
        "B/deferred",
    );
    Ok(())
}

/// The sum of what so many gathered Deferreds were fired with.
pub(crate) fn gathered(many: usize) -> i64 {
    let (resolvers, deferreds): (Vec<_>, Vec<_>) =
        (0..many).map(|_| Deferred::<i64>::new()).unzip();
    let all = gather_results(deferreds);
    for (i, resolver) in resolvers.into_iter().enumerate() {
        resolver.callback(i as i64).expect("it is fired once");
    }
    success_result_of(all).into_iter().sum()
}

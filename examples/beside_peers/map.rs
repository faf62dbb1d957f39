//! Bench D: one task over 200,000 integers, in chunks of several sizes and in those that the pool chooses.
//!
//! `_map_to_process` is the same through a Deferred; `_chunks_by_hand` submits lists of numbers to a task that takes
//! lists, as one has to with pools that know no `map`.

use std::time::Instant;

use errback::{Failure, Pool, Reactor, defer_to_process_pool, gather_results, map_to_process};

use crate::options::Options;
use crate::report::{Row, greatest};
use crate::tasks::{increment, increment_all, warm_pool};
use crate::{Done, on_a_reactor};

const ITEMS: i64 = 200_000;
const CHUNKS: [usize; 6] = [100, 1000, 8000, 10_000, 50_000, 100_000];

pub(crate) fn map(options: &Options) -> Done {
    let (pool, _) = warm_pool(options)?;
    let rounds = options.rounds(5);
    by_iterator(&pool, options, rounds)?;
    let by_deferred = options.row("D", "_map_to_process");
    let by_hand = options.row("D", "_chunks_by_hand");
    on_a_reactor(move |reactor| async move {
        let mut best: f64 = 0.0;
        for _ in 0..rounds {
            best = best.max(mapped_to_process(&reactor, &pool).await?);
        }
        say(&by_deferred, "default", best);
        say_best(&by_deferred, &[best]);
        let mut all = Vec::new();
        for chunk in CHUNKS {
            let mut best: f64 = 0.0;
            for _ in 0..rounds {
                best = best.max(chunked_by_hand(&reactor, &pool, chunk).await?);
            }
            say(&by_hand, &chunk.to_string(), best);
            all.push(best);
        }
        say_best(&by_hand, &all);
        Ok(())
    })
}

/// Round by round, so that no size has the better part of the time: what runs later finds a machine that is warmer, or busier.
fn by_iterator(pool: &Pool, options: &Options, rounds: usize) -> Done {
    let row = options.row("D", "");
    let sizes: Vec<Option<usize>> = [None].into_iter().chain(CHUNKS.map(Some)).collect();
    let mut best = vec![0.0_f64; sizes.len()];
    for _ in 0..rounds {
        for (chunk, best) in sizes.iter().zip(&mut best) {
            *best = best.max(mapped(pool, *chunk)?);
        }
    }
    for (chunk, best) in sizes.iter().zip(&best) {
        let name = chunk.map_or("default".to_owned(), |chunk| chunk.to_string());
        say(&row, &name, *best);
    }
    say_best(&row, &best);
    Ok(())
}

fn say(row: &Row, chunk: &str, rate: f64) {
    row.say(&format!("map200k_chunk_{chunk}_per_s"), rate, "items/s");
}

fn say_best(row: &Row, rates: &[f64]) {
    row.say("map200k_best_per_s", greatest(rates), "items/s");
}

/// Items per second.
fn mapped(pool: &Pool, chunk: Option<usize>) -> Result<f64, Failure> {
    let start = Instant::now();
    let map = pool.map(increment, 0..ITEMS);
    let map = match chunk {
        Some(chunk) => map.chunk_size(chunk),
        None => map,
    };
    let numbers = map.collect::<Result<Vec<i64>, _>>()?;
    let took = start.elapsed();
    check(&numbers);
    Ok(ITEMS as f64 / took.as_secs_f64())
}

async fn mapped_to_process(reactor: &Reactor, pool: &Pool) -> Result<f64, Failure> {
    let start = Instant::now();
    let results = map_to_process(reactor, pool, increment, 0..ITEMS).await?;
    let numbers = results.into_iter().collect::<Result<Vec<i64>, _>>()?;
    let took = start.elapsed();
    check(&numbers);
    Ok(ITEMS as f64 / took.as_secs_f64())
}

async fn chunked_by_hand(reactor: &Reactor, pool: &Pool, chunk: usize) -> Result<f64, Failure> {
    let numbers: Vec<i64> = (0..ITEMS).collect();
    let start = Instant::now();
    let chunks = numbers
        .chunks(chunk)
        .map(|chunk| defer_to_process_pool(reactor, pool, increment_all, (chunk.to_vec(),)));
    let numbers = gather_results(chunks).await?.concat();
    let took = start.elapsed();
    check(&numbers);
    Ok(ITEMS as f64 / took.as_secs_f64())
}

fn check(numbers: &[i64]) {
    assert!(numbers.iter().copied().eq(1..=ITEMS));
}

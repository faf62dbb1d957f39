//! What a job in a worker process costs, beside what one could do by hand: `cargo bench --bench pool`.
//!
//! `cat` stands for the least that another process can do: it reads and writes. `rayon` stands for what it costs to keep
//! jobs apart from each other: its threads do not.

#[path = "../support/mod.rs"]
mod support;

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use errback::{
    Deferred, Failure, Pool, Reactor, defer_to_process_pool, ensure_deferred, gather_results,
};
use rayon::prelude::*;
use support::OURS;

const WORKERS: usize = 2;
/// How many jobs there are at once.
const JOBS: u64 = 10_000;
/// How many items a map has.
const ITEMS: u64 = 100_000;

#[errback::task]
fn increment(n: u64) -> u64 {
    n + 1
}

#[errback::task]
fn echo(text: String) -> String {
    text
}

fn main() {
    let mut criterion = support::criterion();
    let pool = pool(true);
    first_result(&mut criterion);
    one_job(&mut criterion, &pool);
    many_jobs(&mut criterion, &pool);
    map(&mut criterion, &pool);
    one_mebibyte(&mut criterion, &pool);
    criterion.final_summary();
    support::print_table();
}

/// A pool whose workers are there.
fn pool(batching: bool) -> Pool {
    let builder = Pool::builder().size(WORKERS).batching(batching);
    let pool = builder.build().expect("there are descriptors");
    let warm = pool.map(increment, 0..ITEMS).chunk_size(10).count();
    assert_eq!(warm as u64, ITEMS);
    pool
}

/// Runs a coroutine on a reactor of its own, once for each sample; gives the time that it says.
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

/// Another process that gives back what it is given.
struct Cat {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Cat {
    fn start() -> io::Result<Cat> {
        let mut cat = Command::new("cat");
        let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let ends = input.zip(output).expect("both are pipes");
        Ok(Cat {
            child,
            input: ends.0,
            output: ends.1,
        })
    }

    /// There and back. A pipe does not hold much: what is long is written while it is read.
    fn echo(&mut self, bytes: &[u8], back: &mut [u8]) -> io::Result<()> {
        if bytes.len() <= 4096 {
            self.input.write_all(bytes)?;
            return self.output.read_exact(back);
        }
        thread::scope(|scope| {
            let written = scope.spawn(|| self.input.write_all(bytes));
            self.output.read_exact(back)?;
            written.join().expect("nothing panics there")
        })
    }

    fn end(self) -> io::Result<()> {
        let Cat {
            mut child, input, ..
        } = self;
        drop(input);
        child.wait().map(drop)
    }
}

fn first_result(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a pool's first result, from nothing");
    group.bench_function(OURS, |bencher| {
        bencher.iter_with_large_drop(|| {
            let pool = Pool::builder().size(WORKERS).build();
            let pool = pool.expect("there are descriptors");
            let result = pool.apply_async(increment, (1,)).get();
            assert_eq!(result.expect("nothing fails"), 2);
            pool
        });
    });
    group.bench_function("cat, started for one line", |bencher| {
        bencher.iter(|| {
            let mut cat = Cat::start().expect("there is a cat");
            cat.echo(&[1], &mut [0]).expect("it answers");
            cat.end().expect("it ends");
        });
    });
}

fn one_job(criterion: &mut Criterion, pool: &Pool) {
    let mut group = criterion.benchmark_group("one tiny job, there and back");
    group.bench_function(OURS, |bencher| {
        bencher.iter_custom(|times| {
            let pool = pool.clone();
            on_a_reactor(move |reactor| async move {
                let start = Instant::now();
                for i in 0..times {
                    let n = defer_to_process_pool(&reactor, &pool, increment, (i,)).await?;
                    assert_eq!(n, i + 1);
                }
                Ok(start.elapsed())
            })
        });
    });
    group.bench_function("the same without a reactor", |bencher| {
        bencher.iter(|| {
            pool.apply_async(increment, (1,))
                .get()
                .expect("nothing fails")
        });
    });
    let mut cat = Cat::start().expect("there is a cat");
    group.bench_function("cat, by hand", |bencher| {
        bencher.iter(|| cat.echo(&[1; 30], &mut [0; 30]).expect("it answers"));
    });
    cat.end().expect("it ends");
    group.bench_function("a process for each", |bencher| {
        bencher.iter(|| Command::new("true").status().expect("there is a true"));
    });
}

fn many_jobs(criterion: &mut Criterion, pool: &Pool) {
    let mut group = criterion.benchmark_group("10,000 tiny jobs at once, each");
    group.throughput(Throughput::Elements(JOBS));
    group.bench_function(OURS, |bencher| {
        bencher.iter_custom(|times| jobs_at_once(pool.clone(), times));
    });
    let one_by_one = self::pool(false);
    group.bench_function("the same without batching", |bencher| {
        bencher.iter_custom(|times| jobs_at_once(one_by_one.clone(), times));
    });
    let threads = threads();
    let (sender, receiver) = mpsc::channel();
    group.bench_function("rayon: threads, in this process", |bencher| {
        bencher.iter(|| {
            for i in 0..JOBS {
                let sender = sender.clone();
                threads.spawn(move || sender.send(i + 1).expect("it is listened to"));
            }
            let sum: u64 = receiver.iter().take(JOBS as usize).sum();
            assert_eq!(sum, (1..=JOBS).sum::<u64>());
        });
    });
}

fn jobs_at_once(pool: Pool, times: u64) -> Duration {
    on_a_reactor(move |reactor| async move {
        let start = Instant::now();
        for _ in 0..times {
            let jobs = (0..JOBS).map(|i| -> Deferred<u64> {
                defer_to_process_pool(&reactor, &pool, increment, (i,))
            });
            let results = gather_results(jobs).await?;
            assert!(results.into_iter().eq(1..=JOBS));
        }
        Ok(start.elapsed())
    })
}

fn threads() -> rayon::ThreadPool {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(WORKERS);
    threads.build().expect("there are threads")
}

fn map(criterion: &mut Criterion, pool: &Pool) {
    let mut group = criterion.benchmark_group("map over 100,000 numbers, each");
    group.throughput(Throughput::Elements(ITEMS));
    group.bench_function(OURS, |bencher| {
        bencher.iter(|| {
            let results = pool.map(increment, 0..ITEMS);
            let results: Vec<u64> = results.collect::<Result<_, _>>().expect("nothing fails");
            assert!(results.into_iter().eq(1..=ITEMS));
        });
    });
    let threads = threads();
    group.bench_function("rayon: threads, in this process", |bencher| {
        bencher.iter(|| {
            let results: Vec<u64> =
                threads.install(|| (0..ITEMS).into_par_iter().map(increment_here).collect());
            assert!(results.into_iter().eq(1..=ITEMS));
        });
    });
}

#[inline(never)]
fn increment_here(n: u64) -> u64 {
    n + 1
}

fn one_mebibyte(criterion: &mut Criterion, pool: &Pool) {
    let mut group = criterion.benchmark_group("1 MiB, there and back");
    let text = "x".repeat(1 << 20);
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function(OURS, |bencher| {
        bencher.iter_custom(|times| {
            let (pool, text) = (pool.clone(), text.clone());
            on_a_reactor(move |reactor| async move {
                let start = Instant::now();
                for _ in 0..times {
                    let args = (text.clone(),);
                    let back = defer_to_process_pool(&reactor, &pool, echo, args).await?;
                    assert_eq!(back.len(), text.len());
                }
                Ok(start.elapsed())
            })
        });
    });
    let mut cat = Cat::start().expect("there is a cat");
    let mut back = vec![0; text.len()];
    group.bench_function("cat, by hand", |bencher| {
        bencher.iter(|| cat.echo(text.as_bytes(), &mut back).expect("it answers"));
    });
    cat.end().expect("it ends");
}

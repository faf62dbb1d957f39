//! Bench C: functions that do nothing, deferred to the reactor's thread pool.

use std::hint::black_box;
use std::time::Instant;

use errback::{Reactor, gather_results};

use crate::options::Options;
use crate::report::median;
use crate::{Done, on_this_reactor};

/// With two threads, and with ten, which is the default.
pub(crate) fn pool(options: &Options) -> Done {
    [2, 10]
        .into_iter()
        .try_for_each(|threads| pool_of(options, threads))
}

fn pool_of(options: &Options, threads: usize) -> Done {
    let row = options.row("C", &format!("_defer_to_thread_{threads}"));
    let (count, many) = (options.count(20_000), options.count(200_000));
    let rounds = options.rounds(5);
    let reactor = Reactor::builder().thread_pool_size(threads).build()?;
    on_this_reactor(&reactor, move |reactor| async move {
        let mut times = Vec::with_capacity(count);
        for i in 0..count + count / 10 {
            let start = Instant::now();
            reactor.defer_to_thread(|| black_box(())).await?;
            if i >= count / 10 {
                times.push(start.elapsed());
            }
        }
        row.say_percentiles("pool_seq", &mut times);
        let mut rates = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            let all = (0..many).map(|_| reactor.defer_to_thread(|| black_box(())));
            let done = gather_results(all).await?.len();
            rates.push(done as f64 / start.elapsed().as_secs_f64());
        }
        row.say("pool_jobs_per_s", median(&rates), "jobs/s");
        Ok(())
    })
}

//! Workers that take jobs from a bounded queue and share a resource with few places.
//!
//! In Twisted:
//!
//! ```python
//! @inlineCallbacks
//! def worker(name):
//!     done = 0
//!     while True:
//!         job = yield jobs.get()                  # DeferredQueue(size=4)
//!         if job is STOP:
//!             jobs.put(STOP)                      # for the next worker
//!             returnValue(done)
//!         try:
//!             yield disks.run(work, job)          # DeferredSemaphore(2)
//!             done += 1
//!         except JobError:
//!             log.err(None, name)                 # and on with the next one
//! ```
//!
//! The port: the sentinel is a variant of an enum; `inlineCallbacks` is `ensure_deferred` around an async block, and
//! `yield` is `.await`; `try … except` is a `match` on the result. A queue that is full gives the item back in its
//! error, so the producer can wait and put it again. Time is a `Clock` that `main` turns until all workers are through.

use std::time::Duration;

use errback::testing::success_result_of;
use errback::{
    Clock, Deferred, DeferredQueue, DeferredSemaphore, ReactorTime, defer_later, ensure,
    ensure_deferred, gather_results, log_err, observe_unhandled,
};

const TICK: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Job {
    id: u32,
    takes: Duration,
}

enum Message {
    Job(Job),
    Stop,
}

#[derive(Clone)]
struct Shop {
    clock: Clock,
    jobs: DeferredQueue<Message>,
    disks: DeferredSemaphore,
}

impl Shop {
    fn say(&self, what: &str) {
        println!("{:>3}s  {what}", self.clock.seconds().as_secs());
    }

    /// One job, which takes its time and may fail.
    fn work(&self, job: &Job) -> Deferred<u32> {
        let id = job.id;
        defer_later(&self.clock, job.takes, move || {
            ensure!(!id.is_multiple_of(4), "job {id}: bad sector");
            Ok(id * 100)
        })
    }

    /// Takes jobs until told to stop; its result is how many went well.
    fn worker(&self, name: &'static str) -> Deferred<u32> {
        let shop = self.clone();
        ensure_deferred(async move {
            let mut done = 0;
            while let Message::Job(job) = shop.jobs.get().await? {
                let (id, inner) = (job.id, shop.clone());
                match shop.disks.run(move || inner.work(&job)).await {
                    Ok(bytes) => {
                        shop.say(&format!("{name} did job {id}: {bytes} bytes"));
                        done += 1;
                    }
                    Err(failure) => log_err(failure, format!("{name}'s job {id}")), // and on with the next one
                }
            }
            shop.say(&format!("{name} goes home"));
            shop.jobs.put(Message::Stop)?; // for the next worker; there is room, we just took one
            Ok(done)
        })
    }

    /// Puts all jobs in line, waiting when that is full, and the sentinel behind them.
    fn produce(&self, jobs: impl Iterator<Item = Job> + 'static) -> Deferred<u32> {
        let shop = self.clone();
        ensure_deferred(async move {
            let mut refused = 0;
            for mut message in jobs.map(Message::Job).chain([Message::Stop]) {
                while let Err(full) = shop.jobs.put(message) {
                    refused += 1;
                    message = full.into_item();
                    defer_later(&shop.clock, TICK, || ()).await?;
                }
            }
            shop.say("all jobs are in line");
            Ok(refused)
        })
    }
}

fn main() {
    let clock = Clock::new();
    let shop = Shop {
        clock: clock.clone(),
        jobs: DeferredQueue::with_limits(Some(4), None),
        disks: DeferredSemaphore::new(2),
    };
    let reporter = shop.clone();
    let _observer = observe_unhandled(move |u| {
        reporter.say(&format!(
            "{} failed: {}",
            u.what.as_deref().unwrap_or("something"),
            u.failure
        ));
    });

    let workers = gather_results(["ada", "grace", "barbara"].map(|name| shop.worker(name)));
    let producer = shop.produce((1..=12).map(|id| Job {
        id,
        takes: TICK * (1 + id % 3),
    }));
    while !workers.called() {
        clock.advance(TICK);
    }
    let done = success_result_of(workers);
    let refused = success_result_of(producer);
    println!(
        "done: {done:?}, sum {}; the queue was full {refused} times",
        done.iter().sum::<u32>()
    );
    println!(
        "all disks free again: {}",
        shop.disks.tokens() == shop.disks.limit()
    );
}

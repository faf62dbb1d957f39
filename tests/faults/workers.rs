//! R: how workers are made ready, replaced when they have done enough, and come and go with the work.

use std::time::Duration;

use errback::{Breaker, JobPanicked, RemoteError, SpawnFailed, SpawnFailure, Task};

use crate::suite::rows;
use crate::support::{
    Belongings, Gate, close, eventually, failure_of, pool, soon, succeeds, value, whole,
};
use crate::tasks::*;

/// The failure of an initializer, of one that could not start.
#[track_caller]
fn initializer_failed(failed: &SpawnFailed) -> &errback::Failure {
    match &failed.reason {
        SpawnFailure::Initializer(why) => why,
        other => panic!("another reason: {other:?}"),
    }
}

rows! {
    /// The initializer fails every time.
    fn r1_an_initializer_that_fails_stops_the_pool_from_spinning_and_gives_the_reason() {
        let before = Belongings::now();
        let pool = crate::support::builder().size(2).initializer(refuse, ("no licence".into(),)).build().expect("a pool");
        let started = std::time::Instant::now();
        let jobs: Vec<_> = (0..5).map(|n| pool.apply_async(add, (n, 1))).collect();
        for job in jobs {
            let failed: SpawnFailed = failure_of(job);
            let why = initializer_failed(&failed);
            assert!(why.check::<RemoteError>().is_some_and(|error| error.message == "no licence"), "{why:?}");
            assert!(failed.to_string().contains("its initializer failed: no licence"), "{failed}");
            assert!(failed.attempts >= 5);
        }
        let stats = pool.stats();
        let a_second = stats.spawned as f64 / started.elapsed().as_secs_f64().max(1.0);
        assert!(a_second < 8.0, "{} starts in {:?}", stats.spawned, started.elapsed());
        match stats.breaker {
            Breaker::Open { reason, retry_in } => {
                assert!(reason.contains("no licence") && retry_in <= Duration::from_secs(5), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        close(pool, &before);
    }

    /// The initializer panics, or kills its worker.
    fn r1_an_initializer_that_panics_or_dies_is_told_apart() {
        let pool = crate::support::builder().size(1).initializer(panic_str, ()).build().expect("a pool");
        let failed: SpawnFailed = failure_of(pool.apply_async(add, (1, 1)));
        assert!(initializer_failed(&failed).check::<JobPanicked>().is_some());
        let pool = crate::support::builder().size(1).initializer(last_words_then_abort, ("it was the butler".into(),));
        let failed: SpawnFailed = failure_of(pool.build().expect("a pool").apply_async(add, (1, 1)));
        assert!(matches!(failed.reason, SpawnFailure::Ended(end) if end.signal() == Some(6)), "{failed}");
        assert!(failed.stderr.contains("it was the butler"));
    }

    /// The initializer fails at first, and then does not.
    fn r1_a_pool_recovers_when_its_initializer_does() {
        let path = std::env::temp_dir().join(format!("errback-licence-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let licence = path.to_string_lossy().into_owned();
        let pool = crate::support::builder().size(1).initializer(need_file, (licence.clone(),)).build().expect("a pool");
        let job = pool.apply_async(add, (1, 1));
        eventually(soon(), "a failed start", || pool.stats().failed_starts > 0);
        assert!(!job.ready() || pool.stats().failed_starts >= 5);
        std::fs::write(&path, b"").expect("a file");
        drop(job);
        eventually(whole(), "it works again", || pool.apply_async(add, (20, 22)).get().is_ok_and(|n| n == 42));
        assert_eq!(pool.stats().breaker, Breaker::Closed);
        let _ = std::fs::remove_file(path);
    }

    /// The initializer takes long.
    fn r2_the_time_of_an_initializer_is_not_that_of_a_job() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = crate::support::builder().size(1).initializer(hold, (gate.path.clone(),)).build().expect("a pool");
        let job = pool.apply_async(initialised_by.timeout(Duration::from_secs(30)), ());
        let held = gate.held();
        let stats = pool.stats();
        assert_eq!((stats.queued, stats.running, stats.spawned), (1, 0, 1), "it waits for its worker");
        let pid = held.pid;
        held.release();
        assert_eq!(value(job), pid, "what the initializer left is there");
        drop(gate);
        close(pool, &before);
    }

    /// The initializer hangs past the boot deadline.
    fn r2_an_initializer_that_hangs_ends_at_the_boot_deadline() {
        let before = Belongings::now();
        let deadline = Duration::from_millis(50);
        let pool = crate::support::builder().size(1).initializer(spin, ()).boot_deadline(deadline).build().expect("a pool");
        let failed: SpawnFailed = failure_of(pool.apply_async(add, (1, 1)));
        assert!(matches!(failed.reason, SpawnFailure::Silent(after) if after == deadline), "{failed}");
        close(pool, &before);
    }

    /// Workers are replaced after 1, 2 or 3 jobs.
    fn r4_workers_that_are_replaced_after_some_jobs_lose_none() {
        for (most, size) in [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)] {
            let before = Belongings::now();
            let pool = crate::support::builder().size(size).max_jobs_per_worker(most).build().expect("a pool");
            let jobs: Vec<_> = (0..100).map(|_| pool.apply_async(worker_pid, ())).collect();
            let mut pids: Vec<u32> = jobs.into_iter().map(value).collect();
            assert_eq!(pids.len(), 100);
            pids.sort_unstable();
            let longest = pids.chunk_by(|a, b| a == b).map(<[u32]>::len).max();
            assert_eq!(longest, Some(most as usize), "jobs of one worker");
            let stats = pool.stats();
            assert!(stats.workers.len() <= size && stats.died == 0, "{stats:?}");
            let least = 100 / most - size as u64;
            assert!(stats.recycled >= least && stats.restarted >= least, "{stats:?}");
            close(pool, &before);
        }
    }

    /// A job leaks.
    fn r5_a_worker_that_has_grown_too_large_is_replaced_after_its_job() {
        let before = Belongings::now();
        let pool = crate::support::builder().size(1).max_worker_memory(64 << 20).build().expect("a pool");
        let first = value(pool.apply_async(worker_pid, ()));
        assert_eq!(value(pool.apply_async(worker_pid, ())), first);
        assert_eq!(value(pool.apply_async(leak, (128 << 20,))), first, "the job itself is done");
        assert_ne!(value(pool.apply_async(worker_pid, ())), first);
        assert_eq!(pool.stats().recycled, 1);
        close(pool, &before);
    }

    /// Jobs that go together leak.
    fn r5_a_worker_that_grows_by_tiny_jobs_is_replaced_though_more_of_them_wait() {
        let before = Belongings::now();
        let pool = crate::support::builder().size(1).max_worker_memory(64 << 20).build().expect("a pool");
        let jobs: Vec<_> = (0..5000).map(|_| pool.apply_async(leak, (64 << 10,))).collect();
        let pids: Vec<u32> = jobs.into_iter().map(value).collect();
        // As many as fill it, and those that it had by then.
        let longest = pids.chunk_by(|a, b| a == b).map(<[u32]>::len).max();
        assert!(longest <= Some(1024 + 64), "{longest:?}");
        close(pool, &before);
    }

    /// Workers have nothing to do.
    fn r_idle_workers_leave_down_to_the_least_and_come_back() {
        let before = Belongings::now();
        let pool = crate::support::builder().size(4).min_size(1).idle_timeout(Duration::from_millis(20)).build().expect("a pool");
        eventually(whole(), "the least is there without a job", || pool.stats().workers.len() == 1);
        for _ in 0..3 {
            let gate = Gate::new();
            let jobs: Vec<_> = (0..4).map(|_| pool.apply_async(hold, (gate.path.clone(),))).collect();
            let held: Vec<_> = jobs.iter().map(|_| gate.held()).collect();
            assert_eq!(pool.stats().workers.len(), 4);
            held.into_iter().for_each(crate::support::Held::release);
            jobs.into_iter().for_each(succeeds);
            eventually(whole(), "only the least is left", || pool.stats().workers.len() == 1);
        }
        let stats = pool.stats();
        assert_eq!((stats.died, stats.recycled), (0, 0), "{stats:?}");
        close(pool, &before);
    }

    /// A pool has 64 workers, and each has a job.
    fn t1_sixty_four_workers_run_at_once_and_leave_nothing() {
        let before = Belongings::now();
        let pool = pool(64);
        let gate = Gate::new();
        let jobs: Vec<_> = (0..64).map(|_| pool.apply_async(hold, (gate.path.clone(),))).collect();
        let held: Vec<_> = jobs.iter().map(|_| gate.held()).collect();
        let mut pids: Vec<u32> = held.iter().map(|held| held.pid).collect();
        held.into_iter().for_each(crate::support::Held::release);
        jobs.into_iter().for_each(succeeds);
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 64, "each has a process of its own");
        drop(gate);
        close(pool, &before);
    }

    /// A pool tells what it has done.
    fn t1_the_statistics_add_up() {
        let pool = pool(2);
        let jobs: Vec<_> = (0..50).map(|n| pool.apply_async(add, (n, 1))).collect();
        jobs.into_iter().for_each(succeeds);
        failure_of::<JobPanicked, _>(pool.apply_async(panic_str, ()));
        failure_of::<errback::WorkerDied, _>(pool.apply_async(abort, ()));
        eventually(whole(), "the dead one is replaced", || pool.stats().restarted == 1);
        let stats = pool.stats();
        assert_eq!((stats.submitted, stats.finished, stats.failed), (52, 52, 2));
        assert_eq!((stats.queued, stats.running, stats.died), (0, 0, 1));
        assert_eq!((stats.queue_time.count(), stats.run_time.count()), (52, 51), "a death is no time");
        assert!(stats.run_time.quantile(0.5) > Some(Duration::ZERO), "{}", stats.run_time);
        assert_eq!(stats.breaker, Breaker::Closed);
    }
}

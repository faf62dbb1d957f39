//! D: the end of a pool, whatever it is doing.

use std::time::Duration;

use errback::{PoolClosed, WorkerDied};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{
    Belongings, Gate, close, eventually, failure, failure_of, pool, value, whole,
};
use crate::tasks::*;

rows! {
    /// A pool is drained with jobs running and queued.
    fn d1_a_drain_runs_what_was_taken_and_refuses_what_comes() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = pool(2);
        let running = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        let queued: Vec<_> = (0..100).map(|n| pool.apply_async(add, (n, 1))).collect();
        pool.close();
        let refused = pool.apply_async(add, (1, 1));
        assert!(refused.ready());
        assert!(!failure_of::<PoolClosed, _>(refused).running);
        assert_eq!(queued.into_iter().map(value).collect::<Vec<_>>(), (1..=100).collect::<Vec<_>>());
        assert!(!pool.join_timeout(Duration::ZERO), "one still runs");
        held.release();
        value(running);
        drop(gate);
        close(pool, &before);
    }

    /// A pool is terminated with jobs running and queued.
    fn d2_a_termination_fails_everything_and_leaves_nothing() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = pool(2);
        let running: Vec<_> = (0..2).map(|_| pool.apply_async(hold, (gate.path.clone(),))).collect();
        let held: Vec<_> = running.iter().map(|_| gate.held()).collect();
        let queued: Vec<_> = (0..100).map(|n| pool.apply_async(add, (n, 1))).collect();
        pool.terminate();
        running.into_iter().for_each(|job| assert!(failure_of::<PoolClosed, _>(job).running));
        queued.into_iter().for_each(|job| assert!(!failure_of::<PoolClosed, _>(job).running));
        drop((held, gate));
        close(pool, &before);
    }

    /// A drain with a deadline has an endless job.
    fn d3_a_drain_with_a_deadline_becomes_a_termination() {
        let invariant = crate::support::Invariant::new(); // both workers are there
        let pool = invariant.pool.clone();
        let endless = pool.apply_async(spin, ());
        let short = pool.apply_async(add, (1, 1));
        pool.close_within(Duration::from_secs(3));
        assert_eq!(value(short), 2);
        assert!(endless.wait_timeout(whole()));
        assert!(failure_of::<PoolClosed, _>(endless).running);
        assert!(pool.join_timeout(whole()));
        assert!(crate::support::children().is_empty());
    }

    /// A drain with a deadline has more jobs than it has time for.
    fn d3_what_waits_at_the_deadline_fails_without_another_worker() {
        let before = Belongings::now();
        let pool = pool(1);
        let gate = Gate::new();
        let running = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        let queued: Vec<_> = (0..1000).map(|_| pool.apply_async(spin, ())).collect();
        pool.close_within(Duration::from_millis(50));
        for job in queued {
            assert!(!failure_of::<PoolClosed, _>(job).running, "it was not run");
        }
        assert!(failure_of::<PoolClosed, _>(running).running);
        held.gone();
        assert!(pool.join_timeout(whole()));
        assert_eq!(pool.stats().spawned, 1);
        drop((pool, gate));
        crate::support::eventually_same(&before);
    }

    /// A worker is killed in its job while the pool drains.
    fn d4_a_worker_may_die_while_the_pool_closes() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = pool(1);
        let victim = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        let queued: Vec<_> = (0..10).map(|n| pool.apply_async(add, (n, 1))).collect();
        pool.close();
        held.kill(Signal::KILL);
        failure_of::<WorkerDied, _>(victim);
        assert_eq!(queued.into_iter().map(value).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
        drop((held, gate));
        close(pool, &before);
    }

    /// A pool is closed, terminated and joined at once.
    fn d4_closing_twice_and_from_many_threads_is_closing() {
        let before = Belongings::now();
        for _ in 0..20 {
            let pool = pool(2);
            let jobs: Vec<_> = (0..10).map(|n| pool.apply_async(add, (n, 1))).collect();
            std::thread::scope(|scope| {
                for order in [errback::Pool::close, errback::Pool::terminate, errback::Pool::join] {
                    let pool = pool.clone();
                    scope.spawn(move || order(&pool));
                }
            });
            pool.terminate();
            pool.join();
            for job in jobs {
                assert!(job.ready(), "all fired");
                let _ = job.get();
            }
            close(pool, &before);
        }
    }

    /// A pool is terminated while its workers start.
    fn d4_a_pool_may_end_while_its_workers_start() {
        let before = Belongings::now();
        for n in 0..100 {
            let pool = pool(2);
            let jobs: Vec<_> = (0..4).map(|n| pool.apply_async(add, (n, 1))).collect();
            for _ in 0..n * 200 {
                std::hint::spin_loop();
            }
            pool.terminate();
            jobs.into_iter().for_each(|job| assert!(job.get_timeout(whole()).is_ok(), "it fired"));
            close(pool, &before);
        }
    }

    /// A pool is terminated while it backs off.
    fn d4_a_pool_may_end_while_it_backs_off() {
        let before = Belongings::now();
        let pool = crate::support::builder().size(2).command("false", [""; 0]).build().expect("a pool");
        let job = pool.apply_async(add, (1, 1));
        eventually(whole(), "a start has failed", || pool.stats().failed_starts > 0);
        pool.terminate();
        failure(job);
        close(pool, &before);
    }

    /// A pool is closed that was never used.
    fn d_an_unused_pool_ends_too() {
        let before = Belongings::now();
        close(pool(3), &before);
    }

    /// The last handle of a pool is dropped.
    fn d_the_last_handle_ends_the_pool_without_waiting() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = pool(2);
        let running = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        let queued: Vec<_> = (0..10).map(|n| pool.apply_async(add, (n, 1))).collect();
        let clone = pool.clone();
        drop((pool, clone));
        assert!(!running.ready(), "who waits for a result holds the pool");
        drop(queued);
        drop(running);
        held.gone();
        drop(gate);
        crate::support::eventually_same(&before);
    }

    /// A pool is drained before its first worker is there.
    fn d_jobs_that_never_got_a_worker_are_drained() {
        let before = Belongings::now();
        let pool = pool(2);
        let jobs: Vec<_> = (0..10).map(|n| pool.apply_async(add, (n, 1))).collect();
        pool.close();
        assert_eq!(jobs.into_iter().map(value).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
        close(pool, &before);
    }
}

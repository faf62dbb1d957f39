//! D: the end of a pool of Python workers, whatever it is doing.

use std::time::Duration;

use errback::{PoolClosed, WorkerDied};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{Belongings, Gate, close, failure_of, value};
use crate::tasks::*;

rows! {
    fn d1_a_drain_runs_what_was_taken_and_refuses_what_comes() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = pool(2);
        let running = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        let queued: Vec<_> = (0..100).map(|n| pool.apply_async(add, (n, 1))).collect();
        pool.close();
        assert!(!failure_of::<PoolClosed, _>(pool.apply_async(add, (1, 1))).running);
        assert_eq!(queued.into_iter().map(value).collect::<Vec<_>>(), (1..=100).collect::<Vec<_>>());
        assert!(!pool.join_timeout(Duration::ZERO), "one still runs");
        held.release();
        value(running);
        drop(gate);
        close(pool, &before);
    }

    fn d2_a_termination_fails_everything_and_leaves_nothing() {
        for task in [sleep, spin, hold_the_gil, ignore_everything] {
            let before = Belongings::now();
            let gate = Gate::new();
            let pool = pool(2);
            let running: Vec<_> = (0..2).map(|_| pool.apply_async(task, (gate.path.clone(),))).collect();
            let held: Vec<_> = running.iter().map(|_| gate.held()).collect();
            let queued: Vec<_> = (0..20).map(|n| pool.apply_async(add, (n, 1))).collect();
            pool.terminate();
            running.into_iter().for_each(|job| assert!(failure_of::<PoolClosed, _>(job).running));
            queued.into_iter().for_each(|job| assert!(!failure_of::<PoolClosed, _>(job).running));
            drop((held, gate));
            close(pool, &before);
        }
    }

    fn d3_a_drain_with_a_deadline_becomes_a_termination() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = pool(2);
        let endless = pool.apply_async(spin, (gate.path.clone(),));
        let held = gate.held();
        let short = pool.apply_async(add, (1, 1));
        pool.close_within(Duration::from_secs(3));
        assert_eq!(value(short), 2);
        assert!(failure_of::<PoolClosed, _>(endless).running);
        drop((held, gate));
        close(pool, &before);
    }

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

    fn d4_a_pool_may_end_while_its_workers_start() {
        let before = Belongings::now();
        for n in 0..20 {
            let pool = pool(2);
            let jobs: Vec<_> = (0..4).map(|n| pool.apply_async(add, (n, 1))).collect();
            std::thread::park_timeout(Duration::from_millis(10 * n));
            pool.terminate();
            for job in jobs {
                assert!(job.get_timeout(crate::support::whole()).is_ok(), "it fired");
            }
            close(pool, &before);
        }
    }
}

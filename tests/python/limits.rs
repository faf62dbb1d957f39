//! S1, S2, C5, R1, R2, R4, R5, T5: timeouts, requests to stop, initializers, and workers that are replaced in time.

use std::time::Duration;

use errback::{
    Overloaded, PythonTask, RemoteError, SpawnFailed, SpawnFailure, Task, TimedOut, python,
};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{Belongings, Gate, Invariant, close, failure_of, is_alive, kill, value};
use crate::tasks::*;

fn invariant() -> Invariant {
    let before = Belongings::now();
    Invariant::of(pool(2), before)
}

/// Long enough for a job to begin, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(2);

rows! {
    fn s1_a_job_whose_worker_is_stopped_times_out() {
        let mut invariant = invariant().with_bystander();
        let victim = invariant.pool.apply_async(sleep.timeout(LIMIT), (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        held.kill(Signal::STOP);
        invariant.queue();
        let late = failure_of::<TimedOut, _>(victim);
        assert_eq!(late.pid, Some(held.pid), "{late}");
        drop(held);
        invariant.check();
    }

    fn c5_a_job_that_takes_too_long_is_asked_to_stop_and_its_worker_stays() {
        for task in [sleep, spin] {
            let before = Belongings::now();
            // The usual grace is short for a machine that has much else to do.
            let pool = builder().size(2).cancel_grace(Duration::from_secs(20)).build().expect("a pool");
            let mut invariant = Invariant::of(pool, before).with_bystander();
            let victim = invariant.pool.apply_async(task.timeout(LIMIT), (invariant.gate.path.clone(),));
            let held = invariant.gate.held();
            invariant.queue();
            let late = failure_of::<TimedOut, _>(victim);
            assert!(late.pid.is_none() && !late.queued, "{late:?}");
            assert!(is_alive(held.pid));
            drop(held);
            invariant.check();
        }
    }

    fn c5_a_job_that_does_not_stop_is_killed_whatever_it_holds() {
        for task in [hold_the_gil, compute_with_the_gil, ignore_everything] {
            let mut invariant = invariant().with_bystander();
            let victim = invariant.pool.apply_async(task.timeout(LIMIT), (invariant.gate.path.clone(),));
            let held = invariant.gate.held();
            invariant.queue();
            assert_eq!(failure_of::<TimedOut, _>(victim).pid, Some(held.pid));
            drop(held);
            invariant.check();
        }
    }

    fn r1_an_initializer_that_raises_is_told_with_its_exception() {
        let before = Belongings::now();
        let builder = builder().initializer(python::<(String,), ()>("faulty:raise_key_error"), ("k".into(),));
        let pool = builder.size(2).build().expect("a pool");
        let failed = failure_of::<SpawnFailed, _>(pool.apply_async(add, (1, 1)));
        let SpawnFailure::Initializer(why) = &failed.reason else {
            panic!("{failed:?}");
        };
        assert!(why.check_name("builtins.KeyError"), "{why:?}");
        assert_eq!(why.check::<RemoteError>().expect("an exception").message, "'k'");
        close(pool, &before);
    }

    fn r1_each_worker_is_initialized_before_its_jobs() {
        let remember: PythonTask<(u32,), ()> = python("faulty:remember");
        let remembered: PythonTask<(), Vec<u32>> = python("faulty:remembered");
        let pool = builder().initializer(remember, (7,)).max_jobs_per_worker(1).size(2).build().expect("a pool");
        let jobs: Vec<_> = (0..6).map(|_| pool.apply_async(remembered, ())).collect();
        jobs.into_iter().for_each(|job| assert_eq!(value(job), [7]));
        assert!(pool.stats().spawned >= 6, "{:?}", pool.stats());
    }

    fn r4_workers_that_are_replaced_lose_no_job() {
        for (jobs, size) in [(1, 2), (3, 1)] {
            let before = Belongings::now();
            let pool = builder().max_jobs_per_worker(jobs).size(size).build().expect("a pool");
            let sums: Vec<_> = (0..20).map(|n| pool.apply_async(add, (n, 1))).collect();
            assert_eq!(sums.into_iter().map(value).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
            assert!(pool.stats().recycled > 0 && pool.stats().died == 0, "{:?}", pool.stats());
            close(pool, &before);
        }
    }

    fn r5_a_worker_that_has_grown_too_large_is_replaced_after_its_job() {
        let before = Belongings::now();
        let pool = builder().max_worker_memory(200 << 20).size(1).build().expect("a pool");
        let keep: PythonTask<(u64,), u32> = python("faulty:keep");
        let first = value(pool.apply_async(keep, (1 << 20,)));
        assert_eq!(value(pool.apply_async(keep, (300 << 20,))), first);
        assert_ne!(value(pool.apply_async(keep, (1,))), first, "another worker");
        assert_eq!(pool.stats().recycled, 1);
        close(pool, &before);
    }

    fn s2_an_idle_worker_that_is_stopped_is_replaced_and_its_job_goes_elsewhere() {
        let invariant = invariant();
        let workers = invariant.pool.stats().workers;
        workers.iter().for_each(|pid| kill(*pid, Signal::STOP));
        let jobs: Vec<_> = (0..4).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
        assert_eq!(jobs.into_iter().map(value).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(workers.iter().any(|pid| !is_alive(*pid)), "one was found out");
        invariant.pool.stats().workers.into_iter().for_each(|pid| kill(pid, Signal::CONT));
        invariant.check();
    }

    fn r2_an_initializer_has_time_until_the_boot_deadline_and_a_job_none_of_it() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = builder().size(1).initializer(hold, (gate.path.clone(),)).build().expect("a pool");
        let job = pool.apply_async(add.timeout(LIMIT), (1, 2));
        let held = gate.held();
        assert_eq!((pool.stats().queued, pool.stats().running), (1, 0), "it waits for its worker");
        held.release();
        assert_eq!(value(job), 3);
        drop(gate);
        close(pool, &before);
    }

    fn t5_a_full_backlog_refuses_and_tells_of_room() {
        let pool = builder().size(1).backlog(1).build().expect("a pool");
        let gate = Gate::new();
        let running = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        let waiting = pool.apply_async(add, (1, 1));
        failure_of::<Overloaded, _>(pool.apply_async(add, (1, 2)));
        held.release();
        assert!(pool.wait_for_room(Duration::from_secs(60)).is_some());
        value(running);
        assert_eq!(value(waiting), 2);
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
    }
}

//! K, X: workers that are killed, and workers that end themselves.

use errback::{Exit, RemoteError, WorkerDied};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{
    Belongings, Gate, Invariant, eventually, failure, failure_of, is_alive, kill, state, succeeds,
    value, whole,
};
use crate::tasks::*;

fn invariant() -> Invariant {
    let before = Belongings::now();
    Invariant::of(pool(2), before)
}

/// A job that raises what would end a program is an error like others: its worker stays.
#[track_caller]
fn is_an_exception(
    invariant: &Invariant,
    name: &str,
    submit: impl FnOnce(&errback::Pool) -> errback::AsyncResult<()>,
) {
    let died = invariant.pool.stats().died;
    let failed = failure(submit(&invariant.pool));
    assert!(failed.check_name(name), "{failed:?}");
    assert!(failed.check_name("builtins.BaseException"));
    assert_eq!(invariant.pool.stats().died, died);
}

rows! {
    fn k1_idle_workers_that_are_killed_are_missed_by_nobody() {
        let invariant = invariant();
        let workers = invariant.pool.stats().workers;
        workers.iter().for_each(|pid| kill(*pid, Signal::KILL));
        let jobs: Vec<_> = (0..3).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
        assert_eq!(jobs.into_iter().map(value).collect::<Vec<_>>(), [1, 2, 3]);
        invariant.check();
    }

    fn k2_k3_a_job_that_had_not_begun_goes_to_another_worker() {
        for bytes in [10, 64 << 20] {
            let invariant = invariant().with_bystander();
            let victim = invariant.other_than_bystander(&invariant.pool.stats().workers).expect("one");
            kill(victim, Signal::STOP);
            eventually(whole(), "it is stopped", || state(victim) == "T");
            let job = invariant.pool.apply_async(echo, (vec![7; bytes],));
            eventually(whole(), "it is sent", || invariant.pool.stats().running == 2);
            kill(victim, Signal::KILL);
            assert_eq!(value(job).len(), bytes);
            assert_eq!(invariant.pool.stats().resent, 1);
            invariant.check();
        }
    }

    fn k4_k9_a_job_dies_with_its_worker_and_no_other_does() {
        for signal in [Signal::KILL, Signal::TERM, Signal::HUP, Signal::USR1] {
            let mut invariant = invariant().with_bystander();
            let victim = invariant.pool.apply_async(hold, (invariant.gate.path.clone(),));
            let held = invariant.gate.held();
            invariant.queue();
            held.kill(signal);
            let died = failure_of::<WorkerDied, _>(victim);
            assert_eq!(died.exit.signal(), Some(signal.as_raw()), "{died}");
            assert!(died.started && died.pid == held.pid);
            drop(held);
            invariant.check();
        }
    }

    fn k9_an_interrupt_from_outside_is_an_exception_of_the_job() {
        let mut invariant = invariant().with_bystander();
        let victim = invariant.pool.apply_async(sleep, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        invariant.queue();
        held.kill(Signal::INT);
        let failed = failure(victim);
        assert!(failed.check_name("builtins.KeyboardInterrupt"), "{failed:?}");
        assert!(is_alive(held.pid), "its worker goes on");
        drop(held);
        invariant.check();
    }

    fn k5_a_worker_that_dies_while_it_answers_fails_the_job() {
        // The answer is larger than what the socket holds, and nobody reads while this process does not: so the kill
        // hits it at some place in its write, or before.
        let invariant = invariant();
        for n in 0..8 {
            let job = invariant.pool.apply_async(echo, (vec![n; 64 << 20],));
            let begun = std::time::Instant::now();
            let mut pid = None;
            while pid.is_none() && begun.elapsed() < whole() {
                pid = invariant.pool.stats().workers.into_iter().find(|pid| state(*pid) == "R");
            }
            std::thread::park_timeout(std::time::Duration::from_millis(8 * u64::from(n)));
            pid.into_iter().for_each(|pid| kill(pid, Signal::KILL));
            match job.get() {
                Ok(bytes) => assert_eq!(bytes, vec![n; 64 << 20]),
                Err(failure) => assert!(failure.is::<WorkerDied>(), "{failure:?}"),
            }
        }
        invariant.check();
    }

    fn x1_x2_a_job_that_leaves_is_a_death_whatever_the_status() {
        for status in [0, 3, 255] {
            let mut invariant = invariant().with_bystander();
            let victim = invariant.pool.apply_async(leave, (status,));
            invariant.queue();
            let died = failure_of::<WorkerDied, _>(victim);
            assert!(died.started);
            assert_eq!(died.exit, Exit::Status(status));
            invariant.check();
        }
    }

    fn x2_a_job_that_asks_for_the_end_of_the_program_raises() {
        let invariant = invariant();
        is_an_exception(&invariant, "builtins.SystemExit", |pool| pool.apply_async(system_exit, (3,)));
        is_an_exception(&invariant, "builtins.SystemExit", |pool| pool.apply_async(system_exit, (0,)));
        is_an_exception(&invariant, "builtins.KeyboardInterrupt", |pool| pool.apply_async(interrupt, ()));
        invariant.check();
    }

    fn x3_a_job_that_crashes_says_of_which_signal() {
        for signal in [6, 11] {
            let mut invariant = invariant().with_bystander();
            let victim = invariant.pool.apply_async(signal_oneself, (signal,));
            invariant.queue();
            assert_eq!(failure_of::<WorkerDied, _>(victim).exit.signal(), Some(signal));
            invariant.check();
        }
    }

    fn x4_an_endless_recursion_is_an_exception() {
        let invariant = invariant();
        let died = invariant.pool.stats().died;
        let failed = failure(invariant.pool.apply_async(recurse, ()));
        assert!(failed.check_name("builtins.RecursionError"), "{failed:?}");
        let story = format!("{:#}", failed.check::<RemoteError>().expect("an exception"));
        assert!(story.contains("in recurse") && story.len() < 100_000, "{} bytes", story.len());
        assert_eq!(invariant.pool.stats().died, died);
        invariant.check();
    }

    fn x5_a_job_that_asks_for_too_much_memory_gets_an_exception() {
        let before = Belongings::now();
        let pool = builder().size(2).memory_limit(512 << 20).build().expect("a pool");
        let invariant = Invariant::of(pool, before);
        let failed = failure(invariant.pool.apply_async(allocate, (1 << 30,)));
        assert!(failed.check_name("builtins.MemoryError"), "{failed:?}");
        assert_eq!(value(invariant.pool.apply_async(allocate, (1 << 20,))), 1 << 20);
        invariant.check();
    }

    fn x6_x7_a_worker_that_ends_after_its_answer_harms_nobody() {
        let invariant = invariant();
        let pid = value(invariant.pool.apply_async(leave_after_the_answer, ()));
        eventually(whole(), "it is gone", || !is_alive(pid));
        let jobs: Vec<_> = (0..10).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
        jobs.into_iter().for_each(succeeds);
        invariant.check();
    }

    fn s4_stopped_workers_do_not_keep_a_pool_from_its_end() {
        let before = Belongings::now();
        let gate = Gate::new();
        let pool = pool(2);
        let jobs: Vec<_> = (0..2).map(|_| pool.apply_async(hold, (gate.path.clone(),))).collect();
        let held: Vec<_> = jobs.iter().map(|_| gate.held()).collect();
        held.iter().for_each(|held| held.kill(Signal::STOP));
        pool.terminate();
        assert!(pool.join_timeout(whole()));
        for job in jobs {
            assert!(failure_of::<errback::PoolClosed, _>(job).running);
        }
        drop((held, gate));
        crate::support::close(pool, &before);
    }
}

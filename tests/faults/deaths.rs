//! K, X and S: workers that are killed, leave, or are stopped.

use errback::{Exit, Pool, WorkerDied};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{Belongings, Invariant, children, failure_of, kill, pool, status, value};
use crate::tasks::*;

/// Kills a worker in its job by `signal`, between a bystander and ten that wait.
fn killed_in_job(signal: Signal) {
    let mut invariant = Invariant::new().with_bystander();
    let victim = invariant
        .pool
        .apply_async(hold, (invariant.gate.path.clone(),));
    let held = invariant.gate.held();
    invariant.queue();
    held.kill(signal);
    let died = failure_of::<WorkerDied, _>(victim);
    let worker = held.gone();
    assert_eq!(
        (died.exit.signal(), died.started, died.pid),
        (Some(signal.as_raw()), true, worker)
    );
    invariant.check();
}

/// Whether this process ignores `signal`, and its children with it: under `nohup`, or in the background of a script.
fn is_ignored(signal: Signal) -> bool {
    let mask = u64::from_str_radix(&status(std::process::id(), "SigIgn"), 16).expect("hex");
    mask & (1 << (signal.as_raw() - 1)) != 0
}

/// A signal that workers ignore does nothing.
fn unharmed_in_job(signal: Signal) {
    let invariant = Invariant::new();
    let job = invariant
        .pool
        .apply_async(hold, (invariant.gate.path.clone(),));
    let held = invariant.gate.held();
    held.kill(signal);
    held.release();
    value(job);
    invariant.check();
}

/// A job that ends its worker, between a bystander and ten that wait.
fn dies(start: impl FnOnce(&Pool) -> WorkerDied) -> WorkerDied {
    let invariant = Invariant::new().with_bystander();
    let died = start(&invariant.pool);
    assert!(died.started, "{died}");
    invariant.check();
    died
}

rows! {
    /// Both idle workers are killed, then jobs come.
    fn k1_idle_workers_that_are_killed_fail_no_job() {
        let invariant = Invariant::new();
        let workers = invariant.pool.stats().workers;
        assert_eq!(workers.len(), 2);
        workers.into_iter().for_each(|pid| kill(pid, Signal::KILL));
        let jobs: Vec<_> = (0..3).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
        assert_eq!(jobs.into_iter().map(value).collect::<Vec<_>>(), [1, 2, 3]);
        invariant.check();
    }

    /// An idle worker is killed, and no job comes.
    fn k1_an_idle_worker_that_is_killed_is_replaced_without_a_job() {
        let invariant = Invariant::new();
        let before = invariant.pool.stats();
        kill(before.workers[0], Signal::KILL);
        crate::support::eventually(crate::support::whole(), "a new worker", || {
            let now = invariant.pool.stats();
            now.workers.len() == 2 && now.spawned == before.spawned + 1
        });
        invariant.check();
    }

    /// A worker is killed between a job's call and its start.
    fn k2_a_job_that_had_not_begun_goes_to_another_worker() {
        let mut invariant = Invariant::new().with_bystander();
        let victim = invariant.other_than_bystander(&invariant.pool.stats().workers).expect("two workers");
        kill(victim, Signal::STOP);
        let job = invariant.pool.apply_async(add, (1, 2));
        crate::support::eventually(crate::support::soon(), "the job is sent", || invariant.pool.stats().running == 2);
        kill(victim, Signal::KILL);
        assert_eq!(value(job), 3);
        assert_eq!(invariant.pool.stats().resent, 1);
        invariant.queue();
        invariant.check();
    }

    /// A worker is killed half-way through a call of 64 MiB.
    fn k3_a_worker_killed_while_it_reads_a_large_call_costs_nothing() {
        let invariant = Invariant::unshared().with_bystander();
        let victim = invariant.other_than_bystander(&invariant.pool.stats().workers).expect("two workers");
        kill(victim, Signal::STOP);
        let job = invariant.pool.apply_async(echo, (vec![7; 64 << 20],));
        crate::support::eventually(crate::support::soon(), "the job is sent", || invariant.pool.stats().running == 2);
        kill(victim, Signal::KILL);
        assert!(value(job) == vec![7; 64 << 20]);
        invariant.check();
    }

    /// A worker is killed in its job.
    fn k4_a_worker_killed_in_its_job_fails_only_that_job() {
        killed_in_job(Signal::KILL);
    }

    /// A worker dies at eight moments of an answer of 64 MiB.
    fn k5_half_an_answer_is_no_answer() {
        for n in 0..8 {
            let invariant = Invariant::unshared();
            let job = invariant.pool.apply_async(answer_and_abort, (64 << 20, 20_000 * n));
            match job.get() {
                Ok(bytes) => assert_eq!(bytes.len(), 64 << 20),
                Err(failure) => {
                    let died = failure.check::<WorkerDied>().expect("a death");
                    assert_eq!((died.exit.signal(), died.started), (Some(6), true));
                }
            }
            // The answer may have been faster than the abort; then the worker dies idle.
            invariant.check_job_after();
        }
    }

    /// SIGTERM, SIGINT, SIGHUP and SIGUSR1 come to a worker in its job.
    fn k9_other_signals_end_it_like_sigkill() {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
            match is_ignored(signal) {
                false => killed_in_job(signal),
                true => unharmed_in_job(signal),
            }
        }
    }

    /// A job exits, with status 0, 3 and 255.
    fn x1_x2_a_job_that_exits_is_a_death_with_that_status() {
        for status in [0, 3, 255] {
            let died = dies(|pool| failure_of(pool.apply_async(exit, (status,))));
            assert_eq!(died.exit, Exit::Status(status));
        }
    }

    /// A job aborts, and dies of SIGSEGV, SIGBUS, SIGILL and SIGFPE.
    fn x3_a_job_that_crashes_is_a_death_with_that_signal() {
        let died = dies(|pool| failure_of(pool.apply_async(abort, ())));
        assert_eq!(died.exit.signal(), Some(Signal::ABORT.as_raw()));
        let died = dies(|pool| failure_of(pool.apply_async(segfault, ())));
        assert_eq!(died.exit.signal(), Some(Signal::SEGV.as_raw()));
        for signal in [Signal::BUS, Signal::ILL, Signal::FPE] {
            let died = dies(|pool| failure_of(pool.apply_async(signal_oneself, (signal.as_raw(),))));
            assert_eq!(died.exit.signal(), Some(signal.as_raw()));
        }
    }

    /// A job writes to its stderr and aborts.
    fn x3_the_death_tells_the_last_words() {
        let words = "the decoder lost its way".to_string();
        let died = dies(|pool| failure_of(pool.apply_async(last_words_then_abort, (words.clone(),))));
        assert!(died.stderr.contains(&words), "{died:?}");
        assert!(died.to_string().ends_with(&format!("its last words: {words}")), "{died}");
        assert!(died.task.ends_with("last_words_then_abort") && died.job > 0, "{died:?}");
    }

    /// A job overflows its stack.
    fn x4_a_stack_overflow_is_a_death() {
        let died = dies(|pool| failure_of(pool.apply_async(overflow_stack, (0,))));
        let signals = [Signal::SEGV.as_raw(), Signal::ABORT.as_raw()];
        assert!(died.exit.signal().is_some_and(|signal| signals.contains(&signal)), "{died}");
    }

    /// A job allocates more than its worker's limit.
    fn x5_a_job_that_wants_more_memory_than_it_may_have_dies_alone() {
        let before = Belongings::now();
        let pool = crate::support::builder().size(2).memory_limit(512 << 20).build().expect("a pool");
        let invariant = Invariant::of(pool, before).with_bystander();
        let died = failure_of::<WorkerDied, _>(invariant.pool.apply_async(allocate, (1 << 30,)));
        assert_eq!(died.exit.signal(), Some(Signal::ABORT.as_raw()), "{died}");
        assert!(died.stderr.contains("memory"), "{died:?}");
        assert_eq!(value(invariant.pool.apply_async(allocate, (1 << 20,))), 1 << 20);
        invariant.check();
    }

    /// A thread that a job left behind exits after the answer, with status 0.
    fn x6_a_worker_that_exits_after_its_answer_harms_nobody() {
        let invariant = Invariant::new();
        let pid = value(invariant.pool.apply_async(exit_later, (20,)));
        crate::support::eventually(crate::support::whole(), "it is gone", || !crate::support::is_alive(pid));
        invariant.check();
    }

    /// A worker aborts in its exit handlers, when its pool closes.
    fn x6_a_worker_that_dies_of_its_exit_handlers_delays_no_close() {
        let invariant = Invariant::new();
        value(invariant.pool.apply_async(abort_at_exit, ()));
        invariant.check();
    }

    /// A thread that a job left behind aborts after the answer.
    fn x7_a_worker_that_aborts_after_its_answer_harms_nobody() {
        let invariant = Invariant::new();
        let pid = value(invariant.pool.apply_async(abort_later, (20,)));
        crate::support::eventually(crate::support::whole(), "it is gone", || !crate::support::is_alive(pid));
        invariant.check();
    }

    /// A worker is stopped in its job, and the job cancelled.
    fn s1_a_stopped_worker_can_be_cancelled() {
        let invariant = Invariant::new().with_bystander();
        let victim = invariant.pool.apply_async(hold, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        held.kill(Signal::STOP);
        victim.cancel();
        failure_of::<errback::CancelledError, _>(victim);
        held.gone();
        invariant.check();
    }

    /// All workers are stopped, and the pool terminated.
    fn s4_stopped_workers_do_not_delay_a_shutdown() {
        let before = Belongings::now();
        let invariant = Invariant::of(pool(2), before.clone());
        let job = invariant.pool.apply_async(hold, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        invariant.pool.stats().workers.into_iter().for_each(|pid| kill(pid, Signal::STOP));
        invariant.pool.terminate();
        assert!(invariant.pool.join_timeout(crate::support::whole()));
        failure_of::<errback::PoolClosed, _>(job);
        held.gone();
        assert!(children().is_empty());
    }
}

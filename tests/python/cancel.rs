//! C: jobs that are cancelled, whatever they are doing: asleep, in a loop, in C with the interpreter's lock in their hands.

use std::time::Duration;

use errback::CancelledError;
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{Belongings, Held, Invariant, failure_of, succeeds, value};
use crate::tasks::*;

fn invariant() -> Invariant {
    let before = Belongings::now();
    Invariant::of(pool(2), before)
}

/// A job that does not end by itself is cancelled once it has begun.
fn can_be_cancelled(task: Endless) {
    let mut invariant = invariant().with_bystander();
    let victim = invariant
        .pool
        .apply_async(task, (invariant.gate.path.clone(),));
    let held = invariant.gate.held();
    invariant.queue();
    victim.cancel();
    failure_of::<CancelledError, _>(victim);
    drop(held);
    invariant.check();
}

rows! {
    fn c1_a_queued_job_is_taken_out_and_no_worker_sees_it() {
        let mut invariant = invariant();
        let path = invariant.gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| invariant.pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| invariant.gate.held()).collect();
        let queued = invariant.pool.apply_async(leave, (1,));
        invariant.queue();
        let died = invariant.pool.stats().died;
        queued.cancel();
        assert!(queued.ready(), "it failed on the spot");
        failure_of::<CancelledError, _>(queued);
        held.into_iter().for_each(Held::release);
        busy.into_iter().for_each(succeeds);
        invariant.check_others();
        assert_eq!(invariant.pool.stats().died, died, "nothing ended");
        invariant.check();
    }

    fn c2_a_job_that_sleeps_can_be_cancelled() {
        can_be_cancelled(sleep);
    }

    fn c2_a_job_that_computes_for_ever_can_be_cancelled() {
        can_be_cancelled(spin);
    }

    fn c2_a_job_that_sleeps_in_c_with_the_lock_can_be_cancelled() {
        can_be_cancelled(hold_the_gil);
    }

    fn c2_a_job_that_computes_in_c_with_the_lock_can_be_cancelled() {
        can_be_cancelled(compute_with_the_gil);
    }

    fn c2_a_job_that_ignores_every_signal_and_exception_can_be_cancelled() {
        can_be_cancelled(ignore_everything);
    }

    fn s1_a_job_whose_worker_is_stopped_can_be_cancelled() {
        let mut invariant = invariant().with_bystander();
        let victim = invariant.pool.apply_async(sleep, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        held.kill(Signal::STOP);
        invariant.queue();
        victim.cancel();
        failure_of::<CancelledError, _>(victim);
        drop(held);
        invariant.check();
    }

    fn c3_a_cancel_at_the_moment_of_the_answer_has_one_outcome_and_hits_no_other_job() {
        let pool = pool(2);
        succeeds(pool.apply_async(add, (1, 1)));
        let (mut values, mut cancelled) = (0, 0);
        for n in 0..300 {
            let job = pool.apply_async(add, (n, 1));
            let other = pool.apply_async(add, (n, 2));
            // From at once to long after the answer.
            let until = std::time::Instant::now() + Duration::from_micros(n as u64 % 100 * 20);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            job.cancel();
            match job.get() {
                Ok(sum) => {
                    assert_eq!(sum, n + 1);
                    values += 1;
                }
                Err(failure) => {
                    failure.trap::<CancelledError>().expect("a cancel");
                    cancelled += 1;
                }
            }
            assert_eq!(value(other), n + 2, "a job that nobody cancelled");
        }
        assert!(values > 0 && cancelled > 0, "{values} values, {cancelled} cancelled: no race");
    }

    fn c4_cancelling_twice_or_too_late_does_nothing() {
        let invariant = invariant();
        let job = invariant.pool.apply_async(add, (1, 1));
        job.wait();
        job.cancel();
        job.cancel();
        assert_eq!(value(job), 2);
        let job = invariant.pool.apply_async(sleep, (invariant.gate.path.clone(),));
        drop(invariant.gate.held());
        job.cancel();
        job.cancel();
        failure_of::<CancelledError, _>(job);
        invariant.check();
    }

    fn f11_a_cancel_takes_along_what_the_job_has_forked() {
        let invariant = invariant();
        let victim = invariant.pool.apply_async(fork_many, (invariant.gate.path.clone(), 50));
        let held: Vec<Held> = (0..51).map(|_| invariant.gate.held()).collect();
        victim.cancel();
        failure_of::<CancelledError, _>(victim);
        crate::support::eventually(crate::support::whole(), "all are gone", || {
            !held.iter().any(|held| crate::support::is_alive(held.pid))
        });
        drop(held);
        invariant.check();
    }
}

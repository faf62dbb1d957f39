//! C: jobs that are cancelled, at every moment.

use std::time::Duration;

use errback::CancelledError;

use crate::suite::rows;
use crate::support::{Invariant, failure_of, is_alive, pool, succeeds, value};
use crate::tasks::*;

rows! {
    /// A job is cancelled before it is dispatched.
    fn c1_a_queued_job_is_taken_out_and_no_worker_sees_it() {
        let mut invariant = Invariant::new();
        let path = invariant.gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| invariant.pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| invariant.gate.held()).collect();
        let queued = invariant.pool.apply_async(abort, ());
        invariant.queue();
        let died = invariant.pool.stats().died;
        queued.cancel();
        assert!(queued.ready(), "it failed on the spot");
        failure_of::<CancelledError, _>(queued);
        held.into_iter().for_each(crate::support::Held::release);
        busy.into_iter().for_each(succeeds);
        invariant.check_others();
        assert_eq!(invariant.pool.stats().died, died, "nothing aborted");
        invariant.check();
    }

    /// A job is cancelled while it runs.
    fn c2_a_running_job_is_killed_and_fails_when_its_process_is_gone() {
        let mut invariant = Invariant::new().with_bystander();
        let victim = invariant.pool.apply_async(hold, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        invariant.queue();
        victim.cancel();
        victim.wait();
        assert_eq!(crate::support::state(held.pid), "", "not even a zombie");
        failure_of::<CancelledError, _>(victim);
        drop(held);
        invariant.check();
    }

    /// A job that computes and never looks up is cancelled.
    fn c2_a_job_that_computes_for_ever_can_be_cancelled() {
        let invariant = Invariant::new().with_bystander();
        let victim = invariant.pool.apply_async(spin, ());
        crate::support::eventually(crate::support::soon(), "it is sent", || invariant.pool.stats().running == 2);
        victim.cancel();
        failure_of::<CancelledError, _>(victim);
        invariant.check();
    }

    /// A job is cancelled at the moment of its answer, 10,000 times, in pools of 1, 2, 5 and 13.
    fn c3_a_cancel_at_the_moment_of_the_answer_has_one_outcome_and_hits_no_other_job() {
        let (mut values, mut cancelled) = (0, 0);
        for size in [1, 2, 5, 13] {
            let pool = pool(size);
            for n in 0..2500 {
                let job = pool.apply_async(add, (n, 1));
                let other = pool.apply_async(add, (n, 2));
                // From at once to long after the answer.
                let until = std::time::Instant::now() + Duration::from_nanos(50 * (n as u64 % 2000));
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
            assert_eq!(pool.stats().finished, 5000);
        }
        assert!(values > 0 && cancelled > 0, "{values} values, {cancelled} cancelled: no race");
    }

    /// A job is cancelled twice, and after its end.
    fn c4_cancelling_twice_or_too_late_does_nothing() {
        let invariant = Invariant::new();
        let job = invariant.pool.apply_async(add, (1, 1));
        job.wait();
        job.cancel();
        job.cancel();
        assert_eq!(value(job), 2);
        let job = invariant.pool.apply_async(hold, (invariant.gate.path.clone(),));
        drop(invariant.gate.held());
        job.cancel();
        job.cancel();
        let _ = job.get(); // whichever was first
        invariant.check();
    }

    /// A result is dropped before it is there.
    fn c7_dropping_a_result_cancels_nothing_unless_asked() {
        let invariant = Invariant::new();
        drop(invariant.pool.apply_async(hold, (invariant.gate.path.clone(),)));
        let held = invariant.gate.held();
        assert!(is_alive(held.pid));
        held.release();
        let job = invariant.pool.apply_async(hold, (invariant.gate.path.clone(),)).cancel_on_drop();
        let held = invariant.gate.held();
        drop(job);
        held.gone();
        invariant.check();
    }
}

//! How long the jobs of each task take, to tell which may be sent to a worker several at a time.
//!
//! Most of the cost of a tiny job is the wake-up on either side, and several that travel together share it. But a job that
//! waits on a worker's socket waits for those in front of it, while another worker may be idle. So only jobs of a task
//! whose last ones have proved short go together, and so few that they are done in a moment.

use std::time::Duration;

use super::backlog::TaskId;

/// All jobs that are with a worker are to be done within this.
const TOGETHER: Duration = Duration::from_millis(1);
/// The most that go together through shared memory.
pub(super) const MOST: usize = 1024;
/// The most that go together over a socket: each answer must fit into its buffer beside the others, or the worker waits.
pub(super) const MOST_ON_A_SOCKET: usize = 64;
/// In this time a waiter is awake that was asleep, as a rule.
const WAKE: Duration = Duration::from_micros(50);
/// So many jobs of a task are timed alone before any go together.
const PROOF: u32 = 3;

/// How long the jobs of each task take.
#[derive(Default)]
pub(super) struct Paces {
    /// By the numbers of the tasks.
    paces: Vec<Pace>,
}

#[derive(Clone, Copy, Default)]
struct Pace {
    /// How many were timed.
    jobs: u32,
    estimate: Duration,
}

impl Paces {
    /// So many jobs took so long each.
    pub(super) fn note(&mut self, task: TaskId, took: Duration, jobs: u32) {
        let pace = self.of(task);
        pace.jobs = pace.jobs.saturating_add(jobs);
        // A long one counts at once, and is forgotten in a while.
        pace.estimate = took.max((pace.estimate + took) / 2);
    }

    /// How many jobs of a task may be with a worker at a time.
    pub(super) fn together(&mut self, task: TaskId) -> usize {
        let pace = self.of(task);
        if pace.jobs < PROOF {
            return 1;
        }
        let estimate = pace.estimate.as_nanos().max(1);
        let jobs = TOGETHER.as_nanos() / estimate;
        usize::try_from(jobs).unwrap_or(MOST).clamp(1, MOST)
    }

    /// With how many jobs left a worker that has so many is given more: with half, so that it does not run dry meanwhile. But
    /// if even that half is done before anybody is awake, it is as well when all are done: there will be more by then.
    pub(super) fn refill_at(&mut self, task: TaskId, jobs: usize) -> usize {
        let half = jobs / 2;
        let estimate = self.of(task).estimate.as_nanos();
        match estimate * half as u128 >= WAKE.as_nanos() {
            true => half,
            false => 0,
        }
    }

    fn of(&mut self, TaskId(task): TaskId) -> &mut Pace {
        let index = task as usize;
        if index >= self.paces.len() {
            self.paces.resize(index + 1, Pace::default());
        }
        &mut self.paces[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TaskId = TaskId(0);
    const B: TaskId = TaskId(1);
    const US: Duration = Duration::from_micros(1);

    #[test]
    fn jobs_go_together_when_their_task_has_proved_short() {
        let mut paces = Paces::default();
        assert_eq!(paces.together(A), 1, "unknown");
        for _ in 0..PROOF {
            paces.note(A, 100 * US, 1);
        }
        assert_eq!(paces.together(A), 10, "1 ms of them");
        assert_eq!(paces.together(B), 1, "another task");
        for _ in 0..40 {
            paces.note(A, US / 10, 1);
        }
        assert_eq!(paces.together(A), MOST);
    }

    #[test]
    fn a_worker_is_given_more_before_it_runs_dry_if_somebody_can_be_awake_by_then() {
        let mut paces = Paces::default();
        for _ in 0..40 {
            paces.note(A, US, 1);
        }
        assert_eq!(paces.refill_at(A, 400), 200);
        assert_eq!(paces.refill_at(A, 40), 0, "20 us of them");
    }

    #[test]
    fn one_long_job_ends_it_for_a_while() {
        let mut paces = Paces::default();
        for _ in 0..10 {
            paces.note(A, US, 1);
        }
        paces.note(A, Duration::from_secs(1), 1);
        assert_eq!(paces.together(A), 1);
        for _ in 0..5 {
            paces.note(A, US, 1);
        }
        assert_eq!(paces.together(A), 1);
        for _ in 0..40 {
            paces.note(A, US / 10, 1);
        }
        assert_eq!(paces.together(A), MOST);
    }
}

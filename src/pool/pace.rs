//! How long the jobs of each task take, to tell which may be sent to a worker several at a time.
//!
//! Most of the cost of a tiny job is the wake-up on either side, and several that travel together share it. But a job that
//! waits on a worker's socket waits for those in front of it, while another worker may be idle. So only jobs of a task
//! whose last ones have proved short go together, and so few that they are done in a moment.

use std::time::Duration;

/// All jobs that are with a worker are to be done within this.
const TOGETHER: Duration = Duration::from_millis(1);
/// The most that go together through shared memory.
pub(super) const MOST: usize = 1024;
/// The most that go together over a socket: each answer must fit into its buffer beside the others, or the worker waits.
pub(super) const MOST_ON_A_SOCKET: usize = 64;
/// So many jobs of a task are timed alone before any go together.
const PROOF: u32 = 3;

#[derive(Default)]
pub(super) struct Paces {
    /// Few: one for each task that has run. The last one that was asked for is the first.
    paces: Vec<Pace>,
}

struct Pace {
    task: &'static str,
    /// How many were timed.
    jobs: u32,
    estimate: Duration,
}

impl Paces {
    /// So many jobs took so long each.
    pub(super) fn note(&mut self, task: &'static str, took: Duration, jobs: u32) {
        let pace = self.of(task);
        pace.jobs = pace.jobs.saturating_add(jobs);
        // A long one counts at once, and is forgotten in a while.
        pace.estimate = took.max((pace.estimate + took) / 2);
    }

    /// How many jobs of a task may be with a worker at a time.
    pub(super) fn together(&mut self, task: &'static str) -> usize {
        let pace = self.of(task);
        if pace.jobs < PROOF {
            return 1;
        }
        let estimate = pace.estimate.as_nanos().max(1);
        let jobs = TOGETHER.as_nanos() / estimate;
        usize::try_from(jobs).unwrap_or(MOST).clamp(1, MOST)
    }

    fn of(&mut self, task: &'static str) -> &mut Pace {
        // By the place of the name: it is the same one for all jobs of a task, and two for one task do no harm.
        let known = self
            .paces
            .iter()
            .position(|pace| std::ptr::eq(pace.task, task));
        match known {
            Some(at) => self.paces.swap(0, at),
            None => {
                let last = self.paces.len();
                self.paces.push(Pace {
                    task,
                    jobs: 0,
                    estimate: Duration::ZERO,
                });
                self.paces.swap(0, last);
            }
        }
        &mut self.paces[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn jobs_go_together_when_their_task_has_proved_short() {
        let mut paces = Paces::default();
        assert_eq!(paces.together("a"), 1, "unknown");
        for _ in 0..PROOF {
            paces.note("a", 100 * US, 1);
        }
        assert_eq!(paces.together("a"), 10, "1 ms of them");
        assert_eq!(paces.together("b"), 1, "another task");
        for _ in 0..40 {
            paces.note("a", US / 10, 1);
        }
        assert_eq!(paces.together("a"), MOST);
    }

    #[test]
    fn one_long_job_ends_it_for_a_while() {
        let mut paces = Paces::default();
        for _ in 0..10 {
            paces.note("a", US, 1);
        }
        paces.note("a", Duration::from_secs(1), 1);
        assert_eq!(paces.together("a"), 1);
        for _ in 0..5 {
            paces.note("a", US, 1);
        }
        assert_eq!(paces.together("a"), 1);
        for _ in 0..40 {
            paces.note("a", US / 10, 1);
        }
        assert_eq!(paces.together("a"), MOST);
    }
}

//! What the pool's one lock protects: the jobs, the places for workers, and how far the pool is from its end.
//!
//! Everything that must be decided together is in here, so that each decision is one critical section: which job a
//! worker holds and whether that process may still be killed; whether a job may be put back and whether somebody is there
//! to take it. Nothing in here blocks, and no user code runs under the lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use super::backlog::Backlog;
use super::breaker::Breaker;
use super::child::{Child, Process};
use super::job::{Job, JobKey, JobState, Verdict, WorkerId};
use crate::error::SpawnFailed;

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) backlog: Backlog,
    /// One for each waiter; they come with the first jobs and stay.
    pub(super) places: Vec<Place>,
    /// Waiters that wait for a job. The last one to have come is the first to be asked: its caches are warm.
    pub(super) idle: Vec<WorkerId>,
    pub(super) breaker: Breaker,
    /// How many workers there should be; grows up to the pool's size while jobs wait.
    pub(super) wanted: usize,
    /// Whether any worker has ever said hello. Before that they are started one at a time.
    pub(super) proven: bool,
    /// Jobs that are to be cancelled at some time, if they are not done by then.
    pub(super) notices: Vec<(Instant, JobKey)>,
    /// Jobs that end with the pool; the supervisor fails them.
    pub(super) doomed: Vec<Job>,
    /// Processes that were killed and would not die in time; the supervisor collects them.
    pub(super) undead: Vec<Arc<Process>>,
    /// To be called when the pool has ended.
    pub(super) on_end: Vec<Box<dyn FnOnce() + Send>>,
    pub(super) counts: Counts,
}

/// What [`Stats`](super::Stats) says of the past.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) submitted: u64,
    pub(super) finished: u64,
    pub(super) spawned: u64,
    pub(super) died: u64,
    pub(super) resent: u64,
}

/// Where the pool is in its life. It only ever goes down this list.
pub(super) enum Phase {
    Open,
    Closing(Closing),
    Ended,
}

/// What is still to be done before the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Closing {
    /// Whether jobs that wait are failed. Otherwise they are run.
    pub(super) drop_queued: bool,
    /// When the workers that are left are killed. `None`: never.
    pub(super) kill_at: Option<Instant>,
}

/// A place for a worker, with its waiter thread.
pub(super) struct Place {
    pub(super) stage: Stage,
    /// From its spawn until it is reaped. Whoever kills, kills through here.
    pub(super) process: Option<Arc<Process>>,
    /// The job that it holds.
    pub(super) job: Option<JobKey>,
    /// The supervisor has seen the process end. (A waiter that holds a job sees it by itself.)
    pub(super) dead: bool,
}

/// What goes on in a place.
pub(super) enum Stage {
    /// There is no process; the supervisor may start one.
    Vacant,
    /// The supervisor is starting one.
    Spawning,
    /// There is one, and the waiter has not looked yet.
    Handed(Box<Child>),
    /// The waiter waits for its hello.
    Starting,
    /// It takes jobs.
    Serving,
    /// The waiter's thread has ended, with the pool.
    Ended,
}

impl State {
    pub(super) fn new() -> Self {
        State {
            phase: Phase::Open,
            backlog: Backlog::new(),
            places: Vec::new(),
            idle: Vec::new(),
            breaker: Breaker::new(),
            wanted: 0,
            proven: false,
            notices: Vec::new(),
            doomed: Vec::new(),
            undead: Vec::new(),
            on_end: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn place(&mut self, id: WorkerId) -> &mut Place {
        &mut self.places[id.0 as usize]
    }

    /// How many workers there are, or will be in a moment.
    pub(super) fn alive(&self) -> usize {
        self.count(|place| place.is_starting() || place.is_serving())
    }

    /// How many workers are on their way.
    pub(super) fn starting(&self) -> usize {
        self.count(Place::is_starting)
    }

    /// How many workers are dead and not buried yet: whether that was a failed start is not known before.
    pub(super) fn dying(&self) -> usize {
        self.count(|place| {
            place.dead
                || (place.process.is_none()
                    && matches!(place.stage, Stage::Serving | Stage::Starting))
        })
    }

    /// How many workers have nothing to do, or have just finished and will look for more in a moment.
    pub(super) fn available(&self) -> usize {
        self.count(|place| place.is_serving() && place.job.is_none())
    }

    fn count(&self, is: impl Fn(&Place) -> bool) -> usize {
        self.places.iter().filter(|place| is(place)).count()
    }

    /// Whether more jobs wait than there are workers, present or coming, to take them.
    pub(super) fn is_short_of_workers(&self) -> bool {
        self.backlog.queued() > self.starting() + self.available()
    }

    /// Whether the pool closes and no job waits any more.
    pub(super) fn is_running_out(&self) -> bool {
        self.phase.is_closing() && self.backlog.queued() == 0
    }

    /// A worker could not be started: the next try has to wait.
    pub(super) fn note_failed_start(&mut self, failed: SpawnFailed) {
        let hopeless = failed.reason.is_hopeless();
        let failed = SpawnFailed {
            attempts: self.breaker.failures() + 1,
            ..failed
        };
        self.breaker
            .failed(failed.into(), Instant::now(), jitter(), hopeless);
    }

    /// A job that is out shall end by `verdict`, with its worker. In one critical section with the look at where the job
    /// is: so the kill hits the process that holds it, and no job that came after it.
    pub(super) fn condemn(&mut self, key: JobKey, verdict: Verdict) {
        if let JobState::Sent(worker) | JobState::Running(worker) = self.backlog.state(key) {
            self.backlog.condemn(key, verdict);
            if let Some(process) = &self.place(worker).process {
                process.kill();
            }
        }
    }

    /// Takes out the notices that are due; when the next one is.
    pub(super) fn due_notices(&mut self, now: Instant) -> (Vec<JobKey>, Option<Instant>) {
        let State {
            notices, backlog, ..
        } = self;
        notices.retain(|(_, job)| backlog.state(*job) != JobState::Done);
        let due = notices
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, job)| job)
            .collect();
        (due, notices.iter().map(|(at, _)| *at).min())
    }

    /// Whether a job that had not begun may be put back.
    pub(super) fn may_resend(&mut self, key: JobKey, at_most: u8) -> bool {
        let refused = matches!(
            self.phase,
            Phase::Closing(Closing {
                drop_queued: true,
                ..
            })
        );
        !refused && !self.backlog.condemned(key) && self.backlog.resends(key) < at_most
    }
}

/// From 0 to 1, from what the standard library seeds its hash maps with.
fn jitter() -> f64 {
    let random = RandomState::new().hash_one(0_u8);
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

impl Place {
    pub(super) fn new() -> Self {
        Place {
            stage: Stage::Vacant,
            process: None,
            job: None,
            dead: false,
        }
    }

    fn is_starting(&self) -> bool {
        matches!(
            self.stage,
            Stage::Spawning | Stage::Handed(_) | Stage::Starting
        ) && !self.dead
    }

    fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving) && self.process.is_some() && !self.dead
    }
}

impl Phase {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Phase::Open)
    }

    pub(super) fn is_closing(&self) -> bool {
        !self.is_open()
    }

    /// When what is left is to be killed.
    pub(super) fn kill_at(&self) -> Option<Instant> {
        match self {
            Phase::Closing(closing) => closing.kill_at,
            _ => None,
        }
    }

    /// Goes on towards the end. A second order can only make it come sooner.
    pub(super) fn close(&mut self, order: Closing) {
        *self = match *self {
            Phase::Open => Phase::Closing(order),
            Phase::Closing(before) => Phase::Closing(Closing {
                drop_queued: before.drop_queued || order.drop_queued,
                kill_at: [before.kill_at, order.kill_at].into_iter().flatten().min(),
            }),
            Phase::Ended => Phase::Ended,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_second_order_to_close_can_only_bring_the_end_nearer() {
        let now = Instant::now();
        let drain = Closing {
            drop_queued: false,
            kill_at: None,
        };
        let soon = Closing {
            drop_queued: false,
            kill_at: Some(now + Duration::from_secs(1)),
        };
        let at_once = Closing {
            drop_queued: true,
            kill_at: Some(now),
        };
        let mut phase = Phase::Open;
        for (order, expected) in [
            (drain, drain),
            (soon, soon),
            (drain, soon),
            (at_once, at_once),
            (soon, at_once),
        ] {
            phase.close(order);
            assert!(matches!(phase, Phase::Closing(closing) if closing == expected));
        }
    }
}

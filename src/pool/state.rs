//! What the pool's one lock protects: the jobs, the places for workers, and how far the pool is from its end.
//!
//! Everything that must be decided together is in here, so that each decision is one critical section: which job a
//! worker holds and whether that process may still be killed; whether a job may be put back and whether somebody is there
//! to take it. Nothing in here blocks, and no user code runs under the lock.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Room;
use super::backlog::Backlog;
use super::breaker::Breaker;
use super::child::{Child, Process};
use super::connection::Connection;
use super::deadlines::{Deadlines, Due};
use super::hand::{Ended, Hand, Stopped};
use super::histogram::Histogram;
use super::job::{Job, JobKey, JobState, Verdict, WorkerId};
use super::pace::Paces;
use crate::error::SpawnFailed;
use crate::lane::HostLane;
use parking_lot::Mutex;

/// Whether a job was given to a worker at once.
pub(super) enum Handover {
    /// Nobody can take it so.
    None,
    /// It was.
    Done,
    /// It was, and the worker is to be rung for.
    Ring(Arc<HostLane>),
}

/// How often a job is sent again when its workers die before they begin it, and may have died of it.
pub(super) const RESENDS: u8 = 3;

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
    /// How long the jobs of each task take.
    pub(super) paces: Paces,
    /// What is to happen to jobs at some time.
    pub(super) deadlines: Deadlines,
    /// Who waits for room in the backlog, in their order, which is that of their tickets.
    pub(super) in_line: VecDeque<Waiting>,
    pub(super) last_ticket: u64,
    /// Somebody is calling those for whom there is room, and looks for more when he has.
    pub(super) admitting: bool,
    /// Places in the backlog that were given to those who waited, and that they have not given back.
    pub(super) reserved: usize,
    /// Processes that were killed and would not die in time; the supervisor collects them.
    pub(super) undead: Vec<Arc<Process>>,
    /// To be called when the pool has ended.
    pub(super) on_end: Vec<Box<dyn FnOnce() + Send>>,
    pub(super) counts: Counts,
    pub(super) queue_time: Histogram,
    pub(super) run_time: Histogram,
}

/// Somebody who waits for room: a ticket, and whom to call.
pub(super) type Waiting = (u64, Box<dyn FnOnce(Room) + Send>);

/// What [`Stats`](super::Stats) says of the past.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) submitted: u64,
    pub(super) finished: u64,
    pub(super) spawned: u64,
    pub(super) died: u64,
    pub(super) resent: u64,
    pub(super) recycled: u64,
    pub(super) restarted: u64,
    pub(super) cancelled: u64,
    pub(super) timed_out: u64,
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
    /// The jobs that it holds.
    pub(super) hand: Hand,
    /// Whether it takes calls back that it has not begun.
    pub(super) pipelines: bool,
    /// Whether there was a worker in this place before.
    pub(super) used: bool,
    /// The supervisor has seen the process end.
    pub(super) dead: bool,
    /// The connection, while its waiter sits by and others may give the worker jobs and take the answers.
    pub(super) open: Option<Arc<Mutex<Connection>>>,
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
    /// It was told to leave.
    Leaving,
    /// The waiter's thread has ended, with the pool.
    Ended,
}

impl State {
    pub(super) fn new(wanted: usize) -> Self {
        State {
            phase: Phase::Open,
            backlog: Backlog::new(),
            places: Vec::new(),
            idle: Vec::new(),
            breaker: Breaker::new(),
            wanted,
            proven: false,
            paces: Paces::default(),
            deadlines: Deadlines::new(),
            in_line: VecDeque::new(),
            last_ticket: 0,
            admitting: false,
            reserved: 0,
            undead: Vec::new(),
            on_end: Vec::new(),
            counts: Counts::default(),
            queue_time: Histogram::default(),
            run_time: Histogram::default(),
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
        self.count(|place| place.is_serving() && place.hand.is_empty())
    }

    /// How many workers take jobs.
    pub(super) fn serving(&self) -> usize {
        self.count(Place::is_serving)
    }

    fn count(&self, is: impl Fn(&Place) -> bool) -> usize {
        self.places.iter().filter(|place| is(place)).count()
    }

    /// Whether more jobs wait than there are workers, present or coming, to take them.
    pub(super) fn is_short_of_workers(&self) -> bool {
        self.waiting() > self.starting() + self.available()
    }

    /// How many jobs wait to be run. (Not those that wait to be failed.)
    pub(super) fn waiting(&self) -> usize {
        match self.phase.drops_queued() {
            true => 0,
            false => self.backlog.queued(),
        }
    }

    /// Whether the pool closes and no job waits to be run any more.
    pub(super) fn is_running_out(&self) -> bool {
        self.phase.is_closing() && self.waiting() == 0
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

    /// A job that is out shall end by `verdict`: now, and the job is returned, if its worker has not begun it; else when
    /// it stops, or when its worker is killed after `grace`. In one critical section with the look at where the job is: so
    /// the kill hits the process that holds it, and no job that came after it.
    pub(super) fn stop(&mut self, key: JobKey, verdict: Verdict, grace: Duration) -> Option<Job> {
        let (JobState::Sent(id) | JobState::Running(id)) = self.backlog.state(key) else {
            return None;
        };
        let State {
            places,
            backlog,
            counts,
            ..
        } = self;
        let place = &mut places[id.0 as usize];
        let mut told = false;
        if let Some(process) = &place.process {
            // In this order; see docs/protocol.md, "Call". One that was asked is not asked again: there is only so much room
            // for requests.
            told = place
                .hand
                .wire_id(key)
                .is_some_and(|call| process.request_stop(call));
            place.hand.count(process.take_count(), id, backlog);
        }
        let now = Instant::now();
        let kill_at = now.checked_add(grace);
        let revocable = place.pipelines && told;
        let stopped = place.hand.stop(key, verdict, kill_at, revocable, backlog);
        if let Stopped::Ended(job) = stopped {
            counts.note_end(Some(verdict));
            return Some(job);
        }
        // Otherwise the waiter looks when it has to kill.
        if !grace.is_zero() || !self.kill_overdue(id, now) {
            let process = self.place(id).process.as_ref();
            process
                .into_iter()
                .for_each(|process| process.wakeup().wake());
        }
        None
    }

    /// Kills a worker for a job whose grace is over, if it runs that. Whether it did.
    pub(super) fn kill_overdue(&mut self, id: WorkerId, now: Instant) -> bool {
        self.has_begun(id);
        let place = self.place(id);
        let overdue = place.hand.kill_overdue(now);
        if overdue && let Some(process) = &place.process {
            process.kill();
        }
        overdue
    }

    /// The first of a worker's jobs takes long, against what its task was known for: those behind it, which the worker has not
    /// begun, wait again, for others. How many those are.
    pub(super) fn take_back(&mut self, id: WorkerId) -> usize {
        let State {
            places,
            backlog,
            paces,
            ..
        } = self;
        let place = &mut places[id.0 as usize];
        let (true, Some(process)) = (place.pipelines, &place.process) else {
            return 0;
        };
        if let Some(first) = place.hand.first() {
            paces.note(first.task, first.at.elapsed(), 1);
        }
        // In this order; see docs/protocol.md, "Call".
        if !process.take_back(place.hand.behind_first()) {
            return 0;
        }
        place.hand.count(process.take_count(), id, backlog);
        let keys = place.hand.take_back();
        for key in keys.iter().rev() {
            backlog.resend(*key, false);
        }
        keys.len()
    }

    /// Gives the one job that waits to a worker which has nothing to do, past its waiter, if that can be: the job is one of
    /// those that go with others, and the waiter will look soon what the worker has. Returns the lane to ring, if the
    /// worker sleeps.
    pub(super) fn hand_over(&mut self, now: Instant) -> Handover {
        let State {
            places,
            backlog,
            idle,
            queue_time,
            ..
        } = self;
        let Some(id) = idle.last().copied() else {
            return Handover::None;
        };
        let place = &mut places[id.0 as usize];
        let lane = place.process.as_ref().and_then(|process| process.lane());
        let (1, Some(_), Some(_), Some(lane), false) = (
            backlog.queued(),
            backlog.next_with_others(),
            &place.open,
            lane,
            place.dead,
        ) else {
            return Handover::None;
        };
        let Some(call) = backlog.take(id, now) else {
            return Handover::None;
        };
        idle.pop();
        queue_time.record(call.waited);
        place.hand.give(&call, now);
        // The ring of a worker that has nothing to do is empty.
        lane.push(backlog.frame(call.key, call.wire_id).bytes());
        match lane.publish() {
            true => Handover::Ring(Arc::clone(lane)),
            false => Handover::Done,
        }
    }

    /// Looks whether a worker has begun the first of its jobs.
    pub(super) fn has_begun(&mut self, id: WorkerId) -> bool {
        let State {
            places, backlog, ..
        } = self;
        let place = &mut places[id.0 as usize];
        if let Some(process) = &place.process {
            place.hand.count(process.take_count(), id, backlog);
        }
        place.hand.has_begun()
    }

    /// Whoever waited for a worker is gone: takes its jobs out.
    pub(super) fn abandon(&mut self, id: WorkerId) -> Vec<Job> {
        let State {
            places, backlog, ..
        } = self;
        places[id.0 as usize].hand.abandon(backlog)
    }

    /// A worker is dead: whether it had begun the first of its jobs.
    pub(super) fn count_and_look(&mut self, id: WorkerId, process: &Process) -> bool {
        let State {
            places, backlog, ..
        } = self;
        let hand = &mut places[id.0 as usize].hand;
        hand.count(process.take_count(), id, backlog);
        hand.has_begun()
    }

    /// A worker is dead, and was counted for the last time. Jobs that it had not begun wait again; the others are returned to
    /// be ended.
    pub(super) fn bury(&mut self, id: WorkerId) -> Vec<Ended> {
        let drops = self.phase.drops_queued();
        let State {
            places,
            backlog,
            counts,
            ..
        } = self;
        let mut remains = places[id.0 as usize].hand.bury(backlog);
        // If it had begun none, it may have died of the first.
        let none_begun = !remains.ended.iter().any(|ended| ended.begun);
        for (index, (key, at)) in remains.unbegun.drain(..).enumerate().rev() {
            let blamed = none_begun && index == 0;
            if drops || (blamed && backlog.resends(key) >= RESENDS) {
                remains.ended.push(Ended {
                    job: backlog.take_out(key),
                    verdict: drops.then_some(Verdict::Closed),
                    begun: false,
                    at,
                });
                continue;
            }
            backlog.resend(key, blamed);
            counts.resent += 1;
        }
        for ended in &remains.ended {
            counts.note_end(ended.verdict);
        }
        remains.ended
    }

    /// The next thing that is due for a job, or when there will be one.
    pub(super) fn next_due(&mut self, now: Instant) -> Result<Due, Option<Instant>> {
        self.deadlines
            .pop_due(now)
            .ok_or_else(|| self.deadlines.first())
    }

    /// Has something happen to a job at some time; whether that is before all else.
    pub(super) fn schedule(&mut self, at: Instant, due: Due) -> bool {
        let State {
            deadlines, backlog, ..
        } = self;
        deadlines.add(at, due, |job| backlog.state(job) != JobState::Done)
    }

    /// Takes those out of the line for whom there is room now, and reserves it. `bound`: how many jobs may wait.
    pub(super) fn admit(&mut self, bound: usize) -> Vec<Waiting> {
        let room = match self.phase.is_closing() {
            true => usize::MAX, // they are told by the next submit
            false => bound.saturating_sub(self.backlog.queued() + self.reserved),
        };
        let admitted = room.min(self.in_line.len());
        self.reserved += admitted;
        self.in_line.drain(..admitted).collect()
    }

    /// Takes out some of the jobs that are to be failed: not all at once, as the lock is held meanwhile.
    pub(super) fn take_dropped(&mut self, at_most: usize) -> Vec<Job> {
        if !self.phase.drops_queued() {
            return Vec::new();
        }
        let jobs = self.backlog.drain(at_most);
        self.counts.finished += jobs.len() as u64;
        jobs
    }
}

impl Counts {
    /// A job ends: by its answer or its worker's death, or by a verdict.
    pub(super) fn note_end(&mut self, verdict: Option<Verdict>) {
        self.finished += 1;
        match verdict {
            Some(Verdict::Cancelled) => self.cancelled += 1,
            Some(Verdict::TimedOut) => self.timed_out += 1,
            Some(Verdict::Closed) | None => {}
        }
    }
}

/// From 0 to 1, from what the standard library seeds its hash maps with.
pub(super) fn jitter() -> f64 {
    let random = RandomState::new().hash_one(0_u8);
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

impl Place {
    pub(super) fn new() -> Self {
        Place {
            stage: Stage::Vacant,
            process: None,
            hand: Hand::default(),
            pipelines: false,
            used: false,
            dead: false,
            open: None,
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

    /// Whether jobs that wait are failed.
    fn drops_queued(&self) -> bool {
        matches!(self, Phase::Closing(closing) if closing.drop_queued)
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

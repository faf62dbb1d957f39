//! What becomes of the answers of a worker, and who takes them.
//!
//! That is its waiter, as a rule: it sleeps until the worker rings. But whoever waits for a result has nothing else to do, and
//! can look for it himself for a moment ([`Shared::listen`]): then nobody has to be woken, on neither side. He may do so only
//! while the waiter *sits by*: it watches over a worker that others give jobs to, one at a time, and comes to look after
//! [a while](SITTING) in any case. So the watch passes from the one to the other by the connection's lock, and when the answer
//! does not come soon, or is anything but an answer, it is left to the waiter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use errback_deferred::{CancelledError, Failure};
use parking_lot::Mutex;

use super::Shared;
use super::connection::{Connection, First, Heard};
use super::hand::Answered;
use super::job::{Job, JobKey, JobState, Outcome, Verdict, WorkerId};
use super::state::{RESENDS, State};
use crate::buffer::travel::with_received;
use crate::error::{PoolClosed, TimedOut};
use crate::lane::HostLane;
use crate::wire::ProtocolError;

/// How long a waiter leaves its worker to others before it looks what they have given it.
pub(super) const SITTING: Duration = Duration::from_millis(500);

impl Shared {
    /// Finishes the jobs whose answers are there, or a number of them. `false`: the worker is being killed.
    pub(super) fn hear(
        &self,
        id: WorkerId,
        worker: &mut Connection,
        now: Instant,
    ) -> Result<bool, ProtocolError> {
        let first = worker.answered == 0;
        let mut heard = std::mem::take(&mut worker.told);
        let result = worker.answers(&mut heard);
        if heard.is_empty() {
            worker.told = heard;
            return result.map(|()| true);
        }
        let mut answered = std::mem::take(&mut worker.become_of);
        let completed = self.complete(id, worker, &heard, first, now, &mut answered);
        worker.last = now;
        let mut lives = true;
        // There is one for each that was expected; others mean nothing.
        for (heard, answered) in heard.drain(..).zip(answered.drain(..)) {
            match answered {
                Answered::Finish(mut job) => {
                    job.let_go();
                    let outcome = Outcome::Answer(worker.outcome(heard.outcome, heard.on_socket));
                    with_received(heard.received, self.settings.max_frame, || {
                        job.finish(outcome, &self.home);
                    });
                }
                Answered::Stopped(mut job, verdict, at) => {
                    job.let_go();
                    let failure = self.given_up(&job, verdict, at, None);
                    job.fail(failure, &self.home);
                }
                Answered::Dropped => {}
                Answered::TooLate(mut job, verdict, at) => {
                    job.let_go();
                    worker.late.push((job, verdict, at));
                    lives = false;
                }
            }
        }
        (worker.told, worker.become_of) = (heard, answered);
        if worker.sits && worker.out == 0 {
            self.offer(id, worker);
        }
        completed?;
        result.map(|()| lives)
    }

    /// The worker answered these calls. What becomes of each of them, up to the first that is not what was expected.
    fn complete(
        &self,
        id: WorkerId,
        worker: &mut Connection,
        heard: &[Heard],
        first: bool,
        now: Instant,
        answered: &mut Vec<Answered>,
    ) -> Result<(), ProtocolError> {
        let mut state = self.state.lock();
        if first {
            state.breaker.succeeded();
        }
        state.note_pace(id, heard, worker.last, now);
        let mut passed_over = 0;
        let mut result = Ok(());
        for heard in heard {
            match state.answer(id, heard) {
                Ok(Some(it)) => answered.push(it),
                Ok(None) => {
                    answered.push(Answered::Dropped);
                    passed_over += 1;
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        state.show_first(id, worker);
        self.find_workers(state, passed_over);
        result
    }

    /// A worker that its waiter sits by has nothing to do, and the ends of its jobs have run: others may give it some.
    fn offer(&self, id: WorkerId, worker: &Connection) {
        let mut state = self.state.lock();
        let place = state.place(id);
        if !place.hand.is_empty() || place.dead || state.idle.contains(&id) {
            return;
        }
        state.idle.push(id);
        // Whoever has come meanwhile found nobody who would look for work.
        if state.waiting() > 0 || state.phase.is_closing() {
            worker.process.wakeup().wake();
        }
    }

    /// Looks for a moment for the answer to a job of which the caller has nothing else to do than to wait for it.
    pub(crate) fn listen(&self, key: JobKey, is_ready: impl Fn() -> bool) {
        if !self.spins() {
            return;
        }
        let Some((id, connection)) = self.open_connection_of(key) else {
            return;
        };
        // Somebody else listens, or the waiter is awake.
        let Some(mut worker) = connection.try_lock() else {
            return;
        };
        // It may have been answered before we had the lock.
        if worker.sits && !is_ready() {
            self.take_answers(id, &mut worker, true);
        }
    }

    /// Takes the answers that are there, in the place of the waiter. Whether there were any.
    fn take_answers(&self, id: WorkerId, worker: &mut Connection, spin: bool) -> bool {
        let any = worker.look(spin);
        let mut is_well = any.is_ok();
        if let Ok(true) = any {
            match self.hear(id, worker, Instant::now()) {
                Ok(lives) => is_well = lives,
                Err(error) => worker.broken = Some(error),
            }
        }
        if worker.leave_watch() || !is_well || worker.broken.is_some() {
            worker.process.wakeup().wake();
        }
        matches!(any, Ok(true))
    }

    /// The connection of the worker that has a job, if others than its waiter may take its answer.
    fn open_connection_of(&self, key: JobKey) -> Option<(WorkerId, Arc<Mutex<Connection>>)> {
        let mut state = self.state.lock();
        let (JobState::Sent(id) | JobState::Running(id)) = state.backlog.state(key) else {
            return None;
        };
        let open = state.place(id).open.clone()?;
        Some((id, open))
    }

    /// Why a job ends that was given up. `killed`: the worker that was killed for it.
    pub(super) fn given_up(
        &self,
        job: &Job,
        verdict: Verdict,
        at: Instant,
        killed: Option<u32>,
    ) -> Failure {
        match verdict {
            Verdict::Cancelled => CancelledError.into(),
            Verdict::TimedOut => TimedOut {
                task: job.task().to_string(),
                job: job.id(),
                limit: job.timeout().unwrap_or_default(),
                elapsed: at.elapsed(),
                queued: false,
                pid: killed,
            }
            .into(),
            Verdict::Closed => PoolClosed {
                pool: self.settings.name.clone(),
                running: true,
            }
            .into(),
        }
    }
}

impl State {
    /// Notes how long jobs took which were answered together.
    fn note_pace(&mut self, id: WorkerId, heard: &[Heard], last: Instant, now: Instant) {
        let State {
            places,
            paces,
            run_time,
            ..
        } = self;
        let hand = &places[id.0 as usize].hand;
        let Some(first) = hand.first() else { return };
        // Those that were sent later than the first was answered cannot have taken longer.
        let took = now.saturating_duration_since(first.at.max(last));
        let each = took / heard.len() as u32;
        run_time.record_many(each, heard.len() as u64);
        // Those that go together are of one task.
        if first.with_others {
            paces.note(first.task, each, heard.len() as u32);
        }
    }

    /// What becomes of the first job of a worker, which it has answered; `None`: it waits again.
    fn answer(&mut self, id: WorkerId, heard: &Heard) -> Result<Option<Answered>, ProtocolError> {
        let State {
            places,
            backlog,
            counts,
            ..
        } = self;
        let hand = &mut places[id.0 as usize].hand;
        let Some(first) = hand.first() else {
            return Err(ProtocolError::new("it said more than its answer"));
        };
        if first.wire_id != heard.id {
            let (id, expected) = (heard.id, first.wire_id);
            let sentence = format!("it answered call {id} instead of {expected}");
            return Err(ProtocolError::new(sentence));
        }
        if first.with_others
            && heard.is_passed_over()
            && let Some(key) = hand.pass_over(RESENDS, backlog)
        {
            // Blamed, so that a worker which says so of every call does not keep it for ever.
            backlog.resend(key, true);
            counts.resent += 1;
            return Ok(None);
        }
        let answered = hand.answer(backlog);
        match answered {
            Answered::Finish(_) => counts.note_end(None),
            Answered::Stopped(_, verdict, _) => counts.note_end(Some(verdict)),
            Answered::Dropped | Answered::TooLate(..) => {}
        }
        Ok(Some(answered))
    }

    /// Tells a connection what its worker has to do.
    pub(super) fn show_first(&mut self, id: WorkerId, worker: &mut Connection) {
        let State {
            places, backlog, ..
        } = self;
        let hand = &places[id.0 as usize].hand;
        worker.out = hand.len();
        worker.first = hand.first().map(|held| {
            let timeout = hand.holds_first().then(|| backlog.timeout(held.key));
            First::of(held, timeout.flatten(), hand.kill_at())
        });
    }
}

/// A look at a worker for an answer, in the place of its waiter: that is not rung for meanwhile.
pub(crate) struct Watch {
    id: WorkerId,
    connection: Arc<Mutex<Connection>>,
    lane: Arc<HostLane>,
}

impl Shared {
    /// Begins to look for the answer to a job. `None`: it is there already, or somebody else sees to it.
    pub(crate) fn watch(&self, key: JobKey) -> Option<Watch> {
        if self.forked().is_some() {
            return None; // it is not ours
        }
        let (id, connection) = self.open_connection_of(key)?;
        let lane = {
            let mut worker = connection.try_lock()?;
            worker.sits.then(|| worker.take_watch())??
        };
        Some(Watch {
            id,
            connection,
            lane,
        })
    }
}

impl Watch {
    /// Whether there is an answer. Quick: it is asked again and again.
    pub(crate) fn sees_something(&self) -> bool {
        self.lane.has_bytes()
    }

    /// Takes the answers that are there, and leaves what else comes to the waiter. Whether there were any.
    pub(crate) fn end(self, shared: &Shared) -> bool {
        if shared.forked().is_some() {
            return false;
        }
        // Otherwise the waiter is awake.
        match self.connection.try_lock() {
            Some(mut worker) if worker.sits => shared.take_answers(self.id, &mut worker, false),
            _ => false,
        }
    }
}

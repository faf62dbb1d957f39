//! What waiters and the supervisor tell each other, under the pool's lock: who has a worker, which jobs it gets, what became of
//! them, and of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::child::{Child, Ended, Process};
use super::connection::{Connection, Heard};
use super::hand::Answered;
use super::job::{Job, JobKey, Verdict, WorkerId};
use super::state::{self, Place, RESENDS, Stage, State};
use super::{FOR_EVER, Leave, Next, Shared};
use crate::error::{Exit, InternalError, SpawnFailed, SpawnFailure};

/// What waiters and the supervisor tell each other.
impl Shared {
    /// The next worker for this waiter; `None` when the pool needs none any more.
    pub(super) fn next_child(&self, id: WorkerId) -> Option<Child> {
        let mut state = self.state.lock();
        loop {
            let running_out = state.is_running_out();
            let place = state.place(id);
            match std::mem::replace(&mut place.stage, Stage::Vacant) {
                Stage::Handed(child) => {
                    place.stage = Stage::Starting;
                    return Some(*child);
                }
                Stage::Vacant if running_out => {
                    place.stage = Stage::Ended;
                    drop(state);
                    self.supervisor.wake();
                    return None;
                }
                other => place.stage = other,
            }
            self.bells[id.0 as usize].wait(&mut state);
        }
    }

    /// The worker said hello, and is ready.
    pub(super) fn enter_service(&self, id: WorkerId, pipelines: bool) {
        let mut state = self.state.lock();
        let place = state.place(id);
        place.stage = Stage::Serving;
        place.pipelines = pipelines;
        state.proven = true;
        if state.alive() < state.wanted {
            self.supervisor.wake();
        }
    }

    /// Whether a worker that is starting will be needed.
    pub(super) fn is_wanted(&self) -> bool {
        !self.state.lock().is_running_out()
    }

    /// How many calls a new worker may be given. Not the same for all: they shall not leave all at once.
    pub(super) fn calls_for_a_worker(&self) -> Option<u64> {
        let most = self.settings.max_jobs?;
        let spread = most / 10;
        Some(most - (spread as f64 * state::jitter()) as u64)
    }

    /// Whether a worker has been given enough calls, or has grown too large.
    pub(super) fn is_worn_out(&self, worker: &Connection) -> bool {
        let large = |most: u64| worker.process.resident_memory() > Some(most);
        worker.calls_left == Some(0)
            || (worker.answered > 0 && self.settings.max_memory.is_some_and(large))
    }

    /// Gives a worker its next jobs. Blocks, if it has none, until there is one, or it is to leave.
    pub(super) fn next_jobs(self: &Arc<Self>, id: WorkerId, worker: &mut Connection) -> Next {
        let mut state = self.state.lock();
        let mut idle_until = None;
        loop {
            if state.place(id).dead {
                return Next::Died;
            }
            worker.refill_at = 0;
            let took = state.waiting() > 0 && self.take_jobs(&mut state, id, worker);
            if took || !worker.sent.is_empty() {
                if took && state.is_running_out() {
                    self.supervisor.wake(); // the others may go now
                }
                self.admit(state);
                return Next::Jobs;
            }
            if state.phase.is_closing() {
                return Next::Leave(Leave::Unwanted);
            }
            state.idle.push(id);
            let bell = &self.bells[id.0 as usize];
            let late = match self.settings.idle_timeout {
                None => {
                    bell.wait(&mut state);
                    false
                }
                Some(timeout) => {
                    let until = *idle_until.get_or_insert_with(|| {
                        let now = Instant::now();
                        now.checked_add(timeout).unwrap_or(now + FOR_EVER)
                    });
                    bell.wait_until(&mut state, until).timed_out()
                }
            };
            // Who rings for a job has taken us off the list; who rings for another reason has not.
            state.idle.retain(|it| *it != id);
            if late && state.waiting() == 0 && state.wanted > self.settings.min_size {
                state.wanted -= 1;
                state.place(id).stage = Stage::Leaving;
                return Next::Leave(Leave::Unwanted);
            }
        }
    }

    /// Takes a job for a worker that has none; and behind it, or behind those that it has, as many as may go together.
    /// Whether there was one.
    pub(super) fn take_jobs(
        &self,
        state: &mut State,
        id: WorkerId,
        worker: &mut Connection,
    ) -> bool {
        // What goes with others is small.
        const SMALL: usize = 5000;
        let now = Instant::now();
        let had = worker.sent.len();
        // The ring of a worker that has nothing is empty. If it says otherwise, it is found out when its answer is waited for.
        if had > 0 && !worker.has_room_for(SMALL) {
            return false;
        }
        let take = |state: &mut State, worker: &mut Connection| {
            let Some(call) = state.backlog.take(id) else {
                return false;
            };
            state.place(id).hand.give(call.key, call.wire_id);
            let waited = now.saturating_duration_since(call.submitted);
            state.queue_time.record(waited);
            worker.calls_left = worker.calls_left.map(|left| left - 1);
            worker.push(call, now);
            true
        };
        if had == 0 && !take(state, worker) {
            return false;
        }
        worker.refill_at = 0;
        let last = &worker.sent[worker.sent.len() - 1].call;
        if !self.settings.batches || !worker.pipelines || !last.with_others {
            return had == 0;
        }
        let task = last.task;
        // An equal share for each worker: several that go to one while another has nothing to do are no gain.
        let jobs = state.backlog.queued() + worker.sent.len();
        let share = jobs.div_ceil(state.serving().max(1));
        let together = state
            .paces
            .together(task)
            .min(share)
            .min(worker.most_together());
        while worker.sent.len() < together
            && worker.calls_left != Some(0)
            && worker.has_room_for(SMALL)
            && state
                .backlog
                .next_with_others()
                .is_some_and(|next| std::ptr::eq(next, task))
        {
            take(state, worker);
        }
        if worker.sent.len() >= together {
            worker.refill_at = together / 2;
        }
        worker.sent.len() > had
    }

    /// The worker answered these calls, which took so long in all.
    pub(super) fn complete(
        &self,
        id: WorkerId,
        heard: &[Heard],
        first: bool,
        took: Duration,
    ) -> Vec<Answered> {
        let each = took / heard.len().max(1) as u32;
        let mut state = self.state.lock();
        if first {
            state.breaker.succeeded();
        }
        state.run_time.record_many(each, heard.len() as u64);
        let (mut task, mut jobs) = ("", 0);
        for Heard { sent, .. } in heard.iter().filter(|it| it.sent.call.with_others) {
            // Those that go together are of one task.
            (task, jobs) = (sent.call.task, jobs + 1);
        }
        if jobs > 0 {
            state.paces.note(task, each, jobs);
        }
        let State {
            places,
            backlog,
            counts,
            ..
        } = &mut *state;
        let hand = &mut places[id.0 as usize].hand;
        let mut passed_over = 0;
        let answer = |heard: &Heard| {
            let call = &heard.sent.call;
            if call.with_others
                && heard.is_passed_over()
                && hand.pass_over(call.key, RESENDS, backlog)
            {
                // Blamed, so that a worker which says so of every call does not keep it for ever.
                backlog.resend(call.key, (call.frame.clone(), Vec::new()), true);
                counts.resent += 1;
                passed_over += 1;
                return Answered::Dropped;
            }
            let answered = hand.answer(call.key, backlog);
            match answered {
                Answered::Finish(_) => counts.note_end(None),
                Answered::Stopped(_, verdict) => counts.note_end(Some(verdict)),
                Answered::Dropped | Answered::TooLate(..) => {}
            }
            answered
        };
        let answered = heard.iter().map(answer).collect();
        self.find_workers(state, passed_over);
        answered
    }

    /// A job that was given to a worker could not be sent to it. It is returned, unless somebody has ended it.
    pub(super) fn take_unsent(&self, id: WorkerId, key: JobKey) -> Option<Job> {
        let mut state = self.state.lock();
        let State {
            places,
            backlog,
            counts,
            ..
        } = &mut *state;
        let job = places[id.0 as usize].hand.take_unsent(key, backlog)?;
        counts.note_end(None);
        Some(job)
    }

    /// A job has run for as long as it may. It is returned if it had not even begun.
    pub(super) fn time_out(&self, key: JobKey) -> Option<Job> {
        let grace = self.settings.cancel_grace;
        self.state.lock().stop(key, Verdict::TimedOut, grace)
    }

    /// When a worker is to be killed for a job that was asked to stop.
    pub(super) fn kill_at(&self, id: WorkerId) -> Option<Instant> {
        self.state.lock().place(id).hand.kill_at()
    }

    /// The grace of a worker's job is over. Whether the worker was killed for it.
    pub(super) fn kill_overdue(&self, id: WorkerId) -> bool {
        self.state.lock().kill_overdue(id, Instant::now())
    }

    /// Whether a worker has begun the first of its jobs.
    pub(super) fn has_begun(&self, id: WorkerId) -> bool {
        self.state.lock().has_begun(id)
    }

    /// Gives the jobs behind the first, which takes long, to others.
    pub(super) fn take_back(&self, id: WorkerId, worker: &mut Connection) {
        let mut state = self.state.lock();
        let jobs = state.take_back(id, &worker.sent);
        worker.refill_at = 0;
        self.find_workers(state, jobs);
    }

    /// So many jobs were put back, while their worker lives: wakes those that can take them.
    fn find_workers(&self, mut state: parking_lot::MutexGuard<'_, State>, jobs: usize) {
        for _ in 0..jobs.min(state.idle.len()) {
            self.rouse_one(&mut state);
        }
        if jobs > 0 && state.wanted < self.settings.size && state.is_short_of_workers() {
            state.wanted += 1;
            drop(state);
            self.supervisor.wake();
        }
    }

    /// Whether the first of a worker's jobs was taken back.
    pub(super) fn first_has_ended(&self, id: WorkerId) -> bool {
        self.state.lock().place(id).hand.first_has_ended()
    }

    /// A worker is told to leave.
    pub(super) fn take_leave(&self, id: WorkerId) {
        self.state.lock().place(id).stage = Stage::Leaving;
    }

    /// Kills the worker of a place, if it has not been collected.
    pub(super) fn kill(&self, id: WorkerId) {
        if let Some(process) = &self.state.lock().place(id).process {
            process.kill();
        }
    }

    /// Collects a worker. From here on nobody can kill it: its number may become another's.
    pub(super) fn reap(&self, id: WorkerId, process: &Arc<Process>) -> Ended {
        let mut state = self.state.lock();
        state.place(id).process = None;
        process.reap().unwrap_or_else(|| {
            state.undead.push(Arc::clone(process));
            Ended::never()
        })
    }

    /// The supervisor saw the process end. If that is still the worker of the place, its waiter is told.
    pub(super) fn note_death(&self, id: WorkerId, process: &Arc<Process>) {
        let mut state = self.state.lock();
        let place = state.place(id);
        if place
            .process
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, process))
        {
            place.dead = true;
            state.idle.retain(|it| *it != id);
            self.bells[id.0 as usize].notify_one();
        }
    }

    /// A worker has been buried: its place is free for another.
    pub(super) fn vacate(&self, state: &mut State, id: WorkerId, failed: Option<SpawnFailed>) {
        let place = state.place(id);
        (place.stage, place.pipelines, place.dead) = (Stage::Vacant, false, false);
        if let Some(failed) = failed {
            state.note_failed_start(failed);
        }
        self.supervisor.wake();
    }

    /// A job was put back: wakes somebody for it. (The supervisor sees to the rest.)
    pub(super) fn rouse_one(&self, state: &mut State) {
        if let Some(id) = state.idle.pop() {
            self.bells[id.0 as usize].notify_one();
        }
    }

    /// Wakes every waiter that waits for a job or a worker, to look whether the pool closes.
    pub(super) fn rouse(&self, state: &State) {
        for bell in &self.bells[..state.places.len()] {
            bell.notify_all();
        }
        // One that has just been handed over finds the wake-up when it begins to wait.
        let starting = |place: &&Place| matches!(place.stage, Stage::Handed(_) | Stage::Starting);
        let starting = state.places.iter().filter(starting);
        for process in starting.filter_map(|place| place.process.as_ref()) {
            process.wakeup().wake();
        }
    }

    /// A waiter panicked over its worker: kills it, fails its jobs, and goes on.
    pub(super) fn abandon(&self, id: WorkerId, process: &Arc<Process>) {
        let mut state = self.state.lock();
        if state.place(id).process.take().is_some() {
            process.kill();
            state.undead.push(Arc::clone(process));
        }
        let jobs = state.abandon(id);
        state.counts.died += 1;
        state.counts.finished += jobs.len() as u64;
        // With the pauses of a failed start: the next worker may meet with the same.
        let failed = SpawnFailed {
            program: self.settings.launch.name(),
            attempts: 0,
            python: self.settings.launch.is_python(),
            reason: SpawnFailure::Ended(Exit::Unknown),
            stderr: String::new(),
        };
        self.vacate(&mut state, id, Some(failed));
        drop(state);
        let message = "a waiter thread panicked; see the report on stderr".to_string();
        for job in jobs {
            job.fail(InternalError {
                message: message.clone(),
            });
        }
    }
}

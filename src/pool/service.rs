//! What waiters and the supervisor tell each other, under the pool's lock: who has a worker, which jobs it gets, what became of
//! them, and of it.

use std::sync::Arc;
use std::time::Instant;

use super::child::{Child, Ended, Process};
use parking_lot::Mutex;

use super::answers::SITTING;
use super::connection::Connection;
use super::job::{Job, JobKey, Verdict, WorkerId};
use super::packed::SMALL;
use super::state::{self, Stage, State};
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

    /// Gives a worker its next jobs, if there are any. Otherwise its waiter is to sit by, for others to ask.
    pub(super) fn next_jobs(
        self: &Arc<Self>,
        id: WorkerId,
        worker: &mut Connection,
        connection: &Arc<Mutex<Connection>>,
    ) -> Next {
        let mut state = self.state.lock();
        self.stand_up(&mut state, id);
        if state.place(id).dead {
            return Next::Died;
        }
        worker.refill_at = 0;
        let took = state.waiting() > 0 && self.take_jobs(&mut state, id, worker);
        state.show_first(id, worker);
        if worker.out > 0 {
            if took && state.is_running_out() {
                self.supervisor.wake(); // the others may go now
            }
            self.admit(state);
            return Next::Jobs;
        }
        if state.phase.is_closing() {
            return Next::Leave(Leave::Unwanted);
        }
        let now = Instant::now();
        let idle_until = self
            .settings
            .idle_timeout
            .map(|timeout| worker.last.checked_add(timeout).unwrap_or(now + FOR_EVER));
        if idle_until.is_some_and(|until| until <= now) && state.wanted > self.settings.min_size {
            state.wanted -= 1;
            state.place(id).stage = Stage::Leaving;
            return Next::Leave(Leave::Unwanted);
        }
        state.idle.push(id);
        let open_until = worker.last + SITTING;
        if open_until > now && self.may_be_given_jobs(worker) {
            state.place(id).open = Some(Arc::clone(connection));
            let until = idle_until.map_or(open_until, |until| until.min(open_until));
            return Next::Sit(Some(until));
        }
        // Nothing to leave for; it is asked again when a job is done.
        Next::Sit(idle_until.filter(|until| *until > now))
    }

    /// Whether others than its waiter may give a worker jobs: there is nothing to be looked at before each.
    fn may_be_given_jobs(&self, worker: &Connection) -> bool {
        worker.has_lane()
            && worker.pipelines
            && self.settings.max_memory.is_none()
            && worker.calls_left.is_none()
    }

    /// From here on only its waiter gives a worker jobs.
    pub(super) fn stand_up(&self, state: &mut State, id: WorkerId) {
        state.idle.retain(|it| *it != id);
        state.place(id).open = None;
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
        const ROOM: usize = SMALL + 1000;
        let now = Instant::now();
        let had = state.place(id).hand.len();
        worker.forget_room();
        // The ring of a worker that has nothing is empty. If it says otherwise, it is found out when its answer is waited for.
        if had > 0 && !worker.has_room_for(ROOM) {
            return false;
        }
        let take = |state: &mut State, worker: &mut Connection| {
            let Some(call) = state.backlog.take(id, now) else {
                return false;
            };
            state.place(id).hand.give(&call, now);
            state.queue_time.record(call.waited);
            worker.calls_left = worker.calls_left.map(|left| left - 1);
            let frame = state.backlog.frame(call.key, call.wire_id);
            worker.push(call.wire_id, &frame);
            true
        };
        if had == 0 && !take(state, worker) {
            return false;
        }
        let hand = &state.place(id).hand;
        let (mut has, last) = (hand.len(), hand.last().expect("there is one"));
        let (task, with_others) = (last.task, last.with_others);
        if !self.settings.batches || !worker.pipelines || !with_others {
            return had == 0;
        }
        // An equal share for each worker: several that go to one while another has nothing to do are no gain.
        let jobs = state.backlog.queued() + has;
        let share = jobs.div_ceil(state.serving().max(1));
        let together = state
            .paces
            .together(task)
            .min(share)
            .min(worker.most_together());
        while has < together
            && worker.calls_left != Some(0)
            && worker.has_room_for(ROOM)
            && state.backlog.next_with_others() == Some(task)
        {
            take(state, worker);
            has += 1;
        }
        if has >= together {
            worker.refill_at = state.paces.refill_at(task, together);
        }
        has > had
    }

    /// A job that was given to a worker could not be sent to it. It is returned, unless somebody has ended it.
    pub(super) fn take_unsent(&self, id: WorkerId) -> Option<Job> {
        let mut state = self.state.lock();
        let State {
            places,
            backlog,
            counts,
            ..
        } = &mut *state;
        let job = places[id.0 as usize].hand.take_unsent(backlog)?;
        counts.note_end(None);
        Some(job)
    }

    /// What a worker has to do, when its waiter has ceased to work or to sit by.
    pub(super) fn look_at_hand(&self, id: WorkerId, worker: &mut Connection) {
        let mut state = self.state.lock();
        self.stand_up(&mut state, id);
        state.show_first(id, worker);
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
        let jobs = state.take_back(id);
        worker.refill_at = 0;
        self.find_workers(state, jobs);
    }

    /// So many jobs were put back, while their worker lives: wakes those that can take them.
    pub(super) fn find_workers(&self, mut state: parking_lot::MutexGuard<'_, State>, jobs: usize) {
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
            place.dead = true; // its waiter has seen it by itself
            self.stand_up(&mut state, id);
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
        if let Some(id) = state.idle.pop()
            && let Some(process) = &state.place(id).process
        {
            process.wakeup().wake();
        }
    }

    /// Wakes every waiter that waits for a job or a worker, to look whether the pool closes.
    pub(super) fn rouse(&self, state: &State) {
        for bell in &self.bells[..state.places.len()] {
            bell.notify_all();
        }
        // One that has just been handed over finds the wake-up when it begins to wait.
        for process in state.places.iter().filter_map(|it| it.process.as_ref()) {
            process.wakeup().wake();
        }
    }

    /// A waiter panicked over its worker: kills it, fails its jobs, and goes on.
    pub(super) fn abandon(&self, id: WorkerId, process: &Arc<Process>) {
        let mut state = self.state.lock();
        let open = state.place(id).open.take();
        self.stand_up(&mut state, id);
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
        // Who has come by it must not take what the next worker says for its.
        if let Some(open) = open {
            open.lock().sits = false;
        }
        let message = "a waiter thread panicked; see the report on stderr".to_string();
        for job in jobs {
            let message = message.clone();
            job.fail(InternalError { message }, &self.home);
        }
    }
}

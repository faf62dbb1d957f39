//! What callers ask of a pool: to take a job, to stop one, to end.
//!
//! Each of these is a short critical section, which never blocks and never runs user code; what is to be told to others is told
//! when the lock has been let go.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use errback_deferred::{CancelledError, Failure};

use super::deadlines::Due;
use super::job::{Job, JobKey, JobState, Owner, Verdict};
use super::state::{Closing, Handover, Phase, State};
use super::{Refused, Shared, Submitted, WhenFull};
use crate::error::{Overloaded, PoolClosed, TimedOut};
use crate::hook;

/// What callers ask for.
impl Shared {
    /// In a process that the pool's own has forked there is a copy of the pool's memory, but none of its threads: nobody
    /// would ever take a job, and a lock that one of them held at the fork would never be free. So this is asked before
    /// any lock is taken.
    pub(crate) fn forked(&self) -> Option<Failure> {
        (hook::generation() != self.generation).then(|| self.forked.clone())
    }

    /// Takes a job, or gives it back. Never blocks.
    pub(crate) fn submit(&self, job: Job) -> Result<Submitted, Box<Refused>> {
        if let Some(why) = self.forked() {
            return Err(Box::new(Refused { job, why }));
        }
        let submitted = job.submitted();
        let expiry = job.expires().and_then(|after| submitted.checked_add(after));
        let mut state = self.state.lock();
        if let Some(why) = self.refusal(&state) {
            drop(state);
            return Err(Box::new(Refused { job, why }));
        }
        let key = state.backlog.push(job);
        state.counts.submitted += 1;
        let is_next = expiry.is_some_and(|at| state.schedule(at, Due::Expire(key)));
        let handover = state.hand_over(submitted);
        let is_out = !matches!(handover, Handover::None);
        match handover {
            Handover::None => self.find_worker(state),
            Handover::Done => {}
            Handover::Ring(lane) => {
                drop(state);
                lane.ring();
            }
        }
        if is_next {
            self.supervisor.wake();
        }
        Ok(Submitted { key, is_out })
    }

    /// Why a job would not be taken now.
    fn refusal(&self, state: &State) -> Option<Failure> {
        let pool = || self.settings.name.clone();
        if state.phase.is_closing() {
            return Some(
                PoolClosed {
                    pool: pool(),
                    running: false,
                }
                .into(),
            );
        }
        if state.backlog.queued() >= self.settings.backlog
            && self.settings.when_full == WhenFull::Refuse
        {
            return Some(
                Overloaded {
                    pool: pool(),
                    backlog: self.settings.backlog,
                }
                .into(),
            );
        }
        let hopeless = state.breaker.failures() > 0 && state.alive() == 0;
        if hopeless {
            state.breaker.refusal(Instant::now()).cloned()
        } else {
            None
        }
    }

    /// Sees to it that somebody takes the job that has just been queued: the idle waiter that worked last, or a new worker.
    pub(super) fn find_worker(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        if let Some(id) = state.idle.pop() {
            let process = state.place(id).process.clone();
            drop(state);
            process.into_iter().for_each(|it| it.wakeup().wake());
            return;
        }
        let grow = state.wanted < self.settings.size && state.is_short_of_workers();
        state.wanted += usize::from(grow);
        let retry = state.breaker.failures() > 0 && state.starting() == 0;
        drop(state);
        if grow || retry {
            self.supervisor.wake();
        }
    }

    /// A job that waits is taken out and fails now; one that runs is asked to stop, and after a grace is killed with its
    /// worker, and fails when it has stopped or that is dead and collected; one that is done stays as it is. Never blocks.
    pub(crate) fn cancel(self: &Arc<Self>, key: JobKey) {
        self.cancel_with(key, self.settings.cancel_grace);
    }

    /// As [`cancel`](Self::cancel), by the number that [`JobKey::to_bits`] gave it.
    pub(crate) fn cancel_numbered(self: &Arc<Self>, bits: u64) {
        if self.forked().is_some() {
            return;
        }
        let key = self.state.lock().backlog.find(bits);
        if let Some(key) = key {
            self.cancel(key);
        }
    }

    /// The jobs of one owner that are not done.
    pub(crate) fn jobs_of(&self, owner: Owner) -> Vec<JobKey> {
        if self.forked().is_some() {
            return Vec::new();
        }
        self.state.lock().backlog.jobs_of(owner)
    }

    /// As [`cancel`](Self::cancel), for a job that has had its grace.
    pub(super) fn cancel_now(self: &Arc<Self>, key: JobKey) {
        self.cancel_with(key, Duration::ZERO);
    }

    pub(super) fn cancel_with(self: &Arc<Self>, key: JobKey, grace: Duration) {
        if self.forked().is_some() {
            return;
        }
        let mut state = self.state.lock();
        if let JobState::Queued = state.backlog.state(key) {
            return self.withdraw(state, key, Verdict::Cancelled);
        }
        let job = state.stop(key, Verdict::Cancelled, grace);
        drop(state);
        if let Some(job) = job {
            job.fail(CancelledError, &self.home);
        }
    }

    /// A job that waits has waited too long, if it still waits.
    pub(super) fn expire(self: &Arc<Self>, key: JobKey) {
        let state = self.state.lock();
        if let JobState::Queued = state.backlog.state(key) {
            self.withdraw(state, key, Verdict::TimedOut);
        }
    }

    /// Ends a job that waits.
    pub(super) fn withdraw(
        self: &Arc<Self>,
        mut state: parking_lot::MutexGuard<'_, State>,
        key: JobKey,
        verdict: Verdict,
    ) {
        let job = state.backlog.withdraw(key);
        state.counts.note_end(Some(verdict));
        let closing = state.phase.is_closing();
        self.admit(state);
        if let Some(job) = job {
            match verdict {
                Verdict::TimedOut => {
                    let late = TimedOut {
                        task: job.task().to_string(),
                        job: job.id(),
                        limit: job.expires().unwrap_or_default(),
                        elapsed: job.submitted().elapsed(),
                        queued: true,
                        pid: None,
                    };
                    job.fail(late, &self.home);
                }
                _ => job.fail(CancelledError, &self.home),
            }
        }
        if closing {
            self.supervisor.wake();
        }
    }

    /// As [`cancel`](Self::cancel), but a job that runs may go on for `grace`.
    pub(crate) fn cancel_within(self: &Arc<Self>, key: JobKey, grace: Duration) {
        if self.forked().is_some() {
            return;
        }
        let mut state = self.state.lock();
        if let JobState::Sent(_) | JobState::Running(_) = state.backlog.state(key) {
            let at = Instant::now().checked_add(grace);
            let is_next = at.is_some_and(|at| state.schedule(at, Due::Cancel(key)));
            drop(state);
            if is_next {
                self.supervisor.wake();
            }
            return;
        }
        drop(state);
        self.cancel(key);
    }

    /// Step 1 of the end of a pool (see `supervisor`).
    pub(super) fn close(self: &Arc<Self>, order: Closing) {
        if self.forked().is_some() {
            return;
        }
        let mut state = self.state.lock();
        state.phase.close(order);
        self.rouse(&state);
        self.admit(state);
        self.supervisor.wake();
    }

    pub(crate) fn terminate(self: &Arc<Self>) {
        self.close(Closing {
            drop_queued: true,
            kill_at: Some(Instant::now()),
        });
    }

    /// Fails what waits, gives what runs a grace, and then kills it.
    pub(crate) fn shut_down(self: &Arc<Self>, grace: Duration) {
        self.close(Closing {
            drop_queued: true,
            kill_at: Instant::now().checked_add(grace),
        });
    }

    /// Calls `call` when the pool has ended: on the supervisor's thread, or here if it has ended already, or is not here.
    pub(crate) fn on_end(&self, call: Box<dyn FnOnce() + Send>) {
        if self.forked().is_some() {
            return call();
        }
        let mut state = self.state.lock();
        match state.phase {
            Phase::Ended => {
                drop(state);
                call();
            }
            _ => state.on_end.push(call),
        }
    }

    pub(super) fn join(&self, until: Option<Instant>) -> bool {
        if self.forked().is_some() {
            return true;
        }
        let mut state = self.state.lock();
        while !matches!(state.phase, Phase::Ended) {
            match until {
                None => self.ended.wait(&mut state),
                Some(until) if self.ended.wait_until(&mut state, until).timed_out() => {
                    return matches!(state.phase, Phase::Ended);
                }
                Some(_) => {}
            }
        }
        drop(state);
        // The supervisor has nothing left to do but to return.
        let thread = self.thread.lock().take();
        thread
            .filter(|thread| thread.thread().id() != std::thread::current().id())
            .map(JoinHandle::join);
        true
    }
}

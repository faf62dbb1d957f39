//! The one thread that starts workers, and that lives as long as the pool.
//!
//! It spawns all workers, because the kernel ties a worker's parent-death signal to the *thread* that spawned it. It also
//! watches the pidfds of all workers, so that one that dies idle is missed at once and not by the next job; paces starts
//! that fail; and walks the pool through its end.
//!
//! It takes no orders: whoever changes the state wakes it, and it looks at the state and decides anew. So nothing is lost
//! when several things happen at once, and there is no queue of commands to keep in step.
//!
//! # The end of a pool
//! There are three ways, and one protocol: they differ in what their order says ([`Closing`](super::state::Closing)).
//!
//! *Drain* (`close`):
//! 1. Under the lock: the phase is set, and from there on submits are refused. Idle waiters are roused; the supervisor is
//!    woken. That never blocks.
//! 2. Waiters go on with the jobs that are left. A worker that dies is still replaced while jobs wait, with the same
//!    pauses as ever; when the breaker opens, the jobs that wait fail.
//! 3. A waiter that finds no job any more lets its worker go: end of file, a grace, SIGKILL. It collects it and ends.
//! 4. When all waiters have ended, the supervisor joins them, ends the output thread, sets the phase to `Ended` and calls
//!    who asked to be told: `shutdown`'s Deferreds fire.
//!
//! *Drain with a deadline* (`close_within`): the same, and
//! 1. The order has a time, for which the supervisor sets its alarm.
//! 2. At that time, under the lock: the jobs that wait are set aside, to be failed; those that workers hold are condemned,
//!    and their workers killed.
//! 3. The waiters bury the workers and fail the jobs, as with any death; then step 4 above.
//!
//! *Now* (`terminate`, and the last handle's drop):
//! 1. In the critical section that sets the phase, the jobs that wait are set aside.
//! 2. The supervisor, woken, fails them; its alarm has rung already, so that it goes on with step 2 of the deadline.
//!
//! The shutdown of a reactor asks for the third way with the second one's time: jobs that wait fail at once, those that run
//! have two seconds.
//!
//! Races: *a worker being spawned when the pool is terminated* is handed over all the same, and is killed in the next
//! round, which follows at once, because its process is in its place then. *A job put back during a drain* after other
//! waiters have gone has its own waiter, whose place is vacant and which stays while jobs wait. *A second order* makes the
//! first one stricter, never milder, so that two threads, a callback and a drop may all give one. *A submit* either comes
//! before step 1 and is part of the end, or is refused. *A job that was asked to stop* ends by what it was stopped for,
//! whether it stops, or is killed for that or for the end.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use errback_deferred::Failure;
use rustix::event::{PollFd, PollFlags};

use super::child::{Child, Process, Stillborn};
use super::deadlines::Due;
use super::job::{Job, Verdict, WorkerId};
use super::state::{Closing, Phase, Place, Stage, State};
use super::waiter::Waiter;
use super::wakeup::poll;
use super::{Shared, thread_name};
use crate::error::{PoolClosed, SpawnFailure};

/// How often a child that cannot be watched is asked for.
const ORPHANS: Duration = Duration::from_millis(50);
/// So many jobs are taken out under one hold of the lock, which submits wait for.
const AT_ONCE: usize = 1024;

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    /// Workers that were alive when last seen.
    watched: Vec<(WorkerId, Arc<Process>)>,
    waiters: Vec<JoinHandle<()>>,
    /// Children without a pidfd, killed at birth.
    orphans: Vec<std::process::Child>,
}

/// What the supervisor has decided to do.
struct Step {
    /// Jobs to fail, and why.
    fail: Vec<(Job, Failure)>,
    /// What is due for jobs.
    due: Vec<Due>,
    next: Next,
}

enum Next {
    Start(WorkerId),
    /// Until then, or until something happens.
    Wait(Option<Instant>),
    End,
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Supervisor {
            shared,
            watched: Vec::new(),
            waiters: Vec::new(),
            orphans: Vec::new(),
        }
    }

    /// The thread's whole life.
    pub(super) fn run(mut self) {
        // A panic in here is a fault of ours. The pool then ends, and tells everybody; it must not just fall silent.
        for _ in 0..3 {
            match catch_unwind(AssertUnwindSafe(|| self.supervise())) {
                Ok(()) => break,
                Err(_) => self.shared.terminate(),
            }
        }
        self.end();
    }

    fn supervise(&mut self) {
        loop {
            let step = self.decide();
            step.fail
                .into_iter()
                .for_each(|(job, failure)| job.fail(failure, &self.shared.home));
            for due in step.due {
                match due {
                    Due::Expire(job) => self.shared.expire(job),
                    // It has had its notice.
                    Due::Cancel(job) => self.shared.cancel_now(job),
                }
            }
            match step.next {
                Next::Start(id) => self.start(id),
                Next::Wait(until) => self.wait(until),
                Next::End => return,
            }
        }
    }

    /// Looks at everything, and says what is to be done first.
    fn decide(&mut self) -> Step {
        let now = Instant::now();
        self.orphans
            .retain_mut(|orphan| matches!(orphan.try_wait(), Ok(None)));
        let mut state = self.shared.state.lock();
        state.undead.retain(|process| process.reap().is_none());
        let mut until = state.phase.kill_at();
        if until.is_some_and(|at| at <= now) {
            state.phase.close(Closing {
                drop_queued: true,
                kill_at: until,
            });
            kill_all(&mut state);
            until = None;
        }
        let mut due = Vec::new();
        let next_due = loop {
            match state.next_due(now) {
                Ok(it) if due.len() < AT_ONCE => due.push(it),
                Ok(it) => {
                    due.push(it);
                    break Some(now);
                }
                Err(next) => break next,
            }
        };
        let mut fail = self.take_dropped(&mut state);
        fail.extend(take_hopeless(&mut state, now));
        if state.is_running_out() {
            self.shared.rouse(&state);
        }
        let next = match self.next_start(&mut state, now) {
            Ok(id) => Next::Start(id),
            _ if !fail.is_empty() => Next::Wait(Some(now)), // there may be more
            Err(_) if has_ended(&state) => Next::End,
            Err(pause) => {
                let orphans = (!self.orphans.is_empty()).then(|| now + ORPHANS);
                Next::Wait(
                    [until, next_due, pause, orphans]
                        .into_iter()
                        .flatten()
                        .min(),
                )
            }
        };
        // Jobs that were given up above have left room.
        self.shared.admit(state);
        Step { fail, due, next }
    }

    fn take_dropped(&self, state: &mut State) -> Vec<(Job, Failure)> {
        let jobs = state.take_dropped(AT_ONCE);
        if jobs.is_empty() {
            return Vec::new();
        }
        let failure = Failure::from(PoolClosed {
            pool: self.shared.settings.name.clone(),
            running: false,
        });
        jobs.into_iter().map(|job| (job, failure.clone())).collect()
    }

    /// The place in which to start a worker now; or when to look again, if that is known.
    fn next_start(&self, state: &mut State, now: Instant) -> Result<WorkerId, Option<Instant>> {
        let (alive, starting, queued) = (state.alive(), state.starting(), state.waiting());
        let needed = if state.phase.is_open() || queued > 0 {
            state.wanted
        } else {
            0
        };
        // One at a time while it is not known whether they start at all.
        let unsure = !state.proven || state.breaker.failures() > 0;
        // Without a job to run for, an open breaker stays open.
        let given_up = state.breaker.reason().is_some() && alive == 0 && queued == 0;
        if alive >= needed
            || (unsure && starting + state.dying() > 0)
            || given_up
            || matches!(state.phase, Phase::Ended)
        {
            return Err(None);
        }
        state.breaker.permits(now).map_err(Some)?;
        let id = self.vacant_place(state).ok_or(None)?;
        state.place(id).stage = Stage::Spawning;
        Ok(id)
    }

    fn vacant_place(&self, state: &mut State) -> Option<WorkerId> {
        let vacant = state
            .places
            .iter()
            .position(|place| matches!(place.stage, Stage::Vacant));
        let index = vacant.or_else(|| {
            (state.places.len() < self.shared.settings.size).then(|| {
                state.places.push(Place::new());
                state.places.len() - 1
            })
        })?;
        Some(WorkerId(index as u32))
    }

    /// Starts a worker and hands it to its waiter. Without the lock: it takes as long as the kernel takes.
    fn start(&mut self, id: WorkerId) {
        let born = self
            .shared
            .settings
            .launch
            .spawn(&self.shared.settings.hello);
        if let Err(why) = born.and_then(|child| self.hand_over(id, child)) {
            self.orphans.extend(why.orphan);
            self.note_failure(id, why.why);
        }
    }

    fn hand_over(&mut self, id: WorkerId, child: Child) -> Result<(), Stillborn> {
        let process = Arc::clone(&child.process);
        if self.waiters.is_empty() {
            // Not before there is a worker, which takes its time to become one. That is time enough to read files.
            self.shared.oom_kills.watch(None);
        }
        if let Err(why) = self
            .shared
            .output
            .watch(&child.output, &self.shared.settings.name)
        {
            self.give_up(&process);
            return Err(why.into());
        }
        let mut state = self.shared.state.lock();
        state.counts.spawned += 1;
        let place = state.place(id);
        place.process = Some(Arc::clone(&process));
        place.stage = Stage::Handed(Box::new(child));
        let again = std::mem::replace(&mut place.used, true);
        state.counts.restarted += u64::from(again);
        drop(state);
        if let Err(why) = self.wake_waiter(id) {
            self.give_up(&process);
            return Err(why.into());
        }
        self.watched.push((id, process));
        Ok(())
    }

    /// The first worker of a place brings its waiter into being.
    fn wake_waiter(&mut self, id: WorkerId) -> io::Result<()> {
        if (id.0 as usize) < self.waiters.len() {
            self.shared.bells[id.0 as usize].notify_one();
            return Ok(());
        }
        let waiter = Waiter {
            shared: Arc::clone(&self.shared),
            id,
        };
        let name = thread_name(&self.shared.settings.name, &format!("{}", id.0));
        self.waiters.push(
            std::thread::Builder::new()
                .name(name)
                .spawn(move || waiter.run())?,
        );
        Ok(())
    }

    /// Kills a worker that no waiter has.
    fn give_up(&self, process: &Arc<Process>) {
        let mut state = self.shared.state.lock();
        process.kill();
        state.undead.push(Arc::clone(process));
    }

    fn note_failure(&self, id: WorkerId, why: io::Error) {
        let reason = SpawnFailure::Refused(Arc::new(why));
        let launch = &self.shared.settings.launch;
        let failed = launch.failure(reason, String::new());
        let mut state = self.shared.state.lock();
        let place = state.place(id);
        (place.process, place.stage) = (None, Stage::Vacant);
        state.note_failed_start(failed);
        // A place without a thread is none.
        if id.0 as usize >= self.waiters.len() {
            state.places.truncate(self.waiters.len());
        }
    }

    /// Blocks until there may be something to do.
    fn wait(&mut self, until: Option<Instant>) {
        let undead = self.shared.state.lock().undead.clone();
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.shared.supervisor.as_fd(),
            PollFlags::IN,
        )];
        let processes = self
            .watched
            .iter()
            .map(|(_, process)| process)
            .chain(&undead);
        fds.extend(
            processes.map(|process| PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)),
        );
        poll(&mut fds, until);
        let ended: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        self.shared.supervisor.clear();
        let mut ended = ended.into_iter();
        let shared = &self.shared;
        self.watched.retain(|(id, process)| {
            let ended = ended.next().unwrap_or(false);
            if ended {
                shared.note_death(*id, process);
            }
            !ended
        });
    }

    /// Step 4.
    fn end(self) {
        self.waiters
            .into_iter()
            .for_each(|waiter| drop(waiter.join()));
        self.shared.output.end();
        let (left, on_end) = {
            let mut state = self.shared.state.lock();
            state.phase = Phase::Ended;
            let left = state.backlog.drain(usize::MAX);
            (left, std::mem::take(&mut state.on_end))
        };
        let closed = PoolClosed {
            pool: self.shared.settings.name.clone(),
            running: false,
        };
        let home = &self.shared.home;
        left.into_iter()
            .for_each(|job| job.fail(closed.clone(), home));
        self.shared.ended.notify_all();
        on_end
            .into_iter()
            .for_each(|call| drop(catch_unwind(AssertUnwindSafe(call))));
    }
}

/// Jobs that no worker will take, because none is there and none can be started.
fn take_hopeless(state: &mut State, now: Instant) -> Vec<(Job, Failure)> {
    if state.alive() > 0 {
        return Vec::new();
    }
    let Some(reason) = state.breaker.refusal(now).cloned() else {
        return Vec::new();
    };
    let jobs = state.backlog.drain(AT_ONCE);
    state.counts.finished += jobs.len() as u64;
    jobs.into_iter().map(|job| (job, reason.clone())).collect()
}

/// The deadline of an end has come.
fn kill_all(state: &mut State) {
    for place in &mut state.places {
        place.hand.condemn(Verdict::Closed);
        if let Some(process) = &place.process {
            process.kill();
        }
    }
}

/// Whether nothing is left to wait for.
fn has_ended(state: &State) -> bool {
    state.is_running_out()
        && state
            .places
            .iter()
            .all(|place| matches!(place.stage, Stage::Ended))
}

//! One host thread for each worker process.
//!
//! A waiter takes a job, writes it to its worker, and blocks until the answer or the worker's death. It is the only place
//! that blocks on a worker, and it never touches a Deferred: it hands the outcome to the job's `finish`. When its worker is
//! dead it buries it and waits for the supervisor to hand it another, for as long as the pool lives.
//!
//! # The burial, in this order
//! 1. What the worker had said is read to the end: an answer that it gave before it died counts.
//! 2. Its process group is killed: what the job left behind dies with it.
//! 3. Its death is awaited, outside the lock; then it is collected under the lock, without blocking. From here on nobody
//!    can kill it any more.
//! 4. Its stderr is read to the end, for its last words, and its counter, which tells which job it had begun.
//! 5. Under the lock: the jobs that it had not begun are put back, and the one that it had is taken out to be failed; the
//!    place is vacant and the supervisor is told.
//! 6. Outside the lock the job is failed. So when its Deferred fires, the process is gone.
//!
//! # A job that is to stop, in this order
//! Somebody cancels it, or its timeout passes, which its waiter sees.
//! 1. Under the lock: the worker is asked to stop this job, and then its counter is read. If it had not begun the job, it
//!    never will, and the job ends here. A worker that does not pass over it from one look to the next is buried: it may
//!    be stuck, or not know that it was asked.
//! 2. Otherwise the waiter waits on. An answer that comes now ends the job, but its content means nothing. The worker lives.
//! 3. When the grace is over the worker is killed, under the lock, which still knows the job to be with it; and buried.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::cgroup::oom_count_of_zombie;
use super::child::{Child, Ended as EndedProcess};
use super::connection::{Alarms, Connection, Event};
use super::hand::Ended;
use super::job::{Job, Verdict, WorkerId};
use super::packed::{Frame, Whole};
use super::{Leave, Next, Shared};
use crate::error::{Exit, SpawnFailed, SpawnFailure, Usage, WorkerDied};
use crate::wire::{self, Message, ProtocolError, WorkerHello};

/// How long an idle worker may take to leave when it is told to.
const RETIRE_GRACE: Duration = Duration::from_secs(1);
/// How long a killed process may take to die. Only one in an uninterruptible system call takes any time.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// A worker that dies sooner than this, without having begun a job, has failed to start.
const PROVEN_AFTER: Duration = Duration::from_secs(1);
/// When it is looked again whether a worker is to be killed for a job that seemed done.
const AGAIN: Duration = Duration::from_millis(10);
/// How often it is looked whether a worker that has not begun its job is stopped (by SIGSTOP): then it never will; and
/// whether one that has but to pass over a job which was taken back does so.
const LOOK: Duration = Duration::from_millis(500);

/// A job with others behind it that takes longer than this is not what it was taken for: the others go elsewhere.
const LONG: Duration = Duration::from_millis(10);

/// The connection, as its waiter has it while it is awake.
type Guard<'a> = MutexGuard<'a, Connection>;

pub(super) struct Waiter {
    pub(super) shared: Arc<Shared>,
    pub(super) id: WorkerId,
}

/// Why a waiter buries its worker.
enum End {
    /// It was told to leave: there is nothing for it to do, or it has done enough.
    Retired(Leave),
    /// It never became a worker. `None`: because it ended.
    NotStarted(Option<SpawnFailure>),
    /// It died, or is being killed, while idle or over its calls.
    Died,
    /// It broke the rules; we kill it. The job that it ran fails for that reason.
    Broke(ProtocolError),
}

impl Waiter {
    /// The thread's whole life.
    pub(super) fn run(self) {
        while let Some(child) = self.shared.next_child(self.id) {
            let process = Arc::clone(&child.process);
            // A panic in here is a fault of ours. It may cost the job and the worker, not the pool.
            if catch_unwind(AssertUnwindSafe(|| self.tend(child))).is_err() {
                self.shared.abandon(self.id, &process);
            }
        }
    }

    /// One worker's life, seen from here.
    fn tend(&self, child: Child) {
        let connection = Arc::new(Mutex::new(Connection::new(child)));
        // Held all the time, but while it sleeps.
        let mut worker = connection.lock();
        let end = match self.greet(&mut worker) {
            Ok(()) => self.serve(&mut worker, &connection),
            Err(end) => end,
        };
        self.bury(&mut worker, end);
    }

    /// Waits for the worker's hello, and until it is ready.
    fn greet(&self, worker: &mut Guard<'_>) -> Result<(), End> {
        // `None`: later than the clock goes.
        let deadline = worker.born.checked_add(self.shared.settings.boot_deadline);
        let is_own = self.shared.settings.launch.is_own();
        if is_own {
            self.watch_memory(worker);
        }
        self.first_frame(worker, deadline)?;
        self.check_hello(worker)
            .map_err(|why| End::NotStarted(Some(why)))?;
        worker.calls_left = self.shared.calls_for_a_worker();
        if !is_own {
            // By now a command in between has put it where it is to be.
            self.watch_memory(worker);
        }
        self.initialize(worker, deadline)?;
        worker.last = Instant::now();
        self.shared.enter_service(self.id, worker.pipelines);
        Ok(())
    }

    fn watch_memory(&self, worker: &mut Connection) {
        worker.oom_count = self.shared.oom_kills.watch(Some(worker.process.pid()));
    }

    /// Waits for a frame of a worker that is not ready yet.
    fn first_frame(&self, worker: &mut Guard<'_>, deadline: Option<Instant>) -> Result<(), End> {
        loop {
            return Err(match Connection::wait(worker, deadline) {
                Event::Frame => return Ok(()),
                Event::Woken if self.shared.is_wanted() => continue,
                Event::Woken => End::Retired(Leave::Unwanted),
                Event::Died => End::NotStarted(None),
                Event::Closed if worker.ends_soon() => End::NotStarted(None),
                Event::Closed => not_a_worker("it closed its standard input"),
                Event::Late => {
                    let why = SpawnFailure::Silent(self.shared.settings.boot_deadline);
                    End::NotStarted(Some(why))
                }
                Event::Garbage(error) => not_a_worker(error),
            });
        }
    }

    /// Runs the initializer, if there is one, as the first call.
    fn initialize(&self, worker: &mut Guard<'_>, deadline: Option<Instant>) -> Result<(), End> {
        let Some(initializer) = &self.shared.settings.initializer else {
            return Ok(());
        };
        let call = Arc::new(Whole::of(initializer.call()));
        worker.push(0, &Frame::Whole(&call));
        let mut heard = Vec::new();
        let why = loop {
            self.first_frame(worker, deadline)?;
            worker.answers(&mut heard).map_err(not_a_worker)?;
            if let Some(heard) = heard.pop() {
                if heard.id != 0 || !worker.first_is_written() {
                    return Err(not_a_worker("it answered what it was not asked"));
                }
                let outcome = worker.outcome(heard.outcome, heard.on_socket);
                break initializer.failure(outcome, &self.shared.home);
            }
        };
        worker.answered = 0;
        worker.process.take_count();
        match why {
            None => Ok(()),
            Some(why) => Err(End::NotStarted(Some(SpawnFailure::Initializer(why)))),
        }
    }

    fn check_hello(&self, worker: &mut Connection) -> Result<(), SpawnFailure> {
        let hello =
            read_hello(worker).map_err(|error| SpawnFailure::NotAWorker(error.to_string()))?;
        if hello.language.is_empty() {
            return Err(SpawnFailure::NotAWorker(
                "its hello does not say what it is".to_string(),
            ));
        }
        if hello.protocol != wire::PROTOCOL {
            let what = format!(
                "it speaks version {} of the protocol, not {}",
                hello.protocol,
                wire::PROTOCOL
            );
            return Err(SpawnFailure::NotAWorker(what));
        }
        worker.pipelines = hello.pipeline > 1;
        worker.arenas.shared = hello.buffers && self.shared.settings.share_from.is_some();
        worker.arenas.trusted = self.shared.settings.trusts_workers;
        worker.reader.set_max_frame(self.shared.settings.max_frame);
        match hello.lane {
            true => worker
                .use_lane(self.shared.settings.spin)
                .map_err(|why| SpawnFailure::NotAWorker(why.to_string()))?,
            false => worker.refuse_lane(),
        }
        match &self.shared.settings.build {
            Some(ours) if *ours != hello.build => Err(SpawnFailure::BuildMismatch {
                ours: ours.clone(),
                theirs: hello.build,
            }),
            _ => Ok(()),
        }
    }

    /// Job after job, until the worker or the pool ends.
    fn serve(&self, worker: &mut Guard<'_>, connection: &Arc<Mutex<Connection>>) -> End {
        loop {
            if self.shared.is_worn_out(worker) {
                if worker.out == 0 {
                    return End::Retired(Leave::WornOut);
                }
                worker.calls_left = Some(0); // what it has is the last
            }
            let step = match self.shared.next_jobs(self.id, worker, connection) {
                Next::Jobs => self.work(worker),
                Next::Sit(until) => self.sit(worker, until),
                Next::Died => return End::Died,
                Next::Leave(why) => return End::Retired(why),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Sits by a worker that has nothing to do, or what others give it, until there is something to look at.
    fn sit(&self, worker: &mut Guard<'_>, until: Option<Instant>) -> Result<(), End> {
        worker.sits = true;
        let event = Connection::wait(worker, until);
        let step = match event {
            Event::Frame => self.answers(worker),
            Event::Woken | Event::Late => Ok(()),
            event => {
                self.shared.look_at_hand(self.id, worker); // nobody gives it anything from here on
                Err(self.end_of(worker, event))
            }
        };
        worker.sits = false;
        match worker.broken.take() {
            Some(error) => Err(End::Broke(error)),
            None if !worker.late.is_empty() => Err(End::Died),
            None => step,
        }
    }

    /// Why a worker is buried after such an event.
    fn end_of(&self, worker: &Connection, event: Event) -> End {
        match event {
            Event::Garbage(error) => End::Broke(error),
            Event::Closed if !worker.ends_soon() => {
                End::Broke(ProtocolError::new("it closed its connection"))
            }
            _ => End::Died,
        }
    }

    /// Sends calls and finishes jobs with the answers, until it is time for more calls.
    fn work(&self, worker: &mut Guard<'_>) -> Result<(), End> {
        if let Err(error) = worker.prepare(self.shared.settings.max_frame) {
            if let Some(job) = self.shared.take_unsent(self.id) {
                job.fail(error, &self.shared.home);
            }
            return Ok(());
        }
        self.set_alarms(worker);
        loop {
            match Connection::wait(worker, worker.alarms.first()) {
                Event::Frame => self.answers(worker)?,
                Event::Woken => worker.alarms.kill = self.shared.kill_at(self.id),
                Event::Late => self.alarm(worker)?,
                event => return Err(self.end_of(worker, event)),
            }
            if worker.out <= worker.refill_at {
                break;
            }
        }
        self.check_silence(worker).map_err(End::Broke)
    }

    /// A worker that has nothing to do has nothing to say, but for notifications of a later version.
    fn check_silence(&self, worker: &mut Connection) -> Result<(), ProtocolError> {
        if worker.out > 0 {
            return Ok(());
        }
        while let Some(frame) = worker.reader().next_frame()? {
            match Message::parse(frame)? {
                Message::Notification { .. } => {}
                _ => return Err(ProtocolError::new("it said more than its answer")),
            }
        }
        match worker.reader().is_empty() {
            true => Ok(()),
            false => Err(ProtocolError::new("it said more than its answer")),
        }
    }

    /// Finishes the jobs whose answers are there.
    fn answers(&self, worker: &mut Connection) -> Result<(), End> {
        let now = Instant::now();
        let lives = self.shared.hear(self.id, worker, now);
        if !lives.map_err(End::Broke)? {
            return Err(End::Died);
        }
        self.set_alarms(worker);
        // A worker that talks without end must not keep its job's time from being up.
        match worker.alarms.first() {
            Some(at) if at <= now => self.alarm(worker),
            _ => Ok(()),
        }
    }

    /// Sets the alarms for the call that is now the first.
    fn set_alarms(&self, worker: &mut Connection) {
        let Some(first) = worker.first else {
            worker.alarms = Alarms::default();
            return;
        };
        let begin = first.at.max(worker.last);
        worker.alarms = Alarms {
            kill: first.kill_at,
            timeout: first
                .timeout
                .and_then(|timeout| first.at.checked_add(timeout)),
            look: Some(begin + LOOK),
            share: (worker.out > 1).then(|| begin + LONG),
        };
    }

    /// The time has come to do something about the first call.
    fn alarm(&self, worker: &mut Connection) -> Result<(), End> {
        let now = Instant::now();
        let is_due = |alarm: Option<Instant>| alarm.is_some_and(|at| at <= now);
        let Some(first) = worker.first else {
            return Ok(());
        };
        if is_due(worker.alarms.kill) {
            // What happens next is its death, or the answer of a job that was just done.
            worker.alarms.kill = match self.shared.kill_overdue(self.id) {
                true => None,
                false => self.shared.kill_at(self.id).map(|at| at.max(now + AGAIN)),
            };
        }
        if is_due(worker.alarms.timeout) {
            worker.alarms.timeout = None;
            if let Some(job) = self.shared.time_out(first.key) {
                let shared = &self.shared;
                let failure = shared.given_up(&job, Verdict::TimedOut, first.at, None);
                job.fail(failure, &shared.home);
            }
            worker.alarms.kill = self.shared.kill_at(self.id);
        }
        if is_due(worker.alarms.share) {
            worker.alarms.share = None;
            self.shared.take_back(self.id, worker);
        }
        if is_due(worker.alarms.look) {
            worker.alarms.look = None;
            let taken_back = self.shared.first_has_ended(self.id);
            if taken_back || !self.shared.has_begun(self.id) {
                let stuck = taken_back && worker.stands_still();
                if stuck || worker.process.is_stopped() {
                    return Err(End::Died);
                }
                worker.alarms.look = Some(now + LOOK);
            }
        }
        Ok(())
    }

    /// See the top of this file.
    fn bury(&self, worker: &mut Guard<'_>, end: End) {
        if let End::Retired(_) = end {
            self.shared.take_leave(self.id);
            worker.close();
            worker.ends_within(RETIRE_GRACE);
        }
        self.shared.look_at_hand(self.id, worker);
        let end = self.hear_out(worker, end); // 1
        self.shared.kill(self.id); // 2
        let (process, oom_killed) = self.collect(worker); // 3
        let death = Death {
            exit: process.exit,
            usage: process.usage(),
            oom_killed,
            stderr: self.shared.output.bury(&worker.output), // 4
            pid: worker.process.pid(),
        };
        let mut state = self.shared.state.lock(); // 5
        let begun = state.count_and_look(self.id, &worker.process);
        let young = !begun && worker.answered == 0 && worker.born.elapsed() < PROVEN_AFTER;
        let failed = self.failed_start(&end, &death, young);
        match end {
            End::Retired(Leave::WornOut) => state.counts.recycled += 1,
            End::Retired(_) => {}
            _ => state.counts.died += 1,
        }
        worker.bury_arenas();
        let ended = state.bury(self.id);
        for (_, verdict, _) in &worker.late {
            state.counts.note_end(Some(*verdict));
        }
        if !ended.is_empty() || worker.out > 0 || state.waiting() > 0 {
            self.shared.rouse_one(&mut state);
        }
        self.shared.vacate(&mut state, self.id, failed);
        drop(state);
        self.fail_all(worker, ended, &end, &death); // 6
    }

    /// Ends the jobs that end with a worker.
    fn fail_all(&self, worker: &mut Connection, ended: Vec<Ended>, end: &End, death: &Death) {
        let given_up = |job: &Job, verdict, at| {
            let killed = Some(death.pid);
            self.shared.given_up(job, verdict, at, killed)
        };
        for (job, verdict, at) in worker.late.drain(..) {
            let failure = given_up(&job, verdict, at);
            job.fail(failure, &self.shared.home);
        }
        for Ended {
            mut job,
            verdict,
            begun,
            at,
        } in ended
        {
            job.let_go();
            let failure = match (verdict, end) {
                (Some(verdict), _) => given_up(&job, verdict, at),
                (None, End::Broke(error)) => error.clone().into(),
                (None, _) => death.of_job(&job, begun, at).into(),
            };
            job.fail(failure, &self.shared.home);
        }
    }

    /// Whether this was the end of a worker that never was one.
    fn failed_start(&self, end: &End, death: &Death, young: bool) -> Option<SpawnFailed> {
        let reason = match end {
            End::Retired(_) => return None,
            End::NotStarted(Some(reason)) => reason.clone(),
            End::NotStarted(None) => SpawnFailure::Ended(death.exit),
            End::Died | End::Broke(_) if young => SpawnFailure::Ended(death.exit),
            End::Died | End::Broke(_) => return None,
        };
        let launch = &self.shared.settings.launch;
        Some(launch.failure(reason, death.stderr.clone()))
    }

    /// Finishes the jobs whose answers had been sent before the death.
    fn hear_out(&self, worker: &mut Connection, end: End) -> End {
        let End::Died = end else {
            return end;
        };
        while worker.out > 0 && worker.drain() {
            if let Err(error) = self.shared.hear(self.id, worker, Instant::now()) {
                return End::Broke(error);
            }
        }
        End::Died
    }

    /// Waits for the death and takes the exit status; and whether the kernel killed it for its memory.
    fn collect(&self, worker: &Connection) -> (EndedProcess, bool) {
        worker.ends_within(KILL_PATIENCE);
        let place = oom_count_of_zombie(worker.process.pid()).or_else(|| worker.oom_count.clone());
        let ended = self.shared.reap(self.id, &worker.process);
        let oom_killed = ended.killed_by_others && self.shared.oom_kills.take(place);
        (ended, oom_killed)
    }
}

/// What is known about a dead worker.
struct Death {
    exit: Exit,
    usage: Usage,
    oom_killed: bool,
    stderr: String,
    pid: u32,
}

impl Death {
    fn of_job(&self, job: &Job, begun: bool, at: Instant) -> WorkerDied {
        WorkerDied {
            task: job.task().to_string(),
            job: job.id(),
            pid: self.pid,
            exit: self.exit,
            started: begun,
            elapsed: at.elapsed(),
            usage: self.usage,
            oom_killed: self.oom_killed,
            stderr: self.stderr.clone(),
        }
    }
}

fn read_hello(worker: &mut Connection) -> Result<WorkerHello, ProtocolError> {
    let frame = worker
        .reader
        .next_frame()?
        .expect("a wait that ended with a frame leaves it there");
    match Message::parse(frame)? {
        Message::Notification {
            method: "hello",
            params,
        } => WorkerHello::parse(params),
        _ => Err(ProtocolError::new("its first message is no hello")),
    }
}

fn not_a_worker(why: impl ToString) -> End {
    End::NotStarted(Some(SpawnFailure::NotAWorker(why.to_string())))
}

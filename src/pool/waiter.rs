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
//! 4. Its stderr is read to the end, for its last words, and its counter, which tells whether the job had begun.
//! 5. Under the lock: the job that it held is put back (it had not begun), or taken out to be failed; the place is vacant
//!    and the supervisor is told.
//! 6. Outside the lock the job is failed. So when its Deferred fires, the process is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use errback_deferred::{CancelledError, Failure};

use super::backlog::{Call, Completed};
use super::cgroup::oom_count_of_zombie;
use super::child::{Child, Ended};
use super::connection::{Connection, Event};
use super::job::{Job, Outcome, Verdict, WorkerId};
use super::{Next, Shared};
use crate::error::{Exit, PoolClosed, SpawnFailed, SpawnFailure, Usage, WorkerDied};
use crate::wire::{self, Answer, ErrorKind, Message, ProtocolError, WorkerHello};

/// How often a job that had not begun is sent again.
const RESENDS: u8 = 3;
/// How long an idle worker may take to leave when the pool closes.
const RETIRE_GRACE: Duration = Duration::from_secs(1);
/// How long a killed process may take to die. Only one in an uninterruptible system call takes any time.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// A worker that dies sooner than this, without having begun a job, has failed to start.
const PROVEN_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Waiter {
    pub(super) shared: Arc<Shared>,
    pub(super) id: WorkerId,
}

/// Why a waiter buries its worker.
enum End {
    /// The pool closes, and there is nothing to do any more.
    Retired,
    /// It never became a worker. `None`: because it ended.
    NotStarted(Option<SpawnFailure>),
    /// It died, or was killed by someone, while idle or over this call.
    Died(Option<Sent>),
    /// It broke the rules; we kill it. A job that it held fails for that reason.
    Broke(Option<Sent>, ProtocolError),
}

/// A call that is with the worker.
struct Sent {
    call: Call,
    at: Instant,
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
        let mut worker = Connection::new(child, self.shared.settings.max_frame);
        let end = match self.greet(&mut worker) {
            Ok(()) => self.serve(&mut worker),
            Err(end) => end,
        };
        self.bury(worker, end);
    }

    /// Waits for the worker's hello.
    fn greet(&self, worker: &mut Connection) -> Result<(), End> {
        let deadline = worker.born + self.shared.settings.boot_deadline;
        loop {
            match worker.wait(&mut &[][..], Some(deadline)) {
                Event::Frame => {
                    self.check_hello(worker)
                        .map_err(|why| End::NotStarted(Some(why)))?;
                    // By now a command in between has put it where it is to be.
                    worker.oom_count = self.shared.oom_kills.watch(Some(worker.process.pid()));
                    self.shared.enter_service(self.id);
                    return Ok(());
                }
                Event::Woken if self.shared.is_wanted() => {}
                Event::Woken => return Err(End::Retired),
                Event::Died => return Err(End::NotStarted(None)),
                Event::Closed if worker.ends_soon() => return Err(End::NotStarted(None)),
                Event::Closed => return Err(not_a_worker("it closed its standard input")),
                Event::Late => {
                    let why = SpawnFailure::Silent(self.shared.settings.boot_deadline);
                    return Err(End::NotStarted(Some(why)));
                }
                Event::Garbage(error) => return Err(not_a_worker(error)),
            }
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
        match &self.shared.settings.build {
            Some(ours) if *ours != hello.build => Err(SpawnFailure::BuildMismatch {
                ours: ours.clone(),
                theirs: hello.build,
            }),
            _ => Ok(()),
        }
    }

    /// Job after job, until the worker or the pool ends.
    fn serve(&self, worker: &mut Connection) -> End {
        loop {
            match self.shared.next_job(self.id) {
                Next::Call(call) => {
                    let sent = Sent {
                        call,
                        at: Instant::now(),
                    };
                    if let Err(end) = self.call(worker, sent) {
                        return end;
                    }
                    if !worker.reader.is_empty() {
                        return End::Broke(
                            None,
                            ProtocolError::new("it said more than its answer"),
                        );
                    }
                }
                Next::Died => return End::Died(None),
                Next::Close => return End::Retired,
            }
        }
    }

    /// Sends one job, and finishes it with the answer.
    fn call(&self, worker: &mut Connection, sent: Sent) -> Result<(), End> {
        let mut unwritten = &sent.call.frame[..];
        let end = loop {
            match worker.wait(&mut unwritten, None) {
                Event::Frame if unwritten.is_empty() => match self.answer(worker, &sent.call) {
                    Ok(Answered::Finished) => {
                        // Of a chunk one cannot tell from the answer whether any function was entered.
                        if sent.call.chunk {
                            worker.recount();
                        }
                        return Ok(());
                    }
                    Ok(Answered::NotYet) => {}
                    Ok(Answered::TooLate) => break None,
                    Err(error) => break Some(error),
                },
                Event::Frame => {
                    break Some(ProtocolError::new(
                        "it answered before it had read the call",
                    ));
                }
                Event::Woken if self.shared.is_condemned(sent.call.key) => break None,
                Event::Woken | Event::Late => {}
                Event::Died => break None,
                Event::Closed if worker.ends_soon() => break None,
                Event::Closed => break Some(ProtocolError::new("it closed its connection")),
                Event::Garbage(error) => break Some(error),
            }
        };
        Err(match end {
            None => End::Died(Some(sent)),
            Some(error) => End::Broke(Some(sent), error),
        })
    }

    /// Looks at the frame that is in the reader.
    fn answer(&self, worker: &mut Connection, call: &Call) -> Result<Answered, ProtocolError> {
        let Some(frame) = worker.reader.next_frame()? else {
            return Ok(Answered::NotYet);
        };
        let answer = match Message::parse(frame)? {
            Message::Answer(answer) => answer,
            Message::Notification { .. } => return Ok(Answered::NotYet), // from a later version
            Message::Call { .. } => return Err(ProtocolError::new("it sent a call")),
        };
        self.check_id(&answer, call)?;
        worker.answered += 1;
        worker.ran += u64::from(has_run(&answer.outcome));
        match self
            .shared
            .complete(self.id, call.key, worker.answered == 1)
        {
            Completed::Finish(job) => job.finish(Outcome::Answer(answer.outcome)),
            Completed::Condemned => return Ok(Answered::TooLate),
        }
        Ok(Answered::Finished)
    }

    fn check_id(&self, answer: &Answer<'_>, call: &Call) -> Result<(), ProtocolError> {
        match answer.id == call.key.id {
            true => Ok(()),
            false => Err(ProtocolError::new(format!(
                "it answered job {} instead of {}",
                answer.id, call.key.id
            ))),
        }
    }

    /// See the top of this file.
    fn bury(&self, mut worker: Connection, end: End) {
        if let End::Retired = end {
            worker.close();
            worker.ends_within(RETIRE_GRACE);
        }
        let end = self.hear_out(&mut worker, end); // 1
        self.shared.kill(self.id); // 2
        let (ended, oom_killed) = self.collect(&worker); // 3
        let stderr = self.shared.output.bury(&worker.output); // 4
        let begun = worker.had_begun();
        let death = Death {
            exit: ended.exit,
            usage: ended.usage(),
            oom_killed,
            stderr,
            begun,
            worker: &worker,
        };
        let failed = self.failed_start(&end, &death);
        match end {
            End::Died(Some(sent)) => self.bury_with_job(sent, None, death, failed), // 5, 6
            End::Broke(Some(sent), error) => self.bury_with_job(sent, Some(error), death, failed),
            end => {
                let mut state = self.shared.state.lock();
                state.counts.died += u64::from(!matches!(end, End::Retired));
                self.shared.vacate(&mut state, self.id, failed);
            }
        }
    }

    /// Whether this was the end of a worker that never was one.
    fn failed_start(&self, end: &End, death: &Death<'_>) -> Option<SpawnFailed> {
        let reason = match end {
            End::Retired => return None,
            End::NotStarted(Some(reason)) => reason.clone(),
            End::NotStarted(None) => SpawnFailure::Ended(death.exit),
            End::Died(_) | End::Broke(..) if death.is_young() => SpawnFailure::Ended(death.exit),
            End::Died(_) | End::Broke(..) => return None,
        };
        let program = self.shared.settings.launch.name();
        Some(SpawnFailed {
            program,
            attempts: 0,
            reason,
            stderr: death.stderr.clone(),
        })
    }

    /// Finishes the job after all if its answer had been sent before the death.
    fn hear_out(&self, worker: &mut Connection, end: End) -> End {
        let End::Died(Some(sent)) = end else {
            return end;
        };
        while worker.drain() {
            match self.answer(worker, &sent.call) {
                Ok(Answered::NotYet) => {}
                Ok(Answered::Finished) => return End::Died(None),
                Ok(Answered::TooLate) => break,
                Err(error) => return End::Broke(Some(sent), error),
            }
        }
        End::Died(Some(sent))
    }

    /// Waits for the death and takes the exit status; and whether the kernel killed it for its memory.
    fn collect(&self, worker: &Connection) -> (Ended, bool) {
        worker.ends_within(KILL_PATIENCE);
        let place = oom_count_of_zombie(worker.process.pid()).or_else(|| worker.oom_count.clone());
        let ended = self.shared.reap(self.id, &worker.process);
        let oom_killed = ended.killed_by_others && self.shared.oom_kills.take(place);
        (ended, oom_killed)
    }

    fn bury_with_job(
        &self,
        sent: Sent,
        broke: Option<ProtocolError>,
        death: Death<'_>,
        failed: Option<SpawnFailed>,
    ) {
        let key = sent.call.key;
        let mut state = self.shared.state.lock();
        state.counts.died += 1;
        let ended = if !death.begun && state.may_resend(key, RESENDS) {
            state.counts.resent += 1;
            state.backlog.resend(key, sent.call.frame);
            self.shared.rouse_one(&mut state);
            None
        } else {
            state.counts.finished += 1;
            Some(state.backlog.end(key))
        };
        self.shared.vacate(&mut state, self.id, failed);
        drop(state);
        if let Some((job, verdict)) = ended {
            let failure = self.reason(&job, verdict, broke, sent.at, death);
            job.fail(failure);
        }
    }

    /// Why a job ends without its answer.
    fn reason(
        &self,
        job: &Job,
        verdict: Option<Verdict>,
        broke: Option<ProtocolError>,
        at: Instant,
        death: Death<'_>,
    ) -> Failure {
        match (verdict, broke) {
            (Some(Verdict::Cancelled), _) => CancelledError.into(),
            (Some(Verdict::Closed), _) => PoolClosed {
                pool: self.shared.settings.name.clone(),
                running: true,
            }
            .into(),
            (None, Some(error)) => error.into(),
            (None, None) => death.of_job(job, at).into(),
        }
    }
}

/// What became of a frame.
enum Answered {
    Finished,
    /// It was nothing that ends the job.
    NotYet,
    /// The job had been given up, and its worker killed.
    TooLate,
}

/// What is known about a dead worker.
struct Death<'a> {
    exit: Exit,
    usage: Usage,
    oom_killed: bool,
    stderr: String,
    begun: bool,
    worker: &'a Connection,
}

impl Death<'_> {
    /// Whether the worker died so soon, without any work, that something is wrong with how it starts.
    fn is_young(&self) -> bool {
        !self.begun && self.worker.answered == 0 && self.worker.born.elapsed() < PROVEN_AFTER
    }

    fn of_job(self, job: &Job, at: Instant) -> WorkerDied {
        WorkerDied {
            task: job.task().to_string(),
            job: job.id(),
            pid: self.worker.process.pid(),
            exit: self.exit,
            started: self.begun,
            elapsed: at.elapsed(),
            usage: self.usage,
            oom_killed: self.oom_killed,
            stderr: self.stderr,
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

/// Whether an answer is to a job whose function was entered; the worker counts those.
fn has_run(outcome: &wire::Outcome<'_>) -> bool {
    match outcome {
        wire::Outcome::Error(body) => {
            !matches!(body.kind, ErrorKind::UnknownTask | ErrorKind::DecodeArgs)
        }
        _ => true,
    }
}

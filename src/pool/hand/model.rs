//! Every order in which an answer, a cancel, a timeout, the end of the pool and the worker's death can meet over jobs that
//! are with one worker, together: loom tries them all.

use std::collections::HashMap;

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::*;
use crate::pool::job::JobState;

const WORKER: WorkerId = WorkerId(0);

/// How a job ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Answered,
    GivenUp(Verdict),
    Died,
}

/// What is under the pool's lock.
#[derive(Default)]
struct Table {
    hand: Hand,
    backlog: Option<Backlog>,
    ended: HashMap<u64, Outcome>,
    /// Whether the process has been told to die. It then begins nothing more, but what it has sent counts.
    killed: bool,
}

impl Table {
    fn end(&mut self, id: u64, outcome: Outcome) {
        let before = self.ended.insert(id, outcome);
        assert_eq!(before, None, "job {id} ended twice");
    }

    fn with<T>(&mut self, run: impl FnOnce(&mut Hand, &mut Backlog) -> T) -> T {
        run(&mut self.hand, self.backlog.as_mut().expect("it is there"))
    }
}

/// The worker as the host sees it: what it has counted, what it was asked, and whether it ran each call.
struct Worker {
    counted: AtomicU64,
    asked: Vec<AtomicBool>,
    ran: Vec<AtomicBool>,
    alive: AtomicBool,
}

struct Model {
    table: Mutex<Table>,
    worker: Worker,
    keys: Vec<JobKey>,
}

impl Model {
    fn of(jobs: usize) -> Arc<Model> {
        let mut backlog = Backlog::new();
        let mut hand = Hand::default();
        let keys: Vec<_> = (0..jobs).map(|_| backlog.push(tests::job())).collect();
        assert!(
            keys.iter()
                .all(|key| backlog.state(*key) == JobState::Queued)
        );
        for _ in 0..jobs {
            tests::give(&mut hand, &mut backlog);
        }
        let flags = || (0..jobs).map(|_| AtomicBool::new(false)).collect();
        let table = Table {
            hand,
            backlog: Some(backlog),
            ..Table::default()
        };
        Arc::new(Model {
            table: Mutex::new(table),
            worker: Worker {
                counted: AtomicU64::new(0),
                asked: flags(),
                ran: flags(),
                alive: AtomicBool::new(true),
            },
            keys,
        })
    }

    /// The worker: counts a call, looks whether it is wanted, runs it. Then its waiter: hands the answer over. Dies
    /// before the call `dies`, or when it is killed, and then its waiter buries it.
    fn run(&self, dies: Option<usize>) {
        for n in 0..self.keys.len() {
            if !self.worker.alive.load(Ordering::SeqCst) {
                break;
            }
            self.worker.counted.fetch_add(1, Ordering::SeqCst);
            if !self.worker.asked[n].load(Ordering::SeqCst) {
                self.worker.ran[n].store(true, Ordering::SeqCst);
            }
            if dies == Some(n) {
                break;
            }
            let mut table = self.table.lock().unwrap();
            match table.with(|hand, backlog| hand.answer(backlog)) {
                Answered::Finish(job) => table.end(job.id(), Outcome::Answered),
                Answered::Stopped(job, verdict, _) | Answered::TooLate(job, verdict, _) => {
                    table.end(job.id(), Outcome::GivenUp(verdict));
                }
                Answered::Dropped => {}
            }
            if table.killed {
                break;
            }
        }
        self.bury();
    }

    fn bury(&self) {
        let mut table = self.table.lock().unwrap();
        let calls = self.worker.counted.swap(0, Ordering::SeqCst);
        table.with(|hand, backlog| hand.count(calls, WORKER, backlog));
        let remains = table.with(|hand, backlog| hand.bury(backlog));
        for ended in remains.ended {
            let outcome = ended.verdict.map_or(Outcome::Died, Outcome::GivenUp);
            table.end(ended.job.id(), outcome);
        }
        // They wait again, and another worker answers them, if they are not cancelled first.
        for (key, _) in remains.unbegun.into_iter().rev() {
            let ran = self.worker.ran[self.place(key)].load(Ordering::SeqCst);
            assert!(!ran, "job {} would run twice", key.id);
            table.with(|_, backlog| backlog.resend(key, false));
        }
    }

    fn place(&self, key: JobKey) -> usize {
        self.keys
            .iter()
            .position(|it| *it == key)
            .expect("one of ours")
    }

    /// A cancel or a timeout, and the kill when the grace, which is none, is over.
    fn stop(&self, n: usize, verdict: Verdict) {
        let key = self.keys[n];
        let mut table = self.table.lock().unwrap();
        match table.with(|_, backlog| backlog.state(key)) {
            JobState::Queued => {
                let job = table.with(|_, backlog| backlog.withdraw(key));
                table.end(job.expect("it waits").id(), Outcome::GivenUp(verdict));
            }
            JobState::Sent(_) | JobState::Running(_) => {
                self.worker.asked[n].store(true, Ordering::SeqCst);
                let calls = self.worker.counted.swap(0, Ordering::SeqCst);
                table.with(|hand, backlog| hand.count(calls, WORKER, backlog));
                let now = Instant::now();
                let stopped =
                    table.with(|hand, backlog| hand.stop(key, verdict, Some(now), true, backlog));
                if let Stopped::Ended(job) = stopped {
                    let ran = self.worker.ran[n].load(Ordering::SeqCst);
                    assert!(!ran, "a job that had begun was taken back");
                    table.end(job.id(), Outcome::GivenUp(verdict));
                } else if table.hand.kill_overdue(now) {
                    table.killed = true;
                    self.worker.alive.store(false, Ordering::SeqCst);
                }
            }
            JobState::Done => {}
        }
    }

    /// The first job takes long: those behind it that have not begun go to others.
    fn share(&self) {
        let mut table = self.table.lock().unwrap();
        self.worker.asked[1..]
            .iter()
            .for_each(|asked| asked.store(true, Ordering::SeqCst));
        let calls = self.worker.counted.swap(0, Ordering::SeqCst);
        table.with(|hand, backlog| hand.count(calls, WORKER, backlog));
        for key in table.with(|hand, _| hand.take_back()).into_iter().rev() {
            let ran = self.worker.ran[self.place(key)].load(Ordering::SeqCst);
            assert!(!ran, "job {} would run twice", key.id);
            table.with(|_, backlog| backlog.resend(key, false));
        }
    }

    /// The end of the pool.
    fn close(&self) {
        let mut table = self.table.lock().unwrap();
        table.hand.condemn(Verdict::Closed);
        table.killed = true;
        self.worker.alive.store(false, Ordering::SeqCst);
    }

    /// What is left is done by another worker; then every job must have ended, once, and what was taken back never ran.
    fn check(&self) -> HashMap<u64, Outcome> {
        let mut table = self.table.lock().unwrap();
        while let Some(call) = table.with(|_, backlog| backlog.take(WorkerId(1), Instant::now())) {
            let job = table.with(|_, backlog| backlog.take_out(call.key));
            table.end(job.id(), Outcome::Answered);
        }
        assert!(table.hand.is_empty());
        assert_eq!(
            table.with(|_, backlog| (backlog.queued(), backlog.out())),
            (0, 0)
        );
        assert_eq!(table.ended.len(), self.keys.len(), "{:?}", table.ended);
        std::mem::take(&mut table.ended)
    }
}

/// Runs `others` beside the worker, in every order.
fn in_every_order(jobs: usize, dies: Option<usize>, others: &'static [fn(&Model)]) {
    loom::model(move || {
        let model = Model::of(jobs);
        let threads: Vec<_> = others
            .iter()
            .map(|other| {
                let model = Arc::clone(&model);
                thread::spawn(move || other(&model))
            })
            .collect();
        model.run(dies);
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let ended = model.check();
        // Nobody but the one that was given up, or at which the worker died, may have felt it.
        for (n, key) in model.keys.iter().enumerate() {
            let given_up = matches!(ended[&key.id], Outcome::GivenUp(Verdict::Cancelled));
            assert!(!given_up || n == 1 || jobs == 1, "{ended:?}");
            let died = ended[&key.id] == Outcome::Died;
            assert!(!died || dies == Some(n), "{ended:?}");
        }
    });
}

#[test]
fn one_job_has_one_winner_among_answer_cancel_and_timeout() {
    in_every_order(
        1,
        None,
        &[
            |model| model.stop(0, Verdict::Cancelled),
            |model| model.stop(0, Verdict::TimedOut),
        ],
    );
}

#[test]
fn one_job_has_one_winner_among_cancel_and_the_workers_death() {
    in_every_order(
        1,
        Some(0),
        &[
            |model| model.stop(0, Verdict::Cancelled),
            |model| model.stop(0, Verdict::TimedOut),
        ],
    );
}

#[test]
fn of_three_jobs_together_only_the_one_that_is_cancelled_is_hit() {
    in_every_order(3, None, &[|model| model.stop(1, Verdict::Cancelled)]);
}

#[test]
fn of_three_jobs_together_each_ends_once_when_one_kills_the_worker_and_one_is_cancelled() {
    for dies in 0..3 {
        in_every_order(3, Some(dies), &[|model| model.stop(1, Verdict::Cancelled)]);
    }
}

#[test]
fn of_two_jobs_together_each_ends_once_when_the_pool_ends_and_one_is_cancelled() {
    in_every_order(
        2,
        None,
        &[|model| model.stop(1, Verdict::Cancelled), Model::close],
    );
}

#[test]
fn of_three_jobs_together_each_runs_once_when_those_behind_are_given_to_others_and_one_is_cancelled()
 {
    in_every_order(
        3,
        Some(0),
        &[Model::share, |model| model.stop(1, Verdict::Cancelled)],
    );
}

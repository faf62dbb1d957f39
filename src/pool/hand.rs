//! The jobs that one worker holds, in the order in which it runs them, and who ends each of them.
//!
//! An answer, a cancel, a timeout, the end of the pool and the worker's death may meet over one job. Each of them is one
//! call of a method in here, under the pool's lock, on this list and the [`Backlog`]; whoever takes the job out of the
//! backlog ends it, and nobody else can. So there is one winner, and a worker is killed only for a job that it runs.
//!
//! What has begun is not announced, as that would cost a wake-up a job. The worker counts, and the count is read when it
//! matters ([`Hand::count`]); the first ones of the list have begun then, as many as were counted and not yet answered.

use std::collections::VecDeque;
use std::time::Instant;

use super::backlog::Backlog;
use super::job::{Job, JobKey, Verdict, WorkerId};

/// See the module.
#[derive(Default)]
pub(super) struct Hand {
    jobs: VecDeque<Held>,
    /// Calls that this worker was seen to begin, in its life.
    counted: u64,
    /// Calls that it has answered.
    answered: u64,
}

/// A job that the worker holds.
struct Held {
    key: JobKey,
    doom: Option<Doom>,
}

/// A job that shall not end by its answer.
#[derive(Clone, Copy)]
enum Doom {
    /// It has ended: it had not begun when it was given up, and the worker will pass over it.
    Ended,
    /// It runs, and was asked to stop. If it does not by then, the worker is killed.
    Asked(Verdict, Option<Instant>),
    /// The worker is being killed for it, or with it. It ends when that is dead.
    Killed(Verdict),
}

/// What became of a job that was to be stopped.
pub(super) enum Stopped {
    /// It had not begun, and never will: end it.
    Ended(Job),
    /// It runs. Its worker is to be killed at the time that was given.
    Asked,
    /// Somebody else had stopped it before.
    Already,
}

/// What an answer means.
pub(super) enum Answered {
    /// It counts.
    Finish(Job),
    /// The job had been asked to stop, and now has: it ends with the verdict. The worker lives.
    Stopped(Job, Verdict),
    /// The job had ended before.
    Dropped,
    /// The worker is being killed for it: it ends with the verdict when that is dead.
    TooLate(Job, Verdict),
}

/// What is left when a worker is dead.
pub(super) struct Remains {
    /// The job that it ran, and those that somebody had given up.
    pub(super) ended: Vec<Ended>,
    /// Jobs that it had not begun, in their order.
    pub(super) unbegun: Vec<JobKey>,
}

/// A job that ends with its worker.
pub(super) struct Ended {
    pub(super) job: Job,
    /// Why somebody had given it up. `None`: the worker died of itself.
    pub(super) verdict: Option<Verdict>,
    /// Whether the worker had begun it.
    pub(super) begun: bool,
}

impl Hand {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The worker is sent a job, behind those that it has.
    pub(super) fn give(&mut self, key: JobKey) {
        self.jobs.push_back(Held { key, doom: None });
    }

    /// The worker was seen to begin so many calls more. Says so of the jobs.
    pub(super) fn count(&mut self, calls: u64, worker: WorkerId, backlog: &mut Backlog) {
        self.counted = self.counted.saturating_add(calls);
        let begun = self.begun();
        for held in self.jobs.iter().take(begun) {
            if !matches!(held.doom, Some(Doom::Ended)) {
                backlog.begin(held.key, worker);
            }
        }
    }

    /// How many of the jobs have begun, as far as was counted.
    fn begun(&self) -> usize {
        usize::try_from(self.counted.saturating_sub(self.answered)).unwrap_or(usize::MAX)
    }

    /// Whether the first job was seen to begin.
    pub(super) fn has_begun(&self) -> bool {
        self.begun() > 0
    }

    /// A job shall end without its answer. `revocable`: the worker will not begin a call that it was asked to stop. The
    /// worker has been asked before, and has been [counted](Hand::count) after that.
    pub(super) fn stop(
        &mut self,
        key: JobKey,
        verdict: Verdict,
        kill_at: Option<Instant>,
        revocable: bool,
        backlog: &mut Backlog,
    ) -> Stopped {
        let begun = self.begun();
        let mut jobs = self.jobs.iter_mut().enumerate();
        let Some((index, held)) = jobs.find(|(_, held)| held.key == key) else {
            return Stopped::Already;
        };
        if held.doom.is_some() {
            return Stopped::Already;
        }
        if revocable && index >= begun {
            held.doom = Some(Doom::Ended);
            return Stopped::Ended(backlog.take_out(key));
        }
        held.doom = Some(Doom::Asked(verdict, kill_at));
        Stopped::Asked
    }

    /// When the worker is to be killed for a job that does not stop.
    pub(super) fn kill_at(&self) -> Option<Instant> {
        let at = |held: &Held| match held.doom {
            Some(Doom::Asked(_, at)) => at,
            _ => None,
        };
        self.jobs.iter().filter_map(at).min()
    }

    /// The grace of a job is over. Whether there was one: the worker is to be killed.
    pub(super) fn kill_overdue(&mut self, now: Instant) -> bool {
        let mut any = false;
        for held in &mut self.jobs {
            if let Some(Doom::Asked(verdict, Some(at))) = held.doom
                && at <= now
            {
                held.doom = Some(Doom::Killed(verdict));
                any = true;
            }
        }
        any
    }

    /// The worker is being killed: its jobs end by `verdict`, those that have none yet.
    pub(super) fn condemn(&mut self, verdict: Verdict) {
        for held in &mut self.jobs {
            held.doom = Some(match held.doom {
                Some(Doom::Ended) => Doom::Ended,
                Some(Doom::Asked(earlier, _) | Doom::Killed(earlier)) => Doom::Killed(earlier),
                None => Doom::Killed(verdict),
            });
        }
    }

    /// The worker has answered its first job, `key`.
    pub(super) fn answer(&mut self, key: JobKey, backlog: &mut Backlog) -> Answered {
        let Some(first) = self.jobs.front() else {
            return Answered::Dropped;
        };
        debug_assert!(first.key == key, "answers come in the order of the calls");
        let doom = first.doom;
        self.jobs.pop_front();
        self.answered += 1;
        match doom {
            None => Answered::Finish(backlog.take_out(key)),
            Some(Doom::Asked(verdict, _)) => Answered::Stopped(backlog.take_out(key), verdict),
            Some(Doom::Killed(verdict)) => Answered::TooLate(backlog.take_out(key), verdict),
            Some(Doom::Ended) => Answered::Dropped,
        }
    }

    /// The worker is dead and collected, all that it had said was heard, and it was counted for the last time.
    pub(super) fn bury(&mut self, backlog: &mut Backlog) -> Remains {
        let begun = self.begun();
        let mut remains = Remains {
            ended: Vec::new(),
            unbegun: Vec::new(),
        };
        for (index, held) in self.jobs.drain(..).enumerate() {
            let verdict = match held.doom {
                Some(Doom::Ended) => continue,
                Some(Doom::Asked(verdict, _) | Doom::Killed(verdict)) => Some(verdict),
                None if index < begun => None,
                None => {
                    remains.unbegun.push(held.key);
                    continue;
                }
            };
            let job = backlog.take_out(held.key);
            remains.ended.push(Ended {
                job,
                verdict,
                begun: index < begun,
            });
        }
        (self.counted, self.answered) = (0, 0);
        remains
    }

    /// Takes all jobs out, whatever they are at.
    pub(super) fn abandon(&mut self, backlog: &mut Backlog) -> Vec<Job> {
        let jobs = std::mem::take(self).jobs.into_iter();
        jobs.filter(|held| !matches!(held.doom, Some(Doom::Ended)))
            .map(|held| backlog.take_out(held.key))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const WORKER: WorkerId = WorkerId(0);

    pub(super) fn job() -> Job {
        let frame = crate::wire::encode_call(0, "t", &(), crate::wire::MAX_FRAME)
            .expect("() can be encoded");
        Job::new("t", frame, false, Box::new(|_| ()))
    }

    /// A worker with `n` jobs.
    fn with(n: usize) -> (Hand, Backlog, Vec<JobKey>) {
        let (mut hand, mut backlog) = (Hand::default(), Backlog::new());
        let keys: Vec<_> = (0..n).map(|_| backlog.push(job())).collect();
        for _ in 0..n {
            hand.give(backlog.take(WORKER).expect("it waits").key);
        }
        (hand, backlog, keys)
    }

    #[test]
    fn the_first_verdict_counts_and_the_answer_after_the_kill_comes_too_late() {
        let (mut hand, mut backlog, keys) = with(1);
        hand.count(1, WORKER, &mut backlog);
        let now = Instant::now();
        let stopped = hand.stop(keys[0], Verdict::Cancelled, Some(now), true, &mut backlog);
        assert!(matches!(stopped, Stopped::Asked));
        let stopped = hand.stop(keys[0], Verdict::TimedOut, None, true, &mut backlog);
        assert!(matches!(stopped, Stopped::Already));
        assert!(!hand.kill_overdue(now - Duration::from_millis(1)));
        assert!(hand.kill_overdue(now));
        hand.condemn(Verdict::Closed);
        let answered = hand.answer(keys[0], &mut backlog);
        assert!(matches!(answered, Answered::TooLate(_, Verdict::Cancelled)));
        let remains = hand.bury(&mut backlog);
        assert!(remains.ended.is_empty() && remains.unbegun.is_empty() && hand.is_empty());
    }

    #[test]
    fn a_job_that_was_asked_and_answers_in_time_leaves_its_worker_alive() {
        let (mut hand, mut backlog, keys) = with(2);
        hand.count(1, WORKER, &mut backlog);
        hand.stop(keys[0], Verdict::Cancelled, None, true, &mut backlog);
        let answered = hand.answer(keys[0], &mut backlog);
        assert!(matches!(answered, Answered::Stopped(_, Verdict::Cancelled)));
        assert!(matches!(
            hand.answer(keys[1], &mut backlog),
            Answered::Finish(_)
        ));
    }

    #[test]
    fn a_job_behind_another_ends_at_once_and_its_answer_means_nothing() {
        let (mut hand, mut backlog, keys) = with(3);
        hand.count(1, WORKER, &mut backlog);
        let stopped = hand.stop(keys[1], Verdict::Cancelled, None, true, &mut backlog);
        assert!(matches!(stopped, Stopped::Ended(_)));
        assert!(hand.kill_at().is_none(), "nobody is killed for it");
        assert!(matches!(
            hand.answer(keys[0], &mut backlog),
            Answered::Finish(_)
        ));
        assert!(matches!(
            hand.answer(keys[1], &mut backlog),
            Answered::Dropped
        ));
        assert!(matches!(
            hand.answer(keys[2], &mut backlog),
            Answered::Finish(_)
        ));
    }

    #[test]
    fn a_worker_that_takes_nothing_back_is_asked_for_what_may_have_begun() {
        let (mut hand, mut backlog, keys) = with(1);
        let stopped = hand.stop(keys[0], Verdict::Cancelled, None, false, &mut backlog);
        assert!(matches!(stopped, Stopped::Asked));
    }

    #[test]
    fn of_a_dead_workers_jobs_only_the_one_that_ran_has_ended() {
        let (mut hand, mut backlog, keys) = with(4);
        hand.count(2, WORKER, &mut backlog);
        assert_eq!(
            backlog.state(keys[1]),
            super::super::job::JobState::Running(WORKER)
        );
        assert!(matches!(
            hand.answer(keys[0], &mut backlog),
            Answered::Finish(_)
        ));
        hand.stop(keys[2], Verdict::Cancelled, None, true, &mut backlog);
        let remains = hand.bury(&mut backlog);
        let [ended] = &remains.ended[..] else {
            panic!("one had begun");
        };
        assert_eq!(
            (ended.job.id(), ended.verdict, ended.begun),
            (keys[1].id, None, true)
        );
        assert_eq!(remains.unbegun, [keys[3]]);
    }
}

/// Every order in which an answer, a cancel, a timeout, the end of the pool and the worker's death can meet over jobs that
/// are with one worker, together.
#[cfg(test)]
mod model {
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
                hand.give(backlog.take(WORKER).expect("it waits").key);
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
            for (n, key) in self.keys.iter().enumerate() {
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
                match table.with(|hand, backlog| hand.answer(*key, backlog)) {
                    Answered::Finish(job) => table.end(job.id(), Outcome::Answered),
                    Answered::Stopped(job, verdict) | Answered::TooLate(job, verdict) => {
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
            for key in remains.unbegun.into_iter().rev() {
                let ran = self.worker.ran[self.place(key)].load(Ordering::SeqCst);
                assert!(!ran, "job {} would run twice", key.id);
                table.with(|_, backlog| backlog.resend(key, Vec::new(), false));
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
                    let stopped = table
                        .with(|hand, backlog| hand.stop(key, verdict, Some(now), true, backlog));
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
            while let Some(call) = table.with(|_, backlog| backlog.take(WorkerId(1))) {
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
}

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

use super::backlog::{Backlog, Call, TaskId};
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
pub(super) struct Held {
    pub(super) key: JobKey,
    /// The number under which the worker knows it.
    pub(super) wire_id: u64,
    pub(super) task: TaskId,
    /// When it was sent.
    pub(super) at: Instant,
    /// Whether others may be sent behind it.
    pub(super) with_others: bool,
    doom: Option<Doom>,
}

/// A job that shall not end by its answer.
#[derive(Clone, Copy)]
enum Doom {
    /// It is not this worker's any more: it had not begun when it was given up, or taken back, and the worker will pass over
    /// it.
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
    /// The job had been asked to stop, and now has: it ends with the verdict. The worker lives. When it was sent.
    Stopped(Job, Verdict, Instant),
    /// The job had ended before.
    Dropped,
    /// The worker is being killed for it: it ends with the verdict when that is dead.
    TooLate(Job, Verdict, Instant),
}

/// What is left when a worker is dead.
pub(super) struct Remains {
    /// The job that it ran, and those that somebody had given up.
    pub(super) ended: Vec<Ended>,
    /// Jobs that it had not begun, in their order, and when they were sent.
    pub(super) unbegun: Vec<(JobKey, Instant)>,
}

/// A job that ends with its worker.
pub(super) struct Ended {
    pub(super) job: Job,
    /// Why somebody had given it up. `None`: the worker died of itself.
    pub(super) verdict: Option<Verdict>,
    /// Whether the worker had begun it.
    pub(super) begun: bool,
    /// When it was sent.
    pub(super) at: Instant,
}

impl Hand {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many there are, with those that the worker will pass over.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// The one that the worker answers next.
    pub(super) fn first(&self) -> Option<&Held> {
        self.jobs.front()
    }

    /// Whether the first is still in the backlog: nobody has ended it, or given it to another worker.
    pub(super) fn holds_first(&self) -> bool {
        !self.jobs.is_empty() && !self.first_has_ended()
    }

    /// The one that was given last.
    pub(super) fn last(&self) -> Option<&Held> {
        self.jobs.back()
    }

    /// The worker is sent a job, behind those that it has.
    pub(super) fn give(&mut self, call: &Call, at: Instant) {
        self.jobs.push_back(Held {
            key: call.key,
            wire_id: call.wire_id,
            task: call.task,
            at,
            with_others: call.with_others,
            doom: None,
        });
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

    /// The number of a job that is with the worker, if nobody has given it up.
    pub(super) fn wire_id(&self, key: JobKey) -> Option<u64> {
        let mut jobs = self.jobs.iter();
        let held = jobs.find(|held| held.key == key && held.doom.is_none());
        held.map(|held| held.wire_id)
    }

    /// The numbers of the jobs behind the first.
    pub(super) fn behind_first(&self) -> impl Iterator<Item = u64> {
        self.jobs.iter().skip(1).map(|held| held.wire_id)
    }

    /// Takes back the jobs behind the first that the worker has not begun, in their order: it will pass over them. The
    /// worker has been told before, and has been [counted](Hand::count) after that.
    pub(super) fn take_back(&mut self) -> Vec<JobKey> {
        let begun = self.begun();
        let mut keys = Vec::new();
        for held in self.jobs.iter_mut().skip(begun.max(1)) {
            if held.doom.is_none() {
                held.doom = Some(Doom::Ended);
                keys.push(held.key);
            }
        }
        keys
    }

    /// Whether the first job was taken back: the worker has but to pass over it.
    pub(super) fn first_has_ended(&self) -> bool {
        matches!(
            self.jobs.front(),
            Some(Held {
                doom: Some(Doom::Ended),
                ..
            })
        )
    }

    /// A job shall end without its answer. `revocable`: the worker will not begin a call that it was asked to stop. The
    /// worker has been asked before, and has been [counted](Hand::count) after that. One that was asked already can only be
    /// killed the sooner for it.
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
        let Some((index, held)) =
            jobs.find(|(_, held)| held.key == key && !matches!(held.doom, Some(Doom::Ended)))
        else {
            return Stopped::Already;
        };
        if let Some(doom) = &mut held.doom {
            if let Doom::Asked(_, at) = doom {
                *at = [*at, kill_at].into_iter().flatten().min();
            }
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

    /// The grace of a job is over. Whether there was one: the worker is to be killed. The worker has been
    /// [counted](Hand::count) just before. One that has begun a later job has done with this one: its answer is on its way,
    /// and the kill would hit the other.
    pub(super) fn kill_overdue(&mut self, now: Instant) -> bool {
        let mut any = false;
        let runs = self.begun().min(self.jobs.len()).saturating_sub(1);
        for held in self.jobs.iter_mut().skip(runs) {
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

    /// The worker has answered its first job.
    pub(super) fn answer(&mut self, backlog: &mut Backlog) -> Answered {
        let Some(Held { key, doom, at, .. }) = self.jobs.pop_front() else {
            return Answered::Dropped;
        };
        self.answered += 1;
        match doom {
            None => Answered::Finish(backlog.take_out(key)),
            Some(Doom::Asked(verdict, _)) => Answered::Stopped(backlog.take_out(key), verdict, at),
            Some(Doom::Killed(verdict)) => Answered::TooLate(backlog.take_out(key), verdict, at),
            Some(Doom::Ended) => Answered::Dropped,
        }
    }

    /// The worker has not begun with its first job, because it was asked not to. Which job it is, if another worker is to have
    /// it: nobody has ended it, and it was put back fewer than `most` times. (It was to be taken back, and the worker had
    /// just counted it; see docs/protocol.md, "Requests to stop".)
    pub(super) fn pass_over(&mut self, most: u8, backlog: &mut Backlog) -> Option<JobKey> {
        let first = self.jobs.front().filter(|held| held.doom.is_none())?;
        let key = first.key;
        if backlog.resends(key) >= most {
            return None;
        }
        self.jobs.pop_front();
        self.answered += 1;
        Some(key)
    }

    /// A job that was given last could not be sent: takes it out, unless it has ended.
    pub(super) fn take_unsent(&mut self, backlog: &mut Backlog) -> Option<Job> {
        let held = self.jobs.pop_back()?;
        match held.doom {
            Some(Doom::Ended) => None,
            _ => Some(backlog.take_out(held.key)),
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
                    remains.unbegun.push((held.key, held.at));
                    continue;
                }
            };
            let job = backlog.take_out(held.key);
            remains.ended.push(Ended {
                job,
                verdict,
                begun: index < begun,
                at: held.at,
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
    use super::super::job::End;
    use super::super::packed::Packed;
    use super::*;
    use std::time::Duration;

    const WORKER: WorkerId = WorkerId(0);

    pub(super) fn job() -> Job {
        Job::new("t", Packed::default(), End::default())
    }

    /// Gives a worker the next job.
    pub(super) fn give(hand: &mut Hand, backlog: &mut Backlog) {
        let now = Instant::now();
        let call = backlog.take(WORKER, now).expect("it waits");
        hand.give(&call, now);
    }

    /// A worker with `n` jobs.
    fn with(n: usize) -> (Hand, Backlog, Vec<JobKey>) {
        let (mut hand, mut backlog) = (Hand::default(), Backlog::new());
        let keys: Vec<_> = (0..n).map(|_| backlog.push(job())).collect();
        for _ in 0..n {
            give(&mut hand, &mut backlog);
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
        let answered = hand.answer(&mut backlog);
        assert!(matches!(
            answered,
            Answered::TooLate(_, Verdict::Cancelled, _)
        ));
        let remains = hand.bury(&mut backlog);
        assert!(remains.ended.is_empty() && remains.unbegun.is_empty() && hand.is_empty());
    }

    #[test]
    fn a_job_that_was_asked_and_answers_in_time_leaves_its_worker_alive() {
        let (mut hand, mut backlog, keys) = with(2);
        hand.count(1, WORKER, &mut backlog);
        hand.stop(keys[0], Verdict::Cancelled, None, true, &mut backlog);
        let answered = hand.answer(&mut backlog);
        assert!(matches!(
            answered,
            Answered::Stopped(_, Verdict::Cancelled, _)
        ));
        assert!(matches!(hand.answer(&mut backlog), Answered::Finish(_)));
    }

    #[test]
    fn a_worker_that_runs_the_next_job_is_not_killed_for_the_one_before() {
        let (mut hand, mut backlog, keys) = with(2);
        let now = Instant::now();
        hand.count(1, WORKER, &mut backlog);
        hand.stop(keys[0], Verdict::Cancelled, Some(now), true, &mut backlog);
        hand.count(1, WORKER, &mut backlog);
        assert!(!hand.kill_overdue(now), "its answer is on its way");
        assert!(matches!(
            hand.answer(&mut backlog),
            Answered::Stopped(_, Verdict::Cancelled, _)
        ));
        hand.stop(keys[1], Verdict::Cancelled, Some(now), true, &mut backlog);
        assert!(hand.kill_overdue(now));
        // A worker that counts what is not there does not save itself.
        let (mut hand, mut backlog, keys) = with(1);
        hand.count(100, WORKER, &mut backlog);
        hand.stop(keys[0], Verdict::Cancelled, Some(now), true, &mut backlog);
        assert!(hand.kill_overdue(now));
    }

    #[test]
    fn a_job_behind_another_ends_at_once_and_its_answer_means_nothing() {
        let (mut hand, mut backlog, keys) = with(3);
        hand.count(1, WORKER, &mut backlog);
        let stopped = hand.stop(keys[1], Verdict::Cancelled, None, true, &mut backlog);
        assert!(matches!(stopped, Stopped::Ended(_)));
        assert!(hand.kill_at().is_none(), "nobody is killed for it");
        assert!(matches!(hand.answer(&mut backlog), Answered::Finish(_)));
        assert!(matches!(hand.answer(&mut backlog), Answered::Dropped));
        assert!(matches!(hand.answer(&mut backlog), Answered::Finish(_)));
    }

    #[test]
    fn a_job_that_was_counted_and_then_passed_over_goes_to_another_worker() {
        let (mut hand, mut backlog, keys) = with(3);
        hand.count(2, WORKER, &mut backlog); // it counts, and then sees that the second was to be taken back
        assert_eq!(hand.take_back(), [keys[2]]);
        assert!(matches!(hand.answer(&mut backlog), Answered::Finish(_)));
        assert_eq!(hand.pass_over(1, &mut backlog), Some(keys[1]));
        backlog.resend(keys[1], true);
        give(&mut hand, &mut backlog);
        assert_eq!(hand.pass_over(1, &mut backlog), None, "it has ended");
        hand.answer(&mut backlog);
        assert_eq!(hand.pass_over(1, &mut backlog), None, "too often");
        assert!(matches!(hand.answer(&mut backlog), Answered::Finish(_)));
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
        assert!(matches!(hand.answer(&mut backlog), Answered::Finish(_)));
        hand.stop(keys[2], Verdict::Cancelled, None, true, &mut backlog);
        let remains = hand.bury(&mut backlog);
        let [ended] = &remains.ended[..] else {
            panic!("one had begun");
        };
        assert_eq!(
            (ended.job.id(), ended.verdict, ended.begun),
            (keys[1].id, None, true)
        );
        let unbegun: Vec<_> = remains.unbegun.iter().map(|(key, _)| *key).collect();
        assert_eq!(unbegun, [keys[3]]);
    }
}

#[cfg(test)]
mod model;

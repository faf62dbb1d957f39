//! Every job of the pool that is not done, in one table: those that wait, in their order, and those that are out.
//!
//! The table decides who wins. A job leaves it once, by value, and only the one who took it out can finish it; so an
//! answer, a cancel, a death and a shutdown may meet over one job, and it is finished once. It knows nothing of threads
//! and has no lock of its own: it lives under the pool's.
//!
//! The waiting ones are a list through the table (each entry knows its neighbours), so that a job is added at either end,
//! taken, and cancelled from the middle in constant time, and a table that has grown is used again. A `HashMap` beside a
//! `VecDeque` would keep the same in two places.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::job::{End, Ending, Job, JobKey, JobState, Owner, WorkerId};
use super::packed::{Frame, Packed};

/// The end of the list, or of the free entries.
const NONE: u32 = u32::MAX;

/// The number of a task in this table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TaskId(pub(super) u32);

pub(super) struct Backlog {
    entries: Vec<Entry>,
    /// First free entry; they are linked by `next`.
    free: u32,
    head: u32,
    tail: u32,
    queued: usize,
    out: usize,
    last_id: u64,
    /// The last number under which a call was sent. Never the same twice: a worker may remember what it was asked about one.
    last_wire_id: u64,
    /// The tasks of the jobs that there ever were: few.
    tasks: Vec<&'static str>,
    last_task: u32,
    /// From when times are counted.
    epoch: Instant,
    /// Where a frame is put together.
    scratch: Vec<u8>,
}

/// A job, in as few bytes as may be: there can be a million.
struct Entry {
    /// 0: the entry is free.
    id: u64,
    /// The parts of its end.
    ending: Option<Arc<dyn Ending>>,
    number: u32,
    packed: Packed,
    /// In nanoseconds of the table's time.
    submitted: u64,
    task: u32,
    /// Who has it, if it is out.
    worker: u32,
    previous: u32,
    next: u32,
    stage: Stage,
    /// How often it was put back because a worker may have died of it.
    resends: u8,
}

impl Entry {
    fn take_end(&mut self) -> End {
        End::from_parts(self.ending.take(), self.number)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        drop(self.take_end());
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Queued,
    Sent,
    Running,
}

/// A job that a worker is about to be sent.
pub(super) struct Call {
    pub(super) key: JobKey,
    /// The number under which it is sent.
    pub(super) wire_id: u64,
    pub(super) task: TaskId,
    /// How long it has waited.
    pub(super) waited: Duration,
    /// Whether others may be sent behind it.
    pub(super) with_others: bool,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Backlog {
            entries: Vec::new(),
            free: NONE,
            head: NONE,
            tail: NONE,
            queued: 0,
            out: 0,
            last_id: 0,
            last_wire_id: 0,
            tasks: Vec::new(),
            last_task: 0,
            epoch: Instant::now(),
            scratch: Vec::new(),
        }
    }

    /// How many jobs wait for a worker.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// How many jobs workers hold.
    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// Adds a job behind the others. It gets its number here.
    pub(super) fn push(&mut self, job: Job) -> JobKey {
        self.last_id += 1;
        let id = self.last_id;
        let TaskId(task) = self.task_id(job.task);
        let submitted = job.submitted.saturating_duration_since(self.epoch);
        let (ending, number) = job.end.into_parts();
        let entry = Entry {
            id,
            ending,
            number,
            packed: job.packed,
            submitted: u64::try_from(submitted.as_nanos()).unwrap_or(u64::MAX),
            task,
            worker: 0,
            previous: NONE,
            next: NONE,
            stage: Stage::Queued,
            resends: 0,
        };
        let index = self.place(entry);
        self.link_last(index);
        JobKey { index, id }
    }

    /// The number of a task. By the place of its name: it is the same one for all jobs of a task, and two for one do no harm.
    fn task_id(&mut self, name: &'static str) -> TaskId {
        let is_it = |known: &&'static str| std::ptr::eq(*known, name);
        if self
            .tasks
            .get(self.last_task as usize)
            .is_none_or(|it| !is_it(it))
        {
            let index = self.tasks.iter().position(is_it);
            let index = index.unwrap_or_else(|| {
                self.tasks.push(name);
                self.tasks.len() - 1
            });
            self.last_task = u32::try_from(index).expect("tasks are few");
        }
        TaskId(self.last_task)
    }

    /// The next job, for `worker`: it is out from now on.
    pub(super) fn take(&mut self, worker: WorkerId, now: Instant) -> Option<Call> {
        let index = self.head;
        if index == NONE {
            return None;
        }
        self.unlink(index);
        self.out += 1;
        self.last_wire_id += 1;
        let (wire_id, epoch) = (self.last_wire_id, self.epoch);
        let entry = self.entry(index);
        (entry.stage, entry.worker) = (Stage::Sent, worker.0);
        let now = now.saturating_duration_since(epoch);
        Some(Call {
            key: JobKey {
                index,
                id: entry.id,
            },
            wire_id,
            task: TaskId(entry.task),
            waited: now.saturating_sub(Duration::from_nanos(entry.submitted)),
            with_others: entry.packed.goes_with_others(),
        })
    }

    /// The bytes of a job that is out, to be sent under this number.
    pub(super) fn frame(&mut self, key: JobKey, wire_id: u64) -> Frame<'_> {
        self.assert_out(key);
        let entry = &mut self.entries[key.index as usize];
        let task = self.tasks[entry.task as usize];
        entry.packed.frame(task, wire_id, &mut self.scratch)
    }

    /// The task of the next job, if that may be sent behind others.
    pub(super) fn next_with_others(&self) -> Option<TaskId> {
        let entry = self.entries.get(self.head as usize)?;
        let task = TaskId(entry.task);
        entry.packed.goes_with_others().then_some(task)
    }

    /// Where a job is.
    pub(super) fn state(&self, key: JobKey) -> JobState {
        match self.entries.get(key.index as usize) {
            Some(entry) if entry.id == key.id && key.id != 0 => match entry.stage {
                Stage::Queued => JobState::Queued,
                Stage::Sent => JobState::Sent(WorkerId(entry.worker)),
                Stage::Running => JobState::Running(WorkerId(entry.worker)),
            },
            _ => JobState::Done,
        }
    }

    /// The job that [`JobKey::to_bits`] gave this number, as long as it is not done.
    pub(super) fn find(&self, bits: u64) -> Option<JobKey> {
        let index = (bits >> 32) as u32;
        let id = self.entries.get(index as usize)?.id;
        let key = JobKey { index, id };
        (id != 0 && key.to_bits() == bits).then_some(key)
    }

    /// The jobs of one owner that are not done.
    pub(super) fn jobs_of(&self, owner: Owner) -> Vec<JobKey> {
        let is_his = |it: &Arc<dyn Ending>| it.owner() == Some(owner);
        let entries = (0..).zip(&self.entries);
        entries
            .filter(|(_, entry)| entry.id != 0 && entry.ending.as_ref().is_some_and(is_his))
            .map(|(index, entry)| JobKey {
                index,
                id: entry.id,
            })
            .collect()
    }

    /// How long a job that is out may run.
    pub(super) fn timeout(&self, key: JobKey) -> Option<Duration> {
        self.assert_out(key);
        self.entries[key.index as usize].packed.timeout()
    }

    /// Takes a job out that still waits; `None` when it is elsewhere by now.
    pub(super) fn withdraw(&mut self, key: JobKey) -> Option<Job> {
        if self.state(key) != JobState::Queued {
            return None;
        }
        self.unlink(key.index);
        Some(self.release(key.index))
    }

    /// Takes a job that is out: whoever has it ends it.
    pub(super) fn take_out(&mut self, key: JobKey) -> Job {
        self.assert_out(key);
        self.out -= 1;
        self.release(key.index)
    }

    /// The worker has begun a job that is out.
    pub(super) fn begin(&mut self, key: JobKey, worker: WorkerId) {
        let entry = self.entry_out(key);
        (entry.stage, entry.worker) = (Stage::Running, worker.0);
    }

    /// A job that was out, and had not begun, waits again, before all others. Its key stays good. `blamed`: its worker
    /// may have died of it.
    pub(super) fn resend(&mut self, key: JobKey, blamed: bool) {
        let entry = self.entry_out(key);
        entry.stage = Stage::Queued;
        entry.resends += u8::from(blamed);
        self.out -= 1;
        self.link_first(key.index);
    }

    /// How often a worker may have died of a job that is out.
    pub(super) fn resends(&mut self, key: JobKey) -> u8 {
        self.entry_out(key).resends
    }

    /// Takes out the next jobs that wait, in their order.
    pub(super) fn drain(&mut self, at_most: usize) -> Vec<Job> {
        let mut jobs = Vec::with_capacity(self.queued.min(at_most));
        while self.head != NONE && jobs.len() < at_most {
            let index = self.head;
            self.unlink(index);
            jobs.push(self.release(index));
        }
        jobs
    }

    fn entry(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    fn entry_out(&mut self, key: JobKey) -> &mut Entry {
        self.assert_out(key);
        self.entry(key.index)
    }

    fn assert_out(&self, key: JobKey) {
        debug_assert!(
            matches!(self.state(key), JobState::Sent(_) | JobState::Running(_)),
            "the job is not out"
        );
    }

    /// Puts an entry into a free place, or a new one.
    fn place(&mut self, entry: Entry) -> u32 {
        if self.free == NONE {
            let index =
                u32::try_from(self.entries.len()).expect("the backlog's bound is below 2^32");
            self.entries.push(entry);
            return index;
        }
        let index = self.free;
        self.free = self.entry(index).next;
        *self.entry(index) = entry;
        index
    }

    fn release(&mut self, index: u32) -> Job {
        let free = mem::replace(&mut self.free, index);
        let epoch = self.epoch;
        let entry = &mut self.entries[index as usize];
        entry.next = free;
        Job {
            id: mem::take(&mut entry.id),
            task: self.tasks[entry.task as usize],
            packed: mem::take(&mut entry.packed),
            end: entry.take_end(),
            submitted: epoch + Duration::from_nanos(entry.submitted),
        }
    }

    fn link_last(&mut self, index: u32) {
        let last = mem::replace(&mut self.tail, index);
        self.entry(index).previous = last;
        self.entry(index).next = NONE;
        match last {
            NONE => self.head = index,
            last => self.entry(last).next = index,
        }
        self.queued += 1;
    }

    fn link_first(&mut self, index: u32) {
        let first = mem::replace(&mut self.head, index);
        self.entry(index).next = first;
        self.entry(index).previous = NONE;
        match first {
            NONE => self.tail = index,
            first => self.entry(first).previous = index,
        }
        self.queued += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Entry { previous, next, .. } = *self.entry(index);
        match previous {
            NONE => self.head = next,
            previous => self.entry(previous).next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => self.entry(next).previous = previous,
        }
        self.queued -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::{Called, Outcome};
    use super::*;
    use crate::task::Limits;
    use crate::wire::MAX_FRAME;

    const WORKER: WorkerId = WorkerId(0);

    fn job() -> Job {
        job_of(())
    }

    fn job_of(args: impl serde::Serialize) -> Job {
        let packed = Packed::call("t", &args, Limits::default(), MAX_FRAME, None);
        Job::new("t", packed.expect("a call"), End::default())
    }

    fn take(backlog: &mut Backlog) -> Option<Call> {
        backlog.take(WORKER, Instant::now())
    }

    fn taken(backlog: &mut Backlog) -> Vec<u64> {
        std::iter::from_fn(|| take(backlog))
            .map(|call| call.key.id)
            .collect()
    }

    #[test]
    fn jobs_leave_in_the_order_in_which_they_came() {
        let mut backlog = Backlog::new();
        let keys = [(); 3].map(|()| backlog.push(job()));
        assert_eq!(backlog.queued(), 3);
        assert_eq!(taken(&mut backlog), keys.map(|key| key.id));
        assert_eq!((backlog.queued(), backlog.out()), (0, 3));
    }

    #[test]
    fn a_large_job_goes_alone() {
        let mut backlog = Backlog::new();
        backlog.push(job());
        backlog.push(job_of(("x".repeat(10_000),)));
        let task = backlog.next_with_others().expect("the first is small");
        let call = take(&mut backlog).expect("it waits");
        assert!(call.with_others && call.task == task);
        assert_eq!(backlog.next_with_others(), None);
        assert!(!take(&mut backlog).expect("it waits").with_others);
    }

    #[test]
    fn a_job_is_withdrawn_from_anywhere_and_only_while_it_waits() {
        for gone in 0..3 {
            let mut backlog = Backlog::new();
            let keys = [(); 3].map(|()| backlog.push(job()));
            assert!(backlog.withdraw(keys[gone]).is_some());
            assert!(backlog.withdraw(keys[gone]).is_none(), "twice");
            let left: Vec<u64> = keys
                .iter()
                .map(|key| key.id)
                .filter(|id| *id != keys[gone].id)
                .collect();
            assert_eq!(taken(&mut backlog), left);
            assert!(
                backlog.withdraw(keys[(gone + 1) % 3]).is_none(),
                "it is out"
            );
        }
    }

    #[test]
    fn an_old_key_does_not_hit_the_job_that_has_its_place_now() {
        let mut backlog = Backlog::new();
        let old = backlog.push(job());
        drop(backlog.withdraw(old));
        let new = backlog.push(job());
        assert_eq!(old.index, new.index);
        assert_eq!(backlog.state(old), JobState::Done);
        assert!(backlog.withdraw(old).is_none());
        assert_eq!(backlog.state(new), JobState::Queued);
    }

    #[test]
    fn a_resent_job_goes_first_and_keeps_its_key() {
        let mut backlog = Backlog::new();
        let first = backlog.push(job());
        let second = backlog.push(job());
        let call = take(&mut backlog).expect("two wait");
        backlog.resend(call.key, true);
        assert_eq!(backlog.state(first), JobState::Queued);
        assert_eq!(taken(&mut backlog), [first.id, second.id]);
        assert_eq!(backlog.resends(first), 1);
    }

    #[test]
    fn a_key_in_one_number_is_good_until_its_job_is_done() {
        let mut backlog = Backlog::new();
        let keys = [(); 3].map(|()| backlog.push(job()));
        for key in keys {
            assert_eq!(backlog.find(key.to_bits()), Some(key));
        }
        drop(backlog.withdraw(keys[1]));
        assert_eq!(backlog.find(keys[1].to_bits()), None);
        let new = backlog.push(job());
        assert_eq!(backlog.find(keys[1].to_bits()), None);
        assert_eq!(backlog.find(new.to_bits()), Some(new));
        assert_eq!(Backlog::new().find(JobKey::NONE.to_bits()), None);
    }

    #[test]
    fn a_number_whose_lower_half_is_nought_finds_no_free_entry() {
        let mut backlog = Backlog::new();
        backlog.push(job());
        backlog.last_id = u64::from(u32::MAX);
        let key = backlog.push(job());
        assert_eq!(backlog.find(key.to_bits()), Some(key));
        drop(backlog.withdraw(key));
        assert_eq!(backlog.find(key.to_bits()), None);
        let free = JobKey { id: 0, ..key };
        assert_eq!(backlog.state(free), JobState::Done);
    }

    #[test]
    fn the_jobs_of_an_owner_are_found() {
        struct Of(Arc<()>);
        impl Ending for Of {
            fn end(&self, _: u32, _: Outcome<'_>, _: Called<'_>) {}
            fn lost(&self, _: u32) {}
            fn owner(&self) -> Option<Owner> {
                Some(Owner::of(&self.0))
            }
        }
        let mut backlog = Backlog::new();
        let owners = [(); 2].map(|()| Arc::new(()));
        let jobs = [Some(0), None, Some(1), Some(0)].map(|owner| {
            let mut job = job();
            if let Some(owner) = owner {
                job.end = End::new(Arc::new(Of(Arc::clone(&owners[owner]))));
            }
            backlog.push(job)
        });
        drop(backlog.withdraw(jobs[0]));
        let [first, second] = [0, 1].map(|it| backlog.jobs_of(Owner::of(&owners[it])));
        assert_eq!((first, second), (vec![jobs[3]], vec![jobs[2]]));
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 80, "{}", size_of::<Entry>());
    }

    #[test]
    fn a_job_has_its_own_frame_each_time_that_it_is_sent() {
        let mut backlog = Backlog::new();
        backlog.push(job_of((7,)));
        for _ in 0..2 {
            let call = take(&mut backlog).expect("it waits");
            let expected = crate::wire::encode_call(call.wire_id, "t", &(7,), MAX_FRAME);
            let frame = backlog.frame(call.key, call.wire_id).to_shared();
            assert_eq!(frame.frame, expected.expect("a call"));
            backlog.resend(call.key, false);
        }
    }

    #[test]
    fn the_table_is_used_again() {
        let mut backlog = Backlog::new();
        for _ in 0..1000 {
            let key = backlog.push(job());
            take(&mut backlog);
            drop(backlog.take_out(key));
        }
        assert_eq!(backlog.entries.len(), 1);
    }
}

//! Every job of the pool that is not done, in one table: those that wait, in their order, and those that are out.
//!
//! The table decides who wins. A job leaves it once, by value, and only the one who took it out can finish it; so an
//! answer, a cancel, a death and a shutdown may meet over one job, and it is finished once. It knows nothing of threads
//! and has no lock of its own: it lives under the pool's.
//!
//! The waiting ones are a list through the table (each entry knows its neighbours), so that a job is added at either end,
//! taken, and cancelled from the middle in constant time, and a table that has grown is used again. A `HashMap` beside a
//! `VecDeque` would keep the same in two places.

use std::time::{Duration, Instant};

use super::job::{Job, JobKey, JobState, WorkerId};
use crate::buffer::travel::Attachment;
use crate::wire::WithAttachments;

/// The end of the list, or of the free entries.
const NONE: u32 = u32::MAX;

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
}

struct Entry {
    /// `None`: the entry is free.
    job: Option<Job>,
    state: JobState,
    previous: u32,
    next: u32,
}

/// A job that a worker is about to be sent: its name in the table, and the bytes.
pub(super) struct Call {
    pub(super) key: JobKey,
    /// The number under which it is sent.
    pub(super) wire_id: u64,
    pub(super) task: &'static str,
    pub(super) frame: Vec<u8>,
    /// The buffers that the frame refers to. They are kept until the call is answered, or its worker dead.
    pub(super) attachments: Vec<Attachment>,
    pub(super) timeout: Option<Duration>,
    pub(super) submitted: Instant,
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
    pub(super) fn push(&mut self, mut job: Job) -> JobKey {
        self.last_id += 1;
        job.set_id(self.last_id);
        let entry = Entry {
            job: Some(job),
            state: JobState::Queued,
            previous: NONE,
            next: NONE,
        };
        let index = self.place(entry);
        self.link_last(index);
        JobKey {
            index,
            id: self.last_id,
        }
    }

    /// The next job, for `worker`: it is out from now on.
    pub(super) fn take(&mut self, worker: WorkerId) -> Option<Call> {
        let index = self.head;
        if index == NONE {
            return None;
        }
        self.unlink(index);
        self.out += 1;
        self.last_wire_id += 1;
        let wire_id = self.last_wire_id;
        let entry = self.entry(index);
        entry.state = JobState::Sent(worker);
        let job = entry.job.as_mut().expect("what is in the list is in use");
        let with_others = job.goes_with_others(); // before its frame is taken, whose length counts
        let (frame, attachments) = job.take_frame(wire_id);
        Some(Call {
            key: JobKey {
                index,
                id: job.id(),
            },
            task: job.task(),
            timeout: job.timeout(),
            submitted: job.submitted(),
            with_others,
            wire_id,
            frame,
            attachments,
        })
    }

    /// The task of the next job, if that may be sent behind others.
    pub(super) fn next_with_others(&self) -> Option<&'static str> {
        let entry = self.entries.get(self.head as usize)?;
        let job = entry.job.as_ref()?;
        job.goes_with_others().then(|| job.task())
    }

    /// Where a job is.
    pub(super) fn state(&self, key: JobKey) -> JobState {
        match self.entries.get(key.index as usize) {
            Some(Entry {
                job: Some(job),
                state,
                ..
            }) if job.id() == key.id => *state,
            _ => JobState::Done,
        }
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
        self.entry_out(key).state = JobState::Running(worker);
    }

    /// A job that was out, and had not begun, waits again, before all others. Its key stays good. `blamed`: its worker
    /// may have died of it.
    pub(super) fn resend(&mut self, key: JobKey, frame: WithAttachments, blamed: bool) {
        let entry = self.entry_out(key);
        entry.state = JobState::Queued;
        let job = entry.job.as_mut().expect("an entry that is out is in use");
        job.put_back(frame, blamed);
        self.out -= 1;
        self.link_first(key.index);
    }

    /// How often a worker may have died of a job that is out.
    pub(super) fn resends(&mut self, key: JobKey) -> u8 {
        self.entry_out(key).job.as_ref().map_or(0, Job::resends)
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
        let free = std::mem::replace(&mut self.free, index);
        let entry = self.entry(index);
        entry.next = free;
        entry.state = JobState::Done;
        entry.job.take().expect("only an entry in use is released")
    }

    fn link_last(&mut self, index: u32) {
        let last = std::mem::replace(&mut self.tail, index);
        self.entry(index).previous = last;
        self.entry(index).next = NONE;
        match last {
            NONE => self.head = index,
            last => self.entry(last).next = index,
        }
        self.queued += 1;
    }

    fn link_first(&mut self, index: u32) {
        let first = std::mem::replace(&mut self.head, index);
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
    use super::*;

    const WORKER: WorkerId = WorkerId(0);

    fn job() -> Job {
        let frame = crate::wire::encode_call(0, "t", &(), crate::wire::MAX_FRAME)
            .expect("() can be encoded");
        Job::new("t", (frame, Vec::new()), false, Box::new(|_| ()))
    }

    fn taken(backlog: &mut Backlog) -> Vec<u64> {
        std::iter::from_fn(|| backlog.take(WORKER))
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
        let large =
            crate::wire::encode_call(0, "t", &("x".repeat(10_000),), crate::wire::MAX_FRAME);
        let large = (large.expect("a call"), Vec::new());
        let large = Job::new("t", large, false, Box::new(|_| ()));
        backlog.push(job());
        backlog.push(large);
        assert_eq!(backlog.next_with_others(), Some("t"));
        assert!(backlog.take(WORKER).expect("it waits").with_others);
        assert_eq!(backlog.next_with_others(), None);
        assert!(!backlog.take(WORKER).expect("it waits").with_others);
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
        let call = backlog.take(WORKER).expect("two wait");
        backlog.resend(call.key, (call.frame, call.attachments), true);
        assert_eq!(backlog.state(first), JobState::Queued);
        assert_eq!(taken(&mut backlog), [first.id, second.id]);
        assert_eq!(backlog.resends(first), 1);
    }

    #[test]
    fn the_table_is_used_again() {
        let mut backlog = Backlog::new();
        for _ in 0..1000 {
            let key = backlog.push(job());
            backlog.take(WORKER);
            drop(backlog.take_out(key));
        }
        assert_eq!(backlog.entries.len(), 1);
    }
}

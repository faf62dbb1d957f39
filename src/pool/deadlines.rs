//! What is to happen to jobs at some time: the supervisor does it.
//!
//! A job that is done before leaves its entry behind, and the entry is passed over when its time comes. When there are
//! many such, they are swept out, so that the heap is never more than about twice as large as what it is for.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Instant;

use super::job::JobKey;

/// What is to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// The job has waited too long, if it still waits.
    Expire(JobKey),
    /// The job is to be cancelled, wherever it is.
    Cancel(JobKey),
}

impl Due {
    pub(super) fn job(self) -> JobKey {
        match self {
            Due::Expire(job) | Due::Cancel(job) => job,
        }
    }
}

pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<Entry>>,
    /// When it has grown to this, it is swept.
    sweep_at: usize,
}

struct Entry {
    at: Instant,
    due: Due,
}

const SMALL: usize = 64;

impl Deadlines {
    pub(super) fn new() -> Self {
        Deadlines {
            heap: BinaryHeap::new(),
            sweep_at: SMALL,
        }
    }

    /// Adds one; whether it is now the first. `is_pending` says of a job whether it is not done.
    pub(super) fn add(
        &mut self,
        at: Instant,
        due: Due,
        mut is_pending: impl FnMut(JobKey) -> bool,
    ) -> bool {
        if self.heap.len() >= self.sweep_at {
            self.heap
                .retain(|Reverse(entry)| is_pending(entry.due.job()));
            self.sweep_at = SMALL.max(2 * self.heap.len());
        }
        self.heap.push(Reverse(Entry { at, due }));
        self.first() == Some(at)
    }

    /// Takes out one that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Due> {
        match self.first() {
            Some(at) if at <= now => self.heap.pop().map(|Reverse(entry)| entry.due),
            _ => None,
        }
    }

    /// When the first one is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn job(id: u64) -> JobKey {
        JobKey { index: 0, id }
    }

    #[test]
    fn they_come_out_in_their_order_and_not_before() {
        let (mut deadlines, now) = (Deadlines::new(), Instant::now());
        let ms = Duration::from_millis(1);
        assert!(deadlines.add(now + 2 * ms, Due::Expire(job(2)), |_| true));
        assert!(!deadlines.add(now + 3 * ms, Due::Cancel(job(3)), |_| true));
        assert!(deadlines.add(now + ms, Due::Cancel(job(1)), |_| true));
        assert_eq!(deadlines.pop_due(now), None);
        assert_eq!(deadlines.pop_due(now + 2 * ms), Some(Due::Cancel(job(1))));
        assert_eq!(deadlines.pop_due(now + 2 * ms), Some(Due::Expire(job(2))));
        assert_eq!(deadlines.pop_due(now + 2 * ms), None);
        assert_eq!(deadlines.first(), Some(now + 3 * ms));
    }

    #[test]
    fn what_is_done_does_not_pile_up() {
        let (mut deadlines, now) = (Deadlines::new(), Instant::now());
        for id in 0..100_000 {
            // Ten jobs are pending at any time.
            deadlines.add(now, Due::Expire(job(id)), |job| job.id + 10 > id);
        }
        assert!(
            deadlines.heap.len() <= 2 * SMALL,
            "{}",
            deadlines.heap.len()
        );
    }
}

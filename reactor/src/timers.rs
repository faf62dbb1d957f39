//! Calls to be made later: `call_later` and what a [`DelayedCall`] may do.
//!
//! The callbacks live in slots that are used again; what orders them holds only (when, sequence, slot). A new call is
//! *staged* in a plain list until the loop next looks, so that one that is cancelled before that never reaches the
//! heap. What is cancelled or moved later leaves its heap entry behind; such an entry is recognised when it comes to the
//! top, and all are swept out together once they are half of the heap. A heap that met them one by one took twice as
//! long for a million timers of which nine in ten were cancelled.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;
use std::rc::Rc;
use std::time::{Duration, Instant};

use errback_deferred::{DelayedCall, DelayedCalls, NotActive};

use crate::reports::contained;

type Call = Box<dyn FnOnce()>;

/// The timers of one reactor.
pub(crate) struct Timers {
    /// Where this clock counts from.
    origin: Instant,
    queue: RefCell<Queue>,
}

#[derive(Default)]
struct Queue {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Entries that the heap has not seen yet, as they were when they were made.
    staged: Vec<Entry>,
    heap: BinaryHeap<Reverse<Entry>>,
    next_sequence: u64,
    closed: bool,
}

/// One call, or a free place. 40 bytes: a program may have a million of them.
struct Slot {
    /// `Some` as long as the call is still to be made.
    call: Option<Call>,
    due: Nanos,
    /// The order of `call_later`: it settles ties, and neither `reset` nor `delay` change it.
    sequence: u64,
    /// How many calls this slot has held before.
    generation: u32,
    /// How the last sixteen of those ended, the latest in the lowest bit: 1 is cancelled, 0 is called.
    cancelled: u16,
    /// Which of the entries for this call counts; raised when the call is moved to an earlier time.
    version: u16,
}

/// What the heap orders by: the time, then the order of `call_later`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    due: Nanos,
    sequence: u64,
    slot: u32,
    version: u16,
}

/// Nanoseconds since the origin; `NEVER` stands for everything that does not fit, from the year 2610 on.
type Nanos = u64;
const NEVER: Nanos = Nanos::MAX;

/// Below this many entries a heap is not worth sweeping.
const SMALL: usize = 64;

impl Timers {
    pub(crate) fn new() -> Rc<Timers> {
        Rc::new(Timers {
            origin: Instant::now(),
            queue: RefCell::default(),
        })
    }

    pub(crate) fn seconds(&self) -> Duration {
        self.origin.elapsed()
    }

    pub(crate) fn call_later(self: &Rc<Self>, delay: Duration, call: Call) -> DelayedCall {
        let due = self.due_in(delay);
        let mut queue = self.queue.borrow_mut();
        let id = queue.insert(due, call);
        // After the loop has ended nothing is ever called; what the call owns is let go of at once.
        let unwanted = if queue.closed {
            queue.end(slot_of(id), true)
        } else {
            None
        };
        drop(queue);
        drop(unwanted);
        DelayedCall::new(self.clone(), id)
    }

    /// Makes the calls that are due now, in order of time and then of `call_later`.
    ///
    /// Those that they add wait for the next turn even when their delay is zero, so that timers cannot keep the loop
    /// from its sources: they are staged, and only the heap is looked at here.
    pub(crate) fn run_due(&self) {
        self.queue.borrow_mut().settle();
        let now = self.now();
        loop {
            let Some(call) = self.queue.borrow_mut().take_due(now) else {
                return;
            };
            contained("a delayed call", call);
        }
    }

    /// How long the loop may sleep: `None` is until something else happens.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let mut queue = self.queue.borrow_mut();
        queue.settle();
        match queue.next_due()? {
            NEVER => None,
            due => Some(Duration::from_nanos(due.saturating_sub(self.now()))),
        }
    }

    /// Takes back every call, in the order in which they would have been made, and each later one at once.
    pub(crate) fn close(&self) {
        for call in self.queue.borrow_mut().close() {
            contained("dropping a delayed call", || drop(call));
        }
    }

    fn now(&self) -> Nanos {
        nanos(self.origin.elapsed())
    }

    fn due_in(&self, delay: Duration) -> Nanos {
        self.now().saturating_add(nanos(delay))
    }

    /// Moves a call to the time that `when` makes of its present one.
    fn move_to(&self, id: u64, when: impl FnOnce(Nanos) -> Nanos) -> Result<(), NotActive> {
        let mut queue = self.queue.borrow_mut();
        let slot = queue.find(id)?;
        let due = when(queue.slots[slot].due);
        queue.move_to(slot, due);
        Ok(())
    }
}

impl DelayedCalls for Timers {
    fn cancel(&self, id: u64) -> Result<(), NotActive> {
        let mut queue = self.queue.borrow_mut();
        let slot = queue.find(id)?;
        let call = queue.end(slot, true);
        drop(queue); // the call may own anything, and its drop may call us
        drop(call);
        Ok(())
    }

    fn reset(&self, id: u64, delay: Duration) -> Result<(), NotActive> {
        let due = self.due_in(delay);
        self.move_to(id, |_| due)
    }

    fn delay(&self, id: u64, delay: Duration) -> Result<(), NotActive> {
        self.move_to(id, |due| due.saturating_add(nanos(delay)))
    }

    fn due(&self, id: u64) -> Result<Duration, NotActive> {
        let queue = self.queue.borrow();
        queue
            .find(id)
            .map(|slot| Duration::from_nanos(queue.slots[slot].due))
    }
}

impl Queue {
    fn insert(&mut self, due: Nanos, call: Call) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                call: None,
                due: 0,
                sequence: 0,
                generation: 0,
                cancelled: 0,
                version: 0,
            });
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 timers fit into memory")
        });
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let slot = &mut self.slots[index as usize];
        slot.call = Some(call);
        slot.due = due;
        slot.sequence = sequence;
        self.staged.push(Entry {
            due,
            sequence,
            slot: index,
            version: slot.version,
        });
        u64::from(index) << 32 | u64::from(slot.generation)
    }

    /// The slot of a call that is still to be made.
    fn find(&self, id: u64) -> Result<usize, NotActive> {
        let slot = &self.slots[slot_of(id)];
        // The low half of the id is the generation.
        let age = slot.generation.wrapping_sub(id as u32);
        match age {
            0 => Ok(slot_of(id)),
            1..=16 if slot.cancelled >> (age - 1) & 1 == 1 => Err(NotActive::AlreadyCancelled),
            // After sixteen more calls in the same slot we no longer know, and say what is true of most.
            _ => Err(NotActive::AlreadyCalled),
        }
    }

    /// Frees the slot and notes how its call ended.
    fn end(&mut self, index: usize, cancelled: bool) -> Option<Call> {
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        slot.cancelled = slot.cancelled << 1 | u16::from(cancelled);
        self.free.push(index as u32);
        slot.call.take()
    }

    fn move_to(&mut self, index: usize, due: Nanos) {
        let slot = &mut self.slots[index];
        let earlier = due < slot.due;
        slot.due = due;
        if earlier {
            slot.version = slot.version.wrapping_add(1);
            self.staged.push(Entry {
                due,
                sequence: slot.sequence,
                slot: index as u32,
                version: slot.version,
            });
        } // else its entry comes to the top too early and is put back then (`take_due`)
    }

    /// Brings the heap up to date: takes in what was staged, and sweeps when most of it is dead.
    fn settle(&mut self) {
        if !self.staged.is_empty() {
            let staged = mem::take(&mut self.staged);
            let slots = &self.slots;
            self.heap.extend(
                staged
                    .iter()
                    .filter_map(|entry| refreshed(slots, entry))
                    .map(Reverse),
            );
            if staged.capacity() <= SMALL * SMALL {
                self.staged = staged;
                self.staged.clear();
            } // else it was a burst: give the memory back
        }
        let active = self.slots.len() - self.free.len();
        if self.heap.len() > SMALL + 2 * active {
            let slots = &self.slots;
            self.heap
                .retain(|Reverse(entry)| refreshed(slots, entry).is_some());
            self.heap.shrink_to(SMALL + 2 * active);
        }
    }

    /// The time of the next call.
    fn next_due(&mut self) -> Option<Nanos> {
        loop {
            let Reverse(top) = *self.heap.peek()?;
            match refreshed(&self.slots, &top) {
                Some(entry) if entry.due == top.due => return Some(top.due),
                entry => self.replace_top(entry),
            }
        }
    }

    /// The next call that is due at `now`; it counts as called from here on, as in Twisted.
    fn take_due(&mut self, now: Nanos) -> Option<Call> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.end(entry.slot as usize, false)
    }

    /// The top is stale: its call is over (`None`) or due later.
    fn replace_top(&mut self, entry: Option<Entry>) {
        let mut top = self
            .heap
            .peek_mut()
            .expect("the caller has just looked at it");
        match entry {
            Some(entry) => *top = Reverse(entry),
            None => drop(std::collections::binary_heap::PeekMut::pop(top)),
        }
    }

    fn close(&mut self) -> Vec<Call> {
        self.closed = true;
        let mut active: Vec<usize> = (0..self.slots.len())
            .filter(|i| self.slots[*i].call.is_some())
            .collect();
        active.sort_by_key(|i| (self.slots[*i].due, self.slots[*i].sequence));
        self.heap = BinaryHeap::new();
        self.staged = Vec::new();
        active
            .into_iter()
            .filter_map(|slot| self.end(slot, true))
            .collect()
    }
}

/// The entry as it should be now; `None` when its call is over or has a newer entry.
fn refreshed(slots: &[Slot], entry: &Entry) -> Option<Entry> {
    let slot = &slots[entry.slot as usize];
    // Sequence numbers are never used twice, so they tell the calls of one slot apart.
    let counts =
        slot.sequence == entry.sequence && slot.version == entry.version && slot.call.is_some();
    counts.then_some(Entry {
        due: slot.due,
        ..*entry
    })
}

fn slot_of(id: u64) -> usize {
    (id >> 32) as usize
}

fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (Rc<RefCell<Vec<u32>>>, impl Fn(u32) -> Call) {
        let log = Rc::new(RefCell::new(Vec::new()));
        let entries = log.clone();
        (log, move |n| {
            let entries = entries.clone();
            Box::new(move || entries.borrow_mut().push(n))
        })
    }

    /// Sets the clock forward: everything is now this much more due.
    fn advance(timers: &mut Rc<Timers>, by: Duration) {
        let timers = Rc::get_mut(timers).expect("no DelayedCall is held across `advance`");
        timers.origin -= by;
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn calls_due_at_the_same_time_are_made_in_the_order_of_call_later() {
        let mut timers = Timers::new();
        let (log, note) = log();
        let mut queue = timers.queue.borrow_mut();
        for n in 0..100 {
            queue.insert(7, note(n));
        }
        drop(queue);
        advance(&mut timers, SECOND);
        timers.run_due();
        assert_eq!(*log.borrow(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn reset_and_delay_keep_the_order_of_call_later() {
        let timers = Timers::new();
        let (log, note) = log();
        let mut queue = timers.queue.borrow_mut();
        let ids: Vec<u64> = (0..4)
            .map(|n| queue.insert(u64::from(10 * n), note(n)))
            .collect();
        queue.settle();
        // All to the same time: some earlier, some later, in another order.
        for n in [2, 0, 3, 1] {
            let slot = queue.find(ids[n]).unwrap();
            queue.move_to(slot, 15);
        }
        queue.settle();
        while let Some(call) = queue.take_due(15) {
            call();
        }
        assert_eq!(*log.borrow(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_call_that_adds_a_call_without_delay_waits_for_the_next_turn() {
        let timers = Timers::new();
        let count = Rc::new(std::cell::Cell::new(0));
        fn again(timers: Rc<Timers>, count: Rc<std::cell::Cell<u32>>) {
            count.set(count.get() + 1);
            let next = timers.clone();
            timers.call_later(Duration::ZERO, Box::new(move || again(next, count)));
        }
        again(timers.clone(), count.clone());
        for turn in 2..5 {
            timers.run_due();
            assert_eq!(count.get(), turn);
        }
        timers.close();
    }

    #[test]
    fn a_handle_knows_how_its_call_ended() {
        let timers = Timers::new();
        let called = timers.call_later(Duration::ZERO, Box::new(|| ()));
        timers.run_due();
        // The same slot, several times over.
        let cancelled = timers.call_later(SECOND, Box::new(|| ()));
        cancelled.cancel().unwrap();
        let active = timers.call_later(SECOND, Box::new(|| ()));
        assert_eq!(timers.queue.borrow().slots.len(), 1);
        assert_eq!(called.cancel(), Err(NotActive::AlreadyCalled));
        assert_eq!(cancelled.reset(SECOND), Err(NotActive::AlreadyCancelled));
        assert_eq!(cancelled.delay(SECOND), Err(NotActive::AlreadyCancelled));
        assert!(active.active());
    }

    #[test]
    fn an_endless_delay_neither_overflows_nor_wakes_the_loop() {
        let timers = Timers::new();
        let call = timers.call_later(Duration::MAX, Box::new(|| unreachable!()));
        call.delay(Duration::MAX).unwrap();
        assert_eq!(timers.patience(), None);
        call.reset(SECOND).unwrap();
        assert!(timers.patience().unwrap() <= SECOND);
    }

    #[test]
    fn cancelled_calls_do_not_stay_in_the_heap() {
        let timers = Timers::new();
        let calls: Vec<_> = (0..10_000)
            .map(|_| timers.call_later(SECOND, Box::new(|| ())))
            .collect();
        timers.patience();
        assert_eq!(timers.queue.borrow().heap.len(), 10_000);
        calls.iter().for_each(|call| call.cancel().unwrap());
        timers.patience();
        assert!(timers.queue.borrow().heap.len() <= SMALL);
    }

    #[test]
    fn moving_a_call_to_and_fro_does_not_fill_the_heap() {
        let timers = Timers::new();
        let call = timers.call_later(SECOND, Box::new(|| ()));
        for _ in 0..10_000 {
            call.reset(SECOND).unwrap();
            call.reset(2 * SECOND).unwrap();
            timers.patience();
        }
        assert!(timers.queue.borrow().heap.len() <= SMALL + 2);
    }

    #[test]
    fn a_call_may_cancel_and_move_others_of_the_same_turn() {
        let timers = Timers::new();
        let (log, note) = log();
        let others: Rc<RefCell<Vec<DelayedCall>>> = Rc::default();
        let seen = others.clone();
        timers.call_later(
            Duration::ZERO,
            Box::new(move || {
                seen.borrow()[0].cancel().unwrap();
                seen.borrow()[1].reset(SECOND).unwrap();
            }),
        );
        for n in 0..3 {
            others
                .borrow_mut()
                .push(timers.call_later(Duration::ZERO, note(n)));
        }
        timers.run_due();
        assert_eq!(*log.borrow(), [2]);
        assert!(others.borrow()[1].active());
        timers.close();
        assert_eq!(
            others.borrow()[1].cancel(),
            Err(NotActive::AlreadyCancelled)
        );
    }

    #[test]
    fn the_order_is_that_of_a_sorted_list_whatever_is_done() {
        let mut random = 0x9E37_79B9_7F4A_7C15u64;
        let mut below = move |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        for _ in 0..200 {
            let timers = Timers::new();
            let (log, note) = log();
            let mut queue = timers.queue.borrow_mut();
            let mut model: Vec<(u64, u32, u64)> = Vec::new(); // due, number, id
            for n in 0..300 {
                let due = below(50);
                model.push((due, n, queue.insert(due, note(n))));
                let other = below(model.len() as u64) as usize;
                match below(4) {
                    0 => {
                        let (_, _, id) = model.remove(other);
                        let slot = queue.find(id).unwrap();
                        queue.end(slot, true);
                    }
                    1 | 2 => {
                        model[other].0 = below(50);
                        let slot = queue.find(model[other].2).unwrap();
                        queue.move_to(slot, model[other].0);
                    }
                    _ => queue.settle(),
                }
            }
            queue.settle();
            while let Some(call) = queue.take_due(50) {
                call();
            }
            model.sort();
            assert_eq!(*log.borrow(), model.iter().map(|m| m.1).collect::<Vec<_>>());
        }
    }
}

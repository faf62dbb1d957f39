//! Calls to be made later: `call_later` and what a [`DelayedCall`] may do.
//!
//! The callbacks live in slots that are used again; what orders them holds only (when, sequence, slot). A new call is
//! *staged*, its slot noted in a plain list, until the loop next looks, so that one that is cancelled before that never
//! comes into the order. What is cancelled or moved later leaves its entry behind; such an entry is recognised when its
//! turn comes, and the order is made anew from the slots once most of it is of that kind. A heap that met them one by one
//! took twice as long for a million timers of which nine in ten were cancelled.
//!
//! Many that are staged together are sorted, and then each is taken from the end of a list; a few go to a heap beside it,
//! and the earlier of both ends is next. Taking a hundred thousand from a heap costs several times what sorting them does.
//!
//! A million timers are also a million cache lines and their page faults: hence the numbers of 32 bits, and what is done
//! when they have been used up (`renumber`, `end`).

use std::cell::{Cell, RefCell, RefMut};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint;
use std::mem;
use std::rc::Rc;
use std::time::{Duration, Instant};

use errback_deferred::event_loop::SmallCall as Call;
use errback_deferred::{DelayedCall, DelayedCalls, NotActive};

use crate::reports::contained;

/// The timers of one reactor.
pub(crate) struct Timers {
    /// Where this clock counts from.
    origin: Instant,
    queue: RefCell<Queue>,
    /// When calls were last made.
    made: Cell<Nanos>,
}

struct Queue {
    slots: Vec<Slot>,
    /// The slot that the next call gets; free ones are a list through `due`.
    free: u32,
    /// How many slots hold a call.
    active: usize,
    /// Slots whose calls have no entry yet, or are due earlier than it says; each once (`History::is_staged`).
    staged: Vec<u32>,
    /// Every active call that is not staged has an entry here or in the heap that is not later than its time. The earliest
    /// is the last.
    sorted: Vec<Entry>,
    heap: BinaryHeap<Reverse<Entry>>,
    next_sequence: u32,
    closed: bool,
}

/// One call, or a free place. 40 bytes, a small closure included: a program may have a million of them.
struct Slot {
    /// `Some` as long as the call is still to be made.
    call: Option<Call>,
    /// When; in a free slot, the next free one.
    due: Nanos,
    /// The order of `call_later`: it settles ties, and neither `reset` nor `delay` change it.
    sequence: u32,
    history: History,
}

/// How many calls a slot has held before (24 bits), how the last seven of them ended, the latest in the lowest bit (1 is
/// cancelled, 0 is called), and at the top whether the slot is in the list of staged ones.
#[derive(Clone, Copy, Default)]
struct History(u32);

/// What orders the calls: the time, then the order of `call_later`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    due: Nanos,
    sequence: u32,
    slot: u32,
}

/// Nanoseconds since the origin; `NEVER` stands for everything that does not fit, from the year 2610 on.
type Nanos = u64;
const NEVER: Nanos = Nanos::MAX;

/// No slot.
const NONE: u32 = u32::MAX;

/// Below this many entries the order is not worth sweeping, nor sorting.
const SMALL: usize = 64;

/// So many slots are read ahead at most, so that they are still in the cache when their turn comes.
const WARM: usize = 64;

/// Timers do not wake the loop more often than this: those that come thick and fast are made together. (As the kernel
/// does with other sleeps: see `PR_SET_TIMERSLACK` in prctl(2).)
const GAP: Nanos = 50_000;

impl Timers {
    pub(crate) fn new() -> Rc<Timers> {
        Rc::new(Timers {
            origin: Instant::now(),
            queue: RefCell::default(),
            made: Cell::new(0),
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
    /// from its sources: they are staged, and only the order is looked at here.
    pub(crate) fn run_due(&self) {
        if self.settled().entries() == 0 {
            return; // before the clock is read
        }
        let now = self.now();
        self.queue.borrow().warm_up(now);
        loop {
            let Some(call) = self.queue.borrow_mut().take_due(now) else {
                return;
            };
            self.made.set(now);
            contained("a delayed call", || call.call());
        }
    }

    /// Whether a call is due now.
    pub(crate) fn is_due(&self) -> bool {
        let due = self.settled().next_due();
        due.is_some_and(|due| due <= self.now())
    }

    /// How long the loop may sleep: `None` is until something else happens.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let due = self.settled().next_due().filter(|due| *due != NEVER)?;
        let now = self.now();
        let wake = match due > now {
            true => due.max(self.made.get().saturating_add(GAP)),
            false => now,
        };
        Some(Duration::from_nanos(wake.saturating_sub(now)))
    }

    /// Takes back every call, in the order in which they would have been made, and each later one at once.
    pub(crate) fn close(&self) {
        for call in self.queue.borrow_mut().close() {
            contained("dropping a delayed call", || drop(call));
        }
    }

    fn settled(&self) -> RefMut<'_, Queue> {
        let mut queue = self.queue.borrow_mut();
        queue.settle();
        queue
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

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            slots: Vec::new(),
            free: NONE,
            active: 0,
            staged: Vec::new(),
            sorted: Vec::new(),
            heap: BinaryHeap::new(),
            next_sequence: 0,
            closed: false,
        }
    }
}

impl Queue {
    fn insert(&mut self, due: Nanos, call: Call) -> u64 {
        let sequence = self.take_sequence();
        let index = self.take_slot();
        let slot = &mut self.slots[index as usize];
        slot.call = Some(call);
        slot.due = due;
        slot.sequence = sequence;
        let generation = slot.history.generation();
        self.active += 1;
        self.stage(index);
        u64::from(index) << 32 | u64::from(generation)
    }

    fn take_slot(&mut self) -> u32 {
        if self.free == NONE {
            self.slots.push(Slot {
                call: None,
                due: 0,
                sequence: 0,
                history: History::default(),
            });
            return u32::try_from(self.slots.len() - 1)
                .expect("fewer than 2^32 timers fit into memory");
        }
        let index = self.free;
        self.free = self.slots[index as usize].due as u32;
        index
    }

    fn take_sequence(&mut self) -> u32 {
        if self.next_sequence == u32::MAX {
            self.renumber();
        }
        self.next_sequence += 1;
        self.next_sequence - 1
    }

    /// Gives the active calls new numbers, in the order of the old ones. Every four thousand million calls.
    fn renumber(&mut self) {
        let mut active: Vec<usize> = self.active_slots().collect();
        active.sort_unstable_by_key(|i| self.slots[*i].sequence);
        self.next_sequence = 0;
        for index in active {
            self.slots[index].sequence = self.next_sequence;
            self.next_sequence += 1;
        }
        self.rebuild();
    }

    fn active_slots(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.slots.len()).filter(|i| self.slots[*i].call.is_some())
    }

    /// The slot of a call that is still to be made.
    fn find(&self, id: u64) -> Result<usize, NotActive> {
        let slot = &self.slots[slot_of(id)];
        // The low half of the id is the generation.
        match slot.history.ended(id as u32) {
            None => Ok(slot_of(id)),
            Some(true) => Err(NotActive::AlreadyCancelled),
            Some(false) => Err(NotActive::AlreadyCalled),
        }
    }

    /// Notes how the slot's call ended, and frees it.
    fn end(&mut self, index: usize, cancelled: bool) -> Option<Call> {
        let slot = &mut self.slots[index];
        let call = slot.call.take();
        slot.history.end(cancelled);
        self.active -= 1;
        // One whose generations have been used up (16 million) stays empty: an old handle must not find a new call.
        if slot.history.generation() < History::LAST {
            slot.due = Nanos::from(self.free);
            self.free = index as u32;
        }
        call
    }

    fn move_to(&mut self, index: usize, due: Nanos) {
        let slot = &mut self.slots[index];
        let earlier = due < slot.due;
        slot.due = due;
        if earlier {
            self.stage(index as u32);
        } // else its entry comes to the top too early and is put back then (`next_due`)
    }

    fn stage(&mut self, index: u32) {
        let history = &mut self.slots[index as usize].history;
        if history.is_staged() {
            return;
        }
        history.set_staged(true);
        if self.staged.len() == self.staged.capacity() {
            // Room in the order too, now: a large allocation right after a million calls were taken back makes glibc's
            // allocator tidy up all that they owned first, and keeps the loop waiting meanwhile.
            self.staged.reserve(1);
            self.sorted.reserve(self.staged.capacity());
        }
        self.staged.push(index);
    }

    /// How many entries there are, dead ones included.
    fn entries(&self) -> usize {
        self.sorted.len() + self.heap.len()
    }

    /// Brings the order up to date: takes in what was staged, and makes it anew when most of it is dead.
    fn settle(&mut self) {
        if !self.staged.is_empty() {
            self.take_in();
        }
        // A part of the slots too, because all of them are looked at.
        if self.entries() > SMALL + 2 * self.active + self.slots.len() / 8 {
            self.rebuild();
        }
    }

    fn take_in(&mut self) {
        let staged = mem::take(&mut self.staged);
        // What is sorted already is passed over once for each list that is added: not for a short one.
        let many = staged.len() > SMALL && staged.len() > self.sorted.len() / 4;
        let slots = &mut self.slots;
        let fresh = staged.iter().filter_map(|index| {
            let slot = &mut slots[*index as usize];
            slot.history.set_staged(false);
            slot.call.is_some().then(|| slot.entry(*index))
        });
        if many {
            let before = self.sorted.len();
            self.sorted.extend(fresh);
            sort(&mut self.sorted, before);
        } else {
            self.heap.extend(fresh.map(Reverse));
        }
        if staged.capacity() <= SMALL * SMALL {
            self.staged = staged;
            self.staged.clear();
        } // else it was a burst: give the memory back
    }

    /// Makes the order anew, with one entry for each active call that is not staged.
    fn rebuild(&mut self) {
        self.heap = BinaryHeap::new();
        self.sorted.clear();
        let slots = self.slots.iter().zip(0..);
        self.sorted.extend(
            slots
                .filter(|(slot, _)| slot.call.is_some() && !slot.history.is_staged())
                .map(|(slot, index)| slot.entry(index)),
        );
        self.sorted.shrink_to(SMALL + 2 * self.active);
        sort(&mut self.sorted, 0);
    }

    /// The time of the next call that has an entry.
    fn next_due(&mut self) -> Option<Nanos> {
        loop {
            let next = self.peek()?;
            match self.refreshed(&next) {
                Some(entry) if entry.due == next.due => return Some(next.due),
                // It is stale: its call is over (`None`) or due later.
                entry => {
                    self.pop();
                    self.heap.extend(entry.map(Reverse));
                }
            }
        }
    }

    fn peek(&self) -> Option<Entry> {
        let sorted = self.sorted.last().copied();
        match self.heap.peek() {
            None => sorted,
            Some(Reverse(top)) => Some(sorted.map_or(*top, |entry| entry.min(*top))),
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let next = self.peek()?;
        if self.sorted.last() == Some(&next) {
            self.sorted.pop()
        } else {
            self.heap.pop().map(|Reverse(entry)| entry)
        }
    }

    /// Reads from the slots whose calls are about to be made. Where there are many of them no cache has them, and read
    /// one by one, each between two calls, each would be waited for by itself.
    fn warm_up(&self, now: Nanos) {
        let due = self.sorted.iter().rev().take(WARM);
        let due = due.take_while(|entry| entry.due <= now);
        let read = due.fold(0, |read, entry| {
            read ^ self.slots[entry.slot as usize].sequence
        });
        hint::black_box(read);
    }

    /// The entry as it should be now; `None` when its call is over.
    ///
    /// A call that was moved to and fro may have several. The first that comes to the top does its work.
    fn refreshed(&self, entry: &Entry) -> Option<Entry> {
        let slot = &self.slots[entry.slot as usize];
        let counts = slot.sequence == entry.sequence && slot.call.is_some();
        counts.then(|| slot.entry(entry.slot))
    }

    /// The next call that is due at `now`; it counts as called from here on, as in Twisted.
    fn take_due(&mut self, now: Nanos) -> Option<Call> {
        if self.next_due()? > now {
            return None;
        }
        let entry = self.pop()?;
        self.end(entry.slot as usize, false)
    }

    fn close(&mut self) -> Vec<Call> {
        self.closed = true;
        let mut active: Vec<usize> = self.active_slots().collect();
        active.sort_by_key(|i| (self.slots[*i].due, self.slots[*i].sequence));
        self.heap = BinaryHeap::new();
        self.sorted = Vec::new();
        self.staged = Vec::new();
        active
            .into_iter()
            .filter_map(|slot| self.end(slot, true))
            .collect()
    }
}

/// Sorts entries, the first `sorted` of which are in order already.
fn sort(entries: &mut [Entry], sorted: usize) {
    let key = |entry: &Entry| Reverse(entry.key());
    match sorted {
        0 => entries.sort_unstable_by_key(key),
        // It finds what is in order, and merges.
        _ => entries.sort_by_key(key),
    }
}

impl Entry {
    /// Orders as the entry does, in one comparison.
    fn key(&self) -> u128 {
        u128::from(self.due) << 64 | u128::from(self.sequence) << 32 | u128::from(self.slot)
    }
}

impl Slot {
    fn entry(&self, index: u32) -> Entry {
        Entry {
            due: self.due,
            sequence: self.sequence,
            slot: index,
        }
    }
}

impl History {
    const STAGED: u32 = 1 << 31;
    const ENDS: u32 = 7;
    /// The last generation; it is never given out.
    const LAST: u32 = (1 << (31 - Self::ENDS)) - 1;

    fn generation(self) -> u32 {
        (self.0 & !Self::STAGED) >> Self::ENDS
    }

    fn end(&mut self, cancelled: bool) {
        let ends = (self.0 << 1 | u32::from(cancelled)) & ((1 << Self::ENDS) - 1);
        let generation = self.generation() + 1;
        self.0 = self.0 & Self::STAGED | generation << Self::ENDS | ends;
    }

    /// Whether the call of that generation was cancelled, if it has ended.
    fn ended(self, generation: u32) -> Option<bool> {
        match self.generation() - generation {
            0 => None,
            // After some more calls in the same slot we no longer know, and say what is true of most.
            age => Some(age <= Self::ENDS && self.0 >> (age - 1) & 1 == 1),
        }
    }

    fn is_staged(self) -> bool {
        self.0 & Self::STAGED != 0
    }

    fn set_staged(&mut self, staged: bool) {
        self.0 = self.0 & !Self::STAGED | u32::from(staged) << 31;
    }
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
            Call::new(move || entries.borrow_mut().push(n))
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
            call.call();
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
            timers.call_later(Duration::ZERO, Call::new(move || again(next, count)));
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
        let called = timers.call_later(Duration::ZERO, Call::new(|| ()));
        timers.run_due();
        // The same slot, several times over.
        let cancelled = timers.call_later(SECOND, Call::new(|| ()));
        cancelled.cancel().unwrap();
        let active = timers.call_later(SECOND, Call::new(|| ()));
        assert_eq!(timers.queue.borrow().slots.len(), 1);
        assert_eq!(called.cancel(), Err(NotActive::AlreadyCalled));
        assert_eq!(cancelled.reset(SECOND), Err(NotActive::AlreadyCancelled));
        assert_eq!(cancelled.delay(SECOND), Err(NotActive::AlreadyCancelled));
        assert!(active.active());
    }

    #[test]
    fn an_endless_delay_neither_overflows_nor_wakes_the_loop() {
        let timers = Timers::new();
        let call = timers.call_later(Duration::MAX, Call::new(|| unreachable!()));
        call.delay(Duration::MAX).unwrap();
        assert_eq!(timers.patience(), None);
        call.reset(SECOND).unwrap();
        assert!(timers.patience().unwrap() <= SECOND);
    }

    #[test]
    fn cancelled_calls_do_not_stay_in_the_heap() {
        let timers = Timers::new();
        let calls: Vec<_> = (0..10_000)
            .map(|_| timers.call_later(SECOND, Call::new(|| ())))
            .collect();
        timers.patience();
        assert_eq!(timers.queue.borrow().entries(), 10_000);
        calls.iter().for_each(|call| call.cancel().unwrap());
        timers.patience();
        assert!(timers.queue.borrow().entries() <= SMALL);
    }

    #[test]
    fn moving_a_call_to_and_fro_does_not_fill_the_heap() {
        let timers = Timers::new();
        let call = timers.call_later(SECOND, Call::new(|| ()));
        for _ in 0..10_000 {
            call.reset(SECOND).unwrap();
            call.reset(2 * SECOND).unwrap();
            timers.patience();
        }
        assert!(timers.queue.borrow().entries() <= SMALL + 2);
    }

    #[test]
    fn a_slot_that_is_used_many_times_in_a_turn_is_staged_once() {
        let timers = Timers::new();
        for _ in 0..10_000 {
            let call = timers.call_later(SECOND, Call::new(|| ()));
            call.cancel().unwrap();
        }
        let _last = timers.call_later(SECOND, Call::new(|| ()));
        assert_eq!(timers.queue.borrow().staged.len(), 1);
        timers.patience();
        assert_eq!(timers.queue.borrow().entries(), 1);
    }

    #[test]
    fn when_the_numbers_are_used_up_the_order_stays() {
        let timers = Timers::new();
        let (log, note) = log();
        let mut queue = timers.queue.borrow_mut();
        queue.next_sequence = u32::MAX - 5;
        for n in 0..10 {
            queue.insert(7, note(n));
            if n == 2 {
                queue.settle();
            }
        }
        assert!(queue.next_sequence < 100);
        queue.settle();
        assert_eq!(queue.entries(), 10);
        while let Some(call) = queue.take_due(7) {
            call.call();
        }
        assert_eq!(*log.borrow(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_slot_whose_generations_are_used_up_is_not_used_again() {
        let timers = Timers::new();
        drop(timers.call_later(SECOND, Call::new(|| ())));
        let mut queue = timers.queue.borrow_mut();
        queue.end(0, true);
        queue.slots[0].history.0 = (History::LAST - 1) << History::ENDS;
        drop(queue);
        let last = timers.call_later(SECOND, Call::new(|| ()));
        last.cancel().unwrap();
        let other = timers.call_later(SECOND, Call::new(|| ()));
        assert_eq!(timers.queue.borrow().slots.len(), 2);
        assert_eq!(last.cancel(), Err(NotActive::AlreadyCancelled));
        assert!(other.active());
    }

    #[test]
    fn a_call_may_cancel_and_move_others_of_the_same_turn() {
        let timers = Timers::new();
        let (log, note) = log();
        let others: Rc<RefCell<Vec<DelayedCall>>> = Rc::default();
        let seen = others.clone();
        timers.call_later(
            Duration::ZERO,
            Call::new(move || {
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
        for round in 0..200 {
            // In every other round many are staged before the order is looked at, and are sorted.
            let patience = if round % 2 == 0 { 1 } else { 50 };
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
                    _ if below(patience) == 0 => queue.settle(),
                    _ => {}
                }
            }
            queue.settle();
            queue.warm_up(50);
            while let Some(call) = queue.take_due(50) {
                call.call();
            }
            model.sort();
            assert_eq!(*log.borrow(), model.iter().map(|m| m.1).collect::<Vec<_>>());
        }
    }
}

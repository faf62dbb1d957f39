//! The lane of a worker: memory that it shares with its host, through which calls and answers go without a system call.
//!
//! There are two files of memory, each written by one side and only read by the other: the host's has the ring of calls
//! and the requests to stop, the worker's the ring of answers and the count of the calls that it has begun. What goes through
//! the rings are the same frames that would go over the socket. `docs/protocol.md` has the layout, so that it can be written in any
//! language; this file is its only implementation, for both sides.
//!
//! Whoever finds nothing to read sleeps, and a bell (an eventfd) wakes it. The bell is only rung for who says that it
//! sleeps. That works because of one order of steps: who gives *publishes, then looks* whether the other sleeps; who takes *says
//! that it sleeps, then looks* once more whether something is there; and a fence lies between the two steps on either side.
//! So at least one sees the other (`lane/model.rs` tries every order).
//!
//! The other side is a stranger. Its numbers are checked before anything is made of them, and its bytes are copied out before
//! they are looked at. What it lies about when it sleeps costs it its own answers.

pub(crate) mod spin;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::event::EventfdFlags;

use crate::hook;
use crate::hook::memory::{self, Access, Mapping};

/// The layout that is described in `docs/protocol.md`.
const LAYOUT: u64 = 1;

/// How many bytes a ring holds. The calls and answers of a batch fit; larger ones go over the socket.
const RING: usize = 64 << 10;

/// The longest frame that goes through a ring, with its header.
pub(crate) const LONGEST: usize = RING / 4;

/// What stands in a ring for a frame that is on the socket: the header of an empty frame, which there is none of.
pub(crate) const ON_THE_SOCKET: [u8; 4] = [0; 4];

/// How many requests are kept for a worker that has not looked.
const REQUESTS: u64 = 256;

/// Nobody is to ring.
const NEVER: u64 = u64::MAX;

/// Where things are in the host's file.
mod calls {
    pub(super) const LAYOUT: usize = 0;
    pub(super) const CAPACITY: usize = 8;
    pub(super) const ANSWERS_CAPACITY: usize = 16;
    pub(super) const TAIL: usize = 64;
    pub(super) const ANSWERS_HEAD: usize = 128;
    pub(super) const RING_AT: usize = 192;
    pub(super) const REQUESTED: usize = 256;
    pub(super) const REQUESTS: usize = 4096;
    pub(super) const RING: usize = 8192;
}

/// Where things are in the worker's file.
mod answers {
    pub(super) const TAIL: usize = 0;
    pub(super) const CALLS_HEAD: usize = 64;
    pub(super) const BEGUN: usize = 128;
    pub(super) const SLEEP: usize = 192;
    pub(super) const SEEN: usize = 256;
    pub(super) const RING: usize = 4096;
}

/// For what a worker sleeps: the two lowest bits of its word; the others count its sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sleep {
    ForCalls = 1,
    ForRoom = 2,
}

/// The other side has written numbers that cannot be.
#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the numbers in its shared memory cannot be")
    }
}

/// The host's end of a lane.
///
/// What writes (`push`, `publish`, the requests, `begun`) is for who has the pool's lock, what reads (`read`, `doze`) for who has
/// the connection, and anybody may ask for the `room`, which is a little less than there is when others push. The numbers of each are atomics only because Rust would have it so.
pub(crate) struct HostLane {
    mine: Mapping,
    theirs: Mapping,
    bells: Bells,
    /// Bytes of calls that were ever put in.
    tail: AtomicU64,
    /// The calls' head when it was looked at last.
    theirs_head: AtomicU64,
    /// Bytes of answers that were ever taken out.
    head: AtomicU64,
    /// The sleep that the worker was last woken from.
    woken: AtomicU64,
    requested: AtomicU64,
    begun: AtomicU64,
}

/// One eventfd for each side.
struct Bells {
    host: OwnedFd,
    worker: OwnedFd,
}

/// What the worker is to get.
pub(crate) struct Handed {
    calls: OwnedFd,
    answers: OwnedFd,
}

impl HostLane {
    /// A new lane, and the files for the worker.
    ///
    /// # Errors
    /// The system has no such memory, or no descriptors left. One can do without a lane.
    pub(crate) fn new() -> io::Result<(HostLane, Handed)> {
        let bell = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let calls = memory::memfd("errback-calls", calls::RING + RING)?;
        let answers = memory::memfd("errback-answers", answers::RING + RING)?;
        let mine = Mapping::new(calls.as_fd(), Access::Write)?;
        let theirs = Mapping::new(answers.as_fd(), Access::Read)?;
        // From here on nobody else can write to it.
        rustix::fs::fcntl_add_seals(&calls, rustix::fs::SealFlags::FUTURE_WRITE)?;
        let bells = Bells {
            host: bell()?,
            worker: bell()?,
        };
        let capacity = RING as u64;
        mine.number(calls::LAYOUT).store(LAYOUT, Ordering::Relaxed);
        for place in [calls::CAPACITY, calls::ANSWERS_CAPACITY] {
            mine.number(place).store(capacity, Ordering::Relaxed);
        }
        mine.number(calls::RING_AT).store(NEVER, Ordering::Release);
        let zero = || AtomicU64::new(0);
        let lane = HostLane {
            mine,
            theirs,
            bells,
            tail: zero(),
            theirs_head: zero(),
            head: zero(),
            woken: zero(),
            requested: zero(),
            begun: zero(),
        };
        Ok((lane, Handed { calls, answers }))
    }

    /// The descriptors for the worker, in their order.
    pub(crate) fn descriptors<'a>(&'a self, handed: &'a Handed) -> [BorrowedFd<'a>; 4] {
        [
            handed.calls.as_fd(),
            handed.answers.as_fd(),
            self.bells.worker.as_fd(),
            self.bells.host.as_fd(),
        ]
    }

    /// How many bytes of calls the ring has room for.
    pub(crate) fn room(&self) -> Result<usize, Broken> {
        let head = self.theirs.number(answers::CALLS_HEAD);
        let head = head.load(Ordering::Acquire);
        // After the head: who has not the pool's lock may meet with a push, which the worker reads at once.
        let tail = self.tail.load(Ordering::Relaxed);
        let before = self.theirs_head.swap(head, Ordering::Relaxed);
        let used = tail.checked_sub(head).filter(|_| head >= before);
        let used = used.ok_or(Broken)?;
        (RING as u64)
            .checked_sub(used)
            .map(|room| room as usize)
            .ok_or(Broken)
    }

    /// How far the worker has read its calls.
    pub(crate) fn calls_read(&self) -> u64 {
        let head = self.theirs.number(answers::CALLS_HEAD);
        head.load(Ordering::Relaxed)
    }

    /// Puts bytes into the ring, for which there must be room. Nobody sees them before they are [published](Self::publish).
    pub(crate) fn push(&self, bytes: &[u8]) {
        let tail = self.tail.load(Ordering::Relaxed);
        Ring(&self.mine, calls::RING, RING).put(tail, bytes);
        self.tail
            .store(tail + bytes.len() as u64, Ordering::Relaxed);
    }

    /// Takes the last bytes out again that were pushed, and not published.
    pub(crate) fn pop(&self, bytes: usize) {
        let tail = self.tail.load(Ordering::Relaxed);
        self.tail.store(tail - bytes as u64, Ordering::Relaxed);
    }

    /// Lets the worker see what was pushed. Whether it has to be [rung](Self::ring) for.
    #[must_use = "a worker that sleeps does not look"]
    pub(crate) fn publish(&self) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        self.mine.number(calls::TAIL).store(tail, Ordering::Release);
        self.must_ring(Sleep::ForCalls)
    }

    /// Whether the worker sleeps and has not been woken from this sleep. After a change that it sleeps for.
    fn must_ring(&self, reason: Sleep) -> bool {
        fence(Ordering::SeqCst);
        let word = self.theirs.number(answers::SLEEP);
        let sleep = word.load(Ordering::Relaxed);
        sleep & 3 == reason as u64 && self.woken.swap(sleep, Ordering::Relaxed) != sleep
    }

    /// Wakes the worker.
    pub(crate) fn ring(&self) {
        ring(&self.bells.worker);
    }

    /// Whether there are bytes that have not been taken.
    pub(crate) fn has_bytes(&self) -> bool {
        let tail = self.theirs.number(answers::TAIL).load(Ordering::Acquire);
        tail != self.head.load(Ordering::Relaxed)
    }

    /// Takes what the worker has said, to the end of `into`; at most what there is room for without growing. How much.
    pub(crate) fn read(&self, into: &mut Vec<u8>) -> Result<usize, Broken> {
        let tail = self.theirs.number(answers::TAIL).load(Ordering::Acquire);
        let head = self.head.load(Ordering::Relaxed);
        let there = tail.checked_sub(head).ok_or(Broken)?;
        if there > RING as u64 {
            return Err(Broken);
        }
        let ring = Ring(&self.theirs, answers::RING, RING);
        let taken = ring.take(head, there as usize, into);
        if taken > 0 {
            let head = head + taken as u64;
            self.head.store(head, Ordering::Relaxed);
            let place = self.mine.number(calls::ANSWERS_HEAD);
            place.store(head, Ordering::Release);
            if self.must_ring(Sleep::ForRoom) {
                self.ring();
            }
        }
        Ok(taken)
    }

    /// Says that the host sleeps, and wants to be rung for answer number `at` and those behind it. Whether it may sleep:
    /// otherwise something is there already.
    pub(crate) fn doze(&self, at: u64) -> bool {
        self.mine
            .number(calls::RING_AT)
            .store(at, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_bytes()
    }

    /// The host is awake and looks by itself.
    pub(crate) fn wake_up(&self) {
        let place = self.mine.number(calls::RING_AT);
        place.store(NEVER, Ordering::Relaxed);
    }

    /// What the worker rings.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bells.host.as_fd()
    }

    /// It was heard.
    pub(crate) fn clear_bell(&self) {
        clear(&self.bells.host);
    }

    /// Asks for a stop (`from` is the call, `to` is 0), or takes the calls from `from` to `to` back. `false`: the worker has
    /// not looked for so long that there is no room, and it was not told.
    pub(crate) fn request(&self, from: u64, to: u64) -> bool {
        let count = self.requested.load(Ordering::Relaxed);
        let seen = self.theirs.number(answers::SEEN).load(Ordering::Acquire);
        if count
            .checked_sub(seen)
            .is_none_or(|ahead| ahead >= REQUESTS)
        {
            return false;
        }
        let place = calls::REQUESTS + (count % REQUESTS) as usize * 16;
        self.mine.number(place).store(from, Ordering::Relaxed);
        self.mine.number(place + 8).store(to, Ordering::Relaxed);
        self.requested.store(count + 1, Ordering::Relaxed);
        let place = self.mine.number(calls::REQUESTED);
        place.store(count + 1, Ordering::Release);
        true
    }

    /// How many calls the worker has begun since this was asked last.
    pub(crate) fn take_count(&self) -> u64 {
        // What was requested before is seen by a worker that had not counted by now.
        fence(Ordering::SeqCst);
        let begun = self.theirs.number(answers::BEGUN).load(Ordering::Acquire);
        begun.saturating_sub(self.begun.fetch_max(begun, Ordering::Relaxed))
    }
}

/// The worker's end of a lane.
pub(crate) struct WorkerLane {
    theirs: Arc<Mapping>,
    mine: Arc<Mapping>,
    bell: Bell,
    host_bell: Bell,
    capacity: usize,
    answers_capacity: usize,
    head: u64,
    tail: u64,
    /// How many answers were ever published.
    answered: u64,
    /// The last answer that the host was rung for.
    rung: u64,
    sleeps: u64,
}

/// An eventfd, and by what it is known again: a job may close it and open something else in its place.
struct Bell {
    eventfd: OwnedFd,
    file: (u64, u64),
}

impl Bell {
    fn new(eventfd: OwnedFd) -> io::Result<Bell> {
        let stat = rustix::fs::fstat(&eventfd)?;
        Ok(Bell {
            file: (stat.st_dev, stat.st_ino),
            eventfd,
        })
    }

    /// Whether it is still the one that it was.
    fn check(&self) -> io::Result<()> {
        let stat = rustix::fs::fstat(&self.eventfd)?;
        match (stat.st_dev, stat.st_ino) == self.file {
            true => Ok(()),
            false => Err(rustix::io::Errno::BADF.into()),
        }
    }

    fn ring(&self) -> io::Result<()> {
        self.check()?;
        ring(&self.eventfd);
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        self.check()?;
        clear(&self.eventfd);
        Ok(())
    }
}

impl WorkerLane {
    /// A lane out of the descriptors that came with the host's hello.
    ///
    /// # Errors
    /// They are none that can be used: then one does without.
    pub(crate) fn new(descriptors: [OwnedFd; 4]) -> io::Result<WorkerLane> {
        let [calls, answers, bell, host_bell] = descriptors;
        let theirs = Mapping::new(calls.as_fd(), Access::Read)?;
        let mine = Mapping::new(answers.as_fd(), Access::Write)?;
        let unusable = || io::Error::from(io::ErrorKind::InvalidData);
        if theirs.len() < calls::RING || mine.len() < answers::RING {
            return Err(unusable());
        }
        let capacity_of = |place| theirs.number(place).load(Ordering::Acquire);
        let fits = |capacity: u64, header: usize, length: usize| {
            (capacity.is_power_of_two() && capacity == (length - header) as u64)
                .then_some(capacity as usize)
        };
        let capacity = fits(capacity_of(calls::CAPACITY), calls::RING, theirs.len());
        let other = capacity_of(calls::ANSWERS_CAPACITY);
        let answers_capacity = fits(other, answers::RING, mine.len());
        let (Some(capacity), Some(answers_capacity), LAYOUT) =
            (capacity, answers_capacity, capacity_of(calls::LAYOUT))
        else {
            return Err(unusable());
        };
        // A process that a job forks shall not answer in our name.
        mine.keep_from_children()?;
        Ok(WorkerLane {
            theirs: Arc::new(theirs),
            mine: Arc::new(mine),
            bell: Bell::new(bell)?,
            host_bell: Bell::new(host_bell)?,
            capacity,
            answers_capacity,
            head: 0,
            tail: 0,
            answered: 0,
            rung: 0,
            sleeps: 0,
        })
    }

    /// The part of it that other threads may have.
    ///
    /// # Errors
    /// The C library has no memory to count forks.
    pub(crate) fn requests(&self) -> io::Result<Requests> {
        hook::count_forks()?;
        Ok(Requests {
            theirs: Arc::clone(&self.theirs),
            mine: Arc::clone(&self.mine),
            generation: hook::generation(),
        })
    }

    /// Takes what the host has said, to the end of `into`; at most what there is room for without growing. How much.
    pub(crate) fn read(&mut self, into: &mut Vec<u8>) -> Result<usize, Broken> {
        let there = self.there()?;
        let ring = Ring(&self.theirs, calls::RING, self.capacity);
        let taken = ring.take(self.head, there, into);
        if taken > 0 {
            self.head += taken as u64;
            let place = self.mine.number(answers::CALLS_HEAD);
            place.store(self.head, Ordering::Release);
        }
        Ok(taken)
    }

    fn there(&self) -> Result<usize, Broken> {
        let tail = self.theirs.number(calls::TAIL).load(Ordering::Acquire);
        let there = tail.checked_sub(self.head).ok_or(Broken)?;
        match there <= self.capacity as u64 {
            true => Ok(there as usize),
            false => Err(Broken),
        }
    }

    /// Whether there are bytes that have not been taken. (Or the host has gone mad, which `read` says.)
    pub(crate) fn has_bytes(&self) -> bool {
        !matches!(self.there(), Ok(0))
    }

    /// Whether an answer of so many bytes fits now.
    pub(crate) fn has_room(&self, length: usize) -> Result<bool, Broken> {
        let head = self.theirs.number(calls::ANSWERS_HEAD);
        let used = self.tail.checked_sub(head.load(Ordering::Acquire));
        match used {
            Some(used) if used <= self.answers_capacity as u64 => {
                Ok(self.answers_capacity - used as usize >= length)
            }
            _ => Err(Broken),
        }
    }

    /// Publishes an answer, for which there must be room; the host is rung if it waits for it. `at_once`: for any answer.
    pub(crate) fn answer(&mut self, bytes: &[u8], at_once: bool) -> io::Result<()> {
        Ring(&self.mine, answers::RING, self.answers_capacity).put(self.tail, bytes);
        self.tail += bytes.len() as u64;
        self.answered += 1;
        let place = self.mine.number(answers::TAIL);
        place.store(self.tail, Ordering::Release);
        fence(Ordering::SeqCst);
        let ring_at = self.theirs.number(calls::RING_AT).load(Ordering::Relaxed);
        if ring_at <= self.answered || (at_once && ring_at != NEVER) {
            self.ring_host()?;
        }
        Ok(())
    }

    /// Rings a host that sleeps beside answers it has not been told of. To be called before a sleep.
    pub(crate) fn tell_all(&mut self) -> io::Result<()> {
        if self.rung == self.answered {
            return Ok(());
        }
        fence(Ordering::SeqCst);
        match self.theirs.number(calls::RING_AT).load(Ordering::Relaxed) {
            NEVER => Ok(()),
            _ => self.ring_host(),
        }
    }

    fn ring_host(&mut self) -> io::Result<()> {
        self.rung = self.answered;
        self.host_bell.ring()
    }

    /// Says that the worker sleeps until there are calls, or else until there is room for `room` bytes of an answer. Whether
    /// it may: otherwise there are already.
    pub(crate) fn doze(&mut self, room: Option<usize>) -> Result<bool, Broken> {
        self.sleeps += 1;
        let reason = room.map_or(Sleep::ForCalls, |_| Sleep::ForRoom);
        let word = self.sleeps << 2 | reason as u64;
        let place = self.mine.number(answers::SLEEP);
        place.store(word, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        match room {
            None => Ok(!self.has_bytes()),
            Some(length) => Ok(!self.has_room(length)?),
        }
    }

    /// The worker is awake.
    pub(crate) fn wake_up(&self) {
        let place = self.mine.number(answers::SLEEP);
        place.store(self.sleeps << 2, Ordering::Relaxed);
    }

    /// What the host rings.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.eventfd.as_fd()
    }

    /// It was heard.
    ///
    /// # Errors
    /// It is the bell no more: a job has closed it.
    pub(crate) fn clear_bell(&self) -> io::Result<()> {
        self.bell.clear()
    }
}

/// The part of a lane by which a worker counts its calls and sees what is asked of it, for all of its threads.
pub(crate) struct Requests {
    theirs: Arc<Mapping>,
    mine: Arc<Mapping>,
    /// The process that has mapped the two; another one, that it has forked, has only the host's.
    generation: u32,
}

impl Requests {
    /// The worker begins with a call. What was asked before the host could not find it counted is seen from here on.
    pub(crate) fn count(&self) {
        let begun = self.mine.number(answers::BEGUN);
        // Nobody else writes it.
        begun.store(begun.load(Ordering::Relaxed) + 1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// How many requests there ever were.
    pub(crate) fn requested(&self) -> u64 {
        let requested = self.theirs.number(calls::REQUESTED);
        requested.load(Ordering::Acquire)
    }

    /// Request number `number`, one of the last that there were: see [`HostLane::request`].
    pub(crate) fn request(&self, number: u64) -> (u64, u64) {
        let place = calls::REQUESTS + (number % REQUESTS) as usize * 16;
        let word = |place| self.theirs.number(place).load(Ordering::Relaxed);
        (word(place), word(place + 8))
    }

    /// All before request number `number` have been looked at.
    pub(crate) fn seen(&self, number: u64) {
        if hook::generation() == self.generation {
            let seen = self.mine.number(answers::SEEN);
            seen.store(number, Ordering::Release);
        }
    }
}

/// A ring: its file, where it begins in it, and how long it is, a power of two.
#[derive(Clone, Copy)]
struct Ring<'a>(&'a Mapping, usize, usize);

impl Ring<'_> {
    /// Copies bytes in, at what would be their place in a file without end.
    fn put(&self, at: u64, bytes: &[u8]) {
        let Ring(file, start, capacity) = *self;
        let offset = at as usize & (capacity - 1);
        let (first, second) = bytes.split_at(bytes.len().min(capacity - offset));
        file.copy_in(start + offset, first);
        file.copy_in(start, second);
    }

    /// Copies up to `length` bytes out, as many as `into` has room for.
    fn take(&self, at: u64, length: usize, into: &mut Vec<u8>) -> usize {
        let Ring(file, start, capacity) = *self;
        let length = length.min(into.capacity() - into.len());
        let offset = at as usize & (capacity - 1);
        let first = length.min(capacity - offset);
        file.append_to(into, start + offset, first);
        file.append_to(into, start, length - first);
        length
    }
}

fn ring(eventfd: &OwnedFd) {
    // It does not block: the counter would have to be full.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

fn clear(eventfd: &OwnedFd) {
    let _ = rustix::io::read(eventfd, &mut [0; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two ends of a lane, in one process.
    fn lane() -> (HostLane, WorkerLane) {
        let (host, handed) = HostLane::new().expect("a lane");
        let descriptors = host.descriptors(&handed);
        let theirs = descriptors.map(|it| it.try_clone_to_owned().expect("a descriptor"));
        let worker = WorkerLane::new(theirs).expect("the other end");
        (host, worker)
    }

    fn is_rung(bell: BorrowedFd<'_>) -> bool {
        rustix::io::read(bell, &mut [0; 8]) == Ok(8)
    }

    #[test]
    fn bytes_come_through_in_their_order_round_and_round() {
        let (host, mut worker) = lane();
        let (mut there, mut back) = (Vec::with_capacity(RING), Vec::with_capacity(RING));
        for round in 0..100_u8 {
            let bytes: Vec<u8> = (0..2000_u16).map(|n| (n % 251) as u8 ^ round).collect();
            assert!(host.room().expect("sound") >= bytes.len());
            host.push(&bytes);
            assert!(!host.publish(), "it does not sleep");
            assert_eq!(worker.read(&mut there).expect("sound"), bytes.len());
            assert!(worker.has_room(bytes.len()).expect("sound"));
            worker.answer(&there, false).expect("a bell");
            assert_eq!(host.read(&mut back).expect("sound"), bytes.len());
            assert_eq!(back, bytes);
            there.clear();
            back.clear();
        }
    }

    #[test]
    fn who_sleeps_is_rung_once_and_who_is_awake_is_not() {
        let (host, mut worker) = lane();
        assert!(worker.doze(None).expect("sound"));
        host.push(b"call");
        assert!(host.publish(), "it sleeps");
        host.push(b"call");
        assert!(!host.publish(), "it was woken from this sleep");
        worker.wake_up();
        assert!(!worker.doze(None).expect("sound"), "there is something");
        // The host wants to hear of the second answer and no other.
        assert!(host.doze(2));
        worker.answer(b"first", false).expect("a bell");
        assert!(!is_rung(host.bell()));
        worker.answer(b"second", false).expect("a bell");
        assert!(is_rung(host.bell()));
        assert!(!host.doze(4), "there is something");
        worker.answer(b"third", false).expect("a bell");
        assert!(!is_rung(host.bell()));
        worker.tell_all().expect("a bell");
        assert!(is_rung(host.bell()), "it has nothing more to say");
        worker.tell_all().expect("a bell");
        assert!(!is_rung(host.bell()));
    }

    #[test]
    fn a_full_ring_of_answers_has_room_when_the_host_has_read() {
        let (host, mut worker) = lane();
        let answer = vec![7; LONGEST];
        while worker.has_room(LONGEST).expect("sound") {
            worker.answer(&answer, false).expect("a bell");
        }
        assert!(worker.doze(Some(LONGEST)).expect("sound"));
        let mut bytes = Vec::with_capacity(LONGEST);
        host.read(&mut bytes).expect("sound");
        assert!(is_rung(worker.bell()));
        assert!(worker.has_room(LONGEST).expect("sound"));
    }

    #[test]
    fn requests_are_seen_and_those_beyond_the_room_are_refused() {
        let (host, worker) = lane();
        let requests = worker.requests().expect("memory");
        for n in 0..REQUESTS {
            assert!(host.request(n, 0));
        }
        assert!(!host.request(1000, 0), "nobody has looked");
        assert_eq!(requests.requested(), REQUESTS);
        assert_eq!(requests.request(3), (3, 0));
        requests.seen(REQUESTS);
        assert!(host.request(5, 9));
        assert_eq!(requests.request(REQUESTS), (5, 9));
        requests.count();
        assert_eq!((host.take_count(), host.take_count()), (1, 0));
    }

    #[test]
    fn numbers_that_cannot_be_are_found_out() {
        let (host, worker) = lane();
        let write = |place, number| worker.mine.number(place).store(number, Ordering::Release);
        let mut bytes = Vec::with_capacity(RING);
        write(answers::TAIL, RING as u64 + 1);
        assert!(host.read(&mut bytes).is_err(), "more than the ring holds");
        write(answers::TAIL, 8);
        assert_eq!(host.read(&mut bytes).expect("sound"), 8);
        write(answers::TAIL, 7);
        assert!(host.read(&mut bytes).is_err(), "backwards");
        write(answers::CALLS_HEAD, 1);
        assert!(host.room().is_err(), "it has read what was not written");
        host.push(b"12");
        assert!(host.room().is_ok());
        write(answers::CALLS_HEAD, 0);
        assert!(host.room().is_err(), "backwards");
    }
}

#[cfg(test)]
mod model;

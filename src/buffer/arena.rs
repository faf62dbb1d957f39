//! The memory that large buffers lie in, kept when they are gone: a page costs more to touch for the first time than to
//! fill ten times.
//!
//! An *arena* is a memfd of this process's own, for one buffer at a time. A buffer has it as a [`Lease`]; when that is
//! dropped the arena waits for the next buffer of about its size. Other processes know it by its number, for as long as it
//! lives, and read in place what lies in it; who has shown it to others holds a clone of the lease until they have done.
//!
//! There is one set of arenas for the process, as a buffer is made before it is known which pool it is for. It has a bound,
//! on the number of arenas (each is a descriptor) and on the bytes that are kept unused. Where none is to be had, a buffer
//! lies on the heap, and its bytes travel in the stream.
//!
//! A process that this one forks has all buffers too, but the arenas' end is not told there. So it makes none, and what it
//! may look at is not filled again here: an arena that was in use at a fork is not kept.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use crate::hook;
use crate::hook::memory::Owned;

/// A buffer that is shorter is not worth an arena: its bytes travel in the stream.
pub(crate) const SHARE_FROM: usize = 64 * 1024;

/// How many bytes of arenas are kept unused, unless somebody asks for less.
const KEEP: usize = 256 << 20;

/// How many arenas there may be. Each has a descriptor.
const MOST: usize = 256;

/// Arenas are as long as a multiple of this.
const STEP: usize = 64 * 1024;

static ARENAS: Arenas = Arenas {
    kept: Mutex::new(Kept {
        arenas: VecDeque::new(),
        bytes: 0,
    }),
    keep: AtomicUsize::new(KEEP),
    count: AtomicUsize::new(0),
    numbers: AtomicU64::new(1),
    home: AtomicU32::new(0),
};

struct Arenas {
    /// Protects what waits for its next buffer.
    kept: Mutex<Kept>,
    keep: AtomicUsize,
    /// How many there are, in use or not.
    count: AtomicUsize,
    /// The number of the next one. None is given twice.
    numbers: AtomicU64,
    /// The generation (see `hook`) of the process that has them, and 1; 0 before there is one.
    home: AtomicU32,
}

struct Kept {
    /// The one that was used last is at the end.
    arenas: VecDeque<Arena>,
    bytes: usize,
}

/// See the module.
struct Arena {
    number: u64,
    memory: Owned,
    /// Dropped with it: others see by this whether its number means anything.
    alive: Arc<()>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        ARENAS.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An arena with something in it. What has been shared does not change any more.
pub(crate) struct Lease {
    /// `Some` until the drop.
    arena: Option<Arena>,
    /// How many forks of this process there had been.
    forks: u32,
    /// Somebody may go on reading it, and cannot be asked.
    spoilt: AtomicBool,
}

/// Memory for so many bytes, or `None`: then the heap has to do.
pub(crate) fn lease(length: usize) -> Option<Lease> {
    if !is_home() {
        return None;
    }
    let forks = hook::forks_made();
    let arena = take_kept(length).or_else(|| make(length))?;
    Some(Lease {
        arena: Some(arena),
        forks,
        spoilt: AtomicBool::new(false),
    })
}

/// Lets go of what is kept for buffers to come.
pub(crate) fn trim() {
    if is_home() {
        drop(ARENAS.keep_at_most(0));
    }
}

/// Keeps less than usual from now on.
pub(crate) fn set_keep(bytes: usize) {
    ARENAS.keep.store(bytes.min(KEEP), Ordering::Relaxed);
}

/// How much is kept at the most: a larger arena is for one buffer.
pub(crate) fn keep() -> usize {
    ARENAS.keep.load(Ordering::Relaxed)
}

/// Whether this is the process that has the arenas, and not one that it has forked: there a lock of theirs may be held for
/// ever.
fn is_home() -> bool {
    let here = hook::generation().wrapping_add(1);
    let order = Ordering::Relaxed;
    match ARENAS.home.load(order) {
        0 if hook::count_forks().is_err() => false,
        0 => match ARENAS.home.compare_exchange(0, here, order, order) {
            Ok(_) => true,
            Err(home) => home == here,
        },
        home => home == here,
    }
}

/// The smallest that is long enough, and not more than twice as long as it need be.
fn take_kept(length: usize) -> Option<Arena> {
    let enough = length..=length.saturating_mul(2).saturating_add(STEP);
    let mut kept = ARENAS.kept.lock();
    let (index, _) = kept
        .arenas
        .iter()
        .enumerate()
        .rev()
        .map(|(index, arena)| (index, arena.memory.len()))
        .filter(|(_, size)| enough.contains(size))
        .min_by_key(|(_, size)| *size)?;
    let arena = kept.arenas.remove(index)?;
    kept.bytes -= arena.memory.len();
    Some(arena)
}

fn make(length: usize) -> Option<Arena> {
    let size = size_for(length)?;
    // Others need descriptors too.
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = MOST.min(usize::try_from(files / 4).unwrap_or(MOST));
    let counted = ARENAS
        .count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < most).then_some(count + 1)
        });
    if counted.is_err() {
        // Those that wait are of other sizes.
        drop(ARENAS.keep_at_most(0));
        return None;
    }
    match Owned::new("errback", size) {
        Ok(memory) => Some(Arena {
            number: ARENAS.numbers.fetch_add(1, Ordering::Relaxed),
            memory,
            alive: Arc::new(()),
        }),
        Err(_) => {
            ARENAS.count.fetch_sub(1, Ordering::Relaxed);
            None
        }
    }
}

/// The length of an arena for so many bytes: a little more, so that the next buffer, which is not much longer, fits too.
fn size_for(length: usize) -> Option<usize> {
    let step = length.checked_next_power_of_two()? / 16;
    length.max(1).checked_next_multiple_of(step.max(STEP))
}

impl Arenas {
    /// Takes the oldest ones out until no more is kept than this.
    fn keep_at_most(&self, bytes: usize) -> Vec<Arena> {
        let mut kept = self.kept.lock();
        let mut gone = Vec::new();
        while kept.bytes > bytes {
            let Some(arena) = kept.arenas.pop_front() else {
                break;
            };
            kept.bytes -= arena.memory.len();
            gone.push(arena);
        }
        gone
    }

    fn take_back(&self, arena: Arena) {
        {
            let mut kept = self.kept.lock();
            kept.bytes += arena.memory.len();
            kept.arenas.push_back(arena);
        }
        // Without the lock, as giving memory back takes its time.
        drop(self.keep_at_most(keep()));
    }
}

impl Lease {
    fn arena(&self) -> &Arena {
        self.arena.as_ref().expect("it is there until the drop")
    }

    /// By which others know the arena.
    pub(crate) fn number(&self) -> u64 {
        self.arena().number
    }

    /// How long the whole arena is.
    pub(crate) fn size(&self) -> usize {
        self.arena().memory.len()
    }

    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.arena().memory.memfd()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.arena().memory.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let arena = self.arena.as_mut().expect("it is there until the drop");
        arena.memory.bytes_mut()
    }

    /// Alive as long as the arena is, be it leased or kept.
    pub(crate) fn alive(&self) -> Weak<()> {
        Arc::downgrade(&self.arena().alive)
    }

    /// The arena is not to be used for anything else: somebody may go on reading it.
    pub(crate) fn spoil(&self) {
        self.spoilt.store(true, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(arena) = self.arena.take() else {
            return;
        };
        let private = self.forks == hook::forks_made() && !self.spoilt.load(Ordering::Relaxed);
        if private && is_home() && arena.memory.len() <= keep() {
            ARENAS.take_back(arena);
        }
    }
}

//! What a piece of code allocates. Shared with `fuzz/`.
//!
//! The counts are each thread's own, so that tests may run beside each other.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, and a count.
pub struct Counting;

// A counting allocator is an `unsafe impl` by its nature; it passes everything on. Growing in place is not: a new block
// and a copy are the worst that `realloc` may do, so that is what is counted.
#[allow(unsafe_code)]
// SAFETY: the system's allocator does the work, with the arguments that we are given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LIVE.try_with(|live| {
            live.set(live.get() + layout.size() as isize);
            PEAK.set(PEAK.get().max(live.get()));
        });
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|live| live.set(live.get() - layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What something cost, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The most that was allocated at a time, beyond what was there before.
    pub peak: usize,
    /// What is there afterwards and was not before.
    pub kept: isize,
}

/// Runs `body` and counts.
pub fn cost<T>(body: impl FnOnce() -> T) -> (T, Cost) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = body();
    let cost = Cost {
        peak: (PEAK.get() - before) as usize,
        kept: LIVE.get() - before,
    };
    (result, cost)
}

//! What is asked of the operating system: memory, CPU time, and places for threads.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use rustix::thread::{CpuSet, futex, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// What this process has resident, in MiB.
pub(crate) fn resident() -> f64 {
    status("VmRSS:")
}

/// The most that it ever had, or had since it was [forgotten](forget_peak), in MiB.
pub(crate) fn peak() -> f64 {
    status("VmHWM:")
}

/// The peak becomes what is resident now. (Where the kernel does not let us, it stays, and peaks come out too high.)
pub(crate) fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn status(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// The CPU time that all threads of this process have used.
pub(crate) fn cpu_time() -> Duration {
    of_clock(ClockId::ProcessCPUTime)
}

/// The same of this thread.
pub(crate) fn cpu_time_of_thread() -> Duration {
    of_clock(ClockId::ThreadCPUTime)
}

fn of_clock(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::try_from(time).expect("CPU time is not negative")
}

/// Where two threads run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Where the scheduler puts them.
    Free,
    /// Both on one core.
    SameCore,
    /// Each on its own.
    TwoCores,
}

impl Place {
    pub(crate) const ALL: [Place; 3] = [Place::Free, Place::SameCore, Place::TwoCores];

    pub(crate) fn ending(self) -> &'static str {
        match self {
            Place::Free => "_free",
            Place::SameCore => "_samecore",
            Place::TwoCores => "_twocores",
        }
    }

    /// Puts this thread, the first of the two, there.
    pub(crate) fn take(self) {
        if self != Place::Free {
            pin(0);
        }
    }

    /// The same for the other one.
    pub(crate) fn take_other(self) {
        match self {
            Place::Free => {}
            Place::SameCore => pin(0),
            Place::TwoCores => pin(1),
        }
    }
}

/// This thread, and what it starts from now on, runs on this core alone.
pub(crate) fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    if let Err(error) = sched_setaffinity(None, &cores) {
        eprintln!("could not be bound to core {core}: {error}");
    }
}

/// A flag that a thread sleeps on: the cheapest answer that a loop can give to a thread.
#[derive(Default)]
pub(crate) struct Ack(AtomicU32);

impl Ack {
    pub(crate) fn set(&self) {
        self.0.store(1, Release);
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, 1);
    }

    pub(crate) fn wait(&self) {
        while self.0.load(Acquire) == 0 {
            // Interrupted, or set meanwhile: the loop looks again.
            let _ = futex::wait(&self.0, futex::Flags::PRIVATE, 0, None);
        }
        self.0.store(0, Relaxed);
    }
}

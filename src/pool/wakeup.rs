//! Waiting for descriptors in `poll`, and waking a thread that does: an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, Timespec};
use rustix::io::Errno;

/// Any thread may `wake`; the one that polls the descriptor `clear`s it, and then looks at what it was woken for.
pub(super) struct Wakeup(OwnedFd);

impl Wakeup {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Wakeup(rustix::event::eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Makes the descriptor readable. It fails only when the count is at its maximum, and then it is readable.
    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How often an eventfd was counted up since it was read last.
pub(super) fn count(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(eventfd, &mut count) {
        Ok(8) => u64::from_ne_bytes(count),
        _ => 0, // EAGAIN: never
    }
}

/// Waits for one of `fds`, until a deadline, through any number of signals.
pub(super) fn poll(fds: &mut [PollFd<'_>], until: Option<Instant>) {
    loop {
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match rustix::event::poll(fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Ok(_) => return,
            // Out of memory, or of descriptors. The callers look at everything anew; they must not spin meanwhile.
            Err(_) => {
                fds.iter_mut().for_each(PollFd::clear_revents);
                return std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

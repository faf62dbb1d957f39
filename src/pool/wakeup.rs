//! Waiting for descriptors in `poll`, and waking a thread that does: an eventfd.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::{Errno, ReadWriteFlags};

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

/// How often an eventfd was counted up since it was read last. Never blocks, whatever others do with it: a job that has it
/// too can take the flag away that says so, as that belongs to the open file.
pub(super) fn count(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    let result = {
        let into = &mut [IoSliceMut::new(&mut count)];
        rustix::io::preadv2(eventfd, into, u64::MAX, ReadWriteFlags::NOWAIT)
    };
    let result = match result {
        // A kernel before 5.8 cannot be asked so for an eventfd.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if is_readable(eventfd) => {
            rustix::io::read(eventfd, &mut count)
        }
        result => result,
    };
    match result {
        Ok(8) => u64::from_ne_bytes(count),
        _ => 0, // EAGAIN: never
    }
}

fn is_readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let _ = rustix::event::poll(&mut fds, Some(&timespec(Duration::ZERO)));
    fds[0].revents().contains(PollFlags::IN)
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;

    #[test]
    fn a_counter_is_read_without_waiting_whatever_its_flags_say() {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let counter = rustix::event::eventfd(0, flags).expect("an eventfd");
        let theirs = counter.try_clone().expect("a descriptor");
        rustix::fs::fcntl_setfl(&theirs, OFlags::empty()).expect("its flags");
        assert_eq!(count(&counter), 0);
        rustix::io::write(&theirs, &3u64.to_ne_bytes()).expect("it counts");
        assert_eq!((count(&counter), count(&counter)), (3, 0));
        assert!(!is_readable(&counter));
    }
}

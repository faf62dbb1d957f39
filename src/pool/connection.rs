//! The host's end of one worker's socket: writing a call, reading the answer, and noticing the end, all in one `poll`.
//!
//! Writing never blocks: a worker that writes a large answer while it is sent a large call would otherwise wait for us
//! while we wait for it. End of file alone is not death, because a grandchild may hold the socket open, and because a
//! task may close it; the pidfd says what is true. But what a worker answered before it died counts, and so does the rest
//! of an answer that the kernel still holds: [`Connection::drain`] reads it after the death.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::child::{Child, Process};
use super::output::WorkerOutput;
use super::poll;
use super::wakeup;
use crate::wire::{FrameReader, ProtocolError};

/// How long a worker may live on after its end of the socket was closed, before it is killed.
const END_OF_FILE_GRACE: Duration = Duration::from_millis(200);

/// A dead worker's socket holds no more than its send buffer; whoever goes on writing is a grandchild.
const DRAIN_AT_MOST: usize = 16 << 20;

pub(super) struct Connection {
    pub(super) process: Arc<Process>,
    socket: OwnedFd,
    begun: OwnedFd,
    pub(super) output: WorkerOutput,
    pub(super) born: Instant,
    /// What the worker has said and nobody has looked at yet.
    pub(super) reader: FrameReader,
    /// How many answers came to jobs whose function was entered. The worker's own count is one higher while one runs.
    pub(super) ran: u64,
    /// How many answers came.
    pub(super) answered: u64,
    /// Where its memory control group counts those that were killed for their memory.
    pub(super) oom_count: Option<PathBuf>,
}

/// What a wait ended with.
pub(super) enum Event {
    /// A whole frame is in the reader.
    Frame,
    /// The process is dead.
    Died,
    /// The process closed its end, or cannot be read from; it may live.
    Closed,
    /// Somebody woke us: look at what is wanted.
    Woken,
    /// The deadline has passed.
    Late,
    /// What came is no frame.
    Garbage(ProtocolError),
}

impl Connection {
    pub(super) fn new(child: Child, max_frame: usize) -> Self {
        let Child {
            process,
            socket,
            begun,
            output,
            born,
        } = child;
        let reader = FrameReader::new(max_frame);
        Connection {
            process,
            socket,
            begun,
            output,
            born,
            reader,
            ran: 0,
            answered: 0,
            oom_count: None,
        }
    }

    /// Blocks until something happens, and meanwhile writes what is `unwritten`.
    pub(super) fn wait(&mut self, unwritten: &mut &[u8], deadline: Option<Instant>) -> Event {
        loop {
            match self.reader.has_frame() {
                Ok(true) => return Event::Frame,
                Ok(false) => {}
                Err(error) => return Event::Garbage(error),
            }
            if self.write(unwritten).is_err() {
                return Event::Closed;
            }
            let ready = self.poll(!unwritten.is_empty(), deadline);
            if ready.socket {
                match self.read() {
                    Ok(0) if ready.process => return Event::Died,
                    Ok(0) => return Event::Closed,
                    Ok(_) => continue,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return Event::Closed,
                }
            }
            match ready {
                Ready { process: true, .. } => return Event::Died,
                Ready { wakeup: true, .. } => {
                    self.process.wakeup.clear();
                    return Event::Woken;
                }
                Ready {
                    socket: false,
                    writable: false,
                    ..
                } if is_past(deadline) => return Event::Late,
                _ => {}
            }
        }
    }

    /// Whether the process ends within `grace`.
    pub(super) fn ends_within(&self, grace: Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(
            self.process.as_fd(),
            PollFlags::IN,
        )];
        poll(&mut fds, Some(Instant::now() + grace));
        !fds[0].revents().is_empty()
    }

    /// Whether a worker that closed its socket was about to end.
    pub(super) fn ends_soon(&self) -> bool {
        self.ends_within(END_OF_FILE_GRACE)
    }

    /// Takes what the kernel still holds of a dead worker's words. Whether there is a whole frame then.
    pub(super) fn drain(&mut self) -> bool {
        let mut left = DRAIN_AT_MOST;
        loop {
            match self.reader.has_frame() {
                Ok(false) if left > 0 => {}
                result => return result.unwrap_or(false),
            }
            match self.read() {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return self.reader.has_frame().unwrap_or(false),
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    }

    /// Tells an idle worker to leave: its next read is the end of the file.
    pub(super) fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    /// Whether the worker had begun a job that it did not answer. For when it is dead.
    pub(super) fn had_begun(&self) -> bool {
        wakeup::count(&self.begun) > self.ran
    }

    /// Begins to count anew, between two jobs.
    pub(super) fn recount(&mut self) {
        wakeup::count(&self.begun);
        self.ran = 0;
    }

    /// Writes what goes without blocking.
    fn write(&self, unwritten: &mut &[u8]) -> Result<(), Errno> {
        while !unwritten.is_empty() {
            // NOSIGNAL: the host may have SIGPIPE at its default, and a dead worker must not kill it.
            match rustix::net::send(
                &self.socket,
                unwritten,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(n) => *unwritten = &unwritten[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once, without blocking, into the reader.
    fn read(&mut self) -> Result<usize, Errno> {
        let room = rustix::buffer::spare_capacity(self.reader.room());
        rustix::net::recv(&self.socket, room, RecvFlags::DONTWAIT).map(|(n, _)| n)
    }

    fn poll(&self, write: bool, deadline: Option<Instant>) -> Ready {
        let interest = if write {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let mut fds = [
            PollFd::from_borrowed_fd(self.socket.as_fd(), interest),
            PollFd::from_borrowed_fd(self.process.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.process.wakeup.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, deadline);
        let [socket, process, wakeup] = fds.map(|fd| fd.revents());
        Ready {
            socket: socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            writable: socket.contains(PollFlags::OUT),
            process: !process.is_empty(),
            wakeup: !wakeup.is_empty(),
        }
    }
}

struct Ready {
    socket: bool,
    writable: bool,
    process: bool,
    wakeup: bool,
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

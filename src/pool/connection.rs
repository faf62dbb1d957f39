//! The host's end of one worker's socket: writing a call, reading the answer, and noticing the end, all in one `poll`.
//!
//! Writing never blocks: a worker that writes a large answer while it is sent a large call would otherwise wait for us
//! while we wait for it. End of file alone is not death, because a grandchild may hold the socket open, and because a
//! task may close it; the pidfd says what is true. But what a worker answered before it died counts, and so does the rest
//! of an answer that the kernel still holds: [`Connection::drain`] reads it after the death.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::arenas::Arenas;
use super::backlog::Call;
use super::child::{Child, Process};
use super::job::{Job, Verdict};
use super::output::WorkerOutput;
use super::wakeup::poll;
use crate::buffer::travel::Received;
use crate::wire::{self, Answer, EncodeError, FrameReader, Message, Outcome, ProtocolError};

/// How long a worker may live on after its end of the socket was closed, before it is killed.
const END_OF_FILE_GRACE: Duration = Duration::from_millis(200);

/// A dead worker's socket holds no more than its send buffer; whoever goes on writing is a grandchild.
const LAST_WORDS: usize = 16 << 20;

/// No worker has more to say before it was sent a call.
const LONGEST_HELLO: usize = 64 << 10;

pub(super) struct Connection {
    pub(super) process: Arc<Process>,
    socket: OwnedFd,
    pub(super) output: WorkerOutput,
    pub(super) born: Instant,
    /// The memory that buffers travel in.
    pub(super) arenas: Arenas,
    /// What the worker has said and nobody has looked at yet.
    pub(super) reader: FrameReader,
    /// The calls that are with the worker, in their order.
    pub(super) sent: VecDeque<Sent>,
    /// How many of them, at the end, are not written to their end.
    unwritten: usize,
    /// How much of the first of those is written.
    written: usize,
    /// Jobs that it answered after its kill had been decided: they end when it is dead.
    pub(super) late: Vec<(Job, Verdict, Instant)>,
    /// How many calls it has answered.
    pub(super) answered: u64,
    /// How many more calls it may be given; `None`: any number.
    pub(super) calls_left: Option<u64>,
    /// With so many calls left it is given more.
    pub(super) refill_at: usize,
    pub(super) alarms: Alarms,
    /// Whether it takes several calls at a time, and takes them back.
    pub(super) pipelines: bool,
    /// When it last had nothing to do, or answered.
    pub(super) last: Instant,
    /// Where its memory control group counts those that were killed for their memory.
    pub(super) oom_count: Option<PathBuf>,
    /// How many bytes are still read once the process is dead.
    last_words: usize,
    /// The first call, and what was not written, when it was last looked.
    looked: (u64, usize, usize),
}

/// When something is to be done about the first call if it has not been answered by then.
#[derive(Clone, Copy, Default)]
pub(super) struct Alarms {
    /// The worker is killed.
    pub(super) kill: Option<Instant>,
    /// The call's time is up.
    pub(super) timeout: Option<Instant>,
    /// It is looked whether the worker has begun at all.
    pub(super) look: Option<Instant>,
    /// The calls behind it are given to others.
    pub(super) share: Option<Instant>,
}

impl Alarms {
    pub(super) fn first(&self) -> Option<Instant> {
        [self.kill, self.timeout, self.look, self.share]
            .into_iter()
            .flatten()
            .min()
    }
}

/// A call that is with the worker.
pub(super) struct Sent {
    pub(super) call: Call,
    pub(super) at: Instant,
    /// The buffers that its answer refers to.
    pub(super) received: Received,
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
    pub(super) fn new(child: Child) -> Self {
        let Child {
            process,
            socket,
            output,
            born,
        } = child;
        Connection {
            arenas: Arenas::new(Arc::clone(&process)),
            process,
            socket,
            output,
            born,
            reader: FrameReader::new(LONGEST_HELLO),
            sent: VecDeque::new(),
            unwritten: 0,
            written: 0,
            late: Vec::new(),
            answered: 0,
            calls_left: None,
            refill_at: 0,
            alarms: Alarms::default(),
            pipelines: false,
            last: born,
            oom_count: None,
            last_words: LAST_WORDS,
            looked: (0, 0, 0),
        }
    }

    /// Puts a call behind those that are to be written.
    pub(super) fn push(&mut self, call: Call, at: Instant) {
        let received = Received::new();
        self.sent.push_back(Sent { call, at, received });
        self.unwritten += 1;
    }

    /// Whether the first call has been written to its end.
    pub(super) fn first_is_written(&self) -> bool {
        self.unwritten < self.sent.len()
    }

    /// Whether the worker has neither answered nor read anything since this was asked last.
    pub(super) fn stands_still(&mut self) -> bool {
        let first = self.sent.front().map_or(0, |sent| sent.call.key.id);
        let now = (first, self.unwritten, self.written);
        std::mem::replace(&mut self.looked, now) == now
    }

    /// The answer in the next frame, if there is a whole one, and the call that it is to. `None` too for what is no answer,
    /// and may be passed over.
    pub(super) fn next_answer(&mut self) -> Result<Option<(Sent, Answer<'_>)>, ProtocolError> {
        if !self.reader.has_frame()? || self.sent.is_empty() {
            return Ok(None);
        }
        let is_written = self.first_is_written();
        let frame = self.reader.next_frame()?.expect("there is one");
        let (message, refers) = Message::read(frame)?;
        let answer = match message {
            Message::Answer(answer) => answer,
            Message::Notification {
                method: wire::BUFFERS,
                params,
            } => {
                let calls = self.sent.iter().map(|sent| &sent.call);
                self.arenas.note(params, calls)?;
                return Ok(None);
            }
            Message::Notification { .. } => return Ok(None), // from a later version
            Message::Call { .. } => return Err(ProtocolError::new("it sent a call")),
        };
        if !is_written {
            let sentence = "it answered before it had read the call";
            return Err(ProtocolError::new(sentence));
        }
        let expected = self.sent[0].call.wire_id;
        if answer.id != expected {
            return Err(ProtocolError::new(format!(
                "it answered call {} instead of {expected}",
                answer.id
            )));
        }
        self.answered += 1;
        let mut sent = self.sent.pop_front().expect("the first is written");
        if refers && let Outcome::Value(value) = answer.outcome {
            sent.received = self.arenas.receive(value)?;
        }
        Ok(Some((sent, answer)))
    }

    /// Makes the last call ready to be written. One that cannot be sent is given back.
    pub(super) fn prepare(&mut self, max_frame: usize) -> Result<(), Box<(Sent, EncodeError)>> {
        let (1.., Some(last)) = (self.unwritten, self.sent.back_mut()) else {
            return Ok(());
        };
        let limit = wire::frame_limit(max_frame);
        self.arenas.prepare(&mut last.call, limit).map_err(|error| {
            self.unwritten -= 1;
            Box::new((self.sent.pop_back().expect("there is one"), error))
        })
    }

    /// Blocks until something happens, and meanwhile writes what is to be written.
    pub(super) fn wait(&mut self, deadline: Option<Instant>) -> Event {
        loop {
            match self.reader.has_frame() {
                Ok(true) => return Event::Frame,
                Ok(false) => {}
                Err(error) => return Event::Garbage(error),
            }
            if self.write().is_err() {
                return Event::Closed;
            }
            let ready = self.poll(self.unwritten > 0, deadline);
            if ready.socket {
                match self.read() {
                    Ok(0) if ready.process => return Event::Died,
                    Ok(0) => return Event::Closed,
                    Ok(n) if ready.process && n < self.last_words => {
                        self.last_words -= n;
                        continue;
                    }
                    Ok(_) if ready.process => self.last_words = 0,
                    Ok(_) if self.reader.has_frame() != Ok(false) => continue,
                    // Bytes that come without an end must not keep us from what else there is.
                    Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return Event::Closed,
                }
            }
            match ready {
                Ready { process: true, .. } => return Event::Died,
                Ready { wakeup: true, .. } => {
                    self.process.wakeup().clear();
                    return Event::Woken;
                }
                Ready {
                    writable: false, ..
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
        loop {
            match self.reader.has_frame() {
                Ok(false) if self.last_words > 0 => {}
                result => return result.unwrap_or(false),
            }
            match self.read() {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return self.reader.has_frame().unwrap_or(false),
                Ok(n) => self.last_words = self.last_words.saturating_sub(n),
            }
        }
    }

    /// Tells an idle worker to leave: its next read is the end of the file.
    pub(super) fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    /// Writes what goes without blocking.
    fn write(&mut self) -> Result<(), Errno> {
        while self.unwritten > 0 {
            let first = self.sent.len() - self.unwritten;
            let mut frames = self.sent.range(first..).map(|sent| &sent.call.frame[..]);
            let rest = &frames.next().expect("there is one")[self.written..];
            // NOSIGNAL: the host may have SIGPIPE at its default, and a dead worker must not kill it.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = if self.unwritten == 1 {
                rustix::net::send(&self.socket, rest, flags)
            } else {
                let rest = std::iter::once(rest).chain(frames);
                let slices: Vec<_> = rest.map(IoSlice::new).collect();
                let nothing = &mut SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.socket, &slices, nothing, flags)
            };
            match sent {
                Ok(n) => self.advance(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// So many bytes more are written.
    fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        while self.unwritten > 0 {
            let first = self.sent.len() - self.unwritten;
            let length = self.sent[first].call.frame.len();
            if self.written < length {
                return;
            }
            self.written -= length;
            self.unwritten -= 1;
        }
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
            PollFd::from_borrowed_fd(self.process.wakeup().as_fd(), PollFlags::IN),
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

//! The host's end of one worker's socket: writing a call, reading the answer, and noticing the end, all in one `poll`.
//!
//! Writing never blocks: a worker that writes a large answer while it is sent a large call would otherwise wait for us
//! while we wait for it. End of file alone is not death, because a grandchild may hold the socket open, and because a
//! task may close it; the pidfd says what is true. But what a worker answered before it died counts, and so does the rest
//! of an answer that the kernel still holds: [`Connection::drain`] reads it after the death.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::arenas::Arenas;
use super::child::{Child, Process};
use super::hand::{Answered, Held};
use super::job::{Job, JobKey, Verdict};
use super::output::WorkerOutput;
use super::pace;
use super::packed::{Frame, Whole};
use super::wakeup::poll;
use crate::buffer::travel::{Attachment, Received};
use crate::lane::spin::Spin;
use crate::lane::{self, Broken, HostLane};
use crate::wire::{
    self, Answer, EncodeError, ErrorKind, FrameReader, Message, ProtocolError, RemoteErrorBody,
};

/// How long a worker may live on after its end of the socket was closed, before it is killed.
const END_OF_FILE_GRACE: Duration = Duration::from_millis(200);

/// A dead worker's socket holds no more than its send buffer; whoever goes on writing is a grandchild.
const LAST_WORDS: usize = 16 << 20;

/// So many answers are taken at a time.
const AT_ONCE: usize = 256;

/// How long an answer may lie beside others that are waited for together with it.
const PATIENCE: Duration = Duration::from_millis(1);

/// No worker has more to say before it was sent a call.
const LONGEST_HELLO: usize = 64 << 10;

pub(super) struct Connection {
    pub(super) process: Arc<Process>,
    watch: Arc<Watch>,
    pub(super) output: WorkerOutput,
    pub(super) born: Instant,
    /// The memory that buffers travel in.
    pub(super) arenas: Arenas,
    /// What the worker has said and nobody has looked at yet.
    pub(super) reader: FrameReader,
    /// How many calls are with the worker, as far as its waiter knows.
    pub(super) out: usize,
    /// The first of them.
    pub(super) first: Option<First>,
    /// The frames that are to be written to the socket.
    unwritten: VecDeque<Outgoing>,
    /// How much of the first of those is written.
    written: usize,
    /// The buffers that the call which is with the worker refers to: such a one goes alone.
    lent: Vec<Attachment>,
    /// The memory that the worker shares with us, if it uses it.
    lane: Option<Lane>,
    /// What was wrong with what it said, when somebody else than its waiter found it out.
    pub(super) broken: Option<ProtocolError>,
    /// Room for answers that are being dealt with.
    pub(super) told: Vec<Heard>,
    /// And for what becomes of the calls.
    pub(super) become_of: Vec<Answered>,
    /// Whether its waiter sits by: others may look for answers, and leave it to the waiter when they do not come.
    pub(super) sits: bool,
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
    looked: (Option<u64>, usize, usize, u64),
    /// The lane that it was offered.
    offered: Option<Arc<HostLane>>,
    /// How many answers have come through the lane.
    heard: u64,
    /// Whether each answer is to be told at once: of those that were waited for together, one takes its time.
    hurry: bool,
}

/// What a waiter watches in its sleep.
struct Watch {
    process: Arc<Process>,
    socket: OwnedFd,
}

/// The lane as its worker's waiter has it.
struct Lane {
    ends: Arc<HostLane>,
    reader: FrameReader,
    /// Whether the next frame is on the socket: the lane has said so.
    on_socket: bool,
    /// Calls that the worker does not see yet.
    unpublished: bool,
    /// How much room there is for calls.
    room: usize,
    spin: Spin,
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

/// The call that the worker answers next.
#[derive(Clone, Copy)]
pub(super) struct First {
    pub(super) key: JobKey,
    wire_id: u64,
    /// When it was sent.
    pub(super) at: Instant,
    pub(super) timeout: Option<Duration>,
    /// When the worker is to be killed for one of its jobs that does not stop.
    pub(super) kill_at: Option<Instant>,
}

impl First {
    pub(super) fn of(held: &Held, timeout: Option<Duration>, kill_at: Option<Instant>) -> First {
        First {
            key: held.key,
            wire_id: held.wire_id,
            at: held.at,
            timeout,
            kill_at,
        }
    }
}

/// A frame that is to be written to the socket.
struct Outgoing {
    wire_id: u64,
    call: Arc<Whole>,
}

/// An answer, whose bytes are in the reader.
pub(super) struct Heard {
    /// The number of the call.
    pub(super) id: u64,
    pub(super) outcome: Said,
    /// In which of the readers its bytes are.
    pub(super) on_socket: bool,
    /// The buffers that it refers to.
    pub(super) received: Received,
}

impl Heard {
    /// Whether the worker says that it has not begun with the call, because it was asked not to.
    pub(super) fn is_passed_over(&self) -> bool {
        let cancelled = ErrorKind::Cancelled;
        self.outcome
            .as_ref()
            .is_err_and(|error| error.kind == cancelled)
    }
}

/// Where the value is, or the error.
type Said = Result<Range<usize>, Box<RemoteErrorBody>>;

fn broken(broken: Broken) -> ProtocolError {
    ProtocolError::new(broken.to_string())
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

impl Lane {
    /// Whether the next frame is on the socket, and nobody has seen to it.
    fn is_at_mark(&self) -> bool {
        !self.on_socket && self.reader.has_empty_frame()
    }
}

impl Connection {
    pub(super) fn new(child: Child) -> Self {
        let Child {
            process,
            socket,
            lane,
            output,
            born,
        } = child;
        Connection {
            arenas: Arenas::new(Arc::clone(&process)),
            watch: Arc::new(Watch {
                process: Arc::clone(&process),
                socket,
            }),
            process,
            output,
            born,
            reader: FrameReader::new(LONGEST_HELLO),
            out: 0,
            first: None,
            unwritten: VecDeque::new(),
            lent: Vec::new(),
            lane: None,
            broken: None,
            told: Vec::new(),
            become_of: Vec::new(),
            sits: false,
            offered: lane.map(Arc::new),
            heard: 0,
            hurry: false,
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
            looked: (None, 0, 0, 0),
        }
    }

    /// From here on all goes through the lane that was offered.
    pub(super) fn use_lane(&mut self, spin: Duration) -> Result<(), ProtocolError> {
        let Some(ends) = self.offered.take() else {
            return Err(ProtocolError::new("it uses a lane that it was not offered"));
        };
        self.process.use_lane(Arc::clone(&ends));
        self.lane = Some(Lane {
            ends,
            reader: FrameReader::new(lane::LONGEST),
            spin: Spin::new(spin),
            on_socket: false,
            unpublished: false,
            room: 0,
        });
        Ok(())
    }

    /// It has said that it does without.
    pub(super) fn refuse_lane(&mut self) {
        self.offered = None;
    }

    /// How many calls may be with the worker at a time.
    pub(super) fn most_together(&self) -> usize {
        match self.lane {
            Some(_) => pace::MOST,
            None => pace::MOST_ON_A_SOCKET,
        }
    }

    /// Whether a call of up to so many bytes can be pushed now.
    pub(super) fn has_room_for(&mut self, bytes: usize) -> bool {
        let Some(lane) = &mut self.lane else {
            return true;
        };
        if lane.room < bytes {
            // What is wrong with it is found out where it can be told.
            lane.room = lane.ends.room().unwrap_or(0);
        }
        lane.room >= bytes
    }

    /// Others may have given the worker calls.
    pub(super) fn forget_room(&mut self) {
        if let Some(lane) = &mut self.lane {
            lane.room = 0;
        }
    }

    /// Gives the worker a call behind those that it has, or puts it behind those that are to be written.
    pub(super) fn push(&mut self, wire_id: u64, frame: &Frame<'_>) {
        let attachments = frame.attachments();
        // What refers to buffers is made ready before it is written.
        let by_socket = frame.bytes().len() > lane::LONGEST || !attachments.is_empty();
        self.lent.extend_from_slice(attachments);
        if let Some(lane) = &mut self.lane {
            let part = match by_socket {
                true => &lane::ON_THE_SOCKET[..],
                false => frame.bytes(),
            };
            lane.ends.push(part);
            lane.room = lane.room.saturating_sub(part.len());
            lane.unpublished = true;
        }
        if by_socket || self.lane.is_none() {
            let call = frame.to_shared();
            self.unwritten.push_back(Outgoing { wire_id, call });
        }
        self.hurry = false;
    }

    /// Whether the worker takes calls out of shared memory.
    pub(super) fn has_lane(&self) -> bool {
        self.lane.is_some()
    }

    /// Whether the frames are written to their ends.
    pub(super) fn first_is_written(&self) -> bool {
        self.unwritten.is_empty()
    }

    /// Whether the worker has neither answered nor read anything since this was asked last.
    pub(super) fn stands_still(&mut self) -> bool {
        let first = self.first.map(|first| first.wire_id);
        let read = self.lane.as_ref().map_or(0, |lane| lane.ends.calls_read());
        let now = (first, self.unwritten.len(), self.written, read);
        std::mem::replace(&mut self.looked, now) == now
    }

    /// The reader in which the next frame is, or will be.
    pub(super) fn reader(&mut self) -> &mut FrameReader {
        match &mut self.lane {
            Some(lane) if !lane.on_socket => &mut lane.reader,
            _ => &mut self.reader,
        }
    }

    /// Whether a whole frame is there.
    fn has_frame(&mut self) -> Result<bool, ProtocolError> {
        if let Some(lane) = &mut self.lane
            && !lane.on_socket
            && lane.reader.has_frame()?
            && lane.reader.has_empty_frame()
        {
            lane.reader.next_frame()?;
            lane.on_socket = true;
        }
        self.reader().has_frame()
    }

    /// The answers in the frames that are there, but not too many at once, into `heard`. What is no answer and may be passed over
    /// is. Those before bad bytes count.
    pub(super) fn answers(&mut self, heard: &mut Vec<Heard>) -> Result<(), ProtocolError> {
        while heard.len() < AT_ONCE {
            let is_mark = self.lane.as_ref().is_some_and(Lane::is_at_mark);
            if is_mark || !self.reader().has_frame()? {
                break;
            }
            heard.extend(self.next_answer()?);
            if self.lane.is_some() && heard.last().is_some_and(|answer| answer.on_socket) {
                break; // the next one is in the lane again
            }
        }
        Ok(())
    }

    /// The next of them; `None` for what is no answer.
    fn next_answer(&mut self) -> Result<Option<Heard>, ProtocolError> {
        let on_socket = self.lane.as_ref().is_none_or(|lane| lane.on_socket);
        let reader = match &mut self.lane {
            Some(lane) if !lane.on_socket => &mut lane.reader,
            _ => &mut self.reader,
        };
        let range = reader.next_range()?.expect("there is a frame");
        let (message, refers) = Message::read(reader.slice(range.clone()))?;
        let answer = match message {
            Message::Answer(answer) => Some(answer),
            Message::Notification {
                method: wire::BUFFERS,
                params,
            } => {
                self.arenas.note(params, &self.lent)?;
                None
            }
            Message::Notification { .. } => None, // from a later version
            Message::Call { .. } => return Err(ProtocolError::new("it sent a call")),
        };
        let answer = answer.map(|Answer { id, outcome }| match outcome {
            wire::Outcome::Value(value) => (id, Ok(range.end - value.len()..range.end)),
            wire::Outcome::Error(error) => (id, Err(Box::new(error))),
        });
        if let Some(lane) = &mut self.lane {
            lane.on_socket = false;
        }
        let Some((id, outcome)) = answer else {
            return Ok(None);
        };
        if self.unwritten.front().is_some_and(|it| it.wire_id <= id) {
            let sentence = "it answered before it had read the call";
            return Err(ProtocolError::new(sentence));
        }
        let received = match &outcome {
            Ok(range) if refers => {
                let reader = match &self.lane {
                    Some(lane) if !on_socket => &lane.reader,
                    _ => &self.reader,
                };
                self.arenas.receive(reader.slice(range.clone()))?
            }
            _ => Received::new(),
        };
        self.answered += 1;
        self.heard += 1;
        // Before anybody hears of it: the next buffer can lie where this call's have been.
        self.lent.clear();
        Ok(Some(Heard {
            id,
            outcome,
            on_socket,
            received,
        }))
    }

    /// What an answer says. Its bytes stay where they are until more are read.
    pub(super) fn outcome(&self, outcome: Said, on_socket: bool) -> wire::Outcome<'_> {
        let reader = match &self.lane {
            Some(lane) if !on_socket => &lane.reader,
            _ => &self.reader,
        };
        match outcome {
            Ok(range) => wire::Outcome::Value(reader.slice(range)),
            Err(error) => wire::Outcome::Error(*error),
        }
    }

    /// Makes the last call ready to be written. One that cannot be sent is taken out again.
    pub(super) fn prepare(&mut self, max_frame: usize) -> Result<(), EncodeError> {
        let (Some(last), false) = (self.unwritten.back_mut(), self.lent.is_empty()) else {
            return Ok(());
        };
        let limit = wire::frame_limit(max_frame);
        match self.arenas.prepare(&last.call.frame, &self.lent, limit) {
            Ok(None) => {}
            Ok(Some(inlined)) => {
                last.call = Arc::new(Whole::of(inlined));
                self.lent.clear();
            }
            Err(error) => {
                self.unwritten.pop_back();
                self.lent.clear();
                if let Some(lane) = &mut self.lane {
                    lane.ends.pop(lane::ON_THE_SOCKET.len());
                    lane.unpublished = false; // such a call is alone
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The worker is dead, or as good as that. Children that it has left may go on reading what it was shown.
    pub(super) fn bury_arenas(&self) {
        self.arenas.bury(&self.lent);
    }

    /// Blocks until something happens, and meanwhile writes what is to be written. While it sleeps, others may have the
    /// connection.
    pub(super) fn wait(this: &mut MutexGuard<'_, Connection>, deadline: Option<Instant>) -> Event {
        this.publish();
        loop {
            match this.has_frame() {
                Ok(true) => return Event::Frame,
                Ok(false) => {}
                Err(error) => return Event::Garbage(error),
            }
            if this.write().is_err() {
                return Event::Closed;
            }
            match this.read_lane() {
                Ok(0) => {}
                Ok(_) if this.has_frame() != Ok(false) => continue,
                Ok(_) => {}
                Err(error) => return Event::Garbage(error),
            }
            if this.spins() {
                continue;
            }
            let (ready, patient) = Connection::sleep(this, deadline);
            if ready.socket && this.reads_socket() {
                match this.read() {
                    Ok(0) if ready.process => return Event::Died,
                    Ok(0) => return Event::Closed,
                    Ok(n) if ready.process && n < this.last_words => {
                        this.last_words -= n;
                        continue;
                    }
                    Ok(_) if ready.process => this.last_words = 0,
                    Ok(_) if this.has_frame() != Ok(false) => continue,
                    // Bytes that come without an end must not keep us from what else there is.
                    Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return Event::Closed,
                }
            }
            let words = this.lane.as_ref().is_some_and(|lane| lane.ends.has_bytes());
            match ready {
                // It has said something before. What a lane holds is bounded; it is read once more.
                Ready { process: true, .. } if words && this.last_words > 0 => {
                    this.last_words = this.last_words.saturating_sub(lane::LONGEST);
                }
                Ready { process: true, .. } => return Event::Died,
                Ready { wakeup: true, .. } => {
                    this.process.wakeup().clear();
                    return Event::Woken;
                }
                Ready { socket: true, .. } if !this.reads_socket() && !words => {
                    return Event::Closed;
                }
                Ready {
                    writable: false, ..
                } if is_past(deadline) => return Event::Late,
                // Patience is at its end: whatever comes next is wanted at once.
                Ready {
                    bell: false,
                    socket: false,
                    writable: false,
                    ..
                } if patient && !words => this.hurry = true,
                _ => {}
            }
        }
    }

    /// Looks for a while whether the one answer that is awaited comes. Whether it did.
    fn spins(&mut self) -> bool {
        match &mut self.lane {
            Some(lane) if !lane.on_socket && self.out == 1 && self.unwritten.is_empty() => {
                lane.spin.until(|| lane.ends.has_bytes())
            }
            _ => false,
        }
    }

    /// Has the worker not ring for the waiter, which sits by: somebody else looks into the lane.
    pub(super) fn take_watch(&mut self) -> Option<Arc<HostLane>> {
        let lane = self.lane.as_ref().filter(|lane| !lane.on_socket)?;
        lane.ends.wake_up();
        Some(Arc::clone(&lane.ends))
    }

    /// Looks for an answer in the place of the waiter, which sits by. Whether there is a whole frame. Afterwards the watch
    /// is to be [left](Self::leave_watch).
    pub(super) fn look(&mut self, spin: bool) -> Result<bool, ProtocolError> {
        let Some(lane) = &mut self.lane else {
            return Ok(false);
        };
        lane.ends.wake_up();
        if lane.on_socket || (spin && !lane.spin.until(|| lane.ends.has_bytes())) {
            return Ok(false);
        }
        self.read_lane()?;
        Ok(matches!(self.has_frame(), Ok(true)) && !self.reads_socket())
    }

    /// From here on the waiter watches. Whether there is something for it already, for which it has to be woken.
    #[must_use = "a waiter that sleeps does not look"]
    pub(super) fn leave_watch(&mut self) -> bool {
        let heard = self.heard;
        match &mut self.lane {
            Some(lane) => !lane.ends.doze(heard + 1) || lane.on_socket || !lane.reader.is_empty(),
            None => false,
        }
    }

    /// Whether what comes next is on the socket.
    fn reads_socket(&self) -> bool {
        self.lane.as_ref().is_none_or(|lane| lane.on_socket)
    }

    /// Takes what is in the lane. How much.
    fn read_lane(&mut self) -> Result<usize, ProtocolError> {
        match &mut self.lane {
            Some(lane) if !lane.on_socket => {
                if lane.ends.room().is_err() {
                    return Err(broken(Broken));
                }
                lane.ends.read(lane.reader.room()).map_err(broken)
            }
            _ => Ok(0),
        }
    }

    /// Sleeps until something happens. Whether it was for less than that, because answers may lie beside others: second.
    fn sleep(this: &mut MutexGuard<'_, Connection>, deadline: Option<Instant>) -> (Ready, bool) {
        let (until, patient) = this.doze(deadline);
        let watch = Arc::clone(&this.watch);
        let for_what = Interest {
            write: !this.unwritten.is_empty(),
            // What is on the socket is not due before the lane says so; but that it ends is to be seen.
            read: this.reads_socket(),
        };
        let ready = MutexGuard::unlocked(this, || watch.poll(for_what, until));
        if let Some(lane) = &mut this.lane {
            if !lane.on_socket {
                lane.ends.wake_up();
            }
            if ready.bell {
                lane.spin.came();
                lane.ends.clear_bell();
            }
        }
        (ready, patient)
    }

    /// Says to the worker that we sleep. Until when at the most; and whether that is sooner than `deadline`.
    fn doze(&self, deadline: Option<Instant>) -> (Option<Instant>, bool) {
        let Some(lane) = self.lane.as_ref().filter(|lane| !lane.on_socket) else {
            return (deadline, false);
        };
        let wanted = match self.hurry {
            true => 1,
            false => self.out.saturating_sub(self.refill_at).max(1) as u64,
        };
        let patient = wanted > 1;
        let until = match lane.ends.doze(self.heard + wanted) {
            false => Some(Instant::now()),
            true if patient => {
                let until = Instant::now() + PATIENCE;
                Some(deadline.map_or(until, |deadline| deadline.min(until)))
            }
            true => deadline,
        };
        (until, patient)
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

    /// Takes what the kernel and the lane still hold of a dead worker's words. Whether there is a whole frame then.
    pub(super) fn drain(&mut self) -> bool {
        loop {
            match self.has_frame() {
                Ok(false) if self.last_words > 0 => {}
                result => return result.unwrap_or(false),
            }
            let read = match self.reads_socket() {
                true => self.read(),
                false => self.read_lane().map_err(|_| Errno::BADMSG),
            };
            match read {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return self.has_frame().unwrap_or(false),
                Ok(n) => self.last_words = self.last_words.saturating_sub(n),
            }
        }
    }

    /// Tells an idle worker to leave: its next read is the end of the file.
    pub(super) fn close(&self) {
        let _ = rustix::net::shutdown(&self.watch.socket, rustix::net::Shutdown::Write);
    }

    /// Lets the worker see what is in its lane.
    fn publish(&mut self) {
        if let Some(lane) = &mut self.lane
            && std::mem::take(&mut lane.unpublished)
            && lane.ends.publish()
        {
            lane.ends.ring();
        }
    }

    /// Writes what goes over the socket without blocking.
    fn write(&mut self) -> Result<(), Errno> {
        while let Some(first) = self.unwritten.front() {
            let rest = &first.call.frame[self.written..];
            // NOSIGNAL: the host may have SIGPIPE at its default, and a dead worker must not kill it.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let socket = &self.watch.socket;
            let sent = if self.unwritten.len() == 1 {
                rustix::net::send(socket, rest, flags)
            } else {
                let others = self.unwritten.iter().skip(1).map(|it| &it.call.frame[..]);
                let rest = std::iter::once(rest).chain(others);
                let slices: Vec<_> = rest.map(IoSlice::new).collect();
                let nothing = &mut SendAncillaryBuffer::default();
                rustix::net::sendmsg(socket, &slices, nothing, flags)
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
        while let Some(first) = self.unwritten.front() {
            let length = first.call.frame.len();
            if self.written < length {
                return;
            }
            self.written -= length;
            self.unwritten.pop_front();
        }
    }

    /// Reads once, without blocking, into the reader.
    fn read(&mut self) -> Result<usize, Errno> {
        let room = rustix::buffer::spare_capacity(self.reader.room());
        rustix::net::recv(&self.watch.socket, room, RecvFlags::DONTWAIT).map(|(n, _)| n)
    }
}

impl Watch {
    fn poll(&self, interest: Interest, deadline: Option<Instant>) -> Ready {
        let mut flags = match interest.read {
            true => PollFlags::IN,
            false => PollFlags::RDHUP,
        };
        flags.set(PollFlags::OUT, interest.write);
        let wakeup = self.process.wakeup().as_fd();
        let lane = self.process.lane();
        let bell = lane.map_or(wakeup, |lane| lane.bell());
        let mut fds = [
            PollFd::from_borrowed_fd(self.socket.as_fd(), flags),
            PollFd::from_borrowed_fd(self.process.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(wakeup, PollFlags::IN),
            PollFd::from_borrowed_fd(bell, PollFlags::IN),
        ];
        let count = if lane.is_some() { 4 } else { 3 };
        poll(&mut fds[..count], deadline);
        let [socket, process, wakeup, bell] = fds.map(|fd| fd.revents());
        Ready {
            socket: socket
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR),
            writable: socket.contains(PollFlags::OUT),
            process: !process.is_empty(),
            wakeup: !wakeup.is_empty(),
            bell: !bell.is_empty(),
        }
    }
}

/// For what a sleep ends on the socket.
#[derive(Clone, Copy)]
struct Interest {
    read: bool,
    write: bool,
}

struct Ready {
    socket: bool,
    writable: bool,
    process: bool,
    wakeup: bool,
    bell: bool,
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

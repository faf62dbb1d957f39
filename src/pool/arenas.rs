//! The host's end of the memory that large buffers travel in, for one worker: its own arenas, which it shows to the worker,
//! and the worker's, which it reads.
//!
//! A buffer of the host's stays as it is for as long as somebody holds its lease: the user, the job, the call that is with
//! the worker, and, when the worker says that a task has kept it, this file, until the worker says otherwise. What a worker
//! was reading when it died may be read by a child of its; it is never used for another buffer.
//!
//! The worker is a stranger. What it shows must be sealed, so that it cannot take pages away under a reader, and really be
//! there, so that it costs the worker as much as us. Its bytes are copied into memory of ours before anybody looks at them.
//! Only those of workers that were declared trusted are read where they are, until the last buffer there is gone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};

use super::child::Process;
use crate::buffer::arena::{self, Lease};
use crate::buffer::packet::{self, Came, Packet, Word};
use crate::buffer::travel::{self, Attachment, Received, Reference};
use crate::buffer::{Buffer, Foreign};
use crate::hook::memory::{View, owned_length};
use crate::wire::{
    Answer, BuffersNotice, DecodeError, EncodeError, Message, Outcome, ProtocolError, decode_value,
    references_in,
};
use parking_lot::Mutex;

/// How many arenas a worker may have.
const MOST_THEIRS: usize = 128;

/// How many packets are read in search of one arena.
const MOST_PACKETS: usize = 512;

/// How many of ours a worker is shown at a time.
const MOST_OURS: usize = 128;

/// See the module.
pub(super) struct Arenas {
    /// Where they are spoken of.
    requests: Arc<OwnedFd>,
    /// Whether the worker takes references.
    pub(super) shared: bool,
    /// Whether its arenas are read in place.
    pub(super) trusted: bool,
    /// Ours that the worker knows, and whether they are still alive.
    announced: BTreeMap<u64, Weak<()>>,
    /// Ours that a task has kept for itself.
    kept: BTreeMap<u64, Arc<Lease>>,
    theirs: BTreeMap<u64, Theirs>,
    returns: Arc<Returns>,
}

/// An arena of the worker's.
struct Theirs {
    memfd: OwnedFd,
    size: u64,
    handed_over: bool,
    view: Option<Arc<View>>,
}

/// Tells the worker what has been read.
struct Returns {
    /// Weak: a buffer may live longer than its worker, and shall not keep its descriptors open.
    requests: Weak<OwnedFd>,
    /// What could not be told yet, as the worker had not read what it was told before.
    pending: Mutex<Vec<u64>>,
}

impl Returns {
    fn give(&self, number: u64) {
        let mut pending = self.pending.lock();
        pending.push(number);
        self.flush(&mut pending);
    }

    fn flush(&self, pending: &mut Vec<u64>) {
        let Some(requests) = self.requests.upgrade() else {
            return pending.clear();
        };
        while let Some(number) = pending.last() {
            match packet::send(requests.as_fd(), Word::Returned, *number, None) {
                Ok(()) => drop(pending.pop()),
                Err(_) => return,
            }
        }
    }
}

impl Arenas {
    pub(super) fn new(process: Arc<Process>) -> Arenas {
        Arenas::on(Arc::clone(process.requests()))
    }

    fn on(requests: Arc<OwnedFd>) -> Arenas {
        let returns = Returns {
            requests: Arc::downgrade(&requests),
            pending: Mutex::default(),
        };
        Arenas {
            requests,
            shared: false,
            trusted: false,
            announced: BTreeMap::new(),
            kept: BTreeMap::new(),
            theirs: BTreeMap::new(),
            returns: Arc::new(returns),
        }
    }

    /// Makes a call ready to be written: the worker is shown the arenas that it refers to. If that cannot be, the bytes go
    /// into the frame: another one, which is returned.
    ///
    /// # Errors
    /// It would then be longer than `limit`.
    pub(super) fn prepare(
        &mut self,
        frame: &[u8],
        attachments: &[Attachment],
        limit: usize,
    ) -> Result<Option<Vec<u8>>, EncodeError> {
        self.returns.flush(&mut self.returns.pending.lock());
        self.forget();
        if self.shared && attachments.iter().all(|it| self.announce(&it.lease)) {
            return Ok(None);
        }
        travel::inlined(frame, attachments, limit).map(Some)
    }

    /// Whether the worker knows an arena of ours, now.
    fn announce(&mut self, lease: &Lease) -> bool {
        let number = lease.number();
        if self.announced.contains_key(&number) {
            return true;
        }
        let keeps = lease.size() <= arena::keep();
        if self.announced.len() >= MOST_OURS {
            return false;
        }
        let word = match keeps {
            true => Word::Announced,
            false => Word::HandedOver,
        };
        let memory = Some((lease.size() as u64, lease.memfd()));
        let sent = packet::send(self.requests.as_fd(), word, number, memory).is_ok();
        if sent && keeps {
            self.announced.insert(number, lease.alive());
        }
        sent
    }

    /// Has the worker let go of arenas that are no more.
    fn forget(&mut self) {
        let requests = &self.requests;
        self.announced.retain(|number, alive| {
            alive.strong_count() > 0
                || packet::send(requests.as_fd(), Word::Forget, *number, None).is_err()
        });
    }

    /// The worker says what has become of arenas. `attachments`: those of the call that it has not answered.
    pub(super) fn note(
        &mut self,
        params: &[u8],
        attachments: &[Attachment],
    ) -> Result<(), ProtocolError> {
        let notice = BuffersNotice::parse(params)?;
        for Attachment { lease, .. } in attachments {
            if notice.kept.contains(&lease.number()) {
                self.kept.insert(lease.number(), Arc::clone(lease));
            }
        }
        for number in &notice.freed {
            self.kept.remove(number);
        }
        for number in &notice.forgotten {
            self.announced.remove(number);
        }
        for number in &notice.gone {
            self.theirs.remove(number);
        }
        Ok(())
    }

    /// The buffers that an answer refers to.
    ///
    /// # Errors
    /// It refers to what is not there.
    pub(super) fn receive(&mut self, value: &[u8]) -> Result<Received, ProtocolError> {
        let mut references: Vec<Reference> = Vec::new();
        for (_, reference) in references_in(value) {
            if references.len() == travel::MOST {
                return Err(ProtocolError::new("an answer with too many buffers"));
            }
            if !references.contains(&reference) {
                references.push(reference);
            }
        }
        let mut received = Received::new();
        while let Some(number) = references.first().map(|it| it.arena) {
            let (these, others) = references.into_iter().partition(|it| it.arena == number);
            references = others;
            self.read(number, these, &mut received)?;
        }
        Ok(received)
    }

    /// Reads what an answer refers to in one arena.
    fn read(
        &mut self,
        number: u64,
        references: Vec<Reference>,
        received: &mut Received,
    ) -> Result<(), ProtocolError> {
        self.find(number)?;
        let theirs = self.theirs.get_mut(&number).expect("it was found");
        let whole = theirs.whole(&references)?;
        let buffer = match self.trusted {
            true => theirs.in_place(number, &self.returns)?.slice(whole.clone()),
            false => theirs.copied(&whole)?,
        };
        for reference in references {
            let range = theirs.range(reference)?;
            let part = range.start - whole.start..range.end - whole.start;
            received.push((reference, buffer.slice(part)));
        }
        if theirs.handed_over {
            self.theirs.remove(&number);
        } else if !self.trusted {
            self.returns.give(number);
        }
        Ok(())
    }

    /// Sees to it that an arena of the worker's is known, which it must have announced before.
    fn find(&mut self, number: u64) -> Result<(), ProtocolError> {
        for _ in 0..MOST_PACKETS {
            if self.theirs.contains_key(&number) {
                return Ok(());
            }
            match packet::receive(self.requests.as_fd()) {
                Some(Came::Arena(packet)) => self.take(packet)?,
                Some(Came::Other(_)) => {} // of a later version
                None => break,
            }
        }
        let sentence = format!("it referred to shared memory {number}, which is not there");
        Err(ProtocolError::new(sentence))
    }

    fn take(&mut self, packet: Packet) -> Result<(), ProtocolError> {
        let handed_over = match packet.word {
            Word::Announced => false,
            Word::HandedOver => true,
            Word::Forget | Word::Returned => return Ok(()),
        };
        // Without the descriptor there was none left in this process. That is said when it is missed.
        let Some(memfd) = packet.memfd else {
            return Ok(());
        };
        if self.theirs.len() >= MOST_THEIRS {
            return Err(ProtocolError::new("it has too much shared memory"));
        }
        let theirs = Theirs {
            memfd,
            size: packet.size,
            handed_over,
            view: None,
        };
        theirs.check()?;
        self.theirs.insert(packet.arena, theirs);
        Ok(())
    }

    /// The worker is dead, or as good as that, with a call that refers to these. Children that it has left may go on reading.
    pub(super) fn bury(&self, attachments: &[Attachment]) {
        let leases = attachments.iter().map(|it| &it.lease);
        leases.chain(self.kept.values()).for_each(|it| it.spoil());
    }
}

impl Theirs {
    /// Whether it is what was announced. Anything but such memory might be slow to read, or have no end, or lose a page under
    /// who reads it.
    fn check(&self) -> Result<(), ProtocolError> {
        let length = owned_length(self.memfd.as_fd()).map_err(unreadable)?;
        match length as u64 == self.size {
            true => Ok(()),
            false => Err(ProtocolError::new("shared memory of another size")),
        }
    }

    fn range(&self, reference: Reference) -> Result<Range<usize>, ProtocolError> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        reference
            .range(size)
            .ok_or_else(|| ProtocolError::new("a buffer behind the end of its shared memory"))
    }

    /// The range in which all of these are.
    fn whole(&self, references: &[Reference]) -> Result<Range<usize>, ProtocolError> {
        let (mut start, mut end) = (usize::MAX, 0);
        for reference in references {
            let range = self.range(*reference)?;
            (start, end) = (start.min(range.start), end.max(range.end));
        }
        Ok(start..end)
    }

    /// It as a mapping, which is made once.
    fn view(&mut self) -> std::io::Result<Arc<View>> {
        if let Some(view) = &self.view {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(View::new(self.memfd.as_fd())?);
        self.view = Some(Arc::clone(&view));
        Ok(view)
    }

    /// A part of it, copied into memory of ours.
    fn copied(&mut self, range: &Range<usize>) -> Result<Buffer, ProtocolError> {
        let view = match self.handed_over {
            true => None, // it is read once
            false => self.view().ok(),
        };
        Buffer::try_with_len(range.len(), |bytes| match view {
            Some(view) => {
                view.copy(range.start, bytes);
                Ok(())
            }
            None => packet::copy_out(&self.memfd, range.start as u64, bytes),
        })
        .map_err(unreadable)
    }

    /// All of it, where it is. The worker gets it back when nobody reads it any more.
    fn in_place(&mut self, number: u64, returns: &Arc<Returns>) -> Result<Buffer, ProtocolError> {
        let view = self.view().map_err(unreadable)?;
        let length = view.len();
        let returns = Arc::clone(returns);
        let gone: Option<Box<dyn FnOnce() + Send + Sync>> = match self.handed_over {
            true => None,
            false => Some(Box::new(move || returns.give(number))),
        };
        let foreign = Arc::new(Foreign::new(view, gone));
        Ok(Buffer::foreign(foreign, 0, length).expect("the whole of it is there"))
    }
}

fn unreadable(why: impl std::fmt::Display) -> ProtocolError {
    ProtocolError::new(format!("its shared memory cannot be read: {why}"))
}

/// What a host makes of a worker's shared memory, whatever that says on its socket of requests and in its answers. For those
/// who play a worker and cannot start a process for each; no part of the interface.
#[doc(hidden)]
pub struct MemoryOfWorker(Arenas);

impl MemoryOfWorker {
    /// `requests`: the host's end of the socket.
    pub fn new(requests: OwnedFd, trusted: bool) -> MemoryOfWorker {
        let mut arenas = Arenas::on(Arc::new(requests));
        arenas.trusted = trusted;
        MemoryOfWorker(arenas)
    }

    /// The buffers of which an answer consists, given the body of its frame.
    pub fn answer(
        &mut self,
        body: &[u8],
    ) -> Result<Result<Vec<Buffer>, DecodeError>, ProtocolError> {
        match Message::parse(body)? {
            Message::Answer(Answer {
                outcome: Outcome::Value(value),
                ..
            }) => {
                let received = self.0.receive(value)?;
                Ok(travel::with_received(
                    received,
                    crate::wire::MAX_FRAME,
                    || decode_value(value),
                ))
            }
            Message::Notification { params, .. } => {
                self.0.note(params, &[])?;
                Ok(Ok(Vec::new()))
            }
            _ => Ok(Ok(Vec::new())),
        }
    }
}

//! The worker's end of the memory that large buffers travel in: the host's arenas, which it reads in place, and its own,
//! in which it lends results to the host.
//!
//! What it has mapped of the host's stays mapped for the next buffer that comes there, up to a bound. Before each answer the
//! host is told which of its arenas a task has kept for itself (in a static, or a thread), so that nothing else is written
//! there; a fork keeps them too, as the child has what its parent had. How it is all said is in `docs/protocol.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};

use super::requests;
use crate::buffer::Buffer;
use crate::buffer::Foreign;
use crate::buffer::arena::{self, Lease};
use crate::buffer::packet::{self, Came, Packet, Word};
use crate::buffer::travel::{self, Attachment, Received, Reference};
use crate::hook;
use crate::hook::memory::View;
use crate::wire::{
    BuffersNotice, EncodeError, Encoder, Message, ProtocolError, decode_value, references_in,
};

/// How many bytes of the host's arenas stay mapped that nobody reads.
const KEEP_MAPPED: usize = 128 << 20;

/// How many bytes of its own arenas a worker keeps for results to come.
const KEEP_OWN: usize = 128 << 20;

/// How many of its arenas the host is to know at a time: it has a descriptor of each.
const MOST_KNOWN: usize = 64;

/// How many numbers of each kind go into one notice, so that it fits into the smallest frame.
const NOTICED_AT_ONCE: usize = 24;

/// A worker with a limit of its address space has most of it for its jobs.
const PART_OF_LIMIT: u64 = 8;

#[derive(Default)]
pub(super) struct Arenas {
    /// From how many bytes on a buffer is lent to the host; `None`: the host takes none.
    share_from: Option<usize>,
    keep_mapped: usize,
    theirs: BTreeMap<u64, Theirs>,
    /// How often the arenas of `theirs` have been used.
    uses: u64,
    /// Those of the host's that the call refers to which is running.
    in_use: BTreeSet<u64>,
    /// How many of `theirs` are kept by tasks.
    kept: usize,
    /// What is lent to the host, and how many answers it has not said to have read.
    lent: BTreeMap<u64, (Arc<Lease>, u32)>,
    /// Whether an arena of ours that the host knows is still alive.
    known: BTreeMap<u64, Weak<()>>,
    notice: BuffersNotice,
}

/// An arena of the host's.
struct Theirs {
    memory: Arc<Foreign>,
    size: usize,
    /// It is let go of when it has been read.
    handed_over: bool,
    /// When it was used last.
    used: u64,
    /// A task reads it though its job is done; the host knows.
    kept: bool,
    /// How many forks there had been when it came to be read.
    forks: u32,
}

impl Arenas {
    /// `share_from`: what the host's hello says; `memory_limit`: that of this process.
    pub(super) fn new(share_from: Option<u64>, memory_limit: Option<u64>) -> Arenas {
        let part = memory_limit.map_or(usize::MAX, |limit| {
            usize::try_from(limit / PART_OF_LIMIT).unwrap_or(usize::MAX)
        });
        arena::set_keep(KEEP_OWN.min(part));
        // Without it nobody would know that a child reads what the host takes for free.
        let share_from = share_from.filter(|_| hook::count_forks().is_ok());
        Arenas {
            share_from: share_from.map(|from| usize::try_from(from).unwrap_or(usize::MAX)),
            keep_mapped: KEEP_MAPPED.min(part),
            ..Arenas::default()
        }
    }

    pub(super) fn share_from(&self) -> Option<usize> {
        self.share_from
    }

    /// The buffers that a call's arguments refer to.
    ///
    /// # Errors
    /// An arena is not there, or cannot be mapped, or there are too many references: the call fails.
    pub(super) fn receive(&mut self, args: &[u8]) -> Result<Received, String> {
        self.look();
        self.uses += 1;
        let mut received: Received = Vec::new();
        for (index, (_, reference)) in references_in(args).enumerate() {
            if index == travel::MOST {
                return Err("a call with too many buffers".to_owned());
            }
            if !received.iter().any(|(it, _)| *it == reference) {
                received.push((reference, self.buffer(reference)?));
            }
        }
        Ok(received)
    }

    fn buffer(&mut self, reference: Reference) -> Result<Buffer, String> {
        let number = reference.arena;
        let Some(theirs) = self.theirs.get_mut(&number) else {
            // It may have come without its descriptor: next time it is to be announced again.
            self.notice.forgotten.push(number);
            return Err(format!("there is no shared memory of the number {number}"));
        };
        let range = reference
            .range(theirs.size)
            .ok_or("a buffer behind the end of its shared memory")?;
        theirs.used = self.uses;
        if !theirs.kept {
            theirs.forks = hook::forks_made();
        }
        self.in_use.insert(number);
        Buffer::foreign(Arc::clone(&theirs.memory), range.start, range.len())
            .ok_or_else(|| "a buffer behind the end of its shared memory".to_owned())
    }

    /// Takes back what the host has read, so that the next result can be put there.
    pub(super) fn tidy(&mut self) {
        if !self.lent.is_empty() {
            self.look();
        }
    }

    /// Reads what the host has said of arenas.
    fn look(&mut self) {
        for packet in requests::arena_packets() {
            self.take(packet);
        }
    }

    fn take(&mut self, packet: Packet) {
        match packet.word {
            Word::Announced | Word::HandedOver => self.map(packet),
            Word::Forget => drop(self.theirs.remove(&packet.arena)),
            Word::Returned => {
                if let Some((_, answers)) = self.lent.get_mut(&packet.arena) {
                    *answers -= 1;
                    if *answers == 0 {
                        self.lent.remove(&packet.arena);
                    }
                }
            }
        }
    }

    /// Maps an arena of the host's. One that cannot be is not there: the call that needs it says so.
    fn map(&mut self, packet: Packet) {
        let Some(memfd) = packet.memfd else {
            return;
        };
        let view = View::new(memfd.as_fd()).or_else(|_| {
            // What is mapped and not read may have taken the room.
            self.shrink(0);
            View::new(memfd.as_fd())
        });
        // Not one that is shorter than was said: its maker is a stranger, then.
        let Ok(view) = view else {
            return;
        };
        let size = view.len();
        let theirs = Theirs {
            memory: Arc::new(Foreign::new(Arc::new(view), None)),
            size,
            handed_over: packet.word == Word::HandedOver,
            used: self.uses,
            kept: false,
            forks: hook::forks_made(),
        };
        self.theirs.insert(packet.arena, theirs);
    }

    /// Unmaps what nobody reads, the longest unused first, until no more than so many bytes are left.
    fn shrink(&mut self, keep: usize) {
        let mut idle: Vec<(u64, u64, usize)> = Vec::new();
        for (number, theirs) in &mut self.theirs {
            if Arc::get_mut(&mut theirs.memory).is_some() && !theirs.kept {
                idle.push((theirs.used, *number, theirs.size));
            }
        }
        idle.sort_unstable();
        let mut bytes: usize = idle.iter().map(|(_, _, size)| size).sum();
        for (_, number, size) in idle {
            if bytes <= keep {
                break;
            }
            bytes -= size;
            self.theirs.remove(&number);
            self.notice.forgotten.push(number);
        }
    }

    /// A call has been answered: what it referred to is either free, or kept.
    pub(super) fn finish_call(&mut self) {
        if self.in_use.is_empty() && self.kept == 0 {
            return;
        }
        let forks = hook::forks_made();
        let in_use = std::mem::take(&mut self.in_use);
        let mut over = Vec::new();
        for (number, theirs) in &mut self.theirs {
            // This orders what others have read before what the host writes next, as they have let go of it.
            let is_read = Arc::get_mut(&mut theirs.memory).is_none() || theirs.forks != forks;
            if is_read && !theirs.kept && in_use.contains(number) {
                theirs.kept = true;
                self.kept += 1;
                self.notice.kept.push(*number);
            } else if theirs.kept && !is_read {
                theirs.kept = false;
                self.kept -= 1;
                self.notice.freed.push(*number);
            }
            if !theirs.kept && theirs.handed_over {
                over.push(*number);
            }
        }
        for number in over {
            self.theirs.remove(&number);
        }
        self.shrink(self.keep_mapped);
    }

    /// Lends the host what an answer refers to. What cannot be lent is put into the answer, which may not have the room.
    pub(super) fn lend(&mut self, answer: &mut Encoder) -> Result<(), EncodeError> {
        let attachments = answer.take_attachments();
        if attachments.is_empty() {
            return Ok(());
        }
        if attachments.iter().all(|it| self.announce(it)) {
            let mut leases: BTreeMap<u64, Arc<Lease>> = BTreeMap::new();
            for Attachment { lease, .. } in attachments {
                leases.insert(lease.number(), lease);
            }
            for (number, lease) in leases {
                // One that is not to be kept is the host's alone from here on.
                if lease.size() <= arena::keep() {
                    self.lent.entry(number).or_insert((lease, 0)).1 += 1;
                }
            }
            return Ok(());
        }
        let frame = travel::inlined(answer.bytes(), &attachments, answer.limit())?;
        answer.replace(frame);
        Ok(())
    }

    /// Whether the host knows an arena of ours, now.
    fn announce(&mut self, attachment: &Attachment) -> bool {
        let lease = &attachment.lease;
        let number = lease.number();
        let alive = |known: &Weak<()>| known.strong_count() > 0;
        if self.known.get(&number).is_some_and(alive) {
            return true;
        }
        if self.known.len() >= MOST_KNOWN {
            return false;
        }
        let keeps = lease.size() <= arena::keep();
        let word = match keeps {
            true => Word::Announced,
            false => Word::HandedOver,
        };
        let memory = (lease.size() as u64, lease.memfd());
        let sent = requests::send(|socket| packet::send(socket, word, number, Some(memory)));
        if sent && keeps {
            self.known.insert(number, lease.alive());
        }
        sent
    }

    /// What the host has to know before the next answer, if there is anything more.
    pub(super) fn take_notice(&mut self) -> Option<BuffersNotice> {
        let notice = &mut self.notice;
        self.known.retain(|number, alive| {
            let is_alive = alive.strong_count() > 0;
            if !is_alive {
                notice.gone.push(*number);
            }
            is_alive
        });
        let mut some = |numbers: fn(&mut BuffersNotice) -> &mut Vec<u64>| {
            let numbers = numbers(notice);
            numbers.split_off(numbers.len().saturating_sub(NOTICED_AT_ONCE))
        };
        let now = BuffersNotice {
            kept: some(|it| &mut it.kept),
            freed: some(|it| &mut it.freed),
            forgotten: some(|it| &mut it.forgotten),
            gone: some(|it| &mut it.gone),
        };
        (!now.is_empty()).then_some(now)
    }
}

/// What a worker makes of its host's shared memory, whatever that says on the socket of requests and in its calls. For those who
/// play a host and cannot start a process for each; no part of the interface.
#[doc(hidden)]
pub struct MemoryOfHost {
    requests: OwnedFd,
    arenas: Arenas,
}

impl MemoryOfHost {
    /// `requests`: the worker's end of the socket.
    pub fn new(requests: OwnedFd) -> MemoryOfHost {
        MemoryOfHost {
            requests,
            arenas: Arenas::new(Some(1), None),
        }
    }

    /// The buffers of which the one argument of a call consists, given the body of its frame.
    pub fn call(&mut self, body: &[u8]) -> Result<Result<Vec<Buffer>, String>, ProtocolError> {
        let Message::Call { args, .. } = Message::parse(body)? else {
            return Ok(Ok(Vec::new()));
        };
        self.look();
        Ok(self.arenas.receive(args).and_then(|received| {
            let decoded = travel::with_received(received, crate::wire::MAX_FRAME, || {
                decode_value::<(Vec<Buffer>,)>(args)
            });
            decoded.map(|(buffers,)| buffers).map_err(|e| e.to_string())
        }))
    }

    fn look(&mut self) {
        while let Some(came) = packet::receive(self.requests.as_fd()) {
            match came {
                Came::Arena(packet) => self.arenas.take(packet),
                Came::Other(_) => {}
            }
        }
    }

    /// The call is done: which of the host's arenas are kept from here on, and which are not any more.
    pub fn end_call(&mut self) -> (Vec<u64>, Vec<u64>) {
        self.arenas.finish_call();
        let (mut kept, mut freed) = (Vec::new(), Vec::new());
        while let Some(notice) = self.arenas.take_notice() {
            kept.extend(notice.kept);
            freed.extend(notice.freed);
        }
        (kept, freed)
    }

    /// Lends the host an arena of its own, as one answer would that refers to it. Its number; `None`: none is to be had.
    pub fn lend(&mut self) -> Option<u64> {
        let lease = arena::lease(1)?;
        let number = lease.number();
        let lent = self.arenas.lent.entry(number);
        lent.or_insert((Arc::new(lease), 0)).1 += 1;
        Some(number)
    }

    /// How many of those the host has not returned.
    pub fn lent(&mut self) -> usize {
        self.look();
        self.arenas.lent.len()
    }
}

//! What must hold whatever a peer says of shared memory: by packets, with memory of any kind, and in messages that refer to it.
//! Shared with `fuzz/`.
//!
//! Nothing panics, and no signal comes. What a reader is given are the bytes of sound memory that was shown under the number
//! which he referred to, and where he said; what others write to, or may take away, is not read. And each side keeps count: a
//! host returns what it has read, a worker says what it keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use errback::worker::MemoryOfHost;
use errback::{Buffer, MemoryOfWorker};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

use super::memory::cost;
use super::values::Source;

const PAGE: usize = 4096;

/// So much is done at the most: a socket that nobody reads holds some hundred packets.
const STEPS: usize = 40;

/// What may be allocated whatever comes.
const CONSTANT: usize = 64 * 1024;

/// What may be allocated for each byte of a message: one may be a buffer's place in a vector that grows.
const FACTOR: usize = 256;

/// Memory as both have it before their eyes: its length, and by what its bytes are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Memory {
    length: usize,
    seed: u8,
}

impl Memory {
    fn bytes(self) -> impl Iterator<Item = u8> {
        (0..self.length).map(move |at| self.seed ^ at as u8 ^ (at >> 8) as u8)
    }
}

/// What is attached to a packet, and whether it is fit to be read.
struct Attached {
    descriptor: OwnedFd,
    sound: Option<Memory>,
}

/// Whoever shows memory.
struct Peer {
    socket: OwnedFd,
    /// All sound memory that was ever shown under a number.
    shown: BTreeMap<u64, Vec<Memory>>,
    /// Under which numbers memory was shown that is to be returned.
    lent: BTreeSet<u64>,
    /// Numbers of which something was said that may have changed what they mean.
    touched: BTreeSet<u64>,
}

/// A part of some memory, as a message refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reference {
    number: u64,
    offset: u64,
    length: u64,
}

/// A host, and a worker that shows it anything.
pub fn host_is_shown(mut source: Source<'_>) {
    let (mut peer, theirs) = Peer::new();
    let mut host = MemoryOfWorker::new(theirs, source.flag());
    let mut held = Vec::new();
    let mut reads = 0;
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        let Some(references) = peer.step(&mut source) else {
            continue;
        };
        let body = match references {
            Message::Values(references) => answer(&references),
            Message::Raw(body) => Message::raw(body),
        };
        // As many as it may have read before it found something bad.
        reads += body.numbers.len();
        let (answered, spent) = cost(|| host.answer(&body.bytes));
        assert!(spent.peak <= peer.bound(&body.bytes), "{spent:?}");
        let Ok(decoded) = answered else {
            break; // the worker is killed
        };
        if let (Ok(buffers), Some(references)) = (decoded, body.references) {
            peer.check(&references, &buffers);
            held.extend(buffers.into_iter().zip(references));
        }
        if source.flag() {
            held.clear();
        }
    }
    held.iter()
        .for_each(|(buffer, reference)| peer.check(&[*reference], std::slice::from_ref(buffer)));
    drop(held);
    let returned = peer.returned();
    assert!(returned.len() <= reads, "{returned:?} of {reads}");
    assert!(returned.iter().all(|it| peer.lent.contains(it)));
}

/// A worker, and a host that shows it anything.
pub fn worker_is_shown(mut source: Source<'_>) {
    let (mut peer, theirs) = Peer::new();
    let mut worker = MemoryOfHost::new(theirs);
    let mut held: Vec<(Buffer, Reference)> = Vec::new();
    let mut told = BTreeSet::new();
    let mut lent = 0;
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        let step = peer.step(&mut source);
        // What was replaced is not the same memory any more; what is said of its number is said of the other.
        held.retain(|(_, it)| !peer.touched.contains(&it.number));
        let Some(references) = step else {
            continue;
        };
        let body = match references {
            Message::Values(references) => call(&references),
            Message::Raw(body) => Message::raw(body),
        };
        let (called, spent) = cost(|| worker.call(&body.bytes));
        assert!(spent.peak <= peer.bound(&body.bytes), "{spent:?}");
        let Ok(decoded) = called else {
            break; // the worker leaves
        };
        peer.touched.clear();
        if let (Ok(buffers), Some(references)) = (decoded, body.references) {
            peer.check(&references, &buffers);
            if source.flag() {
                held.extend(buffers.into_iter().zip(references));
            }
        }
        if source.byte().is_multiple_of(4) {
            held.clear();
        }
        let (kept, freed) = worker.end_call();
        told.extend(kept);
        freed.iter().for_each(|number| {
            assert!(told.remove(number), "{number} was not kept");
        });
        for (_, reference) in held.iter().filter(|(buffer, _)| !buffer.is_empty()) {
            assert!(told.contains(&reference.number), "{reference:?} is kept");
        }
        lent = peer.borrow(&mut worker, lent, source.byte());
    }
    held.iter()
        .for_each(|(buffer, reference)| peer.check(&[*reference], std::slice::from_ref(buffer)));
}

/// Whether a worker takes a call with so many references, to memory that is there.
pub fn worker_takes(references: u64) -> bool {
    const SOUND: [u8; 2] = [7, 0];
    let (mut peer, theirs) = Peer::new();
    let mut worker = MemoryOfHost::new(theirs);
    let attached = attach(&mut Source::new(&SOUND));
    peer.say(&packet(1, 5, PAGE as u64), attached);
    let values: Vec<Value> = (0..references)
        .map(|offset| Reference {
            number: 5,
            offset,
            length: 1,
        })
        .map(|reference| Value::Buffer(reference, 69))
        .collect();
    worker.call(&call(&values).bytes).expect("a call").is_ok()
}

/// What a peer says in a frame.
enum Message {
    Values(Vec<Value>),
    Raw(Vec<u8>),
}

/// One value of a message.
enum Value {
    Buffer(Reference, u8),
    Bytes(Vec<u8>),
}

/// The body of a frame, and what it refers to, where that is known.
struct Body {
    bytes: Vec<u8>,
    /// One for each buffer.
    references: Option<Vec<Reference>>,
    numbers: BTreeSet<u64>,
}

impl Message {
    fn raw(bytes: Vec<u8>) -> Body {
        Body {
            // Any eight bytes may be a number.
            numbers: (0..bytes.len() as u64).collect(),
            bytes,
            references: None,
        }
    }
}

fn answer(values: &[Value]) -> Body {
    body(&[0x94, 1, 7, 0xc0], values)
}

fn call(values: &[Value]) -> Body {
    body(&[0x94, 0, 7, 0xa1, b't', 0x91], values)
}

/// A message that ends in an array of these.
fn body(begin: &[u8], values: &[Value]) -> Body {
    let mut bytes = begin.to_vec();
    bytes.push(0xdc);
    bytes.extend((values.len() as u16).to_be_bytes());
    let mut references = Some(Vec::new());
    let mut numbers = BTreeSet::new();
    for value in values {
        match value {
            Value::Buffer(reference, kind) => {
                bytes.extend([0xc7, 24, *kind]);
                for number in [reference.number, reference.offset, reference.length] {
                    bytes.extend(number.to_be_bytes());
                }
                numbers.insert(reference.number);
                references
                    .as_mut()
                    .into_iter()
                    .for_each(|it| it.push(*reference));
            }
            Value::Bytes(raw) => {
                bytes.extend(raw);
                references = None;
            }
        }
    }
    Body {
        bytes,
        references,
        numbers,
    }
}

impl Peer {
    /// It, and the other end of the socket.
    fn new() -> (Peer, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .expect("a pair of sockets");
        let peer = Peer {
            socket,
            shown: BTreeMap::new(),
            lent: BTreeSet::new(),
            touched: BTreeSet::new(),
        };
        (peer, theirs)
    }

    /// Says something by a packet, or gives a message to be sent.
    fn step(&mut self, source: &mut Source<'_>) -> Option<Message> {
        let decision = source.byte();
        match decision % 8 {
            0 => {
                // An empty one looks like the end: what comes behind it is read by the next look.
                let length = 1 + usize::from(source.byte()) % 47;
                let packet = source.take(length).to_vec();
                let attached = source.flag().then(|| attach(source)).flatten();
                self.say(&packet, attached);
            }
            1..=3 => {
                let attached = attach(source);
                let size = match attached.as_ref().and_then(|it| it.sound) {
                    Some(memory) if source.byte() != 0xff => memory.length as u64,
                    _ => source.number(),
                };
                let word = 1 + u64::from(decision >> 7);
                self.say(&packet(word, number(source), size), attached);
            }
            4 => self.say(&packet(source.number(), number(source), 0), None),
            5 | 6 => {
                let count = match source.byte() {
                    0xff => 70, // more than there may be
                    few => few % 6,
                };
                return Some(Message::Values(
                    (0..count).map(|_| self.value(source)).collect(),
                ));
            }
            _ => {
                let length = usize::from(source.short()) % 512;
                return Some(Message::Raw(source.take(length).to_vec()));
            }
        }
        None
    }

    fn value(&self, source: &mut Source<'_>) -> Value {
        let decision = source.byte();
        if decision == 0xff {
            return Value::Bytes(source.bytes());
        }
        let number = number(source);
        let length = match self.shown.get(&number).and_then(|all| all.last()) {
            Some(memory) => memory.length as u64,
            None => source.number(),
        };
        let (offset, length) = match decision % 4 {
            0 => (0, length),
            1 => (length / 2, length / 4),
            // At the end, or behind it.
            2 => (
                length - length.min(source.byte().into()),
                source.byte().into(),
            ),
            _ => (source.number(), source.number()),
        };
        let reference = Reference {
            number,
            offset,
            length,
        };
        Value::Buffer(reference, 69 + (decision >> 7))
    }

    fn say(&mut self, packet: &[u8], attached: Option<Attached>) {
        let number = |at: usize| {
            let bytes = packet.get(at..at + 8)?.try_into().expect("eight bytes");
            Some(u64::from_ne_bytes(bytes))
        };
        if let (24, Some(word), Some(arena)) = (packet.len(), number(0), number(8)) {
            self.touched.insert(arena);
            if let Some(memory) = attached.as_ref().and_then(|it| it.sound) {
                self.shown.entry(arena).or_default().push(memory);
            }
            if word == 1 {
                self.lent.insert(arena);
            }
        }
        send(
            self.socket.as_fd(),
            packet,
            attached.as_ref().map(|it| it.descriptor.as_fd()),
        );
    }

    /// What a message may cost its reader. For a type that is no buffer each reference stands for a copy of the bytes, as if they
    /// had come in the message, whose limit they have; one such copy of a value is there at a time.
    fn bound(&self, body: &[u8]) -> usize {
        const REFERENCE: usize = 27;
        let shown = || self.shown.values().flatten().map(|it| it.length);
        let longest = shown().max().unwrap_or(0);
        let copied = body.len() / REFERENCE * longest;
        body.len() * FACTOR + 2 * shown().sum::<usize>() + copied + CONSTANT
    }

    /// Each buffer is what was referred to.
    fn check(&self, references: &[Reference], buffers: &[Buffer]) {
        assert_eq!(references.len(), buffers.len());
        for (reference, buffer) in references.iter().zip(buffers) {
            let memories = self.shown.get(&reference.number).into_iter().flatten();
            let offset = usize::try_from(reference.offset).expect("an offset in some memory");
            let mut parts = memories.map(|it| it.bytes().skip(offset).take(buffer.len()));
            assert_eq!(buffer.len() as u64, reference.length);
            assert!(
                parts.any(|part| part.eq(buffer.iter().copied())),
                "other bytes than {reference:?}"
            );
        }
    }

    /// Lends something from a worker, and returns some number or other of those that were lent. How many there were.
    fn borrow(&mut self, worker: &mut MemoryOfHost, before: usize, decision: u8) -> usize {
        assert!(worker.lent() <= before, "some were returned");
        if decision < 0xc0 {
            return worker.lent();
        }
        let number = worker.lend().expect("memory");
        let lent = worker.lent();
        // As often as one likes.
        for _ in 0..decision % 3 {
            send(self.socket.as_fd(), &packet(4, number, 0), None);
        }
        let returned = usize::from(!decision.is_multiple_of(3));
        assert_eq!(worker.lent(), lent - returned);
        worker.lent()
    }

    /// The numbers that the other has returned.
    fn returned(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        loop {
            let mut bytes = [0; 25];
            let mut into = [IoSliceMut::new(&mut bytes)];
            let received = rustix::net::recvmsg(
                &self.socket,
                &mut into,
                &mut Default::default(),
                RecvFlags::DONTWAIT,
            );
            match received {
                Ok(message) if message.bytes == 24 => {}
                Ok(message) if message.bytes > 0 => panic!("{} bytes", message.bytes),
                _ => return numbers,
            }
            let (parts, _) = bytes.as_chunks::<8>();
            assert_eq!(u64::from_ne_bytes(parts[0]), 4);
            numbers.push(u64::from_ne_bytes(parts[1]));
        }
    }
}

/// A few numbers, so that they meet; or any.
fn number(source: &mut Source<'_>) -> u64 {
    match source.byte() {
        0xff => source.number(),
        few => u64::from(few % 5),
    }
}

fn packet(word: u64, number: u64, size: u64) -> Vec<u8> {
    [word, number, size]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect()
}

/// Without blocking: what does not fit is not said.
fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|it| [it]);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, flags);
}

/// Sound memory more often than not; or some that is not, or no memory at all.
fn attach(source: &mut Source<'_>) -> Option<Attached> {
    let decision = source.byte();
    let memory = Memory {
        length: (1 + usize::from(decision >> 6)) * PAGE - usize::from(decision & 0x20),
        seed: source.byte(),
    };
    let sound = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
    let (seals, filled) = match decision % 32 {
        0 => return None,
        1 => {
            let (read, _) = rustix::pipe::pipe().expect("a pipe");
            return Some(Attached {
                descriptor: read,
                sound: None,
            });
        }
        2 => (sound - SealFlags::FUTURE_WRITE, true),
        3 => (sound - SealFlags::SHRINK, true),
        4 => (sound - SealFlags::GROW, true),
        5 => (sound, false), // its pages are not there
        6 => (SealFlags::empty(), true),
        _ => (sound, true),
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("shown", flags).expect("a memfd");
    rustix::fs::ftruncate(&memfd, memory.length as u64).expect("room");
    if filled {
        let bytes: Vec<u8> = memory.bytes().collect();
        rustix::fs::fallocate(&memfd, FallocateFlags::empty(), 0, memory.length as u64)
            .expect("pages");
        let written = rustix::io::pwrite(&memfd, &bytes, 0).expect("room");
        assert_eq!(written, bytes.len());
    }
    rustix::fs::fcntl_add_seals(&memfd, seals).expect("it takes seals");
    Some(Attached {
        descriptor: memfd,
        sound: (seals == sound && filled).then_some(memory),
    })
}

//! What host and worker tell each other about arenas, on the socket of requests: packets of 24 bytes, one of them with a
//! descriptor.
//!
//! They are not part of the stream of calls and answers, but ordered with it: what is announced has been sent before the
//! frame that refers to it. So whoever meets a number that he does not know looks for packets, and finds it; nobody waits.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// How long a packet about arenas is. The shorter ones are requests to stop.
pub(crate) const LENGTH: usize = 24;

/// What is said of an arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    /// Here it is: a descriptor, and a number for it.
    Announced,
    /// The same, and it is the other's to let go of: nothing more will be said of it.
    HandedOver,
    /// The one that announced it has let go of it.
    Forget,
    /// The one to whom it was lent has read it.
    Returned,
}

impl Word {
    const ALL: [Word; 4] = [
        Word::Announced,
        Word::HandedOver,
        Word::Forget,
        Word::Returned,
    ];

    fn code(self) -> u64 {
        let place = Word::ALL.iter().position(|it| *it == self);
        place.expect("all are listed") as u64 + 1
    }

    fn of(code: u64) -> Option<Word> {
        let place = usize::try_from(code).ok()?.checked_sub(1)?;
        Word::ALL.get(place).copied()
    }
}

/// One packet about an arena.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) word: Word,
    pub(crate) arena: u64,
    /// How long it is.
    pub(crate) size: u64,
    pub(crate) memfd: Option<OwnedFd>,
}

/// Sends one, without blocking.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    word: Word,
    arena: u64,
    memory: Option<(u64, BorrowedFd<'_>)>,
) -> Result<(), Errno> {
    let bytes = encoded(word, arena, memory.map_or(0, |(size, _)| size));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let memfd = memory.map(|(_, memfd)| [memfd]);
    if let Some(memfd) = &memfd {
        ancillary.push(SendAncillaryMessage::ScmRights(memfd));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}

fn encoded(word: Word, arena: u64, size: u64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    for (place, number) in [word.code(), arena, size].iter().enumerate() {
        bytes[8 * place..8 * place + 8].copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

/// What came: a packet about an arena, or the bytes of another.
pub(crate) enum Came {
    Arena(Packet),
    Other(Vec<u8>),
}

/// Takes the next packet, without blocking. `None`: there is none, or nobody to send one.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Option<Came> {
    let mut bytes = [0; LENGTH + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let length = loop {
        let mut into = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut into, &mut ancillary, flags) {
            Ok(message) if message.bytes == 0 => return None,
            Ok(message) => break message.bytes,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    };
    let memfd = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .next();
    Some(match parse(&bytes[..length], memfd) {
        Some(packet) => Came::Arena(packet),
        None => Came::Other(bytes[..length].to_vec()),
    })
}

fn parse(bytes: &[u8], memfd: Option<OwnedFd>) -> Option<Packet> {
    let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
    let number = |place: usize| {
        let bytes = bytes[8 * place..8 * place + 8].try_into();
        u64::from_ne_bytes(bytes.expect("eight bytes"))
    };
    Some(Packet {
        word: Word::of(number(0))?,
        arena: number(1),
        size: number(2),
        memfd,
    })
}

/// So many bytes of somebody's memfd, without mapping it.
///
/// # Errors
/// It is shorter.
pub(crate) fn copy_out(memfd: &OwnedFd, mut offset: u64, mut into: &mut [u8]) -> Result<(), Errno> {
    while !into.is_empty() {
        match rustix::io::pread(memfd.as_fd(), &mut *into, offset) {
            Ok(0) => return Err(Errno::INVAL),
            Ok(count) => {
                into = &mut into[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_packet_comes_with_its_descriptor() {
        let flags = SocketFlags::CLOEXEC;
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair");
        let memfd = crate::hook::memory::memfd("test", 4096).expect("a memfd");
        send(a.as_fd(), Word::Announced, 7, Some((4096, memfd.as_fd()))).expect("room");
        send(a.as_fd(), Word::Returned, 8, None).expect("room");
        rustix::net::send(&a, &[0; 9], SendFlags::empty()).expect("room");
        let Some(Came::Arena(first)) = receive(b.as_fd()) else {
            panic!("an arena");
        };
        assert_eq!(
            (first.word, first.arena, first.size),
            (Word::Announced, 7, 4096)
        );
        let size = rustix::fs::fstat(first.memfd.expect("a descriptor"))
            .expect("a file")
            .st_size;
        assert_eq!(size, 4096);
        assert!(matches!(
            receive(b.as_fd()),
            Some(Came::Arena(Packet {
                word: Word::Returned,
                arena: 8,
                memfd: None,
                ..
            }))
        ));
        assert!(matches!(receive(b.as_fd()), Some(Came::Other(bytes)) if bytes.len() == 9));
        assert!(receive(b.as_fd()).is_none());
    }

    #[test]
    fn packets_are_as_in_the_document() {
        const DOCUMENT: &str = include_str!("../../docs/protocol.md");
        let mut blocks = DOCUMENT.split("```hex-packet ").skip(1);
        for (word, name, size) in [
            (Word::Announced, "announced", 131_072),
            (Word::HandedOver, "handed over", 131_072),
            (Word::Forget, "forget", 0),
            (Word::Returned, "returned", 0),
        ] {
            let mut lines = blocks.next().expect("an example for each").lines();
            assert_eq!(lines.next(), Some(name));
            let digits = lines.nth(1).expect("bytes").split(' ');
            let bytes: Vec<u8> = digits
                .map(|it| u8::from_str_radix(it, 16).expect("hex"))
                .collect();
            let (numbers, []) = bytes.as_chunks::<8>() else {
                panic!("whole numbers");
            };
            let native: Vec<u8> = numbers
                .iter()
                .flat_map(|it| u64::from_le_bytes(*it).to_ne_bytes())
                .collect();
            let packet = parse(&native, None).expect("a packet");
            assert_eq!((packet.word, packet.arena, packet.size), (word, 5, size));
            assert_eq!(encoded(word, 5, size)[..], native[..]);
        }
        assert!(blocks.next().is_none());
    }
}

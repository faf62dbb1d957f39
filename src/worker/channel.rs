//! The worker's end of the connection: a blocking socket, one read for a small call and one write for its answer.
//!
//! It is read and written by `recv` and `send`, which fail on anything that is not a socket. So a job that closes every
//! descriptor it can find and opens files in their places breaks its worker, but never has protocol bytes written to
//! its files.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use super::Leaving;
use crate::wire::{FrameReader, HostHello, MAX_FRAME, Message};

pub(super) struct Channel {
    socket: OwnedFd,
    reader: FrameReader,
}

/// The descriptors that come with the host's hello, in their order.
#[derive(Default)]
pub(super) struct Attached {
    /// The begun counter.
    pub(super) begun: Option<OwnedFd>,
    /// The requests to stop.
    pub(super) requests: Option<OwnedFd>,
}

impl Channel {
    /// Takes the connection from descriptor 0, where the host has put it, to one above 2 that no child inherits, and
    /// leaves something harmless in its place.
    pub(super) fn from_stdin() -> Result<Channel, Leaving> {
        let stdin = rustix::stdio::stdin();
        match rustix::net::sockopt::socket_domain(stdin) {
            Ok(rustix::net::AddressFamily::UNIX) => {}
            _ => {
                let sentence = "started as a worker, but standard input is no connection to a host";
                return Err(Leaving::Refused(sentence.into()));
            }
        }
        let socket =
            rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(|e| Leaving::System("dup", e))?;
        // Whoever made the pair may have asked for both ends not to block.
        rustix::io::ioctl_fionbio(&socket, false).map_err(|e| Leaving::System("ioctl", e))?;
        fill_standard_descriptors()?;
        Ok(Channel {
            socket,
            reader: FrameReader::new(MAX_FRAME),
        })
    }

    /// Waits for the host's greeting, and the descriptors that come with it.
    pub(super) fn receive_hello(&mut self) -> Result<(HostHello, Attached), Leaving> {
        let mut attached = Attached::default();
        while !self.reader.has_frame().map_err(Leaving::protocol)? {
            let mut bytes = [0; 4096];
            let count = receive_with_descriptors(self.socket.as_fd(), &mut bytes, &mut attached)?;
            if count == 0 {
                return Err(Leaving::HostGone);
            }
            self.reader.extend(&bytes[..count]);
        }
        let frame = self.take_frame()?;
        match Message::parse(frame).map_err(Leaving::protocol)? {
            Message::Notification {
                method: "hello",
                params,
            } => Ok((
                HostHello::parse(params).map_err(Leaving::protocol)?,
                attached,
            )),
            _ => Err(Leaving::Protocol("its first message is not a hello".into())),
        }
    }

    pub(super) fn set_max_frame(&mut self, max_frame: usize) {
        self.reader.set_max_frame(max_frame);
    }

    /// Waits until a whole frame is there. `false`: the host has closed the connection, and between two frames.
    pub(super) fn wait_for_frame(&mut self) -> Result<bool, Leaving> {
        while !self.reader.has_frame().map_err(Leaving::protocol)? {
            let room = self.reader.room();
            match retry_on_intr(|| {
                rustix::net::recv(
                    &self.socket,
                    rustix::buffer::spare_capacity(&mut *room),
                    RecvFlags::empty(),
                )
            }) {
                Ok((0, _)) | Err(Errno::CONNRESET) if self.reader.is_empty() => return Ok(false),
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    return Err(Leaving::Protocol("it left in the middle of a frame".into()));
                }
                Ok(_) => {}
                Err(errno) => return Err(Leaving::System("recv", errno)),
            }
        }
        Ok(true)
    }

    /// The frame that has been waited for.
    pub(super) fn take_frame(&mut self) -> Result<&[u8], Leaving> {
        let frame = self.reader.next_frame().map_err(Leaving::protocol)?;
        Ok(frame.expect("a whole frame was waited for"))
    }

    pub(super) fn send(&self, mut bytes: &[u8]) -> Result<(), Leaving> {
        while !bytes.is_empty() {
            match retry_on_intr(|| rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL)) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Leaving::HostGone),
                Err(errno) => return Err(Leaving::System("send", errno)),
            }
        }
        Ok(())
    }
}

/// One read that also takes descriptors, as only the first message has them. How many bytes came.
fn receive_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    attached: &mut Attached,
) -> Result<usize, Leaving> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    });
    let count = match received {
        Ok(message) => message.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(errno) => return Err(Leaving::System("recvmsg", errno)),
    };
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    for descriptor in descriptors.flatten() {
        match attached {
            Attached { begun: None, .. } => attached.begun = Some(descriptor),
            Attached { requests: None, .. } => attached.requests = Some(descriptor),
            _ => {} // a later version's; dropping it closes it
        }
    }
    Ok(count)
}

/// Puts something into the places of descriptors 0, 1 and 2 where they are closed, and instead of the connection: a
/// file that a task opens must not become its standard output.
fn fill_standard_descriptors() -> Result<(), Leaving> {
    let closed = |e| Leaving::System("standard descriptors", e);
    let nothing = match rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(null) => null,
        // No /dev here. A pipe that nobody writes to is at its end at once.
        Err(_) => {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(closed)?
                .0
        }
    };
    rustix::stdio::dup2_stdin(&nothing).map_err(closed)?;
    if rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_err() {
        rustix::stdio::dup2_stdout(&nothing).map_err(closed)?;
    }
    if rustix::io::fcntl_getfd(rustix::stdio::stderr()).is_err() {
        rustix::stdio::dup2_stderr(&nothing).map_err(closed)?;
    }
    Ok(())
}

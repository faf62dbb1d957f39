//! The worker's end of the connection: a blocking socket, one read for a small call and one write for its answer.
//!
//! It is read and written by `recv` and `send`, which fail on anything that is not a socket. So a job that closes every
//! descriptor it can find and opens files in their places breaks its worker, but never has protocol bytes written to
//! its files.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use super::Leaving;
use crate::lane::spin::Spin;
use crate::lane::{self, Broken, WorkerLane};
use crate::wire::{FrameReader, HostHello, MAX_FRAME, Message};

pub(super) struct Channel {
    socket: OwnedFd,
    reader: FrameReader,
    lane: Option<Lane>,
}

/// The shared memory, through which all comes and goes but for large frames.
struct Lane {
    ends: WorkerLane,
    reader: FrameReader,
    /// Whether the frame that was waited for is on the socket.
    on_socket: bool,
    spin: Spin,
}

/// The descriptors that come with the host's hello, in their order.
#[derive(Default)]
pub(super) struct Attached {
    /// The begun counter.
    pub(super) begun: Option<OwnedFd>,
    /// The requests to stop.
    pub(super) requests: Option<OwnedFd>,
    /// What makes a lane.
    pub(super) lane: Vec<OwnedFd>,
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
            lane: None,
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

    /// From here on all goes through a lane, which the host has been told.
    pub(super) fn use_lane(&mut self, ends: WorkerLane, spin: Duration) {
        self.lane = Some(Lane {
            ends,
            spin: Spin::new(spin),
            reader: FrameReader::new(lane::LONGEST),
            on_socket: false,
        });
    }

    /// Waits until a whole frame is there. `false`: the host has closed the connection, and between two frames.
    pub(super) fn wait_for_frame(&mut self) -> Result<bool, Leaving> {
        let Some(lane) = &mut self.lane else {
            return receive(&self.socket, &mut self.reader);
        };
        loop {
            if lane.reader.has_frame().map_err(Leaving::protocol)? {
                lane.on_socket = lane.reader.has_empty_frame();
                if !lane.on_socket {
                    return Ok(true);
                }
                lane.reader.next_frame().map_err(Leaving::protocol)?;
                return match receive(&self.socket, &mut self.reader)? {
                    true => Ok(true),
                    false => Err(left_in_the_middle()),
                };
            }
            let read = lane.ends.read(lane.reader.room());
            if read.map_err(Leaving::broken)? > 0 {
                continue;
            }
            lane.ends.tell_all().map_err(Leaving::bell)?;
            if !lane.sleep(&self.socket, None)? {
                return match lane.reader.is_empty() {
                    true => Ok(false),
                    false => Err(left_in_the_middle()),
                };
            }
        }
    }

    /// The frame that has been waited for.
    pub(super) fn take_frame(&mut self) -> Result<&[u8], Leaving> {
        let reader = match &mut self.lane {
            Some(lane) if !lane.on_socket => &mut lane.reader,
            _ => &mut self.reader,
        };
        let frame = reader.next_frame().map_err(Leaving::protocol)?;
        Ok(frame.expect("a whole frame was waited for"))
    }

    /// Sends a frame, an answer or the hello.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Leaving> {
        let Some(lane) = &mut self.lane else {
            return send(&self.socket, bytes);
        };
        let is_large = bytes.len() > lane::LONGEST;
        let part = match is_large {
            true => &lane::ON_THE_SOCKET,
            false => bytes,
        };
        while !lane.ends.has_room(part.len()).map_err(Leaving::broken)? {
            lane.ends.tell_all().map_err(Leaving::bell)?;
            if !lane.sleep(&self.socket, Some(part.len()))? {
                return Err(Leaving::HostGone);
            }
        }
        // A host that sleeps must be awake for what is on the socket: there is only so much room in that.
        lane.ends.answer(part, is_large).map_err(Leaving::bell)?;
        match is_large {
            true => send(&self.socket, bytes),
            false => Ok(()),
        }
    }
}

impl Lane {
    /// Sleeps until there is something to read, or room for an answer. `false`: the host has closed the connection.
    fn sleep(&mut self, socket: &OwnedFd, room: Option<usize>) -> Result<bool, Leaving> {
        if room.is_none() && self.spin.until(|| self.ends.has_bytes()) {
            return Ok(true);
        }
        let may_sleep = self.ends.doze(room).map_err(Leaving::broken)?;
        if !may_sleep {
            self.ends.wake_up();
            return Ok(true);
        }
        let mut fds = [
            PollFd::from_borrowed_fd(self.ends.bell(), PollFlags::IN),
            // What comes on the socket is not due before the lane says so.
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP),
        ];
        let polled = retry_on_intr(|| rustix::event::poll(&mut fds, None));
        polled.map_err(|errno| Leaving::System("poll", errno))?;
        let [bell, socket] = fds.map(|fd| fd.revents());
        self.ends.wake_up();
        if !bell.is_empty() {
            self.spin.came();
            self.ends.clear_bell().map_err(Leaving::bell)?;
        }
        match socket.contains(PollFlags::NVAL) {
            true => Err(Leaving::System("poll", Errno::BADF)),
            false => Ok(socket.is_empty() || self.ends.has_bytes()),
        }
    }
}

impl Leaving {
    fn broken(error: Broken) -> Leaving {
        Leaving::Protocol(error.to_string())
    }

    fn bell(error: std::io::Error) -> Leaving {
        let errno = error
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error);
        Leaving::System("bell", errno)
    }
}

fn left_in_the_middle() -> Leaving {
    Leaving::Protocol("it left in the middle of a frame".into())
}

/// Reads until a whole frame is there. `false`: the host has closed the connection, and between two frames.
fn receive(socket: &OwnedFd, reader: &mut FrameReader) -> Result<bool, Leaving> {
    while !reader.has_frame().map_err(Leaving::protocol)? {
        let room = reader.room();
        match retry_on_intr(|| {
            rustix::net::recv(
                socket,
                rustix::buffer::spare_capacity(&mut *room),
                RecvFlags::empty(),
            )
        }) {
            Ok((0, _)) | Err(Errno::CONNRESET) if reader.is_empty() => return Ok(false),
            Ok((0, _)) | Err(Errno::CONNRESET) => return Err(left_in_the_middle()),
            Ok(_) => {}
            Err(errno) => return Err(Leaving::System("recv", errno)),
        }
    }
    Ok(true)
}

fn send(socket: &OwnedFd, mut bytes: &[u8]) -> Result<(), Leaving> {
    while !bytes.is_empty() {
        match retry_on_intr(|| rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(Leaving::HostGone),
            Err(errno) => return Err(Leaving::System("send", errno)),
        }
    }
    Ok(())
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
            Attached { lane, .. } if lane.len() < 4 => lane.push(descriptor),
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

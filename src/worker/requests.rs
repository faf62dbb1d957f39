//! What the host asks of a job that runs: to stop, because nobody wants its result any more.
//!
//! The requests come as packets on a socket of their own, each the number of a call. Nobody waits for them: a task looks
//! when it likes, by a [`CancelToken`], and the worker looks once before it begins a call.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::buffer::packet::{self, Came};

/// Requests that are remembered: more than can be meant for calls that are with this worker.
const REMEMBERED: usize = 1024;

/// No call has this number: it is the last of 2^64.
const NO_CALL: u64 = u64::MAX;

/// The call that runs.
static CURRENT: AtomicU64 = AtomicU64::new(NO_CALL);

/// The socket, in a worker whose host has given it one.
static REQUESTS: OnceLock<Requests> = OnceLock::new();

struct Requests {
    socket: OwnedFd,
    /// What the packets said, the latest last.
    packets: Mutex<VecDeque<Packet>>,
    /// What else came: of arenas, which are no matter of this file's.
    of_arenas: Mutex<Vec<packet::Packet>>,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packet {
    /// A call is to stop.
    Stop(u64),
    /// A call is not to begin, if it has not.
    TakeBack(u64),
}

/// Whether the job that runs in this worker has been asked to stop: somebody cancelled it, or its time is up.
///
/// It is asked once. After a grace ([`Builder::cancel_grace`](crate::Builder::cancel_grace)) the worker is killed, so a job
/// that wants to end in order looks every now and then, and returns when it finds this true. What it returns is dropped: its
/// Deferred fails with [`CancelledError`](https://docs.rs/errback-deferred) or [`TimedOut`](crate::TimedOut), and the
/// worker goes on with the next job. Costs a system call. Outside of a worker it is always false.
///
/// ```
/// use errback::worker::cancel_requested;
///
/// /// Searches until it is told to stop.
/// #[errback::task]
/// fn search(from: u64) -> Option<u64> {
///     (from..).take_while(|_| !cancel_requested()).find(|n| n.is_power_of_two())
/// }
///
/// assert_eq!(search(100), Some(128));
/// ```
pub fn cancel_requested() -> bool {
    cancel_token().is_cancel_requested()
}

/// The token of the job that runs in this worker, for the threads that it starts. See [`cancel_requested`].
///
/// ```
/// let token = errback::worker::cancel_token();
/// std::thread::spawn(move || while !token.is_cancel_requested() { break });
/// ```
pub fn cancel_token() -> CancelToken {
    CancelToken {
        call: CURRENT.load(Ordering::Relaxed),
    }
}

/// Tells whether one job has been asked to stop; see [`cancel_token`]. It stays that job's, whichever runs when it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CancelToken {
    call: u64,
}

impl CancelToken {
    /// Whether the job has been asked to stop.
    pub fn is_cancel_requested(&self) -> bool {
        self.call != NO_CALL && is_asked(self.call)
    }
}

/// Keeps the socket that came with the host's hello.
pub(super) fn keep(socket: OwnedFd) {
    let _ = REQUESTS.set(Requests {
        socket,
        packets: Mutex::new(VecDeque::new()),
        of_arenas: Mutex::new(Vec::new()),
    });
}

/// A call runs from here on until the guard is dropped.
pub(super) fn enter(call: u64) -> Entered {
    CURRENT.store(call, Ordering::Relaxed);
    Entered
}

pub(super) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.store(NO_CALL, Ordering::Relaxed);
    }
}

/// Whether a call that has not begun is not wanted any more, or not from this worker.
pub(super) fn is_revoked(call: u64) -> bool {
    let revoked = [Packet::Stop(call), Packet::TakeBack(call)];
    any_came(&revoked)
}

/// Whether a call has been asked to stop.
fn is_asked(call: u64) -> bool {
    any_came(&[Packet::Stop(call)])
}

fn any_came(packets: &[Packet]) -> bool {
    REQUESTS
        .get()
        .is_some_and(|requests| requests.any_came(packets))
}

impl Requests {
    fn any_came(&self, packets: &[Packet]) -> bool {
        let mut came = self.packets.lock();
        // Until there is nothing more, the host is gone, or a job has closed the descriptor.
        while let Some(packet) = packet::receive(self.socket.as_fd()) {
            match packet {
                Came::Arena(packet) => self.of_arenas.lock().push(packet),
                Came::Other(bytes) => came.extend(Packet::parse(&bytes)),
            }
            if came.len() > REMEMBERED {
                came.pop_front();
            }
        }
        came.iter().any(|it| packets.contains(it))
    }
}

impl Packet {
    /// `None`: it is of a later version.
    fn parse(bytes: &[u8]) -> Option<Packet> {
        let (id, rest) = bytes.split_first_chunk::<8>()?;
        let id = u64::from_ne_bytes(*id);
        match rest.len() {
            0 => Some(Packet::Stop(id)),
            1 => Some(Packet::TakeBack(id)),
            _ => None,
        }
    }
}

/// What the host has said of arenas since this was asked last.
pub(super) fn arena_packets() -> Vec<packet::Packet> {
    let Some(requests) = REQUESTS.get() else {
        return Vec::new();
    };
    requests.any_came(&[]);
    std::mem::take(&mut *requests.of_arenas.lock())
}

/// Says something to the host, if there is a socket for it and room. Whether it was said.
pub(super) fn send(packet: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>) -> bool {
    REQUESTS
        .get()
        .is_some_and(|requests| packet(requests.socket.as_fd()).is_ok())
}

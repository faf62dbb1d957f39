//! What the host asks of a job that runs: to stop, because nobody wants its result any more.
//!
//! The requests come in the lane, or as packets on a socket of their own, each with the number of a call. Nobody waits for them: a task looks
//! when it likes, by a [`CancelToken`], and the worker looks once before it begins a call.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::buffer::packet::{self, Came};
use crate::lane;

/// Requests that are remembered: more than can be meant for calls that are with this worker.
const REMEMBERED: usize = 1024;

/// No call has this number: it is the last of 2^64.
const NO_CALL: u64 = u64::MAX;

/// The call that runs.
static CURRENT: AtomicU64 = AtomicU64::new(NO_CALL);

/// In a worker whose host has given it either.
static REQUESTS: OnceLock<Requests> = OnceLock::new();
static LANE: OnceLock<lane::Requests> = OnceLock::new();

/// What has come.
#[derive(Default)]
struct Requests {
    socket: Option<OwnedFd>,
    /// What was asked, the latest last.
    came: Mutex<VecDeque<Request>>,
    /// What else came: of arenas, which are no matter of this file's.
    of_arenas: Mutex<Vec<packet::Packet>>,
    /// How many of those in the lane have been looked at.
    seen: AtomicU64,
    /// The highest number that any of them names.
    highest: AtomicU64,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    /// A call is to stop.
    Stop(u64),
    /// Calls are not to begin, if they have not.
    TakeBack(u64, u64),
}

/// Whether the job that runs in this worker has been asked to stop: somebody cancelled it, or its time is up.
///
/// It is asked once. After a grace ([`Builder::cancel_grace`](crate::Builder::cancel_grace)) the worker is killed, so a job
/// that wants to end in order looks every now and then, and returns when it finds this true. What it returns is dropped: its
/// Deferred fails with [`CancelledError`](https://docs.rs/errback-deferred) or [`TimedOut`](crate::TimedOut), and the
/// worker goes on with the next job. Costs a look at memory, and where that cannot be shared a system call. Outside of a worker it is always false.
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
        socket: Some(socket),
        ..Requests::default()
    });
}

/// They come through the lane.
pub(super) fn keep_lane(requests: lane::Requests) {
    let _ = REQUESTS.set(Requests::default());
    let _ = LANE.set(requests);
}

/// Counts a call, in the lane.
pub(super) fn count() {
    LANE.get().into_iter().for_each(lane::Requests::count);
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
    any_came(call, |request| request.revokes(call))
}

/// Whether a call has been asked to stop.
fn is_asked(call: u64) -> bool {
    any_came(call, |request| *request == Request::Stop(call))
}

/// Whether something came that names the `call`, and is as it should be.
fn any_came(call: u64, is: impl Fn(&Request) -> bool) -> bool {
    let Some(requests) = REQUESTS.get() else {
        return false;
    };
    match LANE.get() {
        Some(lane) => requests.look_at_lane(lane),
        None => requests.look_at_socket(),
    }
    // Most calls are named by nobody.
    call <= requests.highest.load(Ordering::Relaxed) && requests.came.lock().iter().any(is)
}

impl Request {
    /// What a packet asks. `None`: it is of a later version.
    fn parse(bytes: &[u8]) -> Option<Request> {
        let (id, rest) = bytes.split_first_chunk::<8>()?;
        let id = u64::from_ne_bytes(*id);
        match rest.len() {
            0 => Some(Request::Stop(id)),
            1 => Some(Request::TakeBack(id, id)),
            _ => None,
        }
    }

    fn revokes(&self, call: u64) -> bool {
        match *self {
            Request::Stop(it) => it == call,
            Request::TakeBack(from, to) => (from..=to).contains(&call),
        }
    }
}

impl Requests {
    fn look_at_lane(&self, lane: &lane::Requests) {
        let requested = lane.requested();
        if requested == self.seen.load(Ordering::Acquire) {
            return;
        }
        let mut came = self.came.lock();
        let seen = self.seen.load(Ordering::Relaxed);
        // A host that writes over what was not looked at is none of ours; it is not to keep us busy for ever.
        for number in seen.max(requested.saturating_sub(REMEMBERED as u64))..requested {
            match lane.request(number) {
                (call, 0) => self.remember(&mut came, Request::Stop(call)),
                (from, to) => self.remember(&mut came, Request::TakeBack(from, to)),
            }
        }
        lane.seen(requested);
        self.seen.store(requested, Ordering::Release);
    }

    fn look_at_socket(&self) {
        let Some(socket) = &self.socket else {
            return;
        };
        let mut came = self.came.lock();
        // Until there is nothing more, the host is gone, or a job has closed the descriptor.
        while let Some(packet) = packet::receive(socket.as_fd()) {
            match packet {
                Came::Arena(packet) => self.of_arenas.lock().push(packet),
                Came::Other(bytes) => {
                    let request = Request::parse(&bytes).into_iter();
                    request.for_each(|request| self.remember(&mut came, request));
                }
            }
        }
    }

    fn remember(&self, came: &mut VecDeque<Request>, request: Request) {
        let (Request::Stop(highest) | Request::TakeBack(_, highest)) = request;
        self.highest.fetch_max(highest, Ordering::Relaxed);
        came.push_back(request);
        if came.len() > REMEMBERED {
            came.pop_front();
        }
    }
}

/// What the host has said of arenas since this was asked last.
pub(super) fn arena_packets() -> Vec<packet::Packet> {
    let Some(requests) = REQUESTS.get() else {
        return Vec::new();
    };
    requests.look_at_socket();
    std::mem::take(&mut *requests.of_arenas.lock())
}

/// Says something to the host, if there is a socket for it and room. Whether it was said.
pub(super) fn send(packet: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>) -> bool {
    let socket = REQUESTS.get().and_then(|requests| requests.socket.as_ref());
    socket.is_some_and(|socket| packet(socket.as_fd()).is_ok())
}

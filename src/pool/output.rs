//! What workers print: passed on to the host's own stdout and stderr, and its end kept for the story of a death.
//!
//! One thread reads all workers' pipes, so that no job ever blocks on a full one. The host's stdout may be blocked itself
//! (a pager, a stuck pipe): what cannot be written waits in a bounded queue, and beyond that is dropped, with a mark.
//! Nobody who answers jobs depends on this thread: a waiter that buries its worker reads the rest of the pipe by itself,
//! so that the last words are complete.
//!
//! Writes go to descriptors 1 and 2 directly. `std::io::stdout()` has a lock that a progress bar may hold for minutes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::pipe::PipeFlags;

use super::thread_name;
use super::wakeup::Wakeup;
use super::wakeup::poll;
use crate::error::TRUNCATED;

/// How much of a worker's stderr is kept: the backtrace of an abort should not push out what came before it.
const TAIL: usize = 16 * 1024;
/// How much may wait for a blocked stdout.
const PENDING: usize = 256 * 1024;
/// A pipe that polls as writable takes so much without blocking (PIPE_BUF).
const WRITE_AT_ONCE: usize = 4096;
/// How much one pipe may say before the next one is heard. More than a pipe holds.
const READ_AT_ONCE: usize = 128 * 1024;
/// How long the end of the pool waits for a host's stdout that is slow.
const FLUSH: Duration = Duration::from_millis(200);

/// The pool's one place for output. Its thread starts with the first worker.
pub(super) struct Output {
    pass: bool,
    streams: Mutex<Vec<Arc<Stream>>>,
    sinks: [Sink; 2],
    wakeup: Wakeup,
    thread: Mutex<Thread>,
}

enum Thread {
    NotYet,
    /// The channel's other end is dropped when the thread ends.
    Runs(JoinHandle<()>, Receiver<()>),
    Ends,
}

/// The host's side of one worker's stdout and stderr.
pub(super) struct WorkerOutput {
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
}

struct Stream {
    pipe: OwnedFd,
    /// Index of the sink.
    to: usize,
    state: Mutex<StreamState>,
}

#[derive(Default)]
struct StreamState {
    tail: VecDeque<u8>,
    /// How many bytes came before those of the tail.
    cut: u64,
    ended: bool,
}

/// One of the host's own two streams.
struct Sink {
    pending: Mutex<Pending>,
    /// Held by who writes, so that the order of bytes is kept. Never together with `pending` while in a system call.
    writing: Mutex<()>,
    fd: fn() -> BorrowedFd<'static>,
}

#[derive(Default)]
struct Pending {
    bytes: VecDeque<u8>,
    dropped: usize,
}

impl WorkerOutput {
    /// Two pipes: the host's ends, and the worker's stdout and stderr.
    pub(super) fn new() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let output = WorkerOutput {
            stdout: Stream::new(stdout, 0),
            stderr: Stream::new(stderr, 1),
        };
        Ok((output, their_stdout, their_stderr))
    }
}

/// A pipe whose reading end does not block. (The writing end does: it is the worker's, who expects that.)
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((read, write))
}

impl Output {
    /// `pass`: whether what workers print goes on to our own stdout and stderr.
    pub(super) fn new(pass: bool) -> io::Result<Self> {
        Ok(Output {
            pass,
            streams: Mutex::new(Vec::new()),
            sinks: [
                Sink::new(rustix::stdio::stdout),
                Sink::new(rustix::stdio::stderr),
            ],
            wakeup: Wakeup::new()?,
            thread: Mutex::new(Thread::NotYet),
        })
    }

    /// Reads a worker's output from now on.
    pub(super) fn watch(self: &Arc<Self>, worker: &WorkerOutput, pool: &str) -> io::Result<()> {
        let is_first = matches!(*self.thread.lock(), Thread::NotYet);
        if is_first {
            // Not under the lock, which the new thread takes at once. Nobody else starts or ends it: there is one supervisor.
            let thread = self.start(pool)?;
            *self.thread.lock() = thread;
        }
        self.streams
            .lock()
            .extend([Arc::clone(&worker.stdout), Arc::clone(&worker.stderr)]);
        self.wakeup.wake();
        Ok(())
    }

    fn start(self: &Arc<Self>, pool: &str) -> io::Result<Thread> {
        let output = Arc::clone(self);
        let (ends, ended) = channel();
        let builder = std::thread::Builder::new().name(thread_name(pool, "output"));
        let run = move || {
            output.run();
            drop(ends);
        };
        Ok(Thread::Runs(builder.spawn(run)?, ended))
    }

    /// The worker is dead: reads what is left, lets go of its pipes, and returns its last words. A grandchild that holds
    /// a pipe open cannot keep us here.
    pub(super) fn bury(&self, worker: &WorkerOutput) -> String {
        for stream in [&worker.stdout, &worker.stderr] {
            self.read(stream);
            stream.state.lock().ended = true;
        }
        self.wakeup.wake();
        worker.stderr.tail()
    }

    /// Passes on what is there now, without blocking: for a program that may end at once.
    pub(super) fn flush(&self) {
        let streams = self.streams.lock().clone();
        streams.iter().for_each(|stream| self.read(stream));
        self.sinks.iter().for_each(Sink::write);
    }

    /// Ends the thread and waits for it, for a moment only: a host's stdout may be blocked for ever.
    pub(super) fn end(&self) {
        let thread = std::mem::replace(&mut *self.thread.lock(), Thread::Ends);
        self.wakeup.wake();
        if let Thread::Runs(thread, ended) = thread
            && ended.recv_timeout(2 * FLUSH) == Err(RecvTimeoutError::Disconnected)
        {
            let _ = thread.join();
        }
    }

    fn run(&self) {
        let mut until = None;
        loop {
            self.streams
                .lock()
                .retain(|stream| !stream.state.lock().ended);
            let streams = self.streams.lock().clone();
            if let Thread::Ends = *self.thread.lock() {
                let until = *until.get_or_insert_with(|| Instant::now() + FLUSH);
                if self.is_flushed() || Instant::now() > until {
                    return;
                }
            }
            self.wait(&streams, until);
            self.wakeup.clear();
            streams.iter().for_each(|stream| self.read(stream));
            self.sinks.iter().for_each(Sink::write);
        }
    }

    /// Blocks until there is something to read, or to write.
    fn wait(&self, streams: &[Arc<Stream>], until: Option<Instant>) {
        let mut fds = Vec::with_capacity(streams.len() + 3);
        fds.push(PollFd::from_borrowed_fd(self.wakeup.as_fd(), PollFlags::IN));
        fds.extend(
            streams
                .iter()
                .map(|stream| PollFd::new(&stream.pipe, PollFlags::IN)),
        );
        let blocked = self
            .sinks
            .iter()
            .filter(|sink| !sink.pending.lock().bytes.is_empty());
        fds.extend(blocked.map(|sink| PollFd::from_borrowed_fd((sink.fd)(), PollFlags::OUT)));
        poll(&mut fds, until);
    }

    fn is_flushed(&self) -> bool {
        self.sinks
            .iter()
            .all(|sink| sink.pending.lock().bytes.is_empty())
    }

    /// Takes what a pipe holds now.
    fn read(&self, stream: &Stream) {
        let mut buffer = [0; 8192];
        let mut state = stream.state.lock();
        let mut left = READ_AT_ONCE;
        while !state.ended && left > 0 {
            match rustix::io::read(&stream.pipe, &mut buffer) {
                Ok(0) => state.ended = true,
                Ok(n) => {
                    left = left.saturating_sub(n);
                    state.keep(&buffer[..n]);
                    if self.pass {
                        self.sinks[stream.to].push(&buffer[..n]);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => state.ended = true,
            }
        }
    }
}

impl Stream {
    fn new(pipe: OwnedFd, to: usize) -> Arc<Self> {
        Arc::new(Stream {
            pipe,
            to,
            state: Mutex::default(),
        })
    }

    fn tail(&self) -> String {
        let mut state = self.state.lock();
        let cut = state.cut;
        let tail = state.tail.make_contiguous();
        if cut == 0 {
            return String::from_utf8_lossy(tail).into_owned();
        }
        // The first character may have been cut.
        let start = (0..tail.len().min(4))
            .find(|&i| tail[i] & 0xc0 != 0x80)
            .unwrap_or(0);
        let cut = cut + start as u64;
        let tail = String::from_utf8_lossy(&tail[start..]);
        format!("{TRUNCATED}{cut} bytes of stderr before this]\n{tail}")
    }
}

impl StreamState {
    fn keep(&mut self, bytes: &[u8]) {
        let skipped = bytes.len().saturating_sub(TAIL);
        let bytes = &bytes[skipped..];
        let surplus = (self.tail.len() + bytes.len()).saturating_sub(TAIL);
        self.tail.drain(..surplus);
        self.tail.extend(bytes);
        self.cut += (skipped + surplus) as u64;
    }
}

impl Sink {
    fn new(fd: fn() -> BorrowedFd<'static>) -> Self {
        Sink {
            pending: Mutex::default(),
            writing: Mutex::new(()),
            fd,
        }
    }

    fn push(&self, bytes: &[u8]) {
        let mut pending = self.pending.lock();
        // Nothing passes a mark that is still to be written.
        let room = if pending.dropped > 0 {
            0
        } else {
            PENDING.saturating_sub(pending.bytes.len())
        };
        let taken = room.min(bytes.len());
        pending.bytes.extend(&bytes[..taken]);
        pending.dropped += bytes.len() - taken;
    }

    /// Writes as much as goes without blocking.
    fn write(&self) {
        let Some(_writing) = self.writing.try_lock() else {
            return;
        };
        while let Some(chunk) = self.next_chunk() {
            match write_chunk((self.fd)(), &chunk) {
                Ok(n) if n == chunk.len() => {}
                Ok(n) => {
                    let mut pending = self.pending.lock();
                    chunk[n..]
                        .iter()
                        .rev()
                        .for_each(|byte| pending.bytes.push_front(*byte));
                    return;
                }
                // Nobody reads it: the host's stdout is closed. Nothing is to be done about it, nor to be kept for it.
                Err(_) => *self.pending.lock() = Pending::default(),
            }
        }
    }

    fn next_chunk(&self) -> Option<Vec<u8>> {
        let mut pending = self.pending.lock();
        let length = pending.bytes.len().min(WRITE_AT_ONCE);
        if length > 0 {
            return Some(pending.bytes.drain(..length).collect());
        }
        match std::mem::take(&mut pending.dropped) {
            0 => None,
            dropped => Some(
                format!("\n[errback: {dropped} bytes of a worker's output were dropped here]\n")
                    .into_bytes(),
            ),
        }
    }
}

/// How much was written: nothing, when it would have blocked.
fn write_chunk(fd: BorrowedFd<'_>, chunk: &[u8]) -> Result<usize, Errno> {
    let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    poll(&mut ready, Some(Instant::now()));
    let events = ready[0].revents();
    if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
        return Err(Errno::PIPE); // found out without writing, which could cost a SIGPIPE
    }
    if !events.contains(PollFlags::OUT) {
        return Ok(0);
    }
    match write_now(fd, chunk) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        result => result,
    }
}

/// Writes to what has just polled as writable. Somebody else may have filled a pipe since, and its `O_NONBLOCK` is not
/// ours to set: it would be the host's too. Where the kernel can be asked not to wait this once, it is.
fn write_now(fd: BorrowedFd<'_>, chunk: &[u8]) -> Result<usize, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        const HERE: u64 = u64::MAX; // no offset
        match rustix::io::pwritev2(fd, &[IoSlice::new(chunk)], HERE, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::SPIPE) => {}
            result => return result,
        }
    }
    rustix::io::write(fd, chunk)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn output_of(write: impl FnOnce(&OwnedFd, &OwnedFd)) -> String {
        let output = Output::new(true).expect("an eventfd");
        let (worker, stdout, stderr) = WorkerOutput::new().expect("two pipes");
        write(&stdout, &stderr);
        output.bury(&worker)
    }

    #[test]
    fn the_last_words_are_the_end_of_stderr() {
        let words = output_of(|_, stderr| {
            rustix::io::write(stderr, &[b'x'; 20_000]).expect("a pipe holds 64 KiB");
            rustix::io::write(stderr, b"out of memory\n").expect("a pipe holds 64 KiB");
        });
        let (mark, words) = words.split_once('\n').expect("a mark of what was cut");
        let cut = 20_014 - TAIL;
        assert_eq!(
            mark,
            format!("[truncated: {cut} bytes of stderr before this]")
        );
        assert_eq!(words.len(), TAIL);
        assert!(words.ends_with("xout of memory\n"));
    }

    #[test]
    fn what_was_kept_whole_has_no_mark_and_a_character_is_cut_whole() {
        let whole = output_of(|_, stderr| {
            rustix::io::write(stderr, &[b'x'; TAIL]).expect("a pipe holds 64 KiB");
        });
        assert_eq!(whole, "x".repeat(TAIL));
        let cut = output_of(|_, stderr| {
            let words = "ä".repeat(TAIL / 2) + "x";
            rustix::io::write(stderr, words.as_bytes()).expect("a pipe holds 64 KiB");
        });
        let (mark, words) = cut.split_once('\n').expect("a mark of what was cut");
        assert_eq!(mark, "[truncated: 2 bytes of stderr before this]");
        assert!(words.starts_with('ä') && words.ends_with("äx"));
    }

    #[test]
    fn binary_noise_is_text_all_the_same() {
        let words = output_of(|_, stderr| {
            rustix::io::write(stderr, &[0xff, 0x80, b'a', 0]).expect("a pipe holds 64 KiB");
        });
        assert_eq!(words, "\u{fffd}\u{fffd}a\0");
    }

    #[test]
    fn a_pipe_that_somebody_holds_open_delays_nothing() {
        let output = Output::new(true).expect("an eventfd");
        let (worker, _stdout, _stderr) = WorkerOutput::new().expect("two pipes");
        assert_eq!(output.bury(&worker), "");
    }

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (_reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let chunk = [0; WRITE_AT_ONCE];
        let written = std::iter::repeat_with(|| write_chunk(writer.as_fd(), &chunk));
        assert_eq!(
            written.take_while(|n| *n == Ok(WRITE_AT_ONCE)).count(),
            16,
            "a pipe holds 64 KiB"
        );
    }

    #[test]
    fn what_a_blocked_stdout_cannot_take_is_dropped_with_a_mark() {
        let sink = Sink::new(rustix::stdio::stdout);
        sink.push(&vec![b'a'; PENDING]);
        sink.push(b"more");
        let chunks: Vec<Vec<u8>> = std::iter::from_fn(|| sink.next_chunk()).collect();
        assert_eq!(chunks.len(), PENDING / WRITE_AT_ONCE + 1);
        let mark = String::from_utf8_lossy(chunks.last().expect("the mark"));
        assert!(
            mark.contains("4 bytes of a worker's output were dropped"),
            "{mark}"
        );
    }
}

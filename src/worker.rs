//! The worker's side: a plain program that reads a call, runs it, answers, and leaves when its host is gone.
//!
//! It knows tasks and the wire, and nothing of Deferreds, reactors or pools. Jobs run one after another on the main
//! thread, where they have the stack that the system gives to programs, and one wake-up: the thread that reads a call
//! is the one that runs it and writes its answer. What a worker needs to do to itself (limits, signals, descriptors) it
//! does here at its start, on its host's word, so that the host needs no code between `fork` and `exec`.
//!
//! A worker is started with a mark, by which the program knows that it is not the program: an argument for the
//! program's own binary, because a job's children inherit the environment but not the arguments; a variable for
//! another command, whose arguments are not ours to add to.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::hook;
use crate::lane::WorkerLane;
use crate::task::{DuplicateTask, ERRBACK_TASKS_0_1, ListedTask, TaskTable};
use crate::wire::{self, Encoder, Message, PROTOCOL, ProtocolError, WorkerHello};

mod arenas;
mod channel;
mod jobs;
mod limits;
mod panics;
mod requests;
mod start;

use arenas::Arenas;
#[doc(hidden)]
pub use arenas::MemoryOfHost;
use channel::Channel;
use jobs::{Asked, Counter, Jobs};
pub use requests::{CancelToken, cancel_requested, cancel_token};
pub(crate) use start::Start;

/// How deep pools may nest: a job in a worker of this depth starts no workers of its own.
pub(crate) const MAX_NESTING: u32 = 3;

/// How many calls this worker likes to have at once. Its answers leave one by one, and each must fit into the socket's
/// buffer beside the others, or the worker waits for the host.
const PIPELINE: u64 = 64;

/// An answer's buffer is kept for the next one up to this size.
const KEEP_BUFFER: usize = 1024 * 1024;

/// The depth of this process, once it has been taken for a worker.
static DEPTH: OnceLock<u32> = OnceLock::new();

/// Whether this program has called [`run_if_worker`]: its workers are then taken there, and not before `main`.
static TAKEN_IN_MAIN: AtomicBool = AtomicBool::new(false);

/// Makes a worker of this process, if it was started to be one: the explicit form, for programs that cannot have the
/// hook before `main`. Write it as the first line of `main`, with the program's tasks.
///
/// In the host it returns at once. In a worker it never returns: the process ends when the host closes the connection.
/// Tasks that are marked without `explicit` need no mention, but may have one.
///
/// ```
/// #![forbid(unsafe_code)]
///
/// #[errback::task(explicit)]
/// fn double(n: u64) -> u64 {
///     2 * n
/// }
///
/// fn main() {
///     errback::worker::run_if_worker(&[&double]);
///     assert_eq!(double(21), 42);
/// }
/// ```
///
/// It is needed where tasks rely on what other libraries do in constructors of their own, where not even an expansion may
/// have `unsafe` in it, and with C libraries (musl) that do not tell constructors the arguments of the program.
pub fn run_if_worker(tasks: &[&dyn ListedTask]) {
    TAKEN_IN_MAIN.store(true, Ordering::Relaxed);
    if let Some(start) = Start::of_this_process() {
        let listed = tasks.iter().filter_map(|task| task.listed());
        main(
            start,
            TaskTable::new(listed.chain(ERRBACK_TASKS_0_1.static_slice())),
        );
    }
}

/// Whether this process is a worker, so that the code which asks runs in a job.
///
/// ```
/// assert!(!errback::worker::is_worker());
/// ```
pub fn is_worker() -> bool {
    DEPTH.get().is_some()
}

/// How many hosts are above this process: 0 in a program that somebody started, 1 in its workers, 2 in theirs.
///
/// ```
/// assert_eq!(errback::worker::depth(), 0);
/// ```
pub fn depth() -> u32 {
    DEPTH.get().copied().unwrap_or(0)
}

/// The argument that makes a worker of this program's own binary. It must be the only one.
pub(crate) fn start_argument(host_pid: u32) -> String {
    start_of_child(host_pid, TAKEN_IN_MAIN.load(Ordering::Relaxed)).argument()
}

/// The variable that makes a worker of another program that knows this protocol.
pub(crate) fn start_environment(host_pid: u32) -> (&'static str, String) {
    (start::VARIABLE, start_of_child(host_pid, false).to_string())
}

fn start_of_child(host_pid: u32, in_main: bool) -> Start {
    Start {
        depth: depth() + 1,
        host_pid,
        in_main,
        by_argument: true,
    }
}

/// Whether this process was started to be a worker and then ran `main` as if it were not: what it is asked to do now,
/// it would be asked in every worker that it starts. A pool must not be made here.
pub(crate) fn unclaimed_start() -> bool {
    !is_worker() && Start::of_this_process().is_some()
}

/// To be called by whoever starts workers from this program's own binary: it keeps the hook in the program.
pub(crate) fn keep_hook() {
    hook::keep();
}

/// Says which build of the program this is: the same in two processes that run the same binary. It is made of the
/// tasks' names and of the distances between functions, which hardly any change of the code leaves as they are.
pub(crate) fn build_id() -> String {
    let anchor = run_if_worker as fn(&[&dyn ListedTask]) as usize;
    let mut hash = Fnv::default();
    hash.eat(env!("CARGO_PKG_VERSION").as_bytes());
    hash.eat(
        &(main as *const () as usize)
            .wrapping_sub(anchor)
            .to_le_bytes(),
    );
    let mut entries: Vec<_> = ERRBACK_TASKS_0_1.iter().collect();
    entries.sort_by_key(|entry| entry.name());
    for entry in entries {
        hash.eat(entry.name().as_bytes());
        hash.eat(&entry.address().wrapping_sub(anchor).to_le_bytes());
    }
    format!("{:016x}", hash.0)
}

/// FNV-1a, which std's hashers cannot replace: theirs are not the same in two processes, or not promised to be.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn eat(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// A worker's whole life. Before `main`, or as its first line; it never returns.
pub(crate) fn main(start: Start, tasks: Result<TaskTable, DuplicateTask>) -> ! {
    let _ = DEPTH.set(start.depth);
    // 1. Whatever happens from here on, this process ends with its host. The signal is sent when the thread ends that
    //    started us; a host that ended before we asked for it is seen in that we have another parent by now.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    if start.is_orphan() {
        std::process::exit(0);
    }
    if !start.by_argument {
        hook::forget_environment(start::VARIABLE);
    }
    let mut worker = match Worker::start(tasks) {
        Ok(worker) => worker,
        Err(leaving) => leaving.exit(),
    };
    // 6. Jobs.
    let leaving = match worker.serve() {
        Ok(()) => Leaving::HostGone,
        Err(leaving) => leaving,
    };
    // The worker is not dropped: a job may have closed its descriptors, and closing them twice could hit others.
    leaving.exit()
}

/// Why a worker ends, other than by its jobs.
#[derive(Debug)]
enum Leaving {
    /// The host has closed the connection, or is no more.
    HostGone,
    /// The host does not speak the protocol.
    Protocol(String),
    /// The system refused something that a worker needs.
    System(&'static str, Errno),
    /// This program cannot be a worker as it is, or not with the limits that it was given.
    Refused(String),
}

impl Leaving {
    /// Ends the process by `exit` and not by `_exit`: what C libraries hold back in their output buffers, and what a
    /// coverage tool writes at the end, comes out. A handler that hangs is cut short by the host's kill.
    fn exit(self) -> ! {
        let (code, why) = match self {
            Leaving::HostGone => (0, None),
            Leaving::System(what, errno) => (71, Some(format!("{what}: {errno}"))),
            Leaving::Protocol(why) => (
                76,
                Some(format!("the host does not speak the protocol: {why}")),
            ),
            Leaving::Refused(why) => (78, Some(why)),
        };
        if let Some(why) = why {
            let _ = writeln!(
                std::io::stderr(),
                "errback worker {}: {why}",
                std::process::id()
            );
        }
        std::process::exit(code)
    }
}

/// A worker that has greeted its host.
struct Worker {
    channel: Channel,
    max_frame: usize,
    jobs: Jobs,
    answer: Encoder,
}

impl Worker {
    /// The steps of a start, up to the first job. Their numbers go on from those in [`main`]. The host is slow to hear the
    /// hello, as it sleeps; so what can wait until the first job comes is done meanwhile.
    fn start(tasks: Result<TaskTable, DuplicateTask>) -> Result<Worker, Leaving> {
        // 2. The connection goes where a task does not find it by accident.
        let channel = Channel::from_stdin()?;
        // 3. What std does before `main`.
        hook::reset_signals();
        let tasks = tasks.map_err(|error| Leaving::Refused(error.to_string()))?;
        // 4. Greetings. The limits that the host asks for are in force from here on.
        let worker = Worker::greet(channel, tasks)?;
        // 5. What else was inherited goes away. A panic is an answer from here on, not a message.
        hook::close_inherited();
        panics::install();
        Ok(worker)
    }

    fn greet(mut channel: Channel, tasks: TaskTable) -> Result<Worker, Leaving> {
        let (hello, attached) = channel.receive_hello()?;
        if hello.protocol == 0 {
            return Err(Leaving::Protocol("it asks for version 0".into()));
        }
        if hello.open_files.or(hello.memory_limit).is_some() {
            // Before the limit, which could leave no room to look for what is not to stay.
            hook::close_inherited();
        }
        limits::set(&hello)?;
        let can_share = attached.requests.is_some();
        attached.requests.into_iter().for_each(requests::keep);
        let arenas = Arenas::new(hello.buffers.filter(|_| can_share), hello.memory_limit);
        // Where it cannot be used, one does without: the socket is always there.
        let lane = <[OwnedFd; 4]>::try_from(attached.lane)
            .ok()
            .filter(|_| hello.lane)
            .and_then(|descriptors| WorkerLane::new(descriptors).ok());
        let max_frame = usize::try_from(hello.max_frame).unwrap_or(usize::MAX);
        channel.set_max_frame(max_frame);
        let mine = WorkerHello {
            protocol: PROTOCOL.min(hello.protocol),
            pid: std::process::id(),
            language: "rust".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            build: build_id(),
            tasks: tasks.len() as u64,
            pipeline: PIPELINE,
            buffers: arenas.share_from().is_some(),
            lane: lane.is_some(),
        };
        channel.send(&mine.encode())?;
        let counter = match lane {
            Some(lane) => {
                let requests = lane.requests();
                let requests = requests.map_err(|e| Leaving::Refused(e.to_string()))?;
                requests::keep_lane(requests);
                channel.use_lane(lane, Duration::from_micros(hello.spin));
                Counter::Lane
            }
            None => attached.begun.map_or(Counter::None, Counter::Eventfd),
        };
        let answer = Encoder::new(wire::frame_limit(max_frame));
        Ok(Worker {
            channel,
            max_frame,
            answer: answer.sharing(arenas.share_from()),
            jobs: Jobs::new(tasks, counter, arenas),
        })
    }

    fn serve(&mut self) -> Result<(), Leaving> {
        while self.channel.wait_for_frame()? {
            let frame = self.channel.take_frame()?;
            if !respond(&self.jobs, &mut self.answer, frame).map_err(Leaving::protocol)? {
                continue;
            }
            // What the job has printed comes before its answer. std would keep a line without its end.
            let _ = std::io::stdout().flush();
            while let Some(notice) = self.jobs.notice() {
                let frame = notice.encode(self.max_frame);
                self.channel.send(&frame.map_err(Leaving::unsendable)?)?;
            }
            self.channel.send(self.answer.bytes())?;
            self.answer.shrink(KEEP_BUFFER);
        }
        Ok(())
    }
}

/// Does what one frame says, and leaves the answer in `answer`. `false`: there is none.
fn respond(jobs: &Jobs, answer: &mut Encoder, frame: &[u8]) -> Result<bool, ProtocolError> {
    let (message, refers) = Message::read(frame)?;
    match message {
        Message::Call { id, task, args } => {
            let asked = Asked {
                id,
                task,
                args,
                refers,
            };
            jobs.answer(answer, asked);
        }
        // A later version's; whoever needs it done does not send it to this one.
        Message::Notification { .. } => return Ok(false),
        Message::Answer(_) => return Err(ProtocolError::new("an answer where a call was due")),
    }
    Ok(true)
}

/// What a worker with the tasks of this program would answer to the body of one frame. For those who feed it any bytes
/// at all and cannot start a process for each; no part of the interface.
#[doc(hidden)]
pub fn answer_to(frame: &[u8], max_frame: usize) -> Result<Option<Vec<u8>>, ProtocolError> {
    let tasks = TaskTable::linked().expect("a program whose tasks have names of their own");
    let mut answer = Encoder::new(wire::frame_limit(max_frame));
    let answered = respond(
        &Jobs::new(tasks, Counter::None, Arenas::default()),
        &mut answer,
        frame,
    )?;
    Ok(answered.then(|| answer.into_bytes()))
}

impl Leaving {
    fn unsendable(error: wire::EncodeError) -> Leaving {
        Leaving::Refused(format!("a message that must be sent cannot be: {error}"))
    }

    fn protocol(error: ProtocolError) -> Leaving {
        Leaving::Protocol(error.to_string())
    }
}

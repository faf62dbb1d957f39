//! One worker process as the operating system sees it: how it is started, killed, and collected.
//!
//! A process is named by its pidfd, never by its number alone, which may mean another process a moment after it was
//! collected. Only its *group* has to be named by number, and that is safe as long as the leader has not been collected:
//! its zombie keeps the number. So a [`Process`] sits in the pool's state, behind the pool's lock, from its spawn until
//! it is reaped, and nobody kills but under that lock.
//!
//! Surprises that shaped this file: `PR_SET_PDEATHSIG`, which the worker asks for, fires when the *thread* that spawned
//! it ends, so the supervisor spawns them all; without `pre_exec`, a user or a group the standard library uses
//! `posix_spawn`, which does not copy a large host; an exit status may be missing, because a host that ignores
//! `SIGCHLD` or waits for any child takes it from us; and a worker's peak memory begins with its host's, in whose
//! address space it was for a moment before it became a program of its own (see [`Ended::usage`]).

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::output::WorkerOutput;
use super::python::PythonProgram;
use super::wakeup::{self, Wakeup};
use crate::error::{Exit, SpawnFailed, SpawnFailure, Usage};
use crate::hook::{self, Collected, Ending};
use crate::lane::HostLane;
use crate::wire::HostHello;
use crate::worker;

/// What a worker is started from.
pub(super) struct Launch {
    pub(super) program: Program,
    pub(super) environment: Vec<(OsString, Option<OsString>)>,
    pub(super) clear_environment: bool,
    pub(super) directory: Option<PathBuf>,
    /// Whether workers are offered shared memory.
    pub(super) lanes: bool,
}

pub(super) enum Program {
    /// This very program, which becomes a worker before its `main` runs.
    Own,
    /// Another one, which speaks the protocol.
    Command {
        program: OsString,
        arguments: Vec<OsString>,
    },
    /// An interpreter, which gets our package from us.
    Python(PythonProgram),
}

/// A worker process that has just been started, and all of the host's ends of what connects the two.
pub(super) struct Child {
    pub(super) process: Arc<Process>,
    pub(super) socket: OwnedFd,
    /// What it was offered, and may use.
    pub(super) lane: Option<HostLane>,
    pub(super) output: WorkerOutput,
    pub(super) born: Instant,
}

/// A child that was not made, or cannot be greeted or watched (no descriptor left): then it is being killed.
pub(super) struct Stillborn {
    pub(super) orphan: Option<std::process::Child>,
    pub(super) why: io::Error,
}

impl<E: Into<io::Error>> From<E> for Stillborn {
    fn from(why: E) -> Self {
        Stillborn {
            orphan: None,
            why: why.into(),
        }
    }
}

impl Launch {
    /// What the program is called in messages.
    pub(super) fn name(&self) -> String {
        match &self.program {
            Program::Own => "this program itself".to_string(),
            Program::Command { program, arguments } => {
                let words = std::iter::once(program)
                    .chain(arguments)
                    .map(|word| word.to_string_lossy());
                format!("`{}`", words.collect::<Vec<_>>().join(" "))
            }
            Program::Python(python) => python.name(),
        }
    }

    /// What is to be said of a start that failed.
    pub(super) fn failure(&self, reason: SpawnFailure, stderr: String) -> SpawnFailed {
        SpawnFailed {
            program: self.name(),
            attempts: 0,
            reason,
            stderr,
            python: self.is_python(),
        }
    }

    /// Whether a worker is this program from its birth on, with nothing in between that could put it elsewhere.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.program, Program::Own)
    }

    pub(super) fn is_python(&self) -> bool {
        matches!(self.program, Program::Python(_))
    }

    /// Starts a worker and greets it. What it does not need to be born with is made while it becomes a program, which takes
    /// longer than all that: so our hello is in its socket when it looks.
    pub(super) fn spawn(&self, hello: &HostHello) -> Result<Child, Stillborn> {
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (output, stdout, stderr) = WorkerOutput::new()?;
        let mut command = self.command();
        command
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .process_group(0);
        let mut child = command.spawn()?;
        // The command has the worker's end too: a worker that is gone already does not keep us from writing to it, and what
        // it died of is told by its end.
        let greeted = self.greet(&socket, hello);
        drop(command);
        let made = greeted.and_then(|(ends, lane)| Ok((Process::of(&child, ends)?, lane)));
        match made {
            Ok((process, lane)) => Ok(Child {
                process: Arc::new(process),
                socket,
                lane,
                output,
                born: Instant::now(),
            }),
            Err(why) => {
                // It has not been collected, so that the number of its group is still its own.
                let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.kill();
                Err(Stillborn {
                    orphan: Some(child),
                    why,
                })
            }
        }
    }

    /// Says hello to a worker, with all that it is to have of us.
    fn greet(&self, socket: &OwnedFd, hello: &HostHello) -> io::Result<(Ends, Option<HostLane>)> {
        let begun = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (requests, their_requests) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // A machine that has no such memory, or no descriptors left for it, has the socket.
        let lane = self.lanes.then(HostLane::new).and_then(Result::ok);
        let hello = HostHello {
            lane: lane.is_some(),
            ..hello.clone()
        };
        let mut attached = vec![begun.as_fd(), their_requests.as_fd()];
        if let Some((lane, handed)) = &lane {
            attached.extend(lane.descriptors(handed));
        }
        send_with_descriptors(socket, &hello.encode(), &attached)?;
        let ends = Ends {
            wakeup: Wakeup::new()?,
            begun,
            requests: Arc::new(requests),
        };
        Ok((ends, lane.map(|(lane, _)| lane)))
    }

    fn command(&self) -> Command {
        let mut command = self.program.command();
        if self.clear_environment {
            command.env_clear();
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        // After the user's environment: the mark is ours.
        if let Program::Python(python) = &self.program {
            python.extend_environment(&mut command, !self.clear_environment);
        }
        if !self.is_own() {
            let (name, value) = worker::start_environment(std::process::id());
            command.env(name, value);
        }
        command
    }
}

impl Program {
    fn command(&self) -> Command {
        match self {
            Program::Own => {
                let mut command = Command::new(own_program());
                command.arg0(
                    std::env::args_os()
                        .next()
                        .unwrap_or_else(|| "errback-worker".into()),
                );
                // An argument, not a variable: what a job starts in its turn inherits the one, not the other.
                command.arg(worker::start_argument(std::process::id()));
                command
            }
            Program::Command { program, arguments } => {
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
            Program::Python(python) => python.command(),
        }
    }
}

/// The file of this very program. `/proc/self/exe` is a link to the file that runs, not to its name: it starts the same
/// build when the file on disk has been replaced or deleted. Where `/proc` is missing, the name has to do.
fn own_program() -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let link = PathBuf::from("/proc/self/exe");
    match link.symlink_metadata() {
        Ok(_) => link,
        Err(_) => std::ffi::OsStr::from_bytes(rustix::param::linux_execfn().to_bytes()).into(),
    }
}

/// Writes `bytes` with descriptors attached.
fn send_with_descriptors(
    socket: &OwnedFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(6))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let pushed = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    debug_assert!(pushed, "the space is for six descriptors");
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    // A socket that nobody has written to takes a hello of some hundred bytes whole.
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(Errno::AGAIN)
    }
}

/// A child process that has not been collected.
pub(super) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    ends: Ends,
    /// The lane, of a worker that uses it.
    lane: OnceLock<Arc<HostLane>>,
    /// Whether we have killed it: it was alive until then.
    killed: AtomicBool,
}

/// What whoever has the pool's lock needs of a worker besides its pidfd.
pub(super) struct Ends {
    /// Wakes the waiter that watches it.
    wakeup: Wakeup,
    /// The worker counts it up when it begins with a call.
    begun: OwnedFd,
    /// Asks it to stop a call. Shared with who speaks of memory on it.
    requests: Arc<OwnedFd>,
}

/// How a process ended.
pub(super) struct Ended {
    pub(super) exit: Exit,
    /// Whether it had a SIGKILL from somebody else.
    pub(super) killed_by_others: bool,
    collected: Option<Collected>,
}

impl Ended {
    /// It does not end.
    pub(super) fn never() -> Self {
        Ended {
            exit: Exit::Unkillable,
            killed_by_others: false,
            collected: None,
        }
    }

    /// What it had used. Not under the pool's lock: it reads a file.
    pub(super) fn usage(&self) -> Usage {
        let Some(collected) = &self.collected else {
            return Usage::default();
        };
        Usage {
            peak_memory: own_peak(collected.peak_memory, host_peak()),
            user: collected.user,
            system: collected.system,
        }
    }
}

/// The peak of a worker, from what the kernel says and from the peak of its host. The kernel's figure begins with the
/// host's peak at the time of the spawn, which was no higher than now. Its counts of a process with threads are some
/// per cent off, depending on when one asks.
fn own_peak(figure: u64, host: Option<u64>) -> Option<u64> {
    host.filter(|host| figure > host + host / 8).map(|_| figure)
}

/// The largest resident set that this process ever had, in bytes.
fn host_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

impl Process {
    fn of(child: &std::process::Child, ends: Ends) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        // Dropping the standard library's `Child` neither kills nor waits.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Process {
            pid,
            pidfd,
            ends,
            lane: OnceLock::new(),
            killed: AtomicBool::new(false),
        })
    }

    /// Its number, for messages.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable once the process has ended, all of its threads included.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Kills the process and its group, and wakes its waiter. Under the pool's lock, before it is reaped. It works on a
    /// stopped process too.
    pub(super) fn kill(&self) {
        // When somebody else has collected the process, its group's number may be another's already.
        if let Ok(ended) = self.look() {
            if ended.is_none() {
                self.killed.store(true, Ordering::Relaxed);
            }
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
        // For a worker that has left its group.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.ends.wakeup.wake();
    }

    /// What wakes the waiter that watches it.
    pub(super) fn wakeup(&self) -> &Wakeup {
        &self.ends.wakeup
    }

    /// The worker uses this lane.
    pub(super) fn use_lane(&self, lane: Arc<HostLane>) {
        let _ = self.lane.set(lane);
    }

    /// The lane, if the worker uses it.
    pub(super) fn lane(&self) -> Option<&Arc<HostLane>> {
        self.lane.get()
    }

    /// How many calls the worker has begun since this was asked last. Under the pool's lock.
    pub(super) fn take_count(&self) -> u64 {
        match self.lane.get() {
            Some(lane) => lane.take_count(),
            None => wakeup::count(&self.ends.begun),
        }
    }

    /// Asks the worker to stop a call. `false`: it has not looked for so long that there is no room, and was told nothing.
    pub(super) fn request_stop(&self, call: u64) -> bool {
        match self.lane.get() {
            Some(lane) => lane.request(call, 0),
            None => self.send_request(&call.to_ne_bytes()),
        }
    }

    /// Tells the worker to pass over calls, those of them that it has not begun. They are all with this worker, one behind the
    /// other. `false`: it was not told of all.
    pub(super) fn take_back(&self, mut calls: impl Iterator<Item = u64>) -> bool {
        let Some(lane) = self.lane.get() else {
            return calls.all(|call| {
                let mut packet = [1; 9];
                packet[..8].copy_from_slice(&call.to_ne_bytes());
                self.send_request(&packet)
            });
        };
        let Some(from) = calls.next() else {
            return true;
        };
        // Numbers between them are not with this worker.
        lane.request(from, calls.last().unwrap_or(from))
    }

    fn send_request(&self, packet: &[u8]) -> bool {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::send(&self.ends.requests, packet, flags).is_ok()
    }

    /// Where requests to stop go, and what is said of shared memory.
    pub(super) fn requests(&self) -> &Arc<OwnedFd> {
        &self.ends.requests
    }

    /// How much memory the process has resident, in bytes. `None`: it is not known.
    pub(super) fn resident_memory(&self) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    /// Whether the process is stopped, by a signal or a debugger.
    pub(super) fn is_stopped(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
        matches!(status, Ok(Some(_)))
    }

    /// Collects the process if it has ended. Under the pool's lock; never blocks. `None`: it has not ended.
    pub(super) fn reap(&self) -> Option<Ended> {
        let collected = match hook::collect(self.pidfd.as_fd()) {
            Ok(None) => return None,
            Ok(collected) => collected,
            Err(_) => None,
        };
        let exit = match collected.as_ref().map(|it| &it.ending) {
            Some(Ending::Exited(status)) => Exit::Status(*status),
            Some(&Ending::Killed {
                signal,
                core_dumped,
            }) => Exit::Signal {
                signal,
                core_dumped,
            },
            Some(Ending::Other) | None => Exit::Unknown,
        };
        let killed_by_others =
            exit.signal() == Some(Signal::KILL.as_raw()) && !self.killed.load(Ordering::Relaxed);
        Some(Ended {
            exit,
            killed_by_others,
            collected,
        })
    }

    /// How the process ended, if it has; an error when it is not our child any more. It is not collected.
    fn look(&self) -> Result<Option<rustix::process::WaitIdStatus>, Errno> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_that_may_be_the_hosts_is_not_the_workers() {
        const MIB: u64 = 1 << 20;
        assert_eq!(own_peak(500 * MIB, Some(500 * MIB)), None);
        assert_eq!(own_peak(501 * MIB, Some(500 * MIB)), None);
        assert_eq!(own_peak(100 * MIB, Some(500 * MIB)), None);
        assert_eq!(own_peak(600 * MIB, Some(500 * MIB)), Some(600 * MIB));
        assert_eq!(own_peak(600 * MIB, None), None);
    }

    #[test]
    fn a_host_knows_its_own_peak() {
        // Tests beside this one may have had more and let it go: what is held
        // now is a bound, a rise is not.
        let before = host_peak().expect("procfs");
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = host_peak().expect("procfs");
        assert!(after >= before.max(memory.len() as u64), "{after}");
        assert!(after < 1 << 40, "{after}");
    }
}

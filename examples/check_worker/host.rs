//! A host made by hand: a worker's process, the connection to it, and the descriptors that come with the hello.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use errback::wire::{
    self, Answer, FrameReader, HEADER, MAX_FRAME, Message, Outcome, RemoteErrorBody, WorkerHello,
};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;

use crate::value::Value;

/// Nothing here takes a second on a machine that has nothing else to do. This is when a check gives up.
const DEADLINE: Duration = Duration::from_secs(30);

/// How the worker under test is started.
pub(crate) enum Program {
    /// This program itself, in Rust.
    Own,
    /// A command and its arguments.
    Command(Vec<OsString>),
}

impl Program {
    fn command(&self) -> Result<Command> {
        let mark = format!("1:1:{}", std::process::id());
        Ok(match self {
            Program::Own => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg(format!("--errback-worker={mark}"));
                command
            }
            Program::Command(words) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).env("ERRBACK_WORKER", mark);
                command
            }
        })
    }
}

/// The members of a hello.
pub(crate) type Hello = BTreeMap<&'static str, u64>;

/// A worker, and this program as its host.
pub(crate) struct Host {
    child: Child,
    socket: Option<UnixStream>,
    reader: FrameReader,
    begun: OwnedFd,
    requests: OwnedFd,
    /// What the worker keeps of the requests, until it has been sent.
    workers_requests: Option<OwnedFd>,
    next_id: u64,
    /// What the worker has said of itself.
    pub(crate) hello: WorkerHello,
}

/// How a worker ended, and what it had printed.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Host {
    /// Starts a worker and exchanges greetings.
    pub(crate) fn start(program: &Program) -> Result<Host> {
        Host::start_with(program, &Hello::from([("protocol", 1)]))
    }

    /// The same with another greeting.
    pub(crate) fn start_with(program: &Program, hello: &Hello) -> Result<Host> {
        let mut host = Host::spawn(program)?;
        host.send_hello(&wire::encode_notification("hello", &(hello,), MAX_FRAME)?)?;
        let frame = host.receive()?.context("it ended before its hello")?;
        let Message::Notification {
            method: "hello",
            params,
        } = Message::parse(&frame)?
        else {
            bail!("its first message is not a hello");
        };
        host.hello = WorkerHello::parse(params)?;
        Ok(host)
    }

    /// Only the process.
    pub(crate) fn spawn(program: &Program) -> Result<Host> {
        let (socket, end) = UnixStream::pair()?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        let child = program
            .command()?
            .stdin(OwnedFd::from(end))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("the worker cannot be started")?;
        let (requests, workers_requests) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(Host {
            child,
            socket: Some(socket),
            reader: FrameReader::new(MAX_FRAME),
            begun: rustix::event::eventfd(0, flags)?,
            requests,
            workers_requests: Some(workers_requests),
            next_id: 1 << 40,
            hello: WorkerHello::default(),
        })
    }

    fn socket(&self) -> &UnixStream {
        self.socket.as_ref().expect("the connection is open")
    }

    /// Writes the first frame, with the descriptors attached to it.
    pub(crate) fn send_hello(&mut self, frame: &[u8]) -> Result<()> {
        let workers_requests = self.workers_requests.take().expect("one hello");
        // A third is a later version's, and to be closed.
        let descriptors = [
            self.begun.as_fd(),
            workers_requests.as_fd(),
            self.begun.as_fd(),
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = rustix::net::sendmsg(
            self.socket(),
            &[IoSlice::new(frame)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        ensure!(sent == frame.len(), "the hello was not taken whole");
        Ok(())
    }

    /// Writes whatever bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket().write_all(bytes)?)
    }

    /// Writes a call.
    pub(crate) fn send_call(&mut self, id: u64, task: &str, args: &impl Serialize) -> Result<()> {
        self.send(&wire::encode_call(id, task, args, MAX_FRAME)?)
    }

    /// The next frame, or nothing at the end of file.
    pub(crate) fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(frame) = self.reader.next_frame()? {
                return Ok(Some(frame.to_vec()));
            }
            let mut bytes = [0; 65536];
            match self.socket().read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.reader.extend(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("no answer came"),
            }
        }
    }

    /// The next answer, which has to be the one to this call.
    pub(crate) fn answer(&mut self, id: u64) -> Result<Result<Value, RemoteErrorBody>> {
        let ended = "it ended instead of answering";
        let mut frame = self.receive()?.context(ended)?;
        // What it has to say of shared memory.
        while let Message::Notification {
            method: "buffers", ..
        } = Message::parse(&frame)?
        {
            frame = self.receive()?.context(ended)?;
        }
        let answer = Answer::parse(&frame)?;
        ensure!(answer.id == id, "answer {} came for {id}", answer.id);
        Ok(match answer.outcome {
            Outcome::Value(value) => Ok(wire::decode_value(value)?),
            Outcome::Error(error) => Err(error),
        })
    }

    /// Calls a task and waits for what comes of it.
    pub(crate) fn call(
        &mut self,
        task: &str,
        args: &impl Serialize,
    ) -> Result<Result<Value, RemoteErrorBody>> {
        let id = self.fresh_id();
        self.send_call(id, task, args)?;
        self.answer(id)
    }

    /// One that no other call has had; those of the checks are lower.
    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Calls a task that has to fail.
    pub(crate) fn failure(&mut self, task: &str, args: &impl Serialize) -> Result<RemoteErrorBody> {
        match self.call(task, args)? {
            Ok(value) => {
                let value: String = format!("{value:?}").chars().take(100).collect();
                bail!("{task} has the result {value}, where an error was due")
            }
            Err(error) => Ok(error),
        }
    }

    /// Sees that the worker still works.
    pub(crate) fn is_well(&mut self) -> Result<()> {
        let sum = self.call("check:add", &(1, 2))?;
        ensure!(matches!(sum, Ok(Value::Unsigned(3))), "1 + 2 is {sum:?}");
        Ok(())
    }

    /// The frame that answers a chunk, and what is in it.
    pub(crate) fn chunk(&mut self, task: &str, calls: &[Value]) -> Result<Vec<u8>> {
        let id = self.fresh_id();
        self.send_call(id, wire::MAP, &(task, calls))?;
        self.receive()?.context("it ended instead of answering")
    }

    /// The same for calls of one argument.
    pub(crate) fn each(&mut self, task: &str, arguments: &[Value]) -> Result<Vec<u8>> {
        let id = self.fresh_id();
        self.send_call(id, wire::EACH, &(task, arguments))?;
        self.receive()?.context("it ended instead of answering")
    }

    /// How many calls the worker has begun since the last time.
    pub(crate) fn begun(&mut self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.begun, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Asks for the end of a call.
    pub(crate) fn request(&mut self, id: u64) -> Result<()> {
        rustix::net::send(&self.requests, &id.to_ne_bytes(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Shows the worker an arena with these bytes in it.
    pub(crate) fn announce(&mut self, number: u64, bytes: &[u8]) -> Result<()> {
        use rustix::fs::{MemfdFlags, SealFlags};
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = rustix::fs::memfd_create("check", flags)?;
        std::fs::File::from(memfd.try_clone()?).write_all(bytes)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
        rustix::fs::fcntl_add_seals(&memfd, seals)?;
        let packet = [1, number, bytes.len() as u64]
            .map(u64::to_ne_bytes)
            .concat();
        let descriptors = [memfd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let packet = &[IoSlice::new(&packet)];
        rustix::net::sendmsg(&self.requests, packet, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Closes the connection and waits for the end.
    pub(crate) fn end(mut self) -> Result<Ended> {
        self.socket = None;
        self.wait()
    }

    /// Closes the connection and expects exit code 0.
    pub(crate) fn end_well(self) -> Result<()> {
        let ended = self.end()?;
        ensure!(
            ended.status.code() == Some(0),
            "it ended with {} where 0 was due: {}",
            ended.status,
            ended.stderr
        );
        Ok(())
    }

    /// Waits for the worker's end.
    pub(crate) fn wait(&mut self) -> Result<Ended> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
        let deadline = DEADLINE.try_into()?;
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&deadline)))?;
        ensure!(ready > 0, "it does not end");
        Ok(Ended {
            status: self.child.wait()?,
            stdout: read_to_end(self.child.stdout.take())?,
            stderr: read_to_end(self.child.stderr.take())?,
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Of a worker that has been waited for, nothing is left to be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a pipe holds. A worker prints less than that here.
fn read_to_end(pipe: Option<impl Read>) -> Result<String> {
    let mut text = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A frame around these bytes.
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a short body");
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend(length.to_be_bytes());
    frame.extend(body);
    frame
}

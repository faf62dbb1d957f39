//! Worker processes that break the rules, against a real pool with jobs outstanding.
//!
//! A stranger is this binary again, told to run the one test here that is no test. It takes a script out of a directory
//! and plays it; when there is none left, it becomes a worker as it should be.

use std::ffi::OsStr;
use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use errback::wire::{
    self, ErrorKind, FrameReader, MAX_FRAME, Message, RemoteErrorBody, WorkerHello, decode_value,
    encode_notification,
};
use errback::{AsyncResult, Failure, Pool, ProtocolError, WorkerDied};
use proptest::prelude::*;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// Nothing here takes long. This is when a test gives up.
const DEADLINE: Duration = Duration::from_secs(120);

/// What the host may have more in memory afterwards, whatever was claimed or sent.
const GROWTH_KIB: u64 = 32 << 10;

const SCRIPTS: &str = "ERRBACK_TEST_SCRIPTS";
const MARK: &str = "ERRBACK_TEST_MARK";
const HEIR: &str = "ERRBACK_TEST_HEIR";

/// The result that no job has.
const POISON: u64 = u64::MAX;

#[errback::task]
fn add_up(a: u64, b: u64) -> u64 {
    a + b
}

#[errback::task]
fn measure(bytes: Vec<u8>) -> u64 {
    bytes.len() as u64
}

/// What a stranger plays after its hello.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Script {
    /// Whether it says that jobs have begun, as workers should.
    counts: bool,
    moves: Vec<Move>,
}

/// What it does about one call.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Move {
    Right,
    /// An error, rightly.
    Error,
    Twice,
    TwiceApart,
    /// The answer to another job, so far from this one.
    WrongId(i8),
    /// Bytes that are no frame.
    Garbage(Vec<u8>),
    /// A frame that holds no answer.
    Frame(Vec<u8>),
    /// The beginning of the right answer.
    Half(u8, End),
    /// The header of a frame, and a few bytes.
    Claim(u32, End),
    /// Notifications, and then the answer.
    Flood(u16),
    /// An answer when no more of the call than its id has been read.
    Early,
    /// It leaves, and somebody goes on talking in its place.
    Heir,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum End {
    Exit,
    Close,
    /// It stops, until somebody kills it.
    Stop,
}

// ---------------------------------------------------------------------------------------------------------------------
// The stranger

#[test]
#[ignore = "a process that other tests start"]
fn be_a_stranger() {
    let Some(scripts) = std::env::var_os(SCRIPTS) else {
        return;
    };
    if std::env::var_os(HEIR).is_some() {
        return be_an_heir();
    }
    match take_script(Path::new(&scripts)) {
        Some(script) => Stranger::greet(script.counts, scripts.into()).play(script.moves),
        None => be_a_worker(),
    }
}

fn take_script(scripts: &Path) -> Option<Script> {
    (0..64).find_map(|number| {
        let script = scripts.join(number.to_string());
        let mine = script.with_extension(std::process::id().to_string());
        // One of several strangers succeeds.
        fs::rename(script, &mine).ok()?;
        Some(serde_json::from_slice(&fs::read(mine).ok()?).expect("a script"))
    })
}

fn be_a_worker() {
    let mark = std::env::var_os(MARK).expect("a mark");
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    let error = command.env("ERRBACK_WORKER", mark).exec();
    panic!("{error}");
}

/// Talks faster than anybody can listen, until nobody does.
fn be_an_heir() {
    let mut socket = connection();
    // Small ones: to read one takes longer than to write it.
    let noise = noise(10).repeat(10_000);
    let mut told = false;
    while socket.write_all(&noise).is_ok() {
        if !told {
            println!("{HEIR}");
            told = true;
        }
    }
}

/// This binary, to be a stranger.
fn stranger() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["workers::be_a_stranger", "--exact", "--ignored"]);
    command.args(["--nocapture", "--test-threads=1"]);
    command
}

/// What a worker has as its standard input.
fn connection() -> UnixStream {
    UnixStream::from(rustix::stdio::stdin().try_clone_to_owned().expect("stdin"))
}

struct Stranger {
    socket: UnixStream,
    reader: FrameReader,
    begun: Option<OwnedFd>,
    scripts: PathBuf,
}

impl Stranger {
    fn greet(counts: bool, scripts: PathBuf) -> Stranger {
        let mut stranger = Stranger {
            socket: connection(),
            reader: FrameReader::new(MAX_FRAME),
            begun: None,
            scripts,
        };
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            stranger.socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        stranger
            .reader
            .extend(&bytes[..received.expect("a hello").bytes]);
        let hello = stranger.reader.next_frame().expect("a frame");
        assert!(hello.is_some(), "a hello is sent at once");
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
                stranger.begun = descriptors.next().filter(|_| counts);
            }
        }
        let hello = WorkerHello {
            protocol: wire::PROTOCOL,
            language: "shady".to_string(),
            ..WorkerHello::default()
        };
        stranger.send(&hello.encode());
        stranger
    }

    fn play(mut self, moves: Vec<Move>) {
        for next in moves.into_iter().chain(std::iter::repeat(Move::Right)) {
            if let Move::Early = next {
                self.answer_early();
                continue;
            }
            let (id, answer) = self.read_call();
            self.count();
            match next {
                Move::Right => self.send(&answer),
                Move::Error => self.send(&error(id)),
                Move::Twice => self.send(&[&answer[..], &answer].concat()),
                Move::TwiceApart => {
                    self.send(&answer);
                    self.send(&answer);
                }
                Move::WrongId(by) => self.send(&value(id.wrapping_add_signed(by.into()), POISON)),
                Move::Garbage(bytes) => self.send(&bytes),
                Move::Frame(body) => self.send(&frame(&body)),
                Move::Half(count, end) => {
                    self.send(&answer[..usize::from(count) % answer.len()]);
                    self.end(end);
                }
                Move::Claim(length, end) => {
                    self.send(&[&length.to_be_bytes()[..], &[0x94, 1, 0xcf]].concat());
                    self.end(end);
                }
                Move::Flood(count) => {
                    let noise = noise(100);
                    (0..count).for_each(|_| self.send(&noise));
                    self.send(&answer);
                }
                Move::Heir => self.leave_an_heir(),
                Move::Early => unreachable!("it has been played"),
            }
        }
    }

    /// The next call: its id, and the right answer to it. No more calls: this is the end.
    fn read_call(&mut self) -> (u64, Vec<u8>) {
        while !self.reader.has_frame().expect("frames") {
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) | Err(_) => std::process::exit(0),
                Ok(count) => self.reader.extend(&bytes[..count]),
            }
        }
        let body = self.reader.next_frame().expect("frames").expect("a frame");
        let Ok(Message::Call { id, args, .. }) = Message::parse(body) else {
            panic!("a host sends calls");
        };
        let right = match decode_value::<(u64, u64)>(args) {
            Ok((a, b)) => a + b,
            Err(_) => decode_value::<(Vec<u8>,)>(args).expect("bytes").0.len() as u64,
        };
        (id, value(id, right))
    }

    fn answer_early(&mut self) {
        let mut head = [0; wire::CALL_ID_OFFSET + 8];
        if self.socket.read_exact(&mut head).is_err() {
            std::process::exit(0);
        }
        self.count();
        let (_, id) = head.split_last_chunk().expect("an id");
        self.send(&value(u64::from_be_bytes(*id), POISON));
        park();
    }

    fn leave_an_heir(&self) {
        let mut heir = stranger();
        heir.env(HEIR, "")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // In a group of its own, so that the worker's end is not its end; that of the socket is.
            .process_group(0);
        let mut heir = heir.spawn().expect("this binary");
        let said = heir.stdout.as_mut().expect("a pipe");
        let told = std::io::BufRead::lines(std::io::BufReader::new(said))
            .any(|line| line.is_ok_and(|line| line.contains(HEIR)));
        assert!(told, "the heir talks");
        std::process::exit(0);
    }

    fn count(&self) {
        if let Some(begun) = &self.begun {
            rustix::io::write(begun, &1_u64.to_ne_bytes()).expect("a counter");
        }
    }

    fn end(&self, end: End) {
        match end {
            End::Exit => std::process::exit(3),
            End::Close => self.socket.shutdown(Shutdown::Both).expect("a socket"),
            End::Stop => {
                let mine = self.scripts.join(format!("stopped-{}", std::process::id()));
                fs::write(mine, "").expect("a directory");
            }
        }
        park();
    }

    /// A host that has hung up, or kills us in the middle of it, is in its right.
    fn send(&mut self, bytes: &[u8]) {
        if self.socket.write_all(bytes).is_err() {
            park();
        }
    }
}

/// Waits to be killed.
fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

fn value(id: u64, value: u64) -> Vec<u8> {
    let mut body = vec![0x94, 0x01, 0xcf];
    body.extend(id.to_be_bytes());
    body.extend([0xc0, 0xcf]);
    body.extend(value.to_be_bytes());
    frame(&body)
}

fn error(id: u64) -> Vec<u8> {
    let error = RemoteErrorBody::new(ErrorKind::Error, "Refused", "no");
    let error = wire::encode_notification("", &(error,), MAX_FRAME).expect("an error");
    // Behind the header, the array, the kind, the empty name and the array of one.
    let mut body = vec![0x94, 0x01, 0xcf];
    body.extend(id.to_be_bytes());
    body.extend(&error[wire::HEADER + 4..]);
    body.push(0xc0);
    frame(&body)
}

/// A notification of nothing, so long.
fn noise(length: usize) -> Vec<u8> {
    encode_notification("noise", &("x".repeat(length),), MAX_FRAME).expect("a notification")
}

// ---------------------------------------------------------------------------------------------------------------------
// The host

/// One of these tests at a time: they look at the memory of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pool of strangers, and the directory with their scripts.
struct Strangers {
    pool: Pool,
    scripts: PathBuf,
}

impl Strangers {
    fn new(size: usize, scripts: &[Script]) -> Strangers {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("errback-strangers-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        for (number, script) in scripts.iter().enumerate() {
            let script = serde_json::to_vec(script).expect("a script");
            fs::write(directory.join(number.to_string()), script).expect("a file");
        }
        // The mark must not make a worker of the stranger before it has looked for its script.
        let start = format!(
            "{MARK}=$ERRBACK_WORKER; export {MARK}; unset ERRBACK_WORKER; exec \"$0\" \"$@\""
        );
        let stranger = stranger();
        let arguments = ["-c".into(), start.into(), stranger.get_program().to_owned()];
        let arguments = arguments
            .into_iter()
            .chain(stranger.get_args().map(OsStr::to_owned));
        let pool = Pool::builder()
            .size(size)
            .command("sh", arguments)
            .env(SCRIPTS, &directory)
            .pass_output(false)
            .build()
            .expect("a pool");
        Strangers {
            pool,
            scripts: directory,
        }
    }

    /// What comes of a job. Strangers that have stopped are killed meanwhile.
    #[track_caller]
    fn outcome(&self, mut job: AsyncResult<u64>) -> Result<u64, Failure> {
        let until = Instant::now() + DEADLINE;
        loop {
            match job.get_timeout(Duration::from_millis(5)) {
                Ok(outcome) => return outcome,
                Err(later) => job = later,
            }
            assert!(Instant::now() < until, "a job has no outcome");
            self.kill_the_stopped();
        }
    }

    fn kill_the_stopped(&self) {
        for entry in fs::read_dir(&self.scripts).expect("scripts").flatten() {
            let name = entry.file_name().into_string().expect("a name of ours");
            let Some(pid) = name.strip_prefix("stopped-") else {
                continue;
            };
            let pid: u32 = pid.parse().expect("a pid");
            // Its number is its own for as long as it is a worker of the pool.
            if self.pool.stats().workers.contains(&pid) {
                let pid = Pid::from_raw(pid as i32).expect("a pid");
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            fs::remove_file(entry.path()).expect("a file of ours");
        }
    }

    /// There are no more scripts: good workers come, and jobs succeed.
    #[track_caller]
    fn recovers(&self) {
        for number in 0..64 {
            let _ = fs::remove_file(self.scripts.join(number.to_string()));
        }
        let until = Instant::now() + DEADLINE;
        loop {
            // Those that live may have some of their moves left.
            match self.outcome(self.pool.apply_async(add_up, (20, 22))) {
                Ok(sum) => return assert_eq!(sum, 42),
                Err(why) => assert!(Instant::now() < until, "the pool does not recover: {why}"),
            }
        }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.pool.terminate();
        let ended = self.pool.join_timeout(DEADLINE);
        let _ = fs::remove_dir_all(&self.scripts);
        assert!(ended || std::thread::panicking(), "the pool does not end");
    }
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    let number = line.split_whitespace().next().expect("a number");
    number.parse().expect("a number")
}

/// Plays one move to one job. The stranger must be gone afterwards, with the job failed or not, and a good worker in
/// its place.
#[track_caller]
fn ends_the_worker(wrong: Move, check: impl FnOnce(Result<u64, Failure>)) {
    let memory = resident_kib();
    let script = Script {
        counts: true,
        moves: vec![wrong.clone()],
    };
    let strangers = Strangers::new(1, &[script]);
    check(strangers.outcome(strangers.pool.apply_async(add_up, (1, 2))));
    let until = Instant::now() + DEADLINE;
    while strangers.pool.stats().died == 0 {
        assert!(Instant::now() < until, "{wrong:?}: the stranger lives");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    strangers.recovers();
    let stats = strangers.pool.stats();
    assert_eq!((stats.died, stats.spawned), (1, 2), "{wrong:?}");
    assert!(
        resident_kib() < memory + GROWTH_KIB,
        "{wrong:?}: {memory} KiB became {}",
        resident_kib()
    );
}

#[track_caller]
fn is_refused(wrong: Move) {
    let sentence = format!("{wrong:?}");
    ends_the_worker(wrong, |outcome| {
        let failure = outcome.expect_err(&sentence);
        assert!(failure.is::<ProtocolError>(), "{sentence}: {failure:?}");
    });
}

#[test]
fn a_worker_that_breaks_the_rules_is_replaced() {
    let _alone = alone();
    is_refused(Move::WrongId(1));
    is_refused(Move::WrongId(-1));
    is_refused(Move::Garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    is_refused(Move::Frame(Vec::new()));
    is_refused(Move::Frame(vec![0xdd, 0xff, 0xff, 0xff, 0xff]));
    is_refused(Move::Claim(u32::MAX, End::Stop));
    is_refused(Move::Claim(MAX_FRAME as u32 + 1, End::Stop));
    is_refused(Move::Half(9, End::Close));
    ends_the_worker(Move::Twice, |outcome| assert_eq!(outcome.unwrap(), 3));
}

#[test]
fn a_worker_that_ends_within_its_answer_has_died() {
    let _alone = alone();
    for end in [End::Exit, End::Stop] {
        for half in [Move::Half(9, end), Move::Claim(MAX_FRAME as u32, end)] {
            ends_the_worker(half, |outcome| {
                assert!(outcome.expect_err("half").is::<WorkerDied>());
            });
        }
    }
}

#[test]
fn an_answer_that_came_before_the_call_was_read_is_none() {
    let _alone = alone();
    let script = Script {
        counts: true,
        moves: vec![Move::Early],
    };
    let strangers = Strangers::new(1, &[script]);
    // More than any socket holds, so that it cannot have been written.
    let job = strangers.pool.apply_async(measure, (vec![1; 32 << 20],));
    let failure = strangers.outcome(job).expect_err("an answer");
    assert!(failure.is::<ProtocolError>(), "{failure:?}");
    strangers.recovers();
}

#[test]
fn whoever_talks_in_a_dead_workers_place_is_not_listened_to_for_ever() {
    let _alone = alone();
    ends_the_worker(Move::Heir, |outcome| {
        assert!(outcome.expect_err("noise").is::<WorkerDied>());
    });
}

#[test]
fn notifications_are_passed_over_and_cost_no_memory() {
    let _alone = alone();
    let memory = resident_kib();
    let script = Script {
        counts: true,
        moves: vec![Move::Flood(50_000)],
    };
    let strangers = Strangers::new(1, &[script]);
    let job = strangers.pool.apply_async(add_up, (1, 2));
    assert_eq!(strangers.outcome(job).expect("an answer"), 3);
    assert_eq!(strangers.pool.stats().died, 0);
    assert!(resident_kib() < memory + GROWTH_KIB);
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Exit), Just(End::Close), Just(End::Stop)]
}

fn some_move() -> impl Strategy<Value = Move> {
    let bytes = || proptest::collection::vec(any::<u8>(), 4..40);
    prop_oneof![
        4 => Just(Move::Right),
        1 => Just(Move::Error),
        1 => Just(Move::Twice),
        1 => Just(Move::TwiceApart),
        1 => any::<i8>().prop_filter("another id", |by| *by != 0).prop_map(Move::WrongId),
        // A header above the limit: what claims less is `Claim`.
        1 => bytes().prop_map(|bytes| Move::Garbage([&[0xff][..], &bytes].concat())),
        1 => bytes().prop_map(Move::Frame),
        1 => (any::<u8>(), end()).prop_map(|(count, end)| Move::Half(count, end)),
        1 => (any::<u32>(), end()).prop_map(|(length, end)| Move::Claim(length, end)),
        1 => (0..500_u16).prop_map(Move::Flood),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let moves = proptest::collection::vec(some_move(), 1..6);
    (proptest::bool::weighted(0.8), moves).prop_map(|(counts, moves)| Script { counts, moves })
}

proptest! {
    // Each starts about ten processes.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_job_has_its_own_answer_or_a_failure_once(scripts in proptest::collection::vec(script(), 1..6)) {
        let _alone = alone();
        let memory = resident_kib();
        let strangers = Strangers::new(2, &scripts);
        let jobs: Vec<_> = (0..10_u64).map(|n| strangers.pool.apply_async(add_up, (n, 1000 * n))).collect();
        for (n, job) in (0..).zip(jobs) {
            // An `AsyncResult` gives its outcome once, by its type; so there must be one, and the right one.
            if let Ok(sum) = strangers.outcome(job) {
                prop_assert_eq!(sum, 1001 * n);
            }
        }
        let stats = strangers.pool.stats();
        prop_assert_eq!((stats.submitted, stats.finished, stats.queued), (10, 10, 0));
        strangers.recovers();
        prop_assert!(resident_kib() < memory + GROWTH_KIB);
    }
}

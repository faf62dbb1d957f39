//! What the rows share: a gate to hold jobs at, and the count of what is left behind.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use errback::{AsyncResult, Builder, Failure, Pool};
use rustix::process::{Pid, Signal};

use crate::tasks::{add, hold};

/// A fault must have come out by then: two seconds, times the patience.
pub(crate) fn soon() -> Duration {
    Duration::from_secs(2) * patience()
}

/// The pool must be whole again by then, and ended by then when it was told to: five seconds, times the patience.
pub(crate) fn whole() -> Duration {
    Duration::from_secs(5) * patience()
}

/// How much slower than an idle machine this one may be. `ERRBACK_TEST_PATIENCE=1` asks for what is promised there.
pub(crate) fn patience() -> u32 {
    std::env::var("ERRBACK_TEST_PATIENCE")
        .ok()
        .and_then(|factor| factor.parse().ok())
        .unwrap_or(10)
}

/// What `ERRBACK_TEST_WITHOUT` may name.
const FAST_PATHS: [&str; 4] = ["lanes", "batches", "spin", "buffers"];

/// Whether this run is to have a fast path: `ERRBACK_TEST_WITHOUT=lanes,batches` switches some off.
pub(crate) fn has(fast_path: &str) -> bool {
    let without = std::env::var("ERRBACK_TEST_WITHOUT").unwrap_or_default();
    let without: Vec<&str> = without.split(',').filter(|it| !it.is_empty()).collect();
    let unknown = without.iter().find(|it| !FAST_PATHS.contains(it));
    assert_eq!(
        unknown, None,
        "ERRBACK_TEST_WITHOUT may name {FAST_PATHS:?}"
    );
    !without.contains(&fast_path)
}

/// A pool to be described, with the fast paths that this run is about.
pub(crate) fn builder() -> Builder {
    let mut builder = Pool::builder()
        .shared_memory(has("lanes"))
        .batching(has("batches"));
    if !has("spin") {
        builder = builder.spin(Duration::ZERO);
    }
    if !has("buffers") {
        builder = builder.shared_buffers(None);
    }
    builder
}

pub(crate) fn pool(size: usize) -> Pool {
    builder().size(size).build().expect("a pool")
}

/// Waits for what nobody announces, such as a process that disappears.
#[track_caller]
pub(crate) fn eventually(within: Duration, what: impl fmt::Display, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + within;
    while !is() {
        assert!(Instant::now() < until, "not within {within:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// The failure of a job, which must come soon.
#[track_caller]
pub(crate) fn failure<T: fmt::Debug + Send + 'static>(result: AsyncResult<T>) -> Failure {
    let began = Instant::now();
    match result.get_timeout(soon()) {
        Ok(result) => {
            crate::suite::failure_took(began.elapsed());
            result.expect_err("this job fails")
        }
        Err(_) => panic!("the job did not fail within {:?}", soon()),
    }
}

/// The failure, which must be an `E`.
#[track_caller]
pub(crate) fn failure_of<
    E: std::error::Error + Clone + Send + Sync + 'static,
    T: fmt::Debug + Send + 'static,
>(
    result: AsyncResult<T>,
) -> E {
    let failure = failure(result);
    failure
        .check::<E>()
        .cloned()
        .unwrap_or_else(|| panic!("another failure: {failure:?}"))
}

/// The value of a job, which must come, if not at once.
#[track_caller]
pub(crate) fn value<T: fmt::Debug + Send + 'static>(result: AsyncResult<T>) -> T {
    match result.get_timeout(Duration::from_secs(60)) {
        Ok(result) => result.expect("this job succeeds"),
        Err(_) => panic!("the job hangs"),
    }
}

/// The job succeeds, with whatever.
#[track_caller]
pub(crate) fn succeeds<T: fmt::Debug + Send + 'static>(result: AsyncResult<T>) {
    value(result);
}

/// A place where jobs wait to be let go: `hold` connects to it, and waits for a byte or the end.
pub(crate) struct Gate {
    listener: UnixListener,
    pub(crate) path: String,
}

/// A job that has begun.
pub(crate) struct Held {
    stream: UnixStream,
    pub(crate) pid: u32,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "errback-gate-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let path: PathBuf = std::env::temp_dir().join(name);
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket in the temporary directory");
        Gate {
            listener,
            path: path.to_string_lossy().into_owned(),
        }
    }

    /// Waits for a job to begin.
    pub(crate) fn held(&self) -> Held {
        let (mut stream, _) = self.listener.accept().expect("a job that connects");
        let mut pid = [0; 4];
        stream.read_exact(&mut pid).expect("a pid");
        Held {
            stream,
            pid: u32::from_ne_bytes(pid),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Held {
    /// Lets the job end.
    pub(crate) fn release(mut self) {
        let _ = self.stream.write_all(b"!");
    }

    pub(crate) fn kill(&self, signal: Signal) {
        kill(self.pid, signal);
    }

    /// Lets it go on, and asks whether it finds what it should.
    pub(crate) fn finds_all_well(mut self) -> bool {
        let mut answer = [0];
        self.stream.write_all(b"!").is_ok()
            && self.stream.read_exact(&mut answer).is_ok()
            && answer == [1]
    }

    /// Waits until the job, or rather its process, is gone.
    pub(crate) fn gone(mut self) -> u32 {
        let _ = self.stream.read(&mut [0]);
        self.pid
    }
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("a process that is there");
}

/// What a process has: to be the same before and after.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Belongings {
    threads: usize,
    descriptors: Vec<String>,
    children: Vec<String>,
}

impl Belongings {
    pub(crate) fn now() -> Belongings {
        Belongings {
            threads: threads(),
            descriptors: descriptors_by_kind(),
            children: children(),
        }
    }
}

fn list(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("procfs").flatten();
    entries.map(|entry| entry.path()).collect()
}

pub(crate) fn threads() -> usize {
    list("/proc/self/task").len()
}

pub(crate) fn descriptors() -> usize {
    list("/proc/self/fd").len()
}

/// In the name of shared memory of ours.
const SHARED: &str = "/memfd:errback";

fn descriptor_names() -> impl Iterator<Item = String> {
    let links = list("/proc/self/fd").into_iter();
    let names = links.filter_map(|link| fs::read_link(link).ok());
    names.map(|name| name.to_string_lossy().into_owned())
}

/// What is open: files by their names, the rest by its kind (`socket`, `pipe`), as a new one is as good.
/// Memory for large buffers, of which some is kept while a pool lives, is not counted: see `close`.
fn descriptors_by_kind() -> Vec<String> {
    let mut kinds: Vec<String> = descriptor_names()
        .filter(|name| !name.contains(SHARED))
        .map(|name| match name.split_once(":[") {
            Some((kind, number)) if number.starts_with(|it: char| it.is_ascii_digit()) => {
                kind.to_string()
            }
            _ => name,
        })
        .collect();
    kinds.sort();
    kinds
}

/// The children of this process, zombies included, each with its state (not its number: a replaced worker is as good).
pub(crate) fn children() -> Vec<String> {
    let mut children: Vec<String> = child_pids().into_iter().map(state).collect();
    children.retain(|state| !state.is_empty());
    // Whether it sleeps or runs at this moment is no matter.
    children
        .iter_mut()
        .filter(|state| *state != "Z")
        .for_each(|state| *state = "alive".to_string());
    children.sort();
    children
}

pub(crate) fn child_pids() -> Vec<u32> {
    let of_thread = |path: PathBuf| fs::read_to_string(path.join("children")).unwrap_or_default();
    let text: String = list("/proc/self/task")
        .into_iter()
        .map(of_thread)
        .collect::<Vec<_>>()
        .join(" ");
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The state of a process in one letter; empty when it is gone.
pub(crate) fn state(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_string()
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    !matches!(&*state(pid), "" | "Z")
}

/// The invariant around a fault: a pool of two, one job that the fault must not touch, some that wait behind, and the
/// count of what there is.
pub(crate) struct Invariant {
    pub(crate) pool: Pool,
    pub(crate) gate: Gate,
    before: Belongings,
    bystander: Option<(AsyncResult<u32>, Held)>,
    waiting: Vec<AsyncResult<i64>>,
    without_pool: Belongings,
}

impl Invariant {
    /// A pool of two whose workers have both worked.
    pub(crate) fn new() -> Invariant {
        let without_pool = Belongings::now();
        Invariant::of(pool(2), without_pool)
    }

    /// The same, and all bytes go through the stream.
    pub(crate) fn unshared() -> Invariant {
        let without_pool = Belongings::now();
        let pool = builder().size(2).shared_buffers(None).build();
        Invariant::of(pool.expect("a pool"), without_pool)
    }

    pub(crate) fn of(pool: Pool, without_pool: Belongings) -> Invariant {
        let gate = Gate::new();
        let jobs: Vec<_> = (0..pool.size())
            .map(|_| pool.apply_async(hold, (gate.path.clone(),)))
            .collect();
        let held: Vec<_> = jobs.iter().map(|_| gate.held()).collect();
        held.into_iter().for_each(Held::release);
        jobs.into_iter().for_each(succeeds);
        let before = Belongings::now();
        Invariant {
            pool,
            gate,
            before,
            bystander: None,
            waiting: Vec::new(),
            without_pool,
        }
    }

    /// Occupies all workers but one with a job that must not be harmed. (For pools of two.)
    pub(crate) fn with_bystander(mut self) -> Invariant {
        let job = self.pool.apply_async(hold, (self.gate.path.clone(),));
        self.bystander = Some((job, self.gate.held()));
        self
    }

    /// The worker that does not run the bystander.
    pub(crate) fn other_than_bystander(&self, workers: &[u32]) -> Option<u32> {
        let (_, held) = self.bystander.as_ref()?;
        workers.iter().copied().find(|pid| *pid != held.pid)
    }

    /// A job that comes now succeeds.
    pub(crate) fn check_job_after(mut self) {
        self.check_others();
    }

    /// Queues jobs behind whatever runs now.
    pub(crate) fn queue(&mut self) {
        self.waiting
            .extend((0..10).map(|n| self.pool.apply_async(add, (n, 1))));
    }

    /// The fault has come out: everything else must be as if nothing had happened. Then the pool ends.
    pub(crate) fn check(mut self) {
        self.check_others();
        let Invariant {
            pool,
            gate,
            before,
            without_pool,
            ..
        } = self;
        eventually(whole(), "the pool is whole again", || {
            children() == before.children
        });
        eventually_same(&before);
        drop(gate);
        close(pool, &without_pool);
    }

    /// The other jobs succeed.
    pub(crate) fn check_others(&mut self) {
        let queued = std::mem::take(&mut self.waiting);
        for (n, job) in queued.into_iter().enumerate() {
            assert_eq!(value(job), n as i64 + 1, "a job that waited");
        }
        if let Some((job, held)) = self.bystander.take() {
            assert!(!job.ready(), "the bystander still runs");
            held.release();
            value(job);
        }
        assert_eq!(
            value(self.pool.apply_async(add, (20, 22))),
            42,
            "a job that came afterwards"
        );
    }
}

/// The first word of a field of `/proc/PID/status`.
#[track_caller]
pub(crate) fn status(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("procfs");
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| *name == field).expect(field);
    value.split_whitespace().next().expect("a value").to_owned()
}

/// As much of `most` bytes as this machine has room for, with `copies` of it.
pub(crate) fn affordable(most: usize, copies: usize) -> usize {
    let memory = fs::read_to_string("/proc/meminfo").expect("procfs");
    let mut lines = memory.lines();
    let line = lines.find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    most.min(kib.expect("a number") * 1024 / 2 / copies)
}

/// Ends a pool; nothing may be left of it.
pub(crate) fn close(pool: Pool, before: &Belongings) {
    pool.close();
    assert!(
        pool.join_timeout(whole()),
        "the pool ends within {:?}",
        whole()
    );
    drop(pool);
    // What is kept for large buffers to come is no leak, if it can be let go of.
    errback::Buffer::trim();
    eventually(whole(), "no shared memory is left", || {
        !descriptor_names().any(|name| name.contains(SHARED))
    });
    assert_eq!(children(), before.children);
    eventually_same(before);
}

/// Threads and descriptors take a moment to be counted out.
#[track_caller]
pub(crate) fn eventually_same(before: &Belongings) {
    let until = Instant::now() + whole();
    // The pool may open a file for a moment at any time: that they were the same once is what counts.
    let mut now = Belongings::now();
    while now != *before && Instant::now() < until {
        std::thread::park_timeout(Duration::from_millis(1));
        now = Belongings::now();
    }
    assert_eq!(now, *before, "what there is, and what there was");
}

/// Does one thing over and over on a thread, until another is done, or has failed.
pub(crate) fn while_it_lasts(over_and_over: impl Fn() + Sync, it: impl FnOnce()) {
    struct SetOnDrop<'a>(&'a AtomicBool);
    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                over_and_over();
            }
        });
        let _done = SetOnDrop(&done);
        it();
    });
}

//! What is known about a death: what the process had used, whether the kernel killed it for its memory, whether it left
//! a core file, and how much of its last words was cut off.

use std::fs;
use std::path::{Path, PathBuf};

use errback::{Exit, Pool, WorkerDied};
use rustix::process::{Resource, Rlimit, Signal};

use crate::suite::{rows, skip_because};
use crate::support::{Belongings, Gate, Invariant, failure_of, kill, pool, value};
use crate::tasks::*;

const MIB: usize = 1 << 20;

/// Uses so much, and aborts.
#[errback::task]
fn use_and_abort(cpu_ticks: u64, bytes: usize) {
    let memory = vec![1_u8; bytes];
    while ticks() < cpu_ticks {
        std::hint::black_box(&memory);
    }
    std::process::abort()
}

/// The CPU time of this process, in hundredths of a second.
fn ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields = stat.rsplit(')').next().expect("the fields after the name");
    let times = fields.split_whitespace().skip(11).take(2);
    times
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum()
}

#[errback::task]
fn write_and_abort(bytes: usize) {
    std::io::Write::write_all(&mut std::io::stderr(), &vec![b'x'; bytes]).expect("stderr");
    std::process::abort()
}

/// A memory control group of this test's own.
struct MemoryGroup {
    directory: PathBuf,
    version_2: bool,
    /// Where this process was, if it has been moved.
    home: Option<PathBuf>,
}

impl MemoryGroup {
    /// Skips the row where this machine does not let us make one.
    fn new(limit: usize) -> MemoryGroup {
        let version_1 = Path::new("/sys/fs/cgroup/memory");
        let (root, limits, version_2) = match version_1.is_dir() {
            true => (
                version_1,
                ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
                false,
            ),
            false => (
                Path::new("/sys/fs/cgroup"),
                ["memory.max", "memory.swap.max"],
                true,
            ),
        };
        let directory = root.join(format!("errback-test-{}", std::process::id()));
        let made = fs::create_dir(&directory).and_then(|()| {
            let group = MemoryGroup {
                directory: directory.clone(),
                version_2,
                home: None,
            };
            fs::write(directory.join(limits[0]), limit.to_string())?;
            let with_swap = if version_2 { 0 } else { limit };
            // Where there is no swap, there need be no such file.
            let _ = fs::write(directory.join(limits[1]), with_swap.to_string());
            Ok(group)
        });
        made.unwrap_or_else(|why| {
            skip_because(&format!("no memory control group can be made: {why}"))
        })
    }

    fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// Moves this process into the group, until the end.
    fn enter(&mut self) {
        let groups = fs::read_to_string("/proc/self/cgroup").expect("procfs");
        let kind = if self.version_2 { "0::" } else { ":memory:" };
        let path = groups
            .lines()
            .find_map(|line| line.split_once(kind))
            .expect("our group")
            .1;
        let root = self.directory.parent().expect("a mount point");
        self.home = Some(root.join(path.trim_start_matches('/')).join("cgroup.procs"));
        fs::write(self.procs(), "0").expect("to be moved");
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let _ = fs::write(home, "0");
        }
        // Only when the last process of it has been collected.
        crate::support::eventually(crate::support::whole(), "the group is empty", || {
            fs::remove_dir(&self.directory).is_ok()
        });
    }
}

/// Two workers of a pool are killed: one by the kernel for its memory, and one by somebody.
fn killed_for_memory_and_killed(pool: &Pool) {
    let died = failure_of::<WorkerDied, _>(pool.apply_async(allocate, (1 << 30,)));
    assert_eq!(died.exit.signal(), Some(Signal::KILL.as_raw()), "{died:?}");
    assert!(died.oom_killed && died.started, "{died:?}");
    assert!(died.to_string().contains("out-of-memory killer"), "{died}");
    assert!(
        died.usage
            .peak_memory
            .is_some_and(|peak| peak > 64 * MIB as u64),
        "{died:?}"
    );
    let gate = Gate::new();
    let job = pool.apply_async(hold, (gate.path.clone(),));
    gate.held().kill(Signal::KILL);
    let died = failure_of::<WorkerDied, _>(job);
    assert_eq!(
        (died.exit.signal(), died.oom_killed),
        (Some(Signal::KILL.as_raw()), false)
    );
    assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
}

/// The limit of core files, for this process and its workers.
fn allow_core_files(allow: bool) -> bool {
    let maximum = rustix::process::getrlimit(Resource::Core).maximum;
    let current = if allow { maximum } else { Some(0) };
    rustix::process::setrlimit(Resource::Core, Rlimit { current, maximum }).expect("a lower limit");
    current != Some(0)
}

rows! {
    /// A job allocates more than the host's control group has.
    fn x5_a_worker_that_outgrows_its_hosts_control_group_says_so() {
        let mut group = MemoryGroup::new(128 * MIB);
        group.enter();
        let before = Belongings::now();
        let invariant = Invariant::of(pool(2), before).with_bystander();
        killed_for_memory_and_killed(&invariant.pool);
        invariant.check();
    }

    /// A job allocates more than its worker's control group has.
    fn x5_a_worker_that_outgrows_its_own_control_group_says_so() {
        let group = MemoryGroup::new(128 * MIB);
        let this = std::env::current_exe().expect("this binary");
        let script = r#"echo $$ > "$1" && exec "$0""#;
        let arguments = ["-c".into(), script.into(), this.into_os_string(), group.procs().into()];
        let pool = Pool::builder().size(1).command::<std::ffi::OsString>("sh", arguments).build().expect("a pool");
        killed_for_memory_and_killed(&pool);
        pool.close();
        pool.join();
    }

    /// A job computes, allocates and aborts.
    fn x3_a_death_says_what_the_worker_had_used() {
        let invariant = Invariant::new().with_bystander();
        let died = failure_of::<WorkerDied, _>(invariant.pool.apply_async(use_and_abort, (50, 200 * MIB)));
        let cpu = died.usage.user + died.usage.system;
        assert!(cpu.as_millis() >= 500, "{died:?}");
        let peak = died.usage.peak_memory.expect("a peak far above the host's") as usize;
        assert!((200 * MIB..280 * MIB).contains(&peak), "{died:?}");
        assert!(!died.oom_killed && died.to_string().contains("; peak memory 2"), "{died}");
        invariant.check();
    }

    /// The host had used more memory than the worker that dies.
    fn x3_the_peak_of_the_host_is_not_told_as_that_of_the_worker() {
        let ours = std::hint::black_box(vec![1_u8; 300 * MIB]);
        let pool = pool(1);
        let died = failure_of::<WorkerDied, _>(pool.apply_async(use_and_abort, (0, 50 * MIB)));
        assert_eq!(died.usage.peak_memory, None, "{died:?}");
        drop(ours); // its peak stays
        let died = failure_of::<WorkerDied, _>(pool.apply_async(use_and_abort, (0, 100 * MIB)));
        assert_eq!(died.usage.peak_memory, None, "{died:?}");
        let died = failure_of::<WorkerDied, _>(pool.apply_async(use_and_abort, (0, 400 * MIB)));
        assert!(died.usage.peak_memory > Some(400 * MIB as u64), "{died:?}");
    }

    /// A job dies where core files are written.
    fn x3_a_core_file_is_told_of() {
        let directory = PathBuf::from(&Gate::new().path).with_extension("cores");
        fs::create_dir(&directory).expect("a directory");
        let pool = Pool::builder().size(1).current_dir(&directory).build().expect("a pool");
        let cores = || fs::read_dir(&directory).expect("the directory").count();
        let aborted = |core_dumped| Exit::Signal { signal: Signal::ABORT.as_raw(), core_dumped };
        // What the limit is at its start is what a worker has: each death makes room for the next.
        let die = || failure_of::<WorkerDied, _>(pool.apply_async(abort, ())).exit;
        allow_core_files(false);
        assert_eq!(die(), aborted(false));
        assert_eq!(cores(), 0);
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("procfs");
        match allow_core_files(true) {
            false => println!("skipped: no core files are allowed here"),
            true if pattern.starts_with(['/', '|']) => println!("skipped: core files go elsewhere"),
            true => {
                // The one that was started under the old limit.
                let worker = value(pool.apply_async(worker_pid, ()));
                kill(worker, Signal::KILL);
                crate::support::eventually(crate::support::whole(), "another worker", || {
                    pool.stats().workers.first().is_some_and(|pid| *pid != worker)
                });
                assert_eq!(die(), aborted(true));
                assert_eq!(cores(), 1);
            }
        }
        fs::remove_dir_all(&directory).expect("the directory");
    }

    /// A job writes 10 MiB to its stderr and aborts.
    fn f3_the_last_words_say_how_much_of_them_was_cut() {
        let invariant = Invariant::new().with_bystander();
        let died = failure_of::<WorkerDied, _>(invariant.pool.apply_async(write_and_abort, (10 * MIB,)));
        let (mark, words) = died.stderr.split_once('\n').expect("a mark");
        assert_eq!(words, "x".repeat(16 << 10));
        let cut = 10 * MIB - words.len();
        assert_eq!(mark, format!("[truncated: {cut} bytes of stderr before this]"));
        let died = failure_of::<WorkerDied, _>(invariant.pool.apply_async(write_and_abort, (100,)));
        assert_eq!(died.stderr, "x".repeat(100));
        invariant.check();
    }
}

//! What is known about a death: what the process had used, whether the kernel killed it for its memory, whether it left
//! a core file, and how much of its last words was cut off. And the reason why a pool does nothing in a forked child.

use std::fs;
use std::path::{Path, PathBuf};

use errback::{Exit, Failure, ForkedHost, Pool, Stats, WorkerDied};
use rustix::process::{Resource, Rlimit, Signal};

use crate::suite::{rows, skip_because};
use crate::support::{
    Belongings, Gate, Invariant, eventually, failure_of, kill, pool, soon, value, whole,
};
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
        eventually(whole(), "the group is empty", || {
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

/// A child that was forked from this process.
struct Forked(rustix::process::Pid);

/// As C's `fork`; `None` is the child.
#[allow(unsafe_code)] // a host that forks cannot be had without
fn fork() -> Option<Forked> {
    // SAFETY: the other threads of this process, which are not in the child, are those of a pool and of the test harness.
    // The child uses nothing of theirs but what these rows are about; the C library sees to its own locks.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    rustix::process::Pid::from_raw(pid).map(Forked)
}

/// Ends a forked child: well, if nothing in it panicked.
#[allow(unsafe_code)] // the exit handlers and the destructors are the parent's
fn end_child(body: impl FnOnce()) -> ! {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    // SAFETY: it only ends the process.
    unsafe { libc::_exit(i32::from(result.is_err())) }
}

impl Forked {
    #[track_caller]
    fn ends_well(self) {
        let mut status = None;
        eventually(soon(), "the child has done its part", || {
            let found =
                rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::NOHANG);
            status = found.expect("a child").map(|(_, status)| status);
            status.is_some()
        });
        assert_eq!(
            status.and_then(|status| status.exit_status()),
            Some(0),
            "what it said is above"
        );
    }
}

fn is_forked_host<T>(result: Result<T, Failure>) -> bool {
    result.is_err_and(|failure| failure.check::<ForkedHost>().is_some())
}

rows! {
    /// A host forks while jobs run and wait, and the child uses their pool.
    fn t3_a_forked_child_has_no_pool_and_harms_none() {
        let invariant = Invariant::new().with_bystander();
        let pool = invariant.pool.clone();
        let running = pool.apply_async(hold, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        let queued = pool.apply_async(add, (3, 4));
        let done = pool.apply_async(add, (1, 2));
        done.cancel(); // queued: done at once, with a failure
        let mut mapped = pool.map(add, (0..100).map(|n| (n, 1))).chunk_size(10); // nothing is out yet
        let before = pool.stats();
        let Some(child) = fork() else {
            end_child(|| {
                let failed = failure_of::<ForkedHost, _>(pool.apply_async(add, (1, 2)));
                assert_eq!(failed.pool, "errback");
                assert!(failed.to_string().contains("build a pool"), "{failed}");
                running.cancel();
                queued.cancel();
                assert!(queued.ready() && queued.successful() == Some(false));
                queued.wait();
                assert!(queued.wait_timeout(std::time::Duration::MAX));
                assert!(is_forked_host(running.get()) && is_forked_host(queued.get()));
                assert!(done.get().expect_err("cancelled").check::<errback::CancelledError>().is_some());
                assert_eq!(mapped.by_ref().filter(|result| is_forked_host(result.clone())).count(), 100);
                assert_eq!(pool.stats(), Stats::default());
                pool.close();
                pool.close_within(std::time::Duration::ZERO);
                pool.terminate();
                pool.join();
                assert!(pool.join_timeout(std::time::Duration::ZERO));
                drop((pool, invariant.pool, mapped));
            })
        };
        child.ends_well();
        drop(mapped);
        assert_eq!(pool.stats(), before, "nothing happened to the pool");
        held.release();
        value(running);
        assert_eq!(value(queued), 7);
        drop((pool, done));
        invariant.check();
    }

    /// A host forks in the middle of a map.
    fn t3_a_map_that_is_under_way_fails_in_a_forked_child_and_goes_on_in_the_host() {
        let pool = pool(1);
        let gate = Gate::new();
        let mut mapped = pool.map(hold, vec![gate.path.clone(); 6]).chunk_size(1);
        let mut next_of = |n: usize| {
            std::thread::scope(|scope| {
                scope.spawn(|| (0..n).for_each(|_| gate.held().release()));
                mapped.by_ref().take(n).filter(Result::is_ok).count()
            })
        };
        assert_eq!(next_of(1), 1);
        let Some(child) = fork() else {
            end_child(|| {
                let failed = mapped.filter(|result| is_forked_host(result.clone()));
                assert_eq!(failed.count(), 5);
            })
        };
        child.ends_well();
        assert_eq!(next_of(5), 5);
    }

    /// A forked child builds a pool of its own, and forks in its turn.
    fn t3_a_forked_child_can_build_a_pool_of_its_own() {
        let theirs = pool(1);
        assert_eq!(value(theirs.apply_async(add, (1, 2))), 3);
        let Some(child) = fork() else {
            end_child(|| {
                let ours = pool(2);
                assert_eq!(value(ours.apply_async(add, (20, 22))), 42);
                failure_of::<WorkerDied, _>(ours.apply_async(abort, ()));
                assert_eq!(value(ours.apply_async(add, (20, 22))), 42);
                let Some(grandchild) = fork() else {
                    end_child(|| drop(failure_of::<ForkedHost, _>(ours.apply_async(add, (1, 2)))))
                };
                grandchild.ends_well();
                failure_of::<ForkedHost, _>(theirs.apply_async(add, (1, 2)));
                ours.close();
                assert!(ours.join_timeout(whole()));
            })
        };
        child.ends_well();
        assert_eq!(value(theirs.apply_async(add, (3, 4))), 7);
    }

    /// A forked child uses the pool of its host's reactor.
    fn t3_a_deferred_to_the_pool_of_the_host_fails_in_a_forked_child() {
        let reactor = errback::Reactor::new().expect("a reactor");
        errback::set_process_pool(&reactor, pool(1)).expect("the first");
        let Some(child) = fork() else {
            end_child(|| {
                let d = errback::defer_to_process(&reactor, add, (1, 2));
                let failure = errback::testing::failure_result_of(d);
                assert!(is_forked_host(Err::<(), _>(failure)));
                let pool = errback::process_pool(&reactor).expect("the one that was set");
                let d = errback::defer_to_process_pool(&reactor, &pool, add, (1, 2));
                let failure = errback::testing::failure_result_of(d);
                assert!(is_forked_host(Err::<(), _>(failure)));
            })
        };
        child.ends_well();
    }

    /// A host forks at any moment.
    fn t3_a_fork_at_any_moment_leaves_no_lock_to_wait_for() {
        let pool = pool(2);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
                }
            });
            for _ in 0..300 {
                let job = pool.apply_async(add, (3, 4));
                let Some(child) = fork() else {
                    end_child(|| {
                        assert!(is_forked_host(pool.apply_async(add, (1, 2)).get()));
                        job.cancel();
                        let result = job.get();
                        assert!(result.as_ref().is_ok_and(|n| *n == 7) || is_forked_host(result));
                        pool.terminate();
                        pool.join();
                        assert_eq!(pool.stats(), Stats::default());
                    })
                };
                child.ends_well();
                assert_eq!(value(job), 7);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

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
        let pool = crate::support::builder().size(1).command::<std::ffi::OsString>("sh", arguments).build().expect("a pool");
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
        let pool = crate::support::builder().size(1).current_dir(&directory).build().expect("a pool");
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
                eventually(whole(), "another worker", || {
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

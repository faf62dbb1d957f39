//! F7, F11, C6, O5 and T3: what the machine does to pools: processes and their numbers, the clock, `fork`.
//!
//! These are the rows that need more of the machine than any user has. What it forbids is skipped, with the reason.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use errback::{CancelledError, PoolClosed, Reactor, SpawnFailed, SpawnFailure, Task, TimedOut};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::Uid;

use crate::hosts::{comes_to_its_end, gate_of_host, host, start_host};
use crate::suite::{Program, program, rows, skip_because};
use crate::support::{
    Gate, Invariant, children, eventually, failure_of, is_alive, pool, soon, value, whole,
};
use crate::tasks::*;

/// The programs that the rows below start beside themselves.
pub(crate) const PROGRAMS: &[Program] = &[
    ("host_that_may_start_nothing", host_that_may_start_nothing),
    ("host_whose_clock_jumps", host_whose_clock_jumps),
    ("host_whose_pids_are_taken", host_whose_pids_are_taken),
    ("host_that_forks", host_that_forks),
];

// ---------------------------------------------------------------- processes

/// How many processes of a group are alive.
fn alive_in_group(group: u32) -> usize {
    let entries = fs::read_dir("/proc").expect("procfs").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let stats = pids.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stats
        .filter(|stat| {
            let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
            let fields: Vec<&str> = fields.split_whitespace().collect();
            fields[0] != "Z" && fields[2] == group.to_string()
        })
        .count()
}

/// Takes rights away from itself until every start of a thread or a process fails, and gives them back.
fn host_that_may_start_nothing() {
    // The limit holds for a user, counts all of the user's processes, and not for root: so be one who has none.
    if rustix::process::geteuid().is_root() {
        let nobody = Uid::from_raw(54_321);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("another user");
    }
    let limits = rustix::process::getrlimit(Resource::Nproc);
    let allow = |current| {
        let limit = Rlimit {
            current,
            maximum: limits.maximum,
        };
        rustix::process::setrlimit(Resource::Nproc, limit).expect("a limit below the maximum");
    };
    let mut refused = 0;
    for most in 0..10 {
        allow(Some(most));
        match crate::support::builder().size(2).build() {
            Err(error) => {
                assert!(matches!(error, errback::BuildError::Refused(_)), "{error}");
                refused += 1;
                allow(limits.current);
            }
            Ok(pool) => {
                let job = pool.apply_async(add, (1, 1));
                match job.get_timeout(whole()).expect("an end of the job") {
                    Ok(sum) => assert_eq!(sum, 2),
                    Err(failure) => {
                        let failed = failure.check::<SpawnFailed>().expect("no start");
                        assert!(
                            matches!(failed.reason, SpawnFailure::Refused(_)),
                            "{failed:?}"
                        );
                        refused += 1;
                    }
                }
                allow(limits.current);
                eventually(whole(), "a job succeeds again", || {
                    pool.apply_async(add, (1, 1)).get().is_ok()
                });
                pool.close();
                assert!(pool.join_timeout(whole()));
            }
        }
        assert!(children().is_empty());
    }
    assert!(refused > 0, "nothing was refused");
    fs::write(gate_of_host() + ".ok", refused.to_string()).expect("a mark");
}

/// Gives the pid of each dead worker to a process of its own, and then cancels the dead worker's job.
fn host_whose_pids_are_taken() {
    use std::os::unix::process::CommandExt;
    let pool = pool(1);
    let set_last = |pid: u32| {
        fs::write("/proc/sys/kernel/ns_last_pid", pid.to_string()).expect("the last pid");
    };
    for round in 1..=20 {
        let pid = value(pool.apply_async(worker_pid, ()));
        // Far away from the victim's, for the next worker.
        set_last(round * 100);
        let kill = Signal::KILL.as_raw();
        let victim = pool.apply_async(signal_oneself, (kill,)).cancel_on_drop();
        // This one needs the next worker, which so takes no number from us.
        value(pool.apply_async(add, (1, 1)));
        assert!(victim.ready() && !is_alive(pid));
        set_last(pid - 1);
        let mut unrelated = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .expect("sleep");
        assert_eq!(unrelated.id(), pid, "the number is taken");
        victim.cancel();
        drop(victim);
        // A cancel sends its signal before it returns.
        assert!(
            unrelated.try_wait().expect("our child").is_none(),
            "it was signalled"
        );
        unrelated.kill().expect("our child");
        unrelated.wait().expect("our child");
    }
    fs::write(gate_of_host() + ".ok", "").expect("a mark");
}

/// Uses its pool in a forked child, where none of the pool's threads are.
#[allow(unsafe_code)] // std has no fork
fn host_that_forks() {
    const FAILED: i32 = 10;
    let pool = pool(1);
    value(pool.apply_async(add, (1, 1)));
    // SAFETY: the child uses the pool, which is what must be safe, and leaves by `_exit` without this process's
    // destructors. Its only thread is this one, and the others held no lock: the pool is idle.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let end = std::panic::catch_unwind(AssertUnwindSafe(|| {
            pool.apply_async(add, (1, 1)).get_timeout(soon())
        }));
        let code = match end {
            Ok(Ok(Err(_))) => FAILED,
            Ok(Ok(Ok(_))) => 11,
            Ok(Err(_)) => 12,
            Err(_) => 13,
        };
        // SAFETY: it ends the process, and nothing else.
        unsafe { libc::_exit(code) };
    }
    let child = rustix::process::Pid::from_raw(child).expect("a child");
    let (_, status) = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
        .expect("our child")
        .expect("its end");
    let how = "11: it succeeded, 12: it hung, 13: it panicked";
    assert_eq!(status.exit_status(), Some(FAILED), "{how}");
    // The host's own pool has not noticed.
    assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
    pool.close();
    assert!(pool.join_timeout(whole()));
    fs::write(gate_of_host() + ".ok", "").expect("a mark");
}

// ---------------------------------------------------------------- the clock

/// The C library's clock, moved by as many seconds as the first eight bytes of a file say. The time that a machine's
/// whole world goes by is not ours to set.
const FALSE_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *moved;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("ERRBACK_TEST_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *at = mmap(0, sizeof *moved, PROT_READ, MAP_SHARED, file, 0);
        if (at != MAP_FAILED) moved = at;
        close(file);
    }
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && moved && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *moved;
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    int result = syscall(SYS_gettimeofday, time, zone);
    if (result == 0 && moved) time->tv_sec += *moved;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"#;

/// Moves this process's wall clock to so many seconds from the true time.
fn set_clock(seconds: i64) {
    use std::os::unix::fs::FileExt;
    let name = std::env::var("ERRBACK_TEST_CLOCK").expect("a clock");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(name)
        .expect("a clock");
    file.write_all_at(&seconds.to_ne_bytes(), 0)
        .expect("a clock");
}

/// Lets every wait of the library be overtaken by the wall clock, in both directions.
fn host_whose_clock_jumps() {
    const HOUR: i64 = 3600;
    for seconds in [HOUR, -HOUR] {
        set_clock(0);
        let before = SystemTime::now();
        set_clock(seconds);
        let moved = match SystemTime::now().duration_since(before) {
            Ok(later) => later.as_secs() as i64,
            Err(earlier) => -(earlier.duration().as_secs() as i64),
        };
        assert!((moved - seconds).abs() < 60, "the clock moved by {moved} s");
        let waits: [fn(&dyn Fn()); 6] = [
            timer,
            patience_with_a_result,
            timeout,
            expiry,
            boot_deadline,
            drain,
        ];
        for wait in waits {
            set_clock(0);
            let began = Instant::now();
            wait(&|| set_clock(seconds));
            let took = began.elapsed();
            assert!(took >= WAIT && took < WAIT + soon(), "it waited {took:?}");
        }
    }
    fs::write(gate_of_host() + ".ok", "").expect("a mark");
}

/// How long each of these waits.
const WAIT: Duration = Duration::from_millis(500);

fn timer(jump: &dyn Fn()) {
    let reactor = Reactor::new().expect("a reactor");
    let end = reactor.clone();
    reactor.call_later(WAIT, move || end.stop().expect("it runs"));
    jump();
    reactor.run().expect("the reactor runs");
}

fn patience_with_a_result(jump: &dyn Fn()) {
    let pool = pool(1);
    let job = pool.apply_async(spin, ());
    eventually(soon(), "it runs", || pool.stats().running == 1);
    jump();
    assert!(!job.wait_timeout(WAIT));
}

fn timeout(jump: &dyn Fn()) {
    let pool = pool(1);
    let job = pool.apply_async(spin.timeout(WAIT), ());
    eventually(soon(), "it runs", || pool.stats().running == 1);
    jump();
    failure_of::<TimedOut, _>(job);
}

fn expiry(jump: &dyn Fn()) {
    let pool = pool(1);
    let running = pool.apply_async(spin, ());
    eventually(soon(), "one runs", || pool.stats().running == 1);
    let job = pool.apply_async(add.expires(WAIT), (1, 1));
    jump();
    failure_of::<TimedOut, _>(job);
    running.cancel();
}

fn boot_deadline(jump: &dyn Fn()) {
    let builder = crate::support::builder().size(1).boot_deadline(WAIT);
    let pool = builder.command("sleep", ["60"]).build().expect("a pool");
    let job = pool.apply_async(add, (1, 1));
    eventually(soon(), "it is started", || pool.stats().spawned == 1);
    jump();
    failure_of::<SpawnFailed, _>(job);
}

fn drain(jump: &dyn Fn()) {
    let pool = pool(1);
    let job = pool.apply_async(spin, ());
    eventually(soon(), "it runs", || pool.stats().running == 1);
    pool.close_within(WAIT);
    jump();
    failure_of::<PoolClosed, _>(job);
}

/// Makes the false clock, or says why not.
fn false_clock(gate: &Gate) -> Result<PathBuf, String> {
    let (source, library) = (format!("{}.c", gate.path), format!("{}.so", gate.path));
    fs::write(&source, FALSE_CLOCK).expect("a file");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", &library, &source]);
    let output = compiler.stdin(Stdio::null()).output();
    let _ = fs::remove_file(source);
    let output = output.map_err(|error| format!("there is no C compiler: {error}"))?;
    match output.status.success() {
        true => Ok(library.into()),
        false => Err(format!(
            "a false clock cannot be compiled: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// Runs commands where processes have numbers of their own, and the next one can be chosen.
fn in_a_pid_namespace() -> Result<Command, String> {
    let enter = || {
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
        ]);
        // The first process of the namespace adopts orphans, which is a shell's work and not a pool's.
        command.args(["sh", "-c", r#""$@"; exit $?"#, "sh"]);
        command.stdin(Stdio::null());
        command
    };
    let mut probe = enter();
    probe.args([
        "sh",
        "-c",
        "echo 1000 >/proc/sys/kernel/ns_last_pid && sh -c 'exit 0'",
    ]);
    let output = probe
        .output()
        .map_err(|error| format!("there is no unshare: {error}"))?;
    match output.status.success() {
        true => Ok(enter()),
        false => Err(format!(
            "no namespace of processes: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

rows! {
    /// No thread and no process can be started.
    fn f7_without_processes_jobs_fail_typed_and_the_pool_recovers() {
        let gate = Gate::new();
        comes_to_its_end(host("host_that_may_start_nothing", &gate), &gate);
    }

    /// A job is a fork bomb, and cancelled while it explodes.
    fn f11_a_cancel_ends_a_fork_bomb() {
        // Bounded: each of two children has two, seven generations deep.
        const BOMB: &str = "bomb() { if [ $1 -gt 0 ]; then bomb $(($1 - 1)) & bomb $(($1 - 1)) & fi; exec sleep 60; }; bomb 6";
        let mut invariant = Invariant::new().with_bystander();
        let victim = invariant.pool.apply_async(shell_and_hold, (BOMB.to_string(), invariant.gate.path.clone()));
        let held = invariant.gate.held();
        invariant.queue();
        eventually(whole(), "it explodes", || alive_in_group(held.pid) > 20);
        victim.cancel();
        failure_of::<CancelledError, _>(victim);
        eventually(whole(), "the whole group is gone", || alive_in_group(held.pid) == 0);
        drop(held);
        invariant.check();
    }

    /// The wall clock is set by an hour, forth and back, during every wait.
    fn c6_waits_do_not_go_by_the_wall_clock() {
        let gate = Gate::new();
        let library = false_clock(&gate).unwrap_or_else(|why| skip_because(&why));
        let clock = format!("{}.clock", gate.path);
        fs::write(&clock, 0_i64.to_ne_bytes()).expect("a file");
        let mut command = program("host_whose_clock_jumps");
        command.env("LD_PRELOAD", &library).env("ERRBACK_TEST_CLOCK", &clock);
        comes_to_its_end(start_host(command, &gate), &gate);
        let _ = (fs::remove_file(library), fs::remove_file(clock));
    }

    /// A dead worker's pid goes to an unrelated process, and then the job is cancelled.
    fn o5_a_late_cancel_does_not_hit_the_next_process_of_that_number() {
        let gate = Gate::new();
        let mut command = in_a_pid_namespace().unwrap_or_else(|why| skip_because(&why));
        let host = program("host_whose_pids_are_taken");
        command.arg(host.get_program()).args(host.get_args());
        comes_to_its_end(start_host(command, &gate), &gate);
    }

    /// A pool is used in a forked child of its host.
    fn t3_a_pool_in_a_forked_child_fails_instead_of_hanging() {
        let gate = Gate::new();
        comes_to_its_end(host("host_that_forks", &gate), &gate);
    }
}

//! G and O: what happens to the host, and what its workers make of it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::suite::{Program, program, program_at, rows};
use crate::support::{
    Gate, Held, Invariant, child_pids, eventually, is_alive, kill, pool, status, value,
    while_it_lasts,
};
use crate::tasks::*;

/// How long workers may outlive their host.
pub(crate) const ORPHANED: Duration = Duration::from_secs(30);

/// A host process: this program, to be one of the programs below.
pub(crate) fn host(which: &str, gate: &Gate) -> Child {
    start_host(program(which), gate)
}

pub(crate) fn start_host(mut command: Command, gate: &Gate) -> Child {
    command
        .env("ERRBACK_TEST_GATE", &gate.path)
        .stdout(Stdio::null());
    command.spawn().expect("a host")
}

pub(crate) fn gate_of_host() -> String {
    std::env::var("ERRBACK_TEST_GATE").expect("a host is given a gate")
}

pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("procfs")
        .flatten();
    let read = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("children")).unwrap_or_default()
    };
    let text = tasks.map(read).collect::<Vec<_>>().join(" ");
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Kills a host; its workers must go.
fn workers_go_with(which: &str) {
    let gate = Gate::new();
    let mut host = host(which, &gate);
    let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
    if which.contains("idle") {
        held.into_iter().for_each(Held::release);
    } else {
        std::mem::forget(held);
    }
    let workers = children_of(host.id());
    assert_eq!(workers.len(), 2);
    kill(host.id(), Signal::KILL);
    host.wait().expect("a dead host");
    eventually(ORPHANED, "the workers are gone", || {
        !workers.iter().any(|pid| is_alive(*pid))
    });
}

/// The programs that the rows below start beside themselves.
pub(crate) const PROGRAMS: &[Program] = &[
    ("host_with_busy_workers", be_host),
    ("host_with_idle_workers", be_host),
    ("host_with_computing_workers", host_with_computing_workers),
    ("host_that_panics", host_that_panics),
    ("host_that_exits", host_that_exits),
    (
        "host_that_ignores_its_children",
        host_that_ignores_its_children,
    ),
    ("host_that_waits_for_one", host_that_waits_for_one),
    ("host_with_default_sigpipe", host_with_default_sigpipe),
    (
        "host_that_becomes_another_program",
        host_that_becomes_another_program,
    ),
    (
        "host_in_a_directory_that_is_gone",
        host_in_a_directory_that_is_gone,
    ),
];

/// What a host does that waits to be killed.
pub(crate) fn be_host() {
    be_host_until(|| {
        loop {
            std::thread::park();
        }
    });
}

/// What a host does whose two workers are busy, and then idle.
fn be_host_until(end: impl FnOnce()) {
    let gate = gate_of_host();
    let pool = pool(2);
    let jobs: Vec<_> = (0..2)
        .map(|_| pool.apply_async(hold, (gate.clone(),)))
        .collect();
    jobs.into_iter().for_each(|job| drop(job.get()));
    end();
}

fn host_with_computing_workers() {
    let gate = gate_of_host();
    let pool = pool(2);
    let jobs = [0; 2].map(|_| pool.apply_async(hold_and_spin, (gate.clone(),)));
    jobs.into_iter().for_each(|job| drop(job.get()));
}

fn host_that_panics() {
    let gate = gate_of_host();
    let pool = pool(2);
    let _jobs = [0; 2].map(|_| pool.apply_async(hold_and_spin, (gate.clone(),)));
    let _us = hold(gate);
    panic!("the host panics with its pool");
}

fn host_that_exits() {
    let gate = gate_of_host();
    let pool = pool(2);
    let jobs: Vec<_> = (0..2)
        .map(|_| pool.apply_async(hold, (gate.clone(),)))
        .collect();
    // Both run; now the program ends without a word to the pool.
    while pool.stats().running < 2 {
        std::thread::yield_now();
    }
    let mut stream = std::os::unix::net::UnixStream::connect(&gate).expect("the gate");
    std::io::Write::write_all(&mut stream, &std::process::id().to_ne_bytes()).expect("the gate");
    let _ = std::io::Read::read(&mut stream, &mut [0]);
    std::mem::forget(jobs);
    std::process::exit(0);
}

fn host_that_ignores_its_children() {
    let gate = gate_of_host();
    set_signal(SIGCHLD, IGNORE);
    let pool = pool(2);
    let job = pool.apply_async(exit, (7,));
    let died = crate::support::failure_of::<errback::WorkerDied, _>(job);
    assert_eq!(died.exit, errback::Exit::Unknown);
    assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
    pool.close();
    pool.join();
    std::fs::write(gate + ".ok", "").expect("a mark");
}

fn host_that_waits_for_one() {
    let gate = gate_of_host();
    let pool = pool(1);
    let worker = value(pool.apply_async(hold, (gate.clone(),)));
    std::fs::write(gate + ".ok", worker.to_string()).expect("a mark");
}

fn host_with_default_sigpipe() {
    let gate = gate_of_host();
    set_signal(SIGPIPE, DEFAULT);
    let pool = pool(1);
    for n in 0..20 {
        let worker = value(pool.apply_async(worker_pid, ()));
        kill(worker, Signal::KILL);
        assert_eq!(
            value(pool.apply_async(echo, (vec![n; 1 << 20],))).len(),
            1 << 20
        );
    }
    std::fs::write(gate + ".ok", "").expect("a mark");
}

fn host_that_becomes_another_program() {
    be_host_until(|| {
        use std::os::unix::process::CommandExt;
        panic!("{}", Command::new("sleep").arg("60").exec());
    });
}

fn host_in_a_directory_that_is_gone() {
    let gate = gate_of_host();
    let directory = gate.clone() + ".d";
    std::fs::create_dir(&directory).expect("a directory");
    std::env::set_current_dir(&directory).expect("a directory");
    std::fs::remove_dir(&directory).expect("a directory");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777));
    let pool = pool(2);
    assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    std::fs::write(gate + ".ok", "").expect("a mark");
}

const SIGPIPE: i32 = 13;
const SIGCHLD: i32 = 17;
const DEFAULT: usize = 0;
const IGNORE: usize = 1;

/// As C's `signal`, which std has no function for.
#[allow(unsafe_code)] // there is no other way to ignore a signal
fn set_signal(number: i32, handler: usize) {
    unsafe extern "C" {
        fn signal(number: i32, handler: usize) -> usize;
    }
    assert!([DEFAULT, IGNORE].contains(&handler));
    // SAFETY: the default action and ignoring run no handler of ours.
    unsafe { signal(number, handler) };
}

/// Waits for a host that is to leave a mark.
#[track_caller]
pub(crate) fn comes_to_its_end(mut host: Child, gate: &Gate) -> String {
    let status = host.wait().expect("an end");
    let mark = format!("{}.ok", gate.path);
    let text = std::fs::read_to_string(&mark).unwrap_or_else(|error| panic!("{status}: {error}"));
    let _ = std::fs::remove_file(mark);
    text
}

/// Whether all threads of a process are stopped.
pub(crate) fn has_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("procfs")
        .flatten();
    let mut stats =
        tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
    stats.all(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

/// How often a process has gone to sleep.
fn sleeps(pid: u32) -> u64 {
    status(pid, "voluntary_ctxt_switches")
        .parse()
        .expect("a number")
}

rows! {
    /// The host is killed while its workers work.
    fn o1_a_killed_host_leaves_no_busy_worker() {
        workers_go_with("host_with_busy_workers");
    }

    /// The host is killed while its workers wait.
    fn o1_a_killed_host_leaves_no_idle_worker() {
        workers_go_with("host_with_idle_workers");
    }

    /// The host is killed while its workers compute.
    fn o1_a_killed_host_leaves_no_computing_worker() {
        let gate = Gate::new();
        let mut host = host("host_with_computing_workers", &gate);
        let workers = [gate.held(), gate.held()].map(|held| {
            let pid = held.pid;
            held.release();
            pid
        });
        kill(host.id(), Signal::KILL);
        host.wait().expect("a dead host");
        eventually(ORPHANED, "the workers are gone", || !workers.iter().any(|pid| is_alive(*pid)));
    }

    /// The host is killed while its workers are stopped.
    fn o1_a_killed_host_leaves_no_stopped_worker() {
        let gate = Gate::new();
        let mut host = host("host_with_busy_workers", &gate);
        let held = [gate.held(), gate.held()];
        held.iter().for_each(|held| held.kill(Signal::STOP));
        eventually(crate::support::whole(), "they are stopped", || held.iter().all(|held| has_stopped(held.pid)));
        kill(host.id(), Signal::KILL);
        host.wait().expect("a dead host");
        eventually(ORPHANED, "the workers are gone", || !held.iter().any(|held| is_alive(held.pid)));
    }

    /// The host panics with jobs out.
    fn o4_a_host_that_panics_leaves_no_worker() {
        let gate = Gate::new();
        let mut host = host("host_that_panics", &gate);
        let held: Vec<Held> = (0..3).map(|_| gate.held()).collect();
        let workers = children_of(host.id());
        assert_eq!(workers.len(), 2);
        held.into_iter().for_each(Held::release);
        assert_eq!(host.wait().expect("an end").code(), Some(101));
        eventually(ORPHANED, "the workers are gone", || !workers.iter().any(|pid| is_alive(*pid)));
    }

    /// The host exits with jobs out.
    fn o4_a_host_that_exits_with_jobs_out_leaves_no_worker() {
        let gate = Gate::new();
        let mut host = host("host_that_exits", &gate);
        let held: Vec<Held> = (0..3).map(|_| gate.held()).collect();
        let workers = children_of(host.id());
        held.into_iter().filter(|held| held.pid == host.id()).for_each(Held::release);
        assert!(host.wait().expect("an end").success());
        eventually(ORPHANED, "the workers are gone", || !workers.iter().any(|pid| is_alive(*pid)));
    }

    /// The thread that asked for a worker ends.
    fn o2_workers_outlive_the_thread_that_asked_for_them() {
        let pool = pool(2);
        let submitter = pool.clone();
        let pid = std::thread::spawn(move || value(submitter.apply_async(worker_pid, ()))).join().expect("a pid");
        assert_eq!(value(pool.apply_async(worker_pid, ())), pid);
    }

    /// The host starts a program of its own.
    fn o3_what_the_host_starts_by_itself_inherits_nothing() {
        let pool = pool(2);
        value(pool.apply_async(add, (1, 1)));
        let listing = Command::new("ls").arg("-l").arg("/proc/self/fd").stdin(Stdio::null()).output().expect("ls");
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        assert!(!listing.contains("socket:") && !listing.contains("anon_inode"), "{listing}");
    }

    /// Signals without end interrupt the workers through 1,000 jobs.
    fn g1_a_storm_of_signals_changes_nothing() {
        let pool = pool(2);
        value(pool.apply_async(add, (1, 1)));
        // SIGCONT to all: it wakes every system call of a worker, and has no handler to be set.
        let storm = || pool.stats().workers.into_iter().for_each(|pid| kill(pid, Signal::CONT));
        while_it_lasts(storm, || {
            for n in 0..1000 {
                assert_eq!(value(pool.apply_async(add, (n, 1))), n + 1);
            }
        });
    }

    /// The host ignores SIGCHLD.
    fn g2_a_host_that_ignores_its_children_has_a_pool_all_the_same() {
        let gate = Gate::new();
        comes_to_its_end(host("host_that_ignores_its_children", &gate), &gate);
    }

    /// The host collects any child that it has.
    fn g2_a_host_that_collects_any_child_has_a_pool_all_the_same() {
        let pool = pool(2);
        let collect = || {
            let _ = rustix::process::waitpid(None, rustix::process::WaitOptions::NOHANG);
            std::thread::yield_now();
        };
        while_it_lasts(collect, || {
            for n in 0..20 {
                crate::support::failure_of::<errback::WorkerDied, _>(pool.apply_async(exit, (7,)));
                assert_eq!(value(pool.apply_async(add, (n, 1))), n + 1);
            }
        });
        pool.close();
        assert!(pool.join_timeout(crate::support::whole()));
        assert!(child_pids().is_empty());
    }

    /// The program is replaced on disk, and its workers are killed.
    fn r6_a_binary_that_was_replaced_on_disk_starts_the_same_build() {
        let gate = Gate::new();
        let copy = format!("{}.exe", gate.path);
        std::fs::copy(std::env::current_exe().expect("this binary"), &copy).expect("a copy");
        let mut host = start_host(program_at(copy.as_ref(), "host_with_idle_workers"), &gate);
        let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
        std::fs::remove_file(&copy).expect("the copy");
        std::fs::write(&copy, "not a program").expect("another file");
        let before = children_of(host.id());
        before.iter().for_each(|pid| kill(*pid, Signal::KILL));
        drop(held);
        eventually(crate::support::whole(), "two new workers", || {
            let now = children_of(host.id());
            now.len() == 2 && now.iter().all(|pid| !before.contains(pid) && is_alive(*pid))
        });
        kill(host.id(), Signal::KILL);
        host.wait().expect("a dead host");
        let _ = std::fs::remove_file(&copy);
    }

    /// A worker is killed between its answer and the reading of it.
    fn k6_an_answer_that_was_sent_counts_though_the_worker_is_dead_before_it_is_read() {
        let gate = Gate::new();
        let host = host("host_that_waits_for_one", &gate);
        let held = gate.held();
        let worker = held.pid;
        kill(host.id(), Signal::STOP);
        eventually(crate::support::whole(), "all of its threads have stopped", || has_stopped(host.id()));
        let before = sleeps(worker);
        held.release();
        eventually(crate::support::whole(), "it has answered and waits for more", || {
            sleeps(worker) > before && crate::support::state(worker) == "S"
        });
        kill(worker, Signal::KILL);
        kill(host.id(), Signal::CONT);
        assert_eq!(comes_to_its_end(host, &gate), worker.to_string());
    }

    /// SIGPIPE has its default action in the host.
    fn g3_a_dead_worker_does_not_end_a_host_that_has_sigpipe_at_its_default() {
        let gate = Gate::new();
        comes_to_its_end(host("host_with_default_sigpipe", &gate), &gate);
    }

    /// The host's directory is gone, and its umask forbids everything.
    fn g5_a_host_without_directory_and_with_an_odd_umask_has_a_pool() {
        let gate = Gate::new();
        comes_to_its_end(host("host_in_a_directory_that_is_gone", &gate), &gate);
    }

    /// The host becomes another program.
    fn o3_a_host_that_becomes_another_program_leaves_no_worker() {
        let gate = Gate::new();
        let mut host = host("host_that_becomes_another_program", &gate);
        let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
        let workers = children_of(host.id());
        held.into_iter().for_each(Held::release);
        eventually(ORPHANED, "the workers are gone", || !workers.iter().any(|pid| is_alive(*pid)));
        kill(host.id(), Signal::KILL);
        host.wait().expect("an end");
    }

    /// A worker is the test program itself.
    fn t2_a_worker_does_not_run_the_tests() {
        let invariant = Invariant::new();
        // Were it to run them, there would be processes without end.
        assert_eq!(child_pids().len(), 2);
        invariant.check();
    }
}

//! O: a host that is killed leaves no worker, whatever that is doing; and two kinds of pools on one reactor.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use errback::{
    Failure, Reactor, WorkerDied, defer_to_process, defer_to_process_pool, gather_results,
    set_process_pool,
};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{Gate, Held, child_pids, eventually, is_alive, kill, state, whole};
use crate::tasks::*;

/// How long workers may outlive their host.
const ORPHANED: Duration = Duration::from_secs(30);

/// Where the host below reads at which gate its jobs wait, and what they do.
const GATE: &str = "ERRBACK_TEST_GATE";
const DOING: &str = "ERRBACK_TEST_DOING";

/// A host process: this test binary, told to be one.
fn host(gate: &Gate, doing: &str) -> Child {
    host_named("host_of_python_workers", gate, doing)
}

fn host_named(name: &str, gate: &Gate, doing: &str) -> Child {
    let name = format!("hosts::{name}");
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args([&name, "--exact", "--ignored", "--nocapture"])
        .env(GATE, &gate.path)
        .env(DOING, doing)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("a host")
}

#[test]
#[ignore = "a host for the tests below"]
fn host_of_python_workers() {
    let (Ok(gate), Ok(doing)) = (std::env::var(GATE), std::env::var(DOING)) else {
        return;
    };
    let pool = pool(2);
    let task = errback::PythonTask::<(String,), ()>::named(format!("faulty:{doing}"));
    let jobs: Vec<_> = (0..2)
        .map(|_| pool.apply_async(task.clone().expect("a name"), (gate.clone(),)))
        .collect();
    jobs.into_iter().for_each(|job| drop(job.get()));
    loop {
        std::thread::park();
    }
}

#[test]
#[ignore = "a host for a test below"]
fn host_that_waits_for_two() {
    let Ok(gate) = std::env::var(GATE) else {
        return;
    };
    let pool = pool(2);
    let jobs: Vec<_> = (0..2)
        .map(|_| pool.apply_async(hold, (gate.clone(),)))
        .collect();
    let failed = jobs.into_iter().filter_map(|job| job.get().err()).count();
    std::process::exit(i32::try_from(failed).expect("two at the most"));
}

/// How often a process has gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let count = crate::support::status(pid, "voluntary_ctxt_switches");
    count.parse().expect("a number")
}

/// Kills a host whose two workers are doing something; they must go.
fn workers_go_with_their_host(doing: &str, and_then: impl Fn(&Held)) {
    let gate = Gate::new();
    let mut host = host(&gate, doing);
    let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
    held.iter().for_each(and_then);
    let workers: Vec<u32> = held.iter().map(|held| held.pid).collect();
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    kill(host.id(), Signal::KILL);
    host.wait().expect("a dead host");
    eventually(ORPHANED, "the workers are gone", || {
        !workers.iter().any(|pid| is_alive(*pid))
    });
}

rows! {
    fn o1_a_killed_host_leaves_no_idle_worker() {
        let gate = Gate::new();
        let mut host = host(&gate, "hold");
        let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
        let workers: Vec<u32> = held.iter().map(|held| held.pid).collect();
        held.into_iter().for_each(Held::release);
        eventually(whole(), "they wait for calls", || workers.iter().all(|pid| state(*pid) == "S"));
        kill(host.id(), Signal::KILL);
        host.wait().expect("a dead host");
        eventually(ORPHANED, "the workers are gone", || !workers.iter().any(|pid| is_alive(*pid)));
    }

    fn k6_answers_that_were_sent_count_though_the_workers_are_dead_before_they_are_read() {
        let gate = Gate::new();
        let mut host = host_named("host_that_waits_for_two", &gate, "");
        let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
        let workers: Vec<u32> = held.iter().map(|held| held.pid).collect();
        kill(host.id(), Signal::STOP);
        eventually(whole(), "the host has stopped", || state(host.id()) == "T");
        let before: Vec<u64> = workers.iter().map(|pid| sleeps(*pid)).collect();
        held.into_iter().for_each(Held::release);
        eventually(whole(), "they have answered and wait for calls", || {
            let mut each = workers.iter().zip(&before);
            each.all(|(pid, before)| sleeps(*pid) > *before && state(*pid) == "S")
        });
        workers.iter().for_each(|pid| kill(*pid, Signal::KILL));
        kill(host.id(), Signal::CONT);
        let status = host.wait().expect("an end");
        assert!(status.success(), "{status}: so many jobs have failed");
    }

    fn o1_a_killed_host_leaves_no_worker_that_sleeps() {
        workers_go_with_their_host("sleep", |_| ());
    }

    fn o1_a_killed_host_leaves_no_worker_in_a_loop() {
        workers_go_with_their_host("spin", |_| ());
    }

    fn o1_a_killed_host_leaves_no_worker_that_has_the_lock_in_c() {
        workers_go_with_their_host("hold_the_gil", |_| ());
        workers_go_with_their_host("compute_with_the_gil", |_| ());
    }

    fn o1_a_killed_host_leaves_no_stopped_worker() {
        workers_go_with_their_host("sleep", |held| held.kill(Signal::STOP));
    }

    fn d6_jobs_are_submitted_from_errbacks_while_the_pool_respawns() {
        let reactor = Reactor::new().expect("a reactor");
        set_process_pool(&reactor, pool(2)).expect("the first pool");
        let sums = (0..6).map(|n| {
            let on = reactor.clone();
            defer_to_process(&reactor, leave, (1,)).add_both(move |died: Result<(), Failure>| {
                let died = died.expect_err("its worker has left");
                assert!(died.is::<WorkerDied>(), "{died:?}");
                defer_to_process(&on, add, (n, 1))
            })
        });
        let end = reactor.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        gather_results(sums).add_both(move |result: Result<Vec<i64>, _>| {
            sender.send(result).expect("a receiver");
            end.stop().map_err(Into::into)
        }).log_failure();
        reactor.run().expect("a run");
        assert_eq!(receiver.recv().expect("a result").expect("sums"), [1, 2, 3, 4, 5, 6]);
        assert!(child_pids().is_empty());
    }

    fn t2_t3_two_kinds_of_pools_serve_one_reactor() {
        #[errback::task]
        fn triple(n: i64) -> i64 {
            3 * n
        }
        let reactor = Reactor::new().expect("a reactor");
        set_process_pool(&reactor, pool(1)).expect("the first pool");
        let rust = crate::support::pool(1);
        let python = defer_to_process(&reactor, add, (20, 1));
        let both = python.add_callback({
            let reactor = reactor.clone();
            let rust = rust.clone();
            move |n: i64| defer_to_process_pool(&reactor, &rust, triple, (n,))
        });
        let end = reactor.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        gather_results([both]).add_both(move |result: Result<Vec<i64>, _>| {
            sender.send(result).expect("a receiver");
            end.stop().map_err(Into::into)
        }).log_failure();
        reactor.run().expect("a run");
        assert_eq!(receiver.recv().expect("a result").expect("a value"), [63]);
        rust.close();
        rust.join();
        assert!(child_pids().is_empty());
    }
}

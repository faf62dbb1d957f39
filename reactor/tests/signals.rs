//! `react` as a whole program, and its signals. Signals are for processes, so each program is this test binary, started
//! again with the name of the program in its environment.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use errback_deferred::{Deferred, Failure};
use errback_reactor::{Phase, Reactor, SystemEvent, react};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGTERM;

const PROGRAM: &str = "ERRBACK_REACTOR_TEST_PROGRAM";

// ---------------------------------------------------------------- the programs

#[test]
fn the_programs() {
    let Ok(program) = std::env::var(PROGRAM) else {
        return;
    };
    let code = program_called(&program);
    let code = (0..=255)
        .find(|n| code == ExitCode::from(*n))
        .expect("it is one of those");
    std::process::exit(code.into());
}

fn program_called(name: &str) -> ExitCode {
    match name {
        "succeeds" => react(|reactor: &Reactor| reactor.defer_to_thread(|| ())),
        "returns" => react(|_: &Reactor| Ok(())),
        "stops" => react(|reactor: &Reactor| {
            reactor.stop().unwrap();
            never()
        }),
        "fails" => react(|_: &Reactor| -> Result<(), Failure> {
            let cause = "x".parse::<u8>();
            Err(errback_deferred::Failure::from(
                cause.map(drop).map_err(Wrapped).unwrap_err(),
            ))
        }),
        "panics" => react(|_: &Reactor| -> () { panic!("a bug in main") }),
        "waits" => react(|reactor: &Reactor| {
            let said = || println!("clean");
            reactor.add_system_event_trigger(Phase::After, SystemEvent::Shutdown, said);
            reactor.call_later(std::time::Duration::ZERO, say_ready);
            never()
        }),
        "lingers" => react(|reactor: &Reactor| {
            reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, || {
                println!("stopping");
                never()
            });
            say_ready();
            never()
        }),
        "is stuck" => react(|reactor: &Reactor| {
            reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, || {
                println!("stopping");
                thread::park_timeout(2 * common::DEADLINE);
            });
            say_ready();
            never()
        }),
        "has ended" => {
            let code = react(|_: &Reactor| ());
            say_ready();
            thread::park_timeout(2 * common::DEADLINE);
            code
        }
        "runs twice" => {
            react(|_: &Reactor| ());
            program_called("waits")
        }
        "has its own handler" => {
            let seen = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(SIGTERM, seen.clone()).unwrap();
            react(|_: &Reactor| ());
            signal_hook::low_level::raise(SIGTERM).unwrap();
            ExitCode::from(if seen.load(Ordering::SeqCst) { 7 } else { 1 })
        }
        "has no handlers" => {
            let reactor = Reactor::new().unwrap();
            reactor.call_when_running(say_ready);
            reactor.run().unwrap();
            unreachable!("nobody stops it")
        }
        other => panic!("no program is called {other}"),
    }
}

fn say_ready() {
    println!("ready");
}

/// A Deferred that never fires.
fn never() -> Deferred<()> {
    let (resolver, deferred) = Deferred::new();
    std::mem::forget(resolver);
    deferred
}

#[derive(Debug)]
struct Wrapped(std::num::ParseIntError);

impl std::fmt::Display for Wrapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the port is missing")
    }
}

impl std::error::Error for Wrapped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

// ---------------------------------------------------------------- what is expected of them

/// A program that runs.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(program: &str) -> Running {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["the_programs", "--exact", "--nocapture", "--test-threads=1"])
            .env(PROGRAM, program)
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Running { child, output }
    }

    /// Reads until a line says `word`.
    #[track_caller]
    fn wait_for(&mut self, word: &str) {
        let _watchdog = common::watchdog();
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(
                self.output.read_line(&mut line).unwrap(),
                0,
                "it ended before it said {word}"
            );
        }
    }

    fn send(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// How it ended, and the rest of what it printed.
    #[track_caller]
    fn end(mut self) -> (ExitStatus, String) {
        let _watchdog = common::watchdog();
        let mut printed = String::new();
        self.output.read_to_string(&mut printed).unwrap();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut printed)
            .unwrap();
        (self.child.wait().unwrap(), printed)
    }
}

/// Starts a program that ends by itself.
#[track_caller]
fn outcome(program: &str) -> (ExitStatus, String) {
    Running::start(program).end()
}

#[test]
fn the_exit_code_is_0_for_success_and_when_somebody_stops_the_reactor() {
    for program in ["succeeds", "returns", "stops"] {
        assert_eq!(outcome(program).0.code(), Some(0), "{program}");
    }
}

#[test]
fn a_failure_is_printed_with_its_causes_and_the_exit_code_is_1() {
    let (status, printed) = outcome("fails");
    assert_eq!(status.code(), Some(1));
    assert!(printed.contains("Error: the port is missing"), "{printed}");
    assert!(
        printed.contains("Caused by:\n    invalid digit found in string"),
        "{printed}"
    );
}

#[test]
fn a_panic_in_main_is_a_failure() {
    let (status, printed) = outcome("panics");
    assert_eq!(status.code(), Some(1));
    assert!(
        printed.contains("Error: panicked: a bug in main"),
        "{printed}"
    );
}

#[test]
fn the_first_signal_stops_cleanly_and_the_exit_code_tells_which_it_was() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        for program in ["waits", "runs twice"] {
            let mut running = Running::start(program);
            running.wait_for("ready");
            running.send(signal);
            let (status, printed) = running.end();
            assert_eq!(status.code(), Some(code), "{program}: {printed}");
            assert!(printed.contains("clean"), "{program}: {printed}");
        }
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once_even_when_the_loop_is_blocked() {
    for program in ["lingers", "is stuck"] {
        let mut running = Running::start(program);
        running.wait_for("ready");
        running.send(Signal::TERM);
        running.wait_for("stopping");
        running.send(Signal::INT);
        assert_eq!(
            running.end().0.signal(),
            Some(Signal::INT.as_raw()),
            "{program}"
        );
    }
}

#[test]
fn afterwards_signals_are_as_they_were_before() {
    let mut running = Running::start("has ended");
    running.wait_for("ready");
    running.send(Signal::TERM);
    assert_eq!(running.end().0.signal(), Some(Signal::TERM.as_raw()));
    assert_eq!(outcome("has its own handler").0.code(), Some(7));
}

#[test]
fn run_itself_leaves_signals_alone() {
    let mut running = Running::start("has no handlers");
    running.wait_for("ready");
    running.send(Signal::TERM);
    assert_eq!(running.end().0.signal(), Some(Signal::TERM.as_raw()));
}

//! G and S3: signals to the host, from a terminal, from a clock, or to be stopped.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use errback::{Failure, Reactor, Task, TimedOut, WorkerDied, defer_to_process_pool, react};
use errback_deferred::gather_results;
use rustix::process::Signal;
use rustix::pty::OpenptFlags;

use crate::hosts::{
    ORPHANED, children_of, comes_to_its_end, gate_of_host, has_stopped, host, start_host,
};
use crate::suite::{Program, program, rows};
use crate::support::{
    Gate, Held, eventually, failure_of, is_alive, kill, patience, pool, state, status, succeeds,
    value, while_it_lasts, whole,
};
use crate::tasks::*;

/// The programs that the rows below start beside themselves.
pub(crate) const PROGRAMS: &[Program] = &[
    ("host_on_a_terminal", || {
        on_the_terminal(run_until_interrupted)
    }),
    ("host_on_a_terminal_that_decides", || {
        on_the_terminal(run_on_when_interrupted)
    }),
    ("host_on_a_terminal_that_hangs", || {
        on_the_terminal(hang_when_interrupted)
    }),
    ("host_under_a_storm", host_under_a_storm),
    ("host_that_blocks_all_signals", host_that_blocks_all_signals),
    ("host_that_is_stopped", host_that_is_stopped),
];

// ---------------------------------------------------------------- a terminal, and who sits at it

/// The end of a pseudo terminal at which somebody types.
struct Keyboard(std::fs::File);

impl Keyboard {
    /// A host that is alone in a session, in the foreground of a terminal.
    fn with_host(which: &str, gate: &Gate) -> (Keyboard, Child) {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("a pseudo terminal");
        rustix::pty::grantpt(&master).expect("a pseudo terminal");
        rustix::pty::unlockpt(&master).expect("a pseudo terminal");
        let name = rustix::pty::ptsname(&master, Vec::new()).expect("a pseudo terminal");
        let mut command = program(which);
        command.env("ERRBACK_TEST_TERMINAL", name.to_str().expect("a path"));
        (Keyboard(master.into()), start_host(command, gate))
    }

    fn press_control_c(&mut self) {
        self.0.write_all(b"\x03").expect("the terminal");
    }

    /// What the terminal showed, when nobody has it open any more.
    fn shown(mut self) -> String {
        let mut shown = Vec::new();
        // A terminal that all have left is an I/O error, after what was in it.
        let end = self.0.read_to_end(&mut shown);
        assert!(end.is_err_and(|error| error.raw_os_error() == Some(libc::EIO)));
        String::from_utf8_lossy(&shown).into_owned()
    }
}

/// Becomes the foreground of the terminal, as what a shell starts is.
fn on_the_terminal(program: fn()) {
    let name = std::env::var("ERRBACK_TEST_TERMINAL").expect("a terminal");
    rustix::process::setsid().expect("a session");
    // The first terminal that the leader of a session opens becomes the session's.
    let terminal = OpenOptions::new().read(true).write(true).open(name);
    let terminal: OwnedFd = terminal.expect("a terminal").into();
    rustix::stdio::dup2_stdin(&terminal).expect("a descriptor");
    rustix::stdio::dup2_stdout(&terminal).expect("a descriptor");
    rustix::stdio::dup2_stderr(&terminal).expect("a descriptor");
    drop(terminal);
    program();
}

fn two_jobs(reactor: &Reactor, gate: &str) -> errback_deferred::Deferred<()> {
    let pool = crate::support::builder().size(2).build().expect("a pool");
    let jobs = [0; 2].map(|_| defer_to_process_pool(reactor, &pool, hold, (gate.to_string(),)));
    gather_results(jobs).add_callback(|_| ())
}

/// Waits for its jobs, and leaves when it is interrupted: what `react` does.
fn run_until_interrupted() {
    let gate = gate_of_host();
    exit_with(react(move |reactor| two_jobs(reactor, &gate)));
}

/// Never comes round to its first interrupt.
fn hang_when_interrupted() {
    let gate = gate_of_host();
    exit_with(react(move |reactor| {
        let reactor = reactor.clone();
        let jobs = two_jobs(&reactor, &gate);
        reactor.call_later(Duration::ZERO, || {
            loop {
                std::thread::park();
            }
        });
        jobs
    }));
}

/// A program's `main` returns its exit code; this is one inside of another.
fn exit_with(code: std::process::ExitCode) {
    assert_eq!(
        format!("{code:?}"),
        format!("{:?}", std::process::ExitCode::from(INTERRUPTED))
    );
    std::process::exit(INTERRUPTED.into())
}

/// The exit code of a program that SIGINT has ended.
const INTERRUPTED: u8 = 128 + 2;

static WAS_SIGNALLED: AtomicBool = AtomicBool::new(false);
static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn note_signal(_: i32) {
    WAS_SIGNALLED.store(true, Ordering::Relaxed);
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Handles a signal by noting it. System calls that it interrupts fail, and are not begun anew.
#[allow(unsafe_code)] // std has no signals, and no handler that we would find is this small
fn note(signal: i32) {
    // SAFETY: an all-zero `sigaction` has an empty mask and no flags, and the handler touches atomics alone.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = note_signal as *const () as usize;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Has a handler of its own, which decides that the work goes on.
fn run_on_when_interrupted() {
    note(libc::SIGINT);
    let gate = gate_of_host();
    let pool = pool(2);
    let jobs = [0; 2].map(|_| pool.apply_async(hold, (gate.clone(),)));
    eventually(whole(), "an interrupt", || {
        WAS_SIGNALLED.load(Ordering::Relaxed)
    });
    // The row counts this as a third job, and lets them all go.
    let _us = hold(gate);
    jobs.into_iter().for_each(succeeds);
    assert_eq!(pool.stats().died, 0);
}

// ---------------------------------------------------------------- hosts that are interrupted, deaf, stopped

/// Timers interrupt all of its system calls, for as long as it has jobs.
fn host_under_a_storm() {
    note(libc::SIGUSR1);
    // Without a grace, a timeout ends its job at once.
    let builder = crate::support::builder()
        .size(2)
        .cancel_grace(Duration::ZERO);
    let pool = builder.build().expect("a pool");
    let us = std::process::id();
    let storm = || {
        // To one of our threads after the other, as a signal to the process goes to its first.
        threads_of(us).into_iter().for_each(signal_thread);
        std::thread::park_timeout(Duration::from_micros(200));
    };
    while_it_lasts(storm, || {
        for n in 0..1000 {
            assert_eq!(value(pool.apply_async(add, (n, 1))), n + 1);
        }
        let limit = Duration::from_secs(1);
        let began = Instant::now();
        failure_of::<TimedOut, _>(pool.apply_async(spin.timeout(limit), ()));
        let took = began.elapsed();
        assert!(
            took >= limit && took < limit + limit / 10 * patience(),
            "{took:?}"
        );
        let large = vec![7; 4 << 20];
        assert!(value(pool.apply_async(echo, (large.clone(),))) == large);
        kill(pool.stats().workers[0], Signal::KILL);
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
    });
    pool.close();
    assert!(pool.join_timeout(whole()));
    let signals = SIGNALS.load(Ordering::Relaxed);
    assert!(signals > 100, "{signals} signals are no storm");
    std::fs::write(gate_of_host() + ".ok", "").expect("a mark");
}

fn threads_of(pid: u32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("procfs");
    let names = threads.flatten().map(|thread| thread.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

#[allow(unsafe_code)] // std has no signals
fn signal_thread(thread: i32) {
    // SAFETY: a system call with three numbers; a thread that has ended meanwhile is an error.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGUSR1) };
}

/// Blocks every signal, as programs do that wait for them in one place.
#[allow(unsafe_code)] // std has no signals
fn host_that_blocks_all_signals() {
    // SAFETY: `sigfillset` initialises the set that is then used.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
    let pool = pool(1);
    let worker = value(pool.apply_async(worker_pid, ()));
    assert_eq!(status(worker, "SigBlk"), "0000000000000000");
    kill(worker, Signal::TERM);
    assert_ne!(value(pool.apply_async(worker_pid, ())), worker);
    std::fs::write(gate_of_host() + ".ok", "").expect("a mark");
}

/// Has three jobs out with two seconds each, and notes what each came to, as often as it does.
fn host_that_is_stopped() {
    let gate = gate_of_host();
    let reactor = Reactor::new().expect("a reactor");
    let ends: Rc<RefCell<Vec<String>>> = Rc::default();
    let (begin, list, path) = (reactor.clone(), Rc::clone(&ends), gate.clone());
    reactor.call_when_running(move || {
        let pool = pool(3);
        let jobs = (0..3).map(|_| {
            let limited = hold.timeout(Duration::from_secs(2));
            let job = defer_to_process_pool(&begin, &pool, limited, (path.clone(),));
            let list = Rc::clone(&list);
            job.add_both(move |result| {
                list.borrow_mut().push(end_of(result));
                Ok(())
            })
        });
        let jobs: Vec<_> = jobs.collect();
        let queued = (0..10).map(|n| defer_to_process_pool(&begin, &pool, add, (n, 1)));
        let queued = gather_results(queued.collect::<Vec<_>>());
        let end = begin.clone();
        gather_results(jobs)
            .add_callback(move |_| queued)
            .add_callback(|sums| assert_eq!(sums, (1..=10).collect::<Vec<_>>()))
            .add_both(move |result| {
                end.stop().expect("it runs");
                result
            })
            .log_failure();
    });
    reactor.run().expect("the reactor runs");
    let mut ends = ends.borrow().clone();
    ends.sort();
    std::fs::write(gate + ".ok", ends.join(" ")).expect("a mark");
}

fn end_of(result: Result<u32, Failure>) -> String {
    match result {
        Ok(pid) => format!("{pid}:value"),
        Err(failure) if failure.is::<TimedOut>() => "timeout".to_string(),
        Err(failure) => match failure.check::<WorkerDied>() {
            Some(died) => format!("{}:death", died.pid),
            None => format!("{failure:?}"),
        },
    }
}

rows! {
    /// Control-C is pressed at the terminal of a program with running jobs.
    fn g4_control_c_ends_the_program_and_no_worker_says_a_word() {
        let gate = Gate::new();
        let (mut keyboard, mut host) = Keyboard::with_host("host_on_a_terminal", &gate);
        let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
        keyboard.press_control_c();
        let pressed = Instant::now();
        let end = host.wait().expect("an end");
        assert!(pressed.elapsed() < whole(), "{:?}", pressed.elapsed());
        assert_eq!(end.code(), Some(INTERRUPTED.into()), "{end}");
        let workers: Vec<u32> = held.iter().map(|held| held.pid).collect();
        eventually(ORPHANED, "the workers are gone", || !workers.iter().any(|pid| is_alive(*pid)));
        assert_eq!(keyboard.shown().trim(), "^C");
    }

    /// Control-C is pressed, and the program's own handler decides to go on.
    fn g4_control_c_is_the_programs_own_matter() {
        let gate = Gate::new();
        let (mut keyboard, mut host) = Keyboard::with_host("host_on_a_terminal_that_decides", &gate);
        let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
        keyboard.press_control_c();
        // The host itself, which says by this that it was interrupted.
        gate.held().release();
        assert!(held.iter().all(|held| is_alive(held.pid)));
        held.into_iter().for_each(Held::release);
        let end = host.wait().expect("an end");
        assert!(end.success(), "{end}: {}", keyboard.shown());
        assert_eq!(keyboard.shown().trim(), "^C");
    }

    /// Control-C is pressed twice at a program that hangs.
    fn g4_a_second_control_c_ends_what_hangs() {
        let gate = Gate::new();
        let (mut keyboard, mut host) = Keyboard::with_host("host_on_a_terminal_that_hangs", &gate);
        let held: Vec<Held> = (0..2).map(|_| gate.held()).collect();
        let workers = children_of(host.id());
        assert_eq!(workers.len(), 2);
        let mut end = None;
        keyboard.press_control_c();
        eventually(whole(), "its end", || {
            keyboard.press_control_c();
            end = host.try_wait().expect("a host");
            end.is_some()
        });
        let signal = std::os::unix::process::ExitStatusExt::signal(&end.expect("an end"));
        assert_eq!(signal, Some(libc::SIGINT));
        eventually(ORPHANED, "the workers are gone", || !workers.iter().any(|pid| is_alive(*pid)));
        drop(held);
    }

    /// Signals without end interrupt every system call of the host, through 1,000 jobs.
    fn g1_a_storm_in_the_host_changes_nothing() {
        let gate = Gate::new();
        comes_to_its_end(host("host_under_a_storm", &gate), &gate);
    }

    /// The host blocks all signals.
    fn g5_workers_of_a_host_that_blocks_all_signals_can_be_killed() {
        let gate = Gate::new();
        comes_to_its_end(host("host_that_blocks_all_signals", &gate), &gate);
    }

    /// The host is stopped for five seconds, while one of its jobs ends, one runs on, and one is killed.
    fn s3_a_stopped_host_has_one_outcome_for_each_job() {
        let gate = Gate::new();
        let host = host("host_that_is_stopped", &gate);
        let [ends, runs_on, dies] = std::array::from_fn(|_| gate.held());
        kill(host.id(), Signal::STOP);
        let stopped = Instant::now();
        eventually(whole(), "all of its threads have stopped", || has_stopped(host.id()));
        let (ended, died) = (ends.pid, dies.pid);
        ends.release();
        dies.kill(Signal::KILL);
        eventually(whole(), "the worker has died", || state(died) == "Z");
        eventually(2 * whole(), "five seconds", || stopped.elapsed() > Duration::from_secs(5));
        kill(host.id(), Signal::CONT);
        let outcomes = comes_to_its_end(host, &gate);
        let outcomes: Vec<&str> = outcomes.split(' ').collect();
        assert_eq!(outcomes.len(), 3, "{outcomes:?}");
        // Whether an answer that came during the stop or the timeout is first is the reactor's to say.
        let (value, death) = (format!("{ended}:value"), format!("{died}:death"));
        let allowed = [value.as_str(), death.as_str(), "timeout"];
        assert!(outcomes.iter().all(|it| allowed.contains(it)), "{outcomes:?}");
        assert!(outcomes.contains(&"timeout"), "{outcomes:?}");
        drop(runs_on);
    }
}

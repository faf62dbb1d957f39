//! What errback costs, in figures that can stand beside those of what one would use instead.
//!
//! ```sh
//! cargo run --release --example beside_peers                        # a table, in about ten seconds
//! cargo build --profile peers --example beside_peers                # optimised as its peers are
//! target/peers/examples/beside_peers --part D                       # the figures of all process pool benches
//! target/peers/examples/beside_peers --part burst --no-batching
//! target/peers/examples/beside_peers --part growth --plots DIR      # how cost grows with work, drawn
//! ```
//!
//! With `--part` it prints a JSON line for each figure, for a program that runs it in turns with its peers:
//! `{"bench":"D","impl":"errback","metric":"job1_p50_us","value":12.5,"unit":"us"}`. Several parts run one after another,
//! each in a process of its own, so that one's memory is not another's.
//!
//! Workers are this program too, started again: they never come to `main`.

#[allow(unsafe_code)] // an allocator that counts
mod allocations;
mod calls;
mod deferreds;
mod growth;
#[path = "../gil/interpreter.rs"]
mod interpreter;
mod jobs;
mod kills;
mod machine;
mod map;
mod options;
mod overview;
mod payloads;
mod plot;
mod python;
mod queue;
mod report;
mod start;
mod tasks;
mod threads;
mod timers;

use std::process::{Command, ExitCode};

use errback::{Deferred, Failure, Reactor, ensure_deferred};
use options::Options;

/// A part of a bench: its name, the bench's, and what runs it.
type Part = (&'static str, &'static str, fn(&Options) -> Done);

/// What a part comes to.
pub(crate) type Done = Result<(), Failure>;

const PARTS: &[Part] = &[
    ("A", "chain", deferreds::chain),
    ("A", "million", deferreds::million),
    ("A", "gather", deferreds::gather),
    ("B", "timers", timers::timers),
    ("C", "rtt", calls::round_trips),
    ("C", "calls", calls::calls),
    ("C", "pool", threads::pool),
    ("D", "latency", jobs::latency),
    ("D", "burst", jobs::burst),
    ("D", "scale", jobs::scale),
    ("D", "map", map::map),
    ("D", "payload", payloads::payload),
    ("D", "python", python::python_jobs),
    ("D", "start", start::start),
    ("D", "memory", queue::memory),
    ("D", "memory_get", queue::memory_get),
    ("D", "kill_busy", kills::busy),
    ("D", "kill_idle", kills::idle),
    ("growth", "growth_jobs", growth::of_jobs),
    ("growth", "growth_payload", growth::of_payload),
    ("growth", "growth_workers", growth::of_workers),
    ("growth", "growth_timers", growth::of_timers),
    ("growth", "growth_chains", growth::of_chains),
];

fn main() -> ExitCode {
    let options = match Options::from_arguments(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::FAILURE;
        }
    };
    if cfg!(debug_assertions) {
        eprintln!("this was built without --release: its figures say nothing");
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Done {
    match options.chosen(PARTS).as_slice() {
        [] => overview::show(options),
        [(_, _, part)] => {
            if options.one_core {
                machine::pin(0);
            }
            part(options)
        }
        parts => parts.iter().try_for_each(|(_, name, _)| {
            let status = again(options, name)?.status()?;
            errback::ensure!(status.success(), "{name}: {status}");
            Ok(())
        }),
    }
}

/// This program, to be started for one part.
pub(crate) fn again(options: &Options, part: &str) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(options.arguments()).args(["--part", part]);
    Ok(command)
}

/// Runs a coroutine on a reactor, until it is done.
pub(crate) fn on_a_reactor<F>(work: impl FnOnce(Reactor) -> F + 'static) -> Done
where
    F: Future<Output = Done> + 'static,
{
    let reactor = Reactor::new()?;
    on_this_reactor(&reactor, work)
}

/// The same on a reactor that is not as it is by default.
pub(crate) fn on_this_reactor<F>(
    reactor: &Reactor,
    work: impl FnOnce(Reactor) -> F + 'static,
) -> Done
where
    F: Future<Output = Done> + 'static,
{
    let (resolver, done) = Deferred::new();
    let inside = reactor.clone();
    reactor.call_when_running(move || {
        let end = inside.clone();
        drop(ensure_deferred(work(inside)).add_both(move |result| {
            drop(resolver.fire(result)); // nobody else fires it
            end.stop().map_err(Failure::from)
        }));
    });
    reactor.run()?;
    errback::testing::result_of(done)
}

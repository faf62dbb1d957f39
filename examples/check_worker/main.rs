//! Checks a worker, in whatever language it is written, against `docs/protocol.md`.
//!
//! ```sh
//! cargo run --example check_worker                                          # the Rust worker: this program itself
//! PYTHONPATH=python:python/tests cargo run --example check_worker -- python3 -m errback_worker check
//! ```
//!
//! It plays the host, byte by byte, and prints a line for each thing that the protocol says. The worker has to serve the
//! tasks of `tasks.rs`, by these names. The exit status is 1 where something is not so.

mod checks;
mod host;
mod tasks;
mod value;

use std::process::ExitCode;

use checks::{CHECKS, Verdict};
use host::Program;

fn main() -> ExitCode {
    errback::worker::run_if_worker(&[]);
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let program = if words.is_empty() {
        Program::Own
    } else {
        Program::Command(words)
    };
    let mut failed = 0;
    for check in CHECKS {
        let (word, why) = match check.verdict(&program) {
            Verdict::Holds => ("ok  ", String::new()),
            Verdict::Fails(error) => {
                failed += 1;
                ("FAIL", format!("\n     {error:#}"))
            }
        };
        println!("{word} {}{why}", check.says);
    }
    println!("{failed} of {} checks failed", CHECKS.len());
    ExitCode::from(u8::from(failed > 0))
}

//! What can go wrong with worker processes, made to go wrong with real ones.
//!
//! Each test is a row of the table of faults (K: killed, X: exits, S: stopped, P: panics, M: messages, F: descriptors,
//! G: signals, O: orphans, C: cancel, D: shutdown, R: restart, T: the rest), and runs in a process of its own, so that
//! children, threads and descriptors can be counted, under a watchdog. A run of all of them ends in the table. See
//! `suite` for the harness, and `support` for what must hold around each fault.

mod suite;
mod support;

mod buffers;
mod cancel;
mod causes;
mod deaths;
mod descriptors;
mod hosts;
mod loops;
mod machine;
mod messages;
mod panics;
mod restarts;
mod shutdown;
mod signals;
mod tasks;
mod times;
mod workers;

fn main() -> std::process::ExitCode {
    let rows = [
        buffers::ROWS,
        cancel::ROWS,
        causes::ROWS,
        deaths::ROWS,
        descriptors::ROWS,
        hosts::ROWS,
        loops::ROWS,
        machine::ROWS,
        messages::ROWS,
        panics::ROWS,
        restarts::ROWS,
        shutdown::ROWS,
        signals::ROWS,
        times::ROWS,
        workers::ROWS,
    ];
    suite::main(
        &rows,
        &[hosts::PROGRAMS, machine::PROGRAMS, signals::PROGRAMS],
    )
}

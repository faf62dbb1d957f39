//! The one module of this crate with `unsafe`: a hook that the loader calls before `main`, and what a worker must ask
//! of the C library itself.
//!
//! A worker is the program's own binary started again. It must not run `main`, and under `cargo test` not the test
//! harness either, so it has to be caught before: in `.init_array`, the list of functions that an ELF program's
//! constructors are. What holds there was tried, as it is not written anywhere: `std::env::args` has been filled in
//! (glibc hands the arguments to constructors, and std's own comes first), threads, locks, panics and `catch_unwind`
//! work, linkme's slices are complete. std has not yet ignored SIGPIPE nor set up its stack overflow message.

use std::os::fd::RawFd;

use crate::task::TaskTable;
use crate::worker::{self, Start};

// SAFETY: the section is a list of pointers to functions without a result that the loader calls one after another,
// which is what this static is one of; it passes arguments that an `extern "C" fn()` may ignore. The function lets no
// panic out, as `extern "C"` would turn that into an abort. It runs before `main` and uses only what is said above.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    // In a host, this is all that happens.
    if let Some(start) = Start::of_this_process()
        && !start.in_main
    {
        worker::main(start, TaskTable::linked());
    }
}

/// Keeps this module in the program: the linker takes an object out of a library only when something refers to it.
pub(crate) fn keep() {
    std::hint::black_box(&BEFORE_MAIN);
}

/// What std does for a program before `main`, and undoes for its children: SIGPIPE is ignored, so that a write to a
/// closed pipe is an error; no signal is blocked; and the end of a child is told, though the host may not care.
pub(crate) fn reset_signals() {
    // SAFETY: these calls are made with constants and with a set that `sigemptyset` has initialised. No handler is
    // installed, so no code of ours will run inside of a signal.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Closes the descriptors above 2 that came from the host by mistake: those without the close-on-exec flag. One that
/// has it was opened in this process, since it would not have survived the start of this program otherwise.
pub(crate) fn close_inherited() {
    for descriptor in open_descriptors() {
        // SAFETY: `fcntl` with F_GETFD reads flags and fails for a number that is not open. What is closed here came
        // through `exec`, before any code of this program ran, so that no value in it can own the descriptor.
        unsafe {
            let flags = libc::fcntl(descriptor, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                libc::close(descriptor);
            }
        }
    }
}

/// The numbers above 2 that may be open.
fn open_descriptors() -> Vec<RawFd> {
    // More than this are not looked at where there is no /proc.
    const MOST: u64 = 1 << 16;
    match std::fs::read_dir("/proc/self/fd") {
        Ok(listing) => listing
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|descriptor| *descriptor > 2)
            .collect(),
        Err(_) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            (3..limit.unwrap_or(MOST).min(MOST) as RawFd).collect()
        }
    }
}

/// Takes the mark of a worker out of the environment, so that programs which a task starts do not inherit it.
pub(crate) fn forget_environment(name: &str) {
    // SAFETY: this runs at a worker's very start, before `main` or as its first line, when no other thread of this
    // process can be reading the environment.
    unsafe { std::env::remove_var(name) }
}

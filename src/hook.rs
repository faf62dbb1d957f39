//! The one module of this crate with `unsafe`: a hook that the loader calls before `main`, and what must be asked of the
//! C library itself, by a worker (its signals and descriptors) and by a host (what a child had used by its end, and
//! whether this is the host at all or a process that it forked); and, in `memory`, memory that the two share.
//!
//! A worker is the program's own binary started again. It must not run `main`, and under `cargo test` not the test
//! harness either, so it has to be caught before: in `.init_array`, the list of functions that an ELF program's
//! constructors are. What holds there was tried, as it is not written anywhere: `std::env::args` has been filled in
//! (glibc hands the arguments to constructors, and std's own comes first), threads, locks, panics and `catch_unwind`
//! work, linkme's slices are complete. std has not yet ignored SIGPIPE nor set up its stack overflow message.

pub(crate) mod memory;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

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

/// A child that has ended and was collected, in the kernel's words.
pub(crate) struct Collected {
    pub(crate) ending: Ending,
    /// The largest resident set, in bytes: of the process or, if that was larger, of the one that it was cloned from.
    pub(crate) peak_memory: u64,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
}

/// How a child ended.
pub(crate) enum Ending {
    Exited(i32),
    Killed {
        signal: i32,
        core_dumped: bool,
    },
    /// In a way that no kernel knows today.
    Other,
}

/// Collects a child that has ended, with its resource usage. Never blocks. `None`: it has not ended.
///
/// This is the system call, whose fifth argument (the usage) neither the C library's `waitid` has nor rustix's;
/// `wait4` has it, but takes a number, not a pidfd.
///
/// # Errors
/// ECHILD when it is no child of ours any more: somebody else has collected it, or SIGCHLD is ignored.
pub(crate) fn collect(pidfd: BorrowedFd<'_>) -> io::Result<Option<Collected>> {
    // SAFETY: both are plain C structures of numbers, for which all bits zero is a value.
    let (mut info, mut usage) = unsafe { std::mem::zeroed::<(libc::siginfo_t, libc::rusage)>() };
    loop {
        // SAFETY: the descriptor is open for as long as it is borrowed. The two pointers are to structures of the
        // kernel's own layout that live through the call, and nobody else has them.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                pidfd.as_raw_fd(),
                &raw mut info,
                libc::WEXITED | libc::WNOHANG,
                &raw mut usage,
            )
        } < 0;
        match failed.then(io::Error::last_os_error) {
            Some(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Some(why) => return Err(why),
            None => break,
        }
    }
    // SAFETY: `waitid` has filled in the fields of a SIGCHLD, or left all of them zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let ending = match info.si_code {
        libc::CLD_EXITED => Ending::Exited(status),
        code @ (libc::CLD_KILLED | libc::CLD_DUMPED) => Ending::Killed {
            signal: status,
            core_dumped: code == libc::CLD_DUMPED,
        },
        _ => Ending::Other,
    };
    let duration =
        |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(Some(Collected {
        ending,
        peak_memory: usage.ru_maxrss as u64 * 1024, // Linux counts it in KiB
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
    }))
}

/// How many forks lie between this process and the one in which they were first counted.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The same number for as long as this is the same process, forks being counted. For who must know whether its threads are
/// here: `fork` copies the memory, but of the threads only the one that calls it.
pub(crate) fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// How many times this process has forked, and is about to: the number is another one after each fork. What a fork has copied
/// may be looked at by the child for as long as that lives.
pub(crate) fn forks_made() -> u32 {
    FORKS_MADE.load(Ordering::Relaxed)
}

static FORKS_MADE: AtomicU32 = AtomicU32::new(0);

/// Counts forks from now on. (A `fork` that goes around the C library is not seen.)
///
/// # Errors
/// When the C library has no memory for it.
pub(crate) fn count_forks() -> io::Result<()> {
    // No `Once`: a process that was forked in the middle of it would find it locked for ever. Two threads that come here
    // at once have each fork counted twice, which is as good.
    static COUNTED: AtomicBool = AtomicBool::new(false);
    if COUNTED.load(Ordering::Acquire) {
        return Ok(());
    }
    let in_parent = Some(note_own_fork as unsafe extern "C" fn());
    let in_child = Some(note_fork as unsafe extern "C" fn());
    // SAFETY: one handler runs in the child before `fork` returns there, where only what is safe in a signal handler may be
    // done, the other in the parent, before the fork and behind it; each makes one atomic addition. They stay in memory, as
    // this is not code that is ever unloaded.
    let error = unsafe { libc::pthread_atfork(in_parent, in_parent, in_child) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    COUNTED.store(true, Ordering::Release);
    Ok(())
}

extern "C" fn note_own_fork() {
    FORKS_MADE.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn note_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

//! The mark that tells a worker's start from the program's own.

use std::ffi::OsStr;
use std::fmt;

/// The beginning of the argument.
const ARGUMENT: &str = "--errback-worker=";

/// The environment variable.
pub(super) const VARIABLE: &str = "ERRBACK_WORKER";

/// The version of the mark's own form.
const FORM: &str = "1";

/// How this process was started to be a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Start {
    /// How many hosts are above it.
    pub(crate) depth: u32,
    /// The process that started it.
    pub(crate) host_pid: u32,
    /// The program takes its workers in `main`, not before it.
    pub(crate) in_main: bool,
    /// By an argument, and not by the environment.
    pub(crate) by_argument: bool,
}

impl Start {
    /// The mark of this process, if it has one.
    pub(crate) fn of_this_process() -> Option<Start> {
        let mut arguments = std::env::args_os().skip(1);
        // A worker's mark is its only argument. One among others is the program's to interpret.
        let only = arguments.next().filter(|_| arguments.next().is_none());
        let by_argument = only
            .as_deref()
            .and_then(OsStr::to_str)
            .and_then(|argument| argument.strip_prefix(ARGUMENT));
        match by_argument {
            Some(mark) => Start::parse(mark, true),
            None => Start::parse(std::env::var(VARIABLE).ok()?.as_str(), false),
        }
    }

    fn parse(mark: &str, by_argument: bool) -> Option<Start> {
        let mut parts = mark.split(':');
        if parts.next()? != FORM {
            return None;
        }
        let depth = parts.next()?.parse().ok()?;
        let host_pid = parts.next()?.parse().ok()?;
        let in_main = match parts.next() {
            None => false,
            Some("main") => true,
            Some(_) => return None,
        };
        Some(Start {
            depth,
            host_pid,
            in_main,
            by_argument,
        })
    }

    /// The mark as an argument.
    pub(super) fn argument(&self) -> String {
        format!("{ARGUMENT}{self}")
    }

    /// Whether the host has gone already. A command of the user's own may stand between the host and its worker, as a
    /// shell does; then only the end of the connection tells.
    pub(super) fn is_orphan(&self) -> bool {
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
        self.by_argument && parent != Some(self.host_pid)
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Start {
            depth, host_pid, ..
        } = self;
        let main = if self.in_main { ":main" } else { "" };
        write!(f, "{FORM}:{depth}:{host_pid}{main}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_as_it_was_written() {
        for in_main in [false, true] {
            let start = Start {
                depth: 2,
                host_pid: 4711,
                in_main,
                by_argument: true,
            };
            assert_eq!(Start::parse(&start.to_string(), true), Some(start));
        }
    }

    #[test]
    fn what_is_no_mark_is_left_to_the_program() {
        for mark in [
            "",
            "1",
            "1:1",
            "1:x:2",
            "1:1:2:elsewhere",
            "1:-1:2",
            "2:1:2",
            "1:1:99999999999",
        ] {
            assert_eq!(Start::parse(mark, true), None, "{mark}");
        }
    }
}

//! The tasks that a worker has to serve to be checked, in Rust. `python/tests/check.py` has them in Python.

use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::value::Value;

/// The sum of two integers, which are unsigned.
#[errback::task(name = "check:add")]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// What came.
#[errback::task(name = "check:echo")]
fn echo(value: Value) -> Value {
    value
}

/// No arguments and no result.
#[errback::task(name = "check:nothing")]
fn nothing() {}

/// So many bytes.
#[errback::task(name = "check:bytes")]
fn bytes(count: usize) -> Vec<u8> {
    vec![7; count]
}

#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// An error of a type `Refused` that says `message`.
#[errback::task(name = "check:fail")]
fn fail(message: String) -> Result<(), Refused> {
    Err(Refused(message))
}

/// A value that cannot be sent.
#[errback::task(name = "check:unsendable")]
fn unsendable() -> Option<()> {
    Some(())
}

/// Runs for so many seconds, or until it is asked to stop, and says which of the two it was: "asked" or "ran". It may also
/// end with an error when it is asked.
#[errback::task(name = "check:spin")]
fn spin(seconds: u64) -> String {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        if errback::worker::cancel_requested() {
            return "asked".into();
        }
        std::thread::yield_now();
    }
    "ran".into()
}

/// Prints a line to standard output and the same to standard error.
#[errback::task(name = "check:print")]
fn print(line: String) {
    println!("{line}");
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Ends the process at once with this code.
#[errback::task(name = "check:exit")]
fn exit(code: i32) {
    std::process::exit(code);
}

/// The limits that are in force: of the address space, of the CPU's seconds (both of them), of the open files.
#[errback::task(name = "check:limits")]
fn limits() -> [Option<u64>; 4] {
    let cpu = getrlimit(Resource::Cpu);
    [
        getrlimit(Resource::As).current,
        cpu.current,
        cpu.maximum,
        getrlimit(Resource::Nofile).current,
    ]
}

/// The value of a variable of the environment.
#[errback::task(name = "check:variable")]
fn variable(name: String) -> Option<String> {
    std::env::var(name).ok()
}

/// What the descriptors above 2 are, those excepted that close on `exec`.
#[errback::task(name = "check:inheritable")]
fn inheritable() -> Vec<String> {
    let Ok(listing) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let numbers = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    numbers
        .filter(|number| number.parse::<u32>().is_ok_and(|number| number > 2))
        .filter(|number| {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
            let flags = info.ok().and_then(|info| {
                let line = info.lines().find(|line| line.starts_with("flags:"))?;
                u32::from_str_radix(line.split_whitespace().nth(1)?, 8).ok()
            });
            flags.is_some_and(|flags| flags & rustix::fs::OFlags::CLOEXEC.bits() == 0)
        })
        .collect()
}

//! Each row in a process of its own, where there is a Python for it; where not, it says so.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::interpreter;

/// No row takes longer, on whatever machine.
const WATCHDOG: Duration = Duration::from_secs(300);

/// Tests that each run in a process of their own.
macro_rules! rows {
    ($($(#[$attribute:meta])* fn $name:ident() $body:block)*) => {$(
        $(#[$attribute])*
        #[test]
        fn $name() {
            crate::suite::alone(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    )*};
}
pub(crate) use rows;

/// The interpreter of the rows. They do not run without one.
pub(crate) fn interpreter() -> &'static str {
    found().as_deref().expect("a row runs with an interpreter")
}

fn found() -> &'static Result<String, String> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    FOUND.get_or_init(interpreter::find)
}

/// What a fault took; only the other suite makes a table of it.
#[allow(dead_code)]
pub(crate) fn failure_took(_: Duration) {}

/// Runs a test's body in a new process: this binary again, told to run that one test.
pub(crate) fn alone(path: &str, body: impl FnOnce()) {
    const ROW: &str = "ERRBACK_TEST_ROW";
    let (_, name) = path.split_once("::").expect("a path begins with the crate");
    if std::env::var_os(ROW).is_some_and(|row| row == *name) {
        return body();
    }
    let python = match found() {
        Ok(python) => python,
        Err(how) => return println!("skipped: {name}: {how}"),
    };
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROW, name)
        .env("ERRBACK_PYTHON", python)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command.spawn().expect("a process for the row");
    let group = Pid::from_child(&child);
    let (done, watchdog) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let timeout = Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if watchdog.recv_timeout(WATCHDOG) == timeout {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    });
    let output = child.wait_with_output().expect("the row's end");
    drop(done);
    watchdog.join().expect("the watchdog");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{name}: {}\n{stdout}\n{stderr}",
        output.status
    );
    assert!(stdout.contains("1 passed"), "{name} was not run:\n{stdout}");
}

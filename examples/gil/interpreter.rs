//! An interpreter that can run Python workers: what the examples and the tests look for, and what they say when there is
//! none.

use std::process::{Command, Stdio};

/// Names the interpreter to use.
const VARIABLE: &str = "ERRBACK_PYTHON";

/// Python 3.9 or later with msgpack, or a sentence on how to get it.
pub(crate) fn find() -> Result<String, String> {
    let told = std::env::var(VARIABLE).ok();
    let venv = std::env::var("VIRTUAL_ENV").ok();
    let venv = venv.map(|venv| format!("{venv}/bin/python"));
    let usual = ["python3", "python"].map(str::to_string);
    let candidates = match told {
        Some(told) => vec![told],
        None => venv.into_iter().chain(usual).collect(),
    };
    let found = candidates.into_iter().find(|python| is_good(python));
    found.ok_or_else(|| {
        format!(
            "this needs Python 3.9 or later with the package msgpack: `python3 -m venv venv && venv/bin/pip install \
             msgpack`, and then {VARIABLE}=venv/bin/python in the environment"
        )
    })
}

/// Whether it can run workers. It is asked, because its name says nothing.
fn is_good(python: &str) -> bool {
    let mut command = Command::new(python);
    command.args([
        "-c",
        "import sys, msgpack; sys.exit(sys.version_info < (3, 9))",
    ]);
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

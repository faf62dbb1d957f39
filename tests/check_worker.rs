//! The workers do what `docs/protocol.md` says: `examples/check_worker` plays the host to each of them.
//!
//! The one in Rust is always checked; the one in Python where there is a Python that can run it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The example's program, which `cargo test` and `cargo nextest` build beside this test's own.
fn check_worker() -> Command {
    let test = std::env::current_exe().expect("this test's own path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps/<test>");
    let program = profile.join("examples/check_worker");
    assert!(
        program.exists(),
        "{} is not there: cargo build --example check_worker",
        program.display()
    );
    Command::new(program)
}

#[track_caller]
fn holds(command: &mut Command) {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaints}");
    assert!(said.contains("\n0 of "), "{said}");
}

/// A Python from 3.9 on that has msgpack: `ERRBACK_PYTHON`, or the `python3` on the path.
fn python() -> Option<PathBuf> {
    let program = std::env::var_os("ERRBACK_PYTHON").map_or("python3".into(), PathBuf::from);
    let question = "import sys, msgpack; sys.exit(sys.version_info < (3, 9))";
    let answer = Command::new(&program).args(["-c", question]).output();
    answer
        .is_ok_and(|it| it.status.success())
        .then_some(program)
}

/// The same, or a sentence in the test's output.
fn python_or_skip() -> Option<PathBuf> {
    let python = python();
    if python.is_none() {
        println!(
            "skipped: no Python 3.9 with msgpack. To have one: python3 -m venv VENV && VENV/bin/pip install msgpack, \
             and ERRBACK_PYTHON=VENV/bin/python in the environment"
        );
    }
    python
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("python")
        .join(path)
}

#[test]
fn the_rust_worker_speaks_the_protocol() {
    holds(&mut check_worker());
}

#[test]
fn the_python_worker_speaks_the_protocol() {
    let Some(python) = python_or_skip() else {
        return;
    };
    let paths = std::env::join_paths([source(""), source("tests")]).expect("two paths");
    let mut command = check_worker();
    command
        .arg(python)
        .args(["-m", "errback_worker", "check"])
        .env("PYTHONPATH", paths)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    holds(&mut command);
}

#[test]
fn the_python_worker_speaks_the_protocol_without_being_installed() {
    let Some(python) = python_or_skip() else {
        return;
    };
    let mut sources = serde_json::Map::new();
    for entry in std::fs::read_dir(source("errback_worker")).expect("the package") {
        let path = entry.expect("a file of the package").path();
        let stem = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if path.extension().is_some_and(|it| it == "py") && stem != "_bootstrap" {
            let name = match stem.as_str() {
                "__init__" => "errback_worker".into(),
                stem => format!("errback_worker.{stem}"),
            };
            let text = std::fs::read_to_string(&path).expect("a source");
            sources.insert(name, text.into());
        }
    }
    let sources = serde_json::Value::from(sources).to_string();
    let bootstrap = std::fs::read_to_string(source("errback_worker/_bootstrap.py"));
    let bootstrap = bootstrap.expect("the bootstrap");
    // One string of an environment has 128 KiB at the most.
    assert!(sources.len() + bootstrap.len() < 120 * 1024);
    let mut command = check_worker();
    command
        .arg(python)
        .args(["-c", &bootstrap, "check"])
        .env("PYTHONPATH", source("tests"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ERRBACK_WORKER_SOURCE", sources);
    holds(&mut command);
}

#[test]
fn the_python_workers_own_tests_pass() {
    let Some(python) = python_or_skip() else {
        return;
    };
    let output = Command::new(python)
        .args(["-W", "error::ResourceWarning", "-m", "unittest", "discover"])
        .args(["-s", "tests", "-t", "."])
        .current_dir(source(""))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

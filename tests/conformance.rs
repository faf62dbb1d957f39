//! The same programs on real Twisted and on this crate: `tests/conformance/README.md`.
//!
//! The recorded programs need nothing. Fresh random ones need a Python that has Twisted; without one the test says so.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value as Json;

#[allow(dead_code)] // its `main`
#[path = "../examples/conformance.rs"]
mod runner;

/// How many fresh programs are compared.
const FRESH: u64 = 1_000;

#[test]
fn recorded_random_programs_do_what_they_do_in_twisted() {
    compare(&read("programs.jsonl"), &read("expected.jsonl"));
}

#[test]
fn recorded_handwritten_programs_do_what_they_do_in_twisted() {
    compare(
        &read("handwritten.jsonl"),
        &read("handwritten-expected.jsonl"),
    );
}

#[test]
fn fresh_random_programs_do_what_they_do_in_twisted() {
    let Some(python) = env::var_os("ERRBACK_TWISTED_PYTHON") else {
        return eprintln!(
            "SKIPPED: fresh random programs; ERRBACK_TWISTED_PYTHON does not name a Python that has Twisted"
        );
    };
    let seed = number("ERRBACK_CONFORMANCE_SEED").unwrap_or_else(seconds_since_1970);
    let count = number("ERRBACK_CONFORMANCE_COUNT").unwrap_or(FRESH);
    eprintln!("ERRBACK_CONFORMANCE_SEED={seed}, {count} programs");
    let mut generator = Command::new(&python);
    generator.args(["generate.py", &seed.to_string(), &count.to_string()]);
    let programs = output(generator, "");
    let mut oracle = Command::new(&python);
    oracle.arg("oracle.py");
    compare(&programs, &output(oracle, &programs));
}

#[track_caller]
fn compare(programs: &str, expected: &str) {
    assert_eq!(programs.lines().count(), expected.lines().count());
    let differences: Vec<String> = programs
        .lines()
        .zip(expected.lines())
        .filter_map(|(program, expected)| difference(program, expected))
        .collect();
    assert!(
        differences.is_empty(),
        "{} programs differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

fn difference(program: &str, expected: &str) -> Option<String> {
    let actual = runner::run_line(program).expect("a program is a line of JSON");
    let [want, got] = [expected, &actual].map(json);
    (want != got).then(|| format!("program  {program}\nexpected {want}\nactual   {got}\n"))
}

fn json(line: &str) -> Json {
    serde_json::from_str(line).expect("a trace is a line of JSON")
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

fn read(name: &str) -> String {
    fs::read_to_string(directory().join(name)).expect("the recorded programs are in the repository")
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

fn seconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

/// What a script of this directory prints when it is given `input`.
fn output(mut command: Command, input: &str) -> String {
    let mut child = command
        .current_dir(directory())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ERRBACK_TWISTED_PYTHON is a Python");
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    // From a thread: the script answers while it reads.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("it can be waited for");
    writer
        .join()
        .expect("writing does not panic")
        .expect("the script reads its input");
    assert!(output.status.success(), "the script fails");
    String::from_utf8(output.stdout).expect("JSON is UTF-8")
}

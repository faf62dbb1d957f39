//! The porting guide shows the programs that can be run, and they run; without a Python, they say what they need.

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../examples/gil/interpreter.rs"]
mod interpreter;

const GUIDE: &str = include_str!("../docs/python-workers.md");

/// An example's program, which `cargo test` and `cargo nextest` build beside this test's own.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("this test's own path");
    let profile = test.parent().and_then(Path::parent);
    let program = profile
        .expect("target/<profile>/deps/<test>")
        .join("examples")
        .join(name);
    assert!(program.exists(), "cargo build --example {name}");
    Command::new(program)
}

#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).expect("it writes UTF-8")
}

#[test]
fn the_guide_shows_the_steps_of_the_example() {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python_port"));
    let mut shown = 0;
    for file in std::fs::read_dir(directory).expect("the steps") {
        let path = file.expect("a file").path();
        if path.is_dir() || path.ends_with("main.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a text");
        let begin = match path.extension().is_some_and(|extension| extension == "rs") {
            true => text.find("\nuse ").expect("a use") + 1,
            false => 0,
        };
        let program = format!("\n{}\n```", text[begin..].trim_end());
        assert!(GUIDE.contains(&program), "{}", path.display());
        shown += 1;
    }
    assert!(shown >= 8, "{shown} files");
}

#[test]
fn the_steps_run() {
    let python = match interpreter::find() {
        Ok(python) => python,
        Err(how) => return println!("skipped: {how}"),
    };
    let said = said(example("python_port").env("ERRBACK_PYTHON", python));
    let expected = [
        "pear 3 250",
        "refused: 'many' is no count",
        "250 cents",
        "2 of 3 lines are good",
        "10 of them, counted in Rust",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn threads_and_processes_come_to_the_same() {
    let python = match interpreter::find() {
        Ok(python) => python,
        Err(how) => return println!("skipped: {how}"),
    };
    let text = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gil.txt");
    std::fs::write(
        &text,
        "some words that are like other words, or unlike them",
    )
    .expect("a text");
    let said = said(example("gil").arg(&text).env("ERRBACK_PYTHON", python));
    assert!(said.starts_with("7 words of"), "{said}");
    assert!(
        said.contains("worker processes") && said.contains('█'),
        "{said}"
    );
}

#[test]
fn without_a_python_the_examples_say_what_they_need() {
    for name in ["gil", "python_port"] {
        let said = said(example(name).env("ERRBACK_PYTHON", "/no/such/python"));
        assert!(said.contains("pip install msgpack"), "{said}");
    }
}

//! Who may know whom: the table of docs/architecture.md, held against the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Files whose path below the root begins with one of these may not mention any of those.
const NEVER: &[(&[&str], &[&str])] = &[
    (
        &["deferred/src/"],
        &[
            "mio::",
            "thread::spawn",
            "thread::Builder",
            "thread::sleep",
            "std::process",
            "std::fs",
            "std::net",
            "errback_reactor",
            "errback::",
            "serde",
            "tokio",
        ],
    ),
    (
        &["reactor/src/"],
        &[
            "serde",
            "rmp_serde",
            "errback::",
            "std::process::Command",
            "rustix::process",
        ],
    ),
    (
        &["src/task", "src/wire", "src/buffer"],
        &[
            "errback_deferred",
            "errback_reactor",
            "std::process",
            "crate::pool",
            "mio::",
        ],
    ),
    (
        &["src/python"],
        &[
            "errback_deferred",
            "errback_reactor",
            "std::process",
            "crate::pool",
            "mio::",
        ],
    ),
    (
        &["src/worker", "src/hook", "src/lane"],
        &[
            "errback_deferred",
            "errback_reactor",
            "crate::pool",
            "crate::defer_to_process",
            "mio::",
        ],
    ),
    (
        &["src/pool"],
        &[
            "errback_reactor",
            "crate::defer_to_process",
            "crate::worker::main",
            "mio::",
        ],
    ),
];

#[test]
fn no_module_knows_whom_it_may_not_know() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for (places, words) in NEVER {
        let mut read = 0;
        for file in sources(root) {
            let name = file
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if !places.iter().any(|place| name.starts_with(place)) {
                continue;
            }
            read += 1;
            for (number, line) in code_of(&fs::read_to_string(&file).unwrap()) {
                for word in words.iter().filter(|word| mentions(&line, word)) {
                    wrong.push(format!("{name}:{number}: `{word}` in `{}`", line.trim()));
                }
            }
        }
        assert!(read > 0, "there is nothing at {places:?}: has it moved?");
    }
    assert!(
        wrong.is_empty(),
        "see 'Who may know whom' in docs/architecture.md:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_reader_of_imports_sees_one() {
    assert!(mentions("use mio::Poll;", "mio::"));
    assert!(!mentions("use errback_tokio::x;", "errback::"));
    assert!(!mentions("let permio::x", "mio::"));
    assert_eq!(
        code_of("//! mio::\nuse x; // mio::\n#[cfg(test)]\nmod tests { mio:: }").len(),
        1
    );
}

/// The lines of code, without comments, up to the unit tests at the end of the file.
fn code_of(text: &str) -> Vec<(usize, String)> {
    let lines = text
        .lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    let code = lines.map(|(i, line)| (i + 1, line.split("//").next().unwrap().to_owned()));
    code.filter(|(_, line)| !line.trim().is_empty()).collect()
}

/// Whether a name stands there by itself, not as the end of another.
fn mentions(line: &str, word: &str) -> bool {
    let starts = line.match_indices(word).map(|(at, _)| at);
    starts.into_iter().any(|at| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn sources(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in ["src", "deferred/src", "reactor/src"] {
        collect(&below.join(dir), &mut found);
    }
    found
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, found),
            false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
            false => {}
        }
    }
}

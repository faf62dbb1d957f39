//! Why there is no picture, in a few words that fit into its gap.

use errback::{EncodeError, Failure, JobPanicked, RemoteError, WorkerDied};

/// The reason, when it lies in the picture.
///
/// # Errors
/// The failure itself when it does not: no worker can be started, the program is being stopped. A sheet full of gaps would
/// only hide those.
pub(crate) fn of_gap(failure: &Failure) -> Result<String, Failure> {
    if let Some(died) = failure.check::<WorkerDied>() {
        return Ok(of_death(died));
    }
    let of_the_picture = failure.is::<RemoteError>() // what the decoder returned as its error
        || failure.is::<JobPanicked>() // a bug in the decoder that Rust has caught
        || failure.is::<EncodeError>(); // a path that is not UTF-8 cannot be sent
    match of_the_picture {
        true => Ok(one_line(&failure.to_string())),
        false => Err(failure.clone()),
    }
}

/// How the worker died, and the last that it said.
fn of_death(died: &WorkerDied) -> String {
    let cause = match died.exit.signal() {
        Some(6) => "worker died of SIGABRT".to_owned(),
        Some(9) => "worker died of SIGKILL".to_owned(),
        Some(11) => "worker died of SIGSEGV".to_owned(),
        _ => format!("worker {}", died.exit),
    };
    match last_words(&died.stderr) {
        Some(words) => format!("{cause}: {words}"),
        None => cause,
    }
}

/// The last line that says something: not the backtrace, which Rust adds when asked to, nor its notes.
fn last_words(stderr: &str) -> Option<String> {
    let (words, _backtrace) = stderr
        .rsplit_once("stack backtrace:")
        .unwrap_or((stderr, ""));
    let mut lines = words.lines().rev().map(one_line);
    lines.find(|line| !line.is_empty() && !line.starts_with("note: "))
}

/// The text without line breaks and other control characters: what a decoder says may quote its input.
pub(crate) fn one_line(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

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
    match died.last_words().map(one_line) {
        Some(words) => format!("worker {}: {words}", died.exit),
        None => format!("worker {}", died.exit),
    }
}

/// The text without line breaks and other control characters: what a decoder says may quote its input.
pub(crate) fn one_line(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

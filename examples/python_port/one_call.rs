//! Step 1: a call. Its function gets a name and types.

use errback::{Deferred, PythonTask, Reactor, defer_to_process, python};
use serde::Deserialize;

#[derive(Deserialize, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) count: u64,
    pub(crate) cents: u64,
}

pub(crate) const PARSE: PythonTask<(String,), Entry> = python("catalog:parse");

pub(crate) fn run(reactor: &Reactor) -> Deferred<()> {
    defer_to_process(reactor, PARSE, ("pear 3 250".into(),))
        .add_callback(|entry| println!("{} {} {}", entry.name, entry.count, entry.cents))
}

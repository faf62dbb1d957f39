//! The steps of the porting guide, docs/python-workers.md, one after the other.
//!
//! `cargo run --example python_port`. The program as it was in Twisted is `before.py`; its functions, in `catalog.py`, stay
//! as they are.

#[path = "../gil/interpreter.rs"]
mod interpreter;

mod errors;
mod many;
mod one_call;
mod rust;
mod timeouts;
mod workers;

use std::process::ExitCode;

use errback::{ensure_deferred, react};

fn main() -> ExitCode {
    let python = match interpreter::find() {
        Ok(python) => python,
        Err(how) => {
            println!("{how}");
            return ExitCode::SUCCESS;
        }
    };
    react(move |reactor| {
        let reactor = reactor.clone();
        ensure_deferred(async move {
            let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python_port");
            workers::start(&reactor, &python, modules)?;
            one_call::run(&reactor).await?;
            errors::run(&reactor).await?;
            timeouts::run(&reactor).await?;
            many::run(&reactor).await?;
            rust::run(&reactor).await
        })
    })
}

//! Step 3: a command of ampoule's is a function, its timeout the task's.

use std::time::Duration;

use errback::{Deferred, PythonTask, Reactor, Task, TimedOut, defer_to_process, python};

const PRICE: PythonTask<(String,), u64> = python("catalog:price");

pub(crate) fn run(reactor: &Reactor) -> Deferred<()> {
    let price = PRICE.timeout(Duration::from_secs(5));
    defer_to_process(reactor, price, ("pear".into(),))
        .add_callback(|cents| println!("{cents} cents"))
        .add_errback(|failure| {
            failure.trap::<TimedOut>()?;
            println!("no price in time");
            Ok(())
        })
}

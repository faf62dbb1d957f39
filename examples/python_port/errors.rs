//! Step 2: what the function raises, trapped by its name or that of a base.

use errback::{Deferred, Reactor, RemoteError, defer_to_process};

use crate::one_call::PARSE;

pub(crate) fn run(reactor: &Reactor) -> Deferred<()> {
    defer_to_process(reactor, PARSE, ("pear many 250".into(),))
        .add_callback(|entry| println!("{entry:?}"))
        .add_errback(|failure| {
            failure.trap_name("catalog.BadLine")?;
            println!("refused: {failure}");
            if let Some(error) = failure.check::<RemoteError>() {
                eprintln!("{error:#}"); // Python's traceback
            }
            Ok(())
        })
}

//! Step 4: one function over many arguments. Each has a result of its own.

use errback::{Deferred, Failure, Reactor, map_to_process, process_pool, try_deferred};

use crate::one_call::PARSE;

pub(crate) fn run(reactor: &Reactor) -> Deferred<()> {
    let lines = ["pear 3 250", "fig 10 40", "kiwi many 90"].map(String::from);
    try_deferred(|| {
        let pool = process_pool(reactor)?;
        let all = map_to_process(reactor, &pool, PARSE, lines);
        Ok::<_, Failure>(all.add_callback(|results| {
            let good = results.iter().flatten().count();
            println!("{good} of {} lines are good", results.len());
        }))
    })
}

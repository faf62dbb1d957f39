//! Step 5: the functions that are worth it move to Rust, each when its time has come. Both kinds serve one program.

use errback::{Deferred, Failure, Pool, Reactor, defer_to_process_pool, ensure, try_deferred};

#[errback::task]
fn count_of(line: String) -> Result<u64, Failure> {
    let count = line.split(' ').nth(1).unwrap_or_default();
    ensure!(!count.is_empty(), "no count in {line:?}");
    Ok(count.parse()?)
}

pub(crate) fn run(reactor: &Reactor) -> Deferred<()> {
    try_deferred(|| {
        let rust = Pool::builder().size(1).build()?; // this program itself
        let count = defer_to_process_pool(reactor, &rust, count_of, ("fig 10 40".into(),));
        Ok(count.add_callback(|count| println!("{count} of them, counted in Rust")))
    })
}

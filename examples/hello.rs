//! The smallest program: a plain function, run in another process.

use errback::{defer_to_process, react};

#[errback::task]
fn count_primes(below: u64) -> usize {
    (2..below).filter(|n| (2..*n).all(|d| n % d != 0)).count()
}

fn main() -> std::process::ExitCode {
    react(|reactor| {
        let count = defer_to_process(reactor, count_primes, (20_000,));
        count.add_callback(|n| println!("{n} primes, counted in another process"))
    })
}

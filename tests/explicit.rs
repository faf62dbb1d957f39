//! The explicit form: a program without `unsafe`, whose `main` lists its tasks. It has no test harness, because a
//! harness has a `main` of its own.

#![forbid(unsafe_code)]

use errback::{Pool, Task};

/// Not in the table that the linker makes.
#[errback::task(explicit)]
fn listed(n: u64) -> u64 {
    n + u64::from(errback::worker::depth())
}

/// In that table, and not in the list.
#[errback::task]
fn linked(n: u64) -> u64 {
    n + 2
}

/// In neither.
#[errback::task(explicit)]
fn forgotten() {}

/// A pool of its own inside of a job.
#[errback::task(explicit)]
fn nested(n: u64) -> Result<u64, errback::Failure> {
    remotely(listed, (n,))
}

fn remotely<F: Task>(task: F, args: F::Args) -> Result<F::Output, errback::Failure> {
    Pool::builder()
        .size(1)
        .build()?
        .apply_async(task, args)
        .get()
}

fn main() {
    errback::worker::run_if_worker(&[&listed, &nested]);
    assert!(
        !errback::worker::is_worker(),
        "a worker got past the first line of main"
    );
    // `cargo nextest` asks for names, also for those of the ignored.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("the_explicit_form_works: test");
        }
        return;
    }

    assert_eq!(remotely(listed, (40,)).unwrap(), 41);
    assert_eq!(remotely(linked, (40,)).unwrap(), 42);
    assert_eq!(remotely(nested, (40,)).unwrap(), 42);
    let failure = remotely(forgotten, ()).unwrap_err();
    assert!(
        failure.to_string().contains("explicit::forgotten"),
        "{failure}"
    );
    println!("test the_explicit_form_works ... ok");
}

//! A pool of real worker processes, from outside: results, failures, deaths, ends.

use std::time::Duration;

use errback::{Pool, WorkerDied};

#[errback::task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[errback::task]
fn abort() {
    std::process::abort()
}

fn pool(size: usize) -> Pool {
    Pool::builder().size(size).build().expect("a pool")
}

#[test]
fn a_job_runs_in_a_worker_and_its_result_comes_back() {
    let pool = pool(1);
    assert_eq!(pool.apply_async(add, (1, 2)).get().expect("a sum"), 3);
}

#[test]
fn a_worker_that_aborts_fails_its_own_job_and_is_replaced() {
    let pool = pool(1);
    let failure = pool.apply_async(abort, ()).get().expect_err("it aborts");
    let died = failure
        .check::<WorkerDied>()
        .unwrap_or_else(|| panic!("{failure:?}"));
    assert_eq!((died.exit.signal(), died.started), (Some(6), true));
    assert_eq!(pool.apply_async(add, (1, 2)).get().expect("a sum"), 3);
    pool.close();
    assert!(pool.join_timeout(Duration::from_secs(30)));
}

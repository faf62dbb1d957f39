//! P and E: panics and errors, wherever user code runs.

use std::process::{Command, Stdio};

use errback::{
    AsyncResult, DecodeError, EncodeError, JobPanicked, NotSerialisable, RemoteError, WorkerDied,
};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{Invariant, failure, failure_of, value};
use crate::tasks::*;

/// A program whose panics abort.
const ABORTS_MANIFEST: &str = r#"
[package]
name = "aborts"
edition = "2024"

[workspace]

[profile.dev]
panic = "abort"
debug = false

[dependencies]
"#;

const ABORTS: &str = r#"
#[errback::task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[errback::task]
fn panics(n: i64) {
    panic!("a message with {n}")
}

fn main() {
    let pool = errback::Pool::builder().size(2).build().unwrap();
    assert_eq!(pool.apply_async(add, (1, 2)).get().unwrap(), 3);
    let failure = pool.apply_async(panics, (7,)).get().unwrap_err();
    let died = failure.check::<errback::WorkerDied>().unwrap();
    assert_eq!(died.exit.signal(), Some(6), "{died}");
    assert!(died.stderr.contains("a message with 7"), "{died:?}");
    assert_eq!(pool.apply_async(add, (1, 2)).get().unwrap(), 3);
    println!("it held");
}
"#;

const AWKWARD: Manner = Manner::Fails;

/// A failure that costs the worker nothing: afterwards the same two processes are there.
fn harmless<T: std::fmt::Debug + Send + 'static>(
    start: impl FnOnce(&errback::Pool) -> AsyncResult<T>,
) -> errback::Failure {
    let invariant = Invariant::new().with_bystander();
    let before = invariant.pool.stats();
    let failure = failure(start(&invariant.pool));
    let after = invariant.pool.stats();
    assert_eq!(
        (after.workers, after.died),
        (before.workers, before.died),
        "{failure}"
    );
    invariant.check();
    failure
}

rows! {
    /// A job panics, with payloads of three types.
    fn p1_a_panic_is_an_answer_with_message_and_place() {
        let failure = harmless(|pool| pool.apply_async(panic_str, ()));
        let panicked = failure.check::<JobPanicked>().expect("a panic");
        assert_eq!(panicked.message, "a plain message");
        assert!(panicked.location.as_ref().is_some_and(|place| place.contains("tasks.rs:")), "{panicked:?}");
        let failure = harmless(|pool| pool.apply_async(panic_string, (7,)));
        assert_eq!(failure.check::<JobPanicked>().expect("a panic").message, "a message with 7");
        let failure = harmless(|pool| pool.apply_async(panic_box, ()));
        assert!(!failure.check::<JobPanicked>().expect("a panic").message.is_empty());
    }

    /// A job panics while it unwinds from a panic.
    fn p2_a_panic_while_a_panic_unwinds_is_a_death_that_tells_of_both() {
        let invariant = Invariant::new().with_bystander();
        let died = failure_of::<WorkerDied, _>(invariant.pool.apply_async(panic_twice, ()));
        assert_eq!(died.exit.signal(), Some(Signal::ABORT.as_raw()));
        assert!(died.stderr.contains("the first panic") && died.stderr.contains("the second panic"), "{died:?}");
        invariant.check();
    }

    /// A result fails to serialise, by error and by panic.
    fn p3_m1_a_result_that_cannot_be_encoded_fails_its_job_only() {
        for encode in [Manner::Fails, Manner::Panics] {
            let failure = harmless(|pool| pool.apply_async(give_awkward, (encode, Manner::Well)));
            let refused = failure.check::<NotSerialisable>().unwrap_or_else(|| panic!("{failure:?}"));
            assert!(refused.result && refused.message.contains("awkward on purpose"), "{refused}");
        }
    }

    /// Arguments fail to deserialise, by error and by panic.
    fn p4_arguments_that_cannot_be_decoded_fail_their_job_only() {
        for decode in [Manner::Fails, Manner::Panics] {
            let awkward = Awkward { encode: Manner::Well, decode };
            let failure = harmless(|pool| pool.apply_async(take_awkward, (awkward,)));
            let refused = failure.check::<NotSerialisable>().unwrap_or_else(|| panic!("{failure:?}"));
            assert!(!refused.result && refused.message.contains("awkward on purpose"), "{refused}");
        }
    }

    /// A result fails to deserialise in the host, by error and by panic.
    fn p5_a_result_that_cannot_be_decoded_leaves_worker_and_waiter_alone() {
        for decode in [Manner::Fails, Manner::Panics] {
            let failure = harmless(|pool| pool.apply_async(give_awkward, (Manner::Well, decode)));
            assert!(failure.is::<DecodeError>(), "{failure:?}");
            assert!(failure.to_string().contains("awkward on purpose"), "{failure}");
        }
    }

    /// Arguments fail to serialise, by error and by panic.
    fn p6_m2_arguments_that_cannot_be_encoded_fail_at_submit_and_nothing_is_sent() {
        for encode in [AWKWARD, Manner::Panics] {
            let invariant = Invariant::new();
            let before = invariant.pool.stats().submitted;
            let result = invariant.pool.apply_async(take_awkward, (Awkward { encode, decode: Manner::Well },));
            assert!(result.ready(), "it failed on the spot");
            let failure = failure(result);
            assert!(failure.is::<EncodeError>(), "{failure:?}");
            assert_eq!(invariant.pool.stats().submitted, before);
            invariant.check();
        }
    }

    /// A job panics under a panic hook of its own, that says nothing, and that aborts.
    fn p8_a_jobs_own_panic_hook_changes_nothing_or_kills_the_worker() {
        let failure = harmless(|pool| pool.apply_async(panic_under_a_hook, (false,)));
        assert_eq!(failure.check::<JobPanicked>().expect("a panic").message, "a hooked message");
        let invariant = Invariant::new().with_bystander();
        let died = failure_of::<WorkerDied, _>(invariant.pool.apply_async(panic_under_a_hook, (true,)));
        assert_eq!(died.exit.signal(), Some(Signal::ABORT.as_raw()));
        assert!(died.stderr.contains("the hook was told") && died.stderr.contains("a hooked message"), "{died:?}");
        invariant.check();
    }

    /// A job panics in a program that was built to abort on panics.
    fn p8_a_panic_that_aborts_is_a_death_that_tells_the_message() {
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("aborts");
        std::fs::create_dir_all(directory.join("src")).expect("a directory");
        let library = env!("CARGO_MANIFEST_DIR");
        let manifest = format!("{ABORTS_MANIFEST}errback = {{ path = {library:?} }}\n");
        std::fs::write(directory.join("Cargo.toml"), manifest).expect("a file");
        std::fs::write(directory.join("src/main.rs"), ABORTS).expect("a file");
        // The versions that this program was built with, which are there without a network.
        std::fs::copy(format!("{library}/Cargo.lock"), directory.join("Cargo.lock")).expect("a lock file");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["run", "--quiet", "--offline"]).current_dir(&directory);
        cargo.env("CARGO_TARGET_DIR", directory.join("target"));
        let output = cargo.stdin(Stdio::null()).output().expect("cargo");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {told}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it held\n");
    }

    /// A task returns an error, of a type that travels and of one that does not.
    fn e2_an_error_comes_back_as_itself_where_it_can_and_otherwise_in_words() {
        let failure = harmless(|pool| pool.apply_async(typed_error, (7,)));
        assert_eq!(failure.check::<OurError>(), Some(&OurError::NoSuchRow(7)));
        let failure = harmless(|pool| pool.apply_async(io_error, ()));
        let remote = failure.check::<RemoteError>().expect("an error of elsewhere");
        assert!(remote.type_name.contains("io::error::Error") || remote.type_name.contains("io::Error"), "{remote:?}");
        assert!(failure.check_name(&remote.type_name), "{failure:?}");
        assert!(remote.message.contains("No such file"), "{remote}");
    }

    /// A waker panics.
    fn p_a_panicking_waker_harms_nobody() {
        struct Bad;
        impl std::task::Wake for Bad {
            fn wake(self: std::sync::Arc<Self>) {
                panic!("a waker that panics")
            }
        }
        let invariant = Invariant::new();
        let job = invariant.pool.apply_async(hold, (invariant.gate.path.clone(),));
        let mut job = Box::pin(job);
        let waker = std::task::Waker::from(std::sync::Arc::new(Bad));
        assert!(Future::poll(job.as_mut(), &mut std::task::Context::from_waker(&waker)).is_pending());
        invariant.gate.held().release();
        job.wait();
        assert_eq!(job.successful(), Some(true));
        drop(job); // it is a handle to the pool
        invariant.check();
    }

    /// Jobs fail in many ways on one worker.
    fn t_the_same_worker_serves_after_errors() {
        let pool = crate::support::pool(1);
        let worker = value(pool.apply_async(worker_pid, ()));
        failure(pool.apply_async(panic_str, ()));
        failure(pool.apply_async(typed_error, (1,)));
        failure(pool.apply_async(give_awkward, (Manner::Panics, Manner::Well)));
        assert_eq!(value(pool.apply_async(worker_pid, ())), worker);
    }
}

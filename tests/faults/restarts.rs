//! R: workers that cannot start, and what their jobs are told.

use std::time::{Duration, Instant};

use errback::{BuildError, Exit, Overloaded, Pool, SpawnFailed, SpawnFailure};

use crate::suite::rows;
use crate::support::{Belongings, Gate, close, failure_of, pool, succeeds, value};
use crate::tasks::*;

fn pool_of(command: &str, arguments: &[&str]) -> Pool {
    crate::support::builder()
        .size(2)
        .command(command, arguments)
        .build()
        .expect("a pool")
}

/// What a job of a pool of such workers is told, which must be soon.
#[track_caller]
fn refused(command: &str, arguments: &[&str]) -> SpawnFailed {
    let before = Belongings::now();
    let pool = pool_of(command, arguments);
    let jobs: Vec<_> = (0..5).map(|n| pool.apply_async(add, (n, 1))).collect();
    let mut failures: Vec<SpawnFailed> = jobs.into_iter().map(failure_of).collect();
    assert!(pool.stats().spawned <= 6, "{:?}", pool.stats());
    close(pool, &before);
    failures.pop().expect("five")
}

rows! {
    /// The worker's command does not exist, or is a directory.
    fn r9_a_command_that_does_not_exist_is_told_at_once() {
        let failed = refused("/no/such/program", &[]);
        assert_eq!(failed.attempts, 1);
        assert!(matches!(failed.reason, SpawnFailure::Refused(_)));
        let text = failed.to_string();
        assert!(text.contains("/no/such/program") && text.contains("check the command"), "{text}");
        let failed = refused("/", &[]);
        assert!(failed.to_string().contains("may be executed"), "{failed}");
    }

    /// Every worker ends at its start.
    fn r1_a_worker_that_ends_at_once_is_given_up_with_its_last_words() {
        let failed = refused("sh", &["-c", "echo no such library >&2; exit 3"]);
        assert!(matches!(failed.reason, SpawnFailure::Ended(Exit::Status(3))), "{failed:?}");
        assert_eq!(failed.attempts, 5);
        assert!(failed.to_string().ends_with("its last words: no such library"), "{failed}");
    }

    /// The worker's command is no worker.
    fn r8_a_program_that_is_no_worker_is_told_apart() {
        // It sends the host's own words back.
        let failed = refused("sh", &["-c", "exec cat <&0 >&0"]);
        assert!(matches!(failed.reason, SpawnFailure::NotAWorker(_)), "{failed:?}");
        let failed = refused("sh", &["-c", "echo HTTP/1.1 400 Bad Request >&0; exec sleep 60"]);
        assert!(failed.to_string().contains("not an errback worker"), "{failed}");
        let failed = refused("sh", &["-c", "exec <&- 0</dev/null; exec sleep 60"]);
        assert!(matches!(failed.reason, SpawnFailure::NotAWorker(_)), "{failed:?}");
    }

    /// A worker says nothing at its start.
    fn r2_a_worker_that_says_nothing_has_until_the_boot_deadline() {
        let before = Belongings::now();
        let builder = crate::support::builder().size(1).boot_deadline(Duration::from_millis(50)).command("sleep", ["60"]);
        let pool = builder.build().expect("a pool");
        let failed = failure_of::<SpawnFailed, _>(pool.apply_async(add, (1, 1)));
        assert!(matches!(failed.reason, SpawnFailure::Silent(_)), "{failed:?}");
        close(pool, &before);
    }

    /// Durations are longer than the clock goes.
    fn r2_the_longest_boot_deadline_and_cpu_limit_are_no_trouble() {
        let before = Belongings::now();
        let builder = crate::support::builder().size(1).boot_deadline(Duration::MAX).cpu_limit(Duration::MAX);
        let pool = builder.initializer(add, (1, 1)).build().expect("a pool");
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
        assert_eq!(pool.stats().spawned, 1);
        close(pool, &before);
    }

    /// Jobs come after all starts have failed.
    fn r1_an_open_breaker_refuses_at_once_and_tries_again_later() {
        let pool = pool_of("false", &[]);
        failure_of::<SpawnFailed, _>(pool.apply_async(add, (1, 1)));
        let spawned = pool.stats().spawned;
        let job = pool.apply_async(add, (1, 1));
        assert!(job.ready(), "it failed on the spot");
        failure_of::<SpawnFailed, _>(job);
        assert_eq!(pool.stats().spawned, spawned);
        // The pause is over within a second after five failures; then one more try is made for the next job.
        let until = Instant::now() + Duration::from_secs(20);
        while pool.stats().spawned == spawned {
            assert!(Instant::now() < until, "no further try");
            failure_of::<SpawnFailed, _>(pool.apply_async(add, (1, 1)));
        }
    }

    /// The first two workers die before they say hello.
    fn k7_r1_a_worker_that_starts_at_the_third_try_is_in_time() {
        // The first ends and the second is killed before they say hello; the third is this program.
        let mark = Gate::new().path.clone();
        let script = format!(
            "n=$(cat {mark}.n 2>/dev/null || echo 0); echo $((n + 1)) > {mark}.n; [ $n = 0 ] && exit 1; [ $n = 1 ] && kill -9 $$; exec {}",
            std::env::current_exe().expect("this binary").display()
        );
        let pool = pool_of("sh", &["-c", &script]);
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
        assert_eq!(pool.stats().failed_starts, 0);
        let _ = std::fs::remove_file(format!("{mark}.n"));
    }

    /// A pool of size 0 is asked for.
    fn t1_a_size_of_zero_is_refused() {
        assert!(matches!(crate::support::builder().size(0).build(), Err(BuildError::ZeroSize)));
    }

    /// A job comes to a full backlog.
    fn t5_a_full_backlog_refuses_at_once() {
        let gate = Gate::new();
        let pool = crate::support::builder().size(1).backlog(2).build().expect("a pool");
        let running = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        let queued: Vec<_> = (0..2).map(|n| pool.apply_async(add, (n, 1))).collect();
        let refused = pool.apply_async(add, (1, 1));
        assert!(refused.ready());
        assert_eq!(failure_of::<Overloaded, _>(refused).backlog, 2);
        held.release();
        value(running);
        assert_eq!(queued.into_iter().map(value).collect::<Vec<_>>(), [1, 2]);
    }

    /// Jobs make pools of their own, four deep.
    fn t3_pools_nest_in_jobs_but_not_without_end() {
        let pool = pool(1);
        assert_eq!(value(pool.apply_async(nested, (0,))), 1);
        assert_eq!(value(pool.apply_async(nested, (2,))), 3);
        let too_deep = pool.apply_async(nested, (3,)).get().expect_err("too deep");
        assert!(too_deep.to_string().contains("may not go deeper"), "{too_deep}");
    }

    /// Eight threads use one pool.
    fn t3_one_pool_serves_many_threads() {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let pool = &pool;
                scope.spawn(move || {
                    let jobs: Vec<_> = (0..500).map(|n| pool.apply_async(add, (n, thread))).collect();
                    let sums: Vec<i64> = jobs.into_iter().map(value).collect();
                    assert_eq!(sums, (thread..500 + thread).collect::<Vec<_>>());
                });
            }
        });
        let stats = pool.stats();
        assert_eq!((stats.submitted, stats.finished, stats.queued, stats.running), (4000, 4000, 0, 0));
    }

    /// One job at a time comes to a pool of four.
    fn t_workers_come_with_the_jobs_and_only_as_many_as_are_needed() {
        let pool = pool(4);
        assert_eq!(pool.stats().workers.len(), 0);
        for n in 0..100 {
            assert_eq!(value(pool.apply_async(add, (n, 1))), n + 1);
        }
        assert_eq!(pool.stats().workers.len(), 1);
        let gate = Gate::new();
        let jobs: Vec<_> = (0..4).map(|_| pool.apply_async(hold, (gate.path.clone(),))).collect();
        let held: Vec<_> = jobs.iter().map(|_| gate.held()).collect();
        assert_eq!(pool.stats().workers.len(), 4);
        held.into_iter().for_each(crate::support::Held::release);
        jobs.into_iter().for_each(succeeds);
    }

    /// A worker starts without an environment, in another directory.
    fn r7_a_worker_needs_no_environment_and_gets_what_it_is_given() {
        let pool = crate::support::builder().size(1).env_clear().env("SAID", "so").current_dir("/").build().expect("a pool");
        assert_eq!(value(pool.apply_async(environment, ("SAID".to_string(),))), Some("so".to_string()));
        assert_eq!(value(pool.apply_async(environment, ("PATH".to_string(),))), None);
        assert_eq!(value(pool.apply_async(working_directory, ())), "/");
    }
}

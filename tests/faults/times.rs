//! S, C and T: jobs that take too long, are asked to stop, or wait too long; alone, and behind others on one worker.

use std::time::{Duration, Instant};

use errback::{AsyncResult, CancelledError, Overloaded, Pool, Task, TimedOut, WhenFull};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{
    Belongings, Gate, Held, Invariant, close, eventually, failure, failure_of, is_alive, kill,
    pool, soon, succeeds, value, whole,
};
use crate::tasks::*;

const MS: Duration = Duration::from_millis(1);

/// A pool to be described whose tiny jobs travel together, in a run without batches too: these rows are about them.
fn batching() -> errback::Builder {
    crate::support::builder().batching(true)
}

/// A pool of one whose worker has so many jobs at once: the first of them holds it at the gate, `last` is submitted after
/// them, and then one more. Jobs go together only if the last ones of their task were short, which a busy machine may
/// belie; so it is tried until they do.
fn together<T>(
    many: usize,
    gate: &Gate,
    mut last: impl FnMut(&Pool) -> AsyncResult<T>,
) -> (Pool, Held, Vec<AsyncResult<i64>>, AsyncResult<T>) {
    loop {
        let pool = warm();
        let opener = pool.apply_async(hold, (gate.path.clone(),));
        let opened = gate.held(); // what comes now goes to the worker at once
        let first = pool.apply_async(touch, (gate.path.clone(), 0));
        let tiny = |n| pool.apply_async(touch, (String::new(), n));
        let mut jobs: Vec<_> = std::iter::once(first)
            .chain((1..many as i64).map(tiny))
            .collect();
        let last = last(&pool);
        jobs.push(tiny(many as i64));
        opened.release();
        succeeds(opener);
        let held = gate.held();
        if pool.stats().running == many + 2 {
            return (pool, held, jobs, last);
        }
    }
}

/// A pool of one whose worker has run many tiny jobs.
fn warm() -> Pool {
    let pool = batching().size(1).build().expect("a pool");
    let jobs: Vec<_> = (0..300)
        .map(|n| pool.apply_async(touch, (String::new(), n)))
        .collect();
    jobs.into_iter().for_each(succeeds);
    pool
}

/// A path at which nothing is.
fn nowhere(name: &str) -> String {
    let path = std::env::temp_dir().join(format!("errback-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path.to_string_lossy().into_owned()
}

rows! {
    /// A worker is stopped in a job with a timeout.
    fn s1_a_stopped_worker_is_killed_when_its_jobs_time_is_up() {
        let mut invariant = Invariant::new().with_bystander();
        let started = Instant::now();
        let victim = invariant.pool.apply_async(hold.timeout(1000 * MS), (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        held.kill(Signal::STOP);
        invariant.queue();
        let late: TimedOut = failure_of(victim);
        assert!(started.elapsed() >= 1000 * MS, "{late:?}");
        assert_eq!((late.limit, late.queued, late.pid), (1000 * MS, false, Some(held.pid)));
        assert!(late.elapsed >= late.limit && late.elapsed < late.limit + soon());
        assert!(late.to_string().contains("hold ran for longer than 1s and was killed"), "{late}");
        assert_eq!(crate::support::state(held.gone()), "", "not even a zombie");
        assert_eq!(invariant.pool.stats().timed_out, 1);
        invariant.check();
    }

    /// An idle worker is stopped; then jobs come that have no timeout.
    fn s2_a_stopped_idle_worker_is_replaced_and_its_job_goes_elsewhere() {
        for stopped in 1..=2 {
            let invariant = Invariant::new();
            let workers = invariant.pool.stats().workers;
            workers[..stopped].iter().for_each(|pid| kill(*pid, Signal::STOP));
            let jobs: Vec<_> = (0..4).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
            assert_eq!(jobs.into_iter().map(value).collect::<Vec<_>>(), [1, 2, 3, 4]);
            if stopped == 2 {
                assert!(workers.iter().any(|pid| !is_alive(*pid)), "one was found out");
            }
            // One that had no job was not missed.
            for pid in invariant.pool.stats().workers {
                kill(pid, Signal::CONT);
            }
            invariant.check();
        }
    }

    /// A job that looks for it is asked to stop.
    fn c2_a_job_that_looks_for_it_stops_when_it_is_cancelled_and_its_worker_lives() {
        let invariant = Invariant::new().with_bystander();
        let before = invariant.pool.stats();
        let victim = invariant.pool.apply_async(until_asked, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        victim.cancel();
        failure_of::<CancelledError, _>(victim);
        let after = invariant.pool.stats();
        assert_eq!((after.died, after.spawned, after.cancelled), (before.died, before.spawned, before.cancelled + 1));
        assert!(is_alive(held.pid) && after.workers.contains(&held.pid));
        drop(held);
        invariant.check();
    }

    /// A job that looks for it has used its time up.
    fn c2_a_job_that_looks_for_it_stops_when_its_time_is_up() {
        let invariant = Invariant::new().with_bystander();
        let died = invariant.pool.stats().died;
        let victim = invariant.pool.apply_async(until_asked.timeout(20 * MS), (invariant.gate.path.clone(),));
        drop(invariant.gate.held());
        let late: TimedOut = failure_of(victim);
        assert_eq!((late.pid, late.queued), (None, false));
        assert!(late.to_string().ends_with(&format!("and was stopped (job {})", late.job)), "{late}");
        assert_eq!(invariant.pool.stats().died, died);
        invariant.check();
    }

    /// A running job is cancelled with no grace, and with one that outlasts it.
    fn c2_the_grace_is_what_was_asked_for() {
        let pool = crate::support::builder().size(1).cancel_grace(Duration::ZERO).build().expect("a pool");
        let gate = Gate::new();
        let job = pool.apply_async(until_asked, (gate.path.clone(),));
        let held = gate.held();
        job.cancel();
        failure_of::<CancelledError, _>(job);
        assert_eq!(crate::support::state(held.gone()), "", "killed at once");
        let pool = crate::support::builder().size(1).cancel_grace(Duration::MAX).build().expect("a pool");
        let job = pool.apply_async(hold, (gate.path.clone(),));
        let held = gate.held();
        job.cancel();
        held.release();
        failure_of::<CancelledError, _>(job);
        assert_eq!(pool.stats().died, 0, "it ended by itself, and its value is dropped");
        assert_eq!(value(pool.apply_async(add, (1, 1))), 2);
    }

    /// A job is cancelled that is with its worker, behind another that runs.
    fn c1_a_job_behind_another_on_its_worker_is_taken_back_and_never_runs() {
        let (gate, mut mark, mut tries) = (Gate::new(), String::new(), 0);
        let (pool, held, jobs, victim) = together(20, &gate, |pool| {
            tries += 1;
            mark = nowhere(&format!("mark-{tries}")); // the victims of other tries may run
            pool.apply_async(touch, (mark.clone(), 0))
        });
        victim.cancel();
        assert!(victim.ready(), "it failed on the spot");
        failure_of::<CancelledError, _>(victim);
        held.release();
        let values: Vec<_> = jobs.into_iter().map(value).collect();
        assert_eq!(values, (0..=20).collect::<Vec<_>>());
        assert!(!std::path::Path::new(&mark).exists(), "it ran");
        assert_eq!(pool.stats().died, 0);
    }

    /// A job is cancelled without a grace that is done, while its worker runs the next one and its answer was not read yet.
    fn c2_a_job_behind_one_that_is_cancelled_too_late_is_not_hit() {
        use std::sync::atomic::Ordering::SeqCst;
        let gate = Gate::new();
        loop {
            let pool = batching().size(1).cancel_grace(Duration::ZERO).build().expect("a pool");
            let warm: Vec<_> = (0..300).map(|_| pool.apply_async(touch_slowly, (String::new(), 0))).collect();
            warm.into_iter().for_each(succeeds);
            let opener = pool.apply_async(hold, (gate.path.clone(),));
            let opened = gate.held();
            Unhurried::AT.store(1, SeqCst);
            let first = pool.apply_async(touch_slowly, (String::new(), 1));
            let victim = pool.apply_async(touch_slowly, (String::new(), 2));
            let other = pool.apply_async(touch_slowly, (gate.path.clone(), 3));
            opened.release();
            succeeds(opener);
            eventually(soon(), "the first is being read", || Unhurried::AT.load(SeqCst) == -1);
            let together = pool.stats().running == 2;
            if together {
                let held = gate.held();
                victim.cancel();
                Unhurried::AT.store(0, SeqCst);
                failure_of::<CancelledError, _>(victim);
                held.release();
                assert_eq!((value(first), value(other)), (Unhurried(1), Unhurried(3)));
                assert_eq!(pool.stats().died, 0);
                return;
            }
            Unhurried::AT.store(0, SeqCst);
            gate.held().release();
            [first, victim, other].into_iter().for_each(succeeds);
        }
    }

    /// A job that runs is cancelled over and over, and then the one behind it on its worker.
    fn c4_a_job_that_is_cancelled_a_thousand_times_leaves_room_to_take_another_back() {
        let (gate, mark) = (Gate::new(), nowhere("flood"));
        loop {
            let pool = batching().size(1).cancel_grace(Duration::MAX).build().expect("a pool");
            let warm: Vec<_> = (0..300).map(|n| pool.apply_async(touch, (String::new(), n))).collect();
            warm.into_iter().for_each(succeeds);
            let opener = pool.apply_async(hold, (gate.path.clone(),));
            let opened = gate.held();
            let first = pool.apply_async(touch, (gate.path.clone(), 1));
            let victim = pool.apply_async(touch, (mark.clone(), 2));
            opened.release();
            succeeds(opener);
            let held = gate.held();
            if pool.stats().running == 2 {
                (0..1000).for_each(|_| first.cancel());
                victim.cancel();
                failure_of::<CancelledError, _>(victim);
                held.release();
                failure_of::<CancelledError, _>(first);
                assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
                assert!(!std::path::Path::new(&mark).exists(), "it ran");
                return;
            }
            held.release();
            succeeds(first);
            succeeds(victim);
            let _ = std::fs::remove_file(&mark);
        }
    }

    /// Of jobs that went to a worker together, the first turns out to take for ever, and is cancelled.
    fn c2_jobs_behind_one_that_is_killed_run_elsewhere_once_each() {
        let gate = Gate::new();
        let (pool, held, mut jobs, last) = together(20, &gate, |pool| pool.apply_async(touch, (String::new(), -1)));
        let victim = jobs.remove(0);
        victim.cancel();
        failure_of::<CancelledError, _>(victim);
        held.gone();
        let values: Vec<_> = jobs.into_iter().map(value).collect();
        assert_eq!(values, (1..=20).collect::<Vec<_>>());
        assert_eq!(value(last), -1);
        eventually(whole(), "it is replaced", || pool.stats().workers.len() == 1);
    }

    /// Of jobs that went to a worker together, the first turns out to take for ever, and another worker has nothing to do.
    fn t1_jobs_behind_a_long_one_go_to_other_workers() {
        let pool = pool(2);
        let warm: Vec<_> = (0..300).map(|n| pool.apply_async(touch, (String::new(), n))).collect();
        warm.into_iter().for_each(succeeds);
        for _ in 0..20 {
            let gate = Gate::new();
            let openers: Vec<_> = (0..2).map(|_| pool.apply_async(hold, (gate.path.clone(),))).collect();
            let opened: Vec<_> = openers.iter().map(|_| gate.held()).collect();
            let long = pool.apply_async(touch, (gate.path.clone(), 0));
            let behind: Vec<_> = (1..40).map(|n| pool.apply_async(touch, (String::new(), n))).collect();
            opened.into_iter().for_each(Held::release);
            let held = gate.held();
            let values: Vec<_> = behind.into_iter().map(value).collect();
            assert_eq!(values, (1..40).collect::<Vec<_>>(), "while the first runs on");
            assert!(!long.ready());
            held.release();
            succeeds(long);
            openers.into_iter().for_each(succeeds);
            let again: Vec<_> = (0..100).map(|n| pool.apply_async(touch, (String::new(), n))).collect();
            again.into_iter().for_each(succeeds); // short again
        }
        let stats = pool.stats();
        assert_eq!((stats.died, stats.spawned, stats.failed), (0, 2, 0));
    }

    /// Batching is turned off.
    fn t1_without_batching_a_worker_has_one_job_at_a_time() {
        let pool = crate::support::builder().size(1).batching(false).build().expect("a pool");
        let jobs: Vec<_> = (0..2000).map(|n| pool.apply_async(touch, (String::new(), n))).collect();
        while pool.stats().queued > 0 {
            assert!(pool.stats().running <= 1);
        }
        let values: Vec<_> = jobs.into_iter().map(value).collect();
        assert_eq!(values, (0..2000).collect::<Vec<_>>());
    }

    /// Of jobs that went to a worker together, one in the middle kills it.
    fn k4_of_jobs_that_go_together_only_the_one_that_ran_fails_when_their_worker_dies() {
        for size in [1, 2, 5] {
            let pool = crate::support::builder().size(size).build().expect("a pool");
            let warm: Vec<_> = (0..200).map(|n| pool.apply_async(add_or_abort, (n, false))).collect();
            warm.into_iter().for_each(succeeds);
            let jobs: Vec<_> = (0..400).map(|n| pool.apply_async(add_or_abort, (n, n % 40 == 20))).collect();
            for (n, job) in jobs.into_iter().enumerate() {
                match n % 40 {
                    20 => assert!(failure_of::<errback::WorkerDied, _>(job).started),
                    _ => assert_eq!(value(job), n as u64 + 1),
                }
            }
        }
    }

    /// A job takes just as long as it may, 1,000 times.
    fn c5_a_timeout_at_the_moment_of_the_answer_has_one_outcome() {
        let pool = crate::support::builder().size(2).cancel_grace(20 * MS).build().expect("a pool");
        let (mut values, mut late) = (0, 0);
        for n in 0..1000_u64 {
            let micros = 50 + n % 300;
            let limit = Duration::from_micros(200);
            let job = pool.apply_async(work.timeout(limit), (micros,));
            let other = pool.apply_async(add, (n as i64, 2));
            match job.get() {
                Ok(done) => {
                    assert_eq!(done, micros);
                    values += 1;
                }
                Err(failure) => {
                    let error = failure.check::<TimedOut>().expect("its time was up");
                    assert!(error.elapsed >= limit, "{error:?}");
                    late += 1;
                }
            }
            assert_eq!(value(other), n as i64 + 2, "a job without a timeout");
        }
        assert!(values > 0 && late > 0, "{values} values, {late} late: no race");
        assert_eq!(pool.stats().timed_out, late);
    }

    /// A job closes the counter of calls; the next one uses up its time, and can be neither counted nor asked.
    fn f1_a_worker_that_does_not_pass_over_a_job_that_was_taken_back_is_replaced() {
        // Nobody can close what is memory.
        let pool = crate::support::builder().size(1).shared_memory(false).build().expect("a pool");
        assert_eq!(value(pool.apply_async(close_counter, ())), 1);
        failure_of::<TimedOut, _>(pool.apply_async(spin.timeout(100 * MS), ()));
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
        assert_eq!(pool.stats().died, 1);
    }

    /// A worker that takes calls back does not read what it is sent.
    fn s2_a_worker_that_does_not_read_is_replaced_when_its_job_was_taken_back() {
        let before = Belongings::now();
        let deaf = nowhere("deaf");
        std::fs::write(&deaf, b"").expect("a file");
        // [2, "hello", [{"protocol": 1, "language": "none", "pipeline": 64}]]
        let script = r#"printf '\0\0\0\054\223\2\245hello\221\203\250protocol\1\250language\244none\250pipeline\100' >&0
            if [ -e "$1" ]; then rm "$1"; sleep 1000; fi; exit 0"#;
        let pool = crate::support::builder().size(1).command("sh", ["-c", script, "sh", &deaf]).build().expect("a pool");
        let late: TimedOut = failure_of(pool.apply_async(add.timeout(1200 * MS), (1, 2)));
        assert!(!late.queued);
        eventually(whole(), "it is buried", || pool.stats().died > 0);
        close(pool, &before);
    }

    /// A timeout is nothing, or longer than the clock goes.
    fn c5_the_shortest_and_the_longest_timeout_are_no_trouble() {
        let invariant = Invariant::new();
        let none = invariant.pool.apply_async(spin.timeout(Duration::ZERO), ());
        failure_of::<TimedOut, _>(none);
        let none = invariant.pool.apply_async(spin.timeout(Duration::from_nanos(1)), ());
        failure_of::<TimedOut, _>(none);
        for long in [Duration::MAX, Duration::from_secs(i64::MAX as u64)] {
            assert_eq!(value(invariant.pool.apply_async(add.timeout(long), (1, 2))), 3);
            assert_eq!(value(invariant.pool.apply_async(add.expires(long), (1, 2))), 3);
        }
        invariant.check();
    }

    /// Jobs wait longer than they may.
    fn c5_a_job_that_waits_too_long_expires_and_does_not_run() {
        let mut invariant = Invariant::new();
        let path = invariant.gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| invariant.pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| invariant.gate.held()).collect();
        let mark = nowhere("expired");
        let late: Vec<_> = (1..=5)
            .map(|n| invariant.pool.apply_async(touch.expires((6 - n) * 20 * MS), (mark.clone(), 0)))
            .collect();
        let at_once = invariant.pool.apply_async(touch.expires(Duration::ZERO), (mark.clone(), 0));
        let patient = invariant.pool.apply_async(add.expires(Duration::from_secs(600)), (1, 2));
        invariant.queue();
        for (n, job) in (1..=5).zip(late) {
            let error: TimedOut = failure_of(job);
            assert_eq!((error.limit, error.queued, error.pid), ((6 - n) * 20 * MS, true, None));
            assert!(error.elapsed >= error.limit);
        }
        failure_of::<TimedOut, _>(at_once);
        held.into_iter().for_each(Held::release);
        busy.into_iter().for_each(succeeds);
        assert_eq!(value(patient), 3);
        assert!(!std::path::Path::new(&mark).exists(), "one ran");
        assert_eq!(invariant.pool.stats().timed_out, 6);
        invariant.check();
    }

    /// The backlog is full.
    fn t5_a_full_backlog_refuses_or_lets_wait_as_asked() {
        for policy in [WhenFull::Refuse, WhenFull::Wait] {
            let before = Belongings::now();
            let pool = crate::support::builder().size(1).backlog(2).when_full(policy).build().expect("a pool");
            let gate = Gate::new();
            let running = pool.apply_async(hold, (gate.path.clone(),));
            let held = gate.held();
            let waiting: Vec<_> = (0..2).map(|n| pool.apply_async(add, (n, 1))).collect();
            assert!(pool.wait_for_room(MS).is_none(), "two may wait, and two do");
            let one_more = pool.apply_async(add, (1, 1));
            held.release();
            succeeds(running);
            waiting.into_iter().for_each(succeeds);
            match policy {
                WhenFull::Wait => assert_eq!(value(one_more), 2),
                _ => assert_eq!(failure_of::<Overloaded, _>(one_more).backlog, 2),
            }
            assert!(pool.wait_for_room(soon()).is_some());
            assert_eq!(value(pool.apply_async(add, (20, 22))), 42);
            drop(gate);
            close(pool, &before);
        }
    }

    /// Very many have waited for room, and do so no more.
    fn t5_those_who_gave_up_waiting_for_room_cost_nothing() {
        let without_pool = Belongings::now();
        let invariant = Invariant::of(crate::support::builder().size(2).backlog(2).build().expect("a pool"), without_pool);
        let path = invariant.gate.path.clone();
        let running: Vec<_> = (0..2).map(|_| {
            let job = invariant.pool.apply_async(hold, (path.clone(),));
            (job, invariant.gate.held())
        }).collect();
        let waiting: Vec<_> = (0..2).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
        for _ in 0..100_000 {
            assert!(invariant.pool.wait_for_room(Duration::ZERO).is_none());
        }
        let patient = invariant.pool.clone();
        let patient = std::thread::spawn(move || patient.wait_for_room(soon()).is_some());
        for (job, held) in running {
            held.release();
            succeeds(job);
        }
        waiting.into_iter().for_each(succeeds);
        assert!(patient.join().expect("no panic"));
        invariant.check();
    }

    /// No worker can be started, and the jobs that waited fail.
    fn t5_those_who_wait_for_room_are_told_when_the_jobs_are_given_up() {
        let pool = crate::support::builder().size(1).backlog(1).command("sh", ["-c", "sleep 0.05; exit 1"]).build().expect("a pool");
        let job = pool.apply_async(add, (1, 1));
        let waits = pool.clone();
        let waits = std::thread::spawn(move || waits.wait_for_room(whole()).is_some());
        failure_of::<errback::SpawnFailed, _>(job);
        assert!(waits.join().expect("no panic"), "nobody told");
    }

    /// Producers wait for room while the pool closes.
    fn t5_those_who_wait_for_room_are_told_of_the_end() {
        let pool = crate::support::builder().size(1).backlog(0).build().expect("a pool");
        let waiting: Vec<_> = (0..3).map(|_| {
            let pool = pool.clone();
            std::thread::spawn(move || pool.wait_for_room(Duration::from_secs(60)).is_some())
        }).collect();
        pool.terminate();
        assert!(waiting.into_iter().all(|thread| thread.join().expect("no panic")));
        failure(pool.apply_async(add, (1, 1))).trap::<errback::PoolClosed>().expect("it is closed");
    }

    /// A worker uses more CPU, or opens more files, than it may.
    fn x5_limits_of_cpu_and_descriptors_hold() {
        let limited = crate::support::builder().size(1).cpu_limit(Duration::from_millis(700)).build().expect("a pool");
        let died: errback::WorkerDied = failure_of(limited.apply_async(spin, ()));
        assert_eq!(died.exit.signal(), Some(24), "SIGXCPU: {died}");
        assert!(died.usage.user + died.usage.system >= Duration::from_millis(500), "{:?}", died.usage);
        assert_eq!(value(limited.apply_async(add, (1, 2))), 3);
        let limited = crate::support::builder().size(pool(1).size()).open_files_limit(20).build().expect("a pool");
        let opened = value(limited.apply_async(open_files, (100,)));
        assert!((1..20).contains(&opened), "{opened}");
        assert_eq!(value(limited.apply_async(add, (1, 2))), 3);
    }
}

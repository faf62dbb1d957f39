//! F, M6 to M8: descriptors, output, forks, and much of everything.

use std::time::{Duration, Instant};

use errback::{EncodeError, Failure, Pool, WorkerDied};
use rustix::process::Signal;

use crate::suite::rows;
use crate::support::{
    Belongings, Gate, Held, Invariant, descriptors, eventually, failure, is_alive, succeeds, value,
    whole,
};
use crate::tasks::*;

fn invariant() -> Invariant {
    let before = Belongings::now();
    Invariant::of(pool(2), before)
}

rows! {
    fn f1_a_job_that_closes_all_descriptors_fails_alone() {
        let invariant = invariant().with_bystander();
        match invariant.pool.apply_async(close_descriptors, (3, 1024)).get() {
            Ok(_) => panic!("it has closed its connection"),
            Err(failure) => assert!(failure.is::<WorkerDied>() || failure.is::<errback::ProtocolError>(), "{failure:?}"),
        }
        invariant.check();
    }

    fn f2_a_job_that_takes_the_standard_descriptors_gets_no_protocol_into_its_files() {
        let before = Belongings::now();
        let invariant = Invariant::of(builder().size(1).build().expect("a pool"), before);
        let path = format!("{}.file", invariant.gate.path);
        let taken = value(invariant.pool.apply_async(take_standard_descriptors, (path.clone(),)));
        assert!(taken.contains(&1) && taken.contains(&2), "{taken:?}");
        for n in 0..10 {
            assert_eq!(value(invariant.pool.apply_async(add, (n, 1))), n + 1);
        }
        assert_eq!(std::fs::read(&path).expect("its file"), b"mineminemine");
        std::fs::remove_file(path).expect("its file");
        invariant.check();
    }

    fn f5_what_a_job_starts_has_nothing_of_the_connection() {
        let invariant = invariant();
        let text = errback::PythonTask::<(String,), String>::named("faulty:evaluated").expect("a name");
        let listing = "__import__('subprocess').run(['ls', '-l', '/proc/self/fd'], close_fds=False, capture_output=True, text=True).stdout";
        let listing = value(invariant.pool.apply_async(text, (listing.to_owned(),)));
        assert!(listing.contains("/proc/") && listing.contains("0 -> "), "{listing}");
        assert!(!listing.contains("socket:") && !listing.contains("anon_inode"), "{listing}");
        invariant.check();
    }

    fn f3_a_job_may_print_as_much_as_it_likes() {
        let before = Belongings::now();
        let invariant = Invariant::of(builder().size(2).pass_output(false).build().expect("a pool"), before);
        assert_eq!(value(invariant.pool.apply_async(print_much, (10 << 20,))), 10 << 20);
        invariant.check();
    }

    fn f4_what_a_job_leaves_behind_dies_with_its_worker() {
        for (how, dies) in [("kill", true), ("leave", true), ("answer", false)] {
            let mut invariant = invariant().with_bystander();
            let job = invariant.pool.apply_async(leave_a_child, (invariant.gate.path.clone(), how.to_string()));
            let child = invariant.gate.held();
            invariant.queue();
            if dies {
                assert!(failure(job).is::<WorkerDied>());
            } else {
                let worker = value(job);
                assert!(is_alive(child.pid));
                crate::support::kill(worker, Signal::KILL);
            }
            eventually(whole(), "the grandchild is gone", || !is_alive(child.pid));
            drop(child);
            invariant.check();
        }
    }

    fn f8_queued_jobs_cost_no_descriptors() {
        let invariant = invariant();
        let path = invariant.gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| invariant.pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| invariant.gate.held()).collect();
        let before = descriptors();
        let queued: Vec<_> = (0..10_000).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
        assert_eq!(descriptors(), before);
        held.into_iter().for_each(Held::release);
        busy.into_iter().for_each(succeeds);
        for (n, job) in queued.into_iter().enumerate() {
            assert_eq!(value(job), n as i64 + 1);
        }
        invariant.check();
    }

    fn m6_payloads_of_all_sizes_come_back_whole_or_are_refused() {
        let invariant = invariant();
        for size in [0, 1, 65_535, 65_536, 65_537, 1 << 20, 256 << 20] {
            let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            assert!(value(invariant.pool.apply_async(echo, (bytes.clone(),))) == bytes, "{size}");
        }
        invariant.check();
        let small = builder().size(1).max_message(100_000).build().expect("a pool");
        let refused: Failure = failure(small.apply_async(echo, (vec![0; 200_000],)));
        assert!(refused.is::<EncodeError>(), "{refused:?}");
        // Its answer is longer than the call.
        let long = errback::python::<(String,), String>("faulty:evaluated");
        let refused = failure(small.apply_async(long, ("'x' * 200_000".into(),)));
        assert!(refused.to_string().contains("needs"), "{refused}");
        succeeds(small.apply_async(add, (1, 1)));
    }

    fn m7_workers_with_big_answers_wait_for_nobody() {
        let invariant = invariant();
        let jobs: Vec<_> = (0..2).map(|n| invariant.pool.apply_async(echo, (vec![n; 100 << 20],))).collect();
        for (n, job) in jobs.into_iter().enumerate() {
            assert!(value(job).iter().all(|byte| usize::from(*byte) == n));
        }
        invariant.check();
    }

    fn m8_a_submit_never_waits() {
        let invariant = invariant();
        let path = invariant.gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| invariant.pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| invariant.gate.held()).collect();
        let bytes = vec![0; 16 << 20];
        let began = Instant::now();
        let big = invariant.pool.apply_async(echo, (bytes,));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        held.into_iter().for_each(Held::release);
        busy.into_iter().for_each(succeeds);
        assert_eq!(value(big).len(), 16 << 20);
        invariant.check();
    }

    fn t1_many_jobs_keep_their_order_and_their_memory() {
        let pool: Pool = pool(2);
        // Both workers are there before their memory is looked at, and have done what they will do.
        let gate = Gate::new();
        let path = gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| gate.held()).collect();
        held.into_iter().for_each(Held::release);
        busy.into_iter().for_each(succeeds);
        pool.map(add, (0..100_000).map(|n| (n, 1))).for_each(|sum| assert!(sum.is_ok()));
        let results: Vec<i64> = pool.map(add, (0..100_000).map(|n| (n, 1))).collect::<Result<_, _>>().expect("sums");
        assert_eq!(results, (1..=100_000).collect::<Vec<i64>>());
        let memory = |pid| crate::support::status(pid, "VmRSS").parse::<u64>().expect("kilobytes");
        let before: u64 = pool.stats().workers.into_iter().map(memory).sum();
        pool.map(add, (0..200_000).map(|n| (n, 1))).for_each(|sum| assert!(sum.is_ok()));
        let after: u64 = pool.stats().workers.into_iter().map(memory).sum();
        assert!(after < before + before / 10, "{before} kB, then {after} kB");
    }
}

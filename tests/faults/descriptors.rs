//! F: descriptors closed, inherited, used up; and output that nobody reads.

use errback::{Exit, ProtocolError, WorkerDied};
use rustix::process::{Resource, Rlimit, Signal};

use crate::suite::rows;
use crate::support::{
    Belongings, Invariant, close, eventually, failure_of, kill, pool, succeeds, value,
};
use crate::tasks::*;

rows! {
    /// A job closes all descriptors above 2.
    fn f1_a_job_that_closes_all_descriptors_hurts_itself_only() {
        let invariant = Invariant::new().with_bystander();
        let job = invariant.pool.apply_async(close_descriptors, (3, 1024));
        // What it answers in shared memory, before its worker is found to be of no more use, counts.
        if let Err(failure) = job.get_timeout(crate::support::soon()).expect("it ends") {
            assert!(failure.is::<WorkerDied>() || failure.is::<ProtocolError>(), "{failure:?}");
        }
        invariant.check();
    }

    /// A job closes the bells of its worker.
    fn f1_a_job_that_closes_the_bells_loses_no_other_job() {
        let pool = crate::support::builder().size(1).shared_memory(true).build().expect("a pool");
        assert!(value(pool.apply_async(close_counter, ())) >= 2);
        for n in 0..10 {
            assert_eq!(value(pool.apply_async(add, (n, 1))), n + 1);
        }
        assert_eq!(pool.stats().died, 1);
    }

    /// A job closes its standard descriptors.
    fn f2_a_job_may_close_the_standard_descriptors() {
        let invariant = Invariant::new();
        let worker = value(invariant.pool.apply_async(close_descriptors, (0, 3)));
        assert!(crate::support::is_alive(worker));
        invariant.check();
    }

    /// A job writes 10 MiB without a newline to stdout and stderr.
    fn f3_output_without_end_blocks_no_job() {
        let invariant = Invariant::new();
        assert_eq!(value(invariant.pool.apply_async(print, (10 << 20,))), 10 << 20);
        invariant.check();
    }

    /// A worker is killed whose child keeps all its descriptors.
    fn f4_a_grandchild_that_keeps_everything_open_delays_nothing() {
        let invariant = Invariant::new().with_bystander();
        let victim = invariant.pool.apply_async(spawn_sleeper_and_hold, (invariant.gate.path.clone(),));
        let held = invariant.gate.held();
        let grandchild = held.pid; // it says the grandchild's
        let worker = invariant.other_than_bystander(&invariant.pool.stats().workers).expect("two workers");
        kill(worker, Signal::KILL);
        assert_eq!(failure_of::<WorkerDied, _>(victim).exit.signal(), Some(Signal::KILL.as_raw()));
        eventually(crate::support::whole(), "the group is killed", || !crate::support::is_alive(grandchild));
        drop(held);
        invariant.check();
    }

    /// The same, and the child has left the group.
    fn f4_a_grandchild_in_a_group_of_its_own_delays_nothing_either() {
        let invariant = Invariant::new();
        let (worker, grandchild) = value(invariant.pool.apply_async(spawn_sleeper, (true,)));
        kill(worker, Signal::KILL);
        eventually(crate::support::whole(), "it is replaced", || {
            let workers = invariant.pool.stats().workers;
            workers.len() == 2 && !workers.contains(&worker)
        });
        kill(grandchild, Signal::KILL);
        invariant.check();
    }

    /// A job exits whose child keeps all its descriptors.
    fn f4_a_job_that_exits_over_its_grandchild_fails_at_once() {
        let invariant = Invariant::new().with_bystander();
        let died = failure_of::<WorkerDied, _>(invariant.pool.apply_async(spawn_sleeper_and_exit, ()));
        assert_eq!(died.exit, Exit::Status(0));
        // Its group is killed with it, and nobody else waits for it.
        let grandchild = died.stderr.trim().parse().expect("a pid");
        eventually(crate::support::whole(), "the group is killed", || !crate::support::is_alive(grandchild));
        invariant.check();
    }

    /// A program that a job starts looks for the worker's connection.
    fn f5_what_a_job_starts_has_nothing_of_the_connection() {
        let invariant = Invariant::new();
        let listing = value(invariant.pool.apply_async(descriptors_of_a_child, ()));
        assert!(listing.contains("/proc/") && listing.contains("0 -> "), "{listing}");
        assert!(!listing.contains("socket:") && !listing.contains("anon_inode"), "{listing}");
        invariant.check();
    }

    /// There are no descriptors left for a worker.
    fn f6_without_descriptors_jobs_fail_typed_and_the_pool_recovers() {
        let before = Belongings::now();
        let pool = pool(2);
        let limits = rustix::process::getrlimit(Resource::Nofile);
        let scarce = crate::support::descriptors() as u64 + 2;
        let scarce = Rlimit { current: Some(scarce), maximum: limits.maximum };
        rustix::process::setrlimit(Resource::Nofile, scarce).expect("a lower limit");
        let failed = failure_of::<errback::SpawnFailed, _>(pool.apply_async(add, (1, 1)));
        assert!(failed.to_string().contains("open files"), "{failed}");
        rustix::process::setrlimit(Resource::Nofile, limits).expect("the old limit");
        eventually(crate::support::whole(), "a job succeeds again", || pool.apply_async(add, (1, 1)).get().is_ok());
        close(pool, &before);
    }

    /// A job waits while there are no descriptors, and then some again.
    fn f6_a_job_that_waits_through_the_scarcity_is_not_lost() {
        let pool = pool(2);
        let limits = rustix::process::getrlimit(Resource::Nofile);
        let scarce = crate::support::descriptors() as u64 + 2;
        let scarce = Rlimit { current: Some(scarce), maximum: limits.maximum };
        rustix::process::setrlimit(Resource::Nofile, scarce).expect("a lower limit");
        let job = pool.apply_async(add, (1, 1));
        eventually(crate::support::whole(), "a start has failed", || pool.stats().failed_starts > 0);
        rustix::process::setrlimit(Resource::Nofile, limits).expect("the old limit");
        assert_eq!(value(job), 2);
    }

    /// 10,000 jobs are queued.
    fn f8_queued_jobs_cost_no_descriptors() {
        let invariant = Invariant::new();
        let path = invariant.gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| invariant.pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| invariant.gate.held()).collect();
        let before = crate::support::descriptors();
        let queued: Vec<_> = (0..10_000).map(|n| invariant.pool.apply_async(add, (n, 1))).collect();
        assert_eq!(crate::support::descriptors(), before);
        held.into_iter().for_each(crate::support::Held::release);
        busy.into_iter().for_each(succeeds);
        queued.into_iter().enumerate().for_each(|(n, job)| assert_eq!(value(job), n as i64 + 1));
        invariant.check();
    }

    /// The host has an inheritable descriptor open.
    fn f_a_worker_has_its_socket_its_count_and_nothing_of_the_hosts() {
        let secret = std::fs::File::open("/etc/passwd").expect("a file");
        rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).expect("inheritable");
        let pool = pool(2);
        let gate = crate::support::Gate::new();
        let jobs: Vec<_> = (0..2).map(|_| pool.apply_async(hold, (gate.path.clone(),))).collect();
        jobs.iter().map(|_| gate.held()).collect::<Vec<_>>().into_iter().for_each(crate::support::Held::release);
        for job in [pool.apply_async(open_descriptors, ()), pool.apply_async(open_descriptors, ())] {
            let open = value(job);
            let sockets = open.iter().filter(|name| name.starts_with("socket:")).count();
            assert_eq!(sockets, 2, "{open:?}");
            assert!(!open.iter().any(|name| name.contains("passwd")), "{open:?}");
        }
    }
}

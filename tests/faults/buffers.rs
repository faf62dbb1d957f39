//! F9, F10, M6, M7: large buffers, which travel in shared memory, and what becomes of them where there is none.

use std::time::{Duration, Instant};

use errback::{Buffer, EncodeError, Pool, defer_to_process_pool, gather_results};
use rustix::process::{Resource, Rlimit};

use crate::loops::on_a_reactor;
use crate::suite::rows;
use crate::support::{
    Belongings, Invariant, affordable, builder, close, eventually, failure, pool, value,
};
use crate::tasks::*;

const LARGE: usize = 1 << 20;

/// A buffer that is not the same everywhere, made quickly also where nothing is optimised.
fn pattern(size: usize) -> Buffer {
    let part: Vec<u8> = (0..65_521_u32).map(|n| (n ^ n >> 7) as u8).collect();
    Buffer::with_len(size, |bytes| {
        for chunk in bytes.chunks_mut(part.len()) {
            chunk.copy_from_slice(&part[..chunk.len()]);
        }
    })
}

/// There and back, again and again, by a worker that keeps nothing.
fn echoes(pool: &Pool, size: usize) {
    for _ in 0..3 {
        let bytes = pattern(size);
        assert!(value(pool.apply_async(echo_buffer, (bytes.clone(),))) == bytes);
    }
}

rows! {
    /// An argument and a result of 256 MiB, as buffers.
    fn m6_a_buffer_of_a_quarter_of_a_gib_comes_back_equal() {
        let invariant = Invariant::new();
        let bytes = pattern(affordable(256 << 20, 6));
        assert!(value(invariant.pool.apply_async(echo_buffer, (bytes.clone(),))) == bytes);
        drop(bytes);
        Buffer::trim();
        invariant.check();
    }

    /// Two workers answer buffers of 256 MiB each while the reactor's thread is busy for two seconds.
    fn m7_large_buffers_do_not_wait_for_a_busy_reactor() {
        let invariant = Invariant::new();
        let pool = invariant.pool.clone();
        let size = affordable(256 << 20, 6);
        let answers = on_a_reactor(move |reactor| {
            let busy = Instant::now() + Duration::from_secs(2);
            let answers = [1, 2].map(|byte| defer_to_process_pool(reactor, &pool, fill_buffer, (byte, size)));
            eventually(Duration::from_secs(60), "the waiters read on", || {
                Instant::now() > busy && pool.stats().running == 0
            });
            gather_results(answers)
        });
        let answers = answers.expect("two answers");
        assert!(answers[0] == vec![1; size] && answers[1] == vec![2; size]);
        drop(answers);
        Buffer::trim();
        invariant.check();
    }

    /// A filter denies memfd_create to the host and its workers, and one memory to its files.
    fn f9_without_shared_memory_buffers_travel_in_the_message() {
        let before = Belongings::now();
        deny(libc::SYS_memfd_create, libc::EPERM);
        let pool = builder().size(2).max_message(4 << 20).build().expect("a pool");
        echoes(&pool, LARGE);
        let too_large = pool.apply_async(echo_buffer, (pattern(5 << 20),));
        assert!(failure(too_large).is::<EncodeError>());
        echoes(&pool, LARGE);
        assert_eq!(pool.stats().died, 0);
        close(pool, &before);
    }

    /// There is no memory for shared memory, in the host, and then in a worker alone.
    fn f9_memory_that_is_not_to_be_had_is_noticed_before_it_is_used() {
        let before = Belongings::now();
        let pool = pool(2);
        echoes(&pool, LARGE);
        let denied = pool.apply_async(deny_in_worker, (libc::SYS_fallocate, libc::ENOSPC));
        value(denied);
        echoes(&pool, 3 * LARGE);
        echoes(&pool, 3 * LARGE);
        deny(libc::SYS_fallocate, libc::ENOMEM);
        echoes(&pool, 5 * LARGE);
        assert_eq!(pool.stats().died, 0);
        Buffer::trim();
        close(pool, &before);
    }

    /// Files may not be so large, in the host and in its workers.
    fn f9_a_limit_of_files_is_no_signal() {
        let before = Belongings::now();
        let old = rustix::process::getrlimit(Resource::Fsize);
        let limit = Rlimit { current: Some(LARGE as u64 / 2), ..old };
        rustix::process::setrlimit(Resource::Fsize, limit).expect("a lower limit");
        let pool = pool(1);
        echoes(&pool, LARGE);
        assert_eq!(pool.stats().died, 0);
        rustix::process::setrlimit(Resource::Fsize, old).expect("the old limit");
        close(pool, &before);
    }

    /// The host has no descriptors left when its buffers are made and when answers come.
    fn f9_without_descriptors_buffers_travel_in_the_message() {
        let before = Belongings::now();
        let pool = pool(1);
        value(pool.apply_async(add, (1, 1)));
        let old = rustix::process::getrlimit(Resource::Nofile);
        let open = std::fs::read_dir("/proc/self/fd").expect("/proc").count() as u64;
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(open), ..old }).expect("a lower limit");
        let bytes = pattern(LARGE);
        let sum = pool.apply_async(length_of_buffer, (bytes,));
        assert_eq!(value(sum), LARGE);
        rustix::process::setrlimit(Resource::Nofile, old).expect("the old limit");
        echoes(&pool, LARGE);
        Buffer::trim();
        close(pool, &before);
    }

    /// A job writes to the memory that it was given, truncates it, takes pages out of it, and does the same to its result's.
    fn f10_seals_keep_shared_memory_as_it_is() {
        let before = Belongings::now();
        let pool = pool(1);
        let bytes = pattern(LARGE);
        for _ in 0..3 {
            let (succeeded, result) = value(pool.apply_async(tamper, (bytes.clone(),)));
            assert!(succeeded.is_empty(), "{succeeded:?}");
            assert!(bytes == pattern(LARGE) && result == bytes);
        }
        assert_eq!(pool.stats().died, 0);
        drop(bytes);
        Buffer::trim();
        close(pool, &before);
    }

    /// A worker dies while the host reads its result in place, and another while it reads its argument.
    fn f10_memory_outlives_who_made_it() {
        let before = Belongings::now();
        let pool = builder().size(1).trust_workers(true).build().expect("a pool");
        let results: Vec<Buffer> = (0..3).map(|byte| value(pool.apply_async(fill_buffer, (byte, LARGE)))).collect();
        failure(pool.apply_async(abort_with_buffer, (results[0].clone(),)));
        echoes(&pool, LARGE);
        for (byte, result) in (0..).zip(results) {
            assert!(result == vec![byte; LARGE]);
        }
        Buffer::trim();
        close(pool, &before);
    }

    /// A job's child goes on reading what the job was given, when the job is done and when its worker is dead.
    fn f10_what_a_child_reads_is_not_used_again() {
        let before = Belongings::now();
        let pool = pool(1);
        let gate = crate::support::Gate::new();
        for _ in 0..2 {
            // The child says by its number of bytes whether they are as they were.
            let job = pool.apply_async(read_in_child, (pattern(LARGE), gate.path.clone()));
            let child = gate.held();
            value(job);
            echoes(&pool, LARGE + 1);
            (0..3).for_each(|byte| assert_eq!(value(pool.apply_async(length_of_buffer, (Buffer::from(vec![byte; LARGE]),))), LARGE));
            assert!(child.finds_all_well());
            failure(pool.apply_async(abort, ()));
        }
        drop(gate);
        Buffer::trim();
        close(pool, &before);
    }
}

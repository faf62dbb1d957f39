//! A pool without any event loop, as a program uses it: results, maps, and where they can be waited for.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use errback::{EncodeError, JobPanicked, Pool, WorkerDied};

#[errback::task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[errback::task]
fn square_of(n: i64) -> i64 {
    n * n
}

#[errback::task]
fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

/// A process that its job forks does not answer in its name.
#[errback::task]
#[allow(unsafe_code)]
fn fork_and_add(a: i64, b: i64) -> i64 {
    unsafe extern "C" {
        fn fork() -> i32;
    }
    // SAFETY: the child goes on as the worker would, and dies of it; that is what this is about.
    unsafe { fork() };
    a + b
}

#[errback::task]
fn reciprocal(n: i64) -> Result<f64, String> {
    match n {
        0 => Err("a division by zero".to_string()),
        n => Ok(1.0 / n as f64),
    }
}

#[errback::task]
fn abort_at(n: i64) -> i64 {
    match n {
        13 => std::process::abort(),
        n => n,
    }
}

#[errback::task]
fn panic_at(n: i64) -> i64 {
    assert_ne!(n, 13, "on purpose");
    n
}

#[errback::task]
fn length_of(bytes: Vec<u8>) -> usize {
    bytes.len()
}

#[errback::task]
fn nothing() {}

#[errback::task]
fn process() -> u32 {
    std::process::id()
}

#[errback::task]
fn nap(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[errback::task]
fn nap_and_abort(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
    std::process::abort();
}

fn pool(size: usize) -> Pool {
    Pool::builder().size(size).build().expect("a pool")
}

#[test]
fn a_job_runs_in_another_process_and_its_result_comes_back() {
    let pool = pool(1);
    assert_eq!(pool.apply_async(add, (1, 2)).get().expect("a sum"), 3);
    assert_ne!(
        pool.apply_async(process, ()).get().expect("a pid"),
        std::process::id()
    );
    assert_eq!(square_of(7), 49, "it can still be called");
}

#[test]
fn an_error_is_the_failure() {
    let failure = pool(1)
        .apply_async(reciprocal, (0,))
        .get()
        .expect_err("no reciprocal");
    assert_eq!(failure.to_string(), "a division by zero");
}

#[test]
fn a_result_can_be_asked_whether_it_is_there() {
    let pool = pool(1);
    let result = pool.apply_async(add, (1, 2));
    result.wait();
    assert!(result.ready());
    assert_eq!(result.successful(), Some(true));
    assert!(result.wait_timeout(Duration::ZERO));
    assert_eq!(
        result
            .get_timeout(Duration::ZERO)
            .expect("it is there")
            .expect("a sum"),
        3
    );
    let failed = pool.apply_async(reciprocal, (0,));
    failed.wait();
    assert_eq!(failed.successful(), Some(false));
}

#[test]
fn a_result_that_is_late_is_not_lost() {
    let pool = pool(1);
    let gate = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let result = pool.apply_async(
        wait_for_connection_to_end,
        (gate.local_addr().expect("bound").port(),),
    );
    let (stream, _) = gate.accept().expect("the job connects");
    let result = result
        .get_timeout(Duration::from_millis(1))
        .expect_err("it waits for us");
    assert!(!result.ready() && result.successful().is_none());
    drop(stream);
    result.get().expect("nothing");
}

#[errback::task]
fn wait_for_connection_to_end(port: u16) {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the test listens");
    std::io::Read::read(&mut stream, &mut [0]).expect("an end");
}

/// Tells a channel.
struct Tell(Sender<()>);

impl Wake for Tell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

#[test]
fn a_result_is_a_future() {
    let pool = pool(1);
    let mut result = pin!(pool.apply_async(add, (1, 2)));
    let (sender, woken) = channel();
    let waker = Waker::from(Arc::new(Tell(sender)));
    let mut context = Context::from_waker(&waker);
    let sum = loop {
        match result.as_mut().poll(&mut context) {
            Poll::Ready(sum) => break sum,
            Poll::Pending => woken.recv().expect("a wake"),
        }
    };
    assert_eq!(sum.expect("a sum"), 3);
}

#[test]
fn a_map_gives_results_in_the_order_of_the_items() {
    let pool = pool(2);
    let squares: Result<Vec<i64>, _> = pool.map(square_of, 0..10_000).collect();
    assert_eq!(
        squares.expect("squares"),
        (0..10_000).map(|n| n * n).collect::<Vec<_>>()
    );
    let sums: Vec<i64> = pool
        .map(add, [(1, 2), (3, 4)])
        .map(|sum| sum.expect("a sum"))
        .collect();
    assert_eq!(sums, [3, 7]);
    assert_eq!(pool.map(nothing, [(), ()]).count(), 2);
    assert_eq!(pool.map(square_of, Vec::<i64>::new()).count(), 0);
}

#[test]
fn a_map_works_with_any_chunk() {
    let pool = pool(2);
    for size in [1, 2, 7, 100, 1000] {
        let squares: Result<Vec<i64>, _> = pool.map(square_of, 0..100).chunk_size(size).collect();
        assert_eq!(
            squares.expect("squares"),
            (0..100).map(|n| n * n).collect::<Vec<_>>(),
            "{size}"
        );
    }
}

#[test]
fn a_map_as_completed_gives_each_item_once_with_its_number() {
    let pool = pool(2);
    let mut squares: Vec<(usize, i64)> = pool
        .map(square_of, 0..1000)
        .chunk_size(10)
        .as_completed()
        .map(|(index, square)| (index, square.expect("a square")))
        .collect();
    squares.sort_unstable();
    assert_eq!(
        squares,
        (0..1000).map(|n| (n, (n * n) as i64)).collect::<Vec<_>>()
    );
}

#[test]
fn a_map_takes_from_an_endless_source_as_it_is_consumed() {
    let pool = pool(2);
    let taken = std::cell::Cell::new(0);
    let source = std::iter::repeat_with(|| {
        taken.set(taken.get() + 1);
        2
    });
    let squares: Vec<i64> = pool
        .map(square_of, source)
        .take(100)
        .map(|square| square.expect("a square"))
        .collect();
    assert_eq!(squares, [4; 100]);
    assert!(taken.get() < 100_000, "{} were taken", taken.get());
}

#[test]
fn each_item_of_a_map_has_its_own_failure() {
    let pool = pool(2);
    let results: Vec<_> = pool.map(reciprocal, -2..=2).collect();
    let values: Vec<Option<f64>> = results
        .iter()
        .map(|result| result.as_ref().ok().copied())
        .collect();
    assert_eq!(values, [Some(-0.5), Some(-1.0), None, Some(1.0), Some(0.5)]);
    let results: Vec<_> = pool.map(panic_at, 0..100).chunk_size(100).collect();
    assert!(
        results[13]
            .as_ref()
            .is_err_and(|failure| failure.is::<JobPanicked>())
    );
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 99);
}

#[test]
fn a_death_in_a_map_fails_its_chunk_only() {
    let pool = pool(2);
    let results: Vec<_> = pool.map(abort_at, 0..100).chunk_size(10).collect();
    let died = |n: usize| {
        results[n]
            .as_ref()
            .is_err_and(|failure| failure.is::<WorkerDied>())
    };
    assert!((10..20).all(died), "{results:?}");
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 90);
    let results: Vec<_> = pool.map(abort_at, 0..100).chunk_size(1).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 99);
}

#[test]
fn a_map_whose_chunks_are_too_large_sends_smaller_ones() {
    let pool = Pool::builder()
        .size(2)
        .max_message(100_000)
        .build()
        .expect("a pool");
    let sizes = [10, 60_000, 60_000, 200_000, 60_000, 20];
    let lengths: Vec<_> = pool
        .map(length_of, sizes.map(|size| vec![0; size]))
        .chunk_size(6)
        .collect();
    for (length, size) in lengths.into_iter().zip(sizes) {
        match length {
            Ok(length) => assert_eq!(length, size),
            Err(failure) => assert!(
                size == 200_000 && failure.is::<EncodeError>(),
                "{size}: {failure:?}"
            ),
        }
    }
}

#[test]
fn a_map_of_a_closed_pool_fails_each_item() {
    let pool = pool(2);
    pool.close();
    let results: Vec<_> = pool.map(square_of, 0..10).collect();
    assert_eq!(results.len(), 10);
    assert!(results.iter().all(|result| {
        result
            .as_ref()
            .is_err_and(|failure| failure.is::<errback::PoolClosed>())
    }));
}

#[test]
fn jobs_are_run_whether_or_not_one_looks_before_one_sleeps() {
    for spin in [0, 20, 1_000_000].map(Duration::from_micros) {
        let pool = Pool::builder().size(2).spin(spin).build().expect("a pool");
        let alone = (0..100).map(|n| pool.apply_async(add, (n, 1)).get());
        assert!(alone.map(Result::unwrap).eq(1..=100));
        let together: Vec<_> = (0..100).map(|n| pool.apply_async(add, (n, 1))).collect();
        let together = together.into_iter().map(|sum| sum.get().expect("a sum"));
        assert!(together.eq(1..=100));
        pool.close();
        assert!(
            pool.join_timeout(Duration::from_secs(60)),
            "it ends all the same"
        );
    }
}

#[errback::task]
fn block(bytes: Vec<u8>, length: usize) -> (usize, Vec<u8>) {
    (bytes.len(), vec![7; length])
}

#[test]
fn small_and_large_messages_follow_each_other_in_any_order() {
    // About the lengths at which another way is taken: with others, in the lane, over the socket, in memory of its own.
    let sent = [0, 100, 100, 100, 4_000, 100, 5_000, 17_000, 300_000];
    let asked = [0, 100, 17_000, 100, 300_000];
    for (lane, buffers) in [
        (false, None),
        (true, None),
        (false, Some(65_536)),
        (true, Some(65_536)),
    ] {
        let builder = Pool::builder().size(2).shared_memory(lane);
        let pool = builder.shared_buffers(buffers).build().expect("a pool");
        // Short jobs go together from here on.
        let short = (0..100).map(|_| pool.apply_async(block, (vec![], 0)).get());
        assert!(short.map(Result::unwrap).eq((0..100).map(|_| (0, vec![]))));
        let all: Vec<_> = (0..300)
            .map(|n| (sent[n / 7 % sent.len()], asked[n * 3 % asked.len()]))
            .map(|(sent, asked)| (sent, asked, pool.apply_async(block, (vec![1; sent], asked))))
            .collect();
        for (n, (sent, asked, result)) in all.into_iter().enumerate() {
            let (length, back) = result.get().unwrap_or_else(|failure| {
                panic!(
                    "{n}: {sent} bytes, for {asked}, lane {lane}, buffers {buffers:?}: {failure:#}"
                )
            });
            assert_eq!((length, back.len()), (sent, asked));
        }
    }
}

#[test]
fn messages_of_all_lengths_come_through_with_shared_memory_and_without() {
    for shared in [true, false] {
        let builder = Pool::builder().size(2).shared_memory(shared);
        let pool = builder.build().expect("a pool");
        // About the longest that goes through a ring, and so many that the rings are full.
        let lengths = (0..40).chain(16_300..16_400).chain([65_536, 1 << 20]);
        let bytes = |length: usize| (0..length).map(|n| (n % 251) as u8).collect::<Vec<_>>();
        let results: Vec<_> = lengths
            .map(|length| (length, pool.apply_async(reversed, (bytes(length),))))
            .collect();
        for (length, result) in results {
            let mut result = result.get().expect("a value");
            result.reverse();
            assert!(result == bytes(length), "{length}");
        }
        let many: Vec<_> = (0..20_000).map(|n| pool.apply_async(add, (n, 1))).collect();
        for (n, result) in many.into_iter().enumerate() {
            assert_eq!(result.get().expect("a value"), n as i64 + 1);
        }
    }
}

#[test]
fn a_process_that_a_job_forks_does_not_answer_in_its_name() {
    let pool = Pool::builder().size(1).build().expect("a pool");
    let result = pool.apply_async(fork_and_add, (1, 2));
    assert_eq!(result.get().expect("a value"), 3);
    for n in 0..100 {
        assert_eq!(pool.apply_async(add, (n, 1)).get().expect("a value"), n + 1);
    }
    assert_eq!(pool.stats().died, 0);
}

/// Threads that wait for one short result after the other take each other's answers, while workers die.
#[test]
fn whoever_waits_takes_the_answers_and_none_is_lost_when_workers_die() {
    let pool = Pool::builder()
        .size(2)
        .spin(Duration::from_millis(1))
        .build()
        .expect("a pool");
    let one_after_the_other = |thread: i64| {
        for n in 0..1000 {
            let dies = thread == 0 && n % 100 == 99;
            match pool
                .apply_async(abort_at, (if dies { 13 } else { n + 100 },))
                .get()
            {
                Ok(same) => assert_eq!(same, n + 100),
                Err(failure) => assert!(dies && failure.is::<WorkerDied>(), "{failure}"),
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || one_after_the_other(thread));
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.finished, stats.failed), (4000, 10));
    assert_eq!((stats.queued, stats.running), (0, 0));
}

/// A job that was given to its worker past the waiter, and that nobody waits for, ends all the same: somebody else's result, a
/// waker, a count.
#[test]
fn a_result_that_nobody_looks_for_comes_all_the_same() {
    let pool = pool(1);
    pool.apply_async(nothing, ()).get().expect("it is warm");
    for n in 0..200 {
        let result = pool.apply_async(square_of, (n,));
        let (sender, receiver) = channel();
        let waker = Waker::from(Arc::new(Tell(sender)));
        let mut result = pin!(result);
        let poll = result.as_mut().poll(&mut Context::from_waker(&waker));
        if poll.is_pending() {
            receiver
                .recv_timeout(Duration::from_secs(60))
                .expect("it is woken");
        }
        assert!(result.ready());
    }
}

/// A waiter comes to look after half a second what its worker was given.
#[test]
fn a_long_job_that_its_worker_was_given_at_once_can_be_cancelled_and_its_death_is_seen() {
    let pool = pool(1);
    for _ in 0..2 {
        pool.apply_async(nap, (0,)).get().expect("it is warm");
        let long = pool.apply_async(nap, (600,)); // longer than a waiter sits by
        assert!(!long.wait_timeout(Duration::from_millis(1)));
        long.get().expect("it ends");
        let killed = pool.apply_async(nap, (600_000,));
        assert!(!killed.wait_timeout(Duration::from_millis(1)));
        killed.cancel();
        let failure = killed.get().expect_err("it is cancelled");
        assert!(failure.is::<errback::CancelledError>(), "{failure}");
        pool.apply_async(nap, (0,)).get().expect("it is replaced");
        let dies = pool.apply_async(nap_and_abort, (600,));
        let failure = dies.get().expect_err("it died");
        assert!(failure.is::<WorkerDied>(), "{failure}");
    }
}

//! Jobs and an event loop: every Deferred fires, on the loop's thread, before `run` returns.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use errback::{
    CancelledError, EncodeError, Failure, JobPanicked, Pool, PoolClosed, Reactor, ReactorCore,
    WorkerDied, defer_to_process, defer_to_process_pool, map_to_process, process_pool,
};
use errback_deferred::{Deferred, LoopGone, gather_results};

#[errback::task]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

#[errback::task]
fn text_of(n: i64) -> String {
    n.to_string()
}

#[errback::task]
fn abort() {
    std::process::abort()
}

#[errback::task]
fn panic() {
    panic!("on purpose")
}

#[errback::task]
fn spin() {
    loop {
        std::hint::black_box(1);
    }
}

/// Connects to this socket, and never ends.
#[errback::task]
fn hold(path: String) {
    let _connection = std::os::unix::net::UnixStream::connect(path).expect("the test listens");
    loop {
        std::thread::park();
    }
}

/// Connects to this socket, and returns when it is sent something. The connection stays as long as the process.
#[errback::task]
fn return_when_told(path: String) {
    let mut connection = std::os::unix::net::UnixStream::connect(path).expect("the test listens");
    connection.read_exact(&mut [0]).expect("a byte");
    std::mem::forget(connection);
}

/// A socket of this test's own, and its path.
fn listener(name: &str) -> (std::os::unix::net::UnixListener, String) {
    let name = format!("errback-{}-{name}.sock", std::process::id());
    let path = std::env::temp_dir().join(name);
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let path = path.to_str().expect("a path in UTF-8").to_owned();
    (listener, path)
}

fn reactor() -> Reactor {
    Reactor::new().expect("a reactor")
}

/// Runs a reactor until the Deferred that `start` makes has fired; its result.
#[track_caller]
fn run<T: 'static>(start: impl FnOnce(&Reactor) -> Deferred<T> + 'static) -> Result<T, Failure> {
    let reactor = reactor();
    let result = Rc::new(Cell::new(None));
    let (begin, set) = (reactor.clone(), Rc::clone(&result));
    reactor.call_when_running(move || {
        let end = begin.clone();
        let d = start(&begin).add_both(move |result| {
            set.set(Some(result));
            let _ = end.stop();
        });
        d.log_failure();
    });
    reactor.run().expect("the reactor runs");
    result.take().expect("the Deferred has fired")
}

/// What a list of Deferreds came to, in the order in which they fired.
type Ends = Rc<RefCell<Vec<Result<(), Failure>>>>;

fn note<T: 'static>(ends: &Ends, d: Deferred<T>) {
    let ends = Rc::clone(ends);
    d.add_both(move |result| ends.borrow_mut().push(result.map(drop)))
        .log_failure();
}

#[test]
fn a_result_comes_to_the_loops_thread() {
    let thread = std::thread::current().id();
    let sum = run(move |reactor| {
        defer_to_process(reactor, add, (40, 2)).add_callback(move |sum| {
            assert_eq!(std::thread::current().id(), thread);
            Ok(sum)
        })
    });
    assert_eq!(sum.expect("a sum"), 42);
}

#[test]
fn many_results_come_all() {
    let sums =
        run(|reactor| gather_results((0..1000).map(|n| defer_to_process(reactor, add, (n, 1)))));
    assert_eq!(sums.expect("sums"), (1..=1000).collect::<Vec<_>>());
}

#[test]
fn results_of_one_worker_come_in_their_order_whatever_their_types() {
    let came = run(|reactor| {
        let came: Rc<RefCell<Vec<String>>> = Rc::default();
        let pool = Pool::builder().size(1).build().expect("a pool");
        let (numbers, names) = (Rc::clone(&came), Rc::clone(&came));
        let number = move |n: i64| numbers.borrow_mut().push(n.to_string());
        let name_of = move |n: String| names.borrow_mut().push(n);
        let jobs = (0..600).map(|n| match n % 5 {
            0 | 3 => {
                let d = defer_to_process_pool(reactor, &pool, text_of, (n,));
                d.add_callback(name_of.clone())
            }
            _ => {
                let d = defer_to_process_pool(reactor, &pool, add, (n, 0));
                d.add_callback(number.clone())
            }
        });
        gather_results(jobs.collect::<Vec<_>>()).add_callback(move |_| Ok(came.take()))
    });
    let expected: Vec<String> = (0..600).map(|n: i64| n.to_string()).collect();
    assert_eq!(came.expect("all come"), expected);
}

#[test]
fn a_reactor_that_is_dropped_without_having_run_leaves_no_worker_behind() {
    let (listener, path) = listener("dropped");
    let reactor = reactor();
    let d = defer_to_process(&reactor, hold, (path.clone(),));
    let (mut worker, _) = listener.accept().expect("the worker connects");
    std::fs::remove_file(path).expect("it is there");
    drop(reactor);
    worker
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket");
    let end = worker
        .read(&mut [0])
        .expect("its end, before the time is up");
    assert_eq!(end, 0);
    assert!(!d.called(), "there is no loop on which it could fire");
}

#[test]
fn results_for_a_loop_that_is_dropped_unrun_are_let_go_of() {
    let pool = Pool::builder().size(1).build().expect("a pool");
    let reactor = reactor();
    let way_home = Arc::downgrade(&reactor.from_threads());
    let jobs = [1, 2].map(|n| defer_to_process_pool(&reactor, &pool, add, (n, 1)));
    // Its answer comes behind theirs, which have been put aside then.
    pool.apply_async(add, (1, 1)).get().expect("a sum");
    drop(reactor);
    assert_eq!(way_home.strong_count(), 0);
    drop(jobs);
}

/// A loop that is dropped without having run, after its handle of the pool: the worker of a job that it had there, which ends
/// when the connection does. The job is told to return `before` the loop is dropped, or after that.
fn worker_of_a_dropped_loop(before: bool) -> std::os::unix::net::UnixStream {
    let (listener, path) = listener(if before { "before" } else { "after" });
    let pool = Pool::builder().size(1).build().expect("a pool");
    let reactor = reactor();
    let job = defer_to_process_pool(&reactor, &pool, return_when_told, (path.clone(),));
    let (mut worker, _) = listener.accept().expect("the worker connects");
    std::fs::remove_file(path).expect("it is there");
    if before {
        worker.write_all(&[1]).expect("it reads");
        // Its answer comes behind the other, which has been put aside then.
        pool.apply_async(add, (1, 1)).get().expect("a sum");
    }
    drop(pool);
    drop(reactor);
    if !before {
        worker.write_all(&[1]).expect("it reads");
    }
    assert!(!job.called(), "there is no loop on which it could fire");
    worker
}

#[test]
fn a_pool_ends_with_its_last_handle_when_a_loop_is_gone_that_had_jobs_there() {
    for before in [true, false] {
        let mut worker = worker_of_a_dropped_loop(before);
        let time = Some(Duration::from_secs(60));
        worker.set_read_timeout(time).expect("a socket");
        let end = worker.read(&mut [0]);
        assert_eq!(end.expect("its end, before the time is up"), 0);
    }
}

#[test]
fn a_loop_that_stops_does_not_wait_for_endless_jobs_that_are_submitted_again() {
    type Again = Rc<RefCell<Option<Box<dyn Fn()>>>>;
    let reactor = reactor();
    let pool = Pool::builder().size(2).build().expect("a pool");
    let (again, ends): (Again, Ends) = Default::default();
    let (on, to, next, noted) = (
        reactor.clone(),
        pool.clone(),
        Rc::downgrade(&again),
        Rc::clone(&ends),
    );
    *again.borrow_mut() = Some(Box::new(move || {
        let (next, noted) = (next.clone(), Rc::clone(&noted));
        defer_to_process_pool(&on, &to, spin, ())
            .add_errback(move |failure| {
                let is_cancelled = failure.is::<CancelledError>();
                noted.borrow_mut().push(Err(failure));
                if is_cancelled
                    && let Some(next) = next.upgrade()
                    && let Some(next) = &*next.borrow()
                {
                    next();
                }
            })
            .log_failure();
    }));
    let (begin, stop) = (Rc::clone(&again), reactor.clone());
    reactor.call_when_running(move || {
        for _ in 0..2 {
            begin.borrow().as_ref().expect("it is set")();
        }
        stop.stop().expect("it runs");
    });
    reactor.run().expect("it ends");
    let ends = ends.borrow();
    let ended = |is: fn(&Failure) -> bool| {
        ends.iter()
            .flat_map(|it| it.as_ref().err())
            .filter(|it| is(it))
            .count()
    };
    assert_eq!(ended(|it| it.is::<CancelledError>()), 2);
    assert_eq!(ended(|it| it.is::<LoopGone>()), 2);
}

#[test]
fn a_loop_that_stops_does_not_wait_for_what_the_callback_of_its_last_job_submits() {
    type Chain = dyn Fn(Rc<Cell<u32>>);
    let reactor = reactor();
    let pool = Pool::builder().size(1).build().expect("a pool");
    let jobs = Rc::new(Cell::new(0));
    let next: Rc<RefCell<Option<Box<Chain>>>> = Rc::default();
    let (on, to, again) = (reactor.clone(), pool.clone(), Rc::downgrade(&next));
    *next.borrow_mut() = Some(Box::new(move |jobs| {
        let (stop, again) = (on.clone(), again.clone());
        defer_to_process_pool(&on, &to, add, (1, 1))
            .add_both(move |result| {
                jobs.set(jobs.get() + 1);
                if jobs.get() == 3 {
                    let _ = stop.stop();
                }
                if result.is_ok()
                    && let Some(next) = again.upgrade()
                    && let Some(next) = &*next.borrow()
                {
                    next(jobs);
                }
            })
            .log_failure();
    }));
    let (first, count) = (Rc::clone(&next), Rc::clone(&jobs));
    reactor.call_when_running(move || {
        if let Some(next) = &*first.borrow() {
            next(count);
        }
    });
    reactor.run().expect("it ends");
    assert!((4..100).contains(&jobs.get()), "{}", jobs.get());
}

#[test]
fn the_errback_always_fires() {
    let failure = run(|reactor| defer_to_process(reactor, abort, ())).expect_err("it aborts");
    assert!(failure.is::<WorkerDied>(), "{failure:?}");
    let failure = run(|reactor| defer_to_process(reactor, panic, ())).expect_err("it panics");
    assert!(failure.is::<JobPanicked>(), "{failure:?}");
}

#[test]
fn jobs_may_be_submitted_from_callbacks_and_errbacks() {
    let sum = run(|reactor| {
        let (first, second) = (reactor.clone(), reactor.clone());
        defer_to_process(reactor, abort, ())
            .add_errback(move |_| defer_to_process(&first, add, (1, 1)).add_callback(|_| ()))
            .add_callback(move |()| defer_to_process(&second, add, (2, 2)))
    });
    assert_eq!(sum.expect("a sum"), 4);
}

#[test]
fn a_reactor_that_stops_fails_what_waits_and_kills_what_runs_and_all_of_it_fires() {
    let ends: Ends = Rc::default();
    let reactor = reactor();
    let (begin, list) = (reactor.clone(), Rc::clone(&ends));
    reactor.call_when_running(move || {
        let pool = process_pool(&begin).expect("a pool");
        let running = pool.size();
        (0..running).for_each(|_| note(&list, defer_to_process(&begin, spin, ())));
        (0..100).for_each(|n| note(&list, defer_to_process(&begin, add, (n, 1))));
        let end = begin.clone();
        stop_when(
            begin,
            move || pool.stats().running == running,
            move || end.stop().expect("it runs"),
        );
    });
    let began = Instant::now();
    reactor.run().expect("the reactor runs");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "two seconds of grace, and the machine's load"
    );
    let ends = ends.borrow();
    assert_eq!(
        ends.len(),
        process_pool(&reactor).expect("the pool").size() + 100
    );
    for end in ends.iter() {
        let failure = end.as_ref().expect_err("nothing was done by then");
        assert!(failure.is::<PoolClosed>(), "{failure:?}");
    }
}

/// Calls `then` in the turn in which `is` holds.
fn stop_when(reactor: Reactor, is: impl Fn() -> bool + 'static, then: impl FnOnce() + 'static) {
    if is() {
        return then();
    }
    let again = reactor.clone();
    reactor.call_later(Duration::from_millis(1), move || stop_when(again, is, then));
}

#[test]
fn what_is_submitted_after_the_end_fails_instead_of_waiting() {
    let reactor = reactor();
    let end = reactor.clone();
    reactor.call_when_running(move || {
        let stop = end.clone();
        defer_to_process(&end, add, (1, 1))
            .add_both(move |_| stop.stop().expect("it runs"))
            .log_failure();
    });
    reactor.run().expect("the reactor runs");
    let ends: Ends = Rc::default();
    note(&ends, defer_to_process(&reactor, add, (1, 1)));
    let pool = Pool::builder().size(1).build().expect("a pool");
    note(&ends, defer_to_process_pool(&reactor, &pool, add, (1, 1)));
    assert_eq!(
        ends.borrow().iter().filter(|end| end.is_err()).count(),
        2,
        "{ends:?}"
    );
}

#[test]
fn what_is_submitted_first_after_the_end_fails_too() {
    let reactor = reactor();
    let end = reactor.clone();
    reactor.call_when_running(move || end.stop().expect("it runs"));
    reactor.run().expect("the reactor runs");
    let ends: Ends = Rc::default();
    note(&ends, defer_to_process(&reactor, add, (1, 1)));
    assert_eq!(
        ends.borrow().iter().filter(|end| end.is_err()).count(),
        1,
        "{ends:?}"
    );
}

#[test]
fn a_loop_does_not_end_without_the_jobs_that_it_has_in_a_pool_of_ones_own() {
    let pool = Pool::builder().size(1).build().expect("a pool");
    let ends: Ends = Rc::default();
    let reactor = reactor();
    let (begin, list, jobs) = (reactor.clone(), Rc::clone(&ends), pool.clone());
    reactor.call_when_running(move || {
        note(&list, defer_to_process_pool(&begin, &jobs, spin, ()));
        (0..10).for_each(|n| note(&list, defer_to_process_pool(&begin, &jobs, add, (n, 1))));
        let end = begin.clone();
        stop_when(
            begin,
            move || jobs.stats().running == 1,
            move || end.stop().expect("it runs"),
        );
    });
    reactor.run().expect("the reactor runs");
    let ends = ends.borrow();
    assert_eq!(ends.len(), 11);
    assert!(
        ends.iter().all(|end| end
            .as_ref()
            .is_err_and(|failure| failure.is::<CancelledError>())),
        "{ends:?}"
    );
    // The pool is not the loop's: it goes on.
    assert_eq!(pool.apply_async(add, (1, 2)).get().expect("a sum"), 3);
}

#[test]
fn cancelling_the_deferred_of_a_running_job_kills_its_worker() {
    let failure = run(|reactor| {
        let pool = process_pool(reactor).expect("a pool");
        let d = defer_to_process(reactor, spin, ());
        let cancel = d.cancel_handle();
        stop_when(
            reactor.clone(),
            move || pool.stats().running == 1,
            move || cancel.cancel(),
        );
        d
    });
    assert!(failure.expect_err("cancelled").is::<CancelledError>());
}

#[test]
fn cancelling_the_deferred_of_a_waiting_job_takes_it_out() {
    let reactor = reactor();
    let pool = Pool::builder().size(1).build().expect("a pool");
    let ends: Ends = Rc::default();
    let (begin, list, jobs) = (reactor.clone(), Rc::clone(&ends), pool.clone());
    reactor.call_when_running(move || {
        let blocker = defer_to_process_pool(&begin, &jobs, spin, ());
        let waiting = defer_to_process_pool(&begin, &jobs, abort, ());
        waiting.cancel();
        note(&list, waiting);
        assert_eq!(list.borrow().len(), 0, "it fires in a later turn");
        blocker.cancel();
        let end = begin.clone();
        let after = defer_to_process_pool(&begin, &jobs, add, (1, 1));
        note(
            &list,
            after.add_both(move |sum| {
                end.stop().expect("it runs");
                sum
            }),
        );
        note(&list, blocker);
    });
    reactor.run().expect("the reactor runs");
    assert_eq!(ends.borrow().len(), 3);
    assert!(
        pool.stats().died <= 1,
        "the blocker's worker, if it had one"
    );
}

#[test]
fn cancelling_a_wait_for_room_leaves_the_line() {
    run(|reactor| {
        let pool = Pool::builder().size(1).backlog(1).build().expect("a pool");
        let room = pool.when_room(reactor); // and keeps the only place
        let threads = reactor.from_threads();
        let before = Arc::strong_count(&threads);
        let waits: Vec<_> = (0..1000).map(|_| pool.when_room(reactor)).collect();
        assert_eq!(Arc::strong_count(&threads), before + 1000);
        for wait in waits {
            wait.cancel();
            wait.add_both(|result| {
                let failure = result.expect_err("a failure");
                assert!(failure.check::<CancelledError>().is_some(), "{failure:?}");
            })
            .log_failure();
        }
        assert_eq!(Arc::strong_count(&threads), before, "nobody is in line");
        let next = pool.when_room(reactor);
        room.add_callback(drop).log_failure();
        next.add_callback(move |room| {
            drop(room);
            drop(pool);
        })
    })
    .expect("the next in line has room");
}

#[test]
fn several_reactors_have_a_pool_each() {
    let threads: Vec<_> = (0..3)
        .map(|n| {
            std::thread::spawn(move || {
                run(move |reactor| defer_to_process(reactor, add, (n, 1))).expect("a sum")
            })
        })
        .collect();
    let sums: Vec<i64> = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic"))
        .collect();
    assert_eq!(sums, [1, 2, 3]);
}

#[test]
fn a_map_fires_with_all_results_in_their_order() {
    let pool = Pool::builder().size(2).build().expect("a pool");
    let results =
        run(move |reactor| map_to_process(reactor, &pool, add, (0..1000).map(|n| (n, 1))));
    let sums: Result<Vec<i64>, Failure> = results.expect("a list").into_iter().collect();
    assert_eq!(sums.expect("sums"), (1..=1000).collect::<Vec<_>>());
}

#[test]
fn arguments_that_cannot_be_encoded_fail_the_deferred_on_the_spot() {
    let pool = Pool::builder()
        .size(1)
        .max_message(1024)
        .build()
        .expect("a pool");
    let reactor = reactor();
    let ends: Ends = Rc::default();
    note(
        &ends,
        defer_to_process_pool(&reactor, &pool, length_of, (vec![0; 10_000],)),
    );
    assert!(
        ends.borrow()[0]
            .as_ref()
            .is_err_and(|failure| failure.is::<EncodeError>())
    );
}

#[errback::task]
fn length_of(bytes: Vec<u8>) -> usize {
    bytes.len()
}

#[test]
fn a_reactor_takes_a_pool_of_ones_own_once() {
    let reactor = Reactor::new().unwrap();
    let pool = Pool::builder().size(1).name("mine").build().unwrap();
    errback::set_process_pool(&reactor, pool.clone()).unwrap();
    assert_eq!(errback::process_pool(&reactor).unwrap().name(), "mine");
    let other = Pool::builder().size(1).build().unwrap();
    let refused = errback::set_process_pool(&reactor, other).unwrap_err();
    assert_eq!(refused, errback::PoolInUse);
    let stop = reactor.clone();
    reactor.call_when_running(move || stop.stop().unwrap());
    reactor.run().unwrap();
    assert!(
        pool.join_timeout(std::time::Duration::from_secs(30)),
        "it ends with the reactor"
    );
}

/// A loop that looks for the answers of its jobs may cease to at any time: what its workers are given waits for nobody.
#[test]
fn a_worker_whose_loop_is_busy_does_other_peoples_jobs() {
    let pool = Pool::builder().size(1).build().expect("a pool");
    let other = pool.clone();
    let sums = run(move |reactor| {
        let reactor = reactor.clone();
        defer_to_process_pool(&reactor, &pool, add, (0, 0)).add_callback(move |_| {
            let first = defer_to_process_pool(&reactor, &pool, add, (1, 2));
            // The loop is not let go on before the others are done.
            let thread = std::thread::spawn(move || {
                let jobs: Vec<_> = (0..100).map(|n| other.apply_async(add, (n, 1))).collect();
                jobs.into_iter().map(|job| job.get().expect("a sum")).sum()
            });
            let others: i64 = thread.join().expect("it ends");
            first.add_callback(move |sum| Ok((sum, others)))
        })
    });
    assert_eq!(sums.expect("sums"), (3, 5050));
}

/// Two loops on threads of their own have one pool, and each gets its own.
#[test]
fn loops_that_look_for_answers_take_each_others_and_mix_nothing_up() {
    let pool = Pool::builder().size(2).build().expect("a pool");
    std::thread::scope(|scope| {
        for thread in 0..3_i64 {
            let pool = pool.clone();
            scope.spawn(move || {
                let sum = run(move |reactor| {
                    let reactor = reactor.clone();
                    errback::ensure_deferred(async move {
                        for n in 0..500 {
                            let d = defer_to_process_pool(&reactor, &pool, add, (n, thread));
                            assert_eq!(d.await?, n + thread);
                        }
                        Ok(thread)
                    })
                });
                assert_eq!(sum.expect("all came"), thread);
            });
        }
    });
    assert_eq!(pool.stats().finished, 1500);
}

//! A million of everything on a stack of two mebibytes: nothing recurses, neither running nor letting go, and the time is
//! linear in the number.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use errback_deferred::testing::success_result_of;
use errback_deferred::*;

const MILLION: usize = 1_000_000;

/// Runs `work` for a fifth of a million and for a million, on a thread with Rust's default stack.
///
/// The larger must not take more than four times as long as its share: far from quadratic (twenty-five times), and room
/// for a busy machine.
fn linear(work: fn(usize)) {
    linear_up_to(MILLION, work);
}

/// As `linear`, for work that makes as many failures. Each captures a backtrace when `RUST_BACKTRACE` asks for that, which takes
/// minutes for a million of them; then it is fewer.
fn linear_failing(work: fn(usize)) {
    let captured = Backtrace::capture().status() == BacktraceStatus::Captured;
    if captured {
        eprintln!("a hundredth only, because failures capture backtraces: unset RUST_BACKTRACE");
    }
    linear_up_to(if captured { MILLION / 100 } else { MILLION }, work);
}

fn linear_up_to(most: usize, work: fn(usize)) {
    let run = move || {
        let small = time(|| work(most / 5));
        let large = time(|| work(most));
        assert!(
            large < small * 20 + Duration::from_secs(1),
            "{small:?} for a fifth, {large:?} for all"
        );
    };
    let thread = thread::Builder::new().stack_size(2 << 20);
    thread.spawn(run).unwrap().join().unwrap();
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// So many Deferreds with their firing ends.
fn deferreds(n: usize) -> (Vec<Resolver<usize>>, Vec<Deferred<usize>>) {
    (0..n).map(|_| Deferred::new()).unzip()
}

/// Each returns the next in a callback. Gives the firing ends and the first, whose result is the last one's.
fn each_returning_the_next(n: usize) -> (Vec<Resolver<usize>>, Deferred<usize>) {
    let (resolvers, deferreds) = deferreds(n);
    let mut deferreds = deferreds.into_iter().rev();
    let last = deferreds.next().unwrap();
    let first = deferreds.fold(last, |next, d| d.add_callback(move |_| next));
    (resolvers, first)
}

#[test]
fn callbacks_on_one_deferred() {
    linear(|n| {
        let (resolver, mut d) = Deferred::new();
        for _ in 0..n {
            d = d.add_callback(|k: usize| Ok(k + 1));
        }
        resolver.callback(0).unwrap();
        assert_eq!(success_result_of(d), n);
    });
}

#[test]
fn callbacks_on_one_deferred_that_never_fires() {
    linear(|n| {
        let (resolver, mut d) = Deferred::new();
        for _ in 0..n {
            d = d.add_callback(|k: usize| Ok(k + 1));
        }
        drop(d);
        let _quiet = observe_unhandled(|_| ()); // the end of the resolver is a failure
        drop(resolver);
    });
}

#[test]
fn deferreds_each_returning_the_next_fired_first_to_last() {
    linear(|n| {
        let (resolvers, first) = each_returning_the_next(n);
        for (i, resolver) in resolvers.into_iter().enumerate() {
            resolver.callback(i).unwrap();
        }
        assert_eq!(success_result_of(first), n - 1);
    });
}

#[test]
fn deferreds_each_returning_the_next_fired_last_to_first() {
    linear(|n| {
        let (resolvers, first) = each_returning_the_next(n);
        for (i, resolver) in resolvers.into_iter().enumerate().rev() {
            resolver.callback(i).unwrap();
        }
        assert_eq!(success_result_of(first), n - 1);
    });
}

#[test]
fn deferreds_each_returning_the_next_dropped_unfired() {
    linear_failing(|n| {
        let _quiet = observe_unhandled(|_| ());
        let (resolvers, first) = each_returning_the_next(n);
        drop(first);
        drop(resolvers);
        let (resolvers, first) = each_returning_the_next(n);
        drop(resolvers);
        drop(first);
    });
}

#[test]
fn deferreds_each_returning_the_next_dropped_while_they_wait() {
    linear_failing(|n| {
        let _quiet = observe_unhandled(|_| ());
        let (mut resolvers, first) = each_returning_the_next(n);
        let last = resolvers.pop().unwrap();
        for resolver in resolvers {
            resolver.callback(0).unwrap();
        }
        assert_eq!(first.state(), State::Waiting);
        first.cancel(); // goes to the innermost, a million further in
        drop(last);
        drop(first);
    });
}

/// Each fires the next. Gives the first one's firing end and the last Deferred.
fn links(n: usize) -> (Resolver<usize>, Vec<Deferred<()>>, Deferred<usize>) {
    let (start, mut d) = Deferred::new();
    let mut rest = Vec::with_capacity(n);
    for _ in 0..n {
        let (resolver, next) = Deferred::new();
        rest.push(d.chain_deferred(resolver));
        d = next.add_callback(|k: usize| Ok(k + 1));
    }
    (start, rest, d)
}

#[test]
fn chain_deferred_links() {
    linear(|n| {
        let (start, rest, last) = links(n);
        start.callback(0).unwrap();
        assert_eq!(success_result_of(last), n);
        drop(rest);
    });
}

#[test]
fn chain_deferred_links_that_are_dropped() {
    linear_failing(|n| {
        let _quiet = observe_unhandled(|_| ());
        let (start, rest, last) = links(n);
        drop(rest);
        drop(last);
        drop(start);
        let (start, rest, last) = links(n);
        drop(start);
        drop(last);
        drop(rest);
    });
}

/// Counts up to `n` and says that all were there.
#[derive(Clone, Default)]
struct Count(Rc<Cell<usize>>);

impl Count {
    fn up(&self) {
        self.0.set(self.0.get() + 1);
    }

    #[track_caller]
    fn check(&self, n: usize) {
        assert_eq!(self.0.get(), n);
    }
}

#[test]
fn lock_waiters_in_run() {
    linear(|n| {
        let (lock, count) = (DeferredLock::new(), Count::default());
        let held = lock.acquire();
        let runs: Vec<_> = (0..n)
            .map(|_| {
                let count = count.clone();
                lock.run(move || count.up())
            })
            .collect();
        drop(held);
        count.check(n);
        assert!(!lock.locked());
        drop(runs);
    });
}

#[test]
fn lock_waiters_with_explicit_releases_in_their_callbacks() {
    linear(|n| {
        let (lock, count) = (DeferredLock::new(), Count::default());
        drop(lock.acquire().add_callback(Permit::forget));
        let waiters: Vec<_> = (0..n)
            .map(|_| {
                let (lock, count) = (lock.clone(), count.clone());
                lock.clone().acquire().add_callback(move |permit| {
                    permit.forget();
                    count.up();
                    Ok(lock.release()?)
                })
            })
            .collect();
        lock.release().unwrap();
        count.check(n);
        assert!(!lock.locked());
        drop(waiters);
    });
}

#[test]
fn lock_waiters_that_are_not_interested_any_more() {
    linear(|n| {
        let lock = DeferredLock::new();
        let held = lock.acquire();
        for _ in 0..n {
            drop(lock.acquire()); // its permit comes and goes
        }
        drop(held);
        assert!(!lock.locked());
    });
}

#[test]
fn lock_waiters_that_are_cancelled() {
    linear_failing(|n| {
        let lock = DeferredLock::new();
        let held = lock.acquire();
        let waiters: Vec<_> = (0..n).map(|_| lock.acquire()).collect();
        for waiter in waiters {
            waiter.cancel();
            drop(waiter.add_callbacks(drop, |_| ()));
        }
        assert_eq!(lock.waiting(), 0);
        drop(held);
        assert!(!lock.locked());
    });
}

#[test]
fn lock_waiters_whose_lock_is_dropped() {
    linear_failing(|n| {
        let _quiet = observe_unhandled(|_| ());
        let lock = DeferredLock::new();
        let held = lock.acquire().add_callback(Permit::forget);
        let waiters: Vec<_> = (0..n).map(|_| lock.run(|| ())).collect();
        drop(held);
        drop(lock);
        drop(waiters);
    });
}

#[test]
fn semaphore_waiters_that_hand_over_among_several_semaphores() {
    linear(|n| {
        let semaphores = [1, 2, 3].map(DeferredSemaphore::new);
        let held: Vec<_> = (semaphores.iter())
            .flat_map(|s| (0..s.limit()).map(|_| s.acquire()))
            .collect();
        let count = Count::default();
        let runs: Vec<_> = (0..n)
            .map(|i| {
                let (inner, count) = (semaphores[2].clone(), count.clone());
                semaphores[i % 2].run(move || {
                    count.up();
                    inner.run(|| ())
                })
            })
            .collect();
        drop(held);
        count.check(n);
        drop(runs);
    });
}

#[test]
fn takers_of_a_queue_that_put() {
    linear(|n| {
        let queue = DeferredQueue::new();
        let takers: Vec<_> = (0..n)
            .map(|_| {
                let queue = queue.clone();
                queue
                    .clone()
                    .get()
                    .add_callback(move |i: usize| Ok(queue.put(i + 1)?))
            })
            .collect();
        queue.put(0).unwrap();
        assert_eq!(success_result_of(queue.get()), n);
        drop(takers);
    });
}

#[test]
fn runs_of_a_looping_call() {
    linear(|n| {
        let (clock, count) = (Clock::new(), Count::default());
        let counted = count.clone();
        let looping = LoopingCall::new(clock.clone(), move || counted.up());
        let stopped = looping.start(Duration::from_secs(1), false);
        for _ in 0..n {
            clock.advance(Duration::from_secs(1));
        }
        count.check(n);
        looping.stop();
        drop(stopped);
    });
}

#[test]
fn steps_of_a_cooperative_task() {
    linear(|n| {
        let clock = Clock::new();
        let cooperator = Cooperator::new(clock.clone());
        let count = Count::default();
        let counted = count.clone();
        let done = cooperator.coiterate((0..n).map(move |_| {
            counted.up();
            succeed(())
        }));
        while done.state() == State::Unfired {
            clock.advance(Duration::from_millis(1));
        }
        count.check(n);
        drop(done);
    });
}

#[test]
fn awaits_of_fired_deferreds_in_one_coroutine() {
    linear(|n| {
        let sum = ensure_deferred(async move {
            let mut sum = 0;
            for _ in 0..n {
                sum += succeed(1).await?;
            }
            Ok(sum)
        });
        assert_eq!(success_result_of(sum), n);
    });
}

#[test]
fn awaits_of_deferreds_that_fire_later_in_one_coroutine() {
    linear(|n| {
        let (resolvers, deferreds) = deferreds(n);
        let sum = ensure_deferred(async move {
            let mut sum = 0;
            for d in deferreds {
                sum += d.await?;
            }
            Ok(sum)
        });
        for resolver in resolvers {
            resolver.callback(1).unwrap();
        }
        assert_eq!(success_result_of(sum), n);
    });
}

/// Each awaits the one before.
fn coroutines(n: usize) -> (Resolver<usize>, Deferred<usize>) {
    let (start, mut d) = Deferred::new();
    for _ in 0..n {
        let before = d;
        d = ensure_deferred(async move { Ok(before.await? + 1) });
    }
    (start, d)
}

#[test]
fn coroutines_that_await_each_other() {
    linear(|n| {
        let (start, last) = coroutines(n);
        start.callback(0).unwrap();
        assert_eq!(success_result_of(last), n);
    });
}

#[test]
fn coroutines_that_await_each_other_and_are_dropped() {
    linear_failing(|n| {
        let _quiet = observe_unhandled(|_| ());
        let (start, last) = coroutines(n);
        drop(last);
        drop(start);
        let (start, last) = coroutines(n);
        drop(start);
        drop(last);
    });
}

#[test]
fn the_deferreds_of_one_list() {
    linear(|n| {
        let (resolvers, deferreds) = deferreds(n);
        let all = gather_results(deferreds);
        for resolver in resolvers.into_iter().rev() {
            resolver.callback(1).unwrap();
        }
        assert_eq!(success_result_of(all).len(), n);
    });
}

#[test]
fn the_deferreds_of_one_race_and_of_a_list_that_is_cancelled() {
    linear_failing(|n| {
        let (mut resolvers, racing) = deferreds(n);
        let first = race(racing);
        let winner = resolvers.pop().unwrap();
        winner.callback(1).unwrap();
        assert_eq!(success_result_of(first), (n - 1, 1));
        let (resolvers, listed) = deferreds(n);
        let all = DeferredList::new(listed).results();
        all.cancel();
        assert!(success_result_of(all).iter().all(Result::is_err));
        drop(resolvers);
    });
}

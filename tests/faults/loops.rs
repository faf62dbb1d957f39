//! The same faults with a reactor in the host, whose turns must not stall, whatever its workers do.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use errback::{
    CancelledError, Failure, Pool, PoolClosed, Reactor, Shutdown, SpawnFailed, WorkerDied,
    defer_to_process_pool,
};
use errback_deferred::{Deferred, LoopingCall, defer_later, ensure_deferred, gather_results};
use rustix::process::Signal;

use crate::suite::{failure_took, rows};
use crate::support::{
    Belongings, Gate, Held, Invariant, affordable, children, close, eventually, kill, patience,
    pool, soon, whole,
};
use crate::tasks::*;

/// Answers of a quarter of a GiB are there by then.
const ANSWERED: Duration = Duration::from_secs(120);

/// No turn of the reactor takes longer: 50 milliseconds, times the patience.
fn stall() -> Duration {
    Duration::from_millis(50) * patience()
}

/// Runs a reactor until the Deferred of `start` fires; no turn may stall meanwhile.
#[track_caller]
pub(crate) fn on_a_reactor<T: 'static>(
    start: impl FnOnce(&Reactor) -> Deferred<T> + 'static,
) -> Result<T, Failure> {
    let (result, longest) = on_any_reactor(start);
    assert!(longest < stall(), "a turn took {longest:?}");
    result
}

/// The same, and how long its longest turn was.
fn on_any_reactor<T: 'static>(
    start: impl FnOnce(&Reactor) -> Deferred<T> + 'static,
) -> (Result<T, Failure>, Duration) {
    let reactor = Reactor::new().expect("a reactor");
    let ticks = Ticks::default();
    let result = Rc::new(Cell::new(None));
    let (begin, count, set) = (reactor.clone(), ticks.clone(), Rc::clone(&result));
    reactor.call_when_running(move || {
        let end = begin.clone();
        let d = start(&begin);
        let ticking = count.start(&begin);
        d.add_both(move |result| {
            count.tick();
            ticking.stop();
            set.set(Some(result));
            end.stop().expect("it runs");
        })
        .log_failure();
    });
    reactor.run().expect("the reactor runs");
    let result = result.take().expect("the Deferred has fired");
    (result, ticks.longest.get())
}

/// Does `fault` on the loop's thread when a job has begun, and is held at `gate`.
fn when_held(reactor: &Reactor, gate: Gate, fault: impl FnOnce(Held) + 'static) {
    reactor
        .defer_to_thread(move || Ok(gate.held()))
        .add_callback(fault)
        .log_failure();
}

/// When the reactor came round last, and the longest that it did not.
#[derive(Clone, Default)]
struct Ticks {
    last: Rc<Cell<Option<Instant>>>,
    longest: Rc<Cell<Duration>>,
}

impl Ticks {
    fn start(&self, reactor: &Reactor) -> LoopingCall {
        let ticks = self.clone();
        let ticking = LoopingCall::new(reactor.clone(), move || ticks.tick());
        ticking
            .start(Duration::from_millis(1), true)
            .add_callback(|_| ())
            .log_failure();
        ticking
    }

    fn tick(&self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(Some(now)) {
            self.longest.set(self.longest.get().max(now - last));
        }
    }
}

/// The failure, which must be an `E`.
#[track_caller]
fn failed<E: std::error::Error + Clone + Send + Sync + 'static, T>(
    result: Result<T, Failure>,
) -> E {
    let Err(failure) = result else {
        panic!("this job fails")
    };
    let error = failure.check::<E>().cloned();
    error.unwrap_or_else(|| panic!("another failure: {failure:?}"))
}

/// When the fault was, for the time that its failure takes to come.
#[derive(Clone, Default)]
struct Fault(Rc<Cell<Option<Instant>>>);

impl Fault {
    fn is_now(&self) {
        self.0.set(Some(Instant::now()));
    }

    /// The failure has come, which must have been soon after `due`.
    #[track_caller]
    fn came_out(&self, due: Duration) {
        let took = self.0.get().expect("a fault").elapsed();
        failure_took(took);
        assert!(took >= due, "it came {took:?} after the fault");
        assert!(took - due < soon(), "it took {took:?}");
    }
}

rows! {
    /// A worker is killed in its job, under a reactor that must not stall.
    fn k4_a_death_stalls_no_reactor() {
        let mut invariant = Invariant::new().with_bystander();
        let (pool, gate, fault) = (invariant.pool.clone(), Gate::new(), Fault::default());
        let begin = fault.clone();
        let result = on_a_reactor(move |reactor| {
            let victim = defer_to_process_pool(reactor, &pool, hold, (gate.path.clone(),));
            when_held(reactor, gate, move |held| {
                begin.is_now();
                held.kill(Signal::KILL);
            });
            victim
        });
        fault.came_out(Duration::ZERO);
        assert_eq!(failed::<WorkerDied, _>(result).exit.signal(), Some(Signal::KILL.as_raw()));
        invariant.queue();
        invariant.check();
    }

    /// A running job is cancelled, under a reactor that must not stall.
    fn c2_a_cancel_stalls_no_reactor() {
        let invariant = Invariant::new().with_bystander();
        let (pool, gate, fault) = (invariant.pool.clone(), Gate::new(), Fault::default());
        let begin = fault.clone();
        let result = on_a_reactor(move |reactor| {
            let victim = defer_to_process_pool(reactor, &pool, hold, (gate.path.clone(),));
            let cancel = victim.cancel_handle();
            when_held(reactor, gate, move |held| {
                begin.is_now();
                cancel.cancel();
                drop(held);
            });
            victim
        });
        fault.came_out(Duration::ZERO);
        failed::<CancelledError, _>(result);
        invariant.check();
    }

    /// All workers are stopped and the pool terminated, under a reactor that must not stall.
    fn s4_a_termination_of_stopped_workers_stalls_no_reactor() {
        let before = Belongings::now();
        let invariant = Invariant::of(pool(2), before.clone());
        let (pool, gate, fault) = (invariant.pool.clone(), Gate::new(), Fault::default());
        let begin = fault.clone();
        let result = on_a_reactor(move |reactor| {
            let victim = defer_to_process_pool(reactor, &pool, hold, (gate.path.clone(),));
            let (join, threads) = (pool.clone(), reactor.clone());
            when_held(reactor, gate, move |held| {
                begin.is_now();
                pool.stats().workers.into_iter().for_each(|pid| kill(pid, Signal::STOP));
                pool.terminate();
                drop(held);
            });
            victim.add_both(move |result| {
                let ended = threads.defer_to_thread(move || Ok(join.join_timeout(whole())));
                ended.add_callback(move |ended| Ok((result, ended)))
            })
        });
        fault.came_out(Duration::ZERO);
        let (result, ended) = result.expect("a thread");
        assert!(ended, "the pool ended in time");
        failed::<PoolClosed, _>(result);
        assert!(children().is_empty());
    }

    /// Two workers answer 256 MiB each while the reactor's thread is busy for two seconds.
    fn m7_large_answers_do_not_wait_for_a_busy_reactor() {
        const LARGE: usize = 256 << 20;
        let invariant = Invariant::unshared();
        let pool = invariant.pool.clone();
        // A worker has its result twice, as value and as bytes, and the host too.
        let size = affordable(LARGE, 8);
        let answers = on_a_reactor(move |reactor| {
            let busy = Instant::now() + Duration::from_secs(2);
            let answers = [1, 2].map(|byte| defer_to_process_pool(reactor, &pool, fill, (byte, size)));
            eventually(ANSWERED, "the waiters read on", || {
                Instant::now() > busy && pool.stats().running == 0
            });
            gather_results(answers)
        });
        // `==` on slices compares memory at once, also where nothing is optimised.
        assert!(answers.expect("two answers") == [vec![1; size], vec![2; size]]);
        invariant.check();
    }

    /// Large calls are submitted while all workers are busy, from a reactor that must not stall.
    fn m8_a_large_call_stalls_no_reactor() {
        // More than a socket holds. Bytes are encoded one by one, which takes long where nothing is optimised.
        const LARGE: usize = if cfg!(debug_assertions) { 1 << 19 } else { 8 << 20 };
        let invariant = Invariant::unshared();
        let (pool, gate) = (invariant.pool.clone(), Gate::new());
        let lengths = on_a_reactor(move |reactor| {
            let reactor = reactor.clone();
            ensure_deferred(async move {
                let busy = [0; 2].map(|_| defer_to_process_pool(&reactor, &pool, hold, (gate.path.clone(),)));
                let held = reactor.defer_to_thread(move || Ok([gate.held(), gate.held()])).await?;
                let mut large = Vec::new();
                for _ in 0..4 {
                    large.push(defer_to_process_pool(&reactor, &pool, echo, (vec![1; LARGE],)));
                    defer_later(&reactor, Duration::ZERO, || ()).await?;
                }
                held.into_iter().for_each(Held::release);
                gather_results(busy).await?;
                let echoed = gather_results(large).await?;
                Ok(echoed.iter().map(Vec::len).collect::<Vec<_>>())
            })
        });
        assert_eq!(lengths.expect("lengths"), [LARGE; 4]);
        invariant.check();
    }

    /// A drain with a deadline of one second has an endless job, under a reactor that must not stall.
    fn d3_a_drain_that_becomes_a_termination_stalls_no_reactor() {
        let invariant = Invariant::new();
        let (pool, fault) = (invariant.pool.clone(), Fault::default());
        let begin = fault.clone();
        let result = on_a_reactor(move |reactor| {
            let endless = defer_to_process_pool(reactor, &pool, spin, ());
            begin.is_now();
            pool.close_within(Duration::from_secs(1));
            endless
        });
        fault.came_out(Duration::from_secs(1));
        assert!(failed::<PoolClosed, _>(result).running);
        assert!(invariant.pool.join_timeout(whole()));
        assert!(children().is_empty());
    }

    /// Every worker ends at its start, under a reactor that must not stall.
    fn r1_workers_that_cannot_start_stall_no_reactor() {
        let before = Belongings::now();
        let pool = crate::support::builder().size(2).command("false", [""; 0]).build().expect("a pool");
        let (jobs, fault) = (pool.clone(), Fault::default());
        let begin = fault.clone();
        let result = on_a_reactor(move |reactor| {
            begin.is_now();
            defer_to_process_pool(reactor, &jobs, add, (1, 1))
        });
        fault.came_out(Duration::ZERO);
        assert_eq!(failed::<SpawnFailed, _>(result).attempts, 5);
        close(pool, &before);
    }

    /// A pool is shut down by Deferreds: drained, with jobs running and queued.
    fn d1_a_drain_is_a_deferred_that_fires_when_all_is_done_and_gone() {
        let before = Belongings::now();
        let pool = pool(2);
        let gate = Gate::new();
        let (there, path) = (pool.clone(), gate.path.clone());
        let results = on_a_reactor(move |reactor| {
            let jobs: Vec<_> = (0..2).map(|_| defer_to_process_pool(reactor, &there, hold, (path.clone(),)).add_callback(|pid| Ok(i64::from(pid)))).collect();
            let queued: Vec<_> = (0..10).map(|n| defer_to_process_pool(reactor, &there, add, (n, 1))).collect();
            let ended = there.shutdown(reactor, Shutdown::Drain);
            let again = there.shutdown(reactor, Shutdown::Drain);
            let refused = defer_to_process_pool(reactor, &there, add, (1, 1));
            let refused = refused.add_both(|result| {
                failed::<PoolClosed, _>(result);
                Ok(())
            });
            reactor.defer_to_thread(move || {
                let held: Vec<_> = (0..2).map(|_| gate.held()).collect();
                held.into_iter().for_each(Held::release);
                Ok(())
            }).log_failure();
            let done = gather_results(jobs.into_iter().chain(queued).collect::<Vec<_>>());
            let gone = gather_results(vec![ended, again, refused]).add_callback(move |_| {
                assert_eq!(children(), Vec::<String>::new(), "when it fires, nobody is left");
            });
            done.add_callback(move |values| gone.add_callback(move |_| Ok(values)))
        });
        assert_eq!(results.expect("all are done")[2..], (1..=10).collect::<Vec<i64>>());
        close(pool, &before);
    }

    /// A pool is shut down at once by a Deferred, from a callback, twice, while others drain it.
    fn d2_d4_a_shutdown_makes_the_ones_before_it_stricter_and_all_fire_once() {
        let before = Belongings::now();
        let pool = pool(2);
        let gate = Gate::new();
        let there = pool.clone();
        let fired = on_a_reactor(move |reactor| {
            let jobs: Vec<_> = (0..2).map(|_| defer_to_process_pool(reactor, &there, hold, (gate.path.clone(),)).add_callback(|pid| Ok(i64::from(pid)))).collect();
            let queued: Vec<_> = (0..10).map(|n| defer_to_process_pool(reactor, &there, add, (n, 1))).collect();
            let drained = there.shutdown(reactor, Shutdown::Drain);
            let within = there.shutdown(reactor, Shutdown::DrainWithin(Duration::from_secs(600)));
            let (on, to) = (reactor.clone(), there.clone());
            let now = reactor.defer_to_thread(move || {
                let held: Vec<_> = (0..2).map(|_| gate.held()).collect();
                Ok(held)
            }).add_callback(move |held| {
                let now = to.shutdown(&on, Shutdown::Now);
                let twice = to.shutdown(&on, Shutdown::Now);
                now.add_callback(move |()| { drop(held); twice })
            });
            let all = jobs.into_iter().chain(queued).map(|d| {
                d.add_both(|result| {
                    failed::<PoolClosed, _>(result);
                    Ok(1)
                })
            });
            let all = gather_results(all.collect::<Vec<_>>());
            gather_results(vec![drained, within, now]).add_callback(move |ends| {
                all.add_callback(move |jobs| Ok((ends.len(), jobs.len())))
            })
        });
        assert_eq!(fired.expect("everything fires"), (3, 12));
        close(pool, &before);
    }

    /// A pool is shut down by a Deferred while its workers fail to start.
    fn d4_a_shutdown_during_back_off_fires() {
        let pool = crate::support::builder().size(1).initializer(panic_str, ()).build().expect("a pool");
        let there = pool.clone();
        let job = on_a_reactor(move |reactor| {
            let job = defer_to_process_pool(reactor, &there, add, (1, 1));
            let (on, waits) = (reactor.clone(), there.clone());
            let backing_off = reactor.defer_to_thread(move || {
                eventually(soon(), "a start fails", || waits.stats().failed_starts > 0);
                Ok(waits)
            });
            let end = backing_off.add_callback(move |pool| pool.shutdown(&on, Shutdown::DrainWithin(Duration::from_millis(50))));
            end.add_callback(move |()| job)
        });
        let failure = job.expect_err("it never ran");
        assert!(failure.check::<PoolClosed>().is_some() || failure.check::<SpawnFailed>().is_some(), "{failure:?}");
        assert!(pool.join_timeout(whole()));
    }

    /// Producers that would fill the backlog wait for room, under a reactor that must not stall.
    fn t5_producers_wait_for_room_in_their_order() {
        let pool = crate::support::builder().size(1).backlog(2).build().expect("a pool");
        let there = pool.clone();
        let results = on_a_reactor(move |reactor| {
            let all = (0..100).map(|n| {
                let (on, to) = (reactor.clone(), there.clone());
                there.when_room(reactor).add_callback(move |room| {
                    let sum = defer_to_process_pool(&on, &to, add, (n, 1));
                    drop(room);
                    sum
                })
            });
            gather_results(all.collect::<Vec<_>>())
        });
        assert_eq!(results.expect("none is refused"), (1..=100).collect::<Vec<i64>>());
    }

    /// A callback panics, with the result of a job.
    fn p7_a_panic_of_a_callback_is_the_next_ones_failure() {
        let invariant = Invariant::new().with_bystander();
        let pool = invariant.pool.clone();
        // To read a backtrace takes longer than a turn may, and is the panic's own matter.
        let (text, _) = on_any_reactor(move |reactor| {
            let sum = defer_to_process_pool(reactor, &pool, add, (1, 1));
            let panics = sum.add_callback(|sum| -> () { panic!("a callback panics with {sum}") });
            panics.add_both(|result: Result<(), Failure>| Ok(result.expect_err("a panic").to_string()))
        });
        assert!(text.expect("a text").contains("a callback panics with 2"));
        invariant.check();
    }

    /// Jobs are submitted from the errbacks of those that have killed their workers, and from callbacks, while the pool starts others.
    fn d6_jobs_are_submitted_while_the_pool_respawns() {
        let pool = pool(2);
        let there = pool.clone();
        let sums = on_a_reactor(move |reactor| {
            let all = (0..20).map(|n| {
                let (on, to) = (reactor.clone(), there.clone());
                let dies = defer_to_process_pool(reactor, &there, abort, ());
                let first = dies.add_both(move |died: Result<(), Failure>| {
                    let died = died.expect_err("it has aborted");
                    assert!(died.is::<WorkerDied>(), "{died:?}");
                    defer_to_process_pool(&on, &to, add, (n, 1))
                });
                let (on, to) = (reactor.clone(), there.clone());
                first.add_callback(move |sum: i64| defer_to_process_pool(&on, &to, add, (sum, 1)))
            });
            gather_results(all.collect::<Vec<_>>())
        });
        assert_eq!(sums.expect("each has its sum"), (2..22).collect::<Vec<i64>>());
        assert_eq!(pool.stats().died, 20);
    }

    /// Jobs are cancelled from the callbacks of others, as their answers come.
    fn c3_a_cancel_from_a_callback_has_one_outcome() {
        let pool = pool(2);
        let there = pool.clone();
        let outcomes = on_a_reactor(move |reactor| {
            let all = (0..2000).map(|n| {
                let first = defer_to_process_pool(reactor, &there, add, (n, 1));
                let second = defer_to_process_pool(reactor, &there, add, (n, 2));
                let cancel = second.cancel_handle();
                let first = first.add_callback(move |sum| {
                    cancel.cancel();
                    cancel.cancel();
                    Ok(sum == n + 1)
                });
                let second = second.add_both(move |result| match result {
                    Ok(sum) => Ok(sum == n + 2),
                    Err(failure) => Ok(failure.check::<CancelledError>().is_some()),
                });
                gather_results(vec![first, second])
            });
            gather_results(all.collect::<Vec<_>>())
        });
        assert!(outcomes.expect("each ends once").into_iter().flatten().all(|good| good));
        assert_eq!(pool.stats().finished, 4000);
    }

    /// A reactor stops while a job runs in a pool whose jobs have twenty minutes to stop.
    fn d5_the_end_of_a_reactor_does_not_wait_for_a_pools_grace() {
        let pool = crate::support::builder().size(1).cancel_grace(Duration::from_secs(1200)).build().expect("a pool");
        let gate = Gate::new();
        let reactor = Reactor::new().expect("a reactor");
        let job = defer_to_process_pool(&reactor, &pool, hold, (gate.path.clone(),));
        job.add_both(|result| {
            failed::<CancelledError, _>(result);
            Ok(())
        }).log_failure();
        let end = reactor.clone();
        when_held(&reactor, gate, move |held| {
            end.stop().expect("it runs");
            std::mem::forget(held); // the job goes on as long as it is let
        });
        let began = Instant::now();
        reactor.run().expect("the reactor runs");
        assert!(began.elapsed() < whole(), "{:?}", began.elapsed());
    }

    /// A pool is terminated with 100,000 jobs queued.
    fn d2_a_long_queue_fails_to_the_last() {
        let pool = pool(1);
        let there = pool.clone();
        let (outcomes, _) = on_any_reactor(move |reactor| {
            let running = defer_to_process_pool(reactor, &there, spin, ()).add_callback(|()| Ok(0));
            let queue = move |on: &Reactor, to: &Pool| -> Vec<_> {
                (0..10_000).map(|n| defer_to_process_pool(on, to, add, (n, 1))).collect()
            };
            let (on, to) = (reactor.clone(), there.clone());
            // In ten turns, as making so many takes its time.
            let jobs = ensure_deferred(async move {
                let mut jobs = Vec::new();
                for _ in 0..10 {
                    jobs.extend(queue(&on, &to));
                    defer_later(&on, Duration::ZERO, || Ok(())).await?;
                }
                to.terminate();
                Ok(jobs)
            });
            jobs.add_callback(move |jobs| {
                let all = jobs.into_iter().chain([running]).map(|d| {
                    d.add_both(|result| {
                        failed::<PoolClosed, _>(result);
                        Ok(())
                    })
                });
                gather_results(all.collect::<Vec<_>>())
            })
        });
        assert_eq!(outcomes.expect("each fails by itself").len(), 100_001);
        assert_eq!(pool.stats().finished, 100_001);
    }
}

//! The phases of a shutdown and what it waits for.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::{Log, run, stop, unhandled};
use errback_deferred::{Deferred, Failure, fail};
use errback_reactor::{Phase, Reactor, SystemEvent};

fn on_shutdown(reactor: &Reactor, phase: Phase, log: &Log, name: &'static str) {
    reactor.add_system_event_trigger(phase, SystemEvent::Shutdown, log.note(name));
}

#[test]
fn the_phases_come_in_order_and_the_loop_turns_while_before_is_waited_for() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    on_shutdown(&reactor, Phase::After, &log, "after");
    on_shutdown(&reactor, Phase::During, &log, "during");
    let (slow, noted) = (reactor.clone(), log.clone());
    reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move || {
        noted.add("before");
        let (resolver, deferred) = Deferred::<()>::new();
        let noted = noted.clone();
        slow.call_later(Duration::from_millis(5), move || {
            noted.add("timer");
            drop(resolver.callback(()));
        });
        deferred
    });
    on_shutdown(&reactor, Phase::Before, &log, "before, too");
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    log.assert(&["before", "before, too", "timer", "during", "after"]);
}

#[test]
fn the_deferreds_of_before_triggers_are_waited_for_side_by_side_whatever_they_come_to() {
    let (reports, _guard) = unhandled();
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    let resolvers = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..3 {
        let (resolver, deferred) = Deferred::<()>::new();
        resolvers.borrow_mut().push(resolver);
        reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move || deferred);
    }
    reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, || {
        fail::<()>(Failure::msg("failed"))
    });
    let (fire, noted) = (resolvers.clone(), log.clone());
    reactor.call_later(Duration::from_millis(5), move || {
        noted.add("firing");
        let mut resolvers = fire.take();
        drop(resolvers.pop()); // unfired
        drop(resolvers.pop().unwrap().errback(Failure::msg("no")));
        drop(resolvers.pop().unwrap().callback(()));
    });
    on_shutdown(&reactor, Phase::During, &log, "during");
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    log.assert(&["firing", "during"]);
    assert_eq!(reports.len(), 3);
}

#[test]
fn a_trigger_that_is_added_during_the_shutdown_runs_even_when_its_phase_has_gone_by() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    let (late, noted) = (reactor.clone(), log.clone());
    reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move || {
        on_shutdown(&late, Phase::Before, &noted, "before");
        let (later, noted) = (late.clone(), noted.clone());
        late.add_system_event_trigger(Phase::During, SystemEvent::Shutdown, move || {
            let inner = noted.clone();
            let pool = later.clone();
            later.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move || {
                inner.add("late");
                let (resolver, deferred) = Deferred::<()>::new();
                pool.call_later(Duration::from_millis(2), move || {
                    inner.add("waited for");
                    drop(resolver.callback(()));
                });
                deferred
            });
            noted.add("during");
        });
    });
    on_shutdown(&reactor, Phase::After, &log, "after");
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    log.assert(&["before", "during", "late", "waited for", "after"]);
}

#[test]
fn a_job_that_a_during_trigger_defers_to_a_thread_is_still_done() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    let (inner, noted) = (reactor.clone(), log.clone());
    reactor.add_system_event_trigger(Phase::During, SystemEvent::Shutdown, move || {
        drop(
            inner
                .defer_to_thread(|| Ok(1))
                .add_callback(move |n| noted.add(n)),
        );
    });
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    log.assert(&["1"]);
}

#[test]
fn services_outlive_the_run_and_go_with_the_last_handle() {
    struct Service(Log);
    impl Drop for Service {
        fn drop(&mut self) {
            self.0.add("dropped");
        }
    }
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    reactor.services().get_or_init(|| Service(log.clone()));
    on_shutdown(&reactor, Phase::After, &log, "after");
    reactor.call_when_running(stop(&reactor));
    run(&reactor);
    log.add("returned");
    assert!(reactor.services().get::<Service>().is_some());
    drop(reactor);
    log.assert(&["after", "returned", "dropped"]);
}

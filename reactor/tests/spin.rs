//! Looking before sleeping: who is asked, when, and that nobody starves meanwhile.

mod common;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use common::{run, stop, unhandled};
use errback_deferred::{BusyPoll, ReactorCore};
use errback_reactor::mio::Interest;
use errback_reactor::mio::net::UnixStream;
use errback_reactor::{Reactor, ReactorHandle};

/// A busy poll made of a closure.
struct Asked<F>(F);

fn asked<F: Fn() -> bool + 'static>(reactor: &Reactor, poll: F) -> (Rc<Asked<F>>, bool) {
    let asked = Rc::new(Asked(poll));
    let weak = Rc::downgrade(&asked);
    let spins = reactor.add_busy_poll(weak);
    (asked, spins)
}

impl<F: Fn() -> bool> BusyPoll for Asked<F> {
    fn poll(&self) -> bool {
        self.0()
    }
}

/// Stops the reactor at the fifth end of a look, by a call.
struct Looks {
    reactor: ReactorHandle,
    ends: Cell<u32>,
    polls: Cell<u32>,
}

impl Looks {
    fn of(reactor: &Reactor) -> Rc<Looks> {
        Rc::new(Looks {
            reactor: reactor.handle(),
            ends: Cell::new(0),
            polls: Cell::new(0),
        })
    }
}

impl BusyPoll for Looks {
    fn poll(&self) -> bool {
        self.polls.set(self.polls.get() + 1);
        false
    }

    fn done(&self) {
        self.ends.set(self.ends.get() + 1);
        let last = self.ends.get() == 5;
        let call = move |reactor: &Reactor| {
            if last {
                reactor.stop().unwrap();
            }
        };
        self.reactor.call_from_thread(call).unwrap();
    }
}

#[test]
fn a_busy_poll_is_asked_and_may_do_anything_even_stop_the_reactor() {
    let reactor = Reactor::new().unwrap();
    let end = reactor.clone();
    let (_held, spins) = asked(&reactor, move || end.stop().is_ok());
    if spins {
        run(&reactor); // nothing else would end it
    }
}

#[test]
fn a_reactor_that_does_not_spin_says_so_and_does_not_ask() {
    let reactor = Reactor::builder().spin(Duration::ZERO).build().unwrap();
    let looks = Looks::of(&reactor);
    let weak = Rc::downgrade(&looks);
    assert!(!reactor.add_busy_poll(weak));
    reactor.call_later(Duration::from_millis(3), stop(&reactor));
    run(&reactor);
    assert_eq!((looks.ends.get(), looks.polls.get()), (0, 0));
}

#[test]
fn a_busy_poll_that_was_dropped_is_not_asked_any_more() {
    let reactor = Reactor::new().unwrap();
    let (held, _) = asked(&reactor, || false);
    let seen = Rc::downgrade(&held);
    let held = RefCell::new(Some(held));
    reactor.call_later(Duration::from_millis(1), move || drop(held.take()));
    reactor.call_later(Duration::from_millis(3), stop(&reactor));
    run(&reactor);
    assert!(seen.upgrade().is_none());
}

#[test]
fn one_that_always_finds_something_starves_neither_sources_nor_timers_nor_calls() {
    let reactor = Reactor::new().unwrap();
    let (_held, _) = asked(&reactor, || true);
    let (stream, mut peer) = UnixStream::pair().unwrap();
    let inner = reactor.clone();
    reactor
        .register(stream, Interest::READABLE, move |_, _| {
            let same = inner.clone();
            inner.call_later(Duration::from_millis(1), move || {
                let handle = same.handle();
                thread::spawn(move || handle.call_from_thread(|reactor| reactor.stop().unwrap()));
            });
        })
        .unwrap()
        .keep();
    reactor.call_later(Duration::from_millis(1), move || {
        peer.write_all(b"x").unwrap();
        std::mem::forget(peer);
    });
    run(&reactor);
}

#[test]
fn a_call_that_is_made_at_the_end_of_a_look_is_not_missed() {
    let reactor = Reactor::new().unwrap();
    let looks = Looks::of(&reactor);
    let weak = Rc::downgrade(&looks);
    if !reactor.add_busy_poll(weak) {
        return; // nothing else would end it
    }
    // Looks become rare when they find nothing: it is to sleep until the next one.
    fn again(reactor: &Reactor) {
        let same = reactor.clone();
        reactor.call_later(Duration::from_micros(200), move || again(&same));
    }
    again(&reactor);
    run(&reactor);
    assert_eq!(looks.ends.get(), 5);
    assert!(looks.polls.get() >= 5);
}

#[test]
fn a_panic_in_a_busy_poll_is_reported_and_the_reactor_goes_on() {
    let (reports, _guard) = unhandled();
    let reactor = Reactor::new().unwrap();
    let panicked = Cell::new(false);
    let (_held, spins) = asked(&reactor, move || {
        if !panicked.replace(true) {
            panic!("busy");
        }
        false
    });
    reactor.call_later(Duration::from_millis(5), stop(&reactor));
    run(&reactor);
    if spins {
        reports.assert_one_with("busy");
    }
}

#[test]
fn whether_it_spins_or_not_every_call_is_answered() {
    for spin in [
        Duration::ZERO,
        Duration::from_micros(20),
        Duration::from_millis(1),
    ] {
        let reactor = Reactor::builder().spin(spin).build().unwrap();
        let handle = reactor.handle();
        let asker = thread::spawn(move || {
            for n in 0..500u64 {
                // At all times that matter: while it looks, as it falls asleep, and when it sleeps.
                let start = std::time::Instant::now();
                while start.elapsed() < Duration::from_micros(n % 50) {}
                assert_eq!(handle.block_on_from_thread(move |_| Ok(n)).unwrap(), n);
            }
            handle
                .call_from_thread(|reactor| reactor.stop().unwrap())
                .unwrap();
        });
        run(&reactor);
        asker.join().unwrap();
    }
}

//! Sources: real sockets, registered, changed and removed.

mod common;

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::rc::Rc;
use std::time::Duration;

use common::{Log, run, stop, unhandled};
use errback_reactor::mio::Interest;
use errback_reactor::mio::net::{TcpListener, TcpStream, UnixStream};
use errback_reactor::{Reactor, Registration};

#[test]
fn an_echo_over_tcp_goes_there_and_back() {
    const BYTES: usize = 1 << 20;
    let reactor = Reactor::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = reactor.clone();
    reactor
        .register(listener, Interest::READABLE, move |listener, _| {
            while let Ok((stream, _)) = listener.source().accept() {
                let mut unsent = Vec::new();
                let both = Interest::READABLE | Interest::WRITABLE;
                let echo = server.register(stream, both, move |mut stream, _| {
                    let at_end = stream.read_to_end(&mut unsent).is_ok();
                    while let Ok(sent @ 1..) = stream.write(&unsent) {
                        unsent.drain(..sent);
                    }
                    if at_end && unsent.is_empty() {
                        stream.deregister().unwrap();
                    }
                });
                echo.unwrap().keep();
            }
        })
        .unwrap()
        .keep();
    let client = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            stream.write_all(&vec![7; BYTES]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        received
    });
    let end = reactor.clone();
    let waited = reactor
        .defer_to_thread(move || {
            client
                .join()
                .map_err(|_| errback_deferred::Failure::msg("the client panicked"))
        })
        .add_both(move |received| {
            assert_eq!(received.unwrap(), vec![7; BYTES]);
            end.stop().unwrap();
        });
    run(&reactor);
    drop(waited);
}

#[test]
fn a_registration_may_be_dropped_from_inside_its_own_callback() {
    let reactor = Reactor::new().unwrap();
    let (ready, mut peer) = UnixStream::pair().unwrap();
    let holder: Rc<RefCell<Option<Registration<UnixStream>>>> = Rc::default();
    let calls = Rc::new(Cell::new(0));
    let (held, count, end) = (holder.clone(), calls.clone(), reactor.clone());
    let registration = reactor.register(ready, Interest::READABLE, move |stream, _| {
        count.set(count.get() + 1);
        drop(held.take().expect("it is called once"));
        assert!(!stream.is_registered());
        assert!(stream.reregister(Interest::READABLE).is_err());
        end.call_later(Duration::from_millis(5), stop(&end));
    });
    holder.replace(Some(registration.unwrap()));
    peer.write_all(b"x").unwrap();
    run(&reactor);
    assert_eq!(calls.get(), 1);
    assert_eq!(Rc::strong_count(&calls), 1, "the callback is gone");
    assert!(peer.write_all(b"x").is_err(), "the source is closed");
}

#[test]
fn a_source_that_another_callback_removes_gets_no_event_that_was_already_fetched() {
    let reactor = Reactor::new().unwrap();
    let log = Log::default();
    type Both = Rc<RefCell<Vec<Registration<UnixStream>>>>;
    let both: Both = Rc::default();
    let mut peers = Vec::new();
    for _ in 0..2 {
        let (ready, mut peer) = UnixStream::pair().unwrap();
        let (all, noted, end) = (both.clone(), log.clone(), reactor.clone());
        let registration = reactor.register(ready, Interest::READABLE, move |_, _| {
            noted.add("event");
            all.take(); // the other one, and this one
            // A new source in the same turn must not be taken for one of those.
            let (new, _) = UnixStream::pair().unwrap();
            let (noted, end) = (noted.clone(), end.clone());
            let new = end.clone().register(new, Interest::WRITABLE, move |_, _| {
                noted.add("new");
                end.stop().unwrap();
            });
            new.unwrap().keep();
        });
        both.borrow_mut().push(registration.unwrap());
        peer.write_all(b"x").unwrap();
        peers.push(peer);
    }
    run(&reactor);
    log.assert(&["event", "new"]);
}

#[test]
fn a_registration_may_be_changed_and_ended_while_its_source_is_borrowed() {
    let reactor = Reactor::new().unwrap();
    let (stream, mut peer) = UnixStream::pair().unwrap();
    let (log, end) = (Log::default(), reactor.clone());
    let noted = log.clone();
    reactor
        .register(stream, Interest::READABLE, move |stream, event| {
            let source = stream.source();
            if event.is_readable() {
                noted.add("readable");
                stream.reregister(Interest::WRITABLE).unwrap();
            } else {
                noted.add("writable");
                stream.deregister().unwrap();
                assert!(!stream.is_registered());
                end.call_later(Duration::from_millis(5), stop(&end));
            }
            drop(source);
        })
        .unwrap()
        .keep();
    peer.write_all(b"x").unwrap();
    run(&reactor);
    log.assert(&["readable", "writable"]);
    assert!(peer.write_all(b"x").is_err(), "the source is closed");
}

#[test]
fn reregistering_asks_again() {
    let reactor = Reactor::new().unwrap();
    let (stream, _peer) = UnixStream::pair().unwrap();
    let log = Log::default();
    let (noted, end) = (log.clone(), reactor.clone());
    let registration = reactor
        .register(stream, Interest::READABLE, move |stream, event| {
            assert!(event.is_writable());
            noted.add("writable");
            if noted.len() < 3 {
                stream.reregister(Interest::WRITABLE).unwrap(); // edge-triggered: otherwise none would come
            } else {
                end.stop().unwrap();
            }
        })
        .unwrap();
    let registration = Rc::new(registration);
    let later = registration.clone();
    reactor.call_later(Duration::from_millis(1), move || {
        later.reregister(Interest::WRITABLE).unwrap()
    });
    run(&reactor);
    log.assert(&["writable", "writable", "writable"]);
    assert!(
        !registration.is_registered(),
        "the reactor has let go of it"
    );
}

#[test]
fn a_callback_that_panics_is_reported_and_kept() {
    let (reports, _guard) = unhandled();
    let reactor = Reactor::new().unwrap();
    let (stream, mut peer) = UnixStream::pair().unwrap();
    let calls = Rc::new(Cell::new(0));
    let (count, end) = (calls.clone(), reactor.clone());
    let _registration = reactor
        .register(stream, Interest::READABLE, move |_, _| {
            count.set(count.get() + 1);
            if count.get() == 1 {
                panic!("the first time");
            }
            end.stop().unwrap();
        })
        .unwrap();
    peer.write_all(b"1").unwrap();
    let again = reactor.clone();
    let seen = calls.clone();
    fn when_called(reactor: Reactor, seen: Rc<Cell<i32>>, mut peer: UnixStream) {
        match seen.get() {
            0 => {
                let next = reactor.clone();
                reactor.call_later(Duration::from_millis(1), move || {
                    when_called(next, seen, peer)
                });
            }
            _ => peer.write_all(b"2").unwrap(),
        }
    }
    reactor.call_when_running(move || when_called(again, seen, peer));
    run(&reactor);
    assert_eq!(calls.get(), 2);
    reports.assert_one_with("the first time");
}

#[test]
fn a_connection_that_is_refused_is_an_event() {
    let reactor = Reactor::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let log = Log::default();
    let (noted, end) = (log.clone(), reactor.clone());
    let stream = TcpStream::connect(address).unwrap();
    let registration = reactor.register(stream, Interest::WRITABLE, move |stream, _| {
        if let Some(error) = stream.source().take_error().unwrap() {
            noted.add(error.kind());
            end.stop().unwrap();
        }
    });
    run(&reactor);
    drop(registration);
    log.assert(&["connection refused"]);
}

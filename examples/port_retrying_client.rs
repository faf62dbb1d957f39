//! A client that tries again: the same Twisted program once with callbacks and once as a coroutine.
//!
//! In Twisted one writes
//! ```python
//! def fetch(server, n=1):
//!     d = server.request(n).addTimeout(3, clock)    # for this attempt
//!     return d.addErrback(retry, server, n)
//!
//! def retry(failure, server, n):
//!     failure.trap(OSError, TimeoutError)           # anything else is final
//!     if n == ATTEMPTS:
//!         return failure
//!     return deferLater(clock, 2 ** (n - 1), fetch, server, n + 1)
//!
//! d = fetch(server).addTimeout(18, clock)           # for all together; d.cancel() stops all
//! ```
//!
//! What changes on the way to Rust: extra arguments are captured by `move` closures; an errback that traps,
//! and then waits, does so in `try_deferred`, where `?` is to be had; and a Deferred that was given away to its
//! last callback is cancelled through a handle taken before. Everything is on a `Clock` that `main` turns by hand.

use std::fmt::Display;
use std::io::{self, ErrorKind::ConnectionRefused};
use std::iter::repeat_n;
use std::rc::Rc;
use std::time::Duration;

use errback::{
    CancelledError, Clock, Deferred, Failure, ReactorTime, TimeoutError, defer_later,
    ensure_deferred, try_deferred,
};

const ATTEMPTS: u32 = 4;
const PER_ATTEMPT: Duration = Duration::from_secs(3);
const OVERALL: Duration = Duration::from_secs(18);

/// How long an attempt takes, in seconds, and what comes of it.
type Answer = fn(attempt: u32) -> (u64, Result<&'static str, Failure>);

/// Stands for the network.
struct Server {
    clock: Clock,
    answer: Answer,
}

impl Server {
    fn request(self: &Rc<Self>, n: u32) -> Deferred<&'static str> {
        self.say(format!("attempt {n}"));
        let (seconds, result) = (self.answer)(n);
        let server = self.clone();
        defer_later(&self.clock, Duration::from_secs(seconds), || result).add_errback(
            move |failure| {
                if failure.is::<CancelledError>() {
                    server.say(format!("attempt {n} is aborted"));
                }
                Err(failure)
            },
        )
    }

    fn say(&self, what: impl Display) {
        println!("{:>4}s  {what}", self.clock.seconds().as_secs());
    }
}

/// Errors after which another attempt may go better.
type Passing = (io::Error, TimeoutError);

/// The failure itself, when that was the last attempt.
fn ensure_more(n: u32, failure: Failure) -> Result<(), Failure> {
    if n < ATTEMPTS { Ok(()) } else { Err(failure) }
}

fn pause_after(n: u32) -> Duration {
    Duration::from_secs(1 << (n - 1))
}

/// With callbacks: each errback returns the Deferred of all that is still to come.
fn fetch(server: Rc<Server>, n: u32) -> Deferred<&'static str> {
    let attempt = server.request(n).add_timeout(PER_ATTEMPT, &server.clock);
    attempt.add_errback(move |failure| {
        try_deferred(|| {
            failure.trap_any::<Passing>()?; // anything else is final
            ensure_more(n, failure)?;
            let clock = server.clock.clone();
            Ok(defer_later(&clock, pause_after(n), move || {
                fetch(server, n + 1)
            }))
        })
    })
}

/// As a coroutine: a loop. A cancel arrives at whichever `await` is under way, as its failure.
fn fetch_in_a_loop(server: Rc<Server>) -> Deferred<&'static str> {
    ensure_deferred(async move {
        let mut n = 1;
        loop {
            let attempt = server.request(n).add_timeout(PER_ATTEMPT, &server.clock);
            match attempt.await {
                Err(failure) if failure.is_any::<Passing>() => ensure_more(n, failure)?,
                result => return result,
            }
            defer_later(&server.clock, pause_after(n), || ()).await?;
            n += 1;
        }
    })
}

fn run(what: &str, cancel_at: Option<u64>, answer: Answer) {
    for fetch in [|server| fetch(server, 1), fetch_in_a_loop] {
        println!("{what}:");
        let clock = Clock::new();
        let server = Rc::new(Server {
            clock: clock.clone(),
            answer,
        });
        let page = fetch(server.clone()).add_timeout(OVERALL, &clock);
        if let Some(at) = cancel_at {
            let handle = page.cancel_handle();
            clock.call_later(Duration::from_secs(at), move || handle.cancel());
        }
        let _told = page.add_both(move |result| match result {
            Ok(page) => server.say(page),
            Err(failure) => server.say(format!("gave up: {failure}")),
        });
        clock.pump(repeat_n(Duration::from_secs(1), 60));
        assert!(
            clock.delayed_calls().is_empty(),
            "nothing goes on behind our back"
        );
    }
}

fn main() {
    let refused = |_| (2, Err(io::Error::from(ConnectionRefused).into()));
    let slow = |_| (60, Ok("200 at last"));
    run("refused", None, refused);
    run("an error that is final", None, |_| {
        (1, Err(Failure::msg("404 not found")))
    });
    run("one slow answer", None, |n| {
        (if n == 1 { 9 } else { 1 }, Ok("200 hello"))
    });
    run("nothing but slow answers", None, slow);
    run("cancelled during an attempt", Some(5), slow);
    run("cancelled during a pause", Some(6), refused);
}

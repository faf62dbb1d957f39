//! Bench C: calls from other threads into a reactor's; there and back, and many at once.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use errback::{Failure, Reactor, ReactorHandle};

use crate::Done;
use crate::machine::{Ack, Place};
use crate::options::Options;
use crate::report::{greatest, median};

/// A reactor on a thread of its own.
struct Elsewhere {
    handle: ReactorHandle,
    thread: JoinHandle<Done>,
}

impl Elsewhere {
    fn start(place: Place) -> Result<Elsewhere, Failure> {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            place.take_other();
            let reactor = Reactor::new()?;
            sender.send(reactor.handle())?;
            Ok(reactor.run()?)
        });
        let handle = receiver.recv()?;
        // The reactor runs, and what it does the first time is done.
        handle.block_on_from_thread(|_| Ok(()))?;
        Ok(Elsewhere { handle, thread })
    }

    fn end(self) -> Done {
        self.handle.call_from_thread(|reactor| {
            reactor.stop().expect("nobody else stops it");
        })?;
        self.thread.join().expect("nothing panics there")
    }
}

/// A call that answers the thread which made it, one at a time.
pub(crate) fn round_trips(options: &Options) -> Done {
    let places = match options.one_core {
        true => vec![Place::Free], // that is the one core
        false => Place::ALL.to_vec(),
    };
    let count = options.count(20_000);
    for place in places {
        let ending = if options.one_core { "" } else { place.ending() };
        // A thread of its own, because it is bound to a core.
        let measured = thread::spawn(move || round_trips_at(place, count)).join();
        let mut times = measured.expect("nothing panics there")?;
        options.row("C", ending).say_percentiles("rtt", &mut times);
    }
    Ok(())
}

fn round_trips_at(place: Place, count: usize) -> Result<Vec<Duration>, Failure> {
    let reactor = Elsewhere::start(place)?;
    place.take();
    let ack: Arc<Ack> = Arc::default();
    let ping = || {
        let start = Instant::now();
        let answer = Arc::clone(&ack);
        reactor.handle.call_from_thread(move |_| answer.set())?;
        ack.wait();
        Ok::<_, Failure>(start.elapsed())
    };
    for _ in 0..count / 10 {
        ping()?;
    }
    let times = (0..count).map(|_| ping()).collect::<Result<_, _>>()?;
    reactor.end()?;
    Ok(times)
}

/// 200,000 calls from one thread, and from four at a time.
pub(crate) fn calls(options: &Options) -> Done {
    let row = options.row("C", "");
    for producers in [1, 4] {
        let rates = (0..options.rounds(11))
            .map(|_| rate(options.count(200_000), producers))
            .collect::<Result<Vec<_>, _>>()?;
        let name = format!("calls_{producers}p");
        row.say(&format!("{name}_per_s"), median(&rates), "calls/s");
        row.say(&format!("{name}_best_per_s"), greatest(&rates), "calls/s");
    }
    Ok(())
}

/// Calls per second, from the first that a thread makes to the last that the reactor runs.
fn rate(calls: usize, producers: usize) -> Result<f64, Failure> {
    let reactor = Elsewhere::start(Place::Free)?;
    // Leaked, so that a call holds one plain reference, and no count of references is fought over.
    let tally: &'static Tally = Box::leak(Box::new(Tally::new(calls as u64)));
    let go = Arc::new(Barrier::new(producers));
    let threads: Vec<_> = (0..producers)
        .map(|_| {
            let (handle, go) = (reactor.handle.clone(), Arc::clone(&go));
            thread::spawn(move || {
                go.wait();
                tally.begin();
                (0..calls / producers)
                    .try_for_each(|_| handle.call_from_thread(move |_| tally.count_one()))
            })
        })
        .collect();
    tally.all_have_run.wait();
    for thread in threads {
        thread.join().expect("nothing panics there")?;
    }
    reactor.end()?;
    Ok(calls as f64 / tally.time().as_secs_f64())
}

/// Counts the calls that ran.
struct Tally {
    epoch: Instant,
    calls: u64,
    /// Only the reactor's thread writes it.
    ran: AtomicU64,
    /// When the first thread began, and the last call ran: nanoseconds since the epoch.
    begun: AtomicU64,
    ended: AtomicU64,
    all_have_run: Ack,
}

impl Tally {
    fn new(calls: u64) -> Tally {
        Tally {
            epoch: Instant::now(),
            calls,
            ran: AtomicU64::new(0),
            begun: AtomicU64::new(u64::MAX),
            ended: AtomicU64::new(0),
            all_have_run: Ack::default(),
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn begin(&self) {
        self.begun.fetch_min(self.now(), AcqRel);
    }

    fn count_one(&self) {
        let ran = self.ran.load(Relaxed) + 1;
        self.ran.store(ran, Relaxed);
        if ran == self.calls {
            self.ended.store(self.now(), Release);
            self.all_have_run.set();
        }
    }

    fn time(&self) -> Duration {
        Duration::from_nanos(self.ended.load(Acquire) - self.begun.load(Acquire))
    }
}

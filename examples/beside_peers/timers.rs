//! Bench B: a million timers, nine of ten taken back, the rest run; and one timer alone.
//!
//! Each is due at an offset plus up to a second. The offset is long enough that all are made and cancelled before the
//! first is due, so that each step is measured by itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use errback::{Deferred, Failure, Reactor, Resolver};

use crate::machine::{cpu_time, resident};
use crate::options::Options;
use crate::report::{Row, microseconds, percentile};
use crate::{Done, on_a_reactor};

pub(crate) fn timers(options: &Options) -> Done {
    let row = options.row("B", "");
    let many = options.count(1_000_000);
    let offset = Duration::from_millis(if options.quick { 500 } else { 2500 });
    on_a_reactor(move |reactor| async move {
        let costs = loaded(&reactor, Plan::new(many, offset)).await?;
        costs.report(&row);
        row.say("timers_offset_ms", offset.as_secs_f64() * 1e3, "ms");
        let mut late = alone(&reactor).await?;
        late.sort_unstable();
        say_lateness(&row, "alone_late", &late, &[("p50", 0.5), ("p99", 0.99)]);
        Ok(())
    })
}

/// When the timers are due, and which are taken back; the same in each run.
pub(crate) struct Plan {
    offset: Duration,
    delays: Vec<Duration>,
    kept: Vec<usize>,
    /// In the order in which they are cancelled.
    cancelled: Vec<usize>,
}

impl Plan {
    pub(crate) fn new(many: usize, offset: Duration) -> Plan {
        let mut random = XorShift(0x9E37_79B9_7F4A_7C15);
        let delays = (0..many)
            .map(|_| offset + Duration::from_nanos(random.next() % 1_000_000_000))
            .collect();
        let mut kept: Vec<usize> = (0..many).collect();
        for i in (1..many).rev() {
            kept.swap(i, (random.next() % (i as u64 + 1)) as usize);
        }
        let cancelled = kept.split_off(many / 10);
        Plan {
            offset,
            delays,
            kept,
            cancelled,
        }
    }
}

struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What the timers of a plan cost.
pub(crate) struct Costs {
    timers: usize,
    pub(crate) schedule: Duration,
    cancelled: usize,
    cancel: Duration,
    /// From the last cancel to the last timer that ran: its CPU time, sleeps left out.
    fire: Duration,
    /// How much later than due each ran, in ascending order.
    late: Vec<Duration>,
    /// What was resident more when all were scheduled, in MiB.
    pub(crate) memory: f64,
}

impl Costs {
    /// Nanoseconds for each timer, all steps together.
    pub(crate) fn each(&self) -> f64 {
        nanoseconds_each(self.schedule + self.cancel + self.fire, self.timers)
    }

    fn report(&self, row: &Row) {
        let each = nanoseconds_each;
        row.say(
            "timers_schedule_ns",
            each(self.schedule, self.timers),
            "ns/call_later",
        );
        row.say(
            "timers_cancel_ns",
            each(self.cancel, self.cancelled),
            "ns/cancel",
        );
        row.say(
            "timers_fire_cpu_ns",
            each(self.fire, self.late.len()),
            "ns CPU/fired",
        );
        row.say("timers_total_cpu_ns", self.each(), "ns CPU/timer");
        let parts = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)];
        say_lateness(row, "timers_late", &self.late, &parts);
        row.say("timers_peak_mib", self.memory, "MiB");
    }
}

fn nanoseconds_each(time: Duration, many: usize) -> f64 {
    time.as_nanos() as f64 / many as f64
}

fn say_lateness(row: &Row, prefix: &str, late: &[Duration], parts: &[(&str, f64)]) {
    for (name, part) in parts {
        let value = microseconds(percentile(late, *part));
        row.say(&format!("{prefix}_{name}_us"), value, "us");
    }
}

/// What the timers share.
struct Fired {
    reactor: Reactor,
    /// Which ones ran, and when.
    ran: RefCell<Vec<(usize, Duration)>>,
    last: Cell<Option<Resolver<()>>>,
    many: usize,
}

impl Fired {
    fn note(&self, timer: usize) {
        let mut ran = self.ran.borrow_mut();
        ran.push((timer, self.reactor.seconds()));
        if ran.len() == self.many {
            drop(ran);
            let last = self.last.take().expect("one timer is the last");
            last.callback(()).expect("it is fired once");
        }
    }
}

/// Makes the timers of a plan, cancels those that are to be, and waits for the rest.
pub(crate) async fn loaded(reactor: &Reactor, plan: Plan) -> Result<Costs, Failure> {
    let (last, all_have_fired) = Deferred::new();
    let many = plan.kept.len();
    let fired = Rc::new(Fired {
        reactor: reactor.clone(),
        ran: RefCell::new(Vec::with_capacity(many)),
        last: Cell::new(Some(last)),
        many,
    });
    let timers = plan.delays.len();
    let mut calls = Vec::with_capacity(timers);
    let before = resident();
    let begun = Instant::now();
    for (i, delay) in plan.delays.iter().enumerate() {
        let fired = Rc::clone(&fired);
        calls.push(reactor.call_later(*delay, move || fired.note(i)));
    }
    let schedule = begun.elapsed();
    let memory = resident() - before;

    let start = Instant::now();
    for i in &plan.cancelled {
        calls[*i].cancel()?;
    }
    let cancel = start.elapsed();

    let mut due = vec![Duration::ZERO; timers];
    for i in &plan.kept {
        due[*i] = calls[*i].get_time()?;
    }
    errback::ensure!(begun.elapsed() < plan.offset, "the offset is too short");
    let start = cpu_time();
    all_have_fired.await?;
    let fire = cpu_time() - start;

    let ran = fired.ran.borrow();
    let mut late: Vec<Duration> = ran.iter().map(|(i, at)| *at - due[*i]).collect();
    late.sort_unstable();
    Ok(Costs {
        timers,
        schedule,
        cancelled: plan.cancelled.len(),
        cancel,
        fire,
        late,
        memory,
    })
}

/// How late a timer is that has the loop to itself: a hundred, one after the other, 1 to 10 ms away.
async fn alone(reactor: &Reactor) -> Result<Vec<Duration>, Failure> {
    let mut late = Vec::new();
    for k in 0..100 {
        let (resolver, fired) = Deferred::new();
        let clock = reactor.clone();
        let delay = Duration::from_micros(1000 + k * 90);
        let call = reactor.call_later(delay, move || {
            let now = clock.seconds();
            resolver.callback(now).expect("it is fired once");
        });
        let due = call.get_time()?;
        late.push(fired.await? - due);
    }
    Ok(late)
}

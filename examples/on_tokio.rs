//! The same jobs without a `Reactor`: on tokio's current-thread runtime.
//!
//! A process pool asks little of an event loop: calls from other threads, time, and to be told of the end. Here tokio gives
//! all three, through one small struct, [`TokioLoop`], that implements errback's traits. The Deferreds are the same, callbacks
//! and all; and since a Deferred is a future too, what runs on tokio awaits it.
//!
//! The order to read it in: `main` and `jobs` use the loop, then comes the loop.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use errback::{
    Deferred, DelayedCall, DelayedCalls, Failure, LoopGone, NotActive, Phase, Pool, ReactorCore,
    ReactorFromThreads, ReactorTime, SystemEvent, TriggerId, WorkerDied, contain,
    defer_to_process_pool, enter_loop, gather_results,
};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

/// How many primes there are in a range.
#[errback::task]
pub(crate) fn count_primes(from: u64, to: u64) -> usize {
    (from.max(2)..to)
        .filter(|n| (2..).take_while(|d| d * d <= *n).all(|d| n % d != 0))
        .count()
}

/// Ends its process, as a bug in a C library would.
#[errback::task]
pub(crate) fn crash() {
    std::process::abort();
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let event_loop = TokioLoop::new();
        let result = jobs(&event_loop).await;
        event_loop.stop().await;
        result
    })
}

async fn jobs(event_loop: &TokioLoop) -> Result<(), Failure> {
    let pool = Pool::builder().name("on-tokio").build()?;

    // With a callback and an errback, as on any loop.
    let crashed = defer_to_process_pool(event_loop, &pool, crash, ()).add_errback(|failure| {
        let died = failure.trap::<WorkerDied>()?;
        println!("the crash stayed in its process: {died}");
        Ok(())
    });

    // Awaited, as a future. This thread goes on with tokio's other tasks meanwhile.
    let first = defer_to_process_pool(event_loop, &pool, count_primes, (0, 100_000)).await?;
    println!("{first} primes below 100000");

    // Several at once: they run side by side, and one await takes the lot.
    let ranges = (1..10).map(|i| (i * 100_000, (i + 1) * 100_000));
    let counts = ranges.map(|range| defer_to_process_pool(event_loop, &pool, count_primes, range));
    let rest: usize = gather_results(counts).await?.into_iter().sum();
    println!("{} primes below 1000000", first + rest);

    crashed.await
}

// ---------------------------------------------------------------- the loop

/// Tokio as errback sees it. To be made and used in a [`LocalSet`]; clones are the same loop.
#[derive(Clone)]
pub(crate) struct TokioLoop {
    inbox: Arc<Inbox>,
    timers: Rc<Timers>,
    triggers: Rc<Triggers>,
}

impl TokioLoop {
    /// The loop of the `LocalSet` in which this is called.
    pub(crate) fn new() -> TokioLoop {
        let (inbox, calls) = mpsc::unbounded_channel();
        let inbox = Arc::new(Inbox(inbox));
        spawn_local(run_calls(calls, inbox.clone()));
        TokioLoop {
            inbox,
            timers: Rc::new(Timers::new()),
            triggers: Rc::default(),
        }
    }

    /// Runs the triggers of the shutdown, phase by phase. When it returns, the Deferreds of all jobs have fired.
    pub(crate) async fn stop(&self) {
        for phase in [Phase::Before, Phase::During, Phase::After] {
            let waited_for: Vec<_> = self
                .triggers
                .take(phase)
                .into_iter()
                .filter_map(|trigger| trigger())
                .collect();
            for d in waited_for {
                let _ = d.await; // a trigger that failed is no reason to stay
            }
        }
    }
}

impl Default for TokioLoop {
    fn default() -> Self {
        TokioLoop::new()
    }
}

impl ReactorCore for TokioLoop {
    fn from_threads(&self) -> Arc<dyn ReactorFromThreads> {
        self.inbox.clone()
    }

    fn add_system_event_trigger(
        &self,
        phase: Phase,
        event: SystemEvent,
        trigger: Trigger,
    ) -> TriggerId {
        match event {
            SystemEvent::Shutdown => self.triggers.add(phase, trigger),
            // This loop has been running since before it was made.
            SystemEvent::Startup => {
                spawn_local(async move { drop(contain(trigger)) });
                TriggerId(0)
            }
        }
    }

    fn remove_system_event_trigger(&self, id: TriggerId) -> bool {
        self.triggers.remove(id)
    }
}

impl ReactorTime for TokioLoop {
    fn seconds(&self) -> Duration {
        self.timers.now()
    }

    fn call_later(&self, delay: Duration, call: Box<dyn FnOnce()>) -> DelayedCall {
        DelayedCall::new(Timers::add(&self.timers, delay, call), 0)
    }
}

// ---------------------------------------------------------------- calls from other threads

/// What other threads hold of the loop. It has no bound: whoever hands over a result must not be made to wait.
struct Inbox(mpsc::UnboundedSender<Call>);

type Call = Box<dyn FnOnce() + Send>;

impl ReactorFromThreads for Inbox {
    fn call_from_thread(&self, call: Call) -> Result<(), LoopGone> {
        self.0.send(call).map_err(|_| LoopGone)
    }
}

/// Makes the calls, in their order. Ends with the `LocalSet`; from then on the loop is gone.
async fn run_calls(mut calls: mpsc::UnboundedReceiver<Call>, inbox: Arc<Inbox>) {
    let _entered = enter_loop(inbox); // coroutines on this thread are woken through us
    while let Some(call) = calls.recv().await {
        let _ = contain(call); // its panic has been printed, and the other calls are to be made all the same
    }
}

// ---------------------------------------------------------------- time

/// The calls that are to be made later, in the order in which they are due, and then as they were asked for: tokio's own
/// timers have no order among those of the same millisecond.
struct Timers {
    origin: Instant,
    queue: RefCell<BTreeMap<Turn, Rc<Timer>>>,
    made: Cell<u64>,
}

/// When a call is due, and its number.
type Turn = (Duration, u64);

/// One call that is to be made later.
struct Timer {
    timers: Rc<Timers>,
    number: u64,
    /// When it is due, or how it came to its end.
    due: Cell<Result<Duration, NotActive>>,
    call: Cell<Option<Box<dyn FnOnce()>>>,
}

impl Timers {
    fn new() -> Timers {
        Timers {
            origin: Instant::now(),
            queue: RefCell::default(),
            made: Cell::new(0),
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn add(timers: &Rc<Timers>, delay: Duration, call: Box<dyn FnOnce()>) -> Rc<Timer> {
        let number = timers.made.replace(timers.made.get() + 1);
        let due = Cell::new(Err(NotActive::AlreadyCancelled)); // until it is in the queue
        let timer = Rc::new(Timer {
            timers: timers.clone(),
            number,
            due,
            call: Cell::new(Some(call)),
        });
        timer.clone().enqueue(timers.now().saturating_add(delay));
        timer
    }

    /// Makes the calls that are due.
    fn run_due(&self) {
        while let Some(timer) = self.next_due() {
            timer.due.set(Err(NotActive::AlreadyCalled));
            let _ = timer.call.take().map(contain); // its panic has been printed
        }
    }

    fn next_due(&self) -> Option<Rc<Timer>> {
        let mut queue = self.queue.borrow_mut();
        let first = queue
            .first_entry()
            .filter(|first| first.key().0 <= self.now())?;
        Some(first.remove())
    }
}

impl Timer {
    /// Takes its place in the queue, and has somebody look there when it is due. Whoever comes then makes all calls that are
    /// due; that is nothing when this one has been moved.
    fn enqueue(self: Rc<Self>, due: Duration) {
        self.due.set(Ok(due));
        let timers = self.timers.clone();
        timers.queue.borrow_mut().insert((due, self.number), self);
        spawn_local(async move {
            sleep(due.saturating_sub(timers.now())).await;
            timers.run_due();
        });
    }

    /// Gives up its place in the queue.
    fn dequeue(&self) -> Result<(Duration, Rc<Timer>), NotActive> {
        let due = self.due.get()?;
        let timer = self.timers.queue.borrow_mut().remove(&(due, self.number));
        Ok((due, timer.expect("a call that has a time is in the queue")))
    }
}

impl DelayedCalls for Timer {
    fn cancel(&self, _id: u64) -> Result<(), NotActive> {
        self.dequeue()?;
        self.due.set(Err(NotActive::AlreadyCancelled));
        drop(self.call.take());
        Ok(())
    }

    fn reset(&self, _id: u64, delay: Duration) -> Result<(), NotActive> {
        let (_, timer) = self.dequeue()?;
        timer.enqueue(self.timers.now().saturating_add(delay));
        Ok(())
    }

    fn delay(&self, _id: u64, delay: Duration) -> Result<(), NotActive> {
        let (due, timer) = self.dequeue()?;
        timer.enqueue(due.saturating_add(delay));
        Ok(())
    }

    fn due(&self, _id: u64) -> Result<Duration, NotActive> {
        self.due.get()
    }
}

// ---------------------------------------------------------------- the end

type Trigger = Box<dyn FnOnce() -> Option<Deferred<()>>>;

/// What is to be done before, during and after the shutdown.
#[derive(Default)]
struct Triggers {
    waiting: RefCell<BTreeMap<u64, (Phase, Trigger)>>,
    made: Cell<u64>,
}

impl Triggers {
    fn add(&self, phase: Phase, trigger: Trigger) -> TriggerId {
        let id = self.made.get() + 1;
        self.made.set(id);
        self.waiting.borrow_mut().insert(id, (phase, trigger));
        TriggerId(id)
    }

    fn remove(&self, id: TriggerId) -> bool {
        self.waiting.borrow_mut().remove(&id.0).is_some()
    }

    fn take(&self, phase: Phase) -> Vec<Trigger> {
        let mut waiting = self.waiting.borrow_mut();
        let (now, later) = std::mem::take(&mut *waiting)
            .into_iter()
            .partition(|(_, (at, _))| *at == phase);
        *waiting = later;
        let now: BTreeMap<u64, (Phase, Trigger)> = now;
        now.into_values().map(|(_, trigger)| trigger).collect()
    }
}

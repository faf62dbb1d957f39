//! A function that is called again and again: Twisted's `LoopingCall`.
//!
//! Calls keep to the times at which they would have been made had each of them taken no time at all: a call that takes
//! too long, or waits too long for its Deferred, skips the times that it missed and does not shift those that follow.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::store::TakeCell;
use crate::{
    Deferred, DelayedCall, Failure, IntoOutcome, ReactorTime, Resolver, fail, maybe_deferred,
    succeed,
};

/// Calls a function at regular times.
///
/// If the function returns a Deferred, the next call waits for it. A failure ends the loop.
///
/// ```
/// use errback_deferred::{Clock, LoopingCall};
/// use std::{cell::Cell, rc::Rc, time::Duration};
///
/// let clock = Clock::new();
/// let count = Rc::new(Cell::new(0));
/// let counted = count.clone();
/// let beat = LoopingCall::new(clock.clone(), move || counted.set(counted.get() + 1));
/// let stopped = beat.start(Duration::from_secs(1), true); // `true`: the first call now
/// clock.pump([Duration::from_secs(1); 3]);
/// assert_eq!(count.get(), 4);
/// beat.stop();
/// # stopped.add_callback(|_| ());
/// ```
///
/// A clone is another handle to the same loop. A loop that runs is kept alive by its clock, and keeps the clock: stop it
/// before letting go of both.
#[derive(Clone)]
pub struct LoopingCall {
    inner: Rc<Loop>,
}

/// Calls the function, with the number of calls that should have been made.
type Function = Box<dyn FnMut(u64) -> Deferred<()>>;

struct Loop {
    clock: Box<dyn ReactorTime>,
    /// Taken out while it runs.
    function: TakeCell<Function>,
    counting: bool,
    running: Cell<bool>,
    /// A call has been made whose result is not there.
    busy: Cell<bool>,
    interval: Cell<Duration>,
    now: Cell<bool>,
    started_at: Cell<Duration>,
    /// When counting: the time of the last call.
    last: Cell<Option<Duration>>,
    call: Cell<Option<DelayedCall>>,
    /// The other end of what `start` returned.
    resolver: Cell<Option<Resolver<LoopingCall>>>,
}

impl LoopingCall {
    /// A loop that will call `function` on the time of `clock`; it is not started yet.
    pub fn new<R: IntoOutcome>(
        clock: impl ReactorTime + 'static,
        mut function: impl FnMut() -> R + 'static,
    ) -> Self {
        LoopingCall::make(clock, false, move |_| function())
    }

    /// As [`new`](LoopingCall::new); `function` is given the number of calls that should have been made since the last one.
    ///
    /// It is 1 unless times were missed. Twisted's `LoopingCall.withCount`.
    ///
    /// ```
    /// use errback_deferred::{Clock, LoopingCall};
    /// use std::{cell::RefCell, rc::Rc, time::Duration};
    ///
    /// let clock = Clock::new();
    /// let counts = Rc::new(RefCell::new(Vec::new()));
    /// let log = counts.clone();
    /// let frames = LoopingCall::with_count(clock.clone(), move |n| log.borrow_mut().push(n));
    /// let stopped = frames.start(Duration::from_secs(1), false);
    /// clock.advance(Duration::from_secs(1));
    /// clock.advance(Duration::from_secs(3));
    /// assert_eq!(*counts.borrow(), [1, 3]);
    /// frames.stop();
    /// # stopped.add_callback(|_| ());
    /// ```
    pub fn with_count<R: IntoOutcome>(
        clock: impl ReactorTime + 'static,
        function: impl FnMut(u64) -> R + 'static,
    ) -> Self {
        LoopingCall::make(clock, true, function)
    }

    fn make<R: IntoOutcome>(
        clock: impl ReactorTime + 'static,
        counting: bool,
        mut function: impl FnMut(u64) -> R + 'static,
    ) -> Self {
        let function: Function =
            Box::new(move |count| maybe_deferred(|| function(count)).add_callback(|_| ()));
        LoopingCall {
            inner: Rc::new(Loop {
                clock: Box::new(clock),
                function: TakeCell::new(Some(function)),
                counting,
                running: Cell::new(false),
                busy: Cell::new(false),
                interval: Cell::new(Duration::ZERO),
                now: Cell::new(false),
                started_at: Cell::new(Duration::ZERO),
                last: Cell::new(None),
                call: Cell::new(None),
                resolver: Cell::new(None),
            }),
        }
    }

    /// Starts to call the function every `interval`, the first time `now` or after the first interval.
    ///
    /// An interval of zero calls again as soon as the loop's clock lets it. The Deferred fires with this loop when it is
    /// stopped, or fails with the failure that ended it. Cancelling the Deferred makes it fail, and does *not* stop the
    /// loop. It fails with [`AlreadyRunning`] when the loop runs, or waits for the Deferred of a call before it was
    /// stopped.
    #[track_caller]
    pub fn start(&self, interval: Duration, now: bool) -> Deferred<LoopingCall> {
        let this = &self.inner;
        if this.running.get() || this.busy.get() {
            return fail(AlreadyRunning);
        }
        let (resolver, d) = Deferred::new();
        this.running.set(true);
        this.resolver.set(Some(resolver));
        this.started_at.set(this.clock.seconds());
        this.interval.set(interval);
        this.now.set(now);
        this.last.set(None);
        if now {
            this.clone().run();
        } else {
            this.schedule_from(this.started_at.get());
        }
        d
    }

    /// Stops: no further call is made.
    ///
    /// The Deferred of [`start`](LoopingCall::start) fires before this returns or, when a call is under way, when that has its
    /// result. Nothing happens when the loop does not run.
    pub fn stop(&self) {
        let this = &self.inner;
        if this.running.replace(false)
            && let Some(call) = this.call.take()
        {
            let _ = call.cancel();
            this.stopped();
        }
    }

    /// Skips the next call and counts the intervals from now on. Nothing happens when no call is due.
    pub fn reset(&self) {
        let this = &self.inner;
        if let Some(call) = this.call.take() {
            let _ = call.cancel();
            this.started_at.set(this.clock.seconds());
            this.schedule_from(this.started_at.get());
        }
    }

    /// Whether it has been started, and neither stopped nor ended by a failure.
    pub fn running(&self) -> bool {
        self.inner.running.get()
    }

    /// The time between two calls, as given to [`start`](LoopingCall::start).
    pub fn interval(&self) -> Duration {
        self.inner.interval.get()
    }
}

impl Loop {
    fn run(self: Rc<Self>) {
        self.call.take();
        self.busy.set(true);
        let d = match self.missed() {
            0 => succeed(()),
            count => self.call_function(count),
        };
        let (ran, failed) = (self.clone(), self);
        d.add_callback(move |()| ran.ran())
            .add_errback(move |failure| failed.failed(failure));
    }

    fn call_function(&self, count: u64) -> Deferred<()> {
        let mut function = self.function.take().expect("it runs once at a time");
        let d = function(count); // it does not panic: `maybe_deferred` sees to that
        self.function.put(function);
        d
    }

    /// How many calls should have been made since the last one, this one included; always 1 when nobody counts.
    fn missed(&self) -> u64 {
        if !self.counting || self.interval.get().is_zero() {
            return 1;
        }
        let now = self.clock.seconds();
        let before = match self.last.get() {
            Some(last) => self.interval_of(last),
            None if self.now.get() => -1,
            None => 0,
        };
        let count = u64::try_from(self.interval_of(now) - before).unwrap_or(0);
        if count > 0 {
            self.last.set(Some(now));
        }
        count
    }

    /// In which interval since the start a time lies. Times before the start are rounded towards it, as in Twisted.
    fn interval_of(&self, time: Duration) -> i128 {
        let nanos = |d: Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
        (nanos(time) - nanos(self.started_at.get())) / nanos(self.interval.get())
    }

    fn ran(self: Rc<Self>) {
        self.busy.set(false);
        if self.running.get() {
            self.schedule_from(self.clock.seconds());
        } else {
            self.stopped();
        }
    }

    fn failed(&self, failure: Failure) {
        self.busy.set(false);
        self.running.set(false);
        if let Some(resolver) = self.resolver.take() {
            let _ = resolver.errback(failure); // it was cancelled, and that was told
        }
    }

    fn stopped(self: &Rc<Self>) {
        if let Some(resolver) = self.resolver.take() {
            let this = LoopingCall {
                inner: self.clone(),
            };
            let _ = resolver.callback(this); // as above
        }
    }

    fn schedule_from(self: &Rc<Self>, when: Duration) {
        let this = self.clone();
        let call = self
            .clock
            .call_later(self.until_next(when), Box::new(move || this.run()));
        self.call.set(Some(call));
    }

    fn until_next(&self, when: Duration) -> Duration {
        let interval = self.interval.get();
        if interval.is_zero() {
            return interval;
        }
        let since_start = when.saturating_sub(self.started_at.get()).as_nanos();
        let into_interval = since_start % interval.as_nanos();
        interval - nanos(into_interval)
    }
}

/// `Duration::from_nanos` takes only 584 years.
fn nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanos / SECOND).unwrap_or(u64::MAX);
    Duration::new(seconds, (nanos % SECOND) as u32)
}

impl fmt::Debug for LoopingCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.running() { "running" } else { "stopped" };
        write!(f, "<LoopingCall every {:?}, {state}>", self.interval())
    }
}

/// The loop was started before, and has not come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AlreadyRunning;

impl fmt::Display for AlreadyRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this looping call runs already")
    }
}

impl std::error::Error for AlreadyRunning {}

//! The reactor: its life, one turn of its loop, and its shutdown.
//!
//! The parts that do the work do not know each other: timers, calls from threads, sources, triggers, the thread pool.
//! What comes after what is decided here and nowhere else. No borrow is held while a callback runs, so that a callback
//! may do anything that code outside may do.

use std::cell::Cell;
use std::fmt;
use std::hint;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use errback_deferred::event_loop::SmallCall;
use errback_deferred::{
    BusyPoll, Deferred, DelayedCall, IntoOutcome, Phase, ReactorCore, ReactorFromThreads,
    ReactorTime, SystemEvent, TriggerId, enter_loop, log_err, maybe_deferred,
};
use mio::event::{Event, Source};
use mio::{Events, Interest, Poll, Waker};

use crate::alarm::Alarm;
use crate::reports::contained;
use crate::services::Services;
use crate::signals::SignalHandlers;
use crate::sources::{ALARM, Registered, Registration, Sources, WAKE};
use crate::spin::{BusyPolls, DEFAULT_SPIN, SOURCES_EVERY, Spin};
use crate::thread_calls::{HangUp, ReactorHandle, ThreadCalls};
use crate::threads::{ThreadPoolError, ThreadResult, Threads};
use crate::timers::Timers;
use crate::triggers::{Trigger, Triggers};

/// An event loop on mio. A handle: clones are the same reactor, and all of them stay on its thread.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use errback_reactor::Reactor;
/// use std::time::Duration;
///
/// let reactor = Reactor::new()?;
/// let same = reactor.clone();
/// reactor.call_later(Duration::from_millis(5), move || same.stop().unwrap());
/// reactor.run()?;
/// # Ok(())
/// # }
/// ```
///
/// A callback that panics does not take the reactor down: the panic becomes a failure that goes to the observer of
/// unhandled failures ([`errback_deferred::observe_unhandled`]), and the reactor goes on.
#[derive(Clone)]
pub struct Reactor(Rc<Core>);

struct Core {
    state: Cell<State>,
    /// `run` takes it.
    poller: Cell<Option<Poller>>,
    timers: Rc<Timers>,
    calls: Arc<ThreadCalls>,
    hang_up: Cell<Option<HangUp>>,
    sources: Rc<Sources>,
    busy_polls: BusyPolls,
    /// Whether the busy polls are ever asked.
    spins: bool,
    triggers: Triggers,
    /// How many Deferreds of shutdown triggers have not fired yet.
    awaited: Rc<Cell<usize>>,
    threads: Threads,
    wants_signals: bool,
    exit_signal: Cell<Option<i32>>,
    services: Services,
}

/// The life of a reactor. It goes through these in order, once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum State {
    /// `run` has not been called.
    New,
    Running,
    /// `stop` has been called; the turn's third step will begin the shutdown.
    StopAsked,
    /// Before-triggers have run; their Deferreds are waited for.
    Before,
    /// During-triggers have run; the threads of the pool are waited for.
    During,
    /// After-triggers have run; the loop is left.
    After,
    /// `run` has returned, or is about to.
    Stopped,
}

/// What only the running loop needs; it lives on `run`'s stack.
struct Poller {
    poll: Poll,
    alarm: Alarm,
    spin: Spin,
    events: Events,
}

/// How many events one poll fetches at most; the rest come with the next.
const EVENTS: usize = 1024;

/// How often the last calls from threads may bring about others before we take them for endless.
const LAST_ROUNDS: usize = 1000;

impl Reactor {
    /// A reactor with the defaults of [`Reactor::builder`].
    ///
    /// # Errors
    /// When the operating system has no descriptors left for it.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> io::Result<Reactor> {
        Reactor::builder().build()
    }

    /// A reactor to be made otherwise than by default.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::builder().thread_pool_size(2).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    // ---------------------------------------------------------------- running

    /// Runs the loop on this thread until [`stop`](Self::stop); returns when the shutdown is complete.
    ///
    /// A reactor runs once (as Twisted's: its triggers have run and its pools are closed). Make a new one for another run;
    /// any number of them may exist, one after another or side by side. When this returns, every Deferred that a function
    /// in the thread pool was to fire has fired, the pool's threads have ended, and timers and sources that were left are
    /// dropped.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::{Reactor, RunError};
    ///
    /// let reactor = Reactor::new()?;
    /// let inner = reactor.clone();
    /// reactor.call_when_running(move || {
    ///     assert!(matches!(inner.run(), Err(RunError::AlreadyRunning)));
    ///     inner.stop().unwrap();
    /// });
    /// reactor.run()?;
    /// assert!(matches!(reactor.run(), Err(RunError::NotRestartable)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RunError`]: it runs already, it has run, or the operating system refuses to poll.
    pub fn run(&self) -> Result<(), RunError> {
        let core = &self.0;
        match core.state.get() {
            State::New => core.state.set(State::Running),
            State::Stopped => return Err(RunError::NotRestartable),
            _ => return Err(RunError::AlreadyRunning),
        }
        let _entered = enter_loop(self.from_threads()); // coroutines that await other futures are woken by us
        let ended = self.run_to_the_end();
        self.wind_up();
        ended
    }

    fn run_to_the_end(&self) -> Result<(), RunError> {
        let core = &self.0;
        let mut poller = core
            .poller
            .take()
            .expect("only `run` takes it, and runs once");
        let handlers = core.wants_signals.then(|| SignalHandlers::install(self));
        let _handlers = handlers.transpose().map_err(RunError::Signals)?;
        self.run_triggers(SystemEvent::Startup, Phase::After);
        while core.state.get() < State::After {
            self.turn(&mut poller).map_err(RunError::Poll)?;
        }
        Ok(())
    }

    /// One turn of the loop, in this order:
    ///
    /// 1. the calls from threads that were there when the turn began, in the order of each thread;
    /// 2. the timers that are due now, in order of time and then of `call_later`;
    /// 3. the shutdown, if it was asked for or is waiting for something;
    /// 4. one poll, which sleeps until there is a reason for another turn, and the callbacks of the sources it finds ready.
    ///    Before it sleeps it may look for a while ([`Builder::spin`]), and asks the [busy polls](BusyPoll) too.
    ///
    /// What a step brings about for a step before it, or for itself, comes in the next turn: nobody can keep the others
    /// waiting for ever.
    fn turn(&self, poller: &mut Poller) -> io::Result<()> {
        self.0.calls.run_batch(self);
        self.0.timers.run_due();
        self.advance_shutdown();
        if self.0.state.get() == State::After {
            Ok(())
        } else {
            poller.poll(&self.0)
        }
    }

    /// Asks the reactor to shut down; the shutdown begins in this turn or the next.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::{Reactor, ReactorNotRunning};
    ///
    /// let reactor = Reactor::new()?;
    /// assert_eq!(reactor.stop(), Err(ReactorNotRunning));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ReactorNotRunning`] when it does not run or was asked to stop before.
    pub fn stop(&self) -> Result<(), ReactorNotRunning> {
        if self.0.state.get() != State::Running {
            return Err(ReactorNotRunning);
        }
        self.0.state.set(State::StopAsked);
        Ok(())
    }

    pub(crate) fn stop_for_signal(&self, signal: i32) {
        self.0.exit_signal.set(Some(signal));
        let _ = self.stop(); // an error: it is stopping already
    }

    /// Goes on with the shutdown as far as it can be gone now. The steps:
    ///
    /// 1. `stop` sets `StopAsked`; nothing else happens before the turn's third step.
    /// 2. *Before*: these triggers run, and the loop turns until each Deferred that they returned has fired. A failure is
    ///    reported and counts as fired. A trigger that is added meanwhile runs and is waited for too, and so is one that
    ///    is added after its phase has gone by: it would never run otherwise.
    /// 3. *During*: these triggers run. Then the thread pool takes no more jobs, threads that wait in
    ///    `block_on_from_thread` are released (one of the pool's that waited for an answer which never comes would keep
    ///    us from ending), and the loop turns until the pool's threads have done what was queued and left. Each says
    ///    farewell by a call from a thread, after its last result, so that those results have been delivered by then.
    /// 4. *After*: these triggers run, and the loop is left. The rest is in [`wind_up`](Self::wind_up).
    fn advance_shutdown(&self) {
        let core = &self.0;
        if core.state.get() == State::StopAsked {
            core.state.set(State::Before);
        }
        if core.state.get() == State::Before && self.is_through(Phase::Before) {
            core.state.set(State::During);
            self.run_triggers(SystemEvent::Shutdown, Phase::During);
            core.threads.close();
            core.hang_up.take();
        }
        if core.state.get() == State::During
            && core.threads.are_gone()
            && self.is_through(Phase::During)
        {
            self.run_triggers(SystemEvent::Shutdown, Phase::After);
            core.state.set(State::After);
        }
    }

    /// Runs the shutdown's triggers up to `phase`; whether nothing of theirs is left to wait for.
    fn is_through(&self, phase: Phase) -> bool {
        self.run_triggers(SystemEvent::Shutdown, phase);
        self.0.awaited.get() == 0
    }

    fn run_triggers(&self, event: SystemEvent, up_to: Phase) {
        while let Some(trigger) = self.0.triggers.next(event, up_to) {
            contained("a system event trigger", || {
                let deferred = trigger();
                if let (SystemEvent::Shutdown, Some(deferred)) = (event, deferred) {
                    self.wait_for(deferred);
                }
            });
        }
    }

    fn wait_for(&self, deferred: Deferred<()>) {
        let awaited = self.0.awaited.clone();
        awaited.set(awaited.get() + 1);
        let through = deferred.add_both(move |result| {
            awaited.set(awaited.get() - 1);
            if let Err(failure) = result {
                log_err(failure, "a shutdown trigger");
            }
        });
        drop(through); // it runs all the same
    }

    /// What is left to do after the loop:
    ///
    /// 1. No thread is promised anything any more, and the pool takes no jobs (after an error of the poll that has not
    ///    been done yet).
    /// 2. Timers and sources are dropped; they may own resolvers, whose Deferreds fail then.
    /// 3. The calls from threads that are there run until none is left, and under the same lock the queue closes: later
    ///    ones are told [`LoopGone`](crate::LoopGone). Where calls keep bringing about others it closes after a number of
    ///    rounds, before the last one: what was accepted is made in any case.
    /// 4. Services stay: what is asked of them now must meet a closed service, not a new one.
    fn wind_up(&self) {
        let core = &self.0;
        core.state.set(State::Stopped);
        core.threads.close();
        core.hang_up.take();
        core.timers.close();
        core.sources.close();
        for _ in 0..LAST_ROUNDS {
            if core.calls.close_if_empty() {
                break;
            }
            core.calls.run_batch(self);
        }
        core.calls.run_last(self);
        core.triggers.clear();
    }

    /// Whether `run` has been called and has not begun to return. True during the shutdown too.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// assert!(!errback_reactor::Reactor::new()?.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_running(&self) -> bool {
        (State::Running..State::Stopped).contains(&self.0.state.get())
    }

    /// The signal that stopped this reactor, if one did; see [`Builder::install_signal_handlers`].
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// assert_eq!(errback_reactor::Reactor::new()?.exit_signal(), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn exit_signal(&self) -> Option<i32> {
        self.0.exit_signal.get()
    }

    // ---------------------------------------------------------------- time

    /// The time since this reactor was made, on the system's monotonic clock.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// let before = reactor.seconds();
    /// assert!(reactor.seconds() >= before);
    /// # Ok(())
    /// # }
    /// ```
    pub fn seconds(&self) -> Duration {
        self.0.timers.seconds()
    }

    /// Calls `call` once, `delay` from now, and never before: some tens of microseconds after, if the machine has nothing
    /// else to do. Where the system has no timerfd for us it is up to a millisecond.
    ///
    /// Timers wake the loop at most every 50 microseconds; those that come faster are made together. A sleep that a
    /// timer ends costs about 10 to 20 microseconds of CPU.
    ///
    /// Calls due at the same time are made in the order of `call_later`. One without delay is made in the next turn. On
    /// a reactor that has stopped, the call is dropped at once and its [`DelayedCall`] says that it was cancelled.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::Reactor;
    /// use std::time::Duration;
    ///
    /// let reactor = Reactor::new()?;
    /// let alarm = reactor.call_later(Duration::from_secs(60), || unreachable!());
    /// let end = reactor.clone();
    /// reactor.call_later(Duration::from_millis(1), move || {
    ///     alarm.cancel().unwrap();
    ///     end.stop().unwrap();
    /// });
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn call_later(&self, delay: Duration, call: impl FnOnce() + 'static) -> DelayedCall {
        self.0.timers.call_later(delay, SmallCall::new(call))
    }

    // ---------------------------------------------------------------- start and end

    /// Calls `call` when the reactor has started: now, if it has.
    ///
    /// Returns the trigger to take it back by, if it has not been called yet. On a reactor that has stopped it is
    /// dropped.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::Reactor;
    ///
    /// let reactor = Reactor::new()?;
    /// let end = reactor.clone();
    /// reactor.call_when_running(move || end.stop().unwrap());
    /// let not_now = reactor.call_when_running(|| unreachable!()).unwrap();
    /// assert!(reactor.remove_system_event_trigger(not_now));
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn call_when_running(&self, call: impl FnOnce() + 'static) -> Option<TriggerId> {
        match self.0.state.get() {
            State::New => {
                Some(self.add_system_event_trigger(Phase::After, SystemEvent::Startup, call))
            }
            State::Stopped => None,
            _ => {
                call();
                None
            }
        }
    }

    /// Runs `trigger` when the reactor starts or shuts down, in the order of phases and within a phase of adding.
    ///
    /// The shutdown waits for a Deferred that a `Before` trigger returns, and the loop keeps turning meanwhile. (A
    /// Deferred of another phase, or of the startup, is not waited for, but for one case: a trigger whose phase has gone
    /// by runs at the next opportunity and the shutdown waits for it.) A failure or a panic is reported, and the other
    /// triggers run. On a reactor that has stopped, the trigger is dropped.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::{Phase, Reactor, SystemEvent};
    ///
    /// let reactor = Reactor::new()?;
    /// let pool = reactor.clone();
    /// reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move || {
    ///     pool.defer_to_thread(|| Ok(std::fs::write("/dev/null", "the state to be kept")?))
    /// });
    /// let end = reactor.clone();
    /// reactor.call_when_running(move || end.stop().unwrap());
    /// reactor.run()?; // returns when that has been written
    /// # Ok(())
    /// # }
    /// ```
    pub fn add_system_event_trigger<R: IntoOutcome<Value = ()>>(
        &self,
        phase: Phase,
        event: SystemEvent,
        trigger: impl FnOnce() -> R + 'static,
    ) -> TriggerId {
        self.add_trigger(
            phase,
            event,
            Box::new(move || Some(maybe_deferred(trigger))),
        )
    }

    fn add_trigger(&self, phase: Phase, event: SystemEvent, trigger: Trigger) -> TriggerId {
        let id = self.0.triggers.add(phase, event, trigger);
        if self.0.state.get() == State::Stopped {
            self.0.triggers.clear();
        }
        id
    }

    /// Takes a trigger back; whether it was still there.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use errback_reactor::{Phase, SystemEvent};
    ///
    /// let reactor = errback_reactor::Reactor::new()?;
    /// let id = reactor.add_system_event_trigger(Phase::During, SystemEvent::Shutdown, || ());
    /// assert!(reactor.remove_system_event_trigger(id));
    /// assert!(!reactor.remove_system_event_trigger(id));
    /// # Ok(())
    /// # }
    /// ```
    pub fn remove_system_event_trigger(&self, id: TriggerId) -> bool {
        self.0.triggers.remove(id)
    }

    // ---------------------------------------------------------------- threads

    /// The handle by which other threads reach this reactor.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let handle = errback_reactor::Reactor::new()?.handle();
    /// let refused = std::thread::spawn(move || handle.call_from_thread(|_| unreachable!())).join().unwrap();
    /// assert!(refused.is_err()); // the reactor was dropped
    /// # Ok(())
    /// # }
    /// ```
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle(self.0.calls.clone())
    }

    /// Calls `call` in the next turn, after what other threads have asked for already. As
    /// [`ReactorHandle::call_from_thread`], for when one is on the reactor's thread; dropped after the reactor's end.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// reactor.call_from_thread(|reactor| reactor.stop().unwrap());
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn call_from_thread(&self, call: impl FnOnce(&Reactor) + Send + 'static) {
        let _ = self.handle().call_from_thread(call);
    }

    /// Runs `f` in a thread of the pool; the Deferred fires with what it returns.
    ///
    /// A panic in `f` is a failure too ([`PanicError`](errback_deferred::PanicError)). The pool is made by the first
    /// call, its threads when there is more to do than threads, up to ten
    /// ([`suggest_thread_pool_size`](Self::suggest_thread_pool_size)). What is queued when the reactor shuts down is still
    /// done, and `run` returns after it.
    ///
    /// Cancelling fails the Deferred with `CancelledError` at once. If `f` was still queued, it is dropped then and there;
    /// if it runs, it runs to its end and its result is dropped.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::Reactor;
    ///
    /// let reactor = Reactor::new()?;
    /// let end = reactor.clone();
    /// reactor
    ///     .defer_to_thread(|| Ok("8080".parse::<u16>()?))
    ///     .add_both(move |port| {
    ///         assert_eq!(port.unwrap(), 8080);
    ///         end.stop().unwrap();
    ///     });
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// On the Deferred: the failure that `f` returned, or [`ThreadPoolError`].
    #[track_caller]
    pub fn defer_to_thread<R: ThreadResult>(
        &self,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> Deferred<R::Value> {
        self.0.threads.defer_to_thread(&self.handle(), f)
    }

    /// Runs `f` in a thread of the pool, and nobody waits for it. Its panic is reported on the reactor's thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// let handle = reactor.handle();
    /// reactor.call_in_thread(move || handle.call_from_thread(|reactor| reactor.stop().unwrap()).unwrap())?;
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ThreadPoolError`]; `f` has been dropped.
    pub fn call_in_thread(&self, f: impl FnOnce() + Send + 'static) -> Result<(), ThreadPoolError> {
        self.0.threads.call_in_thread(&self.handle(), f)
    }

    /// How many threads the pool may have; at least one. Those that have been started stay.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// errback_reactor::Reactor::new()?.suggest_thread_pool_size(30);
    /// # Ok(())
    /// # }
    /// ```
    pub fn suggest_thread_pool_size(&self, size: usize) {
        self.0.threads.suggest_size(size);
    }

    pub(crate) fn threads(&self) -> &Threads {
        &self.0.threads
    }

    // ---------------------------------------------------------------- sources and services

    /// Watches `source`, and runs `callback` when it is ready for what `interest` says.
    ///
    /// Events are edge-triggered, as mio's are: the callback reads (writes, accepts) until it is told that it would
    /// block, or no further event comes. It may be called without cause. It is given the source with its registration,
    /// by which it may change or end the watching. If it panics it is kept, and called at the next event.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use errback_reactor::{Reactor, mio::{Interest, net::UnixStream}};
    /// use std::io::{Read, Write};
    ///
    /// let reactor = Reactor::new()?;
    /// let (stream, mut peer) = UnixStream::pair()?;
    /// let end = reactor.clone();
    /// let registration = reactor.register(stream, Interest::READABLE, move |mut stream, _event| {
    ///     let mut text = String::new();
    ///     let _would_block = stream.read_to_string(&mut text);
    ///     if text == "bye" {
    ///         end.stop().unwrap();
    ///     }
    /// })?;
    /// peer.write_all(b"bye")?;
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the operating system says; and when the reactor has stopped.
    pub fn register<S: Source + 'static>(
        &self,
        source: S,
        interest: Interest,
        callback: impl FnMut(&Registered<S>, &Event) + 'static,
    ) -> io::Result<Registration<S>> {
        self.0
            .sources
            .register(source, interest, Box::new(callback))
    }

    /// What hangs on this reactor, by type.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// let names = reactor.services().get_or_init(Vec::<String>::new);
    /// assert!(names.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn services(&self) -> &Services {
        &self.0.services
    }
}

impl Poller {
    /// Sleeps until a source is ready, a thread calls or a timer is due, and runs the callbacks of the sources.
    fn poll(&mut self, core: &Core) -> io::Result<()> {
        let looks = self.spin.is_worth_it();
        let yields = self.spin.yields();
        if core.is_busy() || (looks && !yields && self.spin(core)?) {
            return self.look(core).map(drop);
        }
        if looks && yields && self.let_others_run(core) {
            return self.look(core).map(drop);
        }
        self.sleep(core)
    }

    /// Lets others run who have this one core too; whether they brought something.
    fn let_others_run(&mut self, core: &Core) -> bool {
        if core.calls.is_waiting() {
            return true; // whoever was told of the sleep called
        }
        let began = Instant::now();
        thread::yield_now();
        let found = core.calls.is_waiting();
        self.spin.let_others_run(began.elapsed(), found);
        found
    }

    /// Looks for a while; whether there is something to do. A timer ends it and is no reason for it: its time is known.
    fn spin(&mut self, core: &Core) -> io::Result<bool> {
        let began = Instant::now();
        let mut time = Duration::ZERO;
        let mut look_again = time;
        while time <= self.spin.limit() && !core.timers.is_due() {
            let mut found = Ok(core.calls.is_waiting() || core.busy_polls.poll());
            let looks = matches!(found, Ok(false)) && time >= look_again;
            if looks {
                look_again = time + SOURCES_EVERY;
                found = self.fetch(core, Some(Duration::ZERO));
            }
            if !matches!(found, Ok(false)) {
                core.busy_polls.done(); // before anything runs that may take its time
                self.spin.found();
                if looks {
                    self.dispatch(core);
                }
                return found;
            }
            hint::spin_loop();
            time = began.elapsed();
        }
        core.busy_polls.done();
        self.spin.found_nothing(time);
        Ok(false)
    }

    /// Serves the sources that are ready now; whether there were any.
    fn look(&mut self, core: &Core) -> io::Result<bool> {
        let ready = self.fetch(core, Some(Duration::ZERO))?;
        self.dispatch(core);
        Ok(ready)
    }

    fn sleep(&mut self, core: &Core) -> io::Result<()> {
        // A call that comes after this line wakes the poll; one that came before makes it return at once.
        let patience = if core.calls.go_to_sleep() {
            self.alarm.set(core.timers.patience())
        } else {
            Some(Duration::ZERO)
        };
        let began = self.spin.is_on().then(Instant::now);
        let fetched = self.fetch(core, patience);
        core.calls.wake_up();
        fetched?;
        if let Some(began) = began {
            let awaited = self.events.iter().any(|event| event.token() != ALARM);
            self.spin.slept(began.elapsed(), awaited);
        }
        self.dispatch(core);
        Ok(())
    }

    /// Asks which sources are ready, and waits so long for one; whether there is one.
    fn fetch(&mut self, core: &Core, patience: Option<Duration>) -> io::Result<bool> {
        core.sources.settle();
        match self.poll.poll(&mut self.events, patience) {
            // A signal handler of somebody's ran. Nothing is known of the sources; the next turn asks again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            other => other.map(|()| !self.events.is_empty()),
        }
    }

    fn dispatch(&mut self, core: &Core) {
        for event in &self.events {
            match event.token() {
                WAKE => (),
                ALARM => self.alarm.has_rung(),
                _ => core.sources.dispatch(event),
            }
        }
    }
}

impl Core {
    /// Whether the next turn has something to do already.
    fn is_busy(&self) -> bool {
        self.calls.is_waiting() || self.timers.is_due()
    }
}

impl Drop for Core {
    /// For the reactor that never ran; otherwise there is nothing left here.
    fn drop(&mut self) {
        self.threads.close();
        self.hang_up.take();
        self.timers.close();
        self.sources.close();
        self.calls.close();
    }
}

/// How a reactor is to be; from [`Reactor::builder`].
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let reactor = errback_reactor::Reactor::builder().thread_pool_size(4).install_signal_handlers(true).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    thread_pool_size: Option<usize>,
    install_signal_handlers: bool,
    spin: Option<Duration>,
}

impl Builder {
    /// How many threads the pool may have, at least one; ten unless told.
    ///
    /// ```
    /// let builder = errback_reactor::Reactor::builder().thread_pool_size(4);
    /// ```
    pub fn thread_pool_size(mut self, size: usize) -> Builder {
        self.thread_pool_size = Some(size);
        self
    }

    /// Whether SIGINT and SIGTERM stop this reactor while it runs; not unless told, since that is process-wide.
    ///
    /// The first signal stops the reactor and is then its [`exit_signal`](Reactor::exit_signal). A second one has its
    /// default action: it ends the process at once, even while the loop is blocked. When no such reactor runs any more,
    /// signals are as they were before; handlers that others had installed are called all the time.
    ///
    /// ```
    /// let builder = errback_reactor::Reactor::builder().install_signal_handlers(true);
    /// ```
    pub fn install_signal_handlers(mut self, install: bool) -> Builder {
        self.install_signal_handlers = install;
        self
    }

    /// How long the loop looks for something to do before it sleeps: 20 microseconds unless told, zero is not at all.
    /// The threads of the pool do the same, one at a time.
    ///
    /// Falling asleep and being woken takes tens of microseconds, so whatever comes sooner is served faster: a call from
    /// another thread, a source that becomes ready, an answer of a process pool. Where nothing comes soon the looks
    /// become rare, one in a thousand sleeps, and a reactor at rest uses no CPU. With one core, which whoever is to answer
    /// needs, the loop does not look but lets others run, once.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = errback_reactor::Reactor::builder().spin(Duration::ZERO);
    /// ```
    pub fn spin(mut self, limit: Duration) -> Builder {
        self.spin = Some(limit);
        self
    }

    /// Makes the reactor. It belongs to the thread that calls this.
    ///
    /// # Errors
    /// When the operating system has no descriptors left for it.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::builder().build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn build(self) -> io::Result<Reactor> {
        let poll = Poll::new()?;
        let (calls, hang_up) = ThreadCalls::new(Waker::new(poll.registry(), WAKE)?);
        let alarm = Alarm::new(poll.registry(), ALARM);
        let spin_limit = self.spin.unwrap_or(DEFAULT_SPIN);
        let spin = Spin::new(spin_limit);
        let spins = spin.is_on() && !spin.yields();
        let sources = Sources::new(poll.registry().try_clone()?);
        Ok(Reactor(Rc::new(Core {
            state: Cell::new(State::New),
            poller: Cell::new(Some(Poller {
                poll,
                alarm,
                spin,
                events: Events::with_capacity(EVENTS),
            })),
            timers: Timers::new(),
            calls,
            hang_up: Cell::new(Some(hang_up)),
            sources,
            busy_polls: BusyPolls::default(),
            spins,
            triggers: Triggers::default(),
            awaited: Rc::default(),
            threads: Threads::new(self.thread_pool_size, spin_limit),
            wants_signals: self.install_signal_handlers,
            exit_signal: Cell::new(None),
            services: Services::default(),
        })))
    }
}

// ---------------------------------------------------------------- as an event loop for Deferreds

impl ReactorTime for Reactor {
    fn seconds(&self) -> Duration {
        self.seconds()
    }

    fn call_later(&self, delay: Duration, call: Box<dyn FnOnce()>) -> DelayedCall {
        self.0.timers.call_later(delay, SmallCall::new(call))
    }
}

impl ReactorCore for Reactor {
    fn from_threads(&self) -> Arc<dyn ReactorFromThreads> {
        self.0.calls.clone()
    }

    fn add_system_event_trigger(
        &self,
        phase: Phase,
        event: SystemEvent,
        trigger: Trigger,
    ) -> TriggerId {
        self.add_trigger(phase, event, trigger)
    }

    fn remove_system_event_trigger(&self, id: TriggerId) -> bool {
        self.remove_system_event_trigger(id)
    }

    /// False when this reactor does not [spin](Builder::spin), on one core for instance.
    fn add_busy_poll(&self, poll: Weak<dyn BusyPoll>) -> bool {
        self.0.busy_polls.add(poll);
        self.0.spins
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.0;
        f.debug_struct("Reactor")
            .field("state", &core.state.get())
            .field("services", &core.services)
            .finish_non_exhaustive()
    }
}

// ---------------------------------------------------------------- errors

/// Why `run` did not run, or did not end well.
#[derive(Debug)]
pub enum RunError {
    /// It is running: `run` was called from one of its own callbacks.
    AlreadyRunning,
    /// It has run before. Make a new one.
    NotRestartable,
    /// The operating system refused to set up the signal handlers. Nothing has run.
    Signals(io::Error),
    /// The operating system refused to poll. The shutdown was cut short: its triggers have not run.
    Poll(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RunError::AlreadyRunning => "the reactor is already running",
            RunError::NotRestartable => "a reactor runs only once; make a new one",
            RunError::Signals(_) => "the reactor could not set up its signal handlers",
            RunError::Poll(_) => "the reactor could not wait for events",
        })
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Signals(error) | RunError::Poll(error) => Some(error),
            RunError::AlreadyRunning | RunError::NotRestartable => None,
        }
    }
}

/// The reactor cannot be stopped: it does not run, or it was asked to stop before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReactorNotRunning;

impl fmt::Display for ReactorNotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reactor cannot be stopped: it is not running, or is stopping already")
    }
}

impl std::error::Error for ReactorNotRunning {}

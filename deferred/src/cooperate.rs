//! Long work cut into steps, so that the event loop stays responsive: Twisted's `Cooperator`.
//!
//! A task is an iterator, and a step of it one call of `next`. In each turn the tasks take steps one after the other, until
//! the slice of time is used up; then the loop may do something else before the next turn. A step that yields a Deferred puts
//! its task aside until that one has fired.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::store::TakeCell;
use crate::{
    Deferred, DelayedCall, Failure, IntoOutcome, Outcome, ReactorTime, Resolver, contain, fail,
    succeed,
};

/// How long the tasks may work in one turn.
const SLICE: Duration = Duration::from_millis(10);

/// How soon after a turn the next one comes: at once, but after what else the loop has to do.
const SOON: Duration = Duration::from_nanos(10);

/// Says when a turn has lasted long enough.
type Enough = Box<dyn FnMut() -> bool>;

/// Divides time between tasks.
///
/// ```
/// use errback_deferred::{Clock, Cooperator, Failure};
/// use std::{cell::RefCell, rc::Rc, time::Duration};
///
/// let clock = Clock::new();
/// let cooperator = Cooperator::new(clock.clone());
/// let log = Rc::new(RefCell::new(Vec::new()));
/// let (one, other) = (log.clone(), log.clone());
/// let a = cooperator.cooperate((0..2).map(move |i| one.borrow_mut().push(("a", i))));
/// let b = cooperator.cooperate((0..2).map(move |i| other.borrow_mut().push(("b", i))));
/// clock.advance(Duration::from_secs(1));
/// assert_eq!(*log.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
/// # a.when_done().add_callback(|()| ());
/// # b.when_done().add_callback(|()| ());
/// ```
///
/// A clone is another handle to the same cooperator. There is no global one, as there is no global event loop.
#[derive(Clone)]
pub struct Cooperator {
    scheduler: Rc<Scheduler>,
}

impl Cooperator {
    /// A cooperator whose turns are made by `clock`, and last about 10 milliseconds of real time.
    pub fn new(clock: impl ReactorTime + 'static) -> Self {
        Cooperator::with_termination(clock, || {
            let start = Instant::now();
            move || start.elapsed() >= SLICE
        })
    }

    /// As [`new`](Cooperator::new); `termination` is called at the start of each turn, and what it returns is asked after each
    /// step whether that turn is over (Twisted's `terminationPredicateFactory`).
    ///
    /// ```
    /// use errback_deferred::{Clock, Cooperator};
    /// let one_step_a_turn = Cooperator::with_termination(Clock::new(), || || true);
    /// ```
    pub fn with_termination<P: FnMut() -> bool + 'static>(
        clock: impl ReactorTime + 'static,
        termination: impl Fn() -> P + 'static,
    ) -> Self {
        Cooperator {
            scheduler: Rc::new(Scheduler {
                clock: Box::new(clock),
                termination: Box::new(move || Box::new(termination())),
                tasks: RefCell::new(Vec::new()),
                next: Cell::new(0),
                call: Cell::new(None),
                started: Cell::new(true),
                stopped: Cell::new(false),
            }),
        }
    }

    /// Works through `steps`, and gives a handle to that work.
    ///
    /// Each item is one step's result: `()` or `Ok(…)` goes on, an `Err` ends the task, and a Deferred is waited for. A panic
    /// ends the task too. On a cooperator that was stopped the task is finished at once.
    pub fn cooperate<I>(&self, steps: I) -> CooperativeTask
    where
        I: IntoIterator<IntoIter: 'static, Item: IntoOutcome>,
    {
        let mut steps = steps.into_iter();
        let task = Rc::new(Task {
            scheduler: self.scheduler.clone(),
            step: TakeCell::new(Some(Box::new(move || step(&mut steps)))),
            pauses: Cell::new(0),
            end: RefCell::new(None),
            waiting: RefCell::new(Vec::new()),
        });
        self.scheduler.add(&task);
        CooperativeTask { task }
    }

    /// Works through `steps`; the Deferred fires when that is done. See [`CooperativeTask::when_done`].
    pub fn coiterate<I>(&self, steps: I) -> Deferred<()>
    where
        I: IntoIterator<IntoIter: 'static, Item: IntoOutcome>,
    {
        self.cooperate(steps).when_done()
    }

    /// Goes on after [`stop`](Cooperator::stop), with the tasks that are added from now on.
    pub fn start(&self) {
        self.scheduler.stopped.set(false);
        self.scheduler.started.set(true);
        self.scheduler.reschedule();
    }

    /// Ends all tasks that are not paused with [`TaskFinished::SchedulerStopped`], and so each that is added or resumed later.
    pub fn stop(&self) {
        self.scheduler.stop();
    }

    /// Whether it has not been stopped.
    pub fn running(&self) -> bool {
        self.scheduler.started.get() && !self.scheduler.stopped.get()
    }
}

impl fmt::Debug for Cooperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.running() { "running" } else { "stopped" };
        let tasks = self.scheduler.tasks.borrow().len();
        write!(f, "<Cooperator: {state}, {tasks} tasks>")
    }
}

// ---------------------------------------------------------------- the turns

struct Scheduler {
    clock: Box<dyn ReactorTime>,
    termination: Box<dyn Fn() -> Enough>,
    /// Those that want to take steps: neither paused nor finished.
    tasks: RefCell<Vec<Rc<Task>>>,
    /// Whose turn it is. Twisted walks the list with an iterator that stays where it is when the list changes, so this
    /// does too: when a task goes, the one behind it is passed over once.
    next: Cell<usize>,
    call: Cell<Option<DelayedCall>>,
    started: Cell<bool>,
    stopped: Cell<bool>,
}

impl Scheduler {
    fn add(self: &Rc<Self>, task: &Rc<Task>) {
        if self.stopped.get() {
            return task.finish(End::stopped(TaskFinished::SchedulerStopped));
        }
        self.tasks.borrow_mut().push(task.clone());
        self.reschedule();
    }

    fn remove(&self, task: &Task) {
        let mut tasks = self.tasks.borrow_mut();
        let gone = tasks
            .iter()
            .position(|other| std::ptr::eq(&**other, task))
            .map(|at| tasks.remove(at));
        let idle = tasks.is_empty();
        drop(tasks);
        drop(gone); // outside the borrow
        if idle {
            self.unschedule();
        }
    }

    fn reschedule(self: &Rc<Self>) {
        let call = self.call.take();
        if call.is_some() || !self.started.get() || self.tasks.borrow().is_empty() {
            return self.call.set(call);
        }
        let this = self.clone();
        let call = self.clock.call_later(SOON, Box::new(move || this.turn()));
        self.call.set(Some(call));
    }

    fn unschedule(&self) {
        if let Some(call) = self.call.take() {
            let _ = call.cancel(); // refused when it is the turn that is under way
        }
    }

    fn turn(self: &Rc<Self>) {
        self.call.take();
        let mut enough = (self.termination)();
        while let Some(task) = self.next_task() {
            task.take_step();
            if enough() {
                break;
            }
        }
        self.reschedule();
    }

    fn next_task(&self) -> Option<Rc<Task>> {
        let tasks = self.tasks.borrow();
        let at = match self.next.get() {
            at if at < tasks.len() => at,
            _ => 0,
        };
        self.next.set(at + 1);
        tasks.get(at).cloned()
    }

    fn stop(&self) {
        self.stopped.set(true);
        self.unschedule();
        for task in self.tasks.take() {
            task.finish(End::stopped(TaskFinished::SchedulerStopped));
        }
    }
}

// ---------------------------------------------------------------- a task

/// Work that a [`Cooperator`] does in steps.
///
/// A clone is another handle to the same task. Dropping it changes nothing: the work goes on.
#[derive(Clone)]
pub struct CooperativeTask {
    task: Rc<Task>,
}

struct Task {
    scheduler: Rc<Scheduler>,
    /// Gone while it runs, and when the task is finished.
    step: TakeCell<Box<dyn FnMut() -> Step>>,
    pauses: Cell<u32>,
    end: RefCell<Option<End>>,
    waiting: RefCell<Vec<Resolver<()>>>,
}

/// What a step did.
enum Step {
    Ready,
    Waits(Deferred<()>),
    Done,
    Failed(Failure),
}

/// How a task ended.
#[derive(Clone)]
struct End {
    how: TaskFinished,
    result: Result<(), Failure>,
}

impl End {
    fn stopped(how: TaskFinished) -> Self {
        End {
            how,
            result: Err(how.into()),
        }
    }

    fn failed(failure: Failure) -> Self {
        End {
            how: TaskFinished::Failed,
            result: Err(failure),
        }
    }
}

fn step<I: Iterator<Item: IntoOutcome>>(steps: &mut I) -> Step {
    match contain(|| steps.next().map(IntoOutcome::into_outcome)) {
        Ok(None) => Step::Done,
        Ok(Some(Outcome::Now(Ok(_)))) => Step::Ready,
        Ok(Some(Outcome::Now(Err(failure)))) => Step::Failed(failure),
        Ok(Some(Outcome::Later(d))) => Step::Waits(d.add_callback(|_| ())),
        Err(panic) => Step::Failed(panic.into()),
    }
}

impl CooperativeTask {
    /// A Deferred that fires when the task has come to its end.
    ///
    /// It fails with the step's failure if one failed, with [`TaskFinished::Stopped`] if the task was stopped, and with
    /// [`TaskFinished::SchedulerStopped`] if the cooperator was. Cancelling it does not stop the task. Twisted's fires with
    /// the iterator; here that is gone by then.
    #[track_caller]
    pub fn when_done(&self) -> Deferred<()> {
        if let Some(end) = &*self.task.end.borrow() {
            return match &end.result {
                Ok(()) => succeed(()),
                Err(failure) => fail(failure.clone()),
            };
        }
        let (resolver, d) = Deferred::new();
        self.task.waiting.borrow_mut().push(resolver);
        d
    }

    /// No further steps, until [`resume`](CooperativeTask::resume) has been called as often as this.
    ///
    /// # Errors
    /// [`TaskFinished`] when it has come to its end.
    pub fn pause(&self) -> Result<(), TaskFinished> {
        self.task.check_finished()?;
        self.task.pause();
        Ok(())
    }

    /// Takes back one [`pause`](CooperativeTask::pause).
    ///
    /// # Errors
    /// [`NotPaused`] when there was none.
    pub fn resume(&self) -> Result<(), NotPaused> {
        self.task.resume()
    }

    /// Ends the task: no further steps.
    ///
    /// # Errors
    /// [`TaskFinished`] when it has come to its end before.
    pub fn stop(&self) -> Result<(), TaskFinished> {
        self.task.check_finished()?;
        self.task.finish(End::stopped(TaskFinished::Stopped));
        Ok(())
    }
}

impl Task {
    fn check_finished(&self) -> Result<(), TaskFinished> {
        match &*self.end.borrow() {
            Some(end) => Err(end.how),
            None => Ok(()),
        }
    }

    fn pause(&self) {
        self.pauses.set(self.pauses.get() + 1);
        if self.pauses.get() == 1 {
            self.scheduler.remove(self);
        }
    }

    fn resume(self: &Rc<Self>) -> Result<(), NotPaused> {
        let left = self.pauses.get().checked_sub(1).ok_or(NotPaused)?;
        self.pauses.set(left);
        if left == 0 && self.end.borrow().is_none() {
            self.scheduler.add(self);
        }
        Ok(())
    }

    fn take_step(self: &Rc<Self>) {
        let Some(mut step) = self.step.take() else {
            return; // it is under way, further up the stack: a step that turns the loop itself
        };
        let did = step();
        match self.check_finished() {
            Ok(()) => self.step.put(step),
            Err(_) => drop(step), // it stopped its own task
        }
        match did {
            Step::Ready => {}
            Step::Waits(d) => self.wait_for(d),
            Step::Done => self.finish(End {
                how: TaskFinished::Done,
                result: Ok(()),
            }),
            Step::Failed(failure) => self.finish(End::failed(failure)),
        }
    }

    fn wait_for(self: &Rc<Self>, d: Deferred<()>) {
        if self.check_finished().is_err() {
            return d.log_failure();
        }
        self.pause();
        let (ready, failed) = (self.clone(), self.clone());
        d.add_callbacks(
            move |()| Ok(ready.resume()?),
            move |failure| failed.failed_later(failure),
        );
    }

    /// The Deferred of a step failed; a task that has been stopped in the meantime does not want to know.
    fn failed_later(&self, failure: Failure) -> Result<(), Failure> {
        if self.check_finished().is_err() {
            return Err(failure);
        }
        self.finish(End::failed(failure));
        Ok(())
    }

    fn finish(&self, end: End) {
        if self.end.borrow().is_some() {
            return;
        }
        self.end.replace(Some(end.clone()));
        if self.pauses.get() == 0 {
            self.scheduler.remove(self);
        }
        // The callbacks that run here may do anything to the cooperator, so the task has left it before.
        drop(self.step.take());
        for waiting in self.waiting.take() {
            let _ = waiting.fire(end.result.clone()); // it was cancelled, and that was told
        }
    }
}

impl fmt::Debug for CooperativeTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.task.check_finished() {
            Err(how) => write!(f, "<CooperativeTask: {how}>"),
            Ok(()) if self.task.pauses.get() > 0 => f.write_str("<CooperativeTask: paused>"),
            Ok(()) => f.write_str("<CooperativeTask: running>"),
        }
    }
}

/// How a task came to its end, so that it cannot be paused or stopped any more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TaskFinished {
    /// There was no further step (Twisted's `TaskDone`).
    Done,
    /// A step failed (Twisted's `TaskFailed`).
    Failed,
    /// It was stopped (Twisted's `TaskStopped`).
    Stopped,
    /// Its cooperator was stopped (Twisted's `SchedulerStopped`).
    SchedulerStopped,
}

impl fmt::Display for TaskFinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskFinished::Done => "the task is done",
            TaskFinished::Failed => "the task failed",
            TaskFinished::Stopped => "the task was stopped",
            TaskFinished::SchedulerStopped => "the task's cooperator was stopped",
        })
    }
}

impl std::error::Error for TaskFinished {}

/// A task was resumed more often than it was paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotPaused;

impl fmt::Display for NotPaused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task is not paused")
    }
}

impl std::error::Error for NotPaused {}

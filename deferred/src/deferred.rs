//! The two ends of a result that is not here yet: [`Deferred`], which is told what to do with it, and [`Resolver`], which
//! fires it.
//!
//! The chain is typed and moves: a callback that turns a `String` into an `i64` turns a `Deferred<String>` into a
//! `Deferred<i64>`, and whoever gave a Deferred away cannot add to it any more. What happens when is decided in `node.rs`;
//! this file puts types on it.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

use self::private::Sealed as _;
use crate::node::{
    CancelRequest, Canceller, Kind, Node, NodeRef, Promise, Step, TakeBack, WeakNode,
};
use crate::store::{Entry, Erased};
use crate::{AlreadyCalledError, Failure, contain};

/// A result that is not here yet, and what is to be done when it comes.
///
/// Callbacks are added in *levels*. Each level gets the result of the one before: its callback when that is a value, its
/// errback when it is a [`Failure`]. Callbacks run on the thread that owns the Deferred, synchronously: inside the call
/// that fires it, or inside `add_callback` when it has fired already.
///
/// ```
/// use errback_deferred::{Deferred, Failure};
/// use std::num::ParseIntError;
///
/// let (resolver, d) = Deferred::<String>::new();
/// let d = d
///     .add_callback(|text| Ok(text.parse::<i64>()?))
///     .add_errback(|failure| {
///         failure.trap::<ParseIntError>()?; // anything else goes on to the next errback
///         Ok(0)
///     })
///     .add_callback(|n| Ok(n + 1));
/// resolver.callback("41".to_owned())?;
/// # d.add_callback(|n| assert_eq!(n, 42));
/// # Ok::<(), Failure>(())
/// ```
///
/// A callback returns `Result<U, Failure>` (so `?` works), or a `Deferred<U>`, for whose result the chain then waits, or
/// `()`. See [`IntoOutcome`].
///
/// Dropping a Deferred cancels nothing: its callbacks run all the same when it fires. When its last result is a failure, that
/// is reported (see [`observe_unhandled`](crate::observe_unhandled)).
pub struct Deferred<T> {
    pub(crate) node: NodeRef,
    pub(crate) _result: PhantomData<fn() -> T>,
}

impl<T: 'static> Deferred<T> {
    /// A Deferred and the end that fires it.
    ///
    /// ```
    /// use errback_deferred::{Deferred, Failure};
    /// let (resolver, d) = Deferred::new();
    /// let d = d.add_callback(|n: i64| assert_eq!(n, 1));
    /// resolver.callback(1)?;
    /// # drop(d);
    /// # Ok::<(), Failure>(())
    /// ```
    #[track_caller]
    #[allow(clippy::new_ret_no_self)] // both ends are the point
    pub fn new() -> (Resolver<T>, Deferred<T>) {
        let node = NodeRef::unfired();
        (Resolver::of(Promise::of(node.clone())), Deferred::of(node))
    }

    /// As [`new`](Deferred::new), with a function that [`cancel`](Deferred::cancel) calls to stop the work.
    ///
    /// What the canceller returns is what the Deferred fires with; `None` means a
    /// [`CancelledError`](crate::CancelledError). It may fire the Deferred by its resolver instead. It is called at most
    /// once, and never after the Deferred has fired. A resolver that is dropped while it runs is no failure: it went with the
    /// work that was stopped. If it panics, that is logged and the Deferred is cancelled all the same.
    ///
    /// ```
    /// use errback_deferred::Deferred;
    /// let (resolver, d) = Deferred::<i64>::with_canceller(|| Some(Ok(-1)));
    /// d.cancel();
    /// # let _ = resolver;
    /// # d.add_callback(|n| assert_eq!(n, -1));
    /// ```
    #[track_caller]
    pub fn with_canceller(
        canceller: impl FnOnce() -> Option<Result<T, Failure>> + 'static,
    ) -> (Resolver<T>, Deferred<T>) {
        let (resolver, d) = Deferred::new();
        d.set_canceller(canceller);
        (resolver, d)
    }

    /// Sets the canceller of a Deferred that has not fired; one that it had is dropped. See
    /// [`with_canceller`](Self::with_canceller).
    ///
    /// For when the work to be stopped is made after the Deferred, because it owns the resolver:
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Clock, Deferred};
    /// use std::time::Duration;
    ///
    /// let clock = Clock::new();
    /// let (resolver, d) = Deferred::new();
    /// let call = clock.call_later(Duration::from_secs(1), move || drop(resolver.callback("done")));
    /// d.set_canceller(move || {
    ///     let _ = call.cancel(); // the resolver goes with it; the Deferred fails with CancelledError
    ///     None
    /// });
    /// d.cancel();
    /// # d.add_errback(|f| f.trap::<CancelledError>().map(|_| ""));
    /// ```
    pub fn set_canceller(&self, canceller: impl FnOnce() -> Option<Result<T, Failure>> + 'static) {
        if self.called() {
            return;
        }
        self.node
            .set_canceller(Canceller::Once(Box::new(move |node| {
                if let Some(result) = canceller() {
                    let _ = fire(node, result); // when the canceller fired it otherwise, that result counts
                }
            })));
    }

    /// As [`new`](Deferred::new), for work whose end takes time: a cancel only asks for it.
    ///
    /// `request` is called at each cancel for as long as the Deferred has not fired, and the Deferred stays unfired until the
    /// producer fires it: with a [`CancelledError`](crate::CancelledError) when it has stopped, or with the result if that was
    /// faster. Twisted has no such thing: there a cancelled Deferred always fires at once.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Deferred, Failure};
    /// use std::{cell::Cell, rc::Rc};
    ///
    /// let asked = Rc::new(Cell::new(false));
    /// let flag = asked.clone();
    /// let (resolver, d) = Deferred::<i64>::with_cancel_request(move || flag.set(true));
    /// d.cancel();
    /// assert!(asked.get() && !d.called());
    /// resolver.errback(CancelledError)?; // the process has been collected, say
    /// # d.add_errback(|f| f.trap::<CancelledError>().map(|_| 0));
    /// # Ok::<(), Failure>(())
    /// ```
    #[track_caller]
    pub fn with_cancel_request(request: impl Fn() + 'static) -> (Resolver<T>, Deferred<T>) {
        let (resolver, d) = Deferred::new();
        d.node
            .set_canceller(Canceller::Instead(Rc::new(move |_| request())));
        (resolver, d)
    }

    /// Has `from` called with `number` when this Deferred is cancelled before it has fired: for those who keep the work in
    /// a queue, under numbers, and can take it back. Unlike a canceller it allocates nothing. It is called at most once,
    /// before a canceller, and may fire the Deferred; if it does not, the cancel goes on as without it. It takes the place of an
    /// earlier one, and of a [`set_cancel_request`](Self::set_cancel_request), which the Deferreds of jobs have.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Deferred};
    /// use std::{cell::RefCell, collections::HashMap, rc::Rc};
    ///
    /// let (resolver, d) = Deferred::<()>::new();
    /// let queue = Rc::new(RefCell::new(HashMap::from([(7, resolver)])));
    /// let jobs = queue.clone();
    /// d.set_take_back(Rc::new(move |number| {
    ///     if let Some(resolver) = jobs.borrow_mut().remove(&number) {
    ///         drop(resolver.errback(CancelledError));
    ///     }
    /// }), 7);
    /// d.cancel();
    /// assert!(queue.borrow().is_empty());
    /// # d.add_errback(|f| f.trap::<CancelledError>().map(drop));
    /// ```
    pub fn set_take_back(&self, from: Rc<dyn Fn(u64)>, number: u64) {
        self.node.tell(TakeBack { from, number });
    }

    /// Has `to` called with `number` at each cancel of this Deferred before it has fired, in the place of firing it: as
    /// [`with_cancel_request`](Self::with_cancel_request), for those who do much work under numbers. It allocates nothing,
    /// and takes the place of an earlier one and of a [`set_take_back`](Self::set_take_back). A canceller that the Deferred was
    /// made with is not called as long as its resolver is there.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Deferred, Failure};
    /// use std::{cell::RefCell, rc::Rc};
    ///
    /// let asked = Rc::new(RefCell::new(vec![]));
    /// let jobs = asked.clone();
    /// let stop: Rc<dyn Fn(u64)> = Rc::new(move |number| jobs.borrow_mut().push(number));
    /// let (resolver, d) = Deferred::<()>::new();
    /// d.set_cancel_request(stop.clone(), 7);
    /// d.cancel();
    /// assert!(*asked.borrow() == [7] && !d.called());
    /// resolver.errback(CancelledError)?; // the job has stopped
    /// # d.add_errback(|f| f.trap::<CancelledError>().map(drop));
    /// # Ok::<(), Failure>(())
    /// ```
    pub fn set_cancel_request(&self, to: Rc<dyn Fn(u64)>, number: u64) {
        self.node.tell(CancelRequest { to, number });
    }

    pub(crate) fn of(node: NodeRef) -> Self {
        Deferred {
            node,
            _result: PhantomData,
        }
    }

    #[inline]
    fn add<U, L: Entry<Node, Output = Step>>(self, level: L) -> Deferred<U> {
        self.node.add(level);
        Deferred {
            node: self.node,
            _result: PhantomData,
        }
    }

    /// Adds a level that runs `callback` on a value and lets a failure pass.
    ///
    /// ```
    /// use errback_deferred::succeed;
    /// let d = succeed(2).add_callback(|n| Ok(n * 3));
    /// # d.add_callback(|n| assert_eq!(n, 6));
    /// ```
    #[doc(alias = "addCallback")]
    #[inline]
    pub fn add_callback<R: IntoOutcome>(
        self,
        callback: impl FnOnce(T) -> R + 'static,
    ) -> Deferred<R::Value> {
        self.add(OnValue(callback, PhantomData::<fn(T)>))
    }

    /// Adds a level that runs `errback` on a failure and lets a value pass. Returning `Ok` recovers.
    ///
    /// It returns what the chain carries: `Ok` of a `T`, a failure, or a `Deferred<T>`. To only log a failure at the end of a
    /// chain, use [`log_failure`](Self::log_failure); to trap one error and go on with a Deferred, [`try_deferred`].
    ///
    /// ```
    /// use errback_deferred::{fail, Failure};
    /// let d = fail::<i64>(Failure::msg("no")).add_errback(|_| Ok(0));
    /// # d.add_callback(|n| assert_eq!(n, 0));
    /// ```
    #[doc(alias = "addErrback")]
    #[inline]
    pub fn add_errback<R: IntoOutcome<Value = T>>(
        self,
        errback: impl FnOnce(Failure) -> R + 'static,
    ) -> Deferred<T> {
        self.add(OnFailure(errback, PhantomData::<fn(T)>))
    }

    /// Adds a level with both: `callback` runs on a value, `errback` on a failure, never both of them.
    ///
    /// ```
    /// use errback_deferred::succeed;
    /// let d = succeed(2).add_callbacks(|n| Ok(n.to_string()), |failure| Ok(failure.to_string()));
    /// # d.add_callback(|s| assert_eq!(s, "2"));
    /// ```
    #[doc(alias = "addCallbacks")]
    #[inline]
    pub fn add_callbacks<R: IntoOutcome, E: IntoOutcome<Value = R::Value>>(
        self,
        callback: impl FnOnce(T) -> R + 'static,
        errback: impl FnOnce(Failure) -> E + 'static,
    ) -> Deferred<R::Value> {
        self.add(OnEither(callback, errback, PhantomData::<fn(T)>))
    }

    /// Adds a level that runs `callback` on whatever comes.
    ///
    /// ```
    /// use errback_deferred::succeed;
    /// let d = succeed(2).add_both(|result| {
    ///     println!("done");
    ///     result
    /// });
    /// # d.add_callback(|n| assert_eq!(n, 2));
    /// ```
    #[doc(alias = "addBoth")]
    #[inline]
    pub fn add_both<R: IntoOutcome>(
        self,
        callback: impl FnOnce(Result<T, Failure>) -> R + 'static,
    ) -> Deferred<R::Value> {
        self.add(OnBoth(callback, PhantomData::<fn(T)>))
    }

    /// Fires `to` with this Deferred's result; what remains here is `()`.
    ///
    /// The reverse is not true: whatever happens to the other Deferred is nothing to this one, but that it had fired already,
    /// which fails this one with an [`AlreadyCalledError`]. Chains of any length are fired without recursion.
    ///
    /// ```
    /// use errback_deferred::{succeed, Deferred};
    /// let (resolver, d) = Deferred::new();
    /// let rest = succeed(1).chain_deferred(resolver);
    /// # rest.add_callback(|()| ());
    /// # d.add_callback(|n| assert_eq!(n, 1));
    /// ```
    #[doc(alias = "chainDeferred")]
    pub fn chain_deferred(self, to: impl FiringEnd<T>) -> Deferred<()> {
        self.add(Link(to, PhantomData::<fn(T)>))
    }

    /// The last level: a failure is reported to the observer of unhandled failures, a value is dropped. Twisted's
    /// `addErrback(log.err)`.
    ///
    /// ```
    /// errback_deferred::succeed(1).log_failure();
    /// ```
    #[doc(alias = "log.err")]
    pub fn log_failure(self) {
        self.end_with_log(None);
    }

    /// As [`log_failure`](Self::log_failure), and says what it was: `addErrback(log.err, "job 3")`.
    ///
    /// ```
    /// errback_deferred::succeed(1).log_failure_as(format!("job {}", 3));
    /// ```
    #[doc(alias = "log.err")]
    pub fn log_failure_as(self, what: impl Into<Cow<'static, str>>) {
        self.end_with_log(Some(what.into()));
    }

    fn end_with_log(self, what: Option<Cow<'static, str>>) {
        let made_at = self.node.made_at();
        self.add_both(move |result| {
            if let Err(failure) = result {
                crate::unhandled::report(failure, made_at, what);
            }
        });
    }

    /// Asks for the result not to come: the canceller runs, or the Deferred fails with
    /// [`CancelledError`](crate::CancelledError) at once.
    ///
    /// If it waits for another Deferred, that one is cancelled, and so on inwards. If it has its result, nothing happens.
    /// Without a canceller nobody can tell the producer, so one late firing is swallowed.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Deferred};
    /// let (resolver, d) = Deferred::<i64>::new();
    /// d.cancel();
    /// assert!(resolver.callback(1).is_ok()); // too late, and swallowed
    /// # d.add_errback(|f| f.trap::<CancelledError>().map(|_| 0));
    /// ```
    pub fn cancel(&self) {
        self.node.clone().cancel(); // a clone: a callback may drop the handle through which we came
    }

    /// A handle that can cancel this Deferred after it was given away. It does not keep it alive.
    ///
    /// ```
    /// use errback_deferred::{CancelledError, Deferred};
    /// let (_resolver, d) = Deferred::<()>::new();
    /// let handle = d.cancel_handle();
    /// let somebody_elses = d.add_errback(|failure| failure.trap::<CancelledError>().map(|_| ()));
    /// handle.cancel();
    /// ```
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle {
            node: self.node.downgrade(),
        }
    }

    /// Keeps callbacks from running until the token is dropped. Pauses count: all tokens must go.
    ///
    /// A pause that a callback makes on its own Deferred has no effect on the levels that run in the same go (as in
    /// Twisted).
    ///
    /// ```
    /// use errback_deferred::succeed;
    /// let d = succeed(1);
    /// let pause = d.pause();
    /// let d = d.add_callback(|n| Ok(n + 1)); // does not run yet
    /// assert!(format!("{d:?}").contains("paused"));
    /// drop(pause); // runs now
    /// # d.add_callback(|n| assert_eq!(n, 2));
    /// ```
    pub fn pause(&self) -> Pause {
        self.node.pause();
        Pause {
            node: self.node.clone(),
        }
    }

    /// What can be said of it now, without touching it.
    ///
    /// ```
    /// use errback_deferred::{succeed, Deferred, State};
    /// assert_eq!(succeed(1).state(), State::Value);
    /// let (_resolver, d) = Deferred::<()>::new();
    /// assert_eq!(d.state(), State::Unfired);
    /// ```
    pub fn state(&self) -> State {
        match self.node.seen() {
            _ if !self.node.fired() => State::Unfired,
            Kind::Waiting => State::Waiting,
            Kind::Failure => State::Failure,
            _ => State::Value, // or empty: taken by an `await`
        }
    }

    /// Whether it has been fired or cancelled (Twisted's `called`).
    pub fn called(&self) -> bool {
        self.node.fired()
    }

    /// Lets others see what a running callback was given.
    ///
    /// Rust moves a value into the callback, so while that runs the Deferred has no result. In Twisted it still has the
    /// callback's input, and whoever returns or awaits this Deferred just then gets that. With this switch a copy is kept
    /// while a level whose input is a `T` runs, and the same happens here. Without it they wait until the callbacks are
    /// through, which is nearly always what one wants. Costs a clone for each callback; for exact ports.
    pub fn with_visible_input(self) -> Deferred<T>
    where
        T: Clone,
    {
        self.node
            .make_visible(|value| value.downcast_ref::<T>().cloned().map(Erased::new));
        self
    }
}

impl<T: 'static> Deferred<Deferred<T>> {
    /// Waits for the inner one too. For a fallible function that returns a Deferred:
    ///
    /// ```
    /// use errback_deferred::{succeed, Deferred, Failure};
    /// fn lookup(name: &str) -> Result<Deferred<i64>, Failure> {
    ///     errback_deferred::ensure!(!name.is_empty(), "no name");
    ///     Ok(succeed(7))
    /// }
    /// let d: Deferred<i64> = succeed("x").add_callback(lookup).flatten();
    /// # d.add_callback(|n| assert_eq!(n, 7));
    /// ```
    pub fn flatten(self) -> Deferred<T> {
        self.add_callback(|inner| inner)
    }
}

impl<T> Deferred<T> {
    fn describe(
        &self,
        f: &mut fmt::Formatter<'_>,
        result: impl FnOnce(&mut fmt::Formatter<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write!(f, "<Deferred at {:p}", self.node.address())?;
        if let Some(inner) = self.node.waits_for() {
            write!(f, " waiting on Deferred at {:p}", inner.address())?;
        } else if self.node.fired() {
            result(f)?;
        }
        if self.node.paused() && self.node.waits_for().is_none() {
            f.write_str(" paused")?;
        }
        f.write_str(">")
    }
}

impl<T: fmt::Debug + 'static> fmt::Debug for Deferred<T> {
    /// As Twisted's repr: unfired, or the current result, or the Deferred that it waits for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f, |f| {
            let shown = self.node.look::<T, _>(|result| match result {
                Ok(value) => write!(f, " current result: {value:?}"),
                Err(failure) => write!(
                    f,
                    " current result: <Failure {}: {failure}>",
                    failure.type_name()
                ),
            });
            shown.unwrap_or_else(|| f.write_str(" fired"))
        })
    }
}

/// What a [`Deferred`] can be seen to be in; see [`Deferred::state`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Neither fired nor cancelled.
    Unfired,
    /// It waits for another Deferred, which one of its callbacks returned.
    Waiting,
    /// Its current result is a value; while a callback runs, what that was given.
    Value,
    /// Its current result is a failure; while an errback runs, what that was given.
    Failure,
}

// ---------------------------------------------------------------- what callbacks return

/// What a callback may return: `Result<U, Failure>`, a `Deferred<U>`, or `()`.
///
/// A plain value is wrapped in `Ok`. `?` on any error in the callback makes a [`Failure`].
///
/// **Return a Deferred itself, not `Ok` of it.** `Ok(deferred)` is a value that happens to be a Deferred: the chain becomes a
/// `Deferred<Deferred<T>>` and waits for nothing. Where a callback may fail before it has its Deferred, use
/// [`try_deferred`], or [`flatten`](Deferred::flatten) afterwards.
#[diagnostic::on_unimplemented(
    message = "a callback cannot return `{Self}`",
    label = "a callback may not return this",
    note = "a plain value is wrapped in `Ok`: `|n| Ok(n + 1)`",
    note = "a `Result` with another error becomes one with a `Failure` by `?`: `|x| Ok(f(x)?)`; an error alone by `Err(error.into())`",
    note = "an async block becomes a Deferred: `|x| ensure_deferred(async move {{ … }})`; to call a function that returns a plain value, `execute`"
)]
pub trait IntoOutcome {
    /// The type of the value that the next callback gets.
    type Value: 'static;

    /// The result, or the Deferred that will have it.
    fn into_outcome(self) -> Outcome<Self::Value>;
}

/// A result that is here or not; see [`IntoOutcome`].
pub enum Outcome<T> {
    /// The result is here.
    Now(Result<T, Failure>),
    /// This Deferred will have it.
    Later(Deferred<T>),
}

impl<T: 'static> IntoOutcome for Result<T, Failure> {
    type Value = T;
    #[inline]
    fn into_outcome(self) -> Outcome<T> {
        Outcome::Now(self)
    }
}

impl<T: 'static> IntoOutcome for Deferred<T> {
    type Value = T;
    #[inline]
    fn into_outcome(self) -> Outcome<T> {
        Outcome::Later(self)
    }
}

impl<T: 'static> IntoOutcome for Outcome<T> {
    type Value = T;
    #[inline]
    fn into_outcome(self) -> Outcome<T> {
        self
    }
}

impl IntoOutcome for () {
    type Value = ();
    #[inline]
    fn into_outcome(self) -> Outcome<()> {
        Outcome::Now(Ok(()))
    }
}

impl<T: 'static> Outcome<T> {
    /// As a Deferred, fired already if the result is here.
    #[track_caller]
    pub fn into_deferred(self) -> Deferred<T> {
        match self {
            Outcome::Now(result) => fired(result),
            Outcome::Later(d) => d,
        }
    }
}

// ---------------------------------------------------------------- the levels

struct OnValue<T, F>(F, PhantomData<fn(T)>);
struct OnFailure<T, F>(F, PhantomData<fn(T)>);
struct OnEither<T, F, G>(F, G, PhantomData<fn(T)>);
struct OnBoth<T, F>(F, PhantomData<fn(T)>);
struct Link<T, E>(E, PhantomData<fn(T)>);

/// Puts what a callback returned in its place.
#[inline]
fn settle<R: IntoOutcome>(node: &Node, returned: R) -> Step {
    match returned.into_outcome() {
        Outcome::Now(result) => {
            node.put_result(result);
            Step::Done
        }
        Outcome::Later(d) => match d.node.visible_copy() {
            Some(result) => {
                node.put_result::<R::Value>(result);
                Step::Done
            }
            None => Step::Wait(d.node),
        },
    }
}

impl<T: 'static, R: IntoOutcome, F: FnOnce(T) -> R + 'static> Entry<Node> for OnValue<T, F> {
    type Output = Step;
    #[inline]
    fn run(self, node: &Node) -> Step {
        if node.failed() {
            return Step::Done;
        }
        match node.take_result() {
            Ok(value) => settle(node, (self.0)(value)),
            Err(failure) => {
                node.put_result::<T>(Err(failure));
                Step::Done
            }
        }
    }
}

impl<T: 'static, R: IntoOutcome<Value = T>, F: FnOnce(Failure) -> R + 'static> Entry<Node>
    for OnFailure<T, F>
{
    type Output = Step;
    #[inline]
    fn run(self, node: &Node) -> Step {
        if node.succeeded() {
            return Step::Done;
        }
        match node.take_result::<T>() {
            Err(failure) => settle(node, (self.0)(failure)),
            Ok(_) => unreachable!("it is no value"),
        }
    }
}

impl<T, R, E, F, G> Entry<Node> for OnEither<T, F, G>
where
    T: 'static,
    R: IntoOutcome,
    E: IntoOutcome<Value = R::Value>,
    F: FnOnce(T) -> R + 'static,
    G: FnOnce(Failure) -> E + 'static,
{
    type Output = Step;
    #[inline]
    fn run(self, node: &Node) -> Step {
        match node.take_result() {
            Ok(value) => settle(node, (self.0)(value)),
            Err(failure) => settle(node, (self.1)(failure)),
        }
    }
}

impl<T: 'static, R: IntoOutcome, F: FnOnce(Result<T, Failure>) -> R + 'static> Entry<Node>
    for OnBoth<T, F>
{
    type Output = Step;
    #[inline]
    fn run(self, node: &Node) -> Step {
        let result = node.take_result();
        settle(node, (self.0)(result))
    }
}

impl<T: 'static, E: FiringEnd<T>> Entry<Node> for Link<T, E> {
    type Output = Step;
    fn run(self, node: &Node) -> Step {
        let result = node.take_result::<T>();
        let Some(resolver) = self.0.claim() else {
            return already(
                node,
                AlreadyCalledError {
                    result: result.map(drop),
                    history: self.0.history(),
                },
            );
        };
        match resolver.node.accept(result) {
            Ok(true) => Step::Link(resolver.node.clone()),
            Ok(false) => {
                node.put_result(Ok(()));
                Step::Done
            }
            Err(result) => already(
                node,
                AlreadyCalledError {
                    result: result.map(drop),
                    history: resolver.node.history(),
                },
            ),
        }
    }
}

fn already(node: &Node, error: AlreadyCalledError) -> Step {
    node.put_result::<()>(Err(error.into()));
    Step::Done
}

/// Fires a node with a typed result, which comes back when it had fired already.
#[track_caller]
pub(crate) fn fire<T: 'static>(
    node: &NodeRef,
    result: Result<T, Failure>,
) -> Result<(), AlreadyCalledError<T>> {
    node.fire(result).map_err(|result| AlreadyCalledError {
        result,
        history: node.history(),
    })
}

// ---------------------------------------------------------------- the firing end

/// The end of a [`Deferred`] that fires it, once: firing consumes it.
///
/// Dropped without having fired, it fails the Deferred with [`ResolverDropped`](crate::ResolverDropped): a Deferred whose
/// producer is gone does not wait for ever.
pub struct Resolver<T> {
    node: Promise,
    _result: PhantomData<fn(T)>,
}

impl<T> Resolver<T> {
    #[inline]
    fn of(node: Promise) -> Resolver<T> {
        Resolver {
            node,
            _result: PhantomData,
        }
    }

    pub(crate) fn into_promise(self) -> Promise {
        self.node
    }
}

impl<T: 'static> Resolver<T> {
    /// Fires with a value; the callbacks have run when it returns.
    ///
    /// ```
    /// # use errback_deferred::{Deferred, Failure};
    /// let (resolver, d) = Deferred::new();
    /// resolver.callback(1)?;
    /// # d.add_callback(|n| assert_eq!(n, 1));
    /// # Ok::<(), Failure>(())
    /// ```
    ///
    /// # Errors
    /// [`AlreadyCalledError`], with the value in it, when a canceller has fired the Deferred before.
    #[track_caller]
    pub fn callback(self, value: T) -> Result<(), AlreadyCalledError<T>> {
        self.fire(Ok(value))
    }

    /// Fires with a failure, which is any error, or [`Failure::msg`] for a text; the errbacks have run when it returns.
    ///
    /// ```
    /// # use errback_deferred::{Deferred, Failure};
    /// let (resolver, d) = Deferred::<()>::new();
    /// resolver.errback(std::io::Error::other("no disk"))?;
    /// # d.add_errback(|_| ());
    /// # Ok::<(), Failure>(())
    /// ```
    ///
    /// # Errors
    /// [`AlreadyCalledError`], with the failure in it, when a canceller has fired the Deferred before.
    #[track_caller]
    pub fn errback(self, failure: impl Into<Failure>) -> Result<(), AlreadyCalledError<T>> {
        self.fire(Err(failure.into()))
    }

    /// Fires with either.
    ///
    /// # Errors
    /// [`AlreadyCalledError`], with the result in it, when a canceller has fired the Deferred before.
    #[track_caller]
    pub fn fire(self, result: Result<T, Failure>) -> Result<(), AlreadyCalledError<T>> {
        fire(&self.node, result)
    }

    /// Whether the Deferred has been fired or cancelled, so that the result is no longer wanted.
    pub fn called(&self) -> bool {
        self.node.fired()
    }

    /// One that several parties may hold, each of which may be the one that fires.
    pub fn into_shared(self) -> SharedResolver<T> {
        let node = self.node.downgrade();
        SharedResolver {
            shared: Rc::new(Shared {
                resolver: Cell::new(Some(self)),
                node,
            }),
        }
    }
}

impl<T> fmt::Debug for Resolver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.node.fired() {
            "fired"
        } else {
            "unfired"
        };
        write!(
            f,
            "<Resolver of the {state} Deferred at {:p}>",
            self.node.address()
        )
    }
}

/// A firing end that several parties of ported code may hold; the first one to fire counts.
///
/// ```
/// use errback_deferred::{Deferred, Failure};
/// let (resolver, d) = Deferred::new();
/// let one = resolver.into_shared();
/// let other = one.clone();
/// one.callback(1)?;
/// assert!(other.callback(2).is_err());
/// # d.add_callback(|n| assert_eq!(n, 1));
/// # Ok::<(), Failure>(())
/// ```
pub struct SharedResolver<T> {
    shared: Rc<Shared<T>>,
}

struct Shared<T> {
    resolver: Cell<Option<Resolver<T>>>,
    /// For the history in an AlreadyCalledError; the Deferred may be gone by then.
    node: WeakNode,
}

impl<T: 'static> SharedResolver<T> {
    /// Fires with a value.
    ///
    /// # Errors
    /// [`AlreadyCalledError`], with the value in it, when the Deferred has fired already.
    #[track_caller]
    pub fn callback(&self, value: T) -> Result<(), AlreadyCalledError<T>> {
        self.fire(Ok(value))
    }

    /// Fires with a failure.
    ///
    /// # Errors
    /// [`AlreadyCalledError`], with the failure in it, when the Deferred has fired already.
    #[track_caller]
    pub fn errback(&self, failure: impl Into<Failure>) -> Result<(), AlreadyCalledError<T>> {
        self.fire(Err(failure.into()))
    }

    /// Fires with either.
    ///
    /// # Errors
    /// [`AlreadyCalledError`], with the result in it, when the Deferred has fired already.
    #[track_caller]
    pub fn fire(&self, result: Result<T, Failure>) -> Result<(), AlreadyCalledError<T>> {
        match self.claim() {
            Some(resolver) => resolver.fire(result),
            None => Err(AlreadyCalledError {
                result,
                history: self.history(),
            }),
        }
    }

    /// Whether the Deferred has been fired or cancelled.
    pub fn called(&self) -> bool {
        self.shared.node.upgrade().is_none_or(|node| node.fired())
    }
}

impl<T> Clone for SharedResolver<T> {
    fn clone(&self) -> Self {
        SharedResolver {
            shared: self.shared.clone(),
        }
    }
}

impl<T> fmt::Debug for SharedResolver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<SharedResolver of the Deferred at {:p}>",
            self.shared.node.address()
        )
    }
}

/// What [`Deferred::chain_deferred`] can fire: a [`Resolver`] or a [`SharedResolver`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a firing end of a `Deferred<{T}>`",
    label = "give the `Resolver` that came with the other Deferred",
    note = "`let (resolver, d2) = Deferred::new(); d1.chain_deferred(resolver)`"
)]
pub trait FiringEnd<T>: private::Sealed<T> + 'static {}

impl<T: 'static> FiringEnd<T> for Resolver<T> {}
impl<T: 'static> FiringEnd<T> for SharedResolver<T> {}

mod private {
    use super::{Promise, Resolver, SharedResolver};

    pub trait Sealed<T> {
        /// The end itself, unless somebody else has used it.
        fn claim(&self) -> Option<Resolver<T>>
        where
            Self: Sized;
        fn history(&self) -> Option<String>;
    }

    impl<T> Sealed<T> for SharedResolver<T> {
        fn claim(&self) -> Option<Resolver<T>> {
            self.shared.resolver.take()
        }

        fn history(&self) -> Option<String> {
            self.shared.node.upgrade()?.history()
        }
    }

    impl<T> Sealed<T> for Resolver<T> {
        fn claim(&self) -> Option<Resolver<T>> {
            Some(Resolver::of(Promise::of(self.node.clone())))
        }

        fn history(&self) -> Option<String> {
            self.node.history()
        }
    }
}

// ---------------------------------------------------------------- tokens

/// Cancels a Deferred that was given away; see [`Deferred::cancel_handle`].
#[derive(Clone)]
pub struct CancelHandle {
    node: WeakNode,
}

impl CancelHandle {
    /// As [`Deferred::cancel`]; nothing happens when that Deferred is gone.
    pub fn cancel(&self) {
        if let Some(node) = self.node.upgrade() {
            node.cancel();
        }
    }
}

impl fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<CancelHandle of the Deferred at {:p}>",
            self.node.address()
        )
    }
}

/// Keeps a Deferred's callbacks from running; letting go of it lets them run. See [`Deferred::pause`].
#[must_use = "the Deferred is paused only as long as this token lives"]
pub struct Pause {
    node: NodeRef,
}

impl Pause {
    pub(crate) fn of(node: &NodeRef) -> Pause {
        node.pause();
        Pause { node: node.clone() }
    }

    /// Lets the callbacks run; the same as dropping the token.
    pub fn unpause(self) {}
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.node.unpause();
    }
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<Pause of the Deferred at {:p}>", self.node.address())
    }
}

// ---------------------------------------------------------------- made with their result

/// A Deferred that has fired already, with a value.
///
/// ```
/// errback_deferred::succeed(1).add_callback(|n| assert_eq!(n, 1));
/// ```
#[track_caller]
pub fn succeed<T: 'static>(value: T) -> Deferred<T> {
    fired(Ok(value))
}

/// A Deferred that has fired already, with a failure: any error, or [`Failure::msg`] for a text.
///
/// ```
/// # use errback_deferred::{fail, TimeoutError};
/// fail::<i64>(TimeoutError::default()).add_errback(|f| f.trap::<TimeoutError>().map(|_| 0));
/// ```
#[track_caller]
pub fn fail<T: 'static>(failure: impl Into<Failure>) -> Deferred<T> {
    fired(Err(failure.into()))
}

#[track_caller]
fn fired<T: 'static>(result: Result<T, Failure>) -> Deferred<T> {
    let (resolver, d) = Deferred::new();
    let _ = resolver.fire(result);
    d
}

/// Calls `f` and makes a Deferred of whatever it does: returns a `Result` or a Deferred, or panics. See [`execute`] for
/// functions that return a plain value, and [`try_deferred`] for `Result<Deferred<T>, _>`.
///
/// ```
/// use errback_deferred::maybe_deferred;
/// let d = maybe_deferred(|| Ok("41".parse::<i64>()?));
/// # d.add_callback(|n| assert_eq!(n, 41));
/// ```
#[track_caller]
#[doc(alias = "maybeDeferred")]
pub fn maybe_deferred<R: IntoOutcome>(f: impl FnOnce() -> R) -> Deferred<R::Value> {
    match contain(f) {
        Ok(returned) => returned.into_outcome().into_deferred(),
        Err(panic) => fail(panic),
    }
}

/// Calls a function that fails or returns a Deferred, and makes one Deferred of both.
///
/// It gives `?` to code that ends in a Deferred, above all to errbacks:
///
/// ```
/// use errback_deferred::{fail, succeed, try_deferred, Deferred, TimeoutError};
///
/// fn request() -> Deferred<i64> { succeed(7) }
///
/// let d = fail(TimeoutError::default()).add_errback(|failure| {
///     try_deferred(|| {
///         failure.trap::<TimeoutError>()?;
///         Ok(request())
///     })
/// });
/// # d.add_callback(|n| assert_eq!(n, 7));
/// ```
#[track_caller]
pub fn try_deferred<T: 'static>(f: impl FnOnce() -> Result<Deferred<T>, Failure>) -> Deferred<T> {
    maybe_deferred(|| match f() {
        Ok(d) => Outcome::Later(d),
        Err(failure) => Outcome::Now(Err(failure)),
    })
}

/// Calls `f`, which does not return a Deferred, and makes one of its result or panic.
///
/// ```
/// errback_deferred::execute(|| 41).add_callback(|n| assert_eq!(n, 41));
/// ```
#[track_caller]
pub fn execute<T: 'static>(f: impl FnOnce() -> T) -> Deferred<T> {
    maybe_deferred(|| Ok(f()))
}

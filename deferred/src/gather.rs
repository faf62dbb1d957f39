//! One Deferred for many: all of them, or the first.
//!
//! The Deferreds that go into a list are given away, so their failures end in the list (Twisted's `consumeErrors=True`):
//! there is nobody else who could handle them.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::node::Canceller;
use crate::{AlreadyCalledError, CancelHandle, Deferred, Failure, Resolver, SharedResolver};

/// Waits for several Deferreds and collects all their results, values and failures.
///
/// ```
/// use errback_deferred::{fail, succeed, DeferredList, Failure};
/// let d = DeferredList::new([succeed(1), fail(Failure::msg("no"))]).results();
/// d.add_callback(|results| {
///     assert_eq!(*results[0].as_ref().unwrap(), 1);
///     assert!(results[1].is_err());
/// });
/// ```
///
/// Failures that come when the list has fired are dropped.
///
/// Cancelling the Deferred of a list that has not fired cancels all of the list's Deferreds and does nothing else; what
/// they then fire with is the result. Once it has fired, cancelling does nothing.
#[must_use = "a list does nothing until it is asked for its results"]
#[doc(alias = "consumeErrors")]
pub struct DeferredList<T> {
    deferreds: Vec<Deferred<T>>,
    one_callback: bool,
    one_errback: bool,
}

/// What a [`DeferredList`] fires with.
#[derive(Debug)]
pub enum ListResult<T> {
    /// All results, in the order of the list.
    All(Vec<Result<T, Failure>>),
    /// The first value and its place, with [`DeferredList::fire_on_one_callback`].
    One(T, usize),
}

impl<T: 'static> DeferredList<T> {
    /// A list of these.
    pub fn new(deferreds: impl IntoIterator<Item = Deferred<T>>) -> Self {
        DeferredList {
            deferreds: deferreds.into_iter().collect(),
            one_callback: false,
            one_errback: false,
        }
    }

    /// Fire with the first value, as [`ListResult::One`], if one comes before all have fired.
    ///
    /// An empty list fails with [`EmptyList`]: the first value would never come (in Twisted it waits for ever).
    #[doc(alias = "fireOnOneCallback")]
    pub fn fire_on_one_callback(mut self) -> Self {
        self.one_callback = true;
        self
    }

    /// Fail with the first failure, as a [`FirstError`].
    #[doc(alias = "fireOnOneErrback")]
    pub fn fire_on_one_errback(mut self) -> Self {
        self.one_errback = true;
        self
    }

    /// The Deferred that waits for them.
    #[track_caller]
    pub fn start(self) -> Deferred<ListResult<T>> {
        let (resolver, d) = Deferred::new();
        d.node.keep_cancel();
        let cancels = self.collect(resolver);
        if !d.called() {
            d.node.set_canceller(Canceller::Instead(Rc::new(move |_| {
                cancels.iter().for_each(CancelHandle::cancel)
            })));
        }
        d
    }

    /// Adds the list to each Deferred, which is looked at once: a hundred thousand of them are not in the cache a second time.
    fn collect(self, resolver: Resolver<ListResult<T>>) -> Vec<CancelHandle> {
        if self.deferreds.is_empty() {
            let empty = if self.one_callback {
                Err(EmptyList.into())
            } else {
                Ok(ListResult::All(Vec::new()))
            };
            let _ = resolver.fire(empty);
            return Vec::new();
        }
        let list = Rc::new(List {
            results: RefCell::new(self.deferreds.iter().map(|_| None).collect()),
            left: Cell::new(self.deferreds.len()),
            resolver: Cell::new(Some(resolver)),
            one_callback: self.one_callback,
            one_errback: self.one_errback,
        });
        let add = |(index, d): (usize, Deferred<T>)| {
            let (cancel, list) = (d.cancel_handle(), list.clone());
            d.add_both(move |result| list.add(index, result));
            cancel
        };
        self.deferreds.into_iter().enumerate().map(add).collect()
    }

    /// The Deferred that waits for all of them, when none of the flags is set.
    ///
    /// With [`fire_on_one_errback`](Self::fire_on_one_errback) it may fail with a [`FirstError`]; with
    /// [`fire_on_one_callback`](Self::fire_on_one_callback) use [`start`](Self::start): what it fires with is of another
    /// shape, so here that flag has no effect.
    #[track_caller]
    pub fn results(mut self) -> Deferred<Vec<Result<T, Failure>>> {
        self.one_callback = false;
        self.start().add_callback(|result| match result {
            ListResult::All(results) => Ok(results),
            ListResult::One(..) => unreachable!("the list does not fire on one callback"),
        })
    }
}

struct List<T> {
    results: RefCell<Vec<Option<Result<T, Failure>>>>,
    left: Cell<usize>,
    /// Gone once the list has fired.
    resolver: Cell<Option<Resolver<ListResult<T>>>>,
    one_callback: bool,
    one_errback: bool,
}

impl<T: 'static> List<T> {
    fn add(&self, index: usize, result: Result<T, Failure>) {
        self.left.set(self.left.get() - 1);
        let Some(resolver) = self.resolver.take() else {
            return;
        };
        let outcome = match result {
            Ok(value) if self.one_callback => Ok(ListResult::One(value, index)),
            Err(failure) if self.one_errback => Err(FirstError { index, failure }.into()),
            result => {
                self.results.borrow_mut()[index] = Some(result);
                if self.left.get() > 0 {
                    return self.resolver.set(Some(resolver));
                }
                Ok(ListResult::All(
                    self.results.take().into_iter().flatten().collect(),
                ))
            }
        };
        let _ = resolver.fire(outcome); // it was cancelled, and the one who did so has been told
    }
}

impl<T> fmt::Debug for DeferredList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<DeferredList of {}>", self.deferreds.len())
    }
}

/// Waits for all of these and fires with their values in order, or fails with the first failure.
///
/// That failure is a [`FirstError`], which says whose it was. Failures that come after it are dropped. Cancelling cancels
/// them all.
///
/// ```
/// use errback_deferred::{gather_results, succeed};
/// let d = gather_results((1..4).map(succeed));
/// d.add_callback(|values| assert_eq!(values, [1, 2, 3]));
/// ```
#[track_caller]
#[doc(alias = "gatherResults")]
pub fn gather_results<T: 'static>(
    deferreds: impl IntoIterator<Item = Deferred<T>>,
) -> Deferred<Vec<T>> {
    DeferredList::new(deferreds)
        .fire_on_one_errback()
        .results()
        .add_callback(|results| results.into_iter().collect::<Result<Vec<T>, Failure>>())
}

/// Waits for Deferreds of different types and fires with the tuple of their values, or fails with the first failure.
///
/// As [`gather_results`], for up to eight.
///
/// ```
/// use errback_deferred::{gather_tuple, succeed};
/// gather_tuple((succeed(1), succeed("two"))).add_callback(|(n, s)| assert_eq!((n, s), (1, "two")));
/// ```
#[track_caller]
pub fn gather_tuple<G: GatherTuple>(deferreds: G) -> Deferred<G::Values> {
    deferreds.gather()
}

/// A tuple of Deferreds; see [`gather_tuple`].
pub trait GatherTuple {
    /// The tuple of their values.
    type Values: 'static;

    /// Waits for all of them.
    #[track_caller]
    fn gather(self) -> Deferred<Self::Values>;
}

macro_rules! gather_tuples {
    ($(($($T:ident $n:tt)+))+) => { $(
        impl<$($T: 'static),+> GatherTuple for ($(Deferred<$T>,)+) {
            type Values = ($($T,)+);

            #[track_caller]
            fn gather(self) -> Deferred<Self::Values> {
                // Each value goes to a place of its own; the list only counts, fails and cancels.
                let places = Rc::new(($(Cell::new(None::<$T>),)+));
                let counted = [$({
                    let places = places.clone();
                    self.$n.add_callback(move |value| places.$n.set(Some(value)))
                }),+];
                gather_results(counted)
                    .add_callback(move |_| Ok(($(places.$n.take().expect("each of the list had a value"),)+)))
            }
        }
    )+ };
}

gather_tuples! {
    (A 0)
    (A 0 B 1)
    (A 0 B 1 C 2)
    (A 0 B 1 C 2 D 3)
    (A 0 B 1 C 2 D 3 E 4)
    (A 0 B 1 C 2 D 3 E 4 F 5)
    (A 0 B 1 C 2 D 3 E 4 F 5 G 6)
    (A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7)
}

/// Fires with the first value and its place, and cancels the others; fails with a [`FailureGroup`] when all fail.
///
/// Without any Deferred it fails with [`EmptyList`]. Cancelling cancels them all.
///
/// ```
/// use errback_deferred::{race, succeed, Deferred};
/// let (_slow, never) = Deferred::new();
/// race([never, succeed("fast")]).add_callback(|(index, value)| assert_eq!((index, value), (1, "fast")));
/// ```
#[track_caller]
pub fn race<T: 'static>(deferreds: impl IntoIterator<Item = Deferred<T>>) -> Deferred<(usize, T)> {
    let deferreds: Vec<Deferred<T>> = deferreds.into_iter().collect();
    let cancels: Rc<[CancelHandle]> = deferreds.iter().map(Deferred::cancel_handle).collect();
    let all = cancels.clone();
    let (resolver, d) = Deferred::with_canceller(move || {
        all.iter().for_each(CancelHandle::cancel);
        None
    });
    if deferreds.is_empty() {
        let _ = resolver.errback(EmptyList);
        return d;
    }
    let race = Rc::new(Race {
        cancels,
        resolver: resolver.into_shared(),
        won: Cell::new(false),
        failures: RefCell::new(Vec::new()),
    });
    for (index, d) in deferreds.into_iter().enumerate() {
        let (value, failure) = (race.clone(), race.clone());
        d.add_callbacks(
            move |v| value.succeeded(index, v),
            move |f| failure.failed(index, f),
        );
    }
    d
}

struct Race<T> {
    cancels: Rc<[CancelHandle]>,
    resolver: SharedResolver<(usize, T)>,
    won: Cell<bool>,
    failures: RefCell<Vec<(usize, Failure)>>,
}

impl<T: 'static> Race<T> {
    /// Fails the Deferred that came in first when the race had been cancelled before, as in Twisted.
    fn succeeded(&self, index: usize, value: T) -> Result<(), Failure> {
        if self.won.replace(true) {
            return Ok(());
        }
        self.cancels
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .for_each(|(_, c)| c.cancel());
        self.resolver.callback((index, value)).map_err(late)
    }

    fn failed(&self, index: usize, failure: Failure) -> Result<(), Failure> {
        let mut failures = self.failures.borrow_mut();
        failures.push((index, failure));
        if failures.len() < self.cancels.len() {
            return Ok(());
        }
        let mut failures = std::mem::take(&mut *failures);
        failures.sort_by_key(|(index, _)| *index);
        let failures = failures.into_iter().map(|(_, failure)| failure).collect();
        self.resolver
            .errback(FailureGroup { failures })
            .map_err(late)
    }
}

fn late<T>(error: AlreadyCalledError<T>) -> Failure {
    error.without_result().into()
}

/// The first failure among several Deferreds.
#[derive(Clone, Debug)]
pub struct FirstError {
    /// Which of them failed, counted from 0.
    pub index: usize,
    /// Its failure.
    pub failure: Failure,
}

impl fmt::Display for FirstError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the Deferred at index {} failed: {}",
            self.index, self.failure
        )
    }
}

impl std::error::Error for FirstError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failure.chain().nth(1) // the message has the first already
    }
}

/// All of several Deferreds failed.
#[derive(Clone, Debug)]
pub struct FailureGroup {
    /// Their failures, in the order of the Deferreds.
    pub failures: Vec<Failure>,
}

impl fmt::Display for FailureGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "all {} failed", self.failures.len())?;
        self.failures
            .iter()
            .enumerate()
            .try_for_each(|(i, failure)| write!(f, "{} {failure}", if i == 0 { ":" } else { ";" }))
    }
}

impl std::error::Error for FailureGroup {}

/// The first of no Deferreds at all would never come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EmptyList;

impl fmt::Display for EmptyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the first result of an empty list of Deferreds would never come")
    }
}

impl std::error::Error for EmptyList {}

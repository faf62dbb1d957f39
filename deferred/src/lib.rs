//! A result that is not here yet: Twisted's `Deferred` in Rust.
//!
//! ```
//! use errback_deferred::{Deferred, Failure};
//! use std::num::ParseIntError;
//!
//! let (resolver, d) = Deferred::<String>::new(); // the producer keeps one end, the consumer gets the other
//! let d = d
//!     .add_callback(|text| Ok(text.parse::<i64>()?))
//!     .add_errback(|failure| {
//!         failure.trap::<ParseIntError>()?; // anything else goes on to the next errback
//!         Ok(0)
//!     })
//!     .add_callback(|n| println!("{n}"));
//! resolver.callback("42".to_owned())?;
//! # Ok::<(), Failure>(())
//! ```
//!
//! # Coming from Twisted
//!
//! Names are Twisted's in snake case. What Rust makes different:
//!
//! | in Twisted one | here one |
//! | --- | --- |
//! | adds to a Deferred in place | rebinds it: `d = d.add_callback(…)`; the handle moves, because the type changes |
//! | passes extra arguments to `addCallback` | lets a `move` closure capture them |
//! | returns a plain value from a callback | wraps it in `Ok`; `?` raises |
//! | fires with `d.callback(v)` | keeps the [`Resolver`]; [`into_shared`](Resolver::into_shared) if several parties may fire |
//! | lets several parties wait for one Deferred | gives each an [`observe`](ObservableDeferred::observe)d one |
//! | cancels a Deferred that was given away | keeps its [`cancel_handle`](Deferred::cancel_handle) |
//! | writes `Deferred(canceller)` | calls [`set_canceller`](Deferred::set_canceller) |
//! | fires from another thread | uses a [`RemoteResolver`]; Deferreds and resolvers are not `Send` |
//! | writes `@inlineCallbacks`, `returnValue(x)` | writes `ensure_deferred(async move { … Ok(x) })` |
//! | writes `addErrback(log.err)` | ends with [`log_failure`](Deferred::log_failure) |
//!
//! Loops of callbacks that call themselves (a worker that takes the next job in its own callback) recurse here as they do in
//! Twisted when every job is there already; the same loop in a coroutine does not.
//!
//! This crate has no event loop, no thread, no input or output and no clock of its own: [`event_loop`] says what it asks of
//! a loop, and `errback-reactor` is one.

// In reading order. The two ends, with their types:
mod deferred;

// what happens when: the loop that runs the callbacks;
mod node;

// where results and callbacks lie, the one module with `unsafe`;
#[allow(unsafe_code)]
mod store;

// what errbacks are given, panics among it, and who is told of what nobody handled;
mod debug;
mod failure;
mod panics;
mod unhandled;

// many Deferreds with one result, and one Deferred for many who wait;
mod gather;
mod observable;
mod shield;

// taking turns: one at a time, so many at a time, one after the other, in small steps;
mod cooperate;
mod lock;
mod queue;
mod semaphore;
mod waiters;

// at a later time, again and again, and not too late;
mod later;
mod looping_call;
mod timeout;

// await and coroutines;
mod future;

// what a loop offers, its time turned by hand, and the firing end for other threads;
mod clock;
pub mod event_loop;
mod remote;

// and help for tests.
pub mod testing;

pub use clock::Clock;
pub use cooperate::{CooperativeTask, Cooperator, NotPaused, TaskFinished};
pub use debug::{debugging, set_debugging};
pub use deferred::{
    CancelHandle, Deferred, FiringEnd, IntoOutcome, Outcome, Pause, Resolver, SharedResolver,
    State, execute, fail, maybe_deferred, succeed, try_deferred,
};
pub use event_loop::{
    BusyPoll, DelayedCall, DelayedCalls, EnteredLoop, LoopGone, NotActive, Phase, ReactorCore,
    ReactorFromThreads, ReactorTime, SystemEvent, TriggerId, current_loop, enter_loop,
};
pub use failure::{
    AlreadyCalledError, CancelledError, ErrorTypes, Failure, PanicError, ResolverDropped,
    ResultTaken, ReturnedItself, TimeoutError,
};
pub use future::{NoEventLoop, SendFuture, ensure_deferred, ensure_deferred_on, from_future};
pub use gather::{
    DeferredList, EmptyList, FailureGroup, FirstError, GatherTuple, ListResult, gather_results,
    gather_tuple, race,
};
pub use later::defer_later;
pub use lock::DeferredLock;
pub use looping_call::{AlreadyRunning, LoopingCall};
pub use observable::ObservableDeferred;
pub use panics::contain;
pub use queue::{DeferredQueue, QueueOverflow, QueueUnderflow};
pub use remote::{ParkedResolver, RemoteResolver, RemoteResolverDropped, ResolverTable};
pub use semaphore::{DeferredSemaphore, NotHeld, Permit};
pub use unhandled::{ObserverGuard, Unhandled, log_err, observe_unhandled};

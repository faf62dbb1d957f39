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
//! This crate has no event loop, no thread, no input or output and no clock of its own: [`event_loop`] says what it asks of
//! a loop, and `errback-reactor` is one.

mod clock; // a loop's time, turned by hand
mod debug;
mod deferred; // the two ends, with their types
pub mod event_loop; // what a loop offers
mod failure; // what errbacks are given
mod gather; // many Deferreds, one result
mod node; // what happens when: the loop that runs the callbacks
mod panics; // panics turned into failures
mod remote;
#[allow(unsafe_code)]
mod store; // where results and callbacks lie; the one module with `unsafe`
mod unhandled; // who is told of what nobody handled // the firing end for other threads

pub use clock::Clock;
pub use debug::{debugging, set_debugging};
pub use deferred::{
    CancelHandle, Deferred, FiringEnd, IntoOutcome, Outcome, Pause, Resolver, SharedResolver,
    State, execute, fail, maybe_deferred, succeed,
};
pub use event_loop::{
    DelayedCall, DelayedCalls, LoopGone, NotActive, Phase, ReactorCore, ReactorFromThreads,
    ReactorTime, SystemEvent, TriggerId,
};
pub use failure::{
    AlreadyCalledError, CancelledError, Failure, PanicError, ResolverDropped, ResultTaken,
    ReturnedItself, TimeoutError,
};
pub use gather::{
    DeferredList, EmptyList, FailureGroup, FirstError, ListResult, gather_results, race,
};
pub use panics::contain;
pub use remote::{RemoteResolver, RemoteResolverDropped};
pub use unhandled::{ObserverGuard, Unhandled, log_err, observe_unhandled};

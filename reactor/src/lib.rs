//! A reactor: the event loop of Twisted's programming model, on [mio].
//!
//! One thread, and in each turn, in this order: calls from other threads, timers, the shutdown if it was asked for, one
//! wait for sources. Whatever blocks goes to a thread pool and comes back as a
//! [`Deferred`](errback_deferred::Deferred). There is no global reactor and `run` touches no process-wide state: make as
//! many as there are threads that want one, and a new one when the last has stopped.
//!
//! ```
//! use errback_reactor::{react, Reactor};
//! use std::{process::ExitCode, time::Duration};
//!
//! fn main() -> ExitCode {
//!     react(|reactor: &Reactor| {
//!         reactor.call_later(Duration::from_millis(5), || println!("tick"));
//!         reactor.defer_to_thread(|| Ok(std::fs::read_to_string("/etc/hostname")?)).add_both(|name| {
//!             println!("I am {}", name.unwrap_or_default());
//!         })
//!     })
//! }
//! ```
//!
//! | Twisted | here |
//! | --- | --- |
//! | `reactor.run`, `stop`, `callLater`, `callWhenRunning` | methods of [`Reactor`] |
//! | `callFromThread`, `blockingCallFromThread` | methods of [`ReactorHandle`], which other threads may have |
//! | `callInThread`, `deferToThread` | methods of [`Reactor`] |
//! | `addReader`, `addWriter` | [`Reactor::register`], for any source of mio's |
//! | `addSystemEventTrigger` | the same, with [`Phase`] and [`SystemEvent`] |
//! | attributes hung on the reactor | [`Reactor::services`] |
//! | `task.react` | [`react`] |

// A whole program, and the loop: what comes after what.
mod react;
mod reactor;

// What the loop looks after in each turn.
mod alarm;
mod call_list;
mod sources;
mod spin;
mod thread_calls;
mod timers;
mod triggers;

// What is there when asked for.
mod jobs;
mod services;
mod signals;
mod threads;

mod reports; // panics of callbacks

pub use mio;

pub use errback_deferred::{DelayedCall, LoopGone, NotActive, Phase, SystemEvent, TriggerId};

pub use react::react;
pub use reactor::{Builder, Reactor, ReactorNotRunning, RunError};
pub use services::Services;
pub use sources::{Registered, Registration};
pub use thread_calls::{OnLoopThread, ReactorHandle};
pub use threads::{ThreadPoolError, ThreadResult};

//! Twisted's programming model in Rust: [`Deferred`]s with chained callbacks and errbacks, a [`Reactor`], and
//! [`defer_to_process`], which works like `defer_to_thread` but runs the function in a pool of worker processes.
//!
//! ```no_run
//! use errback::{defer_to_process, react};
//!
//! #[errback::task]
//! fn count_primes(below: u64) -> usize {
//!     (2..below).filter(|n| (2..*n).all(|d| n % d != 0)).count()
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     react(|reactor| {
//!         let count = defer_to_process(reactor, count_primes, (20_000,));
//!         count.add_callback(|n| println!("{n} primes, counted in another process"))
//!     })
//! }
//! ```
//!
//! A job that segfaults, leaks or runs for ever takes down nothing but itself, and its errback always fires: with a
//! [`WorkerDied`] that says how the process died, with a [`JobPanicked`], or with the task's own error.
//!
//! # Where to look
//!
//! | Twisted | here |
//! | --- | --- |
//! | `Deferred`, `.callback`, `.errback` | [`Deferred::new`] gives both ends; [`Resolver`] fires |
//! | `addCallback`, `addErrback`, `addCallbacks`, `addBoth` | the same in snake case, on [`Deferred`] |
//! | `addErrback(log.err)` | [`Deferred::log_failure`]; [`log_err`] for a failure at hand |
//! | `Failure.check`, `.trap`, `.value`, `.getErrorMessage` | [`Failure::check`], [`Failure::trap`], [`Failure::error`], `to_string` |
//! | `inlineCallbacks`, `ensureDeferred`, `returnValue` | [`ensure_deferred`]`(async { … })` and `Ok(value)` |
//! | `gatherResults`, `DeferredList`, `race` | [`gather_results`], [`DeferredList`], [`race`]; [`gather_tuple`] for different types |
//! | `maybeDeferred`, `execute`, `succeed`, `fail` | the same in snake case |
//! | `DeferredLock`, `DeferredSemaphore`, `DeferredQueue`, `DeferredFilesystemLock` | the same names |
//! | `deferLater`, `LoopingCall`, `Cooperator`, `Clock` | [`defer_later`], and the same names |
//! | `reactor.run`, `callLater`, `callFromThread`, `deferToThread` | methods of [`Reactor`] |
//! | `task.react` | [`react`] |
//! | `deferToProcess` (the 2009 package), ampoule | [`defer_to_process`], [`Pool`]; for functions that stay in Python, [`python`] |
//! | `addTimeout`, `blockingCallFromThread` | [`Deferred::add_timeout`], `block_on_from_thread` |
//! | `multiprocessing.Pool(processes, initializer, maxtasksperchild)` | [`Builder::size`], [`Builder::initializer`], [`Builder::max_jobs_per_worker`] |
//! | its `imap`, `imap_unordered`, `starmap` | [`Pool::map`], [`Map::as_completed`], [`Pool::map`] over tuples |
//! | ampoule's `min`, `max`, `maxIdle`, `recycleAfter`, `timeout` | [`Builder::min_size`], [`Builder::size`], [`Builder::idle_timeout`], [`Builder::max_jobs_per_worker`], [`Task::timeout`] |
//! | Celery's `soft_time_limit`, `time_limit`, `expires` | [`Task::timeout`], that and [`Builder::cancel_grace`], [`Task::expires`] |
//! | trial's `successResultOf`, `failureResultOf`, `flushLoggedErrors` | [`testing`] |
//!
//! Differences from Twisted are on one page, `docs/deviations.md`; who runs where and what must always hold is in
//! `docs/architecture.md`, both in the repository.
//!
//! # Without a reactor
//!
//! A [`Pool`] needs no event loop: [`Pool::apply_async`] gives a result to wait for, or to await. With another event loop,
//! implement [`ReactorCore`] for it and call [`defer_to_process_pool`].
//!
//! # Functions in Python
//!
//! They can stay there: [`python`] names them, and [`Builder::python`] makes a pool of workers that run them, each with an
//! interpreter lock of its own. How to port a program step by step is in `docs/python-workers.md`.

// The life of a job, hop by hop: the call,
mod defer_to_process;

// the host's side, a pool of worker processes,
mod pool;

// what both sides agree a job is, the bytes, and those that are too many for a message,
mod buffer;
pub mod task;
pub mod wire;

// the memory that carries them,
mod lane;

// functions that stay in Python,
mod python;

// the worker's side, and the hook that runs it before `main`: the one module with `unsafe`.
#[allow(unsafe_code)]
mod hook;
pub mod worker;

// Other ways to ask for results, and why there is none.
mod async_result;
mod error;
mod map;

// A lock between processes; it is here and not with the other Deferreds because it touches files.
mod filesystem_lock;

pub use errback_macros::task;

pub use async_result::AsyncResult;
pub use buffer::Buffer;
pub use defer_to_process::{
    Shutdown, defer_to_process, defer_to_process_pool, process_pool, set_process_pool,
};
pub use error::{
    BuildError, DecodeError, EncodeError, Exit, ForkedHost, InternalError, JobPanicked,
    NotSerialisable, Overloaded, PoolClosed, PoolInUse, ProtocolError, SpawnFailed, SpawnFailure,
    TimedOut, UnknownTask, Usage, WorkerDied,
};
pub use filesystem_lock::{AlreadyTryingToLock, DeferredFilesystemLock};
pub use map::{AsCompleted, Map, MapItem, map_to_process};
#[doc(hidden)]
pub use pool::MemoryOfWorker;
pub use pool::{Breaker, Builder, Histogram, Pool, Room, Stats, WhenFull};
pub use python::{NotAPythonName, PythonTask, python};
pub use task::{DuplicateTask, Limited, Limits, RemoteError, Task};

#[doc(inline)]
pub use errback_reactor::{
    OnLoopThread, Reactor, ReactorHandle, ReactorNotRunning, Registered, Registration, RunError,
    Services, ThreadPoolError, ThreadResult, mio, react,
};

#[doc(inline)]
pub use errback_deferred::{
    AlreadyCalledError, AlreadyRunning, BusyPoll, CancelHandle, CancelledError, Clock,
    CooperativeTask, Cooperator, Deferred, DeferredList, DeferredLock, DeferredQueue,
    DeferredSemaphore, DelayedCall, DelayedCalls, EmptyList, EnteredLoop, ErrorTypes, Failure,
    FailureGroup, FiringEnd, FirstError, GatherTuple, IntoOutcome, ListResult, LoopGone,
    LoopingCall, NoEventLoop, NotActive, NotHeld, NotPaused, ObservableDeferred, ObserverGuard,
    Outcome, PanicError, Pause, Permit, Phase, QueueOverflow, QueueUnderflow, ReactorCore,
    ReactorFromThreads, ReactorTime, RemoteResolver, RemoteResolverDropped, Resolver,
    ResolverDropped, ResultTaken, ReturnedItself, SendFuture, SharedResolver, State, SystemEvent,
    TaskFinished, TimeoutError, TriggerId, Unhandled, bail, contain, current_loop, debugging,
    defer_later, ensure, ensure_deferred, ensure_deferred_on, enter_loop, event_loop, execute,
    fail, from_future, gather_results, gather_tuple, log_err, maybe_deferred, observe_unhandled,
    race, set_debugging, succeed, testing, try_deferred,
};

/// What the task attribute writes refers to this; it is no part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::task::*;
    pub use crate::wire::{DecodeError, RemoteErrorBody, ValueReader};
    pub use crate::{__describe_error as describe_error, __restore_error as restore_error};
    pub use {anyhow, linkme};
}

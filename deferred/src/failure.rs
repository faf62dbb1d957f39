//! What an errback is given: a [`Failure`], and the errors that this crate itself raises.
//!
//! A `Failure` is shared, as Twisted's are: one failure may stand in a list of results, in the log and in three
//! errbacks at once. It holds any error with its chain of causes and its backtrace (`anyhow::Error` does that part) and
//! the dotted names by which it may be matched when its type did not travel with it.

use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

/// An error on its way through the errbacks.
///
/// `?` turns every error into one: the standard library's, `anyhow`'s, your own. It is `Clone` (the error is shared),
/// one pointer large, and may cross threads.
///
/// ```
/// use errback_deferred::{fail, Failure};
/// use std::num::ParseIntError;
///
/// fn port(text: &str) -> Result<u16, Failure> {
///     Ok(text.parse()?)
/// }
/// let failure = port("http").unwrap_err();
/// assert!(failure.check::<ParseIntError>().is_some());
/// assert_eq!(failure.to_string(), "invalid digit found in string");
/// # fail::<()>(failure).add_errback(|_| ());
/// ```
///
/// Twisted's `getErrorMessage()` is `to_string()` (with `{:#}` the causes too), its `printTraceback()` is `{:?}`.
#[derive(Clone)]
#[doc(alias = "getErrorMessage")]
#[doc(alias = "printTraceback")]
pub struct Failure(Arc<Inner>);

struct Inner {
    error: anyhow::Error,
    /// The type's own name, then those of its bases where it has any (an exception of another language).
    names: Names,
}

enum Names {
    Rust(&'static str),
    Foreign(Box<[String]>),
}

impl Failure {
    /// A failure that is only a message.
    ///
    /// ```
    /// # use errback_deferred::Failure;
    /// let failure = Failure::msg(format_args!("no row {}", 7));
    /// assert_eq!(failure.to_string(), "no row 7");
    /// ```
    #[track_caller]
    pub fn msg(message: impl fmt::Display) -> Failure {
        Failure::named(
            anyhow::Error::msg(message.to_string()),
            Names::Rust("message"),
        )
    }

    /// A failure whose type is known by name only, because the error comes from another process or language.
    ///
    /// `names` are dotted type names, the error's own first and then its bases, against which
    /// [`check_name`](Failure::check_name) compares.
    ///
    /// ```
    /// # use errback_deferred::Failure;
    /// let names = ["builtins.ValueError", "builtins.Exception"];
    /// let failure = Failure::with_type_names(std::io::Error::other("bad"), names);
    /// assert!(failure.check_name("builtins.Exception"));
    /// assert_eq!(failure.type_name(), "builtins.ValueError");
    /// ```
    pub fn with_type_names<N: Into<String>>(
        error: impl Into<anyhow::Error>,
        names: impl IntoIterator<Item = N>,
    ) -> Failure {
        Failure::named(
            error.into(),
            Names::Foreign(names.into_iter().map(Into::into).collect()),
        )
    }

    fn named(error: anyhow::Error, names: Names) -> Failure {
        Failure(Arc::new(Inner { error, names }))
    }

    /// The error, if it is an `E` (or has an `E` as its `anyhow` context).
    ///
    /// ```
    /// # use errback_deferred::{CancelledError, Failure};
    /// assert!(Failure::from(CancelledError).check::<CancelledError>().is_some());
    /// ```
    pub fn check<E: Error + Send + Sync + 'static>(&self) -> Option<&E> {
        self.0.error.downcast_ref()
    }

    /// As [`trap`](Failure::trap), for one of several types: `failure.trap(A, B)` in Twisted.
    ///
    /// ```
    /// use errback_deferred::{fail, CancelledError, TimeoutError};
    /// let d = fail::<i64>(TimeoutError::default()).add_errback(|failure| {
    ///     failure.trap_any::<(TimeoutError, CancelledError)>()?;
    ///     Ok(0)
    /// });
    /// # d.add_callback(|n| assert_eq!(n, 0));
    /// ```
    ///
    /// # Errors
    /// This failure itself, when its error is none of these.
    pub fn trap_any<E: ErrorTypes>(&self) -> Result<(), Failure> {
        if self.is_any::<E>() {
            Ok(())
        } else {
            Err(self.clone())
        }
    }

    /// Whether the error is of one of several types: `failure.is_any::<(TimeoutError, CancelledError)>()`.
    pub fn is_any<E: ErrorTypes>(&self) -> bool {
        E::include(self)
    }

    /// Whether the error is an `E`.
    pub fn is<E: Error + Send + Sync + 'static>(&self) -> bool {
        self.check::<E>().is_some()
    }

    /// The error as an `E`; any other goes on to the next errback by `?`.
    ///
    /// ```
    /// use errback_deferred::{fail, Failure, TimeoutError};
    /// let d = fail::<i64>(TimeoutError::default()).add_errback(|failure| {
    ///     failure.trap::<TimeoutError>()?;
    ///     Ok(0)
    /// });
    /// # d.add_callback(|n| assert_eq!(n, 0));
    /// ```
    ///
    /// # Errors
    /// This failure itself, when it is not an `E`.
    pub fn trap<E: Error + Send + Sync + 'static>(&self) -> Result<&E, Failure> {
        self.check().ok_or_else(|| self.clone())
    }

    /// Whether one of the error's dotted type names is `name`.
    ///
    /// For errors of this program that is the path by which Rust knows the type (`std::io::error::Error`), without its
    /// generic arguments; for errors from elsewhere the names that came along, bases included.
    pub fn check_name(&self, name: &str) -> bool {
        match &self.0.names {
            Names::Rust(own) => own.split('<').next() == Some(name),
            Names::Foreign(names) => names.iter().any(|n| n == name),
        }
    }

    /// As [`trap`](Failure::trap), by name.
    ///
    /// # Errors
    /// This failure itself, when no name of its type is `name`.
    pub fn trap_name(&self, name: &str) -> Result<(), Failure> {
        if self.check_name(name) {
            Ok(())
        } else {
            Err(self.clone())
        }
    }

    /// The dotted name of the error's type.
    pub fn type_name(&self) -> &str {
        match &self.0.names {
            Names::Rust(own) => own,
            Names::Foreign(names) => names.first().map_or("", |n| n),
        }
    }

    /// All dotted names of the error's type, its own first.
    pub fn type_names(&self) -> impl Iterator<Item = &str> {
        let (own, foreign) = match &self.0.names {
            Names::Rust(own) => (Some(*own), [].iter()),
            Names::Foreign(names) => (None, names.iter()),
        };
        own.into_iter().chain(foreign.map(String::as_str))
    }

    /// The error, its causes, outermost first.
    pub fn chain(&self) -> impl Iterator<Item = &(dyn Error + 'static)> {
        self.0.error.chain()
    }

    /// The error itself.
    pub fn error(&self) -> &anyhow::Error {
        &self.0.error
    }

    /// Where the error was made; captured when `RUST_BACKTRACE` asks for it.
    pub fn backtrace(&self) -> &std::backtrace::Backtrace {
        self.0.error.backtrace()
    }

    /// The error, for code that speaks `anyhow`. It is still an `E` to `downcast_ref` when nobody else holds this
    /// failure; otherwise it is wrapped, because an error cannot be copied.
    pub fn into_anyhow(self) -> anyhow::Error {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => inner.error,
            Err(shared) => anyhow::Error::new(Shared(Failure(shared))),
        }
    }

    /// Whether both are the same failure, not only equal ones.
    pub fn ptr_eq(&self, other: &Failure) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A tuple of up to eight error types; see [`Failure::trap_any`].
pub trait ErrorTypes {
    /// Whether the failure's error is of one of these types.
    fn include(failure: &Failure) -> bool;
}

macro_rules! error_types {
    ($(($($E:ident)+))+) => { $(
        impl<$($E: Error + Send + Sync + 'static),+> ErrorTypes for ($($E,)+) {
            fn include(failure: &Failure) -> bool {
                $(failure.is::<$E>())||+
            }
        }
    )+ };
}

error_types! { (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) (A B C D E F G) (A B C D E F G H) }

// `Failure` implements neither `Error` nor `Into<anyhow::Error>`: that is what makes this one legal, and it gives `?` on
// everything. `anyhow::Error` made the same choice for the same reason.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Failure {
        let error: anyhow::Error = error.into();
        match error.downcast::<Shared>() {
            Ok(Shared(failure)) => failure, // it has been here before
            Err(error) => Failure::named(error, Names::Rust(type_name::<E>())),
        }
    }
}

impl fmt::Display for Failure {
    /// The message; with `{:#}` the causes too, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.error, f)
    }
}

impl fmt::Debug for Failure {
    /// The message, the causes and the backtrace, on several lines; with `{:#?}` the error's own structure.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.error, f)
    }
}

/// A failure where an `Error` is wanted. It stands for the error in it: same message, same causes.
struct Shared(Failure);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Error for Shared {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.0.error.chain().nth(1)
    }
}

impl From<Failure> for Box<dyn Error + Send + Sync> {
    fn from(failure: Failure) -> Self {
        Box::new(Shared(failure))
    }
}

impl From<Failure> for Box<dyn Error> {
    fn from(failure: Failure) -> Self {
        Box::new(Shared(failure))
    }
}

/// Returns early with a [`Failure`] made from a format string or an error.
///
/// ```
/// use errback_deferred::{bail, Failure};
/// fn check(n: i64) -> Result<i64, Failure> {
///     if n < 0 {
///         bail!("{n} is negative");
///     }
///     Ok(n)
/// }
/// assert_eq!(check(-1).unwrap_err().to_string(), "-1 is negative");
/// ```
#[macro_export]
macro_rules! bail {
    ($($arg:tt)+) => { return ::std::result::Result::Err($crate::Failure::msg(::std::format_args!($($arg)+))) };
}

/// Returns early with a [`Failure`] unless a condition holds.
///
/// ```
/// use errback_deferred::{ensure, Failure};
/// fn check(n: i64) -> Result<i64, Failure> {
///     ensure!(n >= 0, "{n} is negative");
///     Ok(n)
/// }
/// assert!(check(1).is_ok() && check(-1).is_err());
/// ```
#[macro_export]
macro_rules! ensure {
    ($condition:expr $(,)?) => { $crate::ensure!($condition, "condition failed: {}", ::std::stringify!($condition)) };
    ($condition:expr, $($arg:tt)+) => { if !$condition { $crate::bail!($($arg)+) } };
}

// ---------------------------------------------------------------- the errors of this crate

/// The Deferred was cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CancelledError;

impl fmt::Display for CancelledError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the Deferred was cancelled")
    }
}

impl Error for CancelledError {}

/// The Deferred had no result in time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimeoutError {
    /// How long it was given, if that is known.
    pub after: Option<std::time::Duration>,
}

impl fmt::Display for TimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.after {
            Some(after) => write!(f, "no result within {after:?}"),
            None => f.write_str("no result in time"),
        }
    }
}

impl Error for TimeoutError {}

/// A Deferred can fire only once, and it had. It gives back the result that came too late.
pub struct AlreadyCalledError<T = ()> {
    /// The result that was not taken.
    pub result: Result<T, Failure>,
    /// Where the Deferred was made and where it was first fired, when [`set_debugging`](crate::set_debugging) was on.
    pub history: Option<String>,
}

impl<T> AlreadyCalledError<T> {
    /// The same without the result, for when that cannot be sent along.
    pub fn without_result(self) -> AlreadyCalledError {
        AlreadyCalledError {
            result: self.result.map(drop),
            history: self.history,
        }
    }
}

impl<T> fmt::Display for AlreadyCalledError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the Deferred had been fired already")?;
        self.history
            .iter()
            .try_for_each(|history| write!(f, "; {history}"))
    }
}

impl<T> fmt::Debug for AlreadyCalledError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlreadyCalledError({self})")
    }
}

impl<T> Error for AlreadyCalledError<T> {}

/// The firing end was dropped before it fired, so that no result would ever have come.
///
/// Twisted's Deferreds wait for ever then; ours fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResolverDropped {
    /// Where the Deferred was made.
    pub made_at: &'static Location<'static>,
}

impl fmt::Display for ResolverDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the Deferred made at {} will never fire: its resolver was dropped",
            self.made_at
        )
    }
}

impl Error for ResolverDropped {}

/// The result had been taken away, by an `await`, before this callback was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResultTaken;

impl fmt::Display for ResultTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the result of this Deferred had been taken already")
    }
}

impl Error for ResultTaken {}

/// A callback returned the very Deferred that it was attached to, which would then have waited for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReturnedItself;

impl fmt::Display for ReturnedItself {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a callback returned the Deferred that it was attached to")
    }
}

impl Error for ReturnedItself {}

/// Code that a Deferred called panicked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PanicError {
    /// What the panic said, or that it said nothing readable.
    pub message: String,
    /// `file:line:column` of the panic.
    pub location: Option<String>,
    /// The stack at the panic, when `RUST_BACKTRACE` asks for it.
    pub backtrace: Option<String>,
}

impl fmt::Display for PanicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)?;
        self.location
            .iter()
            .try_for_each(|location| write!(f, " at {location}"))
    }
}

impl Error for PanicError {}

//! What `#[errback::task]` expands to calls these. No part of the public interface.
//!
//! The attribute sees tokens, not types: whether `-> Fetched` is a `Result`, and whether its error can be encoded, only
//! the compiler knows. Two tricks ask it. A constant of an inherent `impl` wins over one of a trait where both apply,
//! and can choose an associated type through a const parameter ([`Returns`]); and method lookup takes the first of
//! several receivers that fits, by autoref ([`ErrorProbe`]). Both work on the concrete types that a macro has.

use std::backtrace::BacktraceStatus;
use std::cell::Cell;
use std::error::Error;
use std::fmt::{Debug, Display};
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RemoteError;
use crate::wire::{
    Chunk, DecodeError, EncodeError, Encoder, ErrorKind, RemoteErrorBody, ResultsWriter,
    ValueReader, decode_value,
};

/// One call in the worker: its arguments, room for its result, and how far it has come.
#[doc(hidden)]
pub struct Call<'a> {
    /// Those that have not been read begin here. Behind them may be those of other calls.
    args: ValueReader<'a>,
    /// Whether that is the one argument, and no array.
    one: bool,
    result: &'a mut Encoder,
    step: Step,
}

/// What a run leaves behind: the result in its frame, or an error.
#[doc(hidden)]
pub type Ran = Result<(), Box<RemoteErrorBody>>;

/// How far a call has come: a panic means another thing in each.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Somebody's `Deserialize` is running.
    Decoding,
    /// The task is.
    Running,
    /// Somebody's `Serialize` is.
    Encoding,
}

impl<'a> Call<'a> {
    pub(crate) fn new(args: &'a [u8], result: &'a mut Encoder) -> Call<'a> {
        Call {
            args: ValueReader::new(args),
            one: false,
            result,
            step: Step::Decoding,
        }
    }

    pub(crate) fn step(&self) -> Step {
        self.step
    }

    /// There must be as many arguments as there are `names`.
    #[inline(always)]
    pub fn expect(&mut self, signature: &'static str, names: usize) -> Ran {
        if (self.one && names == 1) || (!self.one && self.args.passes_array(names)) {
            return Ok(());
        }
        self.expect_with_care(signature, names)
    }

    #[inline(never)]
    fn expect_with_care(&mut self, signature: &'static str, names: usize) -> Ran {
        let given = match self.one {
            true => 1,
            false => self.args.array().map_err(refused_args)?,
        };
        if given == names {
            return Ok(());
        }
        let s = if names == 1 { "" } else { "s" };
        let message = format!("`{signature}` takes {names} argument{s}, and {given} came");
        Err(refused_args(DecodeError::new(message)))
    }

    /// The next argument.
    #[inline(always)]
    pub fn take<T: DeserializeOwned + 'static>(
        &mut self,
        signature: &'static str,
        name: &'static str,
    ) -> Result<T, Box<RemoteErrorBody>> {
        let read = self.args.read();
        read.map_err(|error| refused_argument(error, signature, name))
    }

    /// All arguments have been read: the function begins now.
    #[inline]
    pub fn begin(&mut self) {
        self.step = Step::Running;
    }

    /// The function has returned this.
    #[inline]
    pub fn answer<T: Serialize>(&mut self, value: &T) -> Ran {
        self.step = Step::Encoding;
        let encoded = self.result.value(value);
        encoded.map_err(|error| unsendable(std::any::type_name::<T>(), &error))
    }
}

#[cold]
fn unsendable(type_name: &'static str, error: &EncodeError) -> Box<RemoteErrorBody> {
    let message = format!("the result cannot be sent: {error}");
    Box::new(RemoteErrorBody::new(
        ErrorKind::EncodeResult,
        type_name,
        message,
    ))
}

/// The calls of a chunk in the worker. A task's own code goes through them, made for its types.
#[doc(hidden)]
pub struct Calls<'a> {
    /// The one that runs; the arguments of the next are behind its own.
    call: Call<'a>,
    /// The arguments of all.
    args: &'a [u8],
    /// Where its arguments begin, counted from the end.
    at: usize,
    left: usize,
    results: ResultsWriter,
}

impl<'a> Calls<'a> {
    /// The calls of one argument `each`, or of any number.
    pub(crate) fn new(
        chunk: &Chunk<'a>,
        each: bool,
        frame: &'a mut Encoder,
    ) -> Result<Calls<'a>, EncodeError> {
        let results = ResultsWriter::begin(frame, chunk.count)?;
        let mut call = Call::new(chunk.calls, frame);
        call.one = each;
        Ok(Calls {
            call,
            args: chunk.calls,
            at: 0,
            left: chunk.count,
            results,
        })
    }

    pub(crate) fn step(&self) -> Step {
        self.call.step
    }

    pub(crate) fn are_done(&self) -> bool {
        self.left == 0
    }

    /// Runs the next, and those behind it until somebody has to look at something: see [`panic_seen`]. If one panics, it was
    /// the one that then can be made to [`fail`](Calls::fail), and the others are still there to be run.
    #[inline]
    pub fn run(&mut self, run: impl Fn(&mut Call<'a>) -> Ran) -> Ran {
        while self.left > 0 {
            self.begin()?;
            if let Err(error) = run(&mut self.call) {
                self.fail(error)?;
            }
            if panic_seen() {
                break;
            }
        }
        Ok(())
    }

    #[inline]
    fn begin(&mut self) -> Ran {
        self.left -= 1;
        self.at = self.call.args.rest().len();
        self.call.step = Step::Decoding;
        let begun = self.results.begin_result(self.call.result);
        begun.map_err(too_long)
    }

    /// The call that was begun has failed.
    #[cold]
    pub(crate) fn fail(&mut self, error: Box<RemoteErrorBody>) -> Ran {
        if self.call.step == Step::Decoding {
            // Who knows how far it came.
            let here = &self.args[self.args.len() - self.at..];
            self.call.args = ValueReader::new(here);
            self.call.args.raw().map_err(refused_args)?;
        }
        let made = self.results.make_error(self.call.result, *error);
        made.map_err(too_long)
    }
}

#[cold]
pub(crate) fn too_long(error: EncodeError) -> Box<RemoteErrorBody> {
    let message = format!("the results of this chunk cannot be sent: {error}");
    Box::new(RemoteErrorBody::new(ErrorKind::EncodeResult, "", message))
}

thread_local! {
    /// Whether the job of this thread has panicked, and nobody has looked at that yet.
    pub(crate) static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a call has panicked, and caught that itself.
#[inline]
fn panic_seen() -> bool {
    PANICKED.get()
}

#[cold]
fn refused_argument(error: DecodeError, signature: &str, name: &str) -> Box<RemoteErrorBody> {
    refused_args(error.at(format_args!("argument {name} of `{signature}`")))
}

#[cold]
fn refused_args(error: DecodeError) -> Box<RemoteErrorBody> {
    Box::new(RemoteErrorBody::new(
        ErrorKind::DecodeArgs,
        "",
        error.to_string(),
    ))
}

/// Decodes a result in the host, that of one call of a chunk.
#[doc(hidden)]
#[inline]
pub fn decode_next<T: DeserializeOwned + 'static>(
    values: &mut ValueReader<'_>,
) -> Result<T, DecodeError> {
    values.read()
}

/// Decodes a result in the host.
#[doc(hidden)]
pub fn decode_output<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_value(bytes)
}

/// Asks whether a return type is a `Result`: `ReturnType::<R>::IS_RESULT`.
#[doc(hidden)]
pub struct ReturnType<R>(PhantomData<R>);

impl<T, E> ReturnType<Result<T, E>> {
    pub const IS_RESULT: bool = true;
}

/// The answer when the inherent one above does not apply.
#[doc(hidden)]
pub trait NoResult {
    const IS_RESULT: bool = false;
}

impl<R> NoResult for ReturnType<R> {}

/// What a function that returns `R` gives, with `IS_RESULT` as the parameter of [`Returned`].
#[doc(hidden)]
pub trait Returns<R> {
    type Value;
    type Error;
    fn split(returned: R) -> Result<Self::Value, Self::Error>;
}

#[doc(hidden)]
pub struct Returned<const IS_RESULT: bool>;

impl<T, E> Returns<Result<T, E>> for Returned<true> {
    type Value = T;
    type Error = E;

    fn split(returned: Result<T, E>) -> Result<T, E> {
        returned
    }
}

impl<R> Returns<R> for Returned<false> {
    type Value = R;
    type Error = std::convert::Infallible;

    fn split(returned: R) -> Result<R, Self::Error> {
        Ok(returned)
    }
}

/// Asks what is known of an error of type `E`. There are two ladders, each tried from the most that can be had to the
/// least: [what it says](#implementors), `(&&&&&&&&ErrorProbe::<E>::new()).describe(&error)`, and whether it can travel
/// as itself, `(&&&ErrorProbe::<E>::new()).encode(&error)`. A rung has one `&` less than the one above it.
#[doc(hidden)]
pub struct ErrorProbe<E>(PhantomData<E>);

impl<E> ErrorProbe<E> {
    #[expect(
        clippy::new_without_default,
        reason = "only the attribute's expansion makes one"
    )]
    pub const fn new() -> ErrorProbe<E> {
        ErrorProbe(PhantomData)
    }
}

/// anyhow's, with its chain and its backtrace.
#[doc(hidden)]
pub trait DescribeAnyhow {
    fn describe(&self, error: &anyhow::Error) -> RemoteErrorBody;
}

impl DescribeAnyhow for &&&&&&&ErrorProbe<anyhow::Error> {
    fn describe(&self, error: &anyhow::Error) -> RemoteErrorBody {
        let inner: &(dyn Error + 'static) = error.as_ref();
        let mut body = described::<anyhow::Error>(inner.to_string(), causes(inner.source()));
        if error.backtrace().status() == BacktraceStatus::Captured {
            body.backtrace = Some(error.backtrace().to_string());
        }
        body
    }
}

/// An error, with its causes.
#[doc(hidden)]
pub trait DescribeError<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody;
}

impl<E: Error> DescribeError<E> for &&&&&&ErrorProbe<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody {
        described::<E>(error.to_string(), causes(error.source()))
    }
}

/// Something that holds an error without being one, as `Box<dyn Error + Send + Sync>` does.
#[doc(hidden)]
pub trait DescribeSendHolder<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody;
}

impl<E: AsRef<dyn Error + Send + Sync>> DescribeSendHolder<E> for &&&&&ErrorProbe<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody {
        let inner = error.as_ref();
        described::<E>(inner.to_string(), causes(inner.source()))
    }
}

/// The same for `Box<dyn Error>`.
#[doc(hidden)]
pub trait DescribeHolder<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody;
}

impl<E: AsRef<dyn Error>> DescribeHolder<E> for &&&&ErrorProbe<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody {
        let inner = error.as_ref();
        described::<E>(inner.to_string(), causes(inner.source()))
    }
}

/// Something that can be made an error of, as a `Failure` can, which shares one.
#[doc(hidden)]
pub trait DescribeShared<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody;
}

impl<E: Clone + Into<Box<dyn Error + Send + Sync>>> DescribeShared<E> for &&&ErrorProbe<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody {
        let inner: Box<dyn Error + Send + Sync> = error.clone().into();
        described::<E>(inner.to_string(), causes(inner.source()))
    }
}

/// A text, as a `String`.
#[doc(hidden)]
pub trait DescribeText<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody;
}

impl<E: Display> DescribeText<E> for &&ErrorProbe<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody {
        described::<E>(error.to_string(), Vec::new())
    }
}

#[doc(hidden)]
pub trait DescribeDebug<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody;
}

impl<E: Debug> DescribeDebug<E> for &ErrorProbe<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody {
        described::<E>(format!("{error:?}"), Vec::new())
    }
}

/// What an error says of itself, for whatever type: see [`ErrorProbe`]. One with a `&'static str` in it is not asked
/// whether it can be decoded: a lookup does not see lifetimes, and would find that it can, for some of them.
#[doc(hidden)]
#[macro_export]
macro_rules! __describe_error {
    (borrowed $error_type:ty, $error:ident) => {
        ::std::boxed::Box::new(
            (&&&&&&&&$crate::__private::ErrorProbe::<$error_type>::new()).describe(&$error),
        )
    };
    ($error_type:ty, $error:ident) => {{
        let mut __body =
            (&&&&&&&&$crate::__private::ErrorProbe::<$error_type>::new()).describe(&$error);
        __body.value = (&&&$crate::__private::ErrorProbe::<$error_type>::new()).encode(&$error);
        ::std::boxed::Box::new(__body)
    }};
}

/// An error from what it said of itself, for whatever type: see [`ErrorProbe`].
#[doc(hidden)]
#[macro_export]
macro_rules! __restore_error {
    (borrowed $error_type:ty, $body:ident) => {
        $crate::__private::anyhow::Error::new($crate::RemoteError::from($body))
    };
    ($error_type:ty, $body:ident) => {
        (&&&$crate::__private::ErrorProbe::<$error_type>::new()).restore($body)
    };
}

/// At least it has a type.
#[doc(hidden)]
pub trait DescribeAny<E> {
    fn describe(&self, error: &E) -> RemoteErrorBody;
}

impl<E> DescribeAny<E> for ErrorProbe<E> {
    fn describe(&self, _: &E) -> RemoteErrorBody {
        described::<E>(std::any::type_name::<E>().to_owned(), Vec::new())
    }
}

fn described<E>(message: String, chain: Vec<String>) -> RemoteErrorBody {
    let mut body = RemoteErrorBody::new(ErrorKind::Error, std::any::type_name::<E>(), message);
    body.chain = chain;
    body
}

fn causes(first: Option<&(dyn Error + 'static)>) -> Vec<String> {
    // An error may be its own cause by mistake.
    const ENOUGH: usize = 50;
    let mut messages = Vec::new();
    let mut next = first;
    while let Some(error) = next
        && messages.len() < ENOUGH
    {
        messages.push(error.to_string());
        next = error.source();
    }
    messages
}

/// An error that travels as itself.
#[doc(hidden)]
pub trait TravelError<E> {
    fn encode(&self, error: &E) -> Option<Vec<u8>>;
    fn restore(&self, body: RemoteErrorBody) -> anyhow::Error;
}

impl<E> TravelError<E> for &&ErrorProbe<E>
where
    E: Error + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    fn encode(&self, error: &E) -> Option<Vec<u8>> {
        encoded(error)
    }

    fn restore(&self, body: RemoteErrorBody) -> anyhow::Error {
        restored(body, |error: E| anyhow::Error::new(error))
    }
}

/// Something that is not an error, as a `String` is none, and travels as itself.
#[doc(hidden)]
pub trait TravelText<E> {
    fn encode(&self, error: &E) -> Option<Vec<u8>>;
    fn restore(&self, body: RemoteErrorBody) -> anyhow::Error;
}

impl<E> TravelText<E> for &ErrorProbe<E>
where
    E: Display + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    fn encode(&self, error: &E) -> Option<Vec<u8>> {
        encoded(error)
    }

    fn restore(&self, body: RemoteErrorBody) -> anyhow::Error {
        restored(body, |error: E| anyhow::Error::msg(error))
    }
}

/// What can only be told of.
#[doc(hidden)]
pub trait TravelNot<E> {
    fn encode(&self, error: &E) -> Option<Vec<u8>>;
    fn restore(&self, body: RemoteErrorBody) -> anyhow::Error;
}

impl<E> TravelNot<E> for ErrorProbe<E> {
    fn encode(&self, _: &E) -> Option<Vec<u8>> {
        None
    }

    fn restore(&self, body: RemoteErrorBody) -> anyhow::Error {
        RemoteError::from(body).into()
    }
}

/// One that cannot be encoded after all travels as its words.
fn encoded<E: Serialize>(error: &E) -> Option<Vec<u8>> {
    const MOST: usize = 1024 * 1024;
    let mut encoder = Encoder::new(MOST);
    encoder.value(error).ok()?;
    Some(encoder.into_bytes())
}

fn restored<E: DeserializeOwned + 'static>(
    body: RemoteErrorBody,
    wrap: fn(E) -> anyhow::Error,
) -> anyhow::Error {
    match body.value.as_deref().map(decode_value::<E>) {
        Some(Ok(error)) => wrap(error),
        Some(Err(_)) | None => RemoteError::from(body).into(),
    }
}

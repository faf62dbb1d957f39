//! Many calls of one task in one message, and their results in another.
//!
//! Here a microsecond is the time of fifty calls, so whatever can be done once for all of them is: one landing for panics,
//! one look whether each call has one argument, one array of results. What one call must not do to the others costs when it
//! happens: the results are the bare values as long as none has failed, and become pairs with the first that does.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::ser::{self, Impossible};

use super::encode::Encoder;
use super::scan::Scanner;
use super::{
    DecodeError, EncodeError, Outcome, ProtocolError, RemoteErrorBody, ValueReader,
    WithAttachments, args_value, finish, framed, guarded, outcome,
};

/// The name under which a worker takes a [chunk](encode_chunk) of calls. Names that begin with `errback.` are no tasks'.
pub const MAP: &str = "errback.map";

/// The same for calls that have one argument each.
pub const EACH: &str = "errback.each";

/// How deep the arguments and the results of a chunk are in its arrays.
const DEPTH: usize = 2;

/// The only member of the map that is the result of a chunk of which no call failed.
const ALL: &str = "all";

/// How much longer that map is than the array in it.
const ALL_HEADER: usize = 2 + ALL.len();

/// What is in front of a value in a pair.
const NO_ERROR: [u8; 2] = [0x92, 0xc0];

/// Many calls of one task as one: `[0, id, "errback.map", [task, [args, …]]]`, or, if each has one argument,
/// `[0, id, "errback.each", [task, [argument, …]]]`. The answer to it has a result for each, in their order: see
/// [`parse_chunk_results`].
///
/// ```
/// use errback::wire::{MAX_FRAME, encode_chunk};
///
/// let frame = encode_chunk(7, "add", &[(1, 2), (3, 4)], MAX_FRAME)?;
/// assert!(frame.ends_with(&[0x92, 0xa3, b'a', b'd', b'd', 0x92, 0x92, 1, 2, 0x92, 3, 4]));
/// let frame = encode_chunk(7, "inc", &[(1,), (2,)], MAX_FRAME)?;
/// assert!(frame.ends_with(&[0x92, 0xa3, b'i', b'n', b'c', 0x92, 1, 2]));
/// # Ok::<(), errback::wire::EncodeError>(())
/// ```
///
/// # Errors
/// As those of [`encode_call`](super::encode_call).
pub fn encode_chunk<A: Serialize>(
    id: u64,
    task: &str,
    chunk: &[A],
    max_frame: usize,
) -> Result<Vec<u8>, EncodeError> {
    encode_chunk_sharing(id, task, chunk, max_frame, None).map(|(frame, _)| frame)
}

/// The same, in which buffers of `share_from` bytes and more are referred to.
pub(crate) fn encode_chunk_sharing<A: Serialize>(
    id: u64,
    task: &str,
    chunk: &[A],
    max_frame: usize,
    share_from: Option<usize>,
) -> Result<WithAttachments, EncodeError> {
    let begin = |form: &str| {
        begin_chunk(form, id, task, chunk.len(), max_frame).map(|it| it.sharing(share_from))
    };
    if !chunk.is_empty() {
        let mut encoder = begin(EACH)?;
        match guarded(|| Ok(only_arguments(&mut encoder, chunk)))? {
            Ok(()) => return Ok(finished(encoder)),
            Err(NoArgument::Refused(error)) => return Err(error),
            // Of another number of arguments; or there is a `Serialize` that is not always of one mind.
            Err(NoArgument::NotOne) => {}
        }
    }
    let mut encoder = begin(MAP)?;
    for args in chunk {
        encoder.set_depth(DEPTH);
        args_value(&mut encoder, args)?;
    }
    Ok(finished(encoder))
}

fn begin_chunk(
    form: &str,
    id: u64,
    task: &str,
    calls: usize,
    max_frame: usize,
) -> Result<Encoder, EncodeError> {
    let mut encoder = framed(max_frame);
    encoder.raw(&[0x94, 0x00])?;
    encoder.marked(0xcf, id.to_be_bytes())?;
    encoder.text(form)?;
    encoder.array(2)?;
    encoder.text(task)?;
    encoder.array(calls)?;
    Ok(encoder)
}

fn finished(mut encoder: Encoder) -> WithAttachments {
    finish(&mut encoder);
    encoder.into_parts()
}

/// Writes the one argument of each call, without the array around it.
fn only_arguments<A: Serialize>(encoder: &mut Encoder, chunk: &[A]) -> Result<(), NoArgument> {
    let before = encoder.bytes().len();
    encoder.set_depth(DEPTH + 1);
    for (index, args) in chunk.iter().enumerate() {
        args.serialize(OnlyArgument(encoder))?;
        if index == 0 {
            // Most are as long as the first, or a number that is as wide as its type.
            let each = (encoder.bytes().len() - before).max(size_of::<A>().min(9));
            encoder.reserve(each.saturating_mul(chunk.len() - 1));
        }
    }
    Ok(())
}

/// Writes a tuple of one element as that element.
struct OnlyArgument<'a>(&'a mut Encoder);

/// Why there is none.
enum NoArgument {
    /// The arguments are not one.
    NotOne,
    Refused(EncodeError),
}

impl From<EncodeError> for NoArgument {
    fn from(error: EncodeError) -> NoArgument {
        NoArgument::Refused(error)
    }
}

impl std::fmt::Debug for NoArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Display for NoArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoArgument::NotOne => f.write_str("not one argument"),
            NoArgument::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NoArgument {}

impl ser::Error for NoArgument {
    fn custom<T: Display>(message: T) -> Self {
        NoArgument::Refused(ser::Error::custom(message))
    }
}

type Never = Impossible<(), NoArgument>;

macro_rules! not_one_argument {
    ($($method:ident($($argument:ty),*) -> $ok:ty;)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<$ok, NoArgument> { Err(NoArgument::NotOne) })*
    };
}

impl<'a> ser::Serializer for OnlyArgument<'a> {
    type Ok = ();
    type Error = NoArgument;
    type SerializeSeq = Never;
    type SerializeTuple = OneElement<'a>;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_tuple(self, length: usize) -> Result<OneElement<'a>, NoArgument> {
        match length {
            1 => Ok(OneElement {
                encoder: self.0,
                written: false,
            }),
            _ => Err(NoArgument::NotOne),
        }
    }

    not_one_argument! {
        serialize_bool(bool) -> ();
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_i32(i32) -> ();
        serialize_i64(i64) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_str(&str) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_unit_variant(&'static str, u32, &'static str) -> ();
        serialize_seq(Option<usize>) -> Never;
        serialize_tuple_struct(&'static str, usize) -> Never;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Never;
        serialize_map(Option<usize>) -> Never;
        serialize_struct(&'static str, usize) -> Never;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Never;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<(), NoArgument> {
        Err(NoArgument::NotOne)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<(), NoArgument> {
        Err(NoArgument::NotOne)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), NoArgument> {
        Err(NoArgument::NotOne)
    }
}

struct OneElement<'a> {
    encoder: &'a mut Encoder,
    written: bool,
}

impl ser::SerializeTuple for OneElement<'_> {
    type Ok = ();
    type Error = NoArgument;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NoArgument> {
        if std::mem::replace(&mut self.written, true) {
            return Err(NoArgument::NotOne);
        }
        Ok(self.encoder.value(value)?)
    }

    #[inline]
    fn end(self) -> Result<(), NoArgument> {
        match self.written {
            true => Ok(()),
            false => Err(NoArgument::NotOne),
        }
    }
}

/// The calls of a chunk, as a worker reads them.
pub(crate) struct Chunk<'a> {
    pub(crate) task: &'a str,
    /// How many calls there are.
    pub(crate) count: usize,
    /// What each takes, one behind the other.
    pub(crate) calls: &'a [u8],
}

impl<'a> Chunk<'a> {
    pub(crate) fn parse(args: &'a [u8]) -> Result<Chunk<'a>, DecodeError> {
        Chunk::read(Scanner::new(args))
            .map_err(|e| DecodeError::new(format!("not a task and an array of calls: {e}")))
    }

    fn read(mut scanner: Scanner<'a>) -> Result<Chunk<'a>, ProtocolError> {
        match scanner.array()? {
            2 => Ok(Chunk {
                task: scanner.text()?,
                count: scanner.array()?,
                calls: scanner.rest(),
            }),
            other => Err(ProtocolError::new(format!("an array of {other}"))),
        }
    }
}

/// The results of a chunk, as a worker writes them: `{"all": [value, …]}`, and from the first error on
/// `[[nil, value], [error, nil], …]`.
///
/// Room is kept for what the second form needs more, so that the values which are there fit into a frame in that one too.
pub(crate) struct ResultsWriter {
    count: usize,
    /// Where they begin, with all their headers.
    start: usize,
    /// Where the bare values begin; `None`: they are pairs.
    bare: Option<usize>,
    /// How many there are.
    written: usize,
    /// Where the last of them begins.
    last: usize,
}

impl ResultsWriter {
    pub(crate) fn begin(encoder: &mut Encoder, count: usize) -> Result<ResultsWriter, EncodeError> {
        let start = encoder.bytes().len();
        let mut writer = ResultsWriter {
            count,
            start,
            bare: None,
            written: 0,
            last: start,
        };
        encoder.set_depth(DEPTH);
        let more_as_pairs = NO_ERROR.len().saturating_mul(count);
        if count == 0 || !encoder.keep_free(more_as_pairs, ALL_HEADER + 5) {
            encoder.array(count)?;
            return Ok(writer);
        }
        encoder.map(1)?;
        encoder.text(ALL)?;
        encoder.array(count)?;
        writer.bare = Some(encoder.bytes().len());
        Ok(writer)
    }

    /// Begins the next; its value is to follow.
    #[inline]
    pub(crate) fn begin_result(&mut self, encoder: &mut Encoder) -> Result<(), EncodeError> {
        self.last = encoder.bytes().len();
        self.written += 1;
        match self.bare {
            Some(_) => Ok(()),
            None => self.begin_pair(encoder),
        }
    }

    fn begin_pair(&mut self, encoder: &mut Encoder) -> Result<(), EncodeError> {
        encoder.set_depth(DEPTH);
        encoder.raw(&NO_ERROR)
    }

    /// Makes `[error, nil]` of the one that was begun last.
    #[cold]
    pub(crate) fn make_error(
        &mut self,
        encoder: &mut Encoder,
        error: RemoteErrorBody,
    ) -> Result<(), EncodeError> {
        encoder.truncate(self.last);
        if let Some(values) = self.bare.take() {
            self.make_pairs(encoder, values)?;
        }
        encoder.raw(&[0x92])?;
        encoder.whole(&error.bounded())?;
        encoder.raw(&[0xc0])?;
        encoder.set_depth(DEPTH);
        Ok(())
    }

    /// Makes pairs of the values that were written bare, all but the last.
    fn make_pairs(&mut self, encoder: &mut Encoder, values: usize) -> Result<(), EncodeError> {
        encoder.keep_free(0, 0);
        let mut values = encoder.cut(values);
        encoder.truncate(self.start);
        encoder.array(self.count)?;
        for _ in 1..self.written {
            encoder.raw(&NO_ERROR)?;
            let length = Scanner::new(values.rest())
                .value()
                .expect("it was written by us")
                .len();
            encoder.paste(&mut values, length)?;
        }
        Ok(())
    }
}

/// The results of a chunk, from the value that answers it.
///
/// ```
/// use errback::wire::{Outcome, parse_chunk_results};
///
/// let results = parse_chunk_results(&[0x91, 0x92, 0xc0, 3], 1)?;
/// assert!(matches!(results[..], [Outcome::Value([3])]));
/// // None failed, and the worker says so in fewer words: {"all": [3]}.
/// let results = parse_chunk_results(b"\x81\xa3all\x91\x03", 1)?;
/// assert!(matches!(results[..], [Outcome::Value([3])]));
/// # Ok::<(), errback::wire::ProtocolError>(())
/// ```
///
/// # Errors
/// The value is something else, or has not a result for each of the `calls`.
pub fn parse_chunk_results(value: &[u8], calls: usize) -> Result<Vec<Outcome<'_>>, ProtocolError> {
    let mut all = Vec::with_capacity(calls.min(value.len()));
    let mut results = ChunkResults::parse(value, calls)?;
    while let Some(result) = results.next()? {
        all.push(result);
    }
    Ok(all)
}

/// Why a call of a chunk has no value.
pub(crate) enum NoValue {
    /// It has one, and that cannot be read.
    Unreadable(DecodeError),
    /// It failed.
    Failed(Box<RemoteErrorBody>),
}

/// The same, one by one: an `Outcome` has some two hundred bytes, which need not all be there at once.
pub(crate) struct ChunkResults<'a> {
    values: ValueReader<'a>,
    left: usize,
    /// Whether they are values, none of which failed, or pairs.
    bare: bool,
}

impl<'a> ChunkResults<'a> {
    pub(crate) fn parse(value: &'a [u8], calls: usize) -> Result<Self, ProtocolError> {
        let mut scanner = Scanner::new(value);
        let bare = scanner.is_map();
        if bare {
            let members = scanner.map()?;
            if members != 1 || scanner.text()? != ALL {
                let sentence = "results in a map that is not {\"all\": [...]}";
                return Err(ProtocolError::new(sentence));
            }
        }
        let count = scanner.array()?;
        // Before any of them is read.
        if count != calls {
            return Err(ProtocolError::new(format!(
                "{count} results for {calls} items"
            )));
        }
        Ok(ChunkResults {
            values: ValueReader::new(scanner.rest()),
            left: count,
            bare,
        })
    }

    /// Adds all to `results`. `read` makes something of the value that its reader is in front of; if it panics, which
    /// somebody's `Deserialize` may do, that value cannot be read, and the others can.
    pub(crate) fn read_all<T, E>(
        mut self,
        results: &mut Vec<Result<T, E>>,
        read: impl Fn(&mut ValueReader<'a>) -> Result<T, DecodeError>,
        failure: impl Fn(NoValue) -> E,
    ) -> Result<(), ProtocolError> {
        while self.left > 0 {
            // One landing for all, as there is hardly ever need of it.
            let caught = catch_unwind(AssertUnwindSafe(|| self.read_on(results, &read, &failure)));
            match caught {
                Ok(done) => done?,
                Err(payload) => {
                    let error = DecodeError::panicked(payload);
                    self.values.skip()?;
                    self.left -= 1;
                    results.push(Err(failure(NoValue::Unreadable(error))));
                }
            }
        }
        Scanner::new(self.values.rest()).end()
    }

    #[inline]
    fn read_on<T, E>(
        &mut self,
        results: &mut Vec<Result<T, E>>,
        read: &impl Fn(&mut ValueReader<'a>) -> Result<T, DecodeError>,
        failure: &impl Fn(NoValue) -> E,
    ) -> Result<(), ProtocolError> {
        // Apart from what is kept for the case of a panic, so that it need not be read back.
        let mut values = self.values;
        while self.left > 0 {
            let mut error = None;
            if !self.bare {
                error = self.error()?;
                values = self.values;
            }
            let result = match error {
                None => read(&mut values).map_err(NoValue::Unreadable),
                Some(error) => Err(NoValue::Failed(error)),
            };
            self.values = values;
            self.left -= 1;
            results.push(result.map_err(failure));
        }
        Ok(())
    }

    /// The error of the next pair, or nothing, and its value comes next.
    #[inline]
    fn error(&mut self) -> Result<Option<Box<RemoteErrorBody>>, ProtocolError> {
        let mut scanner = Scanner::new(self.values.rest());
        if scanner.array()? == 2 && scanner.nil() {
            self.values = ValueReader::new(scanner.rest());
            return Ok(None);
        }
        match self.next_pair()? {
            Outcome::Error(error) => Ok(Some(Box::new(error))),
            Outcome::Value(_) => unreachable!("a pair that begins with nil has been seen to"),
        }
    }

    fn next_pair(&mut self) -> Result<Outcome<'a>, ProtocolError> {
        let mut scanner = Scanner::new(self.values.rest());
        let outcome = match scanner.array()? {
            2 => outcome(&mut scanner)?,
            other => return Err(ProtocolError::new(format!("a result of {other} elements"))),
        };
        self.values = ValueReader::new(scanner.rest());
        Ok(outcome)
    }

    /// The next one; `None` behind the last, if that is the end.
    fn next(&mut self) -> Result<Option<Outcome<'a>>, ProtocolError> {
        if self.left == 0 {
            Scanner::new(self.values.rest()).end()?;
            return Ok(None);
        }
        self.left -= 1;
        match self.bare {
            true => Ok(Some(Outcome::Value(self.values.skip()?))),
            false => self.next_pair().map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes values of these lengths, and errors where there is none or no room. `None`: not even those had room.
    fn written(limit: usize, lengths: &[Option<usize>]) -> Option<Vec<u8>> {
        let mut encoder = Encoder::new(limit);
        let mut results = ResultsWriter::begin(&mut encoder, lengths.len()).ok()?;
        for length in lengths {
            results.begin_result(&mut encoder).ok()?;
            let fits = length.is_some_and(|length| encoder.text(&"x".repeat(length)).is_ok());
            if !fits {
                let error = RemoteErrorBody::default();
                results.make_error(&mut encoder, error).ok()?;
            }
        }
        encoder.keep_free(0, 0);
        assert!(encoder.bytes().len() <= limit);
        Some(encoder.into_bytes())
    }

    #[test]
    fn whatever_the_room_all_results_are_there_or_nothing_is() {
        let lengths = [Some(40), Some(3), Some(300), None, Some(20), Some(500)];
        let mut fitted = 0;
        for limit in 0..2000 {
            let Some(bytes) = written(limit, &lengths) else {
                continue;
            };
            let results = parse_chunk_results(&bytes, lengths.len()).unwrap();
            fitted = 0;
            for (result, length) in results.iter().zip(lengths) {
                if let Outcome::Value(value) = result {
                    let length = length.expect("a value where there is one");
                    assert!(value.ends_with(&b"x".repeat(length)));
                    fitted += 1;
                }
            }
        }
        assert_eq!(fitted, 5);
    }

    #[test]
    fn results_without_an_error_are_shorter_than_pairs() {
        let bare = written(1 << 20, &[Some(1), Some(2)]).unwrap();
        assert_eq!(bare, b"\x81\xa3all\x92\xa1x\xa2xx");
        let none = written(1 << 20, &[]).unwrap();
        assert_eq!(none, [0x90]);
    }
}

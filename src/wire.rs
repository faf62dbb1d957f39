//! The bytes between a host and its workers, used by both sides and specified in `docs/protocol.md`.
//!
//! A frame is a length and one MessagePack value; the value is a call, an answer or a notification, in the shapes of
//! MessagePack-RPC. This module turns messages into bytes and bytes into messages. It holds no descriptor and never
//! waits: who reads and writes is the business of `worker` on one side and of the pool's waiters on the other, so that
//! both can be tested with bytes alone.
//!
//! The host treats its workers as strangers (one of them may be decoding a file that takes it over), and a worker
//! treats its host so too. Nothing is allocated because a length says so, and a frame is walked through once, to its
//! last byte, before any of it is believed.

mod chunk;
mod decode;
mod encode;
mod scan;

use std::any::{Any, TypeId};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

pub(crate) use chunk::{Chunk, ChunkResults, NoValue, ResultsWriter, encode_chunk_sharing};
pub use chunk::{EACH, MAP, encode_chunk, parse_chunk_results};
pub(crate) use encode::Encoder;
use scan::Scanner;
pub(crate) use scan::references_in;

use crate::buffer::travel::{self, Attachment, Which};

/// The version of the protocol that this crate speaks.
pub const PROTOCOL: u32 = 1;

/// The longest frame, in bytes without its header, unless host and worker agree on another: 1 GiB.
pub const MAX_FRAME: usize = 1 << 30;

/// How deep arrays and maps may nest in arguments, results and errors.
pub const MAX_DEPTH: usize = 512;

/// The bytes before a frame's body: its length, big-endian.
pub const HEADER: usize = 4;

/// Where a call's id is in the frame that [`encode_call`] makes: eight bytes, big-endian.
pub const CALL_ID_OFFSET: usize = HEADER + 3;

/// A buffer is grown to take this much from one read, and what one big frame added above it is given back.
const READ_ROOM: usize = 64 * 1024;

/// The longest string of an error, in bytes.
const MAX_ERROR_TEXT: usize = 64 * 1024;

/// The most causes of an error that travel; its bases and its notes, too.
const MAX_CHAIN: usize = 50;

/// The most members of a group of errors that travel, those of inner groups included.
const MAX_MEMBERS: usize = 50;

/// A call as a frame, ready to be written: `[0, id, task, args]`.
///
/// `args` is the tuple of arguments. The id has a fixed place in the frame, so that a job can be encoded before it has
/// one: see [`patch_call_id`].
///
/// ```
/// let frame = errback::wire::encode_call(7, "app::add", &(1, 2), errback::wire::MAX_FRAME)?;
/// assert_eq!(frame[..4], 23_u32.to_be_bytes());
/// assert_eq!(frame[frame.len() - 3..], [0x92, 1, 2]);
/// # Ok::<(), errback::wire::EncodeError>(())
/// ```
///
/// # Errors
/// An argument that cannot be encoded: its `Serialize` says so or panics, it nests deeper than [`MAX_DEPTH`], or the
/// frame would be longer than `max_frame`.
pub fn encode_call<A: Serialize + ?Sized>(
    id: u64,
    task: &str,
    args: &A,
    max_frame: usize,
) -> Result<Vec<u8>, EncodeError> {
    encode_call_sharing(id, task, args, max_frame, None).map(|(frame, _)| frame)
}

/// A frame, and the buffers that it refers to.
pub(crate) type WithAttachments = (Vec<u8>, Vec<Attachment>);

/// The same, in which buffers of `share_from` bytes and more are referred to.
pub(crate) fn encode_call_sharing<A: Serialize + ?Sized>(
    id: u64,
    task: &str,
    args: &A,
    max_frame: usize,
    share_from: Option<usize>,
) -> Result<WithAttachments, EncodeError> {
    let mut parts = encode_call_into(Vec::new(), task, args, max_frame, share_from)?;
    patch_call_id(&mut parts.0, id);
    Ok(parts)
}

/// The same, written into memory that was used before, with the id 0.
pub(crate) fn encode_call_into<A: Serialize + ?Sized>(
    mut into: Vec<u8>,
    task: &str,
    args: &A,
    max_frame: usize,
    share_from: Option<usize>,
) -> Result<WithAttachments, EncodeError> {
    into.clear();
    let mut encoder = framed_into(into, max_frame).sharing(share_from);
    encoder.raw(&[0x94, 0x00])?;
    encoder.marked(0xcf, 0_u64.to_be_bytes())?;
    encoder.text(task)?;
    args_value(&mut encoder, args)?;
    finish(&mut encoder);
    Ok(encoder.into_parts())
}

/// Where in a call of `task` its arguments begin; they go to the end of the frame.
pub(crate) fn args_offset(task: &str) -> usize {
    let header = match task.len() {
        ..32 => 1,
        32..0x100 => 2,
        0x100..0x1_0000 => 3,
        _ => 5,
    };
    CALL_ID_OFFSET + 8 + header + task.len()
}

/// Writes a call of few arguments, which are encoded: the frame that [`encode_call`] makes.
pub(crate) fn put_call_together(into: &mut Vec<u8>, id: u64, task: &str, args: &[u8]) {
    let length = args_offset(task) - HEADER + args.len();
    let length = u32::try_from(length).expect("a frame that was made once");
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(&[0x94, 0x00, 0xcf]);
    into.extend_from_slice(&id.to_be_bytes());
    let name = task.len() as u32; // as much as the frame has at the most
    let bytes = name.to_be_bytes();
    match name {
        ..32 => into.push(0xa0 | name as u8),
        32..0x100 => into.extend_from_slice(&[0xd9, bytes[3]]),
        0x100..0x1_0000 => into.extend_from_slice(&[0xda, bytes[2], bytes[3]]),
        _ => into.extend_from_slice(&[0xdb, bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
    into.extend_from_slice(task.as_bytes());
    into.extend_from_slice(args);
}

/// Gives a frame made by [`encode_call`] another id.
///
/// ```
/// use errback::wire::{MAX_FRAME, Message, encode_call, patch_call_id};
///
/// let mut frame = encode_call(0, "app::add", &(1, 2), MAX_FRAME)?;
/// patch_call_id(&mut frame, 4711);
/// assert!(matches!(Message::parse(&frame[4..])?, Message::Call { id: 4711, .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
/// When `frame` is no such frame and is too short to have an id.
pub fn patch_call_id(frame: &mut [u8], id: u64) {
    frame[CALL_ID_OFFSET..CALL_ID_OFFSET + 8].copy_from_slice(&id.to_be_bytes());
}

/// A notification as a frame: `[2, method, [params]]`. It has no answer.
///
/// ```
/// let frame = errback::wire::encode_notification("ping", &(), errback::wire::MAX_FRAME)?;
/// assert_eq!(frame[4..], [0x93, 2, 0xa4, b'p', b'i', b'n', b'g', 0x90]);
/// # Ok::<(), errback::wire::EncodeError>(())
/// ```
///
/// # Errors
/// As those of [`encode_call`].
pub fn encode_notification<P: Serialize + ?Sized>(
    method: &str,
    params: &P,
    max_frame: usize,
) -> Result<Vec<u8>, EncodeError> {
    let mut encoder = framed(max_frame);
    encoder.raw(&[0x93, 0x02])?;
    encoder.text(method)?;
    args_value(&mut encoder, params)?;
    finish(&mut encoder);
    Ok(encoder.into_bytes())
}

/// Begins the answer `[1, id, nil, value]` in a buffer that may have been used before; the value is to follow.
pub(crate) fn begin_answer(encoder: &mut Encoder, id: u64) -> Result<(), EncodeError> {
    encoder.truncate(0);
    encoder.raw(&[0; HEADER])?;
    encoder.raw(&[0x94, 0x01])?;
    encoder.marked(0xcf, id.to_be_bytes())?;
    encoder.raw(&[0xc0])
}

/// The answer `[1, id, error, nil]`, whole. The error is cut to what may travel, so that this always fits.
pub(crate) fn error_answer(encoder: &mut Encoder, id: u64, error: RemoteErrorBody) {
    let bounded = error.bounded();
    let mut write = |error: &RemoteErrorBody| {
        encoder.truncate(0);
        encoder.raw(&[0; HEADER])?;
        encoder.raw(&[0x94, 0x01])?;
        encoder.marked(0xcf, id.to_be_bytes())?;
        encoder.whole(error)?;
        encoder.raw(&[0xc0])
    };
    // Too long for a small `max_frame` agreed on: then without its value, and at last without its texts.
    if write(&bounded).is_err() {
        let mut short = RemoteErrorBody::new(
            bounded.kind,
            String::new(),
            cut(bounded.message.clone(), 256),
        );
        if write(&short).is_err() {
            short.message.clear();
            write(&short).expect("MIN_FRAME is enough for an error without texts");
        }
    }
    finish(encoder);
}

/// The smallest `max_frame` that can be agreed on: enough for the answer that says that something did not fit.
pub const MIN_FRAME: usize = 1024;

fn framed(max_frame: usize) -> Encoder {
    framed_into(Vec::new(), max_frame)
}

/// One that writes into empty memory.
fn framed_into(into: Vec<u8>, max_frame: usize) -> Encoder {
    let mut encoder = Encoder::new(frame_limit(max_frame));
    encoder.replace(into);
    encoder
        .raw(&[0; HEADER])
        .expect("every limit has room for a header");
    encoder
}

/// How many bytes a frame may have with its header; a length is 32 bits.
pub(crate) fn frame_limit(max_frame: usize) -> usize {
    max_frame
        .clamp(MIN_FRAME, u32::MAX as usize)
        .saturating_add(HEADER)
}

/// Fills in the header of the frame that `encoder` holds.
pub(crate) fn finish(encoder: &mut Encoder) {
    let length =
        u32::try_from(encoder.bytes().len() - HEADER).expect("the encoder's limit is below 4 GiB");
    encoder.bytes_mut()[..HEADER].copy_from_slice(&length.to_be_bytes());
}

/// The tuple of arguments. `()` is nil to serde; on the wire arguments are always an array.
fn args_value<A: Serialize + ?Sized>(encoder: &mut Encoder, args: &A) -> Result<(), EncodeError> {
    let start = encoder.bytes().len();
    guarded(|| encoder.value(args))?;
    if encoder.bytes()[start..] == [0xc0] {
        encoder.bytes_mut()[start] = 0x90;
    }
    Ok(())
}

/// A panic in somebody's `Serialize` is an error like any other.
fn guarded<T>(encode: impl FnOnce() -> Result<T, EncodeError>) -> Result<T, EncodeError> {
    catch_unwind(AssertUnwindSafe(encode))
        .unwrap_or_else(|payload| Err(EncodeError::Panicked(panic_text(payload))))
}

/// What a panic said, when it said it in words.
pub(crate) fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let payload = match payload.downcast::<&'static str>() {
        Ok(text) => return (*text).to_owned(),
        Err(payload) => payload,
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => {
            // Its `Drop` is somebody's code as well, and may panic again; so may that panic's, which is then leaked.
            if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(another);
            }
            "a panic whose payload is not a string".to_owned()
        }
    }
}

/// Decodes one value: the whole of `bytes`, no more and no less.
///
/// ```
/// let two: (u8, String) = errback::wire::decode_value(&[0x92, 5, 0xa2, b'o', b'k'])?;
/// assert_eq!(two, (5, "ok".to_owned()));
/// assert!(errback::wire::decode_value::<u8>(&[5, 5]).is_err());
/// # Ok::<(), errback::wire::DecodeError>(())
/// ```
///
/// # Errors
/// The bytes are not one `T`, or `T`'s `Deserialize` refuses them or panics.
pub fn decode_value<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = ValueReader::new(bytes);
    let value = catch_unwind(AssertUnwindSafe(|| reader.read::<T>()))
        .unwrap_or_else(|payload| Err(DecodeError::panicked(payload)))?;
    reader.end()?;
    Ok(value)
}

/// Decodes values that lie one behind the other.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct ValueReader<'a> {
    rest: &'a [u8],
}

impl<'a> ValueReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> ValueReader<'a> {
        ValueReader { rest: bytes }
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Begins with the elements of the array that comes next, if it has so many and says so in one byte.
    #[inline(always)]
    pub(crate) fn passes_array(&mut self, length: usize) -> bool {
        match self.rest {
            [marker, rest @ ..] if length < 16 && usize::from(*marker) == 0x90 | length => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// The length of the array that comes next; its elements are read one by one.
    pub(crate) fn array(&mut self) -> Result<usize, DecodeError> {
        let mut scanner = Scanner::new(self.rest);
        let length = scanner
            .array()
            .map_err(|e| DecodeError::new(e.to_string()))?;
        self.rest = scanner.rest();
        Ok(length)
    }

    /// Passes over the next value, and gives its bytes.
    pub(crate) fn skip(&mut self) -> Result<&'a [u8], ProtocolError> {
        let mut scanner = Scanner::new(self.rest);
        let value = scanner.value()?;
        self.rest = scanner.rest();
        Ok(value)
    }

    /// The bytes of the next value.
    pub fn raw(&mut self) -> Result<&'a [u8], DecodeError> {
        self.skip().map_err(|e| DecodeError::new(e.to_string()))
    }

    /// The next value. If its `Deserialize` panics, it is still the next.
    #[inline(always)]
    pub fn read<T: DeserializeOwned + 'static>(&mut self) -> Result<T, DecodeError> {
        // A byte string is taken as a block, which serde would take byte by byte.
        let is_block = TypeId::of::<T>() == TypeId::of::<Vec<u8>>();
        if !is_block && let Some((value, rest)) = decode::first_value(self.rest) {
            self.rest = rest;
            return Ok(value);
        }
        let (value, behind) = self.read_with_care();
        *self = behind;
        value
    }

    /// The same for what is not as usual: blocks, references to buffers, errors.
    #[inline(never)]
    fn read_with_care<T: DeserializeOwned + 'static>(mut self) -> (Result<T, DecodeError>, Self) {
        let value = self.raw().and_then(whole_value);
        (value, self)
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(DecodeError::new(format!("{extra} bytes after the value"))),
        }
    }
}

/// What the bytes of one value stand for.
fn whole_value<T: DeserializeOwned + 'static>(value: &[u8]) -> Result<T, DecodeError> {
    if let Some(block) = byte_string(value) {
        if let Some(wanted) = bytes_as(block) {
            return Ok(wanted);
        }
    } else if TypeId::of::<T>() == TypeId::of::<Vec<u8>>()
        && let Some((_, buffer)) = travel::received_value(value)
    {
        if !travel::may_copy(buffer.len()) {
            return Err(travel::too_many_copies());
        }
        if let Some(wanted) = bytes_as(&buffer) {
            travel::note_made(buffer.len());
            travel::note_kept(buffer.len());
            return Ok(wanted);
        }
    }
    let result = match expanded(value, Which::Copies) {
        Some(result) => result,
        None => deserialized(value),
    };
    if result.is_ok() {
        return result;
    }
    // It may be for the other references, which only buffers know.
    expanded(value, Which::All).unwrap_or(result)
}

/// What a value stands for with bytes in the places of its references; `None`: it has none of these.
fn expanded<T: DeserializeOwned>(value: &[u8], which: Which) -> Option<Result<T, DecodeError>> {
    let (bytes, copied) = match travel::expanded(value, which)? {
        Ok(expanded) => expanded,
        Err(error) => return Some(Err(error)),
    };
    let result = deserialized(&bytes);
    if result.is_ok() {
        travel::note_kept(copied);
    }
    Some(result)
}

/// Bytes as a vector of them, if `T` is that.
fn bytes_as<T: 'static>(bytes: &[u8]) -> Option<T> {
    let mut wanted: Option<T> = None;
    let vector = (&mut wanted as &mut dyn Any).downcast_mut::<Option<Vec<u8>>>()?;
    *vector = Some(decode::copied(bytes));
    wanted
}

fn deserialized<T: DeserializeOwned>(value: &[u8]) -> Result<T, DecodeError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(value);
    // The scan has bounded the nesting; one more, because the deserializer stops at its limit and not behind it.
    deserializer.set_max_depth(MAX_DEPTH + 1);
    T::deserialize(&mut deserializer).map_err(DecodeError::from_serde)
}

/// The content of a binary value.
fn byte_string(value: &[u8]) -> Option<&[u8]> {
    match value {
        [0xc4, _, block @ ..] => Some(block),
        [0xc5, _, _, block @ ..] => Some(block),
        [0xc6, _, _, _, _, block @ ..] => Some(block),
        _ => None,
    }
}

/// Cuts a stream of bytes into frames.
///
/// It is fed by [`extend`](FrameReader::extend), or by a read straight into [`room`](FrameReader::room). One reader
/// lives as long as its connection and uses one buffer again and again; what a big frame needed is given back.
///
/// ```
/// use errback::wire::{FrameReader, MAX_FRAME};
///
/// let mut reader = FrameReader::new(MAX_FRAME);
/// reader.extend(&[0, 0, 0, 2, 0x91]);
/// assert_eq!(reader.next_frame()?, None);
/// reader.extend(&[0x05, 0, 0]);
/// assert_eq!(reader.next_frame()?, Some(&[0x91, 0x05][..]));
/// assert!(!reader.is_empty()); // the beginning of another frame
/// # Ok::<(), errback::wire::ProtocolError>(())
/// ```
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Where the bytes that have not been handed out begin.
    start: usize,
    max_frame: usize,
}

impl FrameReader {
    /// A reader that refuses frames of more than `max_frame` bytes.
    pub fn new(max_frame: usize) -> FrameReader {
        FrameReader {
            buffer: Vec::new(),
            start: 0,
            max_frame,
        }
    }

    /// Another limit, from the next header on.
    pub fn set_max_frame(&mut self, max_frame: usize) {
        self.max_frame = max_frame;
    }

    /// Takes bytes that have been read.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.tidy();
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer, with room behind its end to read into. Bytes may only be appended.
    ///
    /// The room is what the frame that has begun still needs, but never more than what has come of it so far (and
    /// 64 KiB at least): a length that is claimed and not sent costs nothing.
    pub fn room(&mut self) -> &mut Vec<u8> {
        self.tidy();
        let there = self.buffer.len() - self.start;
        let missing = self
            .frame_length()
            .map_or(0, |length| length.saturating_sub(there));
        let room = missing.min(there).max(READ_ROOM);
        if self.buffer.capacity() - self.buffer.len() < READ_ROOM / 2 {
            self.buffer.reserve_exact(room);
        }
        &mut self.buffer
    }

    /// Whether a whole frame is there, so that [`next_frame`](FrameReader::next_frame) will give it.
    ///
    /// # Errors
    /// As those of `next_frame`.
    pub fn has_frame(&self) -> Result<bool, ProtocolError> {
        match self.frame_length() {
            Some(length) if length - HEADER > self.max_frame => Err(ProtocolError::new(format!(
                "a frame of {} bytes is announced, and {} are the limit",
                length - HEADER,
                self.max_frame
            ))),
            Some(length) => Ok(self.buffer.len() - self.start >= length),
            None => Ok(false),
        }
    }

    /// The body of the next frame, once all of it is there.
    ///
    /// # Errors
    /// The frame is announced to be longer than the limit. There is no way to go on from there: the connection is
    /// broken, and every further call says so again.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, ProtocolError> {
        if !self.has_frame()? {
            return Ok(None);
        }
        let Some(length) = self.frame_length() else {
            return Ok(None);
        };
        let body = self.start + HEADER..self.start + length;
        self.start += length;
        Ok(Some(&self.buffer[body]))
    }

    /// Where the body of the next frame lies; it stays there until the reader is given more bytes.
    pub(crate) fn next_range(&mut self) -> Result<Option<Range<usize>>, ProtocolError> {
        let start = self.start + HEADER;
        let length = self.next_frame()?.map(<[u8]>::len);
        Ok(length.map(|length| start..start + length))
    }

    /// What lies there.
    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Whether the next frame is there and has no body, which no message is.
    pub(crate) fn has_empty_frame(&self) -> bool {
        self.frame_length() == Some(HEADER)
    }

    /// Whether nothing is left of what has been read: an end of file here is a clean one.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// The length of the frame that has begun, with its header.
    fn frame_length(&self) -> Option<usize> {
        let header = self.buffer[self.start..].first_chunk::<HEADER>()?;
        Some((u32::from_be_bytes(*header) as usize).saturating_add(HEADER))
    }

    /// Makes room at the front, before more is appended.
    fn tidy(&mut self) {
        if self.is_empty() {
            self.buffer.clear();
            if self.buffer.capacity() > 2 * READ_ROOM {
                self.buffer = Vec::new();
            }
        } else if self.start > 0 {
            // The beginning of a frame that came with the end of the one before it: at most what one read brought.
            self.buffer.drain(..self.start);
            if self.buffer.capacity() > 2 * READ_ROOM.max(self.buffer.len()) {
                self.buffer.shrink_to(READ_ROOM);
            }
        }
        self.start = 0;
    }
}

/// What one frame says.
#[derive(Debug)]
#[non_exhaustive]
pub enum Message<'a> {
    /// `[0, id, task, args]`: run this.
    Call {
        /// The caller's number for this call, which its answer repeats.
        id: u64,
        /// The task's name.
        task: &'a str,
        /// The arguments, an array.
        args: &'a [u8],
    },
    /// `[1, id, error, result]`: what came of a call.
    Answer(Answer<'a>),
    /// `[2, method, params]`: something that has no answer. An unknown one is ignored, so that later versions can add
    /// some.
    Notification {
        /// What it is about.
        method: &'a str,
        /// An array.
        params: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// Reads the body of one frame, all of it.
    ///
    /// ```
    /// use errback::wire::Message;
    ///
    /// let ping = Message::parse(&[0x93, 2, 0xa4, b'p', b'i', b'n', b'g', 0x90])?;
    /// assert!(matches!(ping, Message::Notification { method: "ping", .. }));
    /// assert!(Message::parse(&[0x93, 9, 0, 0]).is_err());
    /// # Ok::<(), errback::wire::ProtocolError>(())
    /// ```
    ///
    /// # Errors
    /// The bytes are not exactly one well-formed message.
    pub fn parse(body: &'a [u8]) -> Result<Message<'a>, ProtocolError> {
        Message::read(body).map(|(message, _)| message)
    }

    /// The same, and whether it refers to buffers.
    pub(crate) fn read(body: &'a [u8]) -> Result<(Message<'a>, bool), ProtocolError> {
        let mut scanner = Scanner::new(body);
        let length = scanner.array()?;
        let kind = if length == 0 {
            255
        } else {
            scanner.unsigned()?
        };
        let message = match (kind, length) {
            (0, 4) => Message::Call {
                id: scanner.unsigned()?,
                task: scanner.text()?,
                args: array_value(&mut scanner)?,
            },
            (1, 4) => Message::Answer(Answer {
                id: scanner.unsigned()?,
                outcome: outcome(&mut scanner)?,
            }),
            (2, 3) => Message::Notification {
                method: scanner.text()?,
                params: array_value(&mut scanner)?,
            },
            (kind, length) => {
                return Err(ProtocolError::new(format!(
                    "a message of kind {kind} with {length} elements"
                )));
            }
        };
        scanner.end()?;
        Ok((message, scanner.has_references()))
    }
}

fn array_value<'a>(scanner: &mut Scanner<'a>) -> Result<&'a [u8], ProtocolError> {
    // Only to see that it is one.
    Scanner::new(scanner.rest()).array()?;
    scanner.value()
}

fn outcome<'a>(scanner: &mut Scanner<'a>) -> Result<Outcome<'a>, ProtocolError> {
    if scanner.nil() {
        return Ok(Outcome::Value(scanner.value()?));
    }
    let error: RemoteErrorBody = decode_value(scanner.value()?).map_err(|e| {
        ProtocolError::new(format!("an error that is not a map as it should be: {e}"))
    })?;
    if !scanner.nil() {
        return Err(ProtocolError::new("an answer with an error and a result"));
    }
    Ok(Outcome::Error(error.bounded()))
}

/// The answer to a call.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The id of the call.
    pub id: u64,
    /// What came of it.
    pub outcome: Outcome<'a>,
}

impl<'a> Answer<'a> {
    /// Reads the body of a frame that must be an answer.
    ///
    /// ```
    /// use errback::wire::{Answer, Outcome};
    ///
    /// let answer = Answer::parse(&[0x94, 1, 7, 0xc0, 42])?;
    /// assert_eq!(answer.id, 7);
    /// assert!(matches!(answer.outcome, Outcome::Value([42])));
    /// # Ok::<(), errback::wire::ProtocolError>(())
    /// ```
    ///
    /// # Errors
    /// The bytes are not exactly one well-formed message, or another one.
    pub fn parse(body: &'a [u8]) -> Result<Answer<'a>, ProtocolError> {
        match Message::parse(body)? {
            Message::Answer(answer) => Ok(answer),
            Message::Call { .. } => Err(ProtocolError::new("a call where an answer was due")),
            Message::Notification { .. } => {
                Err(ProtocolError::new("a notification where an answer was due"))
            }
        }
    }
}

/// A value or an error.
#[allow(clippy::large_enum_variant)] // it is looked at where it was made, and not kept
#[derive(Debug)]
pub enum Outcome<'a> {
    /// The result, one MessagePack value that has been found well-formed; [`decode_value`] makes it a Rust one.
    Value(&'a [u8]),
    /// Why there is none.
    Error(RemoteErrorBody),
}

/// The host's first message: `[2, "hello", [{…}]]`, with a descriptor attached.
///
/// Members that a reader does not know are ignored, those that are missing have their default.
///
/// ```
/// use errback::wire::{HostHello, Message};
///
/// let hello = HostHello { memory_limit: Some(512 << 20), ..HostHello::default() };
/// let frame = hello.encode();
/// let Message::Notification { method: "hello", params } = Message::parse(&frame[4..])? else {
///     panic!("a hello");
/// };
/// assert_eq!(HostHello::parse(params)?, hello);
/// # Ok::<(), errback::wire::ProtocolError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct HostHello {
    /// The version that the host speaks.
    pub protocol: u32,
    /// The longest frame, in bytes, that either side may send from now on.
    pub max_frame: u64,
    /// A limit of the worker's address space in bytes, which it sets for itself.
    pub memory_limit: Option<u64>,
    /// How many seconds of CPU the worker may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<u64>,
    /// How many descriptors the worker may have open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// From how many bytes on a buffer is referred to and not written; `None`: none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffers: Option<u64>,
    /// A lane in shared memory comes with this: the worker may use it.
    #[serde(skip_serializing_if = "is_false")]
    pub lane: bool,
    /// For how many microseconds a worker that uses the lane looks for a call before it sleeps.
    #[serde(skip_serializing_if = "is_zero")]
    pub spin: u64,
}

fn is_zero(it: &u64) -> bool {
    *it == 0
}

impl Default for HostHello {
    fn default() -> HostHello {
        HostHello {
            protocol: PROTOCOL,
            max_frame: MAX_FRAME as u64,
            memory_limit: None,
            cpu_limit: None,
            open_files: None,
            buffers: None,
            lane: false,
            spin: 0,
        }
    }
}

impl HostHello {
    /// The frame to send.
    pub fn encode(&self) -> Vec<u8> {
        encode_notification("hello", &(self,), MAX_FRAME).expect("numbers can be encoded")
    }

    /// Reads the parameters of a notification "hello".
    ///
    /// # Errors
    /// They are not an array of one such map.
    pub fn parse(params: &[u8]) -> Result<HostHello, ProtocolError> {
        parse_hello(params)
    }
}

/// The worker's first message: `[2, "hello", [{…}]]`. The host may send calls once it has come.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerHello {
    /// The version that the worker speaks.
    pub protocol: u32,
    /// Its process id, as itself sees it.
    pub pid: u32,
    /// What its tasks are written in: "rust", "python".
    pub language: String,
    /// The version of the library that it runs on.
    pub version: String,
    /// Which build of the program it is; two processes of one build send the same.
    pub build: String,
    /// How many tasks it knows.
    pub tasks: u64,
    /// How many calls it likes to have at once.
    #[serde(skip_serializing_if = "is_one_or_none")]
    pub pipeline: u64,
    /// Whether it takes references to buffers, and knows how to share its own.
    #[serde(skip_serializing_if = "is_false")]
    pub buffers: bool,
    /// Whether it uses the lane that it was offered: all that follows goes through that.
    #[serde(skip_serializing_if = "is_false")]
    pub lane: bool,
}

fn is_false(it: &bool) -> bool {
    !*it
}

fn is_one_or_none(pipeline: &u64) -> bool {
    *pipeline <= 1
}

impl WorkerHello {
    /// The frame to send.
    ///
    /// # Panics
    /// When a string has more than half a gigabyte.
    pub fn encode(&self) -> Vec<u8> {
        encode_notification("hello", &(self,), MAX_FRAME)
            .expect("numbers and short strings can be encoded")
    }

    /// Reads the parameters of a notification "hello".
    ///
    /// # Errors
    /// They are not an array of one such map.
    pub fn parse(params: &[u8]) -> Result<WorkerHello, ProtocolError> {
        parse_hello(params)
    }
}

/// The name of the notification by which a worker says what has become of arenas.
pub(crate) const BUFFERS: &str = "buffers";

/// What has become of arenas in a worker: it comes before the answer after which it is true. Numbers are those of the one
/// that made the arena.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct BuffersNotice {
    /// The host's that are still read, though their job is done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) kept: Vec<u64>,
    /// Those of them that are not read any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) freed: Vec<u64>,
    /// The host's that the worker does not know any more: before it is referred to, it has to be announced again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) forgotten: Vec<u64>,
    /// The worker's own that are no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) gone: Vec<u64>,
}

impl BuffersNotice {
    pub(crate) fn is_empty(&self) -> bool {
        *self == BuffersNotice::default()
    }

    pub(crate) fn encode(&self, max_frame: usize) -> Result<Vec<u8>, EncodeError> {
        encode_notification(BUFFERS, &(self,), max_frame)
    }

    pub(crate) fn parse(params: &[u8]) -> Result<BuffersNotice, ProtocolError> {
        let (notice,) = decode_value::<(BuffersNotice,)>(params)
            .map_err(|e| ProtocolError::new(format!("a bad notice of buffers: {e}")))?;
        Ok(notice)
    }
}

fn parse_hello<T: DeserializeOwned + 'static>(params: &[u8]) -> Result<T, ProtocolError> {
    let (hello,) = decode_value::<(T,)>(params)
        .map_err(|e| ProtocolError::new(format!("a bad hello: {e}")))?;
    Ok(hello)
}

/// How a call failed, as it travels.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoteErrorBody {
    /// At which step.
    pub kind: ErrorKind,
    /// The error's type, by its full name in the worker's language.
    #[serde(rename = "type")]
    pub type_name: String,
    /// What it says of itself.
    pub message: String,
    /// What its causes say, the nearest first, without the error itself.
    #[serde(deserialize_with = "first_of_chain")]
    pub chain: Vec<String>,
    /// Where it came about, when that was recorded (`RUST_BACKTRACE=1` in a Rust worker).
    pub backtrace: Option<String>,
    /// The place of a panic: file, line, column.
    pub location: Option<String>,
    /// The error itself as one MessagePack value, when it can be encoded.
    #[serde(with = "optional_bytes")]
    pub value: Option<Vec<u8>>,
    /// The full names of the type's bases, the nearest first, where the language has such.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<String>,
    /// What was added to the error on its way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The members of a group of errors.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "members")]
    pub exceptions: Vec<RemoteErrorBody>,
}

impl RemoteErrorBody {
    /// An error with a type's name and a message, and nothing else.
    pub fn new(
        kind: ErrorKind,
        type_name: impl Into<String>,
        message: impl Into<String>,
    ) -> RemoteErrorBody {
        RemoteErrorBody {
            kind,
            type_name: type_name.into(),
            message: message.into(),
            ..RemoteErrorBody::default()
        }
    }

    /// The same with its texts cut to what may travel.
    fn bounded(self) -> RemoteErrorBody {
        self.bounded_with(&mut { MAX_MEMBERS })
    }

    /// `members`: how many members of groups may still come.
    fn bounded_with(self, members: &mut usize) -> RemoteErrorBody {
        let text = |text: String| cut(text, MAX_ERROR_TEXT);
        let texts = |texts: Vec<String>| texts.into_iter().take(MAX_CHAIN).map(text).collect();
        let mut exceptions = Vec::new();
        for member in self.exceptions {
            if *members == 0 {
                break;
            }
            *members -= 1;
            exceptions.push(member.bounded_with(members));
        }
        RemoteErrorBody {
            type_name: text(self.type_name),
            message: text(self.message),
            chain: texts(self.chain),
            backtrace: self.backtrace.map(text),
            location: self.location.map(text),
            bases: texts(self.bases),
            notes: texts(self.notes),
            exceptions,
            ..self
        }
    }
}

/// A text of `most` bytes at the most: what is longer ends in a mark that says so.
fn cut(mut text: String, most: usize) -> String {
    const MARK: &str = " [… cut here]";
    if text.len() > most {
        let mut end = most - MARK.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MARK);
    }
    text
}

/// Reads no more causes than may travel: a cause of one byte would be a `String` of twenty-four here.
fn first_of_chain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of strings")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut causes: A) -> Result<Vec<String>, A::Error> {
            let mut first = Vec::new();
            while first.len() < MAX_CHAIN {
                match causes.next_element()? {
                    Some(cause) => first.push(cause),
                    None => return Ok(first),
                }
            }
            while causes.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    deserializer.deserialize_seq(First)
}

/// At which step a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The task panicked.
    Panic,
    /// The worker has no task of this name.
    UnknownTask,
    /// The arguments are not what the task takes.
    DecodeArgs,
    /// The result cannot be encoded.
    EncodeResult,
    /// A request to stop the call had come before its function began, which then did not.
    Cancelled,
    /// The task returned an error (raised an exception); and whatever a later version may add.
    #[default]
    #[serde(other)]
    Error,
}

/// The members of a group of errors, which may be groups. Their number is counted over all levels while they are read: a
/// stranger's error, nested as deep as a frame may nest, would otherwise take the stack of the thread that reads it.
mod members {
    use std::cell::Cell;
    use std::fmt;

    use serde::Serialize;
    use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
    use serde::ser::Serializer;

    use super::{MAX_MEMBERS, RemoteErrorBody};

    thread_local! {
        /// How many members may still come; `None` outside of every group.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// The outermost group, whose end ends the count.
    struct Outermost;

    impl Drop for Outermost {
        fn drop(&mut self) {
            LEFT.set(None);
        }
    }

    pub(super) fn serialize<S: Serializer>(
        members: &[RemoteErrorBody],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        members.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<RemoteErrorBody>, D::Error> {
        let _outermost = LEFT.get().is_none().then(|| {
            LEFT.set(Some(MAX_MEMBERS));
            Outermost
        });
        deserializer.deserialize_any(Members)
    }

    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<RemoteErrorBody>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of errors or nil")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(left) = LEFT.get().and_then(|left| left.checked_sub(1)) {
                LEFT.set(Some(left));
                match members.next_element()? {
                    Some(member) => all.push(member),
                    None => {
                        LEFT.set(Some(left + 1));
                        return Ok(all);
                    }
                }
            }
            while members.next_element::<IgnoredAny>()?.is_some() {}
            Ok(all)
        }
    }
}

/// An optional byte string: binary when it is there.
mod optional_bytes {
    use std::fmt;

    use serde::de::{Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(bytes) => serializer.serialize_bytes(bytes),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        deserializer.deserialize_any(Bytes)
    }

    struct Bytes;

    impl<'de> Visitor<'de> for Bytes {
        type Value = Option<Vec<u8>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a byte string or nil")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(Some(bytes.to_vec()))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(byte) = bytes.next_element()? {
                all.push(byte);
            }
            Ok(Some(all))
        }
    }
}

/// A value cannot be encoded, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EncodeError {
    /// It needs more bytes than a frame may have.
    TooLarge {
        /// What it had come to when it was given up.
        at_least: usize,
        /// What a frame may have.
        limit: usize,
    },
    /// It nests deeper than [`MAX_DEPTH`].
    TooDeep,
    /// Its `Serialize` says no, or it is a value that MessagePack would change.
    Refused(String),
    /// Its `Serialize` panicked.
    Panicked(String),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::TooLarge { at_least, limit } => {
                write!(
                    f,
                    "it needs {at_least} bytes or more, and a frame may have {limit}"
                )
            }
            EncodeError::TooDeep => write!(f, "it nests deeper than {MAX_DEPTH}"),
            EncodeError::Refused(why) => f.write_str(why),
            EncodeError::Panicked(text) => write!(f, "its Serialize panicked: {text}"),
        }
    }
}

impl std::error::Error for EncodeError {}

/// Bytes are not the value that they should be, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecodeError {
    message: String,
}

impl DecodeError {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> DecodeError {
        DecodeError {
            message: message.into(),
        }
    }

    /// Somebody's `Deserialize` has panicked.
    fn panicked(payload: Box<dyn Any + Send>) -> DecodeError {
        DecodeError::new(format!("a panic while decoding: {}", panic_text(payload)))
    }

    fn from_serde(error: rmp_serde::decode::Error) -> DecodeError {
        // It may show a string that came, however long.
        let mut message = cut(error.to_string(), MAX_ERROR_TEXT);
        message.shrink_to_fit();
        // The one surprise of byte strings: serde buffers these types without knowing what they hold.
        if message.contains("byte array, expected a sequence") {
            message.push_str(
                " (inside an untagged, internally tagged or flattened type, a Vec<u8> needs #[serde(with = \"serde_bytes\")])",
            );
        }
        DecodeError { message }
    }

    /// The same error with the place in front.
    pub(crate) fn at(self, place: fmt::Arguments<'_>) -> DecodeError {
        DecodeError {
            message: format!("{place}: {}", self.message),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

/// The other side does not speak the protocol. The connection is of no more use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProtocolError {
    message: String,
}

impl ProtocolError {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> ProtocolError {
        ProtocolError {
            message: message.into(),
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ProtocolError {}

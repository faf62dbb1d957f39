//! How a buffer travels in a message: as a reference, an extension value that says in which arena its bytes are, and where.
//!
//! serde has no context, so two things are put aside for the thread while it works. While a [`Buffer`] serialises itself, it
//! is *offered*: our encoder finds that the bytes it is given are those of a buffer, writes a reference, and remembers the
//! buffer as an [`Attachment`] of the frame; another format's serializer never asks. While a message is decoded, the buffers
//! that it refers to have been *received*: whoever had the message has looked up each reference before, with all that is to
//! be checked, and a `Buffer` that deserialises itself takes a clone.
//!
//! A frame can always do without: [`inlined`] puts the bytes in the places of the references.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use super::Buffer;
use super::arena::Lease;
use crate::wire::{DecodeError, EncodeError, HEADER, MAX_FRAME, references_in};

/// The type of the extension value.
pub(crate) const EXTENSION: u8 = 0x45;

/// The type of one that stands for bytes which whoever reads them has as his own: long byte strings of other types travel so.
pub(crate) const COPY: u8 = 0x46;

/// A shorter one is as quick in the message.
pub(crate) const COPY_FROM: usize = 256 * 1024;

/// How long its content is.
pub(crate) const CONTENT: usize = 24;

/// How long the whole value is: a marker, a length, the type, the content.
pub(crate) const VALUE: usize = 3 + CONTENT;

/// How many references a frame may have. Each may need a descriptor, and there is only so much room for them; buffers beyond
/// that travel as bytes.
pub(crate) const MOST: usize = 64;

/// Where the bytes of a buffer are, in another process's arenas.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Reference {
    pub(crate) arena: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Reference {
    pub(crate) fn parse(content: &[u8]) -> Option<Reference> {
        let content: &[u8; CONTENT] = content.try_into().ok()?;
        let number = |at: usize| {
            let bytes = content[at..at + 8].try_into().expect("eight bytes");
            u64::from_be_bytes(bytes)
        };
        Some(Reference {
            arena: number(0),
            offset: number(8),
            length: number(16),
        })
    }

    /// The whole extension value, of one of the two types.
    pub(crate) fn value(self, kind: u8) -> [u8; VALUE] {
        let mut value = [0; VALUE];
        value[..3].copy_from_slice(&[0xc7, CONTENT as u8, kind]);
        for (place, number) in [self.arena, self.offset, self.length].iter().enumerate() {
            let at = 3 + 8 * place;
            value[at..at + 8].copy_from_slice(&number.to_be_bytes());
        }
        value
    }

    /// The part of `whole` that it means, if that is there.
    pub(crate) fn range(self, whole: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(self.offset).ok()?;
        let end = start.checked_add(usize::try_from(self.length).ok()?)?;
        (end <= whole).then_some(start..end)
    }
}

/// A buffer that a frame refers to.
#[derive(Clone)]
pub(crate) struct Attachment {
    /// Where in the frame the reference begins.
    pub(crate) at: usize,
    pub(crate) lease: Arc<Lease>,
    reference: Reference,
    kind: u8,
}

impl Attachment {
    /// `kind`: the type of the reference. `None`: no arena is to be had.
    pub(crate) fn new(at: usize, buffer: &Buffer, kind: u8) -> Option<Attachment> {
        let (lease, start) = buffer.in_arena()?;
        let reference = Reference {
            arena: lease.number(),
            offset: start as u64,
            length: buffer.len() as u64,
        };
        Some(Attachment {
            at,
            lease,
            reference,
            kind,
        })
    }

    pub(crate) fn value(&self) -> [u8; VALUE] {
        self.reference.value(self.kind)
    }

    /// How many bytes whoever reads it makes a copy of.
    pub(crate) fn to_copy(&self) -> usize {
        match self.kind {
            COPY => self.reference.length as usize,
            _ => 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        let bytes = self.lease.bytes();
        let range = self.reference.range(bytes.len());
        &bytes[range.expect("a reference of our own making")]
    }
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.reference.fmt(f)
    }
}

/// A frame with the bytes of its attachments in the places of the references.
///
/// # Errors
/// It would be longer than `limit`, header included.
pub(crate) fn inlined(
    frame: &[u8],
    attachments: &[Attachment],
    limit: usize,
) -> Result<Vec<u8>, EncodeError> {
    let pieces = attachments.iter().map(|it| (it.at, it.bytes()));
    let mut whole = spliced(frame, pieces, limit)?;
    let length = u32::try_from(whole.len() - HEADER).expect("the limit is below 4 GiB");
    whole[..HEADER].copy_from_slice(&length.to_be_bytes());
    Ok(whole)
}

/// MessagePack with byte strings in the places of references.
fn spliced<'a>(
    packed: &[u8],
    pieces: impl Iterator<Item = (usize, &'a [u8])> + Clone,
    limit: usize,
) -> Result<Vec<u8>, EncodeError> {
    const LONGEST_HEADER: usize = 5;
    let all = pieces.clone().fold(packed.len(), |sum, (_, bytes)| {
        sum.saturating_add(bytes.len())
            .saturating_add(LONGEST_HEADER)
            - VALUE
    });
    if all > limit {
        return Err(EncodeError::TooLarge {
            at_least: all,
            limit,
        });
    }
    let mut whole = Vec::with_capacity(all);
    let mut done = 0;
    for (at, bytes) in pieces {
        whole.extend_from_slice(&packed[done..at]);
        // The widest header: any reader takes it.
        let length = u32::try_from(bytes.len()).map_err(|_| EncodeError::TooLarge {
            at_least: bytes.len(),
            limit,
        })?;
        whole.push(0xc6);
        whole.extend_from_slice(&length.to_be_bytes());
        whole.extend_from_slice(bytes);
        done = at + VALUE;
    }
    whole.extend_from_slice(&packed[done..]);
    Ok(whole)
}

thread_local! {
    /// The buffer that serialises itself.
    static OFFERED: RefCell<Option<Buffer>> = const { RefCell::new(None) };
    /// The buffers that the message refers to which is being decoded.
    static RECEIVED: RefCell<Received> = const { RefCell::new(Vec::new()) };
    /// The copies that are made of their bytes.
    static COPIES: Cell<Copies> = const { Cell::new(Copies::within(MAX_FRAME)) };
    /// Whether one of them was kept as it is.
    static KEPT: Cell<bool> = const { Cell::new(false) };
}

/// How many bytes of what a message refers to are copied: it may refer to the same ones again and again.
#[derive(Clone, Copy)]
struct Copies {
    /// All that its values may have copies of together: they could have come in the message. (Or what the longest buffer has,
    /// which may be longer than a message.)
    limit: usize,
    /// What they have copies of by now.
    kept: usize,
    /// What has been copied, also for values that could not be made of it, or only in another way.
    made: usize,
}

impl Copies {
    /// A value is tried in three ways at the most.
    const TRIES: usize = 4;

    const fn within(limit: usize) -> Copies {
        Copies {
            limit,
            kept: 0,
            made: 0,
        }
    }
}

/// What a message refers to.
pub(crate) type Received = Vec<(Reference, Buffer)>;

/// Not worth a look, whatever the pool's threshold.
const TINY: usize = 1024;

/// Serialises a buffer, by `serialize`, so that our encoder knows it.
pub(super) fn offering<T>(buffer: &Buffer, serialize: impl FnOnce() -> T) -> T {
    if buffer.len() < TINY {
        return serialize();
    }
    let _ = OFFERED.try_with(|offered| offered.replace(Some(buffer.clone())));
    let result = serialize();
    // It is another's by now, if a serializer has nested them; and gone, if the encoder has taken it.
    let _ = OFFERED.try_with(|offered| offered.take());
    result
}

/// The buffer whose bytes these are, if one is just being serialised.
pub(crate) fn offered(bytes: &[u8]) -> Option<Buffer> {
    let buffer = OFFERED.try_with(|offered| offered.take()).ok()??;
    std::ptr::eq(&*buffer, bytes).then_some(buffer)
}

/// Decodes, by `decode`, a message that refers to these buffers; `limit` is that of a message.
pub(crate) fn with_received<T>(buffers: Received, limit: usize, decode: impl FnOnce() -> T) -> T {
    if buffers.is_empty() {
        return decode();
    }
    /// Puts back what was there, also when a panic comes through.
    struct Before(Received, Copies);
    impl Drop for Before {
        fn drop(&mut self) {
            let before = std::mem::take(&mut self.0);
            let _ = COPIES.try_with(|copies| copies.set(self.1));
            // Dropped outside of the borrow: the end of a buffer may run somebody's code.
            drop(RECEIVED.try_with(|received| received.replace(before)));
        }
    }
    let longest = buffers.iter().map(|(_, buffer)| buffer.len()).max();
    let copies = Copies::within(limit.max(longest.unwrap_or(0)));
    let _before = Before(RECEIVED.replace(buffers), COPIES.replace(copies));
    decode()
}

/// Whether so many more bytes of what the message refers to may be copied, for a value of it.
pub(crate) fn may_copy(more: usize) -> bool {
    let copies = COPIES.try_with(Cell::get);
    copies.is_ok_and(|copies| {
        let made_at_most = copies.limit.saturating_mul(Copies::TRIES);
        copies.kept.saturating_add(more) <= copies.limit
            && copies.made.saturating_add(more) <= made_at_most
    })
}

/// So many bytes have been copied.
pub(crate) fn note_made(bytes: usize) {
    note_copies(|copies| copies.made = copies.made.saturating_add(bytes));
}

/// A value has been made of so many copied bytes.
pub(crate) fn note_kept(bytes: usize) {
    note_copies(|copies| copies.kept = copies.kept.saturating_add(bytes));
}

fn note_copies(note: impl FnOnce(&mut Copies)) {
    let _ = COPIES.try_with(|copies| {
        let mut now = copies.get();
        note(&mut now);
        copies.set(now);
    });
}

/// The buffer that a reference means, in the message that is being decoded.
pub(super) fn received(reference: Reference) -> Option<Buffer> {
    let found = RECEIVED.try_with(|received| {
        let received = received.borrow();
        let found = received.iter().find(|(it, _)| *it == reference);
        found.map(|(_, buffer)| buffer.clone())
    });
    found.ok().flatten()
}

/// The buffer whose bytes these are, in the message that is being decoded: who is shown them finds out that they can be kept.
pub(super) fn received_at(bytes: &[u8]) -> Option<Buffer> {
    let found = RECEIVED.try_with(|received| {
        let received = received.borrow();
        let found = received.iter().find(|(_, it)| std::ptr::eq(&**it, bytes));
        found.map(|(_, buffer)| buffer.clone())
    });
    let found = found.ok().flatten();
    if found.is_some() {
        let _ = KEPT.try_with(|kept| kept.set(true));
    }
    found
}

/// Whether somebody has kept a buffer that he was shown, since this was asked last.
pub(crate) fn was_kept() -> bool {
    KEPT.try_with(|kept| kept.replace(false)).unwrap_or(false)
}

/// The type of a value that is nothing but a reference, and what it means.
pub(crate) fn received_value(value: &[u8]) -> Option<(u8, Buffer)> {
    match value {
        [0xc7, length, kind @ (EXTENSION | COPY), content @ ..]
            if usize::from(*length) == CONTENT =>
        {
            Some((*kind, received(Reference::parse(content)?)?))
        }
        _ => None,
    }
}

/// Which references are to be replaced by what they mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that are as good as the bytes: whoever reads them must not see that there was one.
    Copies,
    /// Those to buffers as well, if there are such, for a type that is none.
    All,
}

/// A value with byte strings in the places of its references, and how many bytes of those there are. `None`: it has none of these.
pub(crate) fn expanded(
    value: &[u8],
    which: Which,
) -> Option<Result<(Vec<u8>, usize), DecodeError>> {
    let is_empty = RECEIVED.try_with(|received| received.borrow().is_empty());
    if is_empty.unwrap_or(true) {
        return None;
    }
    let pieces: Option<Vec<(usize, Buffer)>> = references_in(value)
        .filter(|(at, _)| which == Which::All || value[at + 2] == COPY)
        .map(|(at, reference)| Some((at, received(reference)?)))
        .collect();
    let pieces = pieces.filter(|pieces| match which {
        Which::Copies => !pieces.is_empty(),
        Which::All => pieces.iter().any(|(at, _)| value[at + 2] == EXTENSION),
    })?;
    let lengths = pieces.iter().map(|(_, buffer)| buffer.len());
    let length = lengths.fold(0, usize::saturating_add);
    if !may_copy(length) {
        return Some(Err(too_many_copies()));
    }
    note_made(length);
    let pieces = pieces.iter().map(|(at, buffer)| (*at, &buffer[..]));
    let expanded = spliced(value, pieces, usize::MAX);
    let expanded = expanded.map_err(|error| DecodeError::new(error.to_string()));
    Some(expanded.map(|bytes| (bytes, length)))
}

pub(crate) fn too_many_copies() -> DecodeError {
    let limit = COPIES.try_with(|copies| copies.get().limit);
    DecodeError::new(format!(
        "more than {} bytes, the limit of a message, in copies of what lies in shared memory",
        limit.unwrap_or(MAX_FRAME)
    ))
}

/// A part of something that looks like an array of bytes.
pub(super) enum Element {
    Byte(u8),
    Content(Vec<u8>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Element, D::Error> {
        // A format that does not describe itself has byte strings, and does not come here.
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl Visitor<'_> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a byte")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Element, E> {
        let byte =
            u8::try_from(number).map_err(|_| E::custom(format_args!("{number} is no byte")))?;
        Ok(Element::Byte(byte))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Element, E> {
        let byte =
            u8::try_from(number).map_err(|_| E::custom(format_args!("{number} is no byte")))?;
        Ok(Element::Byte(byte))
    }

    fn visit_bytes<E: Error>(self, content: &[u8]) -> Result<Element, E> {
        match content.len() {
            CONTENT => Ok(Element::Content(content.to_vec())),
            length => Err(E::invalid_length(length, &self)),
        }
    }

    fn visit_byte_buf<E: Error>(self, content: Vec<u8>) -> Result<Element, E> {
        self.visit_bytes(&content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MAX_FRAME, Message, decode_value, encode_call, encode_call_sharing};

    /// The bytes of an example of the document, without its header.
    fn example(name: &str) -> Vec<u8> {
        let document = include_str!("../../docs/protocol.md");
        let block = document
            .split(&format!("```hex {name}\n"))
            .nth(1)
            .expect("it is there");
        let lines = block.split("```").next().expect("its end").lines();
        let digits = lines.map(|line| line.split('#').next().expect("a beginning"));
        let digits: String = digits.flat_map(str::chars).filter(|c| *c != ' ').collect();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
        (8..digits.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn a_reference_is_as_in_the_document() {
        let reference = Reference {
            arena: 5,
            offset: 4096,
            length: 131_072,
        };
        assert!(example("call-with-buffer").ends_with(&reference.value(EXTENSION)));
        assert_eq!(
            Reference::parse(&reference.value(COPY)[3..]),
            Some(reference)
        );
        let notice = crate::wire::BuffersNotice {
            kept: vec![5],
            gone: vec![2, 3],
            ..Default::default()
        };
        assert_eq!(
            notice.encode(MAX_FRAME).expect("short")[HEADER..],
            example("buffers")
        );
    }

    #[test]
    fn a_frame_with_its_buffers_put_in_is_what_it_would_have_been() {
        let buffer = Buffer::with_len(100_000, |bytes| bytes.fill(5));
        let args = (
            "x",
            vec![buffer.clone(), buffer.slice(..5), buffer.slice(1..)],
            7,
        );
        let (frame, attachments) =
            encode_call_sharing(1, "t", &args, MAX_FRAME, Some(4096)).expect("a call");
        assert_eq!((frame.len() < 200, attachments.len()), (true, 2));
        let plain = encode_call(1, "t", &args, MAX_FRAME).expect("a call");
        assert_eq!(
            inlined(&frame, &attachments, MAX_FRAME).expect("room"),
            plain
        );
        inlined(&frame, &attachments, plain.len() - 1).expect_err("a byte too many");
    }

    #[test]
    fn what_was_received_is_found_by_buffers_and_by_other_types() {
        let buffer = Buffer::with_len(100_000, |bytes| bytes.fill(5));
        let args = (vec![(1, buffer.clone())],);
        let (frame, attachments) =
            encode_call_sharing(1, "t", &args, MAX_FRAME, Some(4096)).expect("a call");
        let Ok((Message::Call { args, .. }, true)) = Message::read(&frame[HEADER..]) else {
            panic!("a call that refers to a buffer");
        };
        let references: Vec<_> = references_in(args).collect();
        assert_eq!(references.len(), attachments.len());
        let received = vec![(references[0].1, buffer)];
        with_received(received, MAX_FRAME, || {
            let (buffers,): (Vec<(u8, Buffer)>,) = decode_value(args).expect("buffers");
            assert_eq!(buffers[0].1[99_999], 5);
            // A vector of numbers is one all the same.
            let (vectors,): (Vec<(u8, Vec<u8>)>,) = decode_value(args).expect("vectors");
            assert_eq!(vectors[0].1, vec![5; 100_000]);
        });
        decode_value::<(Vec<(u8, Buffer)>,)>(args).expect_err("nothing was received any more");
    }

    /// Bytes by way of `serialize_bytes`, and back by whichever of the two ways.
    #[derive(Debug, PartialEq, Clone)]
    struct Bytes<const OWNED: bool>(Vec<u8>);

    impl<const OWNED: bool> serde::Serialize for Bytes<OWNED> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(&self.0)
        }
    }

    impl<'de, const OWNED: bool> Deserialize<'de> for Bytes<OWNED> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct It;
            impl Visitor<'_> for It {
                type Value = Vec<u8>;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("bytes")
                }
                fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                    Ok(bytes.to_vec())
                }
                fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                    Ok(bytes)
                }
            }
            match OWNED {
                true => deserializer.deserialize_byte_buf(It),
                false => deserializer.deserialize_bytes(It),
            }
            .map(Bytes)
        }
    }

    /// A message with its buffers, as it is on the other side.
    fn with_message<T>(args: &impl serde::Serialize, then: impl FnOnce(&[u8], usize) -> T) -> T {
        let (frame, attachments) =
            encode_call_sharing(1, "t", args, MAX_FRAME, Some(4096)).expect("a call");
        let Ok((Message::Call { args, .. }, _)) = Message::read(&frame[HEADER..]) else {
            panic!("a call");
        };
        let buffers = references_in(args).zip(&attachments);
        let received = buffers.map(|((_, reference), it)| (reference, it.bytes().into()));
        with_received(received.collect(), MAX_FRAME, || {
            then(args, attachments.len())
        })
    }

    #[test]
    fn byte_strings_of_any_type_travel_beside_the_message_if_they_are_long() {
        for length in [0, 1, COPY_FROM - 1, COPY_FROM, 5 << 20] {
            let content: Vec<u8> = (0..length).map(|n| (n >> 3) as u8).collect();
            let args = (Bytes::<true>(content.clone()), [Bytes::<false>(content)]);
            with_message(&args, |message, shared| {
                assert_eq!(shared, if length >= COPY_FROM { 2 } else { 0 });
                let back: (Bytes<true>, [Bytes<false>; 1]) = decode_value(message).expect("both");
                assert_eq!(back, args);
                let turned: (Bytes<false>, Vec<Bytes<true>>) = decode_value(message).expect("both");
                assert!(turned.0.0 == args.0.0 && turned.1[0].0 == args.1[0].0);
                let numbers: (Vec<u8>, (Vec<u8>,)) = decode_value(message).expect("both");
                assert!(numbers.0 == args.0.0 && numbers.1.0 == args.1[0].0);
            });
        }
    }

    /// Takes anything, and tells byte strings from extension values.
    #[derive(Debug, PartialEq)]
    enum Anything {
        Bytes(usize),
        Extension,
    }

    impl<'de> Deserialize<'de> for Anything {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct It;
            impl<'de> Visitor<'de> for It {
                type Value = Anything;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("anything")
                }
                fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Anything, E> {
                    Ok(Anything::Bytes(bytes.len()))
                }
                fn visit_newtype_struct<D: Deserializer<'de>>(
                    self,
                    inner: D,
                ) -> Result<Anything, D::Error> {
                    serde::de::IgnoredAny::deserialize(inner).map(|_| Anything::Extension)
                }
            }
            deserializer.deserialize_any(It)
        }
    }

    #[test]
    fn nobody_can_see_that_a_copy_was_referred_to() {
        let args = (Bytes::<true>(vec![1; COPY_FROM]), 1_u8, 2_i64);
        with_message(&args, |message, shared| {
            assert_eq!(shared, 1);
            let (seen, ..): (Anything, u8, i64) = decode_value(message).expect("anything");
            assert_eq!(seen, Anything::Bytes(COPY_FROM));
            // Nor by way of the other reader, which has all that ours declines.
            let (seen, ..): (Anything, u8, i128) =
                decode_value(&as_i128(message)).expect("anything");
            assert_eq!(seen, Anything::Bytes(COPY_FROM));
        });
    }

    /// The same message whose last number is one of 128 bits.
    fn as_i128(message: &[u8]) -> Vec<u8> {
        let mut wide = message[..message.len() - 1].to_vec();
        wide.extend([0xc4, 16]);
        wide.extend(2_i128.to_be_bytes());
        wide
    }

    #[test]
    fn a_buffer_beside_other_byte_strings_is_not_copied() {
        let buffer = Buffer::with_len(COPY_FROM, |bytes| bytes.fill(5));
        let args = ((Bytes::<true>(vec![6; COPY_FROM]), buffer),);
        with_message(&args, |message, _| {
            let ((bytes, buffer),): ((Bytes<true>, Buffer),) = decode_value(message).expect("both");
            assert!(bytes == args.0.0 && buffer == args.0.1);
            let received = RECEIVED
                .with_borrow(|all| all.iter().any(|(_, it)| it.as_ptr() == buffer.as_ptr()));
            assert!(received, "it is the one that was received");
        });
    }

    /// So many bytes that a message may refer to.
    fn shown(length: usize) -> (Reference, Buffer) {
        let reference = Reference {
            arena: 1,
            offset: 0,
            length: length as u64,
        };
        (reference, Buffer::with_len(length, |_| ()))
    }

    #[test]
    fn referring_to_the_same_bytes_again_and_again_does_not_make_a_message_longer_than_it_may_be() {
        let (reference, zeros) = shown(MAX_FRAME / 4);
        let mut message = vec![0x95];
        for _ in 0..5 {
            message.extend(reference.value(COPY));
        }
        with_received(vec![(reference, zeros)], MAX_FRAME, || {
            let error = decode_value::<Vec<Bytes<true>>>(&message).expect_err("too much");
            assert!(error.to_string().contains("copies"), "{error}");
            // Where nothing is copied, nothing is too much.
            let five: Vec<Buffer> = decode_value(&message).expect("buffers");
            assert_eq!(five.len(), 5);
            // Nor does it when the message has many values, each of which is short enough.
            let one = reference.value(COPY);
            let read = (0..5).map(|_| decode_value::<Vec<u8>>(&one).is_ok());
            assert_eq!(read.filter(|it| *it).count(), 4);
            assert!(decode_value::<Bytes<true>>(&one).is_err());
            assert!(decode_value::<Buffer>(&one).is_ok());
        });
    }

    #[test]
    fn long_byte_strings_have_the_limit_of_a_message_all_together() {
        let limit = 4 * COPY_FROM + 1000;
        let call = |strings: usize| {
            let args = (vec![Bytes::<true>(vec![6; COPY_FROM]); strings],);
            encode_call_sharing(1, "t", &args, limit, Some(4096)).map(|(frame, _)| frame.len())
        };
        assert!(call(4).expect("a call") < 1000);
        let Err(EncodeError::TooLarge { at_least, .. }) = call(5) else {
            panic!("it is too large");
        };
        assert!(at_least > 5 * COPY_FROM);
        // Together with all else, whatever comes first.
        for before in [true, false] {
            let (bytes, text) = (Bytes::<true>(vec![6; COPY_FROM]), "x".repeat(4 * COPY_FROM));
            let (first, last) = match before {
                true => (Some(&text), None),
                false => (None, Some(&text)),
            };
            let args = (first, bytes, last);
            let refused = encode_call_sharing(1, "t", &args, limit, Some(4096)).map(|_| ());
            assert!(matches!(refused, Err(EncodeError::TooLarge { .. })));
        }
        // And also those that are too many to be referred to.
        let limit = MOST * COPY_FROM + 5000;
        let many = |strings: usize| {
            let args = (vec![Bytes::<true>(vec![6; COPY_FROM]); strings],);
            encode_call_sharing(1, "t", &args, limit, Some(4096)).is_ok()
        };
        assert!(many(MOST) && !many(MOST + 1));
    }

    #[test]
    fn a_buffer_may_be_longer_than_a_message_and_be_read_as_a_vector() {
        let (reference, buffer) = shown(5000);
        with_received(vec![(reference, buffer)], 1000, || {
            let vector: Vec<u8> = decode_value(&reference.value(EXTENSION)).expect("a copy");
            assert_eq!(vector.len(), 5000);
            let another = decode_value::<Vec<u8>>(&reference.value(EXTENSION));
            assert!(another.is_err(), "two of them are more than may be");
        });
    }

    #[test]
    fn what_cannot_be_read_is_not_copied_for_ever() {
        let (reference, buffer) = shown(5000);
        with_received(vec![(reference, buffer)], 5000, || {
            let why = || {
                let read = decode_value::<u64>(&reference.value(COPY));
                read.expect_err("it is no number").to_string()
            };
            let tries = (0..100).filter(|_| !why().contains("copies"));
            assert!(tries.count() <= Copies::TRIES);
            assert!(why().contains("copies"));
        });
    }
}

//! Rust values to MessagePack.
//!
//! Reading is rmp-serde's where ours does not do; writing is ours, because three things have to hold for what leaves a process that
//! rmp-serde's writer does not promise: a nesting limit (a list of a million links must be an error, not a stack
//! overflow of the host), a size limit that is checked before the bytes are copied (MessagePack's lengths are 32 bits,
//! and a longer one would be cut), and byte strings that are recognised by their type and copied as one block.

use std::fmt::{self, Display};

use serde::ser::{self, Impossible, Serialize};

use super::{EncodeError, MAX_DEPTH};
use crate::buffer::Buffer;
use crate::buffer::travel::{self, Attachment};

/// A growing buffer with a bound, and the serde `Serializer` that writes to it.
#[derive(Debug)]
pub(crate) struct Encoder {
    bytes: Vec<u8>,
    limit: usize,
    /// How many of these bytes are kept free for something else.
    kept_free: usize,
    depth: usize,
    /// From how many bytes on a buffer is referred to; `None`: never.
    share_from: Option<usize>,
    /// The buffers that are referred to, in the order of their places.
    attachments: Vec<Attachment>,
    /// How many bytes of those whoever reads it makes copies of. They have a message's limit together with the bytes here: it
    /// does not depend on what memory there is.
    to_copy: usize,
}

impl Encoder {
    /// An encoder whose output, everything included, may have `limit` bytes.
    pub(crate) fn new(limit: usize) -> Encoder {
        Encoder {
            bytes: Vec::new(),
            limit,
            kept_free: 0,
            depth: 0,
            share_from: None,
            attachments: Vec::new(),
            to_copy: 0,
        }
    }

    /// The same that refers to buffers of so many bytes and more.
    pub(crate) fn sharing(self, share_from: Option<usize>) -> Encoder {
        Encoder { share_from, ..self }
    }

    /// The bytes, and the buffers that they refer to.
    pub(crate) fn into_parts(self) -> (Vec<u8>, Vec<Attachment>) {
        (self.bytes, self.attachments)
    }

    /// The buffers that the bytes refer to: they are to be kept until nobody reads them any more.
    pub(crate) fn take_attachments(&mut self) -> Vec<Attachment> {
        self.to_copy = 0;
        std::mem::take(&mut self.attachments)
    }

    /// Other bytes for those that are there.
    pub(crate) fn replace(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// The most bytes that there may be.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Keeps so many bytes free, if there are as many and `besides` at least. Until further notice.
    pub(crate) fn keep_free(&mut self, bytes: usize, besides: usize) -> bool {
        let needed = self
            .bytes
            .len()
            .saturating_add(self.to_copy)
            .saturating_add(bytes)
            .saturating_add(besides);
        let fits = needed <= self.limit;
        self.kept_free = if fits { bytes } else { 0 };
        fits
    }

    /// So many bytes more are likely to come.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        let room = self.limit.saturating_sub(self.bytes.len());
        self.bytes.reserve(bytes.min(room));
    }

    /// The bytes written so far.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Forgets what was written after `length` bytes, as after a value that failed half-way.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
        let kept = self.attachments.partition_point(|it| it.at < length);
        self.attachments.truncate(kept);
        self.count_copies();
        self.depth = 0;
    }

    fn count_copies(&mut self) {
        let to_copy = self.attachments.iter().map(Attachment::to_copy);
        self.to_copy = to_copy.sum();
    }

    /// Takes away what was written after `length` bytes, to be written again by [`paste`](Encoder::paste).
    pub(crate) fn cut(&mut self, length: usize) -> Cut {
        let from = self.attachments.partition_point(|it| it.at < length);
        let attachments = self.attachments.split_off(from);
        self.count_copies();
        Cut {
            bytes: self.bytes.split_off(length),
            was_at: length,
            pasted: 0,
            attachments: attachments.into_iter().peekable(),
        }
    }

    /// Writes the next `length` bytes of what was cut.
    pub(crate) fn paste(&mut self, cut: &mut Cut, length: usize) -> Result<(), EncodeError> {
        let (before, now) = (cut.was_at + cut.pasted, self.bytes.len());
        self.raw(&cut.rest()[..length])?;
        cut.pasted += length;
        while let Some(mut attachment) = cut.attachments.next_if(|it| it.at < before + length) {
            attachment.at = attachment.at - before + now;
            self.to_copy += attachment.to_copy();
            self.attachments.push(attachment);
        }
        self.fits(0)
    }

    /// How many arrays and maps the next value is in.
    #[inline]
    pub(crate) fn set_depth(&mut self, depth: usize) {
        self.depth = depth;
    }

    /// Lets go of a buffer that one big value has made big.
    pub(crate) fn shrink(&mut self, keep: usize) {
        if self.bytes.capacity() > keep {
            self.bytes = Vec::new();
        }
    }

    /// Writes one value.
    #[inline]
    pub(crate) fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        value.serialize(self)
    }

    /// Writes one value that refers to nothing.
    pub(crate) fn whole<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        let share_from = self.share_from.take();
        let written = self.value(value);
        self.share_from = share_from;
        written
    }

    /// Bytes that are MessagePack already.
    #[inline]
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.fits(bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn fits(&self, more: usize) -> Result<(), EncodeError> {
        let there = self.bytes.len().saturating_add(self.to_copy);
        let at_least = there.saturating_add(more).saturating_add(self.kept_free);
        match at_least > self.limit {
            true => Err(self.too_large(at_least)),
            false => Ok(()),
        }
    }

    #[cold]
    fn too_large(&self, at_least: usize) -> EncodeError {
        let limit = self.limit;
        EncodeError::TooLarge { at_least, limit }
    }

    /// The header of something with a length: `fix` is the marker that holds lengths below `below` in itself, then the
    /// markers with 8 (strings and binaries only), 16 and 32 bits of length.
    #[inline]
    fn length(
        &mut self,
        fix: Option<(u8, usize)>,
        wide: [Option<u8>; 3],
        length: usize,
    ) -> Result<(), EncodeError> {
        // What follows takes a byte for each unit of length or more, so this also keeps `length` under 32 bits.
        self.fits(length)?;
        let [eight, sixteen, thirty_two] = wide;
        if let Some((marker, below)) = fix
            && length < below
        {
            return self.raw(&[marker | length as u8]);
        }
        if let (Some(marker), Ok(length)) = (eight, u8::try_from(length)) {
            return self.raw(&[marker, length]);
        }
        if let (Some(marker), Ok(length)) = (sixteen, u16::try_from(length)) {
            let [a, b] = length.to_be_bytes();
            return self.raw(&[marker, a, b]);
        }
        let (Some(marker), Ok(length)) = (thirty_two, u32::try_from(length)) else {
            let at_least = self.bytes.len().saturating_add(length);
            return Err(EncodeError::TooLarge {
                at_least,
                limit: self.limit.min(u32::MAX as usize),
            });
        };
        let [a, b, c, d] = length.to_be_bytes();
        self.raw(&[marker, a, b, c, d])
    }

    #[inline]
    pub(crate) fn array(&mut self, length: usize) -> Result<(), EncodeError> {
        self.length(Some((0x90, 16)), [None, Some(0xdc), Some(0xdd)], length)
    }

    pub(crate) fn map(&mut self, length: usize) -> Result<(), EncodeError> {
        self.length(Some((0x80, 16)), [None, Some(0xde), Some(0xdf)], length)
    }

    #[inline]
    pub(crate) fn text(&mut self, text: &str) -> Result<(), EncodeError> {
        self.length(
            Some((0xa0, 32)),
            [Some(0xd9), Some(0xda), Some(0xdb)],
            text.len(),
        )?;
        self.raw(text.as_bytes())
    }

    fn binary_length(&mut self, length: usize) -> Result<(), EncodeError> {
        self.length(None, [Some(0xc4), Some(0xc5), Some(0xc6)], length)
    }

    #[inline]
    fn unsigned(&mut self, value: u64) -> Result<(), EncodeError> {
        if value < 0x80 {
            self.raw(&[value as u8])
        } else if let Ok(value) = u8::try_from(value) {
            self.raw(&[0xcc, value])
        } else if let Ok(value) = u16::try_from(value) {
            self.marked(0xcd, value.to_be_bytes())
        } else if let Ok(value) = u32::try_from(value) {
            self.marked(0xce, value.to_be_bytes())
        } else {
            self.marked(0xcf, value.to_be_bytes())
        }
    }

    #[inline]
    fn signed(&mut self, value: i64) -> Result<(), EncodeError> {
        if let Ok(value) = u64::try_from(value) {
            self.unsigned(value)
        } else if value >= -32 {
            self.raw(&[value as u8])
        } else if let Ok(value) = i8::try_from(value) {
            self.marked(0xd0, value.to_be_bytes())
        } else if let Ok(value) = i16::try_from(value) {
            self.marked(0xd1, value.to_be_bytes())
        } else if let Ok(value) = i32::try_from(value) {
            self.marked(0xd2, value.to_be_bytes())
        } else {
            self.marked(0xd3, value.to_be_bytes())
        }
    }

    /// A marker, and a number of up to eight bytes, at once: to look twice whether there is room takes longer than both.
    #[inline]
    pub(crate) fn marked<const N: usize>(
        &mut self,
        marker: u8,
        value: [u8; N],
    ) -> Result<(), EncodeError> {
        let mut both = [marker; 9];
        both[1..=N].copy_from_slice(&value);
        self.raw(&both[..=N])
    }

    #[inline]
    fn enter(&mut self) -> Result<(), EncodeError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(EncodeError::TooDeep);
        }
        Ok(())
    }

    /// An array or a map has been opened; `left` is how many values its header promises.
    #[inline]
    fn open(&mut self, left: usize) -> Result<Compound<'_>, EncodeError> {
        let outside = self.depth;
        self.enter()?;
        Ok(Compound {
            encoder: self,
            outside,
            left: Some(left),
            unknown: None,
            values: 0,
        })
    }

    /// The same inside a variant's map, which is a level of its own.
    fn open_variant(&mut self, left: usize) -> Result<Compound<'_>, EncodeError> {
        let outside = self.depth;
        self.enter()?;
        let mut compound = self.open(left)?;
        compound.outside = outside;
        Ok(compound)
    }

    /// A compound whose length is known only at its end: a header of the widest form, filled in later.
    fn open_unknown(
        &mut self,
        marker: u8,
        values_each: usize,
    ) -> Result<Compound<'_>, EncodeError> {
        let outside = self.depth;
        self.enter()?;
        let at = self.bytes.len() + 1;
        self.marked(marker, [0; 4])?;
        Ok(Compound {
            encoder: self,
            outside,
            left: None,
            unknown: Some((at, values_each)),
            values: 0,
        })
    }

    /// `{ variant: …` the value is to follow.
    fn variant(&mut self, variant: &str) -> Result<(), EncodeError> {
        self.map(1)?;
        self.text(variant)
    }
}

/// What has been taken away from an encoder.
pub(crate) struct Cut {
    bytes: Vec<u8>,
    was_at: usize,
    pasted: usize,
    attachments: std::iter::Peekable<std::vec::IntoIter<Attachment>>,
}

impl Cut {
    /// What has not been pasted.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.pasted..]
    }
}

/// An array or a map that is being written. It checks that as many values come as were promised: a wrong
/// `Serialize` must not make a frame that the other side cannot read.
pub(crate) struct Compound<'a> {
    encoder: &'a mut Encoder,
    outside: usize,
    left: Option<usize>,
    unknown: Option<(usize, usize)>,
    values: usize,
}

impl Compound<'_> {
    #[inline]
    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        match &mut self.left {
            Some(0) => return Err(miscounted()),
            Some(left) => *left -= 1,
            None => self.values += 1,
        }
        value.serialize(&mut *self.encoder)
    }

    #[inline]
    fn close(self) -> Result<(), EncodeError> {
        self.encoder.depth = self.outside;
        if let Some((at, values_each)) = self.unknown {
            let count = u32::try_from(self.values / values_each).map_err(|_| miscounted())?;
            self.encoder.bytes[at..at + 4].copy_from_slice(&count.to_be_bytes());
        }
        match self.left {
            None if self
                .unknown
                .is_some_and(|(_, each)| !self.values.is_multiple_of(each)) =>
            {
                Err(miscounted())
            }
            None | Some(0) => Ok(()),
            Some(_) => Err(miscounted()),
        }
    }
}

fn miscounted() -> EncodeError {
    EncodeError::Refused("its Serialize writes another number of elements than it announced".into())
}

impl ser::Error for EncodeError {
    fn custom<T: Display>(message: T) -> Self {
        EncodeError::Refused(message.to_string())
    }
}

impl<'a> ser::Serializer for &'a mut Encoder {
    type Ok = ();
    type Error = EncodeError;
    type SerializeSeq = Compound<'a>;
    type SerializeTuple = Compound<'a>;
    type SerializeTupleStruct = Compound<'a>;
    type SerializeTupleVariant = Compound<'a>;
    type SerializeMap = Compound<'a>;
    type SerializeStruct = Compound<'a>;
    type SerializeStructVariant = Compound<'a>;

    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bool(self, v: bool) -> Result<(), EncodeError> {
        self.raw(&[if v { 0xc3 } else { 0xc2 }])
    }

    #[inline]
    fn serialize_i8(self, v: i8) -> Result<(), EncodeError> {
        self.signed(v.into())
    }

    #[inline]
    fn serialize_i16(self, v: i16) -> Result<(), EncodeError> {
        self.signed(v.into())
    }

    #[inline]
    fn serialize_i32(self, v: i32) -> Result<(), EncodeError> {
        self.signed(v.into())
    }

    #[inline]
    fn serialize_i64(self, v: i64) -> Result<(), EncodeError> {
        self.signed(v)
    }

    // Sixteen bytes, most significant first: what rmp-serde reads back.
    fn serialize_i128(self, v: i128) -> Result<(), EncodeError> {
        self.serialize_bytes(&v.to_be_bytes())
    }

    #[inline]
    fn serialize_u8(self, v: u8) -> Result<(), EncodeError> {
        self.unsigned(v.into())
    }

    #[inline]
    fn serialize_u16(self, v: u16) -> Result<(), EncodeError> {
        self.unsigned(v.into())
    }

    #[inline]
    fn serialize_u32(self, v: u32) -> Result<(), EncodeError> {
        self.unsigned(v.into())
    }

    #[inline]
    fn serialize_u64(self, v: u64) -> Result<(), EncodeError> {
        self.unsigned(v)
    }

    fn serialize_u128(self, v: u128) -> Result<(), EncodeError> {
        self.serialize_bytes(&v.to_be_bytes())
    }

    #[inline]
    fn serialize_f32(self, v: f32) -> Result<(), EncodeError> {
        self.marked(0xca, v.to_be_bytes())
    }

    #[inline]
    fn serialize_f64(self, v: f64) -> Result<(), EncodeError> {
        self.marked(0xcb, v.to_be_bytes())
    }

    fn serialize_char(self, v: char) -> Result<(), EncodeError> {
        self.text(v.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, v: &str) -> Result<(), EncodeError> {
        self.text(v)
    }

    fn serialize_bytes(self, v: &[u8]) -> Result<(), EncodeError> {
        if self.refer_to(v)? {
            return Ok(());
        }
        if self.copies(v.len())? {
            return self.share(v.len(), |bytes| {
                bytes.copy_from_slice(v);
                Ok(())
            });
        }
        self.binary_length(v.len())?;
        self.raw(v)
    }

    #[inline]
    fn serialize_none(self) -> Result<(), EncodeError> {
        self.raw(&[0xc0])
    }

    // `None` is nil, so a `Some` whose content is nil would come back as `None`. Better refused than changed.
    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), EncodeError> {
        let start = self.bytes.len();
        value.serialize(&mut *self)?;
        if self.bytes[start..] == [0xc0] {
            return Err(EncodeError::Refused(
                "Some(None) or Some(()) cannot be told from None in MessagePack".into(),
            ));
        }
        Ok(())
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), EncodeError> {
        self.raw(&[0xc0])
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), EncodeError> {
        self.raw(&[0xc0])
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), EncodeError> {
        self.text(variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        // No byte for it, but a level of recursion.
        self.enter()?;
        value.serialize(&mut *self)?;
        self.depth -= 1;
        Ok(())
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        self.variant(variant)?;
        self.enter()?;
        value.serialize(&mut *self)?;
        self.depth -= 1;
        Ok(())
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Compound<'a>, EncodeError> {
        let Some(length) = length else {
            return self.open_unknown(0xdd, 1);
        };
        self.array(length)?;
        self.open(length)
    }

    #[inline]
    fn serialize_tuple(self, length: usize) -> Result<Compound<'a>, EncodeError> {
        self.array(length)?;
        self.open(length)
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        length: usize,
    ) -> Result<Compound<'a>, EncodeError> {
        self.serialize_tuple(length)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Compound<'a>, EncodeError> {
        self.variant(variant)?;
        self.array(length)?;
        self.open_variant(length)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Compound<'a>, EncodeError> {
        let Some(length) = length else {
            return self.open_unknown(0xdf, 2);
        };
        self.map(length)?;
        self.open(length.saturating_mul(2))
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, length: usize) -> Result<Compound<'a>, EncodeError> {
        self.map(length)?;
        self.open(length)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Compound<'a>, EncodeError> {
        self.variant(variant)?;
        self.map(length)?;
        self.open_variant(length)
    }

    /// Every `Vec`, slice and set comes through here. Those of bytes are written as one byte string.
    fn collect_seq<I>(self, items: I) -> Result<(), EncodeError>
    where
        I: IntoIterator,
        I::Item: Serialize,
    {
        let items = items.into_iter();
        let length = match items.size_hint() {
            (low, Some(high)) if low == high => Some(low),
            _ => None,
        };
        if let Some(length) = length
            && are_bytes::<I::Item>()
        {
            return self.collect_bytes(items, length);
        }
        let mut compound = self.serialize_seq(length)?;
        for item in items {
            compound.value(&item)?;
        }
        compound.close()
    }
}

impl Encoder {
    /// Writes a reference, if these are the bytes of a buffer that can be referred to.
    fn refer_to(&mut self, bytes: &[u8]) -> Result<bool, EncodeError> {
        if !self.shares(bytes.len()) {
            return Ok(false);
        }
        match travel::offered(bytes) {
            Some(buffer) => self.attach(&buffer, travel::EXTENSION),
            None => Ok(false),
        }
    }

    /// Whether so many bytes can be referred to.
    fn shares(&self, length: usize) -> bool {
        self.share_from.is_some_and(|from| length >= from) && self.attachments.len() < travel::MOST
    }

    fn attach(&mut self, buffer: &Buffer, kind: u8) -> Result<bool, EncodeError> {
        let Some(attachment) = Attachment::new(self.bytes.len(), buffer, kind) else {
            return Ok(false);
        };
        self.raw(&attachment.value())?;
        self.to_copy += attachment.to_copy();
        self.attachments.push(attachment);
        Ok(true)
    }

    /// Whether so many bytes are better put where both sides can read them, for the other to copy.
    fn copies(&self, length: usize) -> Result<bool, EncodeError> {
        if length < travel::COPY_FROM || !self.shares(length) {
            return Ok(false);
        }
        self.fits(length).map(|()| true)
    }

    /// Puts bytes there, as `fill` writes them.
    fn share(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let buffer = Buffer::try_with_len(length, fill)?;
        if self.attach(&buffer, travel::COPY)? {
            return Ok(());
        }
        self.binary_length(length)?;
        self.raw(&buffer)
    }

    fn collect_bytes<I>(&mut self, items: I, length: usize) -> Result<(), EncodeError>
    where
        I: Iterator,
        I::Item: Serialize,
    {
        if self.copies(length)? {
            return self.share(length, |bytes| {
                let mut filled = 0;
                let mut all_bytes = true;
                for (place, item) in bytes.iter_mut().zip(items) {
                    *place = item.serialize(OneByte).unwrap_or_else(|NotAByte| {
                        all_bytes = false;
                        0
                    });
                    filled += 1;
                }
                match all_bytes && filled == length {
                    true => Ok(()),
                    false => Err(miscounted()),
                }
            });
        }
        self.binary_length(length)?;
        // Once more, as the marker has taken some of the room.
        self.fits(length)?;
        let start = self.bytes.len();
        let mut all_bytes = true;
        // No early return in this loop: for a slice the compiler makes one block copy of it.
        self.bytes.extend(items.take(length).map(|item| {
            item.serialize(OneByte).unwrap_or_else(|NotAByte| {
                all_bytes = false;
                0
            })
        }));
        if !all_bytes || self.bytes.len() - start != length {
            return Err(miscounted());
        }
        Ok(())
    }
}

/// Whether the items are `u8` or `&u8`. A type's name is no proof, so that [`OneByte`] has the last word; but an item
/// that is not named so is certainly something else, and an empty `Vec<u8>` is known for what it is too.
fn are_bytes<T>() -> bool {
    let name = std::any::type_name::<T>();
    name == "u8" || name == "&u8"
}

/// Takes a `u8` out of something that is only known to be `Serialize`.
struct OneByte;

#[derive(Debug)]
struct NotAByte;

impl Display for NotAByte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a byte")
    }
}

impl std::error::Error for NotAByte {}

impl ser::Error for NotAByte {
    fn custom<T: Display>(_: T) -> Self {
        NotAByte
    }
}

macro_rules! not_a_byte {
    ($($method:ident($($argument:ty),*) -> $ok:ty;)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<$ok, NotAByte> { Err(NotAByte) })*
    };
}

type Never = Impossible<u8, NotAByte>;

impl ser::Serializer for OneByte {
    type Ok = u8;
    type Error = NotAByte;
    type SerializeSeq = Never;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    fn serialize_u8(self, v: u8) -> Result<u8, NotAByte> {
        Ok(v)
    }

    not_a_byte! {
        serialize_bool(bool) -> u8;
        serialize_i8(i8) -> u8;
        serialize_i16(i16) -> u8;
        serialize_i32(i32) -> u8;
        serialize_i64(i64) -> u8;
        serialize_u16(u16) -> u8;
        serialize_u32(u32) -> u8;
        serialize_u64(u64) -> u8;
        serialize_f32(f32) -> u8;
        serialize_f64(f64) -> u8;
        serialize_char(char) -> u8;
        serialize_str(&str) -> u8;
        serialize_bytes(&[u8]) -> u8;
        serialize_none() -> u8;
        serialize_unit() -> u8;
        serialize_unit_struct(&'static str) -> u8;
        serialize_unit_variant(&'static str, u32, &'static str) -> u8;
        serialize_seq(Option<usize>) -> Never;
        serialize_tuple(usize) -> Never;
        serialize_tuple_struct(&'static str, usize) -> Never;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Never;
        serialize_map(Option<usize>) -> Never;
        serialize_struct(&'static str, usize) -> Never;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Never;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<u8, NotAByte> {
        Err(NotAByte)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<u8, NotAByte> {
        Err(NotAByte)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<u8, NotAByte> {
        Err(NotAByte)
    }
}

impl ser::SerializeSeq for Compound<'_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.value(value)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

impl ser::SerializeTuple for Compound<'_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.value(value)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

impl ser::SerializeTupleStruct for Compound<'_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.value(value)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

impl ser::SerializeTupleVariant for Compound<'_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.value(value)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

impl ser::SerializeMap for Compound<'_> {
    type Ok = ();
    type Error = EncodeError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), EncodeError> {
        self.value(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.value(value)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

impl ser::SerializeStruct for Compound<'_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        self.encoder.text(key)?;
        self.value(value)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

impl ser::SerializeStructVariant for Compound<'_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        self.encoder.text(key)?;
        self.value(value)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

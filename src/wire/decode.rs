//! MessagePack to Rust values, the usual ones, and fast.
//!
//! rmp-serde reads everything that we send, and it has the last word: what it says of bytes that do not fit is what users
//! read. But it is made for readers of all kinds, and takes longer for a number than a task for its work. This reader knows
//! that it has a slice, calls a visitor with the same things as rmp-serde does, and *declines* as soon as there is anything
//! out of the ordinary: an unknown extension, a type that wants more than there is, an error. Then nothing has happened, and
//! rmp-serde begins from the start.
//!
//! So it only has to be right where it gives a value. A type may hide an error from us, or leave a part of its value
//! unread; the first sets a mark, and everything is counted for the second.

use std::fmt::{self, Display};

use serde::de::value::SeqDeserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::MAX_DEPTH;
use crate::buffer::{Buffer, travel};
use crate::hook::memory::roomy_vector;

/// The value that `bytes` begin with, and the bytes behind it. `None`: another reader has to look at it.
#[inline(always)]
pub(super) fn first_value<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Option<(T, &'de [u8])> {
    let mut reader = Reader {
        rest: bytes,
        depth: MAX_DEPTH,
        open_variants: 0,
        copied: 0,
        keeps: false,
        declined: false,
    };
    let value = T::deserialize(&mut reader).ok();
    let is_whole = reader.rest.len() < bytes.len() && reader.open_variants == 0;
    let value = value.filter(|_| is_whole && !reader.declined);
    if reader.copied > 0 {
        travel::note_made(reader.copied);
        if value.is_some() {
            travel::note_kept(reader.copied);
        }
    }
    Some((value?, reader.rest))
}

/// As what a visitor takes a byte string.
#[derive(Clone, Copy)]
enum Bytes {
    /// Whatever it is.
    Any,
    /// To look at it.
    Seen,
    /// To keep it.
    Owned,
    /// As a sequence of numbers.
    Numbers,
}

/// A copy, in memory that is as cheap to touch as may be.
pub(super) fn copied(bytes: &[u8]) -> Vec<u8> {
    let mut copy = roomy_vector(bytes.len());
    copy.extend_from_slice(bytes);
    copy
}

struct Reader<'de> {
    rest: &'de [u8],
    /// How many more arrays and maps may be open.
    depth: usize,
    /// Variants whose name has been read, and what they hold has not.
    open_variants: usize,
    /// How many bytes that the message refers to have been copied for this value.
    copied: usize,
    /// What comes next may be a [`Buffer`], which keeps such bytes as they are when it sees them.
    keeps: bool,
    /// Whether there was a reason to decline. Somebody's `Deserialize` may have gone on all the same.
    declined: bool,
}

/// Why there is no value: nobody asks, as another reader will say it.
#[derive(Debug)]
struct Declined;

impl Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("declined")
    }
}

impl std::error::Error for Declined {}

impl de::Error for Declined {
    fn custom<T: Display>(_: T) -> Self {
        Declined
    }
}

impl<'de> Reader<'de> {
    // Inlined everywhere, as nothing is that is lent to a function: a reader that nobody sees lives in registers.
    #[inline(always)]
    fn decline<T>(&mut self) -> Result<T, Declined> {
        self.declined = true;
        Err(Declined)
    }

    /// What a visitor said; its error must not be lost on the way up.
    #[inline]
    fn noted<T>(&mut self, visited: Result<T, Declined>) -> Result<T, Declined> {
        self.declined |= visited.is_err();
        visited
    }

    #[inline]
    fn peek(&mut self) -> Result<u8, Declined> {
        match self.rest.first() {
            Some(marker) => Ok(*marker),
            None => self.decline(),
        }
    }

    #[inline]
    fn skip(&mut self) {
        self.rest = &self.rest[1..];
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'de [u8], Declined> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return self.decline();
        };
        self.rest = rest;
        Ok(taken)
    }

    /// So many bytes behind the marker, which has not been skipped.
    #[inline]
    fn behind_marker<const N: usize>(&mut self) -> Result<[u8; N], Declined> {
        match self.rest.get(1..).and_then(<[u8]>::split_first_chunk::<N>) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => self.decline(),
        }
    }

    #[inline]
    fn length<const N: usize>(&mut self) -> Result<usize, Declined> {
        let bytes = self.behind_marker::<N>()?;
        Ok(bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    /// A number, a boolean or nil: what rmp-serde takes for any type of number.
    #[inline]
    fn number<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Declined> {
        let marker = self.peek()?;
        let visited = match marker {
            0x00..=0x7f => {
                self.skip();
                visitor.visit_u8(marker)
            }
            0xe0..=0xff => {
                self.skip();
                visitor.visit_i8(marker as i8)
            }
            0xcc => visitor.visit_u8(u8::from_be_bytes(self.behind_marker()?)),
            0xcd => visitor.visit_u16(u16::from_be_bytes(self.behind_marker()?)),
            0xce => visitor.visit_u32(u32::from_be_bytes(self.behind_marker()?)),
            0xcf => visitor.visit_u64(u64::from_be_bytes(self.behind_marker()?)),
            0xd0 => visitor.visit_i8(i8::from_be_bytes(self.behind_marker()?)),
            0xd1 => visitor.visit_i16(i16::from_be_bytes(self.behind_marker()?)),
            0xd2 => visitor.visit_i32(i32::from_be_bytes(self.behind_marker()?)),
            0xd3 => visitor.visit_i64(i64::from_be_bytes(self.behind_marker()?)),
            0xca => visitor.visit_f32(f32::from_be_bytes(self.behind_marker()?)),
            0xcb => visitor.visit_f64(f64::from_be_bytes(self.behind_marker()?)),
            0xc2 | 0xc3 => {
                self.skip();
                visitor.visit_bool(marker == 0xc3)
            }
            0xc0 => {
                self.skip();
                visitor.visit_unit()
            }
            _ => return self.decline(),
        };
        self.noted(visited)
    }

    /// Any value.
    #[inline]
    fn any<V: Visitor<'de>>(&mut self, visitor: V, bytes: Bytes) -> Result<V::Value, Declined> {
        let marker = self.peek()?;
        match marker {
            0xa0..=0xbf => {
                self.skip();
                self.text(usize::from(marker & 0x1f), visitor)
            }
            0x90..=0x9f => {
                self.skip();
                self.array(usize::from(marker & 0x0f), visitor)
            }
            0x80..=0x8f => {
                self.skip();
                self.map(usize::from(marker & 0x0f), visitor)
            }
            0xc4..=0xc6 | 0xd9..=0xdf => self.long(marker, visitor, bytes),
            0xc7 => self.referred(visitor, bytes),
            _ => self.number(visitor),
        }
    }

    /// What has its length behind its marker.
    fn long<V: Visitor<'de>>(
        &mut self,
        marker: u8,
        visitor: V,
        bytes: Bytes,
    ) -> Result<V::Value, Declined> {
        let length = match marker {
            0xc4 | 0xd9 => self.length::<1>()?,
            0xc5 | 0xda | 0xdc | 0xde => self.length::<2>()?,
            _ => self.length::<4>()?,
        };
        match marker {
            0xc4..=0xc6 => self.block(length, visitor, bytes),
            0xd9..=0xdb => self.text(length, visitor),
            0xdc | 0xdd => self.array(length, visitor),
            _ => self.map(length, visitor),
        }
    }

    #[inline]
    fn text<V: Visitor<'de>>(&mut self, length: usize, visitor: V) -> Result<V::Value, Declined> {
        match str::from_utf8(self.take(length)?) {
            Ok(text) => {
                let visited = visitor.visit_borrowed_str(text);
                self.noted(visited)
            }
            Err(_) => self.decline(),
        }
    }

    fn block<V: Visitor<'de>>(
        &mut self,
        length: usize,
        visitor: V,
        bytes: Bytes,
    ) -> Result<V::Value, Declined> {
        let block = self.take(length)?;
        let visited = match bytes {
            Bytes::Numbers => visitor.visit_seq(SeqDeserializer::new(block.iter().copied())),
            Bytes::Owned if length >= travel::COPY_FROM && !self.keeps => {
                visitor.visit_byte_buf(copied(block))
            }
            _ => visitor.visit_borrowed_bytes(block),
        };
        self.noted(visited)
    }

    /// Bytes that the message refers to.
    #[cold]
    fn referred<V: Visitor<'de>>(
        &mut self,
        visitor: V,
        bytes: Bytes,
    ) -> Result<V::Value, Declined> {
        let value = self.rest.get(..travel::VALUE);
        let Some((kind, buffer)) = value.and_then(travel::received_value) else {
            return self.decline();
        };
        let copies = self.copied.saturating_add(buffer.len());
        if !travel::may_copy(copies) && !self.keeps {
            return self.decline();
        }
        travel::was_kept();
        self.rest = &self.rest[travel::VALUE..];
        let visited = match bytes {
            Bytes::Numbers => visitor.visit_seq(SeqDeserializer::new(buffer.iter().copied())),
            Bytes::Owned if self.keeps => visitor.visit_bytes(&buffer),
            Bytes::Owned => visitor.visit_byte_buf(copied(&buffer)),
            Bytes::Seen => visitor.visit_bytes(&buffer),
            // Whoever takes anything may see that a buffer is one, but that a copy was none.
            Bytes::Any if kind == travel::COPY => visitor.visit_bytes(&buffer),
            Bytes::Any => return self.decline(),
        };
        if !travel::was_kept() {
            self.copied = copies;
            if !travel::may_copy(copies) {
                return self.decline();
            }
        }
        self.noted(visited)
    }

    #[inline]
    fn array<V: Visitor<'de>>(&mut self, length: usize, visitor: V) -> Result<V::Value, Declined> {
        self.inside(length, |values| visitor.visit_seq(values))
    }

    #[inline]
    fn map<V: Visitor<'de>>(&mut self, length: usize, visitor: V) -> Result<V::Value, Declined> {
        self.inside(length.saturating_mul(2), |values| visitor.visit_map(values))
    }

    /// Has the values of an array or a map visited, all of them.
    #[inline]
    fn inside<T>(
        &mut self,
        left: usize,
        visit: impl FnOnce(&mut Values<'_, 'de>) -> Result<T, Declined>,
    ) -> Result<T, Declined> {
        // None has less than a byte. A visitor believes what it is told of their number.
        if self.depth == 0 || left > self.rest.len() {
            return self.decline();
        }
        self.depth -= 1;
        let mut values = Values { reader: self, left };
        let visited = visit(&mut values);
        let left = values.left;
        self.depth += 1;
        if left > 0 {
            return self.decline();
        }
        self.noted(visited)
    }

    /// The next value, by a seed that may forget to read it.
    #[inline]
    fn seeded<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Declined> {
        let before = self.rest.len();
        let value = seed.deserialize(&mut *self)?;
        match self.rest.len() < before {
            true => Ok(value),
            false => self.decline(),
        }
    }
}

/// The values of an array that is being read, or the keys and values of a map.
struct Values<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// How many there are still to come; an even number in front of a key.
    left: usize,
}

impl<'de> SeqAccess<'de> for &mut Values<'_, 'de> {
    type Error = Declined;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Declined> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.reader.seeded(seed).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for &mut Values<'_, 'de> {
    type Error = Declined;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Declined> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.left % 2 == 1 {
            return self.reader.decline();
        }
        self.left -= 1;
        self.reader.seeded(seed).map(Some)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Declined> {
        if self.left.is_multiple_of(2) {
            return self.reader.decline();
        }
        self.left -= 1;
        self.reader.seeded(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left / 2)
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
            self.number(visitor)
        }
    )*};
}

macro_rules! anything {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
            self.any(visitor, Bytes::Any)
        }
    )*};
}

macro_rules! declined {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Declined> {
            self.decline()
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Declined;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    numbers! {
        deserialize_bool
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_f32 deserialize_f64
    }

    anything! {
        deserialize_any deserialize_char deserialize_str deserialize_string
        deserialize_unit deserialize_map deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
        self.any(visitor, Bytes::Seen)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
        self.any(visitor, Bytes::Owned)
    }

    declined! { deserialize_i128 deserialize_u128 }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
        if self.peek()? != 0xc0 {
            // It goes on as whatever it is, with this same reader.
            return visitor.visit_some(self);
        }
        self.skip();
        let visited = visitor.visit_none();
        self.noted(visited)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Declined> {
        if !matches!(self.peek()?, 0xc0 | 0x90) {
            return self.any(visitor, Bytes::Any);
        }
        self.skip();
        let visited = visitor.visit_unit();
        self.noted(visited)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Declined> {
        // Such a name asks for an extension.
        if name.starts_with('_') {
            return self.decline();
        }
        self.keeps = name == Buffer::NAME;
        let visited = visitor.visit_newtype_struct(&mut *self);
        self.keeps = false;
        visited
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Declined> {
        self.any(visitor, Bytes::Numbers)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Declined> {
        self.any(visitor, Bytes::Numbers)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Declined> {
        self.any(visitor, Bytes::Numbers)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Declined> {
        self.any(visitor, Bytes::Numbers)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Declined> {
        let holds_something = match self.peek()? {
            0x81 => true,
            0xa0..=0xbf | 0xd9..=0xdb => false,
            _ => return self.decline(),
        };
        if holds_something {
            self.skip();
            self.open_variants += 1;
        }
        if self.depth == 0 {
            return self.decline();
        }
        self.depth -= 1;
        let visited = visitor.visit_enum(Variant {
            reader: &mut *self,
            holds_something,
        });
        self.depth += 1;
        self.noted(visited)
    }
}

/// A variant of an enum: its name, or a map of its name to what it holds.
struct Variant<'a, 'de> {
    reader: &'a mut Reader<'de>,
    holds_something: bool,
}

impl<'a, 'de> Variant<'a, 'de> {
    /// The reader in front of what it holds, if that is what is wanted.
    fn content(self, wanted: bool) -> Result<&'a mut Reader<'de>, Declined> {
        if self.holds_something != wanted {
            return self.reader.decline();
        }
        self.reader.open_variants -= usize::from(wanted);
        Ok(self.reader)
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Declined;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Declined> {
        let name = self.reader.seeded(seed)?;
        Ok((name, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Declined;

    fn unit_variant(self) -> Result<(), Declined> {
        self.content(false).map(|_| ())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Declined> {
        self.content(true)?.seeded(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Declined> {
        self.content(true)?.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Declined> {
        self.content(true)?.deserialize_tuple(fields.len(), visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};

    use super::super::scan::Scanner;
    use super::super::{Encoder, MAX_FRAME, deserialized};
    use super::first_value;

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    struct Point {
        x: i32,
        #[serde(default)]
        name: Option<String>,
    }

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    struct Wrapped(f64);

    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    struct Nothing;

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    enum Shape {
        Dot,
        Circle(Wrapped),
        Line(i64, u8),
        Named { point: Point },
        Inside(Box<Shape>),
    }

    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(i64),
        Text(String),
        Many(Vec<Untagged>),
        Pair(BTreeMap<String, Untagged>),
    }

    /// Hides the error of what is in it.
    #[derive(PartialEq, Debug)]
    struct OrDefault<T>(T);

    impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for OrDefault<T> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Ok(OrDefault(T::deserialize(deserializer).unwrap_or_default()))
        }
    }

    /// Reads the first element of an array and forgets the others, or reads nothing at all.
    #[derive(PartialEq, Debug)]
    struct Careless<const ELEMENTS: usize>(Vec<u64>);

    impl<'de, const ELEMENTS: usize> Deserialize<'de> for Careless<ELEMENTS> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct First<const ELEMENTS: usize>;

            impl<'de, const ELEMENTS: usize> serde::de::Visitor<'de> for First<ELEMENTS> {
                type Value = Vec<u64>;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an array")
                }

                fn visit_seq<A: serde::de::SeqAccess<'de>>(
                    self,
                    mut values: A,
                ) -> Result<Vec<u64>, A::Error> {
                    let first = (0..ELEMENTS).map(|_| values.next_element());
                    first.filter_map(Result::transpose).collect()
                }
            }

            match ELEMENTS {
                0 => Ok(Careless(Vec::new())),
                _ => deserializer
                    .deserialize_seq(First::<ELEMENTS>)
                    .map(Careless),
            }
        }
    }

    /// Whatever it gives, rmp-serde gives too, and it has read one value.
    fn agrees<T: DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
        let Some((value, rest)) = first_value::<T>(bytes) else {
            return false;
        };
        let mut scanner = Scanner::new(bytes);
        let whole = scanner.value().expect("a value");
        assert_eq!(rest, scanner.rest(), "it has read one value: {whole:x?}");
        // Compared as text, in which one NaN is another.
        let theirs: T = deserialized(whole).expect("rmp-serde reads it too");
        assert_eq!(format!("{value:?}"), format!("{theirs:?}"));
        true
    }

    fn agrees_as_all_types(bytes: &[u8]) {
        agrees::<i8>(bytes);
        agrees::<u16>(bytes);
        agrees::<i64>(bytes);
        agrees::<u64>(bytes);
        agrees::<u128>(bytes);
        agrees::<f32>(bytes);
        agrees::<bool>(bytes);
        agrees::<char>(bytes);
        agrees::<()>(bytes);
        agrees::<String>(bytes);
        agrees::<Vec<u8>>(bytes);
        agrees::<serde::de::IgnoredAny>(bytes);
        agrees::<Nothing>(bytes);
        agrees::<Wrapped>(bytes);
        agrees::<Option<i32>>(bytes);
        agrees::<(i32, Option<String>)>(bytes);
        agrees::<Vec<Option<Vec<u8>>>>(bytes);
        agrees::<[u8; 2]>(bytes);
        agrees::<BTreeMap<String, i64>>(bytes);
        agrees::<Point>(bytes);
        agrees::<Shape>(bytes);
        agrees::<Vec<Shape>>(bytes);
        agrees::<Untagged>(bytes);
        agrees::<OrDefault<i64>>(bytes);
        agrees::<Vec<OrDefault<(i8, String)>>>(bytes);
        agrees::<Careless<0>>(bytes);
        agrees::<Vec<Careless<0>>>(bytes);
        agrees::<Vec<Careless<1>>>(bytes);
        agrees::<(u8, Careless<1>, u8)>(bytes);
        agrees::<BTreeMap<String, Careless<2>>>(bytes);
        agrees::<crate::Buffer>(bytes);
    }

    fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
        let mut encoder = Encoder::new(MAX_FRAME);
        encoder.value(value).unwrap();
        encoder.into_bytes()
    }

    fn shape() -> impl Strategy<Value = Shape> {
        let point = (any::<i32>(), any::<Option<String>>()).prop_map(|(x, name)| Point { x, name });
        let leaf = prop_oneof![
            Just(Shape::Dot),
            any::<f64>().prop_map(|r| Shape::Circle(Wrapped(r))),
            any::<(i64, u8)>().prop_map(|(a, b)| Shape::Line(a, b)),
            point.prop_map(|point| Shape::Named { point }),
        ];
        leaf.prop_recursive(8, 8, 1, |inner| {
            inner.prop_map(|shape| Shape::Inside(Box::new(shape)))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn usual_values_are_read(
            numbers in any::<(i8, i16, i32, i64, u8, u16, u32, u64)>(),
            floats in any::<(f32, f64, bool, Option<u32>)>(),
            texts in any::<(String, char, Vec<String>, BTreeMap<String, Option<i64>>)>(),
            shape in shape(),
        ) {
            prop_assert!(agrees::<(i8, i16, i32, i64, u8, u16, u32, u64)>(&encoded(&numbers)));
            prop_assert!(agrees::<(f32, f64, bool, Option<u32>)>(&encoded(&floats)));
            prop_assert!(agrees::<(String, char, Vec<String>, BTreeMap<String, Option<i64>>)>(&encoded(&texts)));
            prop_assert!(agrees::<Shape>(&encoded(&shape)));
            prop_assert!(agrees::<serde::de::IgnoredAny>(&encoded(&shape)));
            agrees_as_all_types(&encoded(&numbers));
            agrees_as_all_types(&encoded(&texts));
            agrees_as_all_types(&encoded(&shape));
        }

        #[test]
        fn whatever_is_read_is_what_rmp_serde_reads(bytes: Vec<u8>) {
            agrees_as_all_types(&bytes);
        }

        #[test]
        fn the_same_of_bytes_that_are_mostly_arrays_and_small_numbers(
            bytes in proptest::collection::vec(
                prop_oneof![0u8..4, 0x80u8..0x84, 0x90u8..0x94, 0xa0u8..0xa3, 0xc0u8..0xe1],
                1..24,
            ),
        ) {
            agrees_as_all_types(&bytes);
        }
    }

    #[test]
    fn what_is_cut_short_is_left_to_the_other() {
        let whole = encoded(&(i64::MIN, "text", 1.5, vec![Some(1u16), None]));
        for length in 0..whole.len() {
            let cut = &whole[..length];
            assert!(first_value::<(i64, String, f64, Vec<Option<u16>>)>(cut).is_none());
        }
    }

    #[test]
    fn what_nests_too_deep_is_left_to_the_other() {
        let mut maps = b"\x81\xa6Inside".repeat(1_000_000);
        maps.extend(b"\xa3Dot");
        assert!(first_value::<Shape>(&maps).is_none());
        let arrays = vec![0x91; 1_000_000];
        assert!(first_value::<serde::de::IgnoredAny>(&arrays).is_none());
    }
}

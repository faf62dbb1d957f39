//! Walks over MessagePack without making anything of it: what a frame claims is checked before any of it is used.
//!
//! A value is well-formed when every length it claims is there, no marker is the reserved one, and nothing nests
//! deeper than [`MAX_DEPTH`](super::MAX_DEPTH). The walk keeps counters and no buffer, so hostile bytes cost time in
//! proportion to their number and no memory at all.

use super::{MAX_DEPTH, ProtocolError};
use crate::buffer::travel::{CONTENT, COPY, EXTENSION, Reference};

/// A place in a frame's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scanner<'a> {
    rest: &'a [u8],
    /// How many references to buffers it has passed.
    references: u32,
}

/// What one marker announces.
enum Head {
    /// So many bytes that belong to the value.
    Bytes(usize),
    /// So many values that belong to it.
    Values(u64),
}

/// How many bytes the plain values have whose length is in their marker, by that; 0 for all others.
const SPANS: [u8; 256] = {
    let mut spans = [0; 256];
    let mut marker = 0;
    while marker < 256 {
        spans[marker] = match marker as u8 {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 1,
            string @ 0xa0..=0xbf => 1 + (string & 0x1f),
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 => 3,
            0xca | 0xce | 0xd2 => 5,
            0xcb | 0xcf | 0xd3 => 9,
            _ => 0,
        };
        marker += 1;
    }
    spans
};

impl<'a> Scanner<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Scanner<'a> {
        Scanner {
            rest: bytes,
            references: 0,
        }
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether it has passed a reference to a buffer.
    pub(crate) fn has_references(&self) -> bool {
        self.references > 0
    }

    /// The bytes of the next value.
    pub(crate) fn value(&mut self) -> Result<&'a [u8], ProtocolError> {
        let start = self.rest;
        match self.head()? {
            Head::Bytes(length) => {
                self.take(length)?;
            }
            Head::Values(0) => {}
            Head::Values(values) => self.values(values)?,
        }
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// Passes over the values of an array or a map. Apart, since most values are neither, and the counters are four
    /// kilobytes to be zeroed.
    #[inline(never)]
    fn values(&mut self, values: u64) -> Result<(), ProtocolError> {
        let left = self.plain_values(values);
        if left == 0 {
            return Ok(());
        }
        // How many values each open array or map still needs, the innermost last.
        let mut open = [0u64; MAX_DEPTH];
        open[0] = left;
        let mut depth = 1;
        loop {
            match self.head()? {
                Head::Bytes(length) => {
                    self.take(length)?;
                    open[depth - 1] -= 1;
                }
                Head::Values(_) if depth == MAX_DEPTH => {
                    let sentence = format!("nested deeper than {MAX_DEPTH}");
                    return Err(ProtocolError::new(sentence));
                }
                Head::Values(values) => {
                    open[depth] = values;
                    depth += 1;
                }
            }
            loop {
                open[depth - 1] = self.plain_values(open[depth - 1]);
                if open[depth - 1] > 0 {
                    break;
                }
                depth -= 1;
                if depth == 0 {
                    return Ok(());
                }
                open[depth - 1] -= 1;
            }
        }
    }

    /// Passes over the plain values that come next, of as many values as there are; gives the number of the others.
    ///
    /// Most arrays have values of one length: then the place of the next does not depend on what is read, and the
    /// processor looks at several at once.
    #[inline]
    fn plain_values(&mut self, mut left: u64) -> u64 {
        let mut rest = self.rest;
        while left > 0 {
            let Some(span) = rest.first().map(|marker| SPANS[usize::from(*marker)]) else {
                break;
            };
            let length = usize::from(span);
            if span == 0 || rest.len() < length {
                break;
            }
            while left > 0 && rest.len() >= length && SPANS[usize::from(rest[0])] == span {
                rest = &rest[length..];
                left -= 1;
            }
        }
        self.rest = rest;
        left
    }

    /// The length of an array.
    pub(crate) fn array(&mut self) -> Result<usize, ProtocolError> {
        match self.byte()? {
            marker @ 0x90..=0x9f => Ok(usize::from(marker & 0x0f)),
            0xdc => self.length::<2>(),
            0xdd => self.length::<4>(),
            marker => Err(unexpected("an array", marker)),
        }
    }

    /// Whether a map comes next.
    pub(crate) fn is_map(&self) -> bool {
        matches!(self.rest, [0x80..=0x8f | 0xde | 0xdf, ..])
    }

    /// How many members a map has.
    pub(crate) fn map(&mut self) -> Result<usize, ProtocolError> {
        match self.byte()? {
            marker @ 0x80..=0x8f => Ok(usize::from(marker & 0x0f)),
            0xde => self.length::<2>(),
            0xdf => self.length::<4>(),
            marker => Err(unexpected("a map", marker)),
        }
    }

    /// A string.
    pub(crate) fn text(&mut self) -> Result<&'a str, ProtocolError> {
        let length = match self.byte()? {
            marker @ 0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9 => self.length::<1>()?,
            0xda => self.length::<2>()?,
            0xdb => self.length::<4>()?,
            marker => return Err(unexpected("a string", marker)),
        };
        let bytes = self.take(length)?;
        str::from_utf8(bytes).map_err(|_| ProtocolError::new("a name that is not UTF-8"))
    }

    /// An integer that is not negative.
    pub(crate) fn unsigned(&mut self) -> Result<u64, ProtocolError> {
        match self.byte()? {
            marker @ 0x00..=0x7f => Ok(marker.into()),
            0xcc => self.length::<1>().map(|n| n as u64),
            0xcd => self.length::<2>().map(|n| n as u64),
            0xce => self.length::<4>().map(|n| n as u64),
            0xcf => {
                let mut wide = [0; 8];
                wide.copy_from_slice(self.take(8)?);
                Ok(u64::from_be_bytes(wide))
            }
            marker => Err(unexpected("an unsigned integer", marker)),
        }
    }

    /// Takes a nil, if that is what comes next.
    pub(crate) fn nil(&mut self) -> bool {
        match self.rest {
            [0xc0, rest @ ..] => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(ProtocolError::new(format!(
                "{extra} bytes after the message in one frame"
            ))),
        }
    }

    #[inline]
    fn head(&mut self) -> Result<Head, ProtocolError> {
        Ok(match self.byte()? {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => Head::Bytes(0),
            marker @ 0x80..=0x8f => Head::Values(2 * u64::from(marker & 0x0f)),
            marker @ 0x90..=0x9f => Head::Values(u64::from(marker & 0x0f)),
            marker @ 0xa0..=0xbf => Head::Bytes(usize::from(marker & 0x1f)),
            0xc1 => {
                return Err(ProtocolError::new(
                    "the marker c1, which MessagePack does not use",
                ));
            }
            0xc4 | 0xd9 => Head::Bytes(self.length::<1>()?),
            0xc5 | 0xda => Head::Bytes(self.length::<2>()?),
            0xc6 | 0xdb => Head::Bytes(self.length::<4>()?),
            // Extension types: one byte of type, then the data.
            0xc7 => {
                let length = self.length::<1>()?;
                let is_reference =
                    length == CONTENT && matches!(self.rest.first(), Some(&(EXTENSION | COPY)));
                self.references += u32::from(is_reference);
                Head::Bytes(length + 1)
            }
            0xc8 => Head::Bytes(self.length::<2>()?.saturating_add(1)),
            0xc9 => Head::Bytes(self.length::<4>()?.saturating_add(1)),
            marker @ 0xd4..=0xd8 => Head::Bytes(1 + (1 << (marker - 0xd4))),
            0xcc | 0xd0 => Head::Bytes(1),
            0xcd | 0xd1 => Head::Bytes(2),
            0xca | 0xce | 0xd2 => Head::Bytes(4),
            0xcb | 0xcf | 0xd3 => Head::Bytes(8),
            0xdc => Head::Values(self.length::<2>()? as u64),
            0xdd => Head::Values(self.length::<4>()? as u64),
            0xde => Head::Values(2 * self.length::<2>()? as u64),
            0xdf => Head::Values(2 * self.length::<4>()? as u64),
        })
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, ProtocolError> {
        Ok(self.take(1)?[0])
    }

    /// A big-endian number of `N` bytes, four at the most.
    fn length<const N: usize>(&mut self) -> Result<usize, ProtocolError> {
        let bytes = self.take(N)?;
        Ok(bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtocolError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(too_short(length, self.rest.len()));
        };
        self.rest = rest;
        Ok(taken)
    }
}

/// The references to buffers in a value that was found well-formed, each with its place.
pub(crate) fn references_in(value: &[u8]) -> impl Iterator<Item = (usize, Reference)> {
    let mut scanner = Scanner::new(value);
    // What is inside of an array or a map follows it, so that it does not matter here how they nest.
    std::iter::from_fn(move || {
        while !scanner.rest.is_empty() {
            let (start, passed) = (scanner.rest, scanner.references);
            if let Head::Bytes(length) = scanner.head().ok()? {
                let content = scanner.take(length).ok()?;
                if scanner.references > passed {
                    let reference = Reference::parse(&content[1..])?;
                    return Some((value.len() - start.len(), reference));
                }
            }
        }
        None
    })
}

#[cold]
fn too_short(length: usize, there: usize) -> ProtocolError {
    ProtocolError::new(format!("a length of {length} where {there} bytes are left"))
}

#[cold]
fn unexpected(wanted: &str, marker: u8) -> ProtocolError {
    ProtocolError::new(format!(
        "{wanted} was due, and the marker {marker:02x} came"
    ))
}

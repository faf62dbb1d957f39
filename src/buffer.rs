//! Bytes in large numbers, to be shared: what a job is given, or gives back, without their being copied into messages.
//!
//! A [`Buffer`] is a part of some memory that does not change any more, and a clone of it is the same memory. Where that
//! lies is its own affair: on the heap, in an arena of this process (`arena`), or in one of a host or worker, in which it is
//! read in place. To serde it is a byte string. Only this crate's own encoder sees more in it, and writes a reference instead
//! of the bytes (`travel`); which descriptors have to go where for that is told in `packet`.

pub(crate) mod arena;
pub(crate) mod packet;
pub(crate) mod travel;

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Bound, Deref, RangeBounds};
use std::sync::{Arc, OnceLock};

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::hook::memory::View;
use arena::{Lease, SHARE_FROM};
use travel::{Element, Reference};

/// Bytes that are shared and do not change: the fast way for large arguments and results of tasks, alone or anywhere in a
/// value.
///
/// Of 64 KiB and more ([`Builder::shared_buffers`](crate::Builder::shared_buffers)) only a reference travels. The bytes lie in
/// memory that host and worker both have mapped: a worker reads them in place, and cannot write to them; what a worker
/// gives back is copied once, or not at all in a pool whose workers are [trusted](crate::Builder::trust_workers). There is
/// no limit to its length but memory. Where the system has no such memory to give, the bytes travel in the message, as
/// shorter ones do.
///
/// A clone is the same memory. One that goes to many jobs is sent to each worker once.
///
/// ```no_run
/// use errback::{Buffer, Pool};
///
/// #[errback::task]
/// fn inverted(picture: Buffer) -> Buffer {
///     Buffer::with_len(picture.len(), |bytes| {
///         for (to, from) in bytes.iter_mut().zip(&picture[..]) {
///             *to = !from;
///         }
///     })
/// }
///
/// let pool = Pool::new()?;
/// let picture = Buffer::with_len(64 << 20, |bytes| bytes.fill(7));
/// let negative = pool.apply_async(inverted, (picture,)).get()?;
/// assert_eq!(negative[0], !7);
/// # Ok::<(), errback::Failure>(())
/// ```
///
/// To serde it is a byte string, as `serde_bytes` writes it, in any format.
///
/// # What a worker can see
/// The memory of a large one, or of another long byte string, is kept when that is gone, and used for the next. A worker that
/// was shown it can go on reading there. Workers that must not see each other's data, because one of them may be taken over by what it decodes, belong into
/// a pool with [`shared_buffers(None)`](crate::Builder::shared_buffers).
///
/// # Forks
/// A process that this one forks has its buffers and may read them. What was just being filled at the fork is not to be
/// filled on there.
#[derive(Clone)]
pub struct Buffer {
    held: Held,
    start: usize,
    length: usize,
}

/// Where the bytes are.
#[derive(Clone)]
enum Held {
    Heap(Arc<Heap>),
    Own(Arc<Lease>),
    Foreign(Arc<Foreign>),
}

struct Heap {
    bytes: Vec<u8>,
    /// The same in an arena, once they have been sent.
    sent: OnceLock<Arc<Lease>>,
}

/// Another process's memory, which is told when nobody reads it any more.
pub(crate) struct Foreign {
    view: Arc<View>,
    gone: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Foreign {
    pub(crate) fn new(view: Arc<View>, gone: Option<Box<dyn FnOnce() + Send + Sync>>) -> Foreign {
        Foreign { view, gone }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(gone) = self.gone.take() {
            gone();
        }
    }
}

impl Buffer {
    /// By what our own reader knows that a buffer is wanted.
    pub(crate) const NAME: &'static str = "Buffer";

    /// None.
    ///
    /// ```
    /// assert!(errback::Buffer::new().is_empty());
    /// ```
    pub fn new() -> Buffer {
        Vec::new().into()
    }

    /// So many bytes, filled in place.
    ///
    /// What is in them before, zeros or older bytes of this process's buffers, is not promised.
    ///
    /// ```
    /// use errback::Buffer;
    ///
    /// let squares = Buffer::with_len(4, |bytes| {
    ///     for (n, byte) in (0..).zip(bytes) {
    ///         *byte = n * n;
    ///     }
    /// });
    /// assert_eq!(squares[..], [0, 1, 4, 9]);
    /// ```
    ///
    /// # Panics
    /// When `fill` does, or there is no such amount of memory.
    pub fn with_len(length: usize, fill: impl FnOnce(&mut [u8])) -> Buffer {
        let filled = Buffer::try_with_len(length, |bytes| {
            fill(bytes);
            Ok::<_, std::convert::Infallible>(())
        });
        filled.unwrap_or_else(|never| match never {})
    }

    /// As [`with_len`](Buffer::with_len), from something that can fail.
    ///
    /// ```no_run
    /// use std::{fs::File, io::Read};
    /// use errback::Buffer;
    ///
    /// let mut file = File::open("picture.raw")?;
    /// let length = file.metadata()?.len() as usize;
    /// let picture = Buffer::try_with_len(length, |bytes| file.read_exact(bytes))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// That of `fill`.
    pub fn try_with_len<E>(
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Buffer, E> {
        if length >= SHARE_FROM
            && let Some(mut lease) = arena::lease(length)
        {
            fill(&mut lease.bytes_mut()[..length])?;
            return Ok(Buffer::leased(Arc::new(lease), 0, length));
        }
        let mut bytes = vec![0; length];
        fill(&mut bytes)?;
        Ok(bytes.into())
    }

    /// A part of it, in the same memory.
    ///
    /// ```
    /// let word = errback::Buffer::from(&b"errback"[..]).slice(3..);
    /// assert_eq!(word[..], *b"back");
    /// ```
    ///
    /// # Panics
    /// Where a slice would: the range is backwards, or ends behind the end.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Buffer {
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => at
                .checked_add(1)
                .expect("a range that begins in the buffer"),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => at.checked_add(1).expect("a range that ends in the buffer"),
            Bound::Excluded(at) => *at,
            Bound::Unbounded => self.length,
        };
        let length = self[start..end].len();
        Buffer {
            held: self.held.clone(),
            start: self.start + start,
            length,
        }
    }

    /// Lets go of the memory that is kept for large buffers to come, of which this process, and each of its workers for
    /// itself, keeps up to 256 MiB.
    pub fn trim() {
        arena::trim();
    }

    pub(crate) fn leased(lease: Arc<Lease>, start: usize, length: usize) -> Buffer {
        Buffer {
            held: Held::Own(lease),
            start,
            length,
        }
    }

    /// A part of another process's memory, if it is there.
    pub(crate) fn foreign(foreign: Arc<Foreign>, start: usize, length: usize) -> Option<Buffer> {
        let end = start.checked_add(length)?;
        (end <= foreign.view.len()).then_some(Buffer {
            held: Held::Foreign(foreign),
            start,
            length,
        })
    }

    /// The bytes in an arena, and where they begin there; they are copied there if they lie elsewhere. `None`: there is none
    /// to be had.
    pub(crate) fn in_arena(&self) -> Option<(Arc<Lease>, usize)> {
        match &self.held {
            Held::Own(lease) => Some((Arc::clone(lease), self.start)),
            Held::Heap(heap) if self.length == heap.bytes.len() => {
                if let Some(lease) = heap.sent.get() {
                    return Some((Arc::clone(lease), 0));
                }
                let lease = copied(self)?;
                Some((Arc::clone(heap.sent.get_or_init(|| lease)), 0))
            }
            _ => Some((copied(self)?, 0)),
        }
    }
}

fn copied(bytes: &[u8]) -> Option<Arc<Lease>> {
    let mut lease = arena::lease(bytes.len())?;
    lease.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    Some(Arc::new(lease))
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = match &self.held {
            Held::Heap(heap) => &heap.bytes,
            Held::Own(lease) => lease.bytes(),
            Held::Foreign(foreign) => foreign.view.bytes(),
        };
        &all[self.start..self.start + self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for Buffer {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer::new()
    }
}

/// The vector itself; nothing is copied before it is sent.
impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        let length = bytes.len();
        let sent = OnceLock::new();
        Buffer {
            held: Held::Heap(Arc::new(Heap { bytes, sent })),
            start: 0,
            length,
        }
    }
}

/// A copy.
impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Buffer {
        if bytes.len() < SHARE_FROM {
            return bytes.to_vec().into();
        }
        Buffer::with_len(bytes.len(), |copy| copy.copy_from_slice(bytes))
    }
}

impl FromIterator<u8> for Buffer {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> Buffer {
        Vec::from_iter(bytes).into()
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Buffer) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl PartialEq<[u8]> for Buffer {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl PartialEq<Vec<u8>> for Buffer {
    fn eq(&self, other: &Vec<u8>) -> bool {
        **self == **other
    }
}

impl PartialOrd for Buffer {
    fn partial_cmp(&self, other: &Buffer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Buffer {
    fn cmp(&self, other: &Buffer) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Buffer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Buffer {
    /// Not all of it: it may be long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let shown = &self[..self.length.min(SHOWN)];
        write!(
            f,
            "Buffer({} bytes: \"{}\"",
            self.length,
            shown.escape_ascii()
        )?;
        f.write_str(if self.length > SHOWN { "…)" } else { ")" })
    }
}

impl Serialize for Buffer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        travel::offering(self, || serializer.serialize_bytes(self))
    }
}

impl<'de> Deserialize<'de> for Buffer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Buffer, D::Error> {
        // A newtype, which most formats do not write: an extension value that serde has put aside (for an untagged enum,
        // say) is one, and is not let out as bytes.
        deserializer.deserialize_newtype_struct(Buffer::NAME, Bytes)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Buffer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Buffer, D::Error> {
        inner.deserialize_byte_buf(Bytes)
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Buffer, E> {
        Ok(travel::received_at(bytes).unwrap_or_else(|| bytes.into()))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Buffer, E> {
        Ok(bytes.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Buffer, E> {
        Ok(text.as_bytes().into())
    }

    /// An array of numbers, from formats without byte strings; or a reference: the number of its type, and its content.
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Buffer, A::Error> {
        const TRUSTED: usize = 4096;
        let room = elements.size_hint().unwrap_or(0).min(TRUSTED);
        let mut bytes = Vec::with_capacity(room);
        while let Some(element) = elements.next_element()? {
            match element {
                Element::Byte(byte) => bytes.push(byte),
                Element::Content(reference)
                    if bytes == [travel::EXTENSION] || bytes == [travel::COPY] =>
                {
                    return referred(&reference).ok_or_else(|| {
                        A::Error::custom("a reference to a buffer that was not sent")
                    });
                }
                Element::Content(_) => return Err(A::Error::custom("bytes in an array of bytes")),
            }
        }
        Ok(bytes.into())
    }
}

fn referred(content: &[u8]) -> Option<Buffer> {
    travel::received(Reference::parse(content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(length: usize) -> Buffer {
        Buffer::with_len(length, |bytes| {
            for (n, byte) in bytes.iter_mut().enumerate() {
                *byte = n as u8;
            }
        })
    }

    #[test]
    fn a_buffer_is_what_it_was_filled_with_wherever_it_lies() {
        for length in [0, 1, SHARE_FROM - 1, SHARE_FROM, 3 * SHARE_FROM + 1] {
            let buffer = numbers(length);
            let expected: Vec<u8> = (0..length).map(|n| n as u8).collect();
            assert_eq!(buffer, expected);
            assert_eq!(Buffer::from(expected.clone()), buffer);
            assert_eq!(Buffer::from(&expected[..]), buffer);
            assert_eq!(matches!(buffer.held, Held::Own(_)), length >= SHARE_FROM);
        }
    }

    #[test]
    fn memory_that_somebody_still_reads_is_not_filled_again() {
        let first = numbers(SHARE_FROM);
        let part = first.slice(5..7);
        drop(first);
        let others: Vec<_> = (0..4)
            .map(|_| Buffer::with_len(SHARE_FROM, |bytes| bytes.fill(99)))
            .collect();
        assert_eq!(part[..], [5, 6]);
        drop(others);
    }

    #[test]
    fn a_filling_that_fails_gives_its_error() {
        let error = Buffer::try_with_len(SHARE_FROM, |_| Err("no")).expect_err("it fails");
        assert_eq!(error, "no");
    }

    #[test]
    fn what_lies_on_the_heap_is_copied_once_for_all_its_clones() {
        let buffer = Buffer::from(vec![7; SHARE_FROM]);
        let numbers =
            [buffer.clone(), buffer].map(|it| it.in_arena().expect("an arena").0.number());
        assert_eq!(numbers[0], numbers[1]);
    }

    #[test]
    fn it_is_bytes_in_other_formats() {
        let buffer = numbers(4);
        let json = serde_json::to_string(&buffer).expect("JSON");
        assert_eq!(json, "[0,1,2,3]");
        assert_eq!(
            serde_json::from_str::<Buffer>(&json).expect("bytes"),
            buffer
        );
        let packed = rmp_serde::to_vec(&buffer).expect("MessagePack");
        assert_eq!(packed, [0xc4, 4, 0, 1, 2, 3]);
        assert_eq!(
            rmp_serde::from_slice::<Buffer>(&packed).expect("bytes"),
            buffer
        );
        serde_json::from_str::<Buffer>("[0, 256]").expect_err("no byte");
    }

    #[test]
    fn a_debug_print_of_a_long_one_is_short() {
        let text = format!("{:?}", Buffer::from(vec![b'a'; 1 << 20]));
        assert_eq!(text, "Buffer(1048576 bytes: \"aaaaaaaaaaaaaaaa\"…)");
    }
}

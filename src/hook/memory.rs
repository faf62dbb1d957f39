//! Memory that a host and a worker share: a memfd that both have mapped.
//!
//! Whoever has the other end of a [`Mapping`] may write to it at any moment, and is a stranger. So there is no reference
//! to its bytes: numbers are atomics, and bytes are copied, out of it before they are looked at. The size is sealed before
//! anything is mapped, so that nobody can take pages away under a reader, who would die of SIGBUS.
//!
//! Large buffers are to be read where they lie. For them there are two more types, whose bytes can be borrowed: [`Owned`],
//! which only this process can write to, by a seal; and [`View`], another process's `Owned` as seen from here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::Resource;

/// Whether this process may write to what it maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A shared file of memory, with all of its pages and of a size that is final.
pub(crate) fn memfd(name: &str, length: usize) -> io::Result<OwnedFd> {
    let files_may_have = rustix::process::getrlimit(Resource::Fsize).current;
    if files_may_have.is_some_and(|bytes| bytes < length as u64) {
        // The kernel would send SIGXFSZ, which ends the process.
        return Err(Errno::FBIG.into());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create(name, flags)?;
    allocate(memfd.as_fd(), length as u64)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(memfd)
}

/// The size of somebody's memfd, if it is one whose size is final.
pub(crate) fn sealed_length(memfd: BorrowedFd<'_>) -> io::Result<usize> {
    let fixed = SealFlags::SHRINK | SealFlags::GROW;
    if !rustix::fs::fcntl_get_seals(memfd)?.contains(fixed) {
        let sentence = "shared memory whose size may change";
        return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
    }
    let length = rustix::fs::fstat(memfd)?.st_size;
    usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The seals of an [`Owned`]: its size is final, and nobody can write to it but through the mapping that there is.
const OWNED: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE);

/// So much of a memfd is made at once. A signal cuts the call short and takes back what it has made, and a storm of them
/// would never let a larger piece come to its end.
const PIECE: u64 = 256 * 1024;

/// Shared memory that this process alone can write to, and others may read: a memfd that is sealed against all writing
/// but through the one mapping that it has here.
///
/// Its pages are there from the beginning, so that no access to it fails later, in no process.
#[derive(Debug)]
pub(crate) struct Owned {
    memfd: OwnedFd,
    mapping: Mapping,
}

impl Owned {
    /// # Errors
    /// The system gives no memfd, no memory for it, or does not know the seal (Linux before 5.1).
    pub(crate) fn new(name: &str, length: usize) -> io::Result<Owned> {
        let memfd = memfd(name, length)?;
        let mapping = Mapping::whole(memfd.as_fd(), Access::Write)?;
        rustix::fs::fcntl_add_seals(&memfd, OWNED | SealFlags::SEAL)?;
        Ok(Owned { memfd, mapping })
    }

    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is the whole mapping, which outlives the borrow, and all of it has a value, as a memfd begins
        // with zeros. Nobody writes to it meanwhile: in this process that takes a `&mut self`, and no other mapping or
        // descriptor can, in this process or another, since the seal. (A process that this one forks has the mapping too; it
        // writes only to what it was filling at that moment, and what others were reading is never filled again: see
        // `buffer::arena`.)
        unsafe { std::slice::from_raw_parts(self.mapping.start.as_ptr(), self.mapping.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and there is no other borrow here. Other processes may have it mapped and read what is not
        // finished; that is no access of this program's.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.as_ptr(), self.mapping.length) }
    }
}

/// Makes a memfd so long, with all of its pages.
fn allocate(memfd: BorrowedFd<'_>, length: u64) -> io::Result<()> {
    const TRIES: u32 = 1000;
    let mut start = 0;
    while start < length {
        let piece = PIECE.min(length - start);
        let mut tries = 0;
        loop {
            match rustix::fs::fallocate(memfd, FallocateFlags::empty(), start, piece) {
                Err(Errno::INTR) if tries < TRIES => tries += 1,
                other => break other?,
            }
        }
        start += piece;
    }
    Ok(())
}

/// Another process's [`Owned`], to be read.
///
/// Its maker may be a stranger who writes to it, but nobody can take a page away that is there: so [`copy`](View::copy) is
/// for any. To read it in place one has to trust its maker, as a worker does its host, and a host the workers that it was
/// told to trust. What it shows then does not change as long as that one keeps to the protocol: it says what it has given
/// away, and is told when nobody reads it any more.
#[derive(Debug)]
pub(crate) struct View {
    mapping: Mapping,
}

impl View {
    /// # Errors
    /// It has not the seals of an [`Owned`] or not all of its pages, or there is no room to map it.
    pub(crate) fn new(memfd: BorrowedFd<'_>) -> io::Result<View> {
        owned_length(memfd)?;
        let mapping = Mapping::whole(memfd, Access::Read)?;
        Ok(View { mapping })
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Copies the bytes from `offset`, whatever its maker may be doing.
    ///
    /// # Panics
    /// If they do not lie in it.
    pub(crate) fn copy(&self, offset: usize, into: &mut [u8]) {
        assert!(self.mapping.has(offset, into.len()));
        // SAFETY: the range lies in the mapping, whose pages are there, and `into` is memory of Rust's own of the same
        // length. If others write meanwhile, it gets some bytes or other, which is all that is promised.
        unsafe {
            let from = self.mapping.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is the whole mapping, which outlives the borrow. Its pages are there. Only its maker can write to it, by the seal that `new` has seen, and an honest one does not
        // as long as this is read.
        unsafe { std::slice::from_raw_parts(self.mapping.start.as_ptr(), self.mapping.length) }
    }
}

/// An empty vector with room for so many bytes, in huge pages where the system has them: the first touch of a page costs
/// more than the bytes in it, and a huge one is touched once for 512 others.
pub(crate) fn roomy_vector(length: usize) -> Vec<u8> {
    const LARGE: usize = 4 << 20;
    const HUGE_PAGE: usize = 2 << 20;
    let vector: Vec<u8> = Vec::with_capacity(length);
    let start = vector.as_ptr().addr();
    let first = start.next_multiple_of(HUGE_PAGE);
    let end = (start + vector.capacity()) / HUGE_PAGE * HUGE_PAGE;
    if length >= LARGE && first < end {
        // SAFETY: the range is part of the vector's own allocation. The advice changes no byte of it and no right to it, and
        // what it does to the allocator's later use of the range is a matter of speed.
        let _ = unsafe {
            let at = vector.as_ptr().add(first - start).cast_mut().cast();
            rustix::mm::madvise(at, end - first, Advice::LinuxHugepage)
        };
    }
    vector
}

/// The length of somebody's memfd, if that has the seals of an [`Owned`] and all of its pages: nobody can take one away.
pub(crate) fn owned_length(memfd: BorrowedFd<'_>) -> io::Result<usize> {
    const BLOCK: u64 = 512;
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let seals = rustix::fs::fcntl_get_seals(memfd)?;
    if !seals.contains(OWNED) {
        return Err(refused(
            "shared memory that others may write to, or change the size of",
        ));
    }
    // In this order: what is there when it has been sealed stays.
    let stat = rustix::fs::fstat(memfd)?;
    let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    let there = u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(BLOCK);
    if there < length {
        return Err(refused("shared memory that is not all there"));
    }
    usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A mapping of a whole memfd, which lasts as long as this value.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
    access: Access,
}

// SAFETY: it is an address and two numbers; what lies there is reached as atomics and by copies of bytes only, for which
// it does not matter which thread asks.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a memfd whose size is final, page by page as they are touched.
    pub(crate) fn new(memfd: BorrowedFd<'_>, access: Access) -> io::Result<Mapping> {
        Mapping::with(memfd, access, MapFlags::empty())
    }

    /// Maps all of its pages at once: for what will be read or written as a whole. One call is cheaper than a fault for each.
    pub(crate) fn whole(memfd: BorrowedFd<'_>, access: Access) -> io::Result<Mapping> {
        Mapping::with(memfd, access, MapFlags::POPULATE)
    }

    fn with(memfd: BorrowedFd<'_>, access: Access, flags: MapFlags) -> io::Result<Mapping> {
        let length = sealed_length(memfd)?;
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | flags;
        // SAFETY: the kernel chooses the address, so no memory that is in use is touched.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, memfd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping {
            start,
            length,
            access,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The number at `offset`, which is a multiple of eight.
    ///
    /// # Panics
    /// If it does not lie in the mapping, or cannot be written to: an atomic may be, even where it is only read.
    pub(crate) fn number(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= self.length)
        );
        // SAFETY: eight bytes from `offset` lie in the mapping, which outlives the borrow, and are aligned, as the mapping
        // begins with a page. Every bit pattern is a number. Other processes change it as an atomic or not at all; one that
        // tears it gives a number all the same. Loads are allowed on pages that are read-only; no writer is given those.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// Copies bytes to `offset`.
    ///
    /// # Panics
    /// If they do not fit, or the mapping is only read.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(self.access == Access::Write && self.has(offset, bytes.len()));
        // SAFETY: the range lies in the mapping, which may be written to, and overlaps nothing of Rust's. Another process
        // that reads or writes it meanwhile gets, or leaves, some bytes or other, which is all that is promised.
        unsafe {
            let to = self.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Copies `length` bytes from `offset` to the end of `into`.
    ///
    /// # Panics
    /// If they do not lie in the mapping.
    pub(crate) fn append_to(&self, into: &mut Vec<u8>, offset: usize, length: usize) {
        assert!(self.has(offset, length));
        into.reserve(length);
        // SAFETY: the range lies in the mapping, and behind the end of `into` is as much memory of Rust's own, all of which
        // has a value afterwards. See `copy_in` for what others may do meanwhile.
        unsafe {
            let from = self.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr().add(into.len()), length);
            into.set_len(into.len() + length);
        }
    }

    /// A process that this one forks does not have it: who touches it there dies of that.
    pub(crate) fn keep_from_children(&self) -> io::Result<()> {
        let start = self.start.as_ptr().cast();
        // SAFETY: this is a whole mapping of ours, of which nothing changes in this process.
        unsafe { rustix::mm::madvise(start, self.length, Advice::LinuxDontFork)? };
        Ok(())
    }

    fn has(&self, offset: usize, length: usize) -> bool {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` has made, whole, and no borrow of it can be alive.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_of_one_memory_show_the_same() {
        let memfd = memfd("test", 8192).expect("a memfd");
        let [ours, theirs] = [Access::Write, Access::Read]
            .map(|access| Mapping::new(memfd.as_fd(), access).expect("a mapping"));
        ours.copy_in(8000, b"hello");
        ours.number(8).store(7, Ordering::Release);
        let mut bytes = Vec::new();
        theirs.append_to(&mut bytes, 8000, 5);
        assert_eq!(bytes, b"hello");
        assert_eq!(theirs.number(8).load(Ordering::Acquire), 7);
        assert_eq!(theirs.len(), 8192);
    }

    #[test]
    fn its_size_is_final() {
        let shared = memfd("test", 4096).expect("a memfd");
        rustix::fs::ftruncate(&shared, 0).expect_err("it is sealed");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let loose = rustix::fs::memfd_create("loose", flags).expect("a memfd");
        let error = Mapping::new(loose.as_fd(), Access::Read).expect_err("it may change");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn only_its_maker_writes_to_what_is_owned() {
        let mut owned = Owned::new("test", 8192).expect("memory");
        let view = View::new(owned.memfd()).expect("a view");
        owned.bytes_mut()[8191] = 7;
        assert_eq!((view.bytes()[8191], view.len()), (7, 8192));
        Mapping::new(owned.memfd(), Access::Write).expect_err("it is sealed");
        rustix::io::pwrite(owned.memfd(), b"!", 0).expect_err("it is sealed");
        rustix::fs::ftruncate(owned.memfd(), 0).expect_err("it is sealed");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(owned.memfd(), punch, 0, 4096).expect_err("it is sealed");
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&owned.memfd())
        );
        if let Ok(again) = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
        {
            Mapping::new(again.as_fd(), Access::Write).expect_err("so is the file itself");
            rustix::io::pwrite(&again, b"!", 0).expect_err("so is the file itself");
        }
        assert_eq!(owned.bytes()[0], 0);
    }

    #[test]
    fn what_others_may_write_to_or_is_not_there_is_not_viewed() {
        let loose = memfd("test", 4096).expect("a memfd");
        let error = View::new(loose.as_fd()).expect_err("it can be written to");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let sparse = rustix::fs::memfd_create("sparse", flags).expect("a memfd");
        rustix::fs::ftruncate(&sparse, 1 << 40).expect("no page of it is there");
        rustix::fs::fcntl_add_seals(&sparse, OWNED).expect("seals");
        let error = View::new(sparse.as_fd()).expect_err("it has no pages");
        assert_eq!(error.to_string(), "shared memory that is not all there");
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn nothing_behind_its_end_is_copied() {
        let memfd = memfd("test", 4096).expect("a memfd");
        let mapping = Mapping::new(memfd.as_fd(), Access::Write).expect("a mapping");
        mapping.copy_in(4090, &[0; 7]);
    }
}

//! Memory that a host and a worker share: a memfd that both have mapped.
//!
//! Whoever has the other end may write to it at any moment, and is a stranger. So there is no reference to shared bytes
//! in here: numbers are atomics, and bytes are copied, out of it before they are looked at. The size is sealed before
//! anything is mapped, so that nobody can take pages away under a reader, who would die of SIGBUS.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Whether this process may write to what it maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A shared file of memory, of a size that is final.
pub(crate) fn memfd(name: &str, length: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create(name, flags)?;
    rustix::fs::ftruncate(&memfd, length as u64)?;
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
    /// Maps a memfd whose size is final.
    pub(crate) fn new(memfd: BorrowedFd<'_>, access: Access) -> io::Result<Mapping> {
        let length = sealed_length(memfd)?;
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED;
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

    /// Copies the bytes from `offset` to `into`, all of it, and returns it.
    ///
    /// # Panics
    /// If they do not lie in the mapping.
    pub(crate) fn copy_out<'a>(
        &self,
        offset: usize,
        into: &'a mut [MaybeUninit<u8>],
    ) -> &'a mut [u8] {
        assert!(self.has(offset, into.len()));
        // SAFETY: the range lies in the mapping, and `into` is memory of Rust's own of the same length, all of which has a
        // value afterwards. See `copy_in` for what others may do meanwhile.
        unsafe {
            let from = self.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr().cast(), into.len());
            &mut *(std::ptr::from_mut(into) as *mut [u8])
        }
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
        let mut bytes = [MaybeUninit::uninit(); 5];
        assert_eq!(theirs.copy_out(8000, &mut bytes), b"hello");
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
    #[should_panic(expected = "assertion failed")]
    fn nothing_behind_its_end_is_copied() {
        let memfd = memfd("test", 4096).expect("a memfd");
        let mapping = Mapping::new(memfd.as_fd(), Access::Write).expect("a mapping");
        mapping.copy_in(4090, &[0; 7]);
    }
}

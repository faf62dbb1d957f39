//! Where a Deferred keeps its result and its callbacks: values and closures of any type, in line, in order.
//!
//! A chain changes its type at every step, so a Deferred stores its result and its levels with their types erased. Boxing
//! each of them would cost one allocation a callback; this module stores them as bytes instead and is the one place of
//! the crate that uses `unsafe`. It knows nothing of Deferreds: its promises are local and are checked here.
//!
//! 1. An [`Erased`] remembers the type that it was made from; it is read back as that type only, else it is handed back.
//! 2. A [`Levels`] queue gives out each entry exactly once, as the type that was put in: the entry's first word points to
//!    a table made for that type, and nothing else writes that word.
//! 3. No reference into the storage lives while foreign code runs: an entry is moved out before it is run or dropped, so
//!    whatever that code pushes may move the rest.
//! 4. A [`SmallCall`] holds a live closure of its table's type until it is called or dropped, either of which takes it.
//! 5. A piece of memory is in use once at a time, and its [`Chunk`] lives as long as one of its pieces is in use.
//! 6. A [`Counted`] value lives as long as one [`Counted`] or [`LastRef`] does, and its memory as long as any of these or a
//!    [`WeakRef`]; each of them is one in the counts.

use std::alloc::{self, Layout};
use std::any::TypeId;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit, needs_drop};
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::thread::LocalKey;
use std::time::{Duration, Instant};

type Word = MaybeUninit<usize>;

// ---------------------------------------------------------------- one value

/// Words of a value that are stored in line; a `String` or a `Vec` fits. Larger values are boxed.
const VALUE_WORDS: usize = 3;

/// One owned value whose type was forgotten.
pub(crate) struct Erased {
    info: &'static TypeInfo,
    words: [Word; VALUE_WORDS],
    /// It may own something that is neither `Send` nor `Sync`.
    _not_send: PhantomData<*mut ()>,
}

struct TypeInfo {
    id: fn() -> TypeId,
    /// `None` when there is nothing to do.
    drop: Option<unsafe fn(*mut Word)>,
}

impl TypeInfo {
    #[cold]
    #[inline(never)]
    fn is_of<T: 'static>(&self) -> bool {
        (self.id)() == TypeId::of::<T>()
    }
}

struct Info<T>(PhantomData<T>);

impl<T: 'static> Info<T> {
    const IN_LINE: bool =
        size_of::<T>() <= size_of::<[Word; VALUE_WORDS]>() && align_of::<T>() <= align_of::<Word>();
    const TABLE: &'static TypeInfo = &TypeInfo {
        id: TypeId::of::<T>,
        drop: if Self::IN_LINE && !needs_drop::<T>() {
            None
        } else {
            Some(Self::drop_words)
        },
    };

    /// # Safety
    /// `words` holds a live value that [`Erased::new::<T>`] wrote; it is dead afterwards.
    unsafe fn read(words: *const Word) -> T {
        if Self::IN_LINE {
            // SAFETY: `new` wrote a `T` there, which fits in size and alignment (IN_LINE).
            unsafe { words.cast::<T>().read() }
        } else {
            // SAFETY: `new` wrote a `Box<T>` there.
            *unsafe { words.cast::<Box<T>>().read() }
        }
    }

    /// # Safety
    /// As for `read`.
    unsafe fn drop_words(words: *mut Word) {
        if Self::IN_LINE {
            // SAFETY: as in `read`; dropped in place, once.
            unsafe { words.cast::<T>().drop_in_place() }
        } else {
            // SAFETY: as in `read`.
            unsafe { words.cast::<Box<T>>().drop_in_place() }
        }
    }
}

impl Erased {
    #[inline]
    pub(crate) fn new<T: 'static>(value: T) -> Self {
        let mut words = [MaybeUninit::uninit(); VALUE_WORDS];
        let to = words.as_mut_ptr();
        if Info::<T>::IN_LINE {
            // SAFETY: `T` fits in the words in size and alignment (IN_LINE), and they hold nothing yet.
            unsafe { to.cast::<T>().write(value) }
        } else {
            // SAFETY: a `Box<T>` is one word.
            unsafe { to.cast::<Box<T>>().write(Box::new(value)) }
        }
        Erased {
            info: Info::<T>::TABLE,
            words,
            _not_send: PhantomData,
        }
    }

    #[inline]
    fn is<T: 'static>(&self) -> bool {
        // The same table is the same type; one type may have several tables (one for each codegen unit).
        ptr::eq(self.info, Info::<T>::TABLE) || self.info.is_of::<T>()
    }

    /// The value, if it is a `T`.
    #[inline]
    pub(crate) fn downcast<T: 'static>(self) -> Result<T, Erased> {
        if !self.is::<T>() {
            return Err(self);
        }
        let this = ManuallyDrop::new(self);
        // SAFETY: it was made from a `T` (promise 1); `this` is neither dropped nor used again.
        Ok(unsafe { Info::<T>::read(this.words.as_ptr()) })
    }

    /// A look at the value, if it is a `T`.
    pub(crate) fn downcast_ref<T: 'static>(&self) -> Option<&T> {
        if !self.is::<T>() {
            return None;
        }
        let words = self.words.as_ptr();
        if Info::<T>::IN_LINE {
            // SAFETY: a live `T` is there (promise 1), borrowed as long as `self`.
            Some(unsafe { &*words.cast::<T>() })
        } else {
            // SAFETY: a live `Box<T>` is there.
            Some(unsafe { &*words.cast::<Box<T>>() })
        }
    }
}

impl Drop for Erased {
    #[inline]
    fn drop(&mut self) {
        if let Some(drop) = self.info.drop {
            // SAFETY: the words hold a live value of the table's type; nobody reads them after `drop`.
            unsafe { drop(self.words.as_mut_ptr()) }
        }
    }
}

/// A place for one value of any type. Nothing foreign runs while it is touched, but a value that is replaced.
pub(crate) struct Slot {
    value: UnsafeCell<Option<Erased>>,
}

impl Slot {
    pub(crate) const fn empty() -> Self {
        Slot {
            value: UnsafeCell::new(None),
        }
    }

    /// Puts a value there; what was there is dropped afterwards.
    ///
    /// Nearly always the place is empty, and then nothing is read but the word that says so: moving all of the old value
    /// out, to find that it is none, would wait for the words that were written just before.
    #[inline]
    pub(crate) fn put<T: 'static>(&self, value: T) {
        let place = self.value.get();
        // SAFETY: a short look, as in `take`.
        if unsafe { (*place).is_some() } {
            return self.replace(Erased::new(value));
        }
        // SAFETY: as in `take`; there is nothing that would have to be dropped.
        unsafe { place.write(Some(Erased::new(value))) }
    }

    #[cold]
    pub(crate) fn replace(&self, value: Erased) {
        // SAFETY: a short look, as in `take`; the old value is dropped when the reference is gone.
        let before = unsafe { &mut *self.value.get() }.replace(value);
        drop(before);
    }

    #[inline]
    pub(crate) fn put_erased(&self, value: Erased) {
        let place = self.value.get();
        // SAFETY: as in `put`.
        if unsafe { (*place).is_some() } {
            return self.replace(value);
        }
        // SAFETY: as in `put`.
        unsafe { place.write(Some(value)) }
    }

    #[inline]
    pub(crate) fn take(&self) -> Option<Erased> {
        // SAFETY: no reference to the inside outlives a method of `Slot`, and none of them is on the stack above us,
        // because they run no foreign code.
        unsafe { &mut *self.value.get() }.take()
    }

    /// Takes the value, which must be a `T`; `None` when there is no value or another.
    ///
    /// The same as `take` and `downcast`, without moving the value twice: this is the hot path of a chain.
    #[inline]
    pub(crate) fn take_as<T: 'static>(&self) -> Option<T> {
        let place = self.value.get();
        // SAFETY: as in `take`. The value is read as what it was made from (promise 1), and then forgotten, not dropped.
        unsafe {
            let erased = (*place).as_ref()?;
            if !erased.is::<T>() {
                return None;
            }
            let value = Info::<T>::read(erased.words.as_ptr());
            place.write(None);
            Some(value)
        }
    }
}

// ---------------------------------------------------------------- one closure

/// Words of a closure that are stored in line: two handles, or a handle and a number.
const CALL_WORDS: usize = 2;

/// A closure to be called once: a `Box<dyn FnOnce()>` that holds small ones without an allocation. For event loops, which
/// may keep a million of them.
///
/// ```
/// use errback_deferred::event_loop::SmallCall;
/// use std::{cell::Cell, rc::Rc};
///
/// let sum = Rc::new(Cell::new(1));
/// let counted = sum.clone();
/// let call = SmallCall::new(move || counted.set(counted.get() + 1));
/// call.call();
/// assert_eq!(sum.get(), 2);
/// ```
pub struct SmallCall {
    table: &'static CallTable,
    words: [Word; CALL_WORDS],
    /// It may own something that is neither `Send` nor `Sync`.
    _not_send: PhantomData<*mut ()>,
}

struct CallTable {
    /// Moves the closure out and calls it.
    call: unsafe fn(*const Word),
    drop: unsafe fn(*mut Word),
}

struct InLine<F>(PhantomData<F>);

impl<F: FnOnce() + 'static> InLine<F> {
    const FITS: bool =
        size_of::<F>() <= size_of::<[Word; CALL_WORDS]>() && align_of::<F>() <= align_of::<Word>();
    const TABLE: &'static CallTable = &CallTable {
        call: Self::call,
        drop: Self::drop_words,
    };

    /// # Safety
    /// `words` holds a live `F`; it is dead afterwards, before it is called.
    unsafe fn call(words: *const Word) {
        // SAFETY: the caller's promise.
        let call = unsafe { words.cast::<F>().read() };
        call();
    }

    /// # Safety
    /// As for `call`.
    unsafe fn drop_words(words: *mut Word) {
        // SAFETY: the caller's promise.
        unsafe { words.cast::<F>().drop_in_place() }
    }
}

impl SmallCall {
    /// One that calls `call`.
    #[inline]
    pub fn new(call: impl FnOnce() + 'static) -> SmallCall {
        SmallCall::of(call)
    }

    #[inline]
    fn of<F: FnOnce() + 'static>(call: F) -> SmallCall {
        if InLine::<F>::FITS {
            SmallCall::in_line(call)
        } else {
            SmallCall::in_line(Box::new(call))
        }
    }

    #[inline]
    fn in_line<F: FnOnce() + 'static>(call: F) -> SmallCall {
        assert!(InLine::<F>::FITS);
        let mut words = [MaybeUninit::uninit(); CALL_WORDS];
        // SAFETY: `F` fits in the words in size and alignment, and they hold nothing yet.
        unsafe { words.as_mut_ptr().cast::<F>().write(call) };
        SmallCall {
            table: InLine::<F>::TABLE,
            words,
            _not_send: PhantomData,
        }
    }

    /// Calls the closure.
    #[inline]
    pub fn call(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: the words hold a live closure of the type that the table was made for; `this` is neither dropped nor used
        // again, also when the closure panics.
        unsafe { (this.table.call)(this.words.as_ptr()) }
    }
}

impl Drop for SmallCall {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: as in `call`; nobody reads the words after `drop`.
        unsafe { (self.table.drop)(self.words.as_mut_ptr()) }
    }
}

impl std::fmt::Debug for SmallCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<SmallCall>")
    }
}

// ---------------------------------------------------------------- a queue of closures

/// Something to run once, with a context; what a [`Levels`] queue holds.
pub(crate) trait Entry<C>: 'static {
    type Output;
    fn run(self, context: &C) -> Self::Output;
}

/// A first-in-first-out queue of [`Entry`]s of different types with one context `C` and one output `O`.
///
/// A single small entry lies in the queue itself, more of them in one block that grows; an entry costs its own words and
/// one more. Pushing is allowed while an entry of the same queue runs.
pub(crate) struct Levels<C: 'static, O: 'static> {
    inner: UnsafeCell<Inner>,
    /// Entries may own things that are neither `Send` nor `Sync`.
    _entries: PhantomData<(*mut C, *mut O)>,
}

/// Words in the queue itself: an entry of two words. It decides the size of an idle Deferred (a million of them wait in
/// a long chain), so it is kept small; with one word less, each of those that are gathered would need a block.
const INLINE_WORDS: usize = 3;
/// Words of the first block: ten entries of one word each.
const FIRST_BLOCK: u32 = 20;
/// Entries above this many words are boxed, so that moving the queue stays cheap.
const MOST_WORDS: usize = 16;

/// The first word, which is initialised at all times, says what the others are: null, nothing; [`IN_BLOCK`], the second
/// one points to the block where the entries are, if there are any; else it is the table of the one entry, which follows.
struct Inner {
    words: [Word; INLINE_WORDS],
}

/// It is the address of no table.
const IN_BLOCK: *const () = ptr::without_provenance(1);

/// The start of a block; `capacity` words follow. Entries lie from `read` to `write`.
struct BlockHead {
    capacity: u32,
    read: u32,
    write: u32,
}

struct Table<C: 'static, O: 'static> {
    /// Words of the entry and of the table's own word.
    words: u32,
    /// Adds `words` to the counter, moves the entry out and runs it. It knows that number by heart, so that the next entry
    /// is found without waiting for this table to be read.
    run: unsafe fn(*mut u32, *const Word, &C) -> O,
    drop: unsafe fn(*mut Word),
}

struct EntryTable<E>(PhantomData<E>);

impl<E: 'static> EntryTable<E> {
    const BOXED: bool =
        size_of::<E>() > MOST_WORDS * size_of::<Word>() || align_of::<E>() > align_of::<Word>();
    const WORDS: usize = if Self::BOXED {
        1
    } else {
        size_of::<E>().div_ceil(size_of::<Word>())
    };

    const fn table<C: 'static, O: 'static>() -> &'static Table<C, O>
    where
        E: Entry<C, Output = O>,
    {
        const {
            &Table {
                words: 1 + Self::WORDS as u32,
                run: Self::run::<C, O>,
                drop: Self::drop_words,
            }
        }
    }

    /// # Safety
    /// `words` holds a live entry that `write` put there; it is dead afterwards, before the entry runs.
    unsafe fn read(words: *const Word) -> E {
        if Self::BOXED {
            // SAFETY: by the caller's promise there is a `Box<E>`.
            *unsafe { words.cast::<Box<E>>().read() }
        } else {
            // SAFETY: by the caller's promise there is an `E`, aligned to a word.
            unsafe { words.cast::<E>().read() }
        }
    }

    /// # Safety
    /// `words` has room for `Self::WORDS` words and holds nothing.
    unsafe fn write(words: *mut Word, entry: E) {
        if Self::BOXED {
            // SAFETY: a box is one word, which WORDS counts.
            unsafe { words.cast::<Box<E>>().write(Box::new(entry)) }
        } else {
            // SAFETY: the entry fits in WORDS words and needs no more than a word's alignment.
            unsafe { words.cast::<E>().write(entry) }
        }
    }

    /// # Safety
    /// As for `read`; and `read` points to a number of the caller's own, which may be what the queue moves when it is pushed to.
    unsafe fn run<C: 'static, O: 'static>(read: *mut u32, words: *const Word, context: &C) -> O
    where
        E: Entry<C, Output = O>,
    {
        // Counted and moved out first: while it runs, the queue may move (promise 3).
        // SAFETY: the caller's promise.
        let entry = unsafe {
            *read += 1 + Self::WORDS as u32;
            Self::read(words)
        };
        entry.run(context)
    }

    /// # Safety
    /// As for `read`.
    unsafe fn drop_words(words: *mut Word) {
        // SAFETY: the caller's promise.
        drop(unsafe { Self::read(words) });
    }
}

/// The table of the entry at `at` is read through this.
type TableRef<C, O> = &'static Table<C, O>;

impl<C: 'static, O: 'static> Levels<C, O> {
    #[inline]
    pub(crate) fn new() -> Self {
        let mut words = [MaybeUninit::uninit(); INLINE_WORDS];
        words[0] = MaybeUninit::new(0);
        Levels {
            inner: UnsafeCell::new(Inner { words }),
            _entries: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: a short look; no reference to the inside outlives a method, and no foreign code runs in between.
        let inner = unsafe { &*self.inner.get() };
        match inner.block() {
            // SAFETY: the block is live.
            Some(block) => unsafe { (*block.as_ptr()).read == (*block.as_ptr()).write },
            None => inner.first().is_null(),
        }
    }

    /// Puts `entry` behind all others.
    #[inline]
    pub(crate) fn push<E: Entry<C, Output = O>>(&self, entry: E) {
        let words = 1 + EntryTable::<E>::WORDS;
        // SAFETY: as in `is_empty`; only memory is allocated here.
        let inner = unsafe { &mut *self.inner.get() };
        let at = match inner.block() {
            // SAFETY: the block is the queue's.
            Some(block) => unsafe { inner.slot_in(block, words as u32) },
            None if inner.first().is_null() && words <= INLINE_WORDS => inner.words.as_mut_ptr(),
            None => {
                let used = Self::words_in_line(inner);
                inner.slot_of_first_block(used, words as u32)
            }
        };
        // SAFETY: there is room for the table's word and the entry's, which nothing uses yet.
        unsafe {
            at.cast::<TableRef<C, O>>().write(EntryTable::<E>::table());
            EntryTable::<E>::write(at.add(1), entry);
        }
    }

    /// Words of the entry in the queue itself, its table's among them. There is no block.
    fn words_in_line(inner: &Inner) -> u32 {
        if inner.first().is_null() {
            return 0;
        }
        // SAFETY: the first word is neither null nor IN_BLOCK, so it is the table that `push` wrote.
        unsafe { inner.words.as_ptr().cast::<TableRef<C, O>>().read() }.words
    }

    /// Takes the first entry out and runs it; `None` when there is none.
    #[inline]
    pub(crate) fn run_next(&self, context: &C) -> Option<O> {
        let mut in_line = 0;
        let First { table, words, read } = self.first(&mut in_line)?;
        // SAFETY: there is a live entry, of the type that its table was made for (promise 2). `run` counts it as read before
        // anything foreign happens; no reference to the inside is left.
        Some(unsafe { (table.run)(read, words, context) })
    }

    /// Takes the first entry out and drops it; `false` when there is none.
    fn drop_next(&self) -> bool {
        let mut in_line = 0;
        let Some(First { table, words, read }) = self.first(&mut in_line) else {
            return false;
        };
        // SAFETY: as in `run_next`; it is counted as read here. The context's type plays no part in it.
        unsafe {
            *read += table.words;
            (table.drop)(words);
        }
        true
    }

    /// The first entry. One that lies in the queue itself is forgotten at once; then `in_line` is the number to count in.
    ///
    /// Its bytes stay where they are until the next push or drop, and both `run` and `drop` of the table move them out before
    /// anything else happens.
    #[inline]
    fn first(&self, in_line: &mut u32) -> Option<First<C, O>> {
        // SAFETY: as in `is_empty`.
        let inner = unsafe { &mut *self.inner.get() };
        if let Some(block) = inner.block() {
            // SAFETY: the block is live, and entries lie from `read` to `write`, each beginning with its table.
            return unsafe {
                let head = block.as_ptr();
                if (*head).read == (*head).write {
                    return None;
                }
                let at = words_of(block).add((*head).read as usize);
                Some(First {
                    table: at.cast::<TableRef<C, O>>().read(),
                    words: at.add(1),
                    read: &raw mut (*head).read,
                })
            };
        }
        if inner.first().is_null() {
            return None;
        }
        let at = inner.words.as_mut_ptr();
        // SAFETY: the first word is neither null nor IN_BLOCK, so it is the table that `push` wrote. The rest stays as it is.
        unsafe {
            let table = at.cast::<TableRef<C, O>>().read();
            at.write(MaybeUninit::new(0));
            Some(First {
                table,
                words: at.add(1),
                read: in_line,
            })
        }
    }
}

/// Where the first entry of a queue is, and what counts the words that were read.
struct First<C: 'static, O: 'static> {
    table: TableRef<C, O>,
    words: *mut Word,
    read: *mut u32,
}

impl<C: 'static, O: 'static> Drop for Levels<C, O> {
    fn drop(&mut self) {
        /// Frees the block even if an entry's `drop` panics (the other entries are then leaked).
        struct Free(Option<NonNull<BlockHead>>);
        impl Drop for Free {
            fn drop(&mut self) {
                if let Some(block) = self.0 {
                    // SAFETY: the block is the queue's, which ends here.
                    unsafe { free(block) }
                }
            }
        }
        let _free = Free(self.inner.get_mut().block());
        while self.drop_next() {}
    }
}

impl Inner {
    #[inline]
    fn first(&self) -> *const () {
        // SAFETY: the first word is initialised at all times.
        unsafe { self.words.as_ptr().cast::<*const ()>().read() }
    }

    #[inline]
    fn block(&self) -> Option<NonNull<BlockHead>> {
        // SAFETY: IN_BLOCK says that the second word points to a block.
        (self.first() == IN_BLOCK).then(|| unsafe {
            self.words
                .as_ptr()
                .add(1)
                .cast::<NonNull<BlockHead>>()
                .read()
        })
    }

    fn set_block(&mut self, block: NonNull<BlockHead>) {
        let at = self.words.as_mut_ptr();
        // SAFETY: both words are ours, and a pointer is one word.
        unsafe {
            at.cast::<*const ()>().write(IN_BLOCK);
            at.add(1).cast::<NonNull<BlockHead>>().write(block);
        }
    }

    /// Room for `words` words behind all entries of the block, counted as used from now on.
    ///
    /// # Safety
    /// `block` is this queue's.
    #[inline]
    unsafe fn slot_in(&mut self, block: NonNull<BlockHead>, words: u32) -> *mut Word {
        let head = block.as_ptr();
        // SAFETY: the block is live, and `write <= capacity`.
        unsafe {
            if (*head).capacity - (*head).write < words {
                return claim(self.make_room(block, words), words);
            }
            claim(block, words)
        }
    }

    /// As `slot_in`, when there is no block yet; the entry in the queue itself, of `used` words, goes to the block first.
    #[cold]
    fn slot_of_first_block(&mut self, used: u32, words: u32) -> *mut Word {
        let block = allocate(FIRST_BLOCK.max(used + words));
        // SAFETY: there is room for both; the entry is moved as bytes, which is what moving a Rust value is, and forgotten
        // where it was, because `set_block` writes over its table.
        unsafe {
            let to = claim(block, used);
            ptr::copy_nonoverlapping(self.words.as_ptr(), to, used as usize);
            self.set_block(block);
            claim(block, words)
        }
    }

    /// The queue's block, or a larger one in its place, with room for `words` words more.
    ///
    /// # Safety
    /// `block` is this queue's.
    #[cold]
    unsafe fn make_room(&mut self, block: NonNull<BlockHead>, words: u32) -> NonNull<BlockHead> {
        let head = block.as_ptr();
        // SAFETY: as in `slot_in`; entries are moved as bytes.
        unsafe {
            let (read, write, capacity) = ((*head).read, (*head).write, (*head).capacity);
            let used = write - read;
            if read > 0 {
                ptr::copy(
                    words_of(block).add(read as usize),
                    words_of(block),
                    used as usize,
                );
                (*head).read = 0;
                (*head).write = used;
            }
            // Moving down cost no more than the entries that ran meanwhile did.
            if used <= read && capacity - used >= words {
                return block;
            }
            let wanted = used
                .checked_add(words)
                .expect("a chain of fewer than 2^32 words");
            let larger = enlarge(block, capacity.saturating_mul(2).max(wanted));
            self.set_block(larger);
            larger
        }
    }
}

/// The block with more capacity. The allocator can move a large one by its page table, without touching its pages.
///
/// # Safety
/// The block is live, and smaller; it is used only as what is returned from now on.
unsafe fn enlarge(block: NonNull<BlockHead>, capacity: u32) -> NonNull<BlockHead> {
    let after = layout(capacity);
    // SAFETY: it was allocated with the layout of its capacity; bytes are moved, which is what moving entries is.
    unsafe {
        let before = layout((*block.as_ptr()).capacity);
        let moved = alloc::realloc(block.as_ptr().cast(), before, after.size());
        let Some(larger) = NonNull::new(moved.cast::<BlockHead>()) else {
            alloc::handle_alloc_error(after)
        };
        (*larger.as_ptr()).capacity = capacity;
        larger
    }
}

/// The next `words` words of a block, counted as used from now on.
///
/// # Safety
/// The block is live and has room for them.
#[inline]
unsafe fn claim(block: NonNull<BlockHead>, words: u32) -> *mut Word {
    let head = block.as_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        let at = words_of(block).add((*head).write as usize);
        (*head).write += words;
        at
    }
}

/// # Safety
/// The block is live; nobody uses it any more.
unsafe fn free(block: NonNull<BlockHead>) {
    // SAFETY: it was obtained with this layout.
    unsafe {
        match (*block.as_ptr()).capacity {
            FIRST_BLOCK => give_back(&SPARE_BLOCKS, FIRST_LAYOUT, block.cast()),
            capacity => alloc::dealloc(block.as_ptr().cast(), layout(capacity)),
        }
    }
}

const fn layout(capacity: u32) -> Layout {
    let size = WORDS_OFFSET + capacity as usize * size_of::<Word>();
    match Layout::from_size_align(size, align_of::<Word>()) {
        Ok(layout) => layout,
        Err(_) => panic!("a block's size fits in memory"),
    }
}

/// The words of a block come after its head.
const WORDS_OFFSET: usize = size_of::<BlockHead>().next_multiple_of(align_of::<Word>());
const FIRST_LAYOUT: Layout = layout(FIRST_BLOCK);

thread_local! {
    static SPARE_BLOCKS: Spares = const { Spares::new(FIRST_LAYOUT) };
}

fn allocate(capacity: u32) -> NonNull<BlockHead> {
    let block = match capacity {
        FIRST_BLOCK => obtain(&SPARE_BLOCKS, FIRST_LAYOUT),
        capacity => fresh(layout(capacity)),
    }
    .cast::<BlockHead>();
    // SAFETY: memory of the head's layout, and more, which nobody else uses.
    unsafe {
        block.write(BlockHead {
            capacity,
            read: 0,
            write: 0,
        })
    };
    block
}

/// # Safety
/// `block` is live.
#[inline]
unsafe fn words_of(block: NonNull<BlockHead>) -> *mut Word {
    // SAFETY: `layout` has the words at this offset.
    unsafe { block.as_ptr().cast::<u8>().add(WORDS_OFFSET).cast() }
}

// ---------------------------------------------------------------- counted references

/// What a [`Counted`] value does when its last reference goes.
pub(crate) trait Ends: Sized + 'static {
    /// Dropping `last` drops the value; it may be kept for a while, and the value be taken up again meanwhile.
    fn end(last: LastRef<Self>);
    /// Where memory for such values comes from: made with [`Counted::LAYOUT`].
    fn pieces() -> &'static LocalKey<Chunks>;
}

/// A shared, counted value: an `Rc` with counts of four bytes, whose last reference says goodbye by [`Ends::end`].
pub(crate) struct Counted<T: Ends> {
    at: NonNull<Counts<T>>,
    _owns: PhantomData<T>,
}

/// The last reference to a value. It still counts as one.
pub(crate) struct LastRef<T: Ends> {
    at: NonNull<Counts<T>>,
    _owns: PhantomData<T>,
}

/// A reference that does not keep the value alive, but its memory.
pub(crate) struct WeakRef<T: Ends> {
    at: NonNull<Counts<T>>,
}

struct Counts<T> {
    strong: Cell<u32>,
    /// Weak references, and one for all strong ones together.
    weak: Cell<u32>,
    value: T,
}

/// Counts one more. Who makes and forgets 2^32 references is refused the next one, before a count could begin anew.
#[inline]
fn count_up(count: &Cell<u32>) {
    let more = count.get().checked_add(1);
    count.set(more.expect("fewer than 2^32 references to one Deferred"));
}

impl<T: Ends> Counted<T> {
    pub(crate) const LAYOUT: Layout = Layout::new::<Counts<T>>();

    #[inline]
    pub(crate) fn new(value: T) -> Self {
        let at = obtain_piece(T::pieces(), Self::LAYOUT).cast::<Counts<T>>();
        // SAFETY: memory of this layout, which nobody else uses.
        unsafe {
            at.write(Counts {
                strong: Cell::new(1),
                weak: Cell::new(1),
                value,
            })
        };
        Counted {
            at,
            _owns: PhantomData,
        }
    }

    #[inline]
    fn counts(&self) -> &Counts<T> {
        // SAFETY: it lives as long as one strong reference does (promise 6), and is only ever borrowed shared.
        unsafe { self.at.as_ref() }
    }

    #[inline]
    pub(crate) fn downgrade(&self) -> WeakRef<T> {
        count_up(&self.counts().weak);
        WeakRef { at: self.at }
    }

    #[inline]
    pub(crate) fn ptr_eq(&self, other: &Self) -> bool {
        self.at == other.at
    }

    pub(crate) fn address(&self) -> *const () {
        self.at.as_ptr().cast()
    }
}

impl<T: Ends> Deref for Counted<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.counts().value
    }
}

impl<T: Ends> Clone for Counted<T> {
    #[inline]
    fn clone(&self) -> Self {
        count_up(&self.counts().strong);
        Counted {
            at: self.at,
            _owns: PhantomData,
        }
    }
}

impl<T: Ends> Drop for Counted<T> {
    #[inline]
    fn drop(&mut self) {
        let strong = &self.counts().strong;
        match strong.get() {
            1 => T::end(LastRef {
                at: self.at,
                _owns: PhantomData,
            }),
            more => strong.set(more - 1),
        }
    }
}

impl<T: Ends> Drop for LastRef<T> {
    #[inline]
    fn drop(&mut self) {
        let at = self.at.as_ptr();
        // SAFETY: this is one of the strong references, so the value lives.
        let left = unsafe {
            let left = (*at).strong.get() - 1;
            (*at).strong.set(left);
            left
        };
        if left > 0 {
            return; // somebody took the value up again
        }
        // The one weak reference of all strong ones. It frees the memory, even if the value's `drop` panics.
        let _memory = WeakRef { at: self.at };
        // SAFETY: no strong reference is left and none can be made any more, so nobody else reaches the value.
        unsafe { (&raw mut (*at).value).drop_in_place() }
    }
}

impl<T: Ends> WeakRef<T> {
    #[inline]
    pub(crate) fn upgrade(&self) -> Option<Counted<T>> {
        // SAFETY: the counts live as long as this reference does (promise 6).
        let strong = unsafe { &(*self.at.as_ptr()).strong };
        if strong.get() == 0 {
            return None;
        }
        count_up(strong);
        Some(Counted {
            at: self.at,
            _owns: PhantomData,
        })
    }

    pub(crate) fn address(&self) -> *const () {
        self.at.as_ptr().cast()
    }
}

impl<T: Ends> Clone for WeakRef<T> {
    fn clone(&self) -> Self {
        // SAFETY: as in `upgrade`.
        count_up(unsafe { &(*self.at.as_ptr()).weak });
        WeakRef { at: self.at }
    }
}

impl<T: Ends> Drop for WeakRef<T> {
    #[inline]
    fn drop(&mut self) {
        let at = self.at.as_ptr();
        // SAFETY: as in `upgrade`. With the last reference of any kind the memory goes, which was obtained with this layout;
        // the value in it has been dropped.
        unsafe {
            match (*at).weak.get() {
                1 => give_back_piece(T::pieces(), Counted::<T>::LAYOUT, self.at.cast()),
                more => (*at).weak.set(more - 1),
            }
        }
    }
}

// ---------------------------------------------------------------- memory that is used again

/// Some pieces of memory of one layout that were given back, for the next who wants one: a list through their first words.
///
/// Each thread has its own, so taking one and giving it back is a few instructions each.
pub(crate) struct Spares {
    first: Cell<Option<NonNull<Spare>>>,
    /// How many more it takes.
    room: Cell<u32>,
    layout: Layout,
}

struct Spare {
    next: Option<NonNull<Spare>>,
}

/// So many pieces are kept; what is given back beyond that goes to the allocator. None where mistakes are looked for: a
/// sanitizer sees what happens to memory that is free, and nothing of what happens to a spare piece.
const MOST_SPARES: u32 = if cfg!(debug_assertions) { 0 } else { 32 };

impl Spares {
    pub(crate) const fn new(layout: Layout) -> Self {
        Self::with_room(layout, MOST_SPARES)
    }

    const fn with_room(layout: Layout, room: u32) -> Self {
        assert!(layout.size() >= size_of::<Spare>() && layout.align() >= align_of::<Spare>());
        Spares {
            first: Cell::new(None),
            room: Cell::new(room),
            layout,
        }
    }

    #[inline]
    fn take(&self) -> Option<NonNull<u8>> {
        let first = self.first.get()?;
        // SAFETY: pieces in the list are ours, and `keep` wrote a `Spare` at their start.
        self.first.set(unsafe { first.read() }.next);
        self.room.set(self.room.get() + 1);
        Some(first.cast())
    }

    /// Whether it took the piece.
    ///
    /// # Safety
    /// The piece was allocated with this layout, and nobody uses it any more if it is taken.
    #[inline]
    unsafe fn keep(&self, piece: NonNull<u8>) -> bool {
        if self.room.get() == 0 {
            return false;
        }
        let spare = piece.cast::<Spare>();
        // SAFETY: by the caller's promise it is ours, and it is large enough (`with_room`).
        unsafe {
            spare.write(Spare {
                next: self.first.get(),
            })
        };
        self.first.set(Some(spare));
        self.room.set(self.room.get() - 1);
        true
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        while let Some(piece) = self.take() {
            // SAFETY: `keep` was given it with the promise that it was allocated with this layout.
            unsafe { alloc::dealloc(piece.as_ptr(), self.layout) }
        }
    }
}

/// Memory of this layout, which is that of the spares.
#[inline]
fn obtain(spares: &'static LocalKey<Spares>, layout: Layout) -> NonNull<u8> {
    match spares.try_with(Spares::take) {
        Ok(Some(piece)) => piece,
        _ => fresh(layout), // none is left, or the thread is ending
    }
}

/// # Safety
/// The piece was obtained with this layout, which is that of the spares, and nobody uses it any more.
#[inline]
unsafe fn give_back(spares: &'static LocalKey<Spares>, layout: Layout, piece: NonNull<u8>) {
    // SAFETY: the caller's promise.
    let kept = spares.try_with(|spares| unsafe { spares.keep(piece) });
    if !kept.unwrap_or(false) {
        // SAFETY: the caller's promise; `fresh` or an earlier `give_back` had it from the allocator.
        unsafe { alloc::dealloc(piece.as_ptr(), layout) }
    }
}

fn fresh(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 0);
    // SAFETY: the size is not zero.
    match NonNull::new(unsafe { alloc::alloc(layout) }) {
        Some(piece) => piece,
        None => alloc::handle_alloc_error(layout),
    }
}

// ---------------------------------------------------------------- memory for many

/// Not where mistakes are looked for, as with [`MOST_SPARES`]: there each piece is an allocation.
const IN_CHUNKS: bool = !cfg!(debug_assertions);

#[inline]
fn obtain_piece(pieces: &'static LocalKey<Chunks>, layout: Layout) -> NonNull<u8> {
    if !IN_CHUNKS {
        return fresh(layout);
    }
    // The thread is ending: a chunk for one, which goes with it.
    pieces
        .try_with(Chunks::take)
        .unwrap_or_else(|_| Chunks::new(layout).take())
}

/// # Safety
/// The piece was obtained with this layout, which is that of the pieces, and nobody uses it any more.
#[inline]
unsafe fn give_back_piece(pieces: &'static LocalKey<Chunks>, layout: Layout, piece: NonNull<u8>) {
    // SAFETY: the caller's promise. Where the thread's pieces are gone, their chunks are left to their last piece.
    unsafe {
        if !IN_CHUNKS {
            return alloc::dealloc(piece.as_ptr(), layout);
        }
        if pieces.try_with(|pieces| pieces.give_back(piece)).is_err() {
            Chunk::of(piece).give_back_last(piece);
        }
    }
}

/// Memory for values of one layout, of which a thread may have millions: chunks of many pieces.
///
/// An allocator that knows nothing of what it is asked for spends more time on a million pieces than it takes to use them, and
/// a word for each. And a chunk can have a huge page, which costs a fifth of what small ones cost to touch first, if it is at hand.
///
/// What must hold: a chunk lives as long as one of its pieces is in use, or as it is in one of the lists; it is in the list of
/// those with room if and only if it has some and is not empty, or was the only one there when it became so.
pub(crate) struct Chunks {
    layout: Layout,
    /// The chunks with room, linked both ways.
    with_room: Cell<Option<ChunkRef>>,
    /// Some of which no piece is in use, linked by `next`. Fresh memory costs several times as much.
    empty: Cell<Option<ChunkRef>>,
    /// How many of those there are.
    kept: Cell<u32>,
    /// How many chunks there are in all.
    chunks: Cell<u32>,
    /// So many new ones get small pages before one is tried with a huge page again.
    small: Cell<u32>,
}

/// So many empty chunks are kept by a thread: 8 MiB.
const MOST_EMPTY: u32 = 4;

/// The start of a chunk, which is aligned to its size: so each piece knows where its chunk begins.
struct Chunk {
    /// Pieces in use.
    used: Cell<u32>,
    /// Pieces behind all others that were never in use. (To make a list of them would touch all their pages.)
    untouched: Cell<u32>,
    /// Pieces that were given back.
    free: Cell<Option<NonNull<Spare>>>,
    in_list: Cell<bool>,
    next: Cell<Option<ChunkRef>>,
    before: Cell<Option<ChunkRef>>,
}

/// A chunk that lives. It is used through shared references only, which last no longer than a method.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ChunkRef(NonNull<Chunk>);

/// That of a huge page. A chunk that is hardly used takes as many small pages as it needs.
const CHUNK: usize = 1 << 21;

/// A little less than its alignment: the allocator's own words between two of them then leave no gap of that size.
const CHUNK_LAYOUT: Layout = match Layout::from_size_align(CHUNK - 64, CHUNK) {
    Ok(layout) => layout,
    Err(_) => panic!("it is a power of two"),
};

impl Chunks {
    pub(crate) const fn new(layout: Layout) -> Self {
        // Each is large enough for a `Spare`, and lies at a multiple of its size, behind the head.
        assert!(layout.size() >= size_of::<Spare>() && layout.align() <= align_of::<Chunk>());
        Chunks {
            layout,
            with_room: Cell::new(None),
            empty: Cell::new(None),
            kept: Cell::new(0),
            chunks: Cell::new(0),
            small: Cell::new(0),
        }
    }

    #[inline]
    fn take(&self) -> NonNull<u8> {
        let chunk = self.with_room.get().unwrap_or_else(|| self.add());
        let piece = chunk.take(self.layout);
        if chunk.is_full() {
            self.remove(chunk);
        }
        piece
    }

    /// # Safety
    /// The piece came from here, and nobody uses it any more.
    #[inline]
    unsafe fn give_back(&self, piece: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe {
            let chunk = Chunk::of(piece);
            chunk.keep(piece);
            if !chunk.in_list.get() {
                self.insert(chunk);
            }
            if chunk.used.get() == 0 && !self.is_only(chunk) {
                self.remove(chunk);
                self.put_aside(chunk);
            }
        }
    }

    #[inline]
    fn is_only(&self, chunk: ChunkRef) -> bool {
        self.with_room.get() == Some(chunk) && chunk.next.get().is_none()
    }

    #[cold]
    fn add(&self) -> ChunkRef {
        let chunk = match self.empty.get() {
            Some(chunk) => {
                self.empty.set(chunk.next.get());
                self.kept.set(self.kept.get() - 1);
                // SAFETY: it is the memory of a chunk of which nothing is in use.
                unsafe { chunk.begin(self.layout) }
                chunk
            }
            None => self.fresh(),
        };
        self.insert(chunk);
        chunk
    }

    /// A chunk in new memory; in a huge page, where those pay, if it is not the thread's first.
    fn fresh(&self) -> ChunkRef {
        let memory = fresh(CHUNK_LAYOUT);
        let chunk = ChunkRef(memory.cast());
        // SAFETY: that memory is nobody else's. This touches it first.
        let begin = || unsafe { chunk.begin(self.layout) };
        let small = self.small.get();
        if small > 0 || self.chunks.get() == 0 || !cfg!(target_os = "linux") {
            self.small.set(small.saturating_sub(1));
            begin();
        } else {
            want_huge_page(memory);
            let begun = Instant::now();
            begin();
            self.small.set(small_pages_after(begun.elapsed()));
        }
        self.chunks.set(self.chunks.get() + 1);
        chunk
    }

    /// # Safety
    /// None of its pieces is in use, and it is in no list.
    #[cold]
    unsafe fn put_aside(&self, chunk: ChunkRef) {
        if self.kept.get() == MOST_EMPTY {
            self.chunks.set(self.chunks.get() - 1);
            // SAFETY: the caller's promise; it is forgotten.
            return unsafe { chunk.free() };
        }
        self.kept.set(self.kept.get() + 1);
        chunk.next.set(self.empty.replace(Some(chunk)));
    }

    #[cold]
    fn insert(&self, chunk: ChunkRef) {
        let next = self.with_room.replace(Some(chunk));
        chunk.in_list.set(true);
        chunk.next.set(next);
        chunk.before.set(None);
        if let Some(next) = next {
            next.before.set(Some(chunk));
        }
    }

    #[cold]
    fn remove(&self, chunk: ChunkRef) {
        chunk.in_list.set(false);
        let (before, next) = (chunk.before.take(), chunk.next.take());
        match before {
            Some(before) => before.next.set(next),
            None => self.with_room.set(next),
        }
        if let Some(next) = next {
            next.before.set(before);
        }
    }
}

/// How many chunks get small pages when a huge one took so long to touch.
///
/// A virtual machine may have given the memory that it does not use back to its host, which happens in huge pages ("free page
/// reporting"), and then has to get one from there: it takes 4.4 ms where 512 small ones take 0.75, and one at hand 0.17.
fn small_pages_after(touch: Duration) -> u32 {
    const LONG: Duration = Duration::from_millis(1);
    if touch < LONG { 0 } else { 63 }
}

/// Asks for a huge page for a chunk's memory. Without one it works as well.
fn want_huge_page(memory: NonNull<u8>) {
    #[cfg(target_os = "linux")]
    // SAFETY: this advice changes nothing of what is in that memory, nor in what lies in the same pages.
    let _ = unsafe {
        let advice = rustix::mm::Advice::LinuxHugepage;
        rustix::mm::madvise(memory.as_ptr().cast(), CHUNK_LAYOUT.size(), advice)
    };
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

impl Drop for Chunks {
    /// Chunks with pieces in use are left to these; see `give_back_last`.
    fn drop(&mut self) {
        while let Some(chunk) = self.with_room.get() {
            self.remove(chunk);
            if chunk.used.get() == 0 {
                // SAFETY: as below.
                unsafe { chunk.free() }
            }
        }
        while let Some(chunk) = self.empty.get() {
            self.empty.set(chunk.next.get());
            // SAFETY: no piece of it is in use, and nobody else knows of it.
            unsafe { chunk.free() }
        }
    }
}

impl Chunk {
    /// How many pieces there are in one.
    const fn pieces(layout: Layout) -> u32 {
        ((CHUNK_LAYOUT.size() - size_of::<Chunk>()) / layout.size()) as u32
    }

    /// The chunk of a piece.
    ///
    /// # Safety
    /// The piece is one of a living chunk's.
    #[inline]
    unsafe fn of(piece: NonNull<u8>) -> ChunkRef {
        let start = piece.as_ptr().map_addr(|addr| addr & !(CHUNK - 1));
        // SAFETY: a chunk begins at a multiple of CHUNK and is no longer than that.
        ChunkRef(unsafe { NonNull::new_unchecked(start) }.cast())
    }
}

impl Deref for ChunkRef {
    type Target = Chunk;
    #[inline]
    fn deref(&self) -> &Chunk {
        // SAFETY: it lives, by the promise of whoever has the reference, and its head is only ever borrowed shared.
        unsafe { self.0.as_ref() }
    }
}

impl ChunkRef {
    /// Makes a chunk of its memory, of pieces of this layout.
    ///
    /// # Safety
    /// It has the chunks' layout, and nobody uses it or a piece of it.
    unsafe fn begin(self, layout: Layout) {
        let chunk = Chunk {
            used: Cell::new(0),
            untouched: Cell::new(Chunk::pieces(layout)),
            free: Cell::new(None),
            in_list: Cell::new(false),
            next: Cell::new(None),
            before: Cell::new(None),
        };
        // SAFETY: the caller's promise; it begins with room for the head.
        unsafe { self.0.write(chunk) }
    }

    #[inline]
    fn is_full(self) -> bool {
        self.free.get().is_none() && self.untouched.get() == 0
    }

    /// A piece, of which there is one.
    #[inline]
    fn take(self, layout: Layout) -> NonNull<u8> {
        self.used.set(self.used.get() + 1);
        if let Some(first) = self.free.get() {
            // SAFETY: pieces in the list are ours, and `keep` wrote a `Spare` at their start.
            self.free.set(unsafe { first.read() }.next);
            return first.cast();
        }
        let left = self.untouched.get();
        assert!(left > 0, "a chunk in the list has room");
        self.untouched.set(left - 1);
        let index = (Chunk::pieces(layout) - left) as usize;
        // SAFETY: so many pieces fit behind the head, and the chunk's own pointer is good for all of it.
        unsafe {
            let pieces = self.0.cast::<u8>().add(size_of::<Chunk>());
            pieces.add(index * layout.size())
        }
    }

    /// # Safety
    /// The piece is of this chunk, and nobody uses it any more.
    #[inline]
    unsafe fn keep(self, piece: NonNull<u8>) {
        let spare = piece.cast::<Spare>();
        let next = self.free.get();
        // SAFETY: by the caller's promise it is ours, and it is large enough (`Chunks::new`).
        unsafe { spare.write(Spare { next }) };
        self.free.set(Some(spare));
        self.used.set(self.used.get() - 1);
    }

    /// When the list of chunks is gone: the last piece frees its chunk.
    ///
    /// # Safety
    /// As for `keep`.
    #[cold]
    unsafe fn give_back_last(self, piece: NonNull<u8>) {
        // SAFETY: the caller's promise; with the last piece in use nobody knows of the chunk.
        unsafe {
            self.keep(piece);
            if self.used.get() == 0 {
                self.free();
            }
        }
    }

    /// # Safety
    /// None of its pieces is in use, it is in no list, and it is not used again.
    #[cold]
    unsafe fn free(self) {
        // SAFETY: `fresh` allocated it with this layout.
        unsafe { alloc::dealloc(self.0.as_ptr().cast(), CHUNK_LAYOUT) }
    }
}

// ---------------------------------------------------------------- small cells

/// One word for a counted reference, or for a box, or for nothing.
pub(crate) struct Aside<A: Ends, B> {
    /// The address of what is held; that of a box is one too high.
    word: Cell<*mut ()>,
    _owns: PhantomData<(Counted<A>, Box<B>)>,
}

/// What an [`Aside`] holds.
pub(crate) enum Held<A: Ends, B> {
    Nothing,
    Reference(Counted<A>),
    Boxed(Box<B>),
}

impl<A: Ends, B> Aside<A, B> {
    /// Addresses of both are even.
    const EVEN: () = assert!(align_of::<Counts<A>>() > 1 && align_of::<B>() > 1);

    pub(crate) const fn empty() -> Self {
        Aside {
            word: Cell::new(ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn holds_box(&self) -> bool {
        self.word.get().addr() & 1 == 1
    }

    #[inline]
    pub(crate) fn holds_nothing(&self) -> bool {
        self.word.get().is_null()
    }

    #[inline]
    pub(crate) fn take(&self) -> Held<A, B> {
        let () = Self::EVEN;
        let word = self.word.replace(ptr::null_mut());
        let Some(at) = NonNull::new(word) else {
            return Held::Nothing;
        };
        if word.addr() & 1 == 1 {
            // SAFETY: only `put` writes an odd address: of a box, plus one, which it forgot. It is given out once.
            return Held::Boxed(unsafe { Box::from_raw(word.wrapping_byte_sub(1).cast()) });
        }
        Held::Reference(Counted {
            at: at.cast(), // the reference that `put` forgot; it is given out once
            _owns: PhantomData,
        })
    }

    /// Puts something there; what was there is dropped afterwards.
    #[inline]
    pub(crate) fn put(&self, held: Held<A, B>) {
        let () = Self::EVEN;
        let word = match held {
            Held::Nothing => ptr::null_mut(),
            Held::Reference(reference) => ManuallyDrop::new(reference).at.as_ptr().cast(),
            Held::Boxed(boxed) => Box::into_raw(boxed).cast::<()>().wrapping_byte_add(1),
        };
        let before = self.take();
        self.word.set(word);
        drop(before);
    }
}

impl<A: Ends, B> Drop for Aside<A, B> {
    #[inline]
    fn drop(&mut self) {
        if !self.holds_nothing() {
            drop(self.take());
        }
    }
}

/// A cell whose value is taken out to be used, so that no borrow is held while foreign code runs.
pub(crate) struct TakeCell<T>(Cell<Option<T>>);

impl<T> TakeCell<T> {
    pub(crate) const fn new(value: Option<T>) -> Self {
        TakeCell(Cell::new(value))
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.0.take()
    }

    pub(crate) fn put(&self, value: T) {
        self.0.set(Some(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    struct Add<F>(F);

    impl<F: FnOnce(&Rc<RefCell<Vec<i64>>>) + 'static> Entry<Rc<RefCell<Vec<i64>>>> for Add<F> {
        type Output = ();
        fn run(self, log: &Rc<RefCell<Vec<i64>>>) {
            (self.0)(log)
        }
    }

    type Queue = Levels<Rc<RefCell<Vec<i64>>>, ()>;

    fn drain(queue: &Queue) -> Vec<i64> {
        let log = Rc::new(RefCell::new(vec![]));
        while queue.run_next(&log).is_some() {}
        log.take()
    }

    #[test]
    fn entries_of_any_size_come_out_in_order() {
        let queue = Queue::new();
        for i in 0..100 {
            queue.push(Add(move |log: &Rc<RefCell<Vec<i64>>>| {
                log.borrow_mut().push(i)
            }));
            let large = [i; 40];
            queue.push(Add(move |log: &Rc<RefCell<Vec<i64>>>| {
                log.borrow_mut().push(large[39])
            }));
            queue.push(Add(|log: &Rc<RefCell<Vec<i64>>>| log.borrow_mut().push(-1)));
        }
        let want: Vec<i64> = (0..100).flat_map(|i| [i, i, -1]).collect();
        assert_eq!(drain(&queue), want);
        assert!(queue.is_empty());
    }

    #[test]
    fn an_entry_may_push_while_it_runs() {
        fn again(queue: Rc<Queue>, n: i64) -> impl Entry<Rc<RefCell<Vec<i64>>>, Output = ()> {
            Add(move |log: &Rc<RefCell<Vec<i64>>>| {
                log.borrow_mut().push(n);
                for k in 0..n {
                    queue.push(again(queue.clone(), k));
                }
            })
        }
        let queue = Rc::new(Queue::new());
        queue.push(again(queue.clone(), 6));
        let log = drain(&queue);
        assert_eq!(log.len(), 64);
        assert_eq!(log[..8], [6, 0, 1, 2, 3, 4, 5, 0]);
    }

    #[test]
    fn what_did_not_run_is_dropped_once() {
        let owned = Rc::new(());
        let queue = Queue::new();
        for _ in 0..20 {
            let (one, other) = (owned.clone(), owned.clone());
            queue.push(Add(move |_: &Rc<RefCell<Vec<i64>>>| drop(one)));
            let large = [0u8; 300];
            queue.push(Add(move |_: &Rc<RefCell<Vec<i64>>>| drop((other, large))));
        }
        assert_eq!(Rc::strong_count(&owned), 41);
        let log = Rc::default();
        for _ in 0..5 {
            queue.run_next(&log);
        }
        assert_eq!(Rc::strong_count(&owned), 36);
        drop(queue);
        assert_eq!(Rc::strong_count(&owned), 1);
    }

    #[test]
    fn a_queue_that_is_never_empty_does_not_grow() {
        let queue = Queue::new();
        let log: Rc<RefCell<Vec<i64>>> = Rc::default();
        for i in 0..3 {
            queue.push(Add(move |log: &Rc<RefCell<Vec<i64>>>| {
                log.borrow_mut().push(i)
            }));
        }
        for i in 3..10_000 {
            queue.push(Add(move |log: &Rc<RefCell<Vec<i64>>>| {
                log.borrow_mut().push(i)
            }));
            queue.run_next(&log);
        }
        // SAFETY: nothing else looks at the queue.
        let capacity = unsafe { (*(*queue.inner.get()).block().unwrap().as_ptr()).capacity };
        assert_eq!(capacity, FIRST_BLOCK);
        assert_eq!(*log.borrow(), (0..9_997).collect::<Vec<_>>());
    }

    #[test]
    fn a_block_that_is_empty_is_filled_again() {
        let queue = Queue::new();
        let log: Rc<RefCell<Vec<i64>>> = Rc::default();
        let add = |i: i64| {
            queue.push(Add(move |log: &Rc<RefCell<Vec<i64>>>| {
                log.borrow_mut().push(i)
            }))
        };
        for i in 0..30 {
            (0..2).for_each(|k| add(2 * i + k));
            while queue.run_next(&log).is_some() {}
        }
        // SAFETY: nothing else looks at the queue.
        let capacity = unsafe { (*(*queue.inner.get()).block().unwrap().as_ptr()).capacity };
        assert_eq!(capacity, FIRST_BLOCK);
        (60..200).for_each(add);
        drain(&queue)
            .into_iter()
            .for_each(|i| log.borrow_mut().push(i));
        assert_eq!(*log.borrow(), (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn an_over_aligned_entry_and_value_are_boxed() {
        #[repr(align(64))]
        struct Wide(i64);
        let queue = Queue::new();
        let wide = Wide(7);
        queue.push(Add(move |log: &Rc<RefCell<Vec<i64>>>| {
            let wide = wide;
            assert!((&raw const wide).is_aligned());
            log.borrow_mut().push(wide.0)
        }));
        assert_eq!(drain(&queue), [7]);
        let value = Erased::new(Wide(8));
        assert!((value.downcast_ref::<Wide>().unwrap() as *const Wide).is_aligned());
        assert_eq!(value.downcast::<Wide>().ok().unwrap().0, 8);
    }

    struct Owner(Rc<()>, Cell<u32>);

    thread_local! {
        static KEPT: RefCell<Vec<LastRef<Owner>>> = const { RefCell::new(Vec::new()) };
        static OWNERS: Chunks = const { Chunks::new(Counted::<Owner>::LAYOUT) };
    }

    impl Ends for Owner {
        fn end(last: LastRef<Self>) {
            KEPT.with_borrow_mut(|kept| kept.push(last));
        }

        fn pieces() -> &'static LocalKey<Chunks> {
            &OWNERS
        }
    }

    #[test]
    fn a_counted_value_ends_once_and_may_be_taken_up_again_before() {
        let owned = Rc::new(());
        let one = Counted::new(Owner(owned.clone(), Cell::new(7)));
        let (other, weak) = (one.clone(), one.downgrade());
        drop(one);
        assert!(KEPT.with_borrow(Vec::is_empty));
        drop(other);
        let again = weak.clone().upgrade().unwrap();
        KEPT.take(); // not the last one any more
        assert_eq!((Rc::strong_count(&owned), again.1.get()), (2, 7));
        drop(again);
        KEPT.take();
        assert_eq!(Rc::strong_count(&owned), 1);
        assert!(weak.upgrade().is_none());
    }

    const THREE_WORDS: Layout = Layout::new::<[usize; 3]>();

    /// The chunks of a list, which are consistent.
    fn listed(chunks: &Chunks) -> Vec<ChunkRef> {
        let mut before = None;
        let listed = std::iter::successors(chunks.with_room.get(), |chunk| chunk.next.get());
        listed
            .inspect(|chunk| {
                assert!(chunk.in_list.get() && !chunk.is_full());
                assert!(chunk.before.get() == before.replace(*chunk));
            })
            .collect()
    }

    /// A piece that was taken, with a number in each of its words.
    fn numbered(chunks: &Chunks, number: usize) -> NonNull<[usize; 3]> {
        let piece = chunks.take().cast();
        assert!(piece.is_aligned());
        // SAFETY: it has this layout, and nobody else uses it.
        unsafe { piece.write([number; 3]) };
        piece
    }

    /// Gives pieces back, in which their numbers still are.
    fn give_back(chunks: &Chunks, pieces: impl IntoIterator<Item = (usize, NonNull<[usize; 3]>)>) {
        for (number, piece) in pieces {
            // SAFETY: it came from there, and is given back once.
            unsafe {
                assert_eq!(piece.read(), [number; 3]);
                chunks.give_back(piece.cast());
            }
        }
    }

    #[test]
    fn pieces_do_not_overlap_and_are_used_again_and_empty_chunks_are_put_aside() {
        let chunks = Chunks::new(THREE_WORDS);
        let many = 5 * Chunk::pieces(THREE_WORDS) as usize / 2;
        for round in 0..4 {
            let taken: Vec<_> = (0..many).map(|n| (n, numbered(&chunks, n))).collect();
            assert_eq!(listed(&chunks).len(), 1);
            let (some, others): (Vec<_>, Vec<_>) =
                taken.into_iter().partition(|(n, _)| n % 3 != round % 3);
            give_back(&chunks, some);
            assert_eq!(listed(&chunks).len(), 3);
            let again: Vec<_> = (0..many / 2).map(|n| (n, numbered(&chunks, n))).collect();
            give_back(&chunks, others.into_iter().rev());
            give_back(&chunks, again);
            assert_eq!((listed(&chunks).len(), chunks.kept.get()), (1, 2));
        }
    }

    #[test]
    fn so_many_empty_chunks_are_kept_and_no_more() {
        let chunks = Chunks::new(THREE_WORDS);
        let many = (MOST_EMPTY + 2) * Chunk::pieces(THREE_WORDS);
        let taken: Vec<_> = (0..many as usize)
            .map(|n| (n, numbered(&chunks, n)))
            .collect();
        give_back(&chunks, taken);
        assert_eq!((listed(&chunks).len(), chunks.kept.get()), (1, MOST_EMPTY));
        assert_eq!(chunks.chunks.get(), 1 + MOST_EMPTY);
    }

    #[test]
    fn a_piece_may_outlive_the_list_of_its_chunk() {
        let chunks = Chunks::new(THREE_WORDS);
        let many = Chunk::pieces(THREE_WORDS) as usize;
        let mut pieces: Vec<_> = (0..=many).map(|n| numbered(&chunks, n)).collect();
        // The second chunk is empty, and was the only one with room; the first then has some too.
        give_back(&chunks, pieces.pop().map(|piece| (many, piece)));
        give_back(&chunks, pieces.pop().map(|piece| (many - 1, piece)));
        assert_eq!(listed(&chunks).len(), 2);
        drop(chunks);
        for (number, piece) in pieces.into_iter().enumerate() {
            // SAFETY: its chunk lives as long as one of its pieces, each of which is given back once.
            unsafe {
                assert_eq!(piece.read(), [number; 3]);
                Chunk::of(piece.cast()).give_back_last(piece.cast());
            }
        }
    }

    #[test]
    fn spare_pieces_are_used_again_up_to_a_bound() {
        let spares = Spares::with_room(THREE_WORDS, 2);
        let pieces: Vec<_> = (0..3).map(|_| fresh(THREE_WORDS)).collect();
        // SAFETY: each was allocated with this layout, and is used no more once it is kept.
        let kept: Vec<bool> = pieces
            .iter()
            .map(|piece| unsafe { spares.keep(*piece) })
            .collect();
        assert_eq!(kept, [true, true, false]);
        assert_eq!(
            [spares.take(), spares.take(), spares.take()],
            [Some(pieces[1]), Some(pieces[0]), None]
        );
        for piece in pieces {
            // SAFETY: as above; nobody has it any more.
            unsafe { alloc::dealloc(piece.as_ptr(), THREE_WORDS) }
        }
    }

    #[test]
    fn one_word_holds_a_reference_or_a_box() {
        let owned = Rc::new(());
        let aside: Aside<Owner, (Rc<()>, u64)> = Aside::empty();
        assert!(aside.holds_nothing() && matches!(aside.take(), Held::Nothing));
        aside.put(Held::Boxed(Box::new((owned.clone(), 9))));
        assert!(aside.holds_box());
        aside.put(Held::Reference(Counted::new(Owner(
            owned.clone(),
            Cell::new(8),
        ))));
        assert!(!aside.holds_box() && !aside.holds_nothing());
        assert_eq!(Rc::strong_count(&owned), 2);
        let Held::Reference(owner) = aside.take() else {
            panic!("a reference was put there")
        };
        assert_eq!(owner.1.get(), 8);
        aside.put(Held::Boxed(Box::new((owner.0.clone(), 9))));
        let Held::Boxed(boxed) = aside.take() else {
            panic!("a box was put there")
        };
        assert_eq!(boxed.1, 9);
        aside.put(Held::Boxed(boxed));
        drop((aside, owner));
        KEPT.take();
        assert_eq!(Rc::strong_count(&owned), 1);
    }

    #[test]
    fn a_small_call_owns_its_closure_until_it_is_called_or_dropped() {
        let owned = Rc::new(Cell::new(0));
        let add = |n: u64| {
            let owned = owned.clone();
            move || owned.set(owned.get() + n)
        };
        let large = {
            let (add, more) = (add(10), [100; 9]);
            move || {
                add();
                owned_by_nobody(&more);
            }
        };
        fn owned_by_nobody(more: &[u64; 9]) {
            assert_eq!(more.iter().sum::<u64>(), 900);
        }
        let calls = [
            SmallCall::new(add(1)),
            SmallCall::new(large),
            SmallCall::new(Box::new(add(3)) as Box<dyn FnOnce()>),
            SmallCall::new(|| ()),
        ];
        assert_eq!(Rc::strong_count(&owned), 4);
        calls.into_iter().for_each(SmallCall::call);
        assert_eq!((Rc::strong_count(&owned), owned.get()), (1, 14));
        drop([SmallCall::new(add(1)), SmallCall::new(Box::new(add(1)))]);
        assert_eq!((Rc::strong_count(&owned), owned.get()), (1, 14));
        let bomb = add(1);
        let call = SmallCall::new(move || {
            bomb();
            panic!("inside")
        });
        assert!(crate::contain(|| call.call()).is_err());
        assert_eq!((Rc::strong_count(&owned), owned.get()), (1, 15));
    }

    #[test]
    fn a_value_comes_back_as_its_own_type_only() {
        let value = Erased::new(String::from("three words"));
        assert!(value.downcast_ref::<i64>().is_none());
        let value = value.downcast::<i64>().err().unwrap();
        assert_eq!(value.downcast::<String>().ok().unwrap(), "three words");
        let owned = Rc::new(());
        drop(Erased::new((owned.clone(), [0u64; 9])));
        drop(Erased::new(owned.clone()));
        assert_eq!(Rc::strong_count(&owned), 1);
    }
}

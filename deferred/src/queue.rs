//! Items that wait for takers, or takers that wait for items: Twisted's `DeferredQueue`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use crate::waiters::{self, HandOver, Waiters};
use crate::{Deferred, fail, succeed};

/// A queue whose `get` gives a Deferred: of an item that is there, or of the next one that will be put.
///
/// ```
/// use errback_deferred::DeferredQueue;
/// let jobs = DeferredQueue::new();
/// let first = jobs.get(); // waits
/// jobs.put("sweep")?;
/// jobs.put("mop")?;
/// let second = jobs.get(); // has fired
/// # first.add_callback(|job| assert_eq!(job, "sweep"));
/// # second.add_callback(|job| assert_eq!(job, "mop"));
/// # Ok::<(), errback_deferred::Failure>(())
/// ```
///
/// A clone is another handle to the same queue.
pub struct DeferredQueue<T> {
    inner: Rc<Inner<T>>,
}

struct Inner<T> {
    size: Option<usize>,
    backlog: Option<usize>,
    items: RefCell<VecDeque<T>>,
    /// When there are items too, the first of them are on their way to these (see `waiters.rs`).
    takers: Waiters<T>,
}

impl<T: 'static> DeferredQueue<T> {
    /// A queue without limits.
    pub fn new() -> Self {
        DeferredQueue::with_limits(None, None)
    }

    /// A queue of at most `size` items that nobody has taken yet, and at most `backlog` takers that wait; `None` is no
    /// limit.
    ///
    /// ```
    /// use errback_deferred::{DeferredQueue, QueueUnderflow};
    /// let queue = DeferredQueue::with_limits(Some(1), Some(0));
    /// assert!(queue.put(1).is_ok());
    /// assert_eq!(queue.put(2).unwrap_err().into_item(), 2);
    /// # queue.get().add_callback(|n| assert_eq!(n, 1));
    /// queue.get().add_errback(|failure| failure.trap::<QueueUnderflow>().map(|_| 0));
    /// ```
    pub fn with_limits(size: Option<usize>, backlog: Option<usize>) -> Self {
        DeferredQueue {
            inner: Rc::new(Inner {
                size,
                backlog,
                items: RefCell::new(VecDeque::new()),
                takers: Waiters::new(),
            }),
        }
    }

    /// Gives an item to the first who waits, whose callbacks have run when this returns, or keeps it.
    ///
    /// # Errors
    /// [`QueueOverflow`], with the item in it, when nobody waits and the queue is full.
    pub fn put(&self, item: T) -> Result<(), QueueOverflow<T>> {
        let mut items = self.inner.items.borrow_mut();
        let wanted = self.inner.takers.len() > items.len();
        let kept = items.len().saturating_sub(self.inner.takers.len());
        if !wanted && self.inner.size.is_some_and(|size| kept >= size) {
            return Err(QueueOverflow { item });
        }
        items.push_back(item);
        drop(items);
        if wanted {
            waiters::hand_over(self.inner.clone());
        }
        Ok(())
    }

    /// Takes the next item, or waits for it.
    ///
    /// Cancelling the Deferred while it waits takes it out of the line. It fails with [`QueueUnderflow`] when as many wait
    /// as may (in Twisted `get` itself raises that).
    #[track_caller]
    pub fn get(&self) -> Deferred<T> {
        let mut items = self.inner.items.borrow_mut();
        let promised = self.inner.takers.len();
        if let Some(item) = items.remove(promised) {
            drop(items);
            return succeed(item);
        }
        let waiting = promised - items.len();
        drop(items);
        if self.inner.backlog.is_some_and(|most| waiting >= most) {
            return fail(QueueUnderflow);
        }
        self.inner.takers.join()
    }

    /// How many items wait for takers.
    pub fn len(&self) -> usize {
        let items = self.inner.items.borrow().len();
        items.saturating_sub(self.inner.takers.len())
    }

    /// Whether no item waits for a taker.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many takers wait for items.
    pub fn waiting(&self) -> usize {
        let items = self.inner.items.borrow().len();
        self.inner.takers.len().saturating_sub(items)
    }
}

impl<T: 'static> HandOver for Inner<T> {
    fn hand_over(self: Rc<Self>) {
        // A taker that was cancelled in the meantime left its item in the queue.
        let taker = match self.items.borrow().is_empty() {
            true => None,
            false => self.takers.next(),
        };
        let Some(taker) = taker else { return };
        let item = self.items.borrow_mut().pop_front();
        let item = item.expect("there is an item, and nothing has run since we looked");
        let _ = taker.callback(item);
    }
}

impl<T> Clone for DeferredQueue<T> {
    fn clone(&self) -> Self {
        DeferredQueue {
            inner: self.inner.clone(),
        }
    }
}

impl<T: 'static> Default for DeferredQueue<T> {
    fn default() -> Self {
        DeferredQueue::new()
    }
}

impl<T: 'static> fmt::Debug for DeferredQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (items, waiting) = (self.len(), self.waiting());
        write!(f, "<DeferredQueue: {items} items, {waiting} waiting>")
    }
}

/// The queue is full. It gives the item back.
#[derive(Clone, PartialEq, Eq)]
pub struct QueueOverflow<T = ()> {
    item: T,
}

impl<T> QueueOverflow<T> {
    /// The item that the queue did not take.
    pub fn into_item(self) -> T {
        self.item
    }

    /// The same without the item, for when that cannot be sent along.
    pub fn without_item(self) -> QueueOverflow {
        QueueOverflow { item: () }
    }
}

impl<T> fmt::Display for QueueOverflow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is full")
    }
}

impl<T> fmt::Debug for QueueOverflow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueueOverflow")
    }
}

impl<T> std::error::Error for QueueOverflow<T> {}

/// As many wait for an item of the queue as may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueUnderflow;

impl fmt::Display for QueueUnderflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is empty, and too many wait for its next item already")
    }
}

impl std::error::Error for QueueUnderflow {}

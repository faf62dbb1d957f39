//! One task over many arguments: `pool.map(task, items)`, and the same as a Deferred.
//!
//! Items travel in chunks, one message each, because a message costs more than most small items: two system calls and a
//! wake-up on either side. A chunk's items share its fate when their worker dies, and the first waits for the last; so a
//! chunk should be as large as needed and no larger.
//!
//! The iterator is lazy, as iterators are. It keeps so many chunks out that all workers are busy, and takes more from its
//! source only as results are consumed: a source without end is fine, and so is a consumer that stops early.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use errback_deferred::{Deferred, Failure, ReactorCore, gather_results};
use parking_lot::{Condvar, Mutex};

use crate::defer_to_process::defer_call;
use crate::error::InternalError;
use crate::pool::{Encoded, Pool, Results};
use crate::task::{Limits, Task};

/// How many chunks for each worker are out at a time: one that runs, and enough behind it that none goes idle while the
/// results of another are consumed.
const AHEAD: usize = 4;
/// How many parts a known number of items is divided into for each worker, so that an uneven load evens out.
const PARTS: usize = 4;
/// The largest chunk by default. By then a chunk's own cost, four switches between threads and their wait for a CPU, is a
/// small part of that of its items, however small they are, and the workers need not wait long for the first.
const LARGEST: usize = 1 << 14;
/// The largest chunk when it is not known how many items there are, nor that they are small.
const LARGEST_UNKNOWN: usize = 1 << 10;
/// Chunks of that size whose results are there so soon are of small items.
const SOON: Duration = Duration::from_millis(4);

/// What stands for one call in a list of them: the argument itself for a task of one argument, the tuple of them for
/// others.
///
/// ```no_run
/// # #[errback::task] fn square(n: u64) -> u64 { n * n }
/// # #[errback::task] fn add(a: i64, b: i64) -> i64 { a + b }
/// # let pool = errback::Pool::new()?;
/// let squares = pool.map(square, 0..10);
/// let sums = pool.map(add, [(1, 2), (3, 4)]);
/// # Ok::<(), errback::BuildError>(())
/// ```
pub trait MapItem<Args> {
    /// The arguments of the call.
    fn into_args(self) -> Args;
}

impl MapItem<()> for () {
    fn into_args(self) {}
}

impl<A> MapItem<(A,)> for A {
    fn into_args(self) -> (A,) {
        (self,)
    }
}

macro_rules! tuples_are_items {
    ($($first:ident $($rest:ident)+;)*) => {$(
        impl<$first, $($rest),+> MapItem<($first, $($rest),+)> for ($first, $($rest),+) {
            fn into_args(self) -> Self {
                self
            }
        }
    )*};
}

tuples_are_items! {
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
    A B C D E F G H I;
    A B C D E F G H I J;
    A B C D E F G H I J K;
    A B C D E F G H I J K L;
}

impl Pool {
    /// A lazy iterator that runs a task on each of the items, in worker processes, and gives the results in the order of the
    /// items.
    ///
    /// Nothing happens before it is asked for the first result, and it takes its items as results
    /// are consumed, some chunks ahead. Asking for a result that is not there blocks the thread.
    ///
    /// ```no_run
    /// # #[errback::task] fn square(n: u64) -> u64 { n * n }
    /// # let pool = errback::Pool::new()?;
    /// let squares: Vec<u64> = pool.map(square, 0..1_000_000).collect::<Result<_, _>>()?;
    /// for (index, result) in pool.map(square, 0..100).chunk_size(10).as_completed() {
    ///     println!("{index}: {}", result?);
    /// }
    /// # Ok::<(), errback::Failure>(())
    /// ```
    ///
    /// # Errors
    /// Each item has its own, as in [`apply_async`](Pool::apply_async), but a worker that dies fails all items of its
    /// chunk: [`chunk_size(1)`](Map::chunk_size) for tasks that may kill their worker.
    pub fn map<F: Task, I>(&self, task: F, items: I) -> Map<F, I::IntoIter>
    where
        I: IntoIterator,
        I::Item: MapItem<F::Args>,
    {
        let items = items.into_iter();
        let size = ChunkSize::for_task(task, items.size_hint(), self.size());
        let out = Out {
            pool: self.clone(),
            task,
            done: Arc::new(Done {
                chunks: Mutex::default(),
                another: Condvar::new(),
            }),
            chunks: BTreeMap::new(),
        };
        Map {
            items,
            size,
            taken: 0,
            out,
            ready: Vec::new().into_iter(),
            next: 0,
            early: BTreeMap::new(),
        }
    }
}

/// As [`Pool::map`], for an event loop: the Deferred fires with all results, in the order of the items, when the last is
/// there.
///
/// All chunks are submitted at once, here. Cancelling cancels them all. A worker that dies fails all items of its chunk; items
/// of a task with a [`timeout`](Task::timeout) travel alone.
///
/// ```no_run
/// # #[errback::task] fn square(n: u64) -> u64 { n * n }
/// # let reactor = errback::Reactor::new()?;
/// let pool = errback::process_pool(&reactor)?;
/// let d = errback::map_to_process(&reactor, &pool, square, 0..1000).add_callback(|squares| {
///     println!("{} of them are there", squares.iter().filter(|result| result.is_ok()).count());
/// });
/// # d.log_failure();
/// # Ok::<(), errback::Failure>(())
/// ```
///
/// # Errors
/// Each item has its own. The Deferred itself fails when it is cancelled.
#[track_caller]
pub fn map_to_process<F: Task, I>(
    event_loop: &impl ReactorCore,
    pool: &Pool,
    task: F,
    items: I,
) -> Deferred<Vec<Result<F::Output, Failure>>>
where
    I: IntoIterator,
    I::Item: MapItem<F::Args>,
{
    let mut items = items.into_iter();
    let mut size = ChunkSize::for_task(task, items.size_hint(), pool.size());
    let mut chunks = Vec::new();
    loop {
        let chunk: Vec<F::Args> = items
            .by_ref()
            .take(size.next())
            .map(MapItem::into_args)
            .collect();
        if chunk.is_empty() {
            break;
        }
        encode(pool, task, chunk, &mut |call| {
            chunks.push(match call {
                Ok(call) => defer_call(event_loop, pool, call),
                Err(failure) => errback_deferred::succeed(vec![Err(failure)]),
            });
        });
    }
    gather_results(chunks).add_callback(|chunks| Ok(joined(chunks)))
}

fn joined<T>(chunks: Vec<Vec<T>>) -> Vec<T> {
    let mut all = Vec::with_capacity(chunks.iter().map(Vec::len).sum());
    for chunk in chunks {
        all.extend(chunk);
    }
    all
}

/// The results of a task over many items; see [`Pool::map`].
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct Map<F: Task, I: Iterator> {
    items: I,
    size: ChunkSize,
    /// How many items have been taken.
    taken: usize,
    out: Out<F>,
    /// Results that come next.
    ready: IntoIter<Result<F::Output, Failure>>,
    /// The first item whose result is not in `ready`.
    next: usize,
    /// Chunks that were done before an earlier one.
    early: BTreeMap<usize, Results<F>>,
}

/// A chunk that is done: the number of its first item, and the results.
type Chunk<T> = (usize, Vec<Result<T, Failure>>);

/// Chunks that are done and that nobody has looked at. The standard library's channel would do, but for a host that forks:
/// when its receiver is dropped in the child, it may wait for ever for who was just sending at the fork.
struct Done<T> {
    chunks: Mutex<VecDeque<Chunk<T>>>,
    another: Condvar,
}

impl<T> Done<T> {
    fn send(&self, first: usize, results: Vec<Result<T, Failure>>) {
        self.chunks.lock().push_back((first, results));
        self.another.notify_one();
    }

    fn receive(&self) -> Chunk<T> {
        let mut chunks = self.chunks.lock();
        loop {
            match chunks.pop_front() {
                Some(chunk) => return chunk,
                None => self.another.wait(&mut chunks),
            }
        }
    }
}

/// The chunks that are with the pool.
struct Out<F: Task> {
    pool: Pool,
    task: F,
    done: Arc<Done<F::Output>>,
    /// By the first item of each.
    chunks: BTreeMap<usize, Sent>,
}

/// A chunk that is with the pool.
struct Sent {
    items: usize,
    at: Instant,
}

impl<F: Task, I> Map<F, I>
where
    I: Iterator,
    I::Item: MapItem<F::Args>,
{
    /// How many items travel together. Default: a number of items that is known is divided into four parts for each
    /// worker, or more, of at most 16,384 items; otherwise chunks grow from 1 to 1,024, and on to 16,384 if their results come
    /// within milliseconds. Items of a task with a
    /// [`timeout`](Task::timeout) or an [expiry](Task::expires) travel alone; in chunks that you ask for, the limit is the whole chunk's.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.size = ChunkSize::Fixed(items.max(1));
        self
    }

    /// Gives results as they come, each with the number of its item.
    ///
    /// Those of a chunk come together and in their order.
    pub fn as_completed(self) -> AsCompleted<F, I> {
        AsCompleted {
            map: self,
            ready: VecDeque::new(),
        }
    }

    /// Keeps the workers busy.
    fn refill(&mut self) {
        while self.out.chunks.len() < AHEAD * self.out.pool.size() {
            let chunk: Vec<F::Args> = self
                .items
                .by_ref()
                .take(self.size.next())
                .map(MapItem::into_args)
                .collect();
            if chunk.is_empty() {
                return;
            }
            let items = chunk.len();
            self.out.submit(self.taken, chunk);
            self.taken += items;
        }
    }

    /// Waits for the results that come next; `None` at the end.
    #[inline(never)]
    fn next_chunk(&mut self) -> Option<()> {
        loop {
            if let Some(results) = self.early.remove(&self.next) {
                self.next += results.len();
                self.ready = results.into_iter();
                return Some(());
            }
            let (first, results) = self.receive()?;
            self.early.insert(first, results);
        }
    }

    /// The next chunk that is done, whichever; `None` at the end.
    fn receive(&mut self) -> Option<Chunk<F::Output>> {
        self.refill();
        if let Some(why) = self.out.pool.shared().forked() {
            // Those that were out at the fork come to their end in the other process.
            let (first, sent) = self.out.chunks.pop_first()?;
            let results = (0..sent.items).map(|_| Err(why.clone())).collect();
            return Some((first, results));
        }
        if self.out.chunks.is_empty() {
            return None;
        }
        // Each chunk that is out comes in once, also when it is lost.
        let chunk = self.out.done.receive();
        if let Some(Sent { items, at }) = self.out.chunks.remove(&chunk.0) {
            self.size.saw(items, at.elapsed());
        }
        self.refill();
        Some(chunk)
    }
}

impl<F: Task, I> Iterator for Map<F, I>
where
    I: Iterator,
    I::Item: MapItem<F::Args>,
{
    type Item = Result<F::Output, Failure>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.ready.next() {
                Some(result) => return Some(result),
                None => self.next_chunk()?,
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let given = self.next - self.ready.len();
        let (least, most) = self.items.size_hint();
        let taken = self.taken - given;
        (
            least.saturating_add(taken),
            most.and_then(|most| most.checked_add(taken)),
        )
    }
}

impl<F: Task, I: Iterator> fmt::Debug for Map<F, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("taken", &self.taken)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The results of a task over many items as they come; see [`Map::as_completed`].
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct AsCompleted<F: Task, I: Iterator> {
    map: Map<F, I>,
    ready: VecDeque<(usize, Result<F::Output, Failure>)>,
}

impl<F: Task, I> Iterator for AsCompleted<F, I>
where
    I: Iterator,
    I::Item: MapItem<F::Args>,
{
    type Item = (usize, Result<F::Output, Failure>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() {
            let (first, results) = self.map.receive()?;
            self.ready = (first..).zip(results).collect();
        }
        self.ready.pop_front()
    }
}

impl<F: Task, I: Iterator> fmt::Debug for AsCompleted<F, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

impl<F: Task> Out<F> {
    fn submit(&mut self, mut first: usize, chunk: Vec<F::Args>) {
        let Out {
            pool,
            task,
            done,
            chunks,
        } = self;
        encode(pool, *task, chunk, &mut |call| {
            let items = call.as_ref().map_or(1, Encoded::items);
            let at = Instant::now();
            chunks.insert(first, Sent { items, at });
            if pool.shared().forked().is_some() {
                first += items;
                return; // see `receive`; and the other's lock may be held by who is not here
            }
            let end = ChunkEnd {
                done: Arc::clone(done),
                first,
                items,
            };
            first += items;
            match call {
                // A refused job has been failed; nobody cancels one of ours.
                Ok(call) => pool.submit(call, move |results| end.send(results)),
                Err(failure) => end.send(Ok(vec![Err(failure)])),
            }
        });
    }
}

/// Encodes a chunk; in halves, and at last one by one, when an item cannot be encoded, or all together are too large.
fn encode<F: Task>(
    pool: &Pool,
    task: F,
    mut chunk: Vec<F::Args>,
    each: &mut dyn FnMut(Result<Encoded<Results<F>>, Failure>),
) {
    match pool.encode_chunk(task, &chunk) {
        Ok(call) => each(Ok(call)),
        Err(error) if chunk.len() == 1 => each(Err(error.into())),
        Err(_) => {
            let rest = chunk.split_off(chunk.len() / 2);
            encode(pool, task, chunk, each);
            encode(pool, task, rest, each);
        }
    }
}

/// What a chunk's job ends with: it tells the iterator, in any case and once.
struct ChunkEnd<T> {
    done: Arc<Done<T>>,
    first: usize,
    /// 0 when it has been told.
    items: usize,
}

impl<T> ChunkEnd<T> {
    fn send(mut self, results: Result<Vec<Result<T, Failure>>, Failure>) {
        let items = std::mem::take(&mut self.items);
        let results =
            results.unwrap_or_else(|failure| (0..items).map(|_| Err(failure.clone())).collect());
        self.done.send(self.first, results);
    }
}

impl<T> Drop for ChunkEnd<T> {
    fn drop(&mut self) {
        if self.items > 0 {
            let lost = Failure::from(InternalError {
                message: "a chunk was lost".to_string(),
            });
            let results = (0..self.items).map(|_| Err(lost.clone())).collect();
            self.done.send(self.first, results);
        }
    }
}

/// How many items the next chunk has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ChunkSize {
    Fixed(usize),
    /// Twice the last one, up to a limit.
    Growing {
        next: usize,
        most: usize,
    },
}

impl ChunkSize {
    /// The default; see [`Map::chunk_size`].
    fn of(hint: (usize, Option<usize>), workers: usize) -> Self {
        match hint {
            (items, Some(same)) if items == same => {
                // As many for one worker as for the other.
                let chunks = items.div_ceil(LARGEST).next_multiple_of(workers);
                let chunks = chunks.max(workers * PARTS);
                ChunkSize::Fixed(items.div_ceil(chunks).max(1))
            }
            _ => ChunkSize::Growing {
                next: 1,
                most: LARGEST_UNKNOWN,
            },
        }
    }

    /// A task's limits are those of each item, so items do not share them.
    fn for_task(task: impl Task, hint: (usize, Option<usize>), workers: usize) -> Self {
        match task.limits() == Limits::default() {
            true => ChunkSize::of(hint, workers),
            false => ChunkSize::Fixed(1),
        }
    }

    fn next(&mut self) -> usize {
        match self {
            ChunkSize::Fixed(items) => *items,
            ChunkSize::Growing { next, most } => {
                let now = *next;
                *next = (now * 2).min(*most);
                now
            }
        }
    }

    /// The results of a chunk of so many items have come after this time.
    fn saw(&mut self, items: usize, after: Duration) {
        if let ChunkSize::Growing { most, .. } = self
            && items == *most
            && after < SOON
        {
            *most = (items * 2).min(LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_number_of_items_is_divided_evenly_and_an_unknown_one_probed() {
        assert_eq!(
            ChunkSize::of((8_000, Some(8_000)), 2),
            ChunkSize::Fixed(1_000)
        );
        assert_eq!(ChunkSize::of((3, Some(3)), 2), ChunkSize::Fixed(1));
        assert_eq!(ChunkSize::of((0, Some(0)), 2), ChunkSize::Fixed(1));
        // Two more than need be would make the last of them short.
        let many = ChunkSize::of((200_000, Some(200_000)), 2);
        assert_eq!(many, ChunkSize::Fixed(200_000_usize.div_ceil(14)));
        assert_eq!(
            ChunkSize::of((usize::MAX, Some(usize::MAX)), 64),
            ChunkSize::Fixed(LARGEST)
        );
        let mut unknown = ChunkSize::of((0, None), 2);
        let sizes: Vec<usize> = (0..13).map(|_| unknown.next()).collect();
        assert_eq!(sizes[..4], [1, 2, 4, 8]);
        assert_eq!(sizes[12], LARGEST_UNKNOWN);
    }

    #[test]
    fn chunks_of_an_unknown_number_of_items_grow_on_if_they_come_back_soon() {
        let mut unknown = ChunkSize::of((0, None), 2);
        let after_largest = |unknown: &mut ChunkSize, after| {
            while unknown.next() < LARGEST_UNKNOWN {}
            unknown.saw(LARGEST_UNKNOWN / 2, Duration::ZERO);
            unknown.saw(LARGEST_UNKNOWN, after);
            unknown.next();
            unknown.next()
        };
        assert_eq!(after_largest(&mut unknown, SOON), LARGEST_UNKNOWN);
        let soon = SOON / 2;
        assert_eq!(after_largest(&mut unknown, soon), 2 * LARGEST_UNKNOWN);
        for _ in 0..2 * LARGEST.ilog2() {
            let items = unknown.next();
            unknown.saw(items, soon);
        }
        assert_eq!(unknown.next(), LARGEST);
    }
}

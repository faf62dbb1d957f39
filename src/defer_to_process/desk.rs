//! The jobs that a loop has in one pool, and how their results come home to it.
//!
//! The firing end of a job's Deferred stays here, in a table; the job knows its number there, and, with all others of its task,
//! the [`Way`] home. On that its result is decoded, on a thread of the pool as a rule, and put on the desk's pile;
//! the first one on it has the loop called, and the call fires the Deferreds of all that lie there by then. So a job that
//! waits costs nothing here beside its Deferred, and the answers of a batch cost one call.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::mem;
use std::rc::{Rc, Weak as RcWeak};
use std::sync::{Arc, Weak};

use errback_deferred::{
    Deferred, Failure, LoopGone, ReactorCore, ReactorFromThreads, ResolverTable, contain, log_err,
};
use parking_lot::Mutex;

use super::listener::Listener;
use super::loop_end::{LoopEnd, is_handle_of};
use crate::pool::{
    Called, Decode, Encoded, End, Ending, JobKey, Outcome, Owner, Pool, Shared, lost,
};

thread_local! {
    /// Those of this thread's loops.
    static DESKS: RefCell<Vec<Rc<Desk>>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(super) struct Desk {
    /// Weak, as the next: neither is to outlive its last user for having been known here. (A loop's handle holds a descriptor.)
    event_loop: Weak<dyn ReactorFromThreads>,
    pool: Weak<Shared>,
    /// How many jobs are out.
    jobs: Cell<usize>,
    /// The jobs hold it by their ways, which have no other one to the loop.
    pile: RefCell<Weak<Pile>>,
    ways: RefCell<Vec<KnownWay>>,
    /// The firing ends of their Deferreds: a [`Table`] for each type of result.
    tables: RefCell<Vec<Rc<dyn Any>>>,
    /// What a Deferred calls with its job's number when it is cancelled.
    cancel: Rc<dyn Fn(u64)>,
    /// `None`: that loop does not look about.
    listener: Option<Rc<Listener>>,
    /// The loop's end, if that is to wait for these jobs.
    end: Option<Rc<LoopEnd>>,
}

type Table<T> = RefCell<ResolverTable<T>>;

/// A way that jobs have, or had.
struct KnownWay {
    /// The place of its `decode`, which tells those of one type apart.
    decode: usize,
    way: Weak<dyn Any + Send + Sync>,
}

/// Results that have come, and that the loop has not seen.
struct Pile {
    event_loop: Arc<dyn ReactorFromThreads>,
    state: Mutex<PileState>,
}

#[derive(Default)]
struct PileState {
    /// In the order in which they came, cut where their type changes.
    results: Vec<Box<dyn Results>>,
    /// Room for the next ones.
    spare: Option<Box<dyn Results>>,
    /// The loop has been asked to see to them.
    asked: bool,
    /// As long as there are jobs for which the loop's end waits: their pool, which is not to be dropped before.
    kept: Option<Pool>,
}

/// How the results of one task come to a pile. The jobs know it, and their Deferreds by their numbers.
struct Way<T> {
    decode: Decode<T>,
    pile: Arc<Pile>,
}

/// Some results of one type, each with the number of its Deferred.
struct Come<T>(Vec<(u32, Result<T, Failure>)>);

/// Those without their type.
trait Results: Any + Send {
    /// Fires them, on the loop's thread. What escapes from one does not cost the others.
    fn fire(&mut self, desk: &Desk);
    /// Lets go of them.
    fn drop_all(&mut self);
    /// How many bytes there is room for.
    fn room(&self) -> usize;
}

impl Desk {
    /// That of this loop and this pool; made now if there is none. `waits`: the loop's end is to wait for the jobs.
    pub(super) fn of(
        event_loop: &impl ReactorCore,
        threads: &Arc<dyn ReactorFromThreads>,
        pool: &Pool,
        waits: bool,
    ) -> Result<Rc<Desk>, LoopGone> {
        let known = DESKS.with_borrow(|desks| {
            let mut desks = desks.iter();
            desks.find(|desk| desk.is_of(threads, pool, waits)).cloned()
        });
        if let Some(desk) = known {
            return match &desk.end {
                Some(end) if end.has_begun() => Err(LoopGone),
                _ => Ok(desk),
            };
        }
        let end = match waits {
            true => Some(LoopEnd::of(event_loop, threads)?),
            false => None,
        };
        let listener = Listener::new(event_loop, pool.shared());
        let made = Rc::new_cyclic(|desk: &RcWeak<Desk>| {
            let this = desk.clone();
            let cancel = move |number| {
                let pool = this.upgrade().and_then(|desk| desk.pool.upgrade());
                pool.into_iter().for_each(|it| it.cancel_numbered(number));
            };
            Desk {
                event_loop: Arc::downgrade(threads),
                pool: Arc::downgrade(pool.shared()),
                jobs: Cell::new(0),
                pile: RefCell::default(),
                ways: RefCell::default(),
                tables: RefCell::default(),
                cancel: Rc::new(cancel),
                listener,
                end,
            }
        });
        if let Some(end) = &made.end {
            end.add(&made);
        }
        let idle = DESKS.with_borrow_mut(|desks| {
            let idle: Vec<_> = desks.extract_if(.., |desk| desk.is_of_no_use()).collect();
            desks.push(Rc::clone(&made));
            idle
        });
        drop(idle);
        Ok(made)
    }

    fn is_of(&self, threads: &Arc<dyn ReactorFromThreads>, pool: &Pool, waits: bool) -> bool {
        is_handle_of(&self.event_loop, threads)
            && std::ptr::eq(Weak::as_ptr(&self.pool), Arc::as_ptr(pool.shared()))
            && self.end.is_some() == waits
    }

    fn has(&self, pile: &Arc<Pile>) -> bool {
        std::ptr::eq(Weak::as_ptr(&self.pile.borrow()), Arc::as_ptr(pile))
    }

    fn is_of_no_use(&self) -> bool {
        self.event_loop.strong_count() == 0 || (self.pool.strong_count() == 0 && !self.is_busy())
    }

    /// Submits a call; its Deferred.
    #[track_caller]
    pub(super) fn submit<T: Send + 'static>(
        &self,
        threads: &Arc<dyn ReactorFromThreads>,
        pool: &Pool,
        call: Encoded<T>,
    ) -> Deferred<T> {
        let (resolver, d) = Deferred::new();
        let number = self.table().borrow_mut().put(resolver);
        let decode = call.decode();
        let way = self.way(threads, decode);
        self.one_goes(pool, &way.pile);
        match pool.try_submit(call.job_for(End::numbered(way, number))) {
            Ok(job) => {
                // A job that runs ends when its process is gone, not when that was asked for.
                d.set_cancel_request(Rc::clone(&self.cancel), job.key.to_bits());
                if job.is_out
                    && let Some(listener) = &self.listener
                {
                    listener.add(job);
                }
            }
            Err(refused) => {
                let result = refused.result(decode, pool);
                self.one_came();
                let resolver = self.table::<T>().borrow_mut().take(number);
                if let Some(resolver) = resolver {
                    let _ = resolver.fire(result); // nobody can have cancelled it
                }
            }
        }
        d
    }

    fn table<T: 'static>(&self) -> Rc<Table<T>> {
        let mut tables = self.tables.borrow_mut();
        let known = tables.iter().find(|known| known.is::<Table<T>>());
        let known = known.and_then(|known| Rc::clone(known).downcast().ok());
        known.unwrap_or_else(|| {
            let made: Rc<Table<T>> = Rc::default();
            tables.push(Rc::clone(&made) as Rc<dyn Any>);
            made
        })
    }

    /// The way of the results of one task.
    fn way<T: Send + 'static>(
        &self,
        threads: &Arc<dyn ReactorFromThreads>,
        decode: Decode<T>,
    ) -> Arc<Way<T>> {
        let place = decode as usize;
        let mut ways = self.ways.borrow_mut();
        let known = ways.iter().filter(|known| known.decode == place);
        let mut known = known.filter_map(|known| known.way.upgrade()?.downcast::<Way<T>>().ok());
        if let Some(known) = known.next() {
            return known;
        }
        let way = Arc::new(Way {
            decode,
            pile: self.pile(threads),
        });
        let known = Arc::downgrade(&way);
        ways.retain(|known| known.way.strong_count() > 0);
        ways.push(KnownWay {
            decode: place,
            way: known,
        });
        way
    }

    fn pile(&self, threads: &Arc<dyn ReactorFromThreads>) -> Arc<Pile> {
        let known = self.pile.borrow().upgrade();
        known.unwrap_or_else(|| {
            let pile = Arc::new(Pile {
                event_loop: Arc::clone(threads),
                state: Mutex::default(),
            });
            self.pile.replace(Arc::downgrade(&pile));
            pile
        })
    }

    /// Whether jobs are out.
    pub(super) fn is_busy(&self) -> bool {
        self.jobs.get() > 0
    }

    /// A job goes out.
    fn one_goes(&self, pool: &Pool, pile: &Pile) {
        if self.jobs.replace(self.jobs.get() + 1) == 0 && self.end.is_some() {
            pile.keep(Some(pool.clone()));
        }
    }

    /// A job has come home. After the last, what was kept for them is let go of, and the loop's end is told.
    fn one_came(&self) {
        self.jobs.set(self.jobs.get() - 1);
        if self.is_busy() {
            return;
        }
        let pile = self.pile.borrow().upgrade();
        pile.into_iter().for_each(|pile| pile.keep(None));
        if let Some(end) = &self.end {
            end.look();
        }
    }

    /// The jobs that are out and not done, and their pool.
    pub(super) fn out(&self) -> Option<(Arc<Shared>, Vec<JobKey>)> {
        let pool = self.pool.upgrade()?;
        let pile = self.pile.borrow().upgrade()?;
        let jobs = pool.jobs_of(Owner::of(&pile));
        Some((pool, jobs))
    }
}

impl Pile {
    /// Puts a result there, from any thread.
    fn put<T: Send + 'static>(self: &Arc<Self>, number: u32, result: Result<T, Failure>) {
        let mut state = self.state.lock();
        state.put(number, result);
        let asked = mem::replace(&mut state.asked, true);
        drop(state);
        if asked {
            return;
        }
        let asked = Asked(Some(Arc::clone(self)));
        // Gone: then nobody can be told.
        let _ = self
            .event_loop
            .call_from_thread(Box::new(move || asked.fire()));
    }

    /// Keeps a pool, or lets go of the one that was kept.
    fn keep(&self, pool: Option<Pool>) {
        let kept = mem::replace(&mut self.state.lock().kept, pool);
        drop(kept); // perhaps its last handle, and not under the lock
    }

    fn take(&self) -> Vec<Box<dyn Results>> {
        let mut state = self.state.lock();
        state.asked = false;
        mem::take(&mut state.results)
    }

    /// The room of results that have been seen to is used again.
    fn reuse(&self, mut results: Vec<Box<dyn Results>>) {
        /// No more bytes, and no more pieces, are kept.
        const ROOM: usize = 64 << 10;
        const PIECES: usize = 1024;
        let mut room = results.pop().filter(|room| room.room() <= ROOM);
        results.clear();
        let mut state = self.state.lock();
        if room.is_some() {
            mem::swap(&mut state.spare, &mut room);
        }
        if state.results.capacity() == 0 && results.capacity() <= PIECES {
            state.results = results;
        }
        drop(state);
        drop(room);
    }
}

impl PileState {
    fn put<T: Send + 'static>(&mut self, number: u32, result: Result<T, Failure>) {
        if let Some(last) = self.results.last_mut().and_then(of_type) {
            return last.0.push((number, result));
        }
        let mut spare = self.spare.take();
        if let Some(room) = spare.as_mut().and_then(of_type) {
            room.0.push((number, result));
            self.results.extend(spare);
        } else {
            self.results.push(Box::new(Come(vec![(number, result)])));
        }
    }
}

fn of_type<T: 'static>(results: &mut Box<dyn Results>) -> Option<&mut Come<T>> {
    let results: &mut dyn Any = &mut **results;
    results.downcast_mut()
}

/// The loop has been asked to see to a pile. If it never does, because it is gone, the results are let go of, and the pool.
struct Asked(Option<Arc<Pile>>);

impl Asked {
    fn fire(mut self) {
        if let Some(pile) = self.0.take() {
            fire(&pile);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(pile) = self.0.take() {
            let results = pile.take().into_iter();
            results.for_each(|mut results| results.drop_all());
            pile.keep(None);
        }
    }
}

/// Fires the Deferreds of the results that are there, on the loop's thread.
fn fire(pile: &Arc<Pile>) {
    let desk = DESKS.with_borrow(|desks| {
        let mut desks = desks.iter();
        desks.find(|desk| desk.has(pile)).cloned()
    });
    let mut results = pile.take();
    for results in &mut results {
        match &desk {
            Some(desk) => results.fire(desk),
            None => results.drop_all(),
        }
    }
    pile.reuse(results);
}

impl<T: Send + 'static> Results for Come<T> {
    fn fire(&mut self, desk: &Desk) {
        let table = desk.table::<T>();
        for (number, result) in self.0.drain(..) {
            let resolver = table.borrow_mut().take(number);
            // Before the callbacks: a loop that waits for its last job does not wait for what they submit.
            desk.one_came();
            // One that nobody waits for any more is dropped.
            let fired = contain(|| match resolver {
                Some(resolver) => drop(resolver.fire(result)),
                None => drop(result),
            });
            if let Err(panic) = fired {
                log_err(panic, "a job's result");
            }
        }
    }

    fn drop_all(&mut self) {
        for result in self.0.drain(..) {
            // What a value's drop does is its own affair, and no reason to keep the others.
            let _ = contain(|| drop(result));
        }
    }

    fn room(&self) -> usize {
        self.0.capacity() * size_of::<(u32, Result<T, Failure>)>()
    }
}

impl<T: Send + 'static> Ending for Way<T> {
    fn end(&self, number: u32, outcome: Outcome<'_>, called: Called<'_>) {
        self.pile.put(number, called.result(self.decode, outcome));
    }

    fn lost(&self, number: u32) {
        self.pile.put::<T>(number, Err(lost()));
    }

    fn owner(&self) -> Option<Owner> {
        Some(Owner::of(&self.pile))
    }
}

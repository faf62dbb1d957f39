//! The jobs that a loop has in one pool, and how their results come home to it.
//!
//! A job is known by its *place* here: to its Deferred, which asks for its end by that number, and to the loop's end. Its
//! result is decoded where its answer was taken, on a thread of the pool as a rule, and put on the desk's pile; the first one
//! on it has the loop called, and the call fires the Deferreds of all that lie there by then. So a job costs one allocation
//! here, and the answers of a batch one call.

use std::cell::RefCell;
use std::mem;
use std::rc::{Rc, Weak as RcWeak};
use std::sync::{Arc, Weak};

use errback_deferred::{
    Deferred, Failure, LoopGone, ParkedResolver, ReactorCore, ReactorFromThreads, contain, log_err,
};
use parking_lot::Mutex;

use super::listener::Listener;
use super::loop_end::LoopEnd;
use crate::error::InternalError;
use crate::pool::{Called, Decode, Encoded, End, Ending, JobKey, On, Outcome, Pool, Shared};

thread_local! {
    /// Those of this thread's loops.
    static DESKS: RefCell<Vec<Rc<Desk>>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(super) struct Desk {
    /// Weak, as the next: neither is to outlive its last user for having been known here. (A loop's handle holds a descriptor.)
    /// Its address is nobody else's as long as this is there.
    event_loop: Weak<dyn ReactorFromThreads>,
    pool: Weak<Shared>,
    jobs: RefCell<Jobs>,
    /// The jobs hold it, which have no other way to the loop.
    pile: RefCell<Weak<Pile>>,
    /// What a Deferred calls with its job's place when it is cancelled.
    cancel: Rc<dyn Fn(u64)>,
    /// `None`: that loop does not look about.
    listener: Option<Rc<Listener>>,
    /// The loop's end, if that is to wait for these jobs.
    end: Option<Rc<LoopEnd>>,
}

#[derive(Default)]
struct Jobs {
    places: Vec<JobKey>,
    free: Vec<u32>,
    /// As long as there are jobs for which the loop's end waits: their pool, which is not to be dropped before.
    pool: Option<Pool>,
}

/// Results that have come, and that the loop has not seen.
struct Pile {
    event_loop: Arc<dyn ReactorFromThreads>,
    state: Mutex<PileState>,
}

#[derive(Default)]
struct PileState {
    results: Vec<Arc<dyn Land>>,
    /// The loop has been asked to see to them.
    asked: bool,
}

/// A job's result, on its way home.
struct Returning<T> {
    decode: Decode<T>,
    pile: Arc<Pile>,
    place: u32,
    items: u32,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// `None`: it has been fired.
    resolver: Option<ParkedResolver<T>>,
    result: Option<Result<T, Failure>>,
}

/// A result without its type.
trait Land: Send + Sync {
    /// In which place its job was.
    fn place(&self) -> u32;
    /// Fires its Deferred, on the loop's thread.
    fn land(&self);
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
                Some(end) if end.is_reached() => Err(LoopGone),
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
            let cancel = move |place| {
                if let Some(desk) = this.upgrade() {
                    desk.cancel(place);
                }
            };
            Desk {
                event_loop: Arc::downgrade(threads),
                pool: Arc::downgrade(pool.shared()),
                jobs: RefCell::default(),
                pile: RefCell::default(),
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
        std::ptr::addr_eq(Weak::as_ptr(&self.event_loop), Arc::as_ptr(threads))
            && std::ptr::eq(Weak::as_ptr(&self.pool), Arc::as_ptr(pool.shared()))
            && self.end.is_some() == waits
    }

    fn has(&self, pile: &Arc<Pile>) -> bool {
        std::ptr::eq(Weak::as_ptr(&self.pile.borrow()), Arc::as_ptr(pile))
    }

    fn is_of_no_use(&self) -> bool {
        self.event_loop.strong_count() == 0 || self.pool.strong_count() == 0
    }

    /// Submits a call; its Deferred.
    #[track_caller]
    pub(super) fn submit<T: Send + 'static>(
        &self,
        threads: &Arc<dyn ReactorFromThreads>,
        pool: &Pool,
        call: Encoded<T>,
    ) -> Deferred<T> {
        let (resolver, d) = ParkedResolver::new();
        let place = self.take_place(pool);
        let returning = Returning {
            decode: call.decode(),
            pile: self.pile(threads),
            place,
            items: u32::try_from(call.items()).expect("a frame holds fewer items"),
            state: Mutex::new(State {
                resolver: Some(resolver),
                result: None,
            }),
        };
        let job = call.job_for(End::new(Arc::new(returning)));
        let Some(job) = pool.submit_job(job) else {
            // It has been told on the spot.
            self.give_back(place);
            self.rest();
            return d;
        };
        self.jobs.borrow_mut().places[place as usize] = job.key;
        // A job that runs ends when its process is gone, not when that was asked for.
        d.set_cancel_request(Rc::clone(&self.cancel), u64::from(place));
        if job.is_out
            && let Some(listener) = &self.listener
        {
            listener.add(job);
        }
        d
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

    fn take_place(&self, pool: &Pool) -> u32 {
        let mut jobs = self.jobs.borrow_mut();
        let jobs = &mut *jobs;
        if jobs.pool.is_none() && self.end.is_some() {
            jobs.pool = Some(pool.clone());
        }
        jobs.free.pop().unwrap_or_else(|| {
            jobs.places.push(JobKey::NONE);
            u32::try_from(jobs.places.len() - 1).expect("there are fewer jobs than that")
        })
    }

    fn give_back(&self, place: u32) {
        let mut jobs = self.jobs.borrow_mut();
        jobs.places[place as usize] = JobKey::NONE;
        jobs.free.push(place);
    }

    /// Whether jobs are out.
    pub(super) fn is_busy(&self) -> bool {
        let jobs = self.jobs.borrow();
        jobs.free.len() < jobs.places.len()
    }

    /// The last job may have come home: lets go of what was kept for them, and tells the loop's end.
    fn rest(&self) {
        if self.is_busy() {
            return;
        }
        let pool = self.jobs.borrow_mut().pool.take();
        drop(pool); // perhaps its last handle
        if let Some(end) = &self.end {
            end.look();
        }
    }

    fn cancel(&self, place: u64) {
        let key = self.jobs.borrow().places[place as usize];
        if let Some(pool) = self.pool.upgrade() {
            pool.cancel(key);
        }
    }

    /// The jobs that are out, and their pool.
    pub(super) fn out(&self) -> Option<(Arc<Shared>, Vec<JobKey>)> {
        let is_out = |key: &JobKey| *key != JobKey::NONE;
        let jobs = self.jobs.borrow();
        let keys = jobs.places.iter().copied().filter(is_out).collect();
        Some((self.pool.upgrade()?, keys))
    }
}

impl Pile {
    /// Puts a result there, from any thread.
    fn put(self: &Arc<Self>, result: Arc<dyn Land>) {
        let mut state = self.state.lock();
        state.results.push(result);
        let asked = mem::replace(&mut state.asked, true);
        drop(state);
        if asked {
            return;
        }
        let asked = Asked(Some(Arc::clone(self)));
        // Gone: then nobody can be told.
        let _ = self
            .event_loop
            .call_from_thread(Box::new(move || asked.land()));
    }

    fn take(&self) -> Vec<Arc<dyn Land>> {
        let mut state = self.state.lock();
        state.asked = false;
        mem::take(&mut state.results)
    }

    /// The room of results that have been seen to is used again.
    fn reuse(&self, mut results: Vec<Arc<dyn Land>>) {
        /// No more than that is kept.
        const ROOM: usize = 1024;
        results.clear();
        if results.capacity() <= ROOM {
            let mut state = self.state.lock();
            if state.results.capacity() == 0 {
                state.results = results;
            }
        }
    }
}

/// The loop has been asked to see to a pile. If it never does, because it is gone, the results are let go of: they hold the
/// pile, as it holds them.
struct Asked(Option<Arc<Pile>>);

impl Asked {
    fn land(mut self) {
        if let Some(pile) = self.0.take() {
            land(&pile);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let results = self.0.take().map(|pile| pile.take());
        for result in results.into_iter().flatten() {
            // What a value's drop does is its own affair, and no reason to keep the others.
            let _ = contain(|| drop(result));
        }
    }
}

/// Fires the Deferreds of the results that are there, on the loop's thread.
fn land(pile: &Arc<Pile>) {
    let desk = DESKS.with_borrow(|desks| {
        let mut desks = desks.iter();
        desks.find(|desk| desk.has(pile)).cloned()
    });
    let results = pile.take();
    let Some(desk) = desk else { return };
    for result in &results {
        desk.give_back(result.place());
        // Before the callbacks: a loop that waits for its last job does not wait for what they submit.
        desk.rest();
        // What escapes from one shall not cost the others.
        if let Err(panic) = contain(|| result.land()) {
            log_err(panic, "a job's result");
        }
    }
    pile.reuse(results);
}

impl<T: Send + 'static> Returning<T> {
    fn fill(&self, result: Result<T, Failure>) {
        let mut state = self.state.lock();
        if state.result.is_none() && state.resolver.is_some() {
            state.result = Some(result);
        }
    }
}

impl<T: Send + 'static> Land for Returning<T> {
    fn place(&self) -> u32 {
        self.place
    }

    fn land(&self) {
        let mut state = self.state.lock();
        let (resolver, result) = (state.resolver.take(), state.result.take());
        drop(state);
        if let (Some(resolver), Some(result)) = (resolver, result) {
            resolver.fire(result);
        }
    }
}

impl<T: Send + 'static> Ending for Returning<T> {
    fn end(&self, outcome: Outcome<'_>, called: Called<'_>) {
        self.fill(called.note((self.decode)(called, self.items as usize, outcome)));
    }

    fn lost(&self) {
        let message = "a job was lost".to_string();
        self.fill(Err(InternalError { message }.into()));
    }

    fn hand_over(self: Arc<Self>, on: On) {
        match on {
            On::Submitter => self.land(),
            On::Any => Arc::clone(&self.pile).put(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_results_on_their_way_take_little_memory() {
        assert!(size_of::<Returning<u64>>() <= 56); // and two counts
    }
}

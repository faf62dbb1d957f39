//! Looking for the answers of a loop's jobs while the loop looks for something to do.
//!
//! A loop that has nothing to do may look about for a moment before it sleeps ([`BusyPoll`]). An answer that comes within that
//! needs nobody to be woken for it: neither the waiter, in whose place we look, nor the loop.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use errback_deferred::{BusyPoll, ReactorCore};

use crate::pool::{JobKey, Shared, Submitted, Watch};

/// So many jobs at the most are looked for, the last ones. Where there are more, nobody waits for one of them alone.
const MOST: usize = 16;

/// A loop's jobs in one pool that workers had at once.
pub(super) struct Listener {
    pool: Weak<Shared>,
    awaited: RefCell<Vec<Awaited>>,
}

/// A job, and the look for its answer while the loop looks about.
struct Awaited {
    job: JobKey,
    watch: Option<Watch>,
}

impl Listener {
    /// `None`: the loop does not look about, or the pool is not to be looked at.
    pub(super) fn new(event_loop: &impl ReactorCore, pool: &Arc<Shared>) -> Option<Rc<Listener>> {
        let listener = Rc::new(Listener {
            pool: Arc::downgrade(pool),
            awaited: RefCell::default(),
        });
        let weak = Rc::downgrade(&listener);
        let looks = event_loop.add_busy_poll(weak);
        (looks && pool.spins()).then_some(listener)
    }

    /// Looks for this job's answer too, the next time that the loop looks about.
    pub(super) fn add(&self, job: Submitted) {
        let mut awaited = self.awaited.borrow_mut();
        if awaited.len() >= MOST {
            // One that is being watched is left to the waiter in its own time.
            match awaited.iter().position(|it| it.watch.is_none()) {
                Some(oldest) => drop(awaited.remove(oldest)),
                None => return,
            }
        }
        let job = job.key;
        awaited.push(Awaited { job, watch: None });
    }
}

impl BusyPoll for Listener {
    fn poll(&self) -> bool {
        let Some(pool) = self.pool_of_here() else {
            return false;
        };
        let mut any = false;
        self.with_each(|it| {
            if it.watch.is_none() {
                it.watch = pool.watch(it.job);
            }
            let sees = it.watch.take_if(|watch| watch.sees_something());
            any |= sees.is_some_and(|watch| watch.end(&pool));
            it.watch.is_some()
        });
        any
    }

    fn done(&self) {
        if let Some(pool) = self.pool_of_here() {
            self.with_each(|it| {
                let watch = it.watch.take();
                !watch.is_some_and(|watch| watch.end(&pool))
            });
        }
    }
}

impl Listener {
    /// The pool, if it is there. A process that its own has forked has no part in its answers.
    fn pool_of_here(&self) -> Option<Arc<Shared>> {
        self.pool.upgrade().filter(|pool| pool.forked().is_none())
    }

    /// Keeps those of which `keep` says so. It may finish jobs, of others too, and so run code of theirs that submits more.
    fn with_each(&self, keep: impl FnMut(&mut Awaited) -> bool) {
        let mut awaited = self.awaited.take();
        awaited.retain_mut(keep);
        let mut come = self.awaited.borrow_mut();
        awaited.append(&mut come);
        *come = awaited;
    }
}

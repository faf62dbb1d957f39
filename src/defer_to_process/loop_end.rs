//! The end of a loop that has jobs in pools which are not its own: it waits for them, as their Deferreds could not fire any
//! more.

use std::cell::RefCell;
use std::rc::{Rc, Weak as RcWeak};
use std::sync::{Arc, Weak};

use errback_deferred::{
    Deferred, LoopGone, Phase, ReactorCore, ReactorFromThreads, Resolver, SystemEvent,
};

use super::SHUTDOWN_GRACE;
use super::desk::Desk;

thread_local! {
    /// For each loop of this thread. Weak: its handle holds a descriptor, which is not to outlive the loop.
    static LOOPS: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

type Known = (Weak<dyn ReactorFromThreads>, Rc<LoopEnd>);

/// See the module.
#[derive(Default)]
pub(super) struct LoopEnd {
    desks: RefCell<Vec<RcWeak<Desk>>>,
    end: RefCell<End>,
}

#[derive(Default)]
enum End {
    #[default]
    NotYet,
    /// The loop's shutdown waits for the last job.
    Awaited(Resolver<()>),
    Reached,
}

/// Whether that is the handle of a loop. Its address is nobody else's as long as there is a weak reference to it.
pub(super) fn is_handle_of(
    known: &Weak<dyn ReactorFromThreads>,
    threads: &Arc<dyn ReactorFromThreads>,
) -> bool {
    std::ptr::addr_eq(Weak::as_ptr(known), Arc::as_ptr(threads))
}

impl LoopEnd {
    /// This loop's; made by its first job.
    pub(super) fn of(
        event_loop: &impl ReactorCore,
        threads: &Arc<dyn ReactorFromThreads>,
    ) -> Result<Rc<LoopEnd>, LoopGone> {
        if let Some(known) = LoopEnd::find(threads) {
            return match known.has_begun() {
                true => Err(LoopGone),
                false => Ok(known),
            };
        }
        // A loop that has ended already would never run our trigger.
        threads.call_from_thread(Box::new(|| ()))?;
        let made = Rc::new(LoopEnd::default());
        let over = LOOPS.with_borrow_mut(|loops| {
            let is_gone = |(known, _): &mut Known| known.strong_count() == 0;
            let over: Vec<_> = loops.extract_if(.., is_gone).collect();
            loops.push((Arc::downgrade(threads), Rc::clone(&made)));
            over
        });
        drop(over);
        let shut_down = Rc::clone(&made);
        let trigger = Box::new(move || shut_down.shut_down());
        event_loop.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, trigger);
        Ok(made)
    }

    fn find(threads: &Arc<dyn ReactorFromThreads>) -> Option<Rc<LoopEnd>> {
        LOOPS.with_borrow(|loops| {
            let mut loops = loops.iter();
            let known = loops.find(|(known, _)| is_handle_of(known, threads))?;
            Some(Rc::clone(&known.1))
        })
    }

    /// Whether the loop shuts down, or has ended: no more jobs are taken.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(*self.end.borrow(), End::NotYet)
    }

    /// It is to wait for the jobs of this desk.
    pub(super) fn add(&self, desk: &Rc<Desk>) {
        let mut desks = self.desks.borrow_mut();
        desks.retain(|desk| desk.strong_count() > 0);
        desks.push(Rc::downgrade(desk));
    }

    fn desks(&self) -> Vec<Rc<Desk>> {
        let desks = self.desks.borrow();
        desks.iter().filter_map(RcWeak::upgrade).collect()
    }

    /// A desk has no jobs any more. If that was what the loop waits for, it goes on.
    pub(super) fn look(&self) {
        if !matches!(*self.end.borrow(), End::Awaited(_))
            || self.desks().iter().any(|desk| desk.is_busy())
        {
            return;
        }
        if let End::Awaited(shutdown) = self.end.replace(End::Reached) {
            let _ = shutdown.callback(()); // whoever cancelled the wait does not wait
        }
    }

    /// The loop's shutdown: gives the jobs their notice, and says when the last has fired.
    fn shut_down(&self) -> Option<Deferred<()>> {
        let desks = self.desks();
        if !desks.iter().any(|desk| desk.is_busy()) {
            self.end.replace(End::Reached);
            return None;
        }
        let (shutdown, d) = Deferred::new();
        self.end.replace(End::Awaited(shutdown));
        for (pool, jobs) in desks.iter().filter_map(|desk| desk.out()) {
            for job in jobs {
                pool.cancel_within(job, SHUTDOWN_GRACE);
            }
        }
        Some(d)
    }
}

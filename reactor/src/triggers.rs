//! System event triggers: what runs when the reactor starts and when it shuts down.
//!
//! This is only the book of who waits for what. When the phases come, and what a shutdown waits for, stands in
//! `reactor.rs`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use errback_deferred::Deferred;
use errback_deferred::{Phase, SystemEvent, TriggerId};

pub(crate) type Trigger = Box<dyn FnOnce() -> Option<Deferred<()>>>;

/// The triggers that have not run yet.
#[derive(Default)]
pub(crate) struct Triggers {
    startup: RefCell<Waiting>,
    shutdown: RefCell<Waiting>,
    last_id: Cell<u64>,
}

/// By phase, and within a phase in the order of adding.
type Waiting = BTreeMap<(Phase, TriggerId), Trigger>;

impl Triggers {
    pub(crate) fn add(&self, phase: Phase, event: SystemEvent, trigger: Trigger) -> TriggerId {
        let id = TriggerId(self.last_id.get() + 1);
        self.last_id.set(id.0);
        self.waiting(event)
            .borrow_mut()
            .insert((phase, id), trigger);
        id
    }

    pub(crate) fn remove(&self, id: TriggerId) -> bool {
        [Phase::Before, Phase::During, Phase::After]
            .into_iter()
            .any(|phase| {
                let key = (phase, id);
                // The trigger is dropped after the borrow: it may own anything.
                let startup = self.startup.borrow_mut().remove(&key);
                let shutdown = self.shutdown.borrow_mut().remove(&key);
                startup.or(shutdown).is_some()
            })
    }

    /// The next trigger of `event` up to and including `phase`.
    ///
    /// One at a time, so that a trigger may add and remove others; one that is added for a phase that has gone by runs
    /// at once rather than never.
    pub(crate) fn next(&self, event: SystemEvent, phase: Phase) -> Option<Trigger> {
        let mut waiting = self.waiting(event).borrow_mut();
        let first = waiting.first_entry()?;
        (first.key().0 <= phase).then(|| first.remove())
    }

    /// Drops what will never run.
    pub(crate) fn clear(&self) {
        let startup = self.startup.take();
        let shutdown = self.shutdown.take();
        drop((startup, shutdown));
    }

    fn waiting(&self, event: SystemEvent) -> &RefCell<Waiting> {
        match event {
            SystemEvent::Startup => &self.startup,
            SystemEvent::Shutdown => &self.shutdown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn triggers_come_by_phase_and_then_in_the_order_of_adding() {
        let triggers = Triggers::default();
        let log = Rc::new(RefCell::new(String::new()));
        let add = |phase, name: char| {
            let log = log.clone();
            triggers.add(
                phase,
                SystemEvent::Shutdown,
                Box::new(move || {
                    log.borrow_mut().push(name);
                    None
                }),
            )
        };
        add(Phase::After, 'e');
        add(Phase::During, 'c');
        add(Phase::Before, 'a');
        let gone = add(Phase::During, '-');
        add(Phase::During, 'd');
        add(Phase::Before, 'b');
        assert!(triggers.remove(gone));
        assert!(!triggers.remove(gone));
        for (phase, so_far) in [
            (Phase::Before, "ab"),
            (Phase::During, "abcd"),
            (Phase::After, "abcde"),
        ] {
            while let Some(trigger) = triggers.next(SystemEvent::Shutdown, phase) {
                trigger();
            }
            assert_eq!(*log.borrow(), so_far);
        }
        assert!(triggers.next(SystemEvent::Startup, Phase::After).is_none());
    }
}

//! Room in the backlog, for those who would rather wait than be refused: a line, and one call for each place.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use super::Shared;
use super::state::State;

/// A place in the backlog of a pool, kept from others who wait for one until this is dropped: after the submit. See
/// [`Pool::when_room`](super::Pool::when_room).
#[must_use = "dropping it gives the place to the next"]
pub struct Room {
    shared: Weak<Shared>,
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade()
            && shared.forked().is_none()
        {
            let mut state = shared.state.lock();
            state.reserved -= 1;
            shared.admit(state);
        }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<Room>")
    }
}

impl Shared {
    /// Calls `call` once there is room for a job in the backlog, or the pool closes: here and now, or on a thread of the
    /// pool's. Those who wait are called in their order, one for each place. Returns by what to leave the line again.
    pub(crate) fn on_room(self: &Arc<Self>, call: Box<dyn FnOnce(Room) + Send>) -> u64 {
        if self.forked().is_some() {
            return 0; // whoever waits is told by the drop of its call
        }
        let mut state = self.state.lock();
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        state.in_line.push_back((ticket, call));
        self.admit(state);
        ticket
    }

    /// Whoever has this ticket does not wait any more.
    pub(crate) fn leave_line(&self, ticket: u64) {
        if self.forked().is_some() {
            return;
        }
        let mut state = self.state.lock();
        let found = state.in_line.binary_search_by_key(&ticket, |it| it.0);
        let left = found.ok().and_then(|at| state.in_line.remove(at));
        drop(state);
        drop(left);
    }

    /// Calls those for whom there is room now. Whoever is called may let go of his room at once: then the next one is
    /// called when he has returned, and not from within, or a long line would need a deep stack.
    pub(super) fn admit(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>) {
        while !state.in_line.is_empty() && !state.admitting {
            let admitted = state.admit(self.settings.backlog);
            if admitted.is_empty() {
                return;
            }
            state.admitting = true;
            parking_lot::MutexGuard::unlocked(&mut state, || {
                for (_, call) in admitted {
                    let room = Room {
                        shared: Arc::downgrade(self),
                    };
                    // What panics in there has been reported by the panic hook.
                    let _ = catch_unwind(AssertUnwindSafe(|| call(room)));
                }
            });
            state.admitting = false;
        }
    }
}

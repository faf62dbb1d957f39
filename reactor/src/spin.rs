//! Looking for a while before going to sleep.
//!
//! To put a thread to sleep and to wake it on another core takes tens of microseconds, and many answers come sooner. So
//! the loop may look awake for a while: at its calls, at its sources, and at whoever asked to be looked at
//! ([`BusyPoll`]). Whether that pays nobody can know, so it is tried and measured: each look that finds nothing doubles
//! the number of sleeps until the next one, and what comes soon after the loop has gone to sleep shortens it. A loop at
//! rest sleeps, and one whose answers take long looks once in a thousand sleeps.
//!
//! With one core there is nobody else who could answer meanwhile. There the loop does not look but lets others run, once:
//! when they bring something before it sleeps, they need not wake it.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use errback_deferred::BusyPoll;

use crate::reports::contained;

/// How long to look, unless told otherwise.
pub(crate) const DEFAULT_SPIN: Duration = Duration::from_micros(20);

/// How often to look at the sources meanwhile, which costs a system call.
pub(crate) const SOURCES_EVERY: Duration = Duration::from_micros(2);

/// Sleeps between two looks, at most.
const LONGEST_PAUSE: u32 = 1023;

/// What a sleep that ended soon counts for.
const SHORT_SLEEP: u32 = 32;

/// What waking takes, at most: a sleep that was longer than this and the look together was not worth waiting for.
const WAKING: Duration = Duration::from_micros(50);

/// Whether to look before the next sleep.
pub(crate) struct Spin {
    limit: Duration,
    /// There is but one core.
    alone: bool,
    /// Sleeps until the next look.
    pause: u32,
    /// How many sleeps it was after the last look.
    last_pause: u32,
}

impl Spin {
    /// One that looks for `limit` at a time. When there is but one core, who is to answer needs that, and is let run once.
    pub(crate) fn new(limit: Duration) -> Spin {
        Spin {
            limit,
            alone: cores() == 1,
            pause: 0,
            last_pause: 0,
        }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Whether to let others run instead of looking.
    pub(crate) fn yields(&self) -> bool {
        self.alone
    }

    /// Whether to look now.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.is_on() && self.pause == 0
    }

    /// It let others run for `time`. When that was long, somebody works who has nothing to do with us.
    pub(crate) fn let_others_run(&mut self, time: Duration, found: bool) {
        if found && time <= 2 * self.limit {
            self.found();
        } else {
            self.found_nothing(time);
        }
    }

    pub(crate) fn found(&mut self) {
        self.last_pause /= 2;
    }

    /// It looked for `time` and found nothing. When that was much longer than it wanted, others need this core.
    pub(crate) fn found_nothing(&mut self, time: Duration) {
        let steps = if time > 2 * self.limit { 4 } else { 1 };
        self.last_pause = (((self.last_pause + 1) << steps) - 1).min(LONGEST_PAUSE);
        self.pause = self.last_pause;
    }

    /// A sleep is over; `awaited` says whether something else ended it than a timer.
    pub(crate) fn slept(&mut self, time: Duration, awaited: bool) {
        let short = awaited && time < self.limit + WAKING;
        let counts = if short { SHORT_SLEEP } else { 1 };
        self.pause = self.pause.saturating_sub(counts);
    }
}

/// The cores that this thread may run on.
fn cores() -> u32 {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count())
}

/// Those who asked to be looked at.
#[derive(Default)]
pub(crate) struct BusyPolls(RefCell<Vec<Weak<dyn BusyPoll>>>);

impl BusyPolls {
    pub(crate) fn add(&self, poll: Weak<dyn BusyPoll>) {
        let mut polls = self.0.borrow_mut();
        polls.retain(|poll| poll.strong_count() > 0);
        polls.push(poll);
    }

    /// Looks at each; whether one of them had something.
    pub(crate) fn poll(&self) -> bool {
        let mut found = false;
        self.each("a busy poll", |poll| found |= poll.poll());
        found
    }

    pub(crate) fn done(&self) {
        self.each("the end of a busy poll", |poll| poll.done());
    }

    /// No borrow is held meanwhile: each may do anything.
    fn each(&self, what: &'static str, mut with: impl FnMut(Rc<dyn BusyPoll>)) {
        for index in 0.. {
            let Some(poll) = self.0.borrow().get(index).cloned() else {
                return;
            };
            if let Some(poll) = poll.upgrade() {
                contained(what, || with(poll));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(20);
    const LONG: Duration = Duration::from_millis(10);

    fn spin() -> Spin {
        Spin {
            limit: LIMIT,
            alone: false,
            pause: 0,
            last_pause: 0,
        }
    }

    /// How many looks there are in so many sleeps of which none is worth it.
    fn looks(spin: &mut Spin, sleeps: u32, slept: Duration) -> u32 {
        let mut looks = 0;
        for _ in 0..sleeps {
            if spin.is_worth_it() {
                looks += 1;
                spin.found_nothing(LIMIT);
            }
            spin.slept(slept, true);
        }
        looks
    }

    #[test]
    fn it_gives_up_when_it_finds_nothing_and_tries_again_now_and_then() {
        let mut spin = spin();
        assert_eq!(looks(&mut spin, 1024, LONG), 10);
        assert_eq!(looks(&mut spin, 10 * 1024, LONG), 10);
    }

    #[test]
    fn short_sleeps_make_it_try_again_soon_and_success_keeps_it_at_it() {
        let mut spin = spin();
        looks(&mut spin, 5000, LONG);
        for _ in 0..32 {
            spin.slept(LIMIT, true);
        }
        for _ in 0..10 {
            assert!(spin.is_worth_it());
            spin.found();
        }
        spin.found_nothing(LIMIT);
        assert_eq!(spin.pause, 1);
        // Even when short sleeps never lead to anything, one look costs less than 32 of them.
        assert!(looks(&mut spin, 32 * 100, LIMIT) < 110);
    }

    #[test]
    fn timers_are_no_reason_to_look() {
        let mut spin = spin();
        spin.found_nothing(3 * LIMIT);
        assert_eq!(spin.pause, 15);
        spin.slept(LIMIT, false);
        assert_eq!(spin.pause, 14);
    }

    #[test]
    fn others_are_let_run_only_as_long_as_they_bring_something_soon() {
        let mut spin = spin();
        spin.let_others_run(LIMIT, true);
        assert!(spin.is_worth_it());
        spin.let_others_run(LONG, true); // somebody else's work, and then something for us
        assert_eq!(spin.pause, 15);
        (0..15).for_each(|_| spin.slept(LONG, false));
        spin.let_others_run(Duration::ZERO, false);
        assert_eq!(spin.pause, 31);
    }

    #[test]
    fn without_a_limit_it_never_looks() {
        let spin = Spin::new(Duration::ZERO);
        assert!(!spin.is_worth_it() && !spin.is_on());
    }
}

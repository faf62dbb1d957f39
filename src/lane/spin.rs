//! Looking for a moment before going to sleep.
//!
//! To be woken takes tens of microseconds, and a small job less than one. So who waits for the other side of a lane looks for a
//! while first. Whether that pays nobody can know: it is tried and measured. Each look that comes to nothing doubles the waits
//! until the next one, and sleeps that were short bring it nearer. So who waits for long jobs, or on a machine where others need
//! the processor, hardly ever looks; there is none where there is one processor; and who has nothing to wait for does not
//! look, so nothing is used up at rest.
//!
//! Two that sleep would never find out: each looks in vain while the other is being woken. So who has slept for so short a time
//! that it may have been no more than that looks longer the next time. When something comes then, both are awake, and from
//! there on it has to come within the limit again. The first look of all is a long one as well: a worker's first call is its
//! slowest, as it meets with every page for the first time, and its host has to wake for its hello and make something of it.

use std::time::{Duration, Instant};

/// Waits between two looks, at most.
const LONGEST_PAUSE: u32 = 1023;
/// What a sleep that was short counts for.
const SHORT_SLEEP: u32 = 32;
/// By how much a look is longer when the other side may have to be woken.
const PATIENCE: u32 = 8;

/// For so long nobody else is let run meanwhile. Then the other side may be waiting for this very processor.
const ALONE: Duration = Duration::from_micros(3);
/// When that was so, others are let run at once in so many waits.
const SHARES: u32 = 64;

/// Whether to look, for one who waits again and again.
pub(crate) struct Spin {
    limit: Duration,
    /// Waits until the next look.
    pause: u32,
    /// How many it was after the last look that came to nothing.
    last_pause: u32,
    /// Whether the last sleep was short, or there was none yet.
    lags: bool,
    /// In how many more waits others are let run at once.
    shares: u32,
    /// When the last look came to nothing, or was left out.
    gave_up: Option<Instant>,
}

impl Spin {
    /// Looks for no longer than `limit`, as a rule.
    pub(crate) fn new(limit: Duration) -> Spin {
        let limit = match has_processors() {
            true => limit,
            false => Duration::ZERO,
        };
        Spin {
            limit,
            pause: 0,
            last_pause: 0,
            lags: true,
            shares: 0,
            gave_up: None,
        }
    }

    /// Looks whether something `is_there` until it is, or for as long as it pays. Whether it is.
    pub(crate) fn until(&mut self, is_there: impl Fn() -> bool) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        let begun = Instant::now();
        if self.pause > 0 {
            self.pause -= 1;
            self.gave_up = Some(begun);
            return false;
        }
        let lags = std::mem::take(&mut self.lags);
        let limit = match lags {
            true => self.limit * PATIENCE,
            false => self.limit,
        };
        let mut time = Duration::ZERO;
        let mut lets = self.shares > 0;
        self.shares = self.shares.saturating_sub(1);
        while time < limit {
            for _ in 0..8 {
                if is_there() {
                    self.found(lags, time, lets);
                    return true;
                }
                std::hint::spin_loop();
            }
            lets |= time >= ALONE;
            if lets {
                std::thread::yield_now();
            }
            time = begun.elapsed();
        }
        self.last_pause = (2 * self.last_pause + 1).min(LONGEST_PAUSE);
        self.pause = self.last_pause;
        self.gave_up = Some(Instant::now());
        false
    }

    fn found(&mut self, lags: bool, time: Duration, lets: bool) {
        // One that came late tells nothing yet: the other side may have been asleep.
        if !lags || time < self.limit {
            self.last_pause /= 2;
        }
        if lets && self.shares == 0 {
            self.shares = SHARES;
        }
    }

    /// What was waited for came in the sleep after the look.
    pub(crate) fn came(&mut self) {
        if let Some(gave_up) = self.gave_up.take() {
            self.slept(gave_up.elapsed());
        }
    }

    fn slept(&mut self, time: Duration) {
        self.lags = time < self.limit * PATIENCE;
        if self.lags {
            self.pause = self.pause.saturating_sub(SHORT_SLEEP);
        }
    }
}

/// Whether this process may use more than one.
fn has_processors() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|set| set.count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const LIMIT: Duration = Duration::from_micros(5);
    const LONG: Duration = Duration::from_millis(500);

    fn spin() -> Spin {
        let mut spin = Spin::new(LIMIT);
        spin.limit = LIMIT; // where there is one processor too
        spin
    }

    /// How often it looked at what is never there.
    fn looks(spin: &mut Spin) -> usize {
        let looks = Cell::new(0);
        let found = spin.until(|| {
            looks.set(looks.get() + 1);
            false
        });
        assert!(!found);
        looks.get()
    }

    #[test]
    fn looks_that_come_to_nothing_become_rare() {
        let mut spin = spin();
        let looked = (0..5000).filter(|_| {
            let looked = looks(&mut spin) > 0;
            spin.slept(LONG);
            looked
        });
        assert!(looked.count() < 20);
    }

    #[test]
    fn one_that_finds_something_goes_on() {
        let mut spin = spin();
        for _ in 0..5000 {
            looks(&mut spin);
            spin.slept(LONG);
        }
        while !spin.until(|| true) {}
        spin.slept(Duration::ZERO);
        spin.limit = LONG;
        let found = (0..1000).filter(|_| spin.until(|| true));
        assert_eq!(found.count(), 1000);
    }

    #[test]
    fn after_a_short_sleep_it_looks_longer_once() {
        let mut spin = spin();
        looks(&mut spin);
        spin.limit = LONG;
        spin.slept(LONG);
        assert!(spin.pause == 0 && spin.lags);
        let begun = Instant::now();
        assert!(
            spin.until(|| begun.elapsed() > LONG + LONG / 2),
            "it is patient"
        );
        assert!(!spin.lags);
        assert_eq!(spin.last_pause, 1, "and does not take it for a success");
    }

    #[test]
    fn without_time_it_does_not_look() {
        assert_eq!(looks(&mut Spin::new(Duration::ZERO)), 0);
    }
}

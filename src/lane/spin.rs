//! Looking for a while before one sleeps: to be woken costs more than a short answer takes to come.
//!
//! It is given up for a while when it does not pay, be it that the jobs are long or that others need the processor, and there is
//! none where there is one processor. Who has nothing to wait for does not look, so nothing is used up at rest.

use std::time::{Duration, Instant};

/// How many looks that came to nothing it takes to give up.
const PATIENCE: u8 = 8;
/// Who has given up tries again each time that it has slept so often.
const AGAIN: u32 = 64;

/// Whether to look, for one who waits again and again.
pub(crate) struct Spin {
    limit: Duration,
    /// Falls with each look that came to nothing, and rises twice as fast.
    hope: u8,
    slept: u32,
}

impl Spin {
    /// Looks for no longer than `limit`.
    pub(crate) fn new(limit: Duration) -> Spin {
        let limit = match has_processors() {
            true => limit,
            false => Duration::ZERO,
        };
        Spin {
            limit,
            hope: PATIENCE,
            slept: 0,
        }
    }

    /// Looks whether something `is_there` until it is, or for as long as it pays. Whether it is.
    pub(crate) fn until(&mut self, is_there: impl Fn() -> bool) -> bool {
        if self.limit.is_zero() || !self.tries() {
            return false;
        }
        let begun = Instant::now();
        while begun.elapsed() < self.limit {
            for _ in 0..8 {
                if is_there() {
                    self.hope = (self.hope + 2).min(PATIENCE);
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        self.hope = self.hope.saturating_sub(1);
        false
    }

    fn tries(&mut self) -> bool {
        if self.hope > 0 {
            return true;
        }
        self.slept = self.slept.wrapping_add(1);
        self.slept.is_multiple_of(AGAIN)
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
    fn it_gives_up_when_it_does_not_pay_and_tries_again_later() {
        let mut spin = Spin::new(LIMIT);
        spin.limit = LIMIT; // where there is one processor too
        for _ in 0..PATIENCE {
            spin.until(|| false);
        }
        let looked: usize = (0..AGAIN - 1).map(|_| looks(&mut spin)).sum();
        assert_eq!(looked, 0);
        spin.limit = Duration::from_secs(60);
        assert!(spin.until(|| true), "it tries again, and finds something");
        assert!(spin.until(|| true), "and so goes on");
    }

    #[test]
    fn without_time_it_does_not_look() {
        assert_eq!(looks(&mut Spin::new(Duration::ZERO)), 0);
    }
}

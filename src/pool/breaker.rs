//! When the pool may start a worker again after starts have failed: pauses that grow, and then not at all.
//!
//! A worker that cannot start (a missing interpreter, a bad library, no descriptor left) would otherwise be started again
//! at once, for ever: another pool was seen at 69,231 starts a second. Pure: the clock is an argument.
//!
//! *Closed* is normal. After [`THRESHOLD`] failed starts in a row the breaker *opens*: who waits gets the reason. Past the
//! pause it is *half-open*: the next job that is submitted pays for one more try.

use std::time::{Duration, Instant};

use errback_deferred::Failure;

/// The pause after the first failed start; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So many failed starts in a row open the breaker.
const THRESHOLD: u32 = 5;

pub(super) struct Breaker {
    failures: u32,
    /// No start before this.
    not_before: Option<Instant>,
    /// Why the last start failed.
    reason: Option<Failure>,
    /// Whether starts have failed so often, or so finally, that jobs are failed for it.
    open: bool,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Breaker {
            failures: 0,
            not_before: None,
            reason: None,
            open: false,
        }
    }

    /// How many starts in a row have failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// A worker did its work: all is well.
    pub(super) fn succeeded(&mut self) {
        if self.failures > 0 {
            *self = Breaker::new();
        }
    }

    /// A start failed. `jitter` is from 0 to 1 and spreads the pools of a machine; `finally`: trying again is hopeless
    /// (no such program), so the breaker opens at once.
    pub(super) fn failed(&mut self, reason: Failure, now: Instant, jitter: f64, finally: bool) {
        let pause = LONGEST_PAUSE.min(FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        self.open |= finally || self.failures >= THRESHOLD;
        self.not_before = Some(now + pause.mul_f64(1.0 - 0.25 * jitter));
        self.reason = Some(reason);
    }

    /// Whether one may start a worker, and if not, when.
    pub(super) fn permits(&self, now: Instant) -> Result<(), Instant> {
        match self.not_before {
            Some(then) if now < then => Err(then),
            _ => Ok(()),
        }
    }

    /// The reason with which jobs that no worker can take fail, when the breaker is open.
    pub(super) fn reason(&self) -> Option<&Failure> {
        self.reason.as_ref().filter(|_| self.open)
    }

    /// As [`reason`](Self::reason), but not when a try is due: a job that comes then shall wait for its end.
    pub(super) fn refusal(&self, now: Instant) -> Option<&Failure> {
        self.reason().filter(|_| self.permits(now).is_err())
    }
}

impl Breaker {
    /// As the statistics show it.
    pub(super) fn stats(&self, now: Instant) -> super::Breaker {
        let Some(reason) = self.reason.as_ref().map(ToString::to_string) else {
            return super::Breaker::Closed;
        };
        let retry_in = self
            .permits(now)
            .map_or_else(|then| then - now, |()| Duration::ZERO);
        match self.open {
            true => super::Breaker::Open { reason, retry_in },
            false => super::Breaker::BackingOff { reason, retry_in },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &mut Breaker, now: Instant) -> Duration {
        breaker.failed(Failure::msg("no"), now, 0.0, false);
        breaker.permits(now).expect_err("there is a pause") - now
    }

    #[test]
    fn pauses_double_up_to_five_seconds() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        assert!(breaker.permits(now).is_ok());
        let pauses: Vec<u128> = (0..9)
            .map(|_| fail(&mut breaker, now).as_millis())
            .collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(breaker.permits(now + LONGEST_PAUSE).is_ok());
        for _ in 0..100 {
            fail(&mut breaker, now);
        }
    }

    #[test]
    fn it_opens_after_five_failures_and_refuses_during_the_pause_only() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for _ in 1..THRESHOLD {
            fail(&mut breaker, now);
        }
        assert!(breaker.reason().is_none());
        fail(&mut breaker, now);
        assert!(breaker.reason().is_some() && breaker.refusal(now).is_some());
        assert!(breaker.refusal(now + LONGEST_PAUSE).is_none(), "half-open");
    }

    #[test]
    fn a_hopeless_start_opens_it_at_once_and_a_success_closes_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        breaker.failed(Failure::msg("no such file"), now, 1.0, true);
        assert!(breaker.refusal(now).is_some());
        breaker.succeeded();
        assert!(breaker.reason().is_none() && breaker.permits(now).is_ok());
    }
}

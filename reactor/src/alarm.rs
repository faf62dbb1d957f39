//! Waking the loop at a time that is sharper than a millisecond.
//!
//! mio's poll waits in whole milliseconds, rounded up, as `epoll_wait` does: a timer would be half a millisecond late in
//! the middle. So the loop sleeps without an end, and a timerfd that is one of the sources ends the sleep. It is set only
//! when it has to ring earlier than it is set for: a deadline that was taken back may wake the loop for nothing, once,
//! which is cheaper than a system call for each deadline that comes and goes. Where there is no timerfd (the descriptors
//! are used up, a sandbox forbids it) the milliseconds remain.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// An alarm clock that rings as an event of the poll.
pub(crate) struct Alarm {
    timer: Option<OwnedFd>,
    /// When it is going to ring, if it has not.
    set_for: Option<Instant>,
}

impl Alarm {
    pub(crate) fn new(registry: &Registry, token: Token) -> Alarm {
        Alarm {
            timer: new_timer(registry, token),
            set_for: None,
        }
    }

    /// How long to poll so as not to sleep longer than `patience`: if the alarm sees to that, without an end.
    pub(crate) fn set(&mut self, patience: Option<Duration>) -> Option<Duration> {
        match patience {
            Some(patience) if !patience.is_zero() && self.rings_in(patience) => None,
            other => other,
        }
    }

    /// Sees to it that the alarm rings in that time, or before. Whether it will.
    fn rings_in(&mut self, patience: Duration) -> bool {
        let Some(timer) = &self.timer else {
            return false;
        };
        let now = Instant::now();
        let Some(when) = now.checked_add(patience) else {
            return false;
        };
        let is_set = self.set_for.is_some_and(|set| now < set && set <= when);
        if !is_set {
            self.set_for = start(timer, patience).then_some(when);
        }
        self.set_for.is_some()
    }

    /// It has rung. Nothing has to be read: events are edge-triggered, and setting it again begins anew.
    pub(crate) fn has_rung(&mut self) {
        self.set_for = None;
    }
}

fn new_timer(registry: &Registry, token: Token) -> Option<OwnedFd> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags).ok()?;
    let mut source = SourceFd(&timer.as_raw_fd());
    registry
        .register(&mut source, token, Interest::READABLE)
        .ok()?;
    Some(timer)
}

/// Has `timer` ring once, after `patience`.
fn start(timer: &OwnedFd, patience: Duration) -> bool {
    let (Ok(tv_sec), tv_nsec) = (
        patience.as_secs().try_into(),
        patience.subsec_nanos().into(),
    ) else {
        return false;
    };
    let once = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: Timespec { tv_sec, tv_nsec },
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};

    const MOMENT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(3600);

    fn alarm() -> (Poll, Alarm) {
        let poll = Poll::new().unwrap();
        let alarm = Alarm::new(poll.registry(), Token(7));
        (poll, alarm)
    }

    #[test]
    fn it_rings_once_for_each_time_that_it_is_set_and_not_early() {
        let (mut poll, mut alarm) = alarm();
        let mut events = Events::with_capacity(4);
        for _ in 0..50 {
            let start = Instant::now();
            assert_eq!(alarm.set(Some(MOMENT)), None);
            poll.poll(&mut events, None).unwrap();
            assert!(start.elapsed() >= MOMENT);
            assert!(events.iter().all(|event| event.token() == Token(7)));
            alarm.has_rung();
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert!(events.is_empty());
        }
    }

    #[test]
    fn it_is_set_again_only_to_ring_earlier() {
        let (mut poll, mut alarm) = alarm();
        alarm.set(Some(LONG));
        let first = alarm.set_for;
        alarm.set(Some(2 * LONG));
        assert_eq!(alarm.set_for, first);
        alarm.set(Some(MOMENT));
        assert!(alarm.set_for < first);
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, None).unwrap();
        assert!(!events.is_empty());
    }

    #[test]
    fn without_a_timer_the_poll_has_to_wait_itself() {
        let mut alarm = Alarm {
            timer: None,
            set_for: None,
        };
        for patience in [None, Some(Duration::ZERO), Some(MOMENT), Some(LONG)] {
            assert_eq!(alarm.set(patience), patience);
        }
    }

    #[test]
    fn what_needs_no_alarm_or_cannot_have_one_sets_none() {
        let (_poll, mut alarm) = alarm();
        for patience in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
            assert_eq!(alarm.set(patience), patience);
            assert_eq!(alarm.set_for, None);
        }
    }
}

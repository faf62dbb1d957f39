//! SIGINT and SIGTERM: the first stops the reactor, a second ends the process at once.
//!
//! This is process-wide, so that only a reactor that was asked to does it (`install_signal_handlers`, `react`), and only
//! while it runs. The first signal arrives through a socket pair, as an event like any other; the second must work even
//! when the loop does not come round, and is answered in the handler itself with the signal's default action.
//!
//! A handler that `signal-hook` has installed stays installed, because taking it away would race with others. So we give
//! back the *effect*: where nothing was set before us, the default action is carried out again once no reactor handles
//! signals; where somebody had set something, that is still called, during our time too.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mio::Interest;
use mio::net::UnixStream;
use parking_lot::Mutex;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

use crate::sources::Registered;
use crate::{Reactor, Registration};

const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// When true, no reactor handles signals, and those that nobody had set before us have their default action.
static UNUSED: AtomicBool = AtomicBool::new(false);

/// How many reactors handle signals now; protects the change of `UNUSED` too. `None` before the first.
static USERS: Mutex<Option<usize>> = Mutex::new(None);

/// The handlers of one running reactor. Dropping it takes them back.
pub(crate) struct SignalHandlers {
    actions: Vec<SigId>,
    _socket: Registration<UnixStream>,
}

impl SignalHandlers {
    pub(crate) fn install(reactor: &Reactor) -> io::Result<SignalHandlers> {
        let received = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        let (ours, handlers) = UnixStream::pair()?;
        let socket = reactor.register(
            ours,
            Interest::READABLE,
            stop_on_signal(reactor, received.clone()),
        )?;
        count_user_in()?;
        // From here on the drop takes back what has been done so far.
        let mut installed = SignalHandlers {
            actions: Vec::new(),
            _socket: socket,
        };
        for signal in SIGNALS {
            // A handler does these in the order of their registration. The first signal must still find `again` unset,
            // and the loop must find out which signal it was when the socket wakes it.
            installed.actions.extend([
                flag::register_conditional_default(signal, again.clone())?,
                flag::register(signal, again.clone())?,
                flag::register_usize(signal, received.clone(), signal as usize)?,
                low_level::pipe::register_raw(signal, handlers.as_fd().try_clone_to_owned()?)?,
            ]);
        }
        Ok(installed)
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for action in self.actions.drain(..) {
            low_level::unregister(action);
        }
        count_user_out();
    }
}

fn stop_on_signal(
    reactor: &Reactor,
    received: Arc<AtomicUsize>,
) -> impl FnMut(&Registered<UnixStream>, &mio::event::Event) + 'static {
    let reactor = reactor.clone(); // let go of when the reactor's run ends and the handlers go
    move |mut socket, _event| {
        while matches!(socket.read(&mut [0; 16]), Ok(1..)) {}
        if let signal @ 1.. = received.load(Ordering::SeqCst) {
            reactor.stop_for_signal(signal as i32);
        }
    }
}

/// The very first one sees what was set before any of us, and arranges for the default action to come back.
fn count_user_in() -> io::Result<()> {
    let mut users = USERS.lock();
    if users.is_none() {
        for signal in SIGNALS
            .into_iter()
            .filter(|signal| has_default_action(*signal))
        {
            flag::register_conditional_default(signal, &UNUSED)?;
        }
    }
    UNUSED.store(false, Ordering::SeqCst);
    *users = Some(users.unwrap_or(0) + 1);
    Ok(())
}

fn count_user_out() {
    let mut users = USERS.lock();
    let left = users.map_or(0, |users| users - 1);
    *users = Some(left);
    UNUSED.store(left == 0, Ordering::SeqCst);
}

/// Whether nobody has set this signal to be caught or ignored. Where we cannot know, we take it so.
fn has_default_action(signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return true;
    };
    let set = status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigIgn:")
                .or_else(|| line.strip_prefix("SigCgt:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .fold(0, |all, mask| all | mask);
    set >> (signal - 1) & 1 == 0
}

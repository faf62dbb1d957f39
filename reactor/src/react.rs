//! A whole program as one call: make a reactor, run `main` on it, stop, and give the exit code.

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use errback_deferred::{CancelledError, Failure, FirstError, IntoOutcome, maybe_deferred};

use crate::Reactor;

/// Runs a program: a reactor that runs until what `main` returns has come to a result; Twisted's `task.react`.
///
/// `main` is called when the reactor is running and gets it as argument. When its Deferred fires, or when it has returned
/// something that is no Deferred, the reactor stops. The exit code is
///
/// - 0 for success, and when something else stopped the reactor before there was a result;
/// - 1 for a failure, which is printed to standard error with its causes (and with its backtrace when `RUST_BACKTRACE`
///   asks for one), and when there could be no reactor;
/// - 128 + the signal's number when SIGINT or SIGTERM stopped the reactor, as a shell reports it. A second signal ends the
///   process at once by the signal's default action, even while the loop is blocked.
///
/// The shutdown is a clean one in each case: triggers run, thread pools are closed, Deferreds of threads fire.
///
/// ```
/// use errback_reactor::{react, Reactor};
/// use std::time::Duration;
///
/// fn main() -> std::process::ExitCode {
///     react(|reactor: &Reactor| {
///         reactor.defer_to_thread(|| Ok(6 * 7)).add_callback(|answer| {
///             println!("the answer is {answer}");
///         })
///     })
/// }
/// ```
pub fn react<R>(main: impl FnOnce(&Reactor) -> R + 'static) -> ExitCode
where
    R: IntoOutcome<Value = ()> + 'static,
{
    match run_main(main) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("Error: {failure:?}");
            ExitCode::FAILURE
        }
    }
}

fn run_main<R>(main: impl FnOnce(&Reactor) -> R + 'static) -> Result<u8, Failure>
where
    R: IntoOutcome<Value = ()> + 'static,
{
    let reactor = Reactor::builder().install_signal_handlers(true).build()?;
    let result: Rc<RefCell<Option<Result<(), Failure>>>> = Rc::default();
    let (running, finished) = (reactor.clone(), result.clone());
    reactor.call_when_running(move || {
        let done = maybe_deferred(|| main(&running)).add_both(move |result| {
            finished.replace(Some(result));
            let _ = running.stop(); // an error: it is stopping already
        });
        drop(done);
    });
    reactor.run()?;
    let result = result.take();
    match reactor.exit_signal() {
        Some(signal) => {
            // That `main` was cancelled by the shutdown is no news; what else it makes of the shutdown is. The exit code is
            // the signal's.
            if let Some(Err(failure)) = result
                && !is_cancel(&failure)
            {
                eprintln!("Error: {failure:?}");
            }
            Ok(128 + signal as u8)
        }
        None => result.unwrap_or(Ok(())).map(|()| 0),
    }
}

/// A cancel, perhaps of one of several that were waited for.
fn is_cancel(failure: &Failure) -> bool {
    match failure.check::<FirstError>() {
        Some(first) => is_cancel(&first.failure),
        None => failure.is::<CancelledError>(),
    }
}

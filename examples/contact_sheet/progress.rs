//! A progress bar on standard error, if that is a terminal.

use std::cell::Cell;
use std::io::{IsTerminal, Write};

const WIDTH: usize = 24; // shorter than most of what a dying worker says; see `write`

/// The bar; it goes away when dropped.
pub(crate) struct Progress {
    total: usize,
    done: Cell<usize>,
    visible: bool,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Progress {
        let progress = Progress {
            total,
            done: Cell::new(0),
            visible: std::io::stderr().is_terminal(),
        };
        progress.show();
        progress
    }

    /// One more is done.
    pub(crate) fn step(&self) {
        self.done.set(self.done.get() + 1);
        self.show();
    }

    fn show(&self) {
        let Progress { total, done, .. } = self;
        let done = done.get();
        let full = WIDTH * done / total.max(&1);
        self.write(&format!(
            "{:#<full$}{:-<2$} {done} of {total}",
            "",
            "",
            WIDTH - full
        ));
    }

    /// Puts `line` in the place of what was there. The cursor goes back to the start of the line: what a dying worker says
    /// on the same terminal then covers the bar, and the next step draws a new one below.
    fn write(&self, line: &str) {
        const ERASE_LINE: &str = "\x1b[2K";
        if self.visible {
            let _ = write!(std::io::stderr(), "{ERASE_LINE}{line}\r"); // a bar that cannot be shown is no reason to stop
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.write("");
    }
}

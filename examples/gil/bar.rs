//! Bars made of text: one that grows while something runs, and those of the result.

use std::io::{IsTerminal, Write};

/// How wide the longest bar is, in characters.
const WIDTH: usize = 40;

/// A bar on standard error that is drawn over itself; nothing where that is no terminal.
pub(crate) struct Progress {
    what: String,
    whole: usize,
    visible: bool,
}

impl Progress {
    pub(crate) fn new(what: impl Into<String>, whole: usize) -> Progress {
        Progress {
            what: what.into(),
            whole: whole.max(1),
            visible: std::io::stderr().is_terminal(),
        }
    }

    pub(crate) fn show(&mut self, done: usize) {
        if self.visible {
            let full = bar(done.min(self.whole) as f64 / self.whole as f64);
            let (what, whole) = (&self.what, self.whole);
            let _ = write!(
                std::io::stderr(),
                "\r{what:<12} {full:<WIDTH$} {done}/{whole} "
            );
        }
    }

    /// As [`show`](Progress::show), where parts are counted.
    pub(crate) fn show_part(&mut self, done: u64, parts: u64) {
        self.show((self.whole as u64 * done / parts.max(1)) as usize);
    }

    /// Takes the bar away.
    pub(crate) fn end(&mut self) {
        if self.visible {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// A line of the result.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) seconds: f64,
    pub(crate) words: usize,
}

impl Row {
    fn speed(&self) -> f64 {
        self.words as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// The table, and a bar for each row, against the first.
pub(crate) fn print(rows: &[Row]) {
    let longest = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    let fastest = rows.iter().map(Row::speed).fold(0.0, f64::max);
    println!("{:longest$}  {:>9}  {:>9}", "", "seconds", "words/s");
    for row in rows {
        println!(
            "{:longest$}  {:>9.2}  {:>9.0}",
            row.what,
            row.seconds,
            row.speed()
        );
    }
    println!();
    for row in rows {
        let times = row.speed() / rows[0].speed();
        println!(
            "{:longest$}  {:WIDTH$}  {times:.2}",
            row.what,
            bar(row.speed() / fastest)
        );
    }
}

fn bar(part: f64) -> String {
    "█".repeat((part * WIDTH as f64).round() as usize)
}

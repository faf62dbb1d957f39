//! Figures, as lines of JSON on standard output.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

/// Where figures of one kind go: a bench, and the name of what was measured.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    bench: &'static str,
    name: String,
}

impl Row {
    pub(crate) fn new(bench: &'static str, name: String) -> Row {
        Row { bench, name }
    }

    pub(crate) fn say(&self, metric: &str, value: f64, unit: &str) {
        self.line(metric, json!(value), unit);
    }

    /// A finding that is words.
    pub(crate) fn say_text(&self, metric: &str, text: &str) {
        self.line(metric, json!(text), "text");
    }

    /// The least, the median and the 99th percentile, in microseconds.
    pub(crate) fn say_percentiles(&self, prefix: &str, times: &mut [Duration]) {
        times.sort_unstable();
        for (name, part) in [("min", 0.0), ("p50", 0.5), ("p99", 0.99)] {
            let value = microseconds(percentile(times, part));
            self.say(&format!("{prefix}_{name}_us"), value, "us");
        }
    }

    fn line(&self, metric: &str, value: Value, unit: &str) {
        let (bench, name) = (self.bench, &self.name);
        let line =
            json!({"bench": bench, "impl": name, "metric": metric, "value": value, "unit": unit});
        let mut out = std::io::stdout().lock();
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        written.expect("whoever measures reads what comes of it");
    }
}

pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Of times in ascending order; 0.5 is the median.
pub(crate) fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// The middle one, the upper of two; of no figures, nothing.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn least(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

pub(crate) fn greatest(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

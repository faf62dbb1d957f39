//! What the benches of all crates share: how long they take, and the table for people at the end.
//!
//! Criterion keeps its estimates as files. The table is read from these, so that the last bench to run shows what all
//! have found, not only its own part.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use criterion::{Criterion, PlottingBackend};
use serde_json::Value;

/// The function of each group that is ours; the others stand beside it.
pub(crate) const OURS: &str = "errback";

/// Figures older than this, when a table is printed, are another run's.
const ONE_RUN: Duration = Duration::from_secs(30 * 60);

/// So many samples, and so little time for each bench, that all of them together take a few minutes. `--quick` is for a
/// glance: plots take longer than what they show.
pub(crate) fn criterion() -> Criterion {
    let criterion = Criterion::default()
        .plotting_backend(PlottingBackend::Plotters)
        .sample_size(30)
        .nresamples(10_000); // a hundred thousand take longer than what they are made of
    let criterion = match is_given("--quick") {
        true => timed(criterion, 100, 400).without_plots(),
        false => timed(criterion, 500, 1500),
    };
    criterion.configure_from_args()
}

fn timed(criterion: Criterion, warm_up: u64, measurement: u64) -> Criterion {
    criterion
        .warm_up_time(Duration::from_millis(warm_up))
        .measurement_time(Duration::from_millis(measurement))
}

fn is_given(option: &str) -> bool {
    env::args().any(|argument| argument == option)
}

/// Prints what this run has found up to now; nothing if nothing was measured (`--test`).
pub(crate) fn print_table() {
    let Some(place) = estimates_folder() else {
        return;
    };
    let mut found = Vec::new();
    collect(&place, &mut found);
    found.sort_by_key(|figure| figure.measured);
    let groups = in_groups(found);
    if groups.is_empty() || is_given("--test") || is_given("--list") {
        return;
    }
    println!("\n{:<44} {:>10}   beside it", "", OURS);
    groups.iter().for_each(|group| print_group(group));
    println!("\n'x' is how many times longer the other takes.");
    let report = place.join("report").join("index.html");
    if report.is_file() && !is_given("--quick") {
        println!("Plots: {}", report.display());
    }
}

/// A bench's result.
struct Figure {
    group: String,
    function: String,
    nanoseconds: f64,
    measured: SystemTime,
}

/// Where criterion puts its files.
fn estimates_folder() -> Option<PathBuf> {
    if let Some(home) = env::var_os("CRITERION_HOME") {
        return Some(home.into());
    }
    let program = env::current_exe().ok()?;
    let mut folders = program.ancestors().map(|folder| folder.join("criterion"));
    folders.find(|folder| folder.is_dir())
}

fn collect(folder: &Path, found: &mut Vec<Figure>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
    {
        match path.file_name().is_some_and(|name| name == "new") {
            true => found.extend(figure(&path)),
            false => collect(&path, found),
        }
    }
}

/// The figure of the latest run of a bench; `None` if it is old, or not complete.
fn figure(folder: &Path) -> Option<Figure> {
    let path = folder.join("estimates.json");
    let measured = fs::metadata(&path).ok()?.modified().ok()?;
    if measured.elapsed().is_ok_and(|age| age > ONE_RUN) {
        return None;
    }
    let bench = read(&folder.join("benchmark.json"))?;
    let time = read(&path)?["median"]["point_estimate"].as_f64()?;
    let elements = bench["throughput"]["Elements"].as_f64().unwrap_or(1.0);
    Some(Figure {
        group: bench["group_id"].as_str()?.to_owned(),
        function: bench["function_id"].as_str()?.to_owned(),
        nanoseconds: time / elements,
        measured,
    })
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The groups in the order in which they were measured.
fn in_groups(found: Vec<Figure>) -> Vec<Vec<Figure>> {
    let mut groups: Vec<Vec<Figure>> = Vec::new();
    let mut places = HashMap::new();
    for figure in found {
        let place = *places.entry(figure.group.clone()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(figure),
            None => groups.push(vec![figure]),
        }
    }
    groups
}

fn print_group(group: &[Figure]) {
    let Some(ours) = group.iter().find(|figure| figure.function == OURS) else {
        return;
    };
    let mut what = format!("{:<44} {:>10}", ours.group, shown(ours.nanoseconds));
    for other in group.iter().filter(|figure| figure.function != OURS) {
        let times = other.nanoseconds / ours.nanoseconds;
        let time = shown(other.nanoseconds);
        println!("{what:<55} {time:>10} {times:>7.2} x   {}", other.function);
        what.clear();
    }
}

fn shown(nanoseconds: f64) -> String {
    let (divisor, unit) = match nanoseconds {
        below if below < 1e3 => (1.0, "ns"),
        below if below < 1e6 => (1e3, "us"),
        below if below < 1e9 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    let figure = nanoseconds / divisor;
    let digits = if figure < 10.0 {
        2
    } else if figure < 100.0 {
        1
    } else {
        0
    };
    format!("{figure:.digits$} {unit}")
}

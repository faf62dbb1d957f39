//! The most important figures as a table for people: each part runs quickly, in a process of its own.

use std::collections::HashMap;
use std::process::Stdio;

use serde_json::Value;

use crate::options::Options;
use crate::{Done, again};

/// What a line says, of which metric, in which unit, and the divisor that the figure needs for it.
type Line = (&'static str, &'static str, &'static str, f64);

/// The parts that run, and what is told of each.
const TABLE: &[(&str, &[Line])] = &[
    (
        "chain",
        &[
            (
                "a Deferred with ten callbacks, made and fired",
                "chain10_ns",
                "ns",
                1.0,
            ),
            ("    its allocations", "chain10_allocs", "", 1.0),
        ],
    ),
    (
        "million",
        &[
            (
                "1,000,000 Deferreds that each return the next",
                "chained1m_s",
                "s",
                1.0,
            ),
            ("    their memory", "chained1m_peak_mib", "MiB", 1.0),
        ],
    ),
    (
        "gather",
        &[("gather_results of 100,000", "gather100k_ms", "ms", 1.0)],
    ),
    (
        "timers",
        &[
            (
                "a timer: CPU time, nine of ten cancelled",
                "timers_total_cpu_ns",
                "ns",
                1.0,
            ),
            (
                "    how late, 10,000 in a second (median)",
                "timers_late_p50_us",
                "us",
                1.0,
            ),
            (
                "    how late, alone (median)",
                "alone_late_p50_us",
                "us",
                1.0,
            ),
        ],
    ),
    (
        "rtt",
        &[(
            "call_from_thread and an answer (median)",
            "rtt_p50_us",
            "us",
            1.0,
        )],
    ),
    (
        "calls",
        &[
            (
                "call_from_thread, one thread calling",
                "calls_1p_per_s",
                "million/s",
                1e6,
            ),
            (
                "    four threads calling",
                "calls_4p_per_s",
                "million/s",
                1e6,
            ),
        ],
    ),
    (
        "pool",
        &[
            (
                "defer_to_thread of nothing (median)",
                "pool_seq_p50_us",
                "us",
                1.0,
            ),
            ("    many at once", "pool_jobs_per_s", "million/s", 1e6),
        ],
    ),
    (
        "start",
        &[(
            "a process pool's first result, from nothing",
            "start_first_result_ms",
            "ms",
            1.0,
        )],
    ),
    (
        "latency",
        &[(
            "one tiny job in a worker process (median)",
            "job1_p50_us",
            "us",
            1.0,
        )],
    ),
    (
        "burst",
        &[(
            "20,000 tiny jobs at once",
            "burst20k_per_s",
            "thousand/s",
            1e3,
        )],
    ),
    (
        "scale",
        &[(
            "jobs of 2 ms: share of two CPUs at work",
            "scale_efficiency",
            "",
            1.0,
        )],
    ),
    (
        "map",
        &[
            (
                "map over 200,000 integers, best chunk",
                "map200k_best_per_s",
                "million/s",
                1e6,
            ),
            (
                "    default chunk",
                "map200k_chunk_default_per_s",
                "million/s",
                1e6,
            ),
        ],
    ),
    (
        "payload",
        &[
            ("1 MiB to a worker and back", "echo_1MiB_GBps", "GB/s", 1.0),
            ("    64 MiB", "echo_64MiB_GBps", "GB/s", 1.0),
        ],
    ),
    (
        "memory",
        &[
            (
                "100,000 jobs that wait: memory",
                "queue100k_held_mib",
                "MiB",
                1.0,
            ),
            ("    each submit", "queue100k_submit_us_each", "us", 1.0),
        ],
    ),
    (
        "kill_busy",
        &[("a busy worker killed, 200 jobs", "kill_busy_jobs", "", 1.0)],
    ),
];

/// Runs the parts and prints what they come to.
pub(crate) fn show(options: &Options) -> Done {
    let mut quick = options.clone();
    quick.quick = true;
    println!("quick figures, of one run on this machine; --part NAME measures more carefully\n");
    for (part, lines) in TABLE {
        let figures = figures_of(&quick, part)?;
        for (what, metric, unit, divisor) in *lines {
            let figure = figures
                .get(*metric)
                .map_or("-".to_owned(), |value| shown(value, *divisor));
            println!("{what:<50} {figure:>9} {unit}");
        }
    }
    Ok(())
}

/// The first figure of each name that a part gives: the variant that most people will use.
fn figures_of(options: &Options, part: &str) -> Result<HashMap<String, Value>, errback::Failure> {
    let output = again(options, part)?.stderr(Stdio::inherit()).output()?;
    errback::ensure!(output.status.success(), "{part}: {}", output.status);
    let mut figures = HashMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut line: Value = serde_json::from_str(line)?;
        let metric = line["metric"].as_str().unwrap_or_default().to_owned();
        figures.entry(metric).or_insert(line["value"].take());
    }
    Ok(figures)
}

fn shown(value: &Value, divisor: f64) -> String {
    match value.as_f64().map(|figure| figure / divisor) {
        Some(figure) if figure >= 100.0 => format!("{figure:.0}"),
        Some(figure) if figure >= 10.0 => format!("{figure:.1}"),
        Some(figure) => format!("{figure:.2}"),
        None => value.as_str().unwrap_or("-").to_owned(),
    }
}

//! The suite's own harness: each row is a test that runs in a process of its own, and a run of many ends in a table.
//!
//! A row's process is this program, started again with two words of ours as arguments (the environment would be
//! inherited by what the row starts). The filters, lists and options of `cargo test` and nextest are libtest-mimic's.
//! Only what a machine can forbid may be skipped, and a skipped row says in the table why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, FormatSetting, Trial};
use rustix::process::{Pid, Signal};

/// No row takes longer, on whatever machine.
const WATCHDOG: Duration = Duration::from_secs(300);

/// The rows that a machine can forbid: they need a control group, a clock or a table of processes of their own.
const MAY_BE_SKIPPED: [&str; 5] = ["X5", "F9", "F11", "C6", "O5"];

/// A run of fewer rows is somebody's search, and needs no table.
const TABLE_FROM: usize = 11;

/// The words that make this program a row, or another program that a row needs.
const ROW: &str = "--row";
const PROGRAM: &str = "--program";

/// The exit status of a row that was skipped, as automake has it.
const SKIPPED: i32 = 77;

/// One thing that goes wrong, and what must come of it.
pub(crate) struct Row {
    /// Its module and function: `k4_…` and `x1_x2_…` begin with the ids of the faults.
    pub(crate) name: &'static str,
    /// One line of what goes wrong.
    pub(crate) fault: &'static [&'static str],
    pub(crate) body: fn(),
}

/// A program that a row needs beside itself, such as a host to be killed.
pub(crate) type Program = (&'static str, fn());

/// A module's rows. The comment above a row says what goes wrong, and is its line in the table.
macro_rules! rows {
    ($($(#[doc = $fault:literal])+ fn $name:ident() $body:block)*) => {
        pub(crate) const ROWS: &[crate::suite::Row] = &[$({
            fn $name() $body
            crate::suite::Row {
                name: concat!(module_path!(), "::", stringify!($name)),
                fault: &[$($fault),+],
                body: $name,
            }
        }),*];
    };
}
pub(crate) use rows;

impl Row {
    /// The name without the crate's.
    fn name(&self) -> &'static str {
        let (_, name) = self
            .name
            .split_once("::")
            .expect("a path begins with the crate");
        name
    }

    /// The ids that its name begins with: a letter alone, or with a number.
    fn ids(&self) -> Vec<String> {
        let (_, name) = self.name.rsplit_once("::").expect("a path ends in a name");
        let is_id = |(place, word): &(usize, &str)| {
            let number = word.get(1..).unwrap_or_default();
            number.bytes().all(|digit| digit.is_ascii_digit())
                && (*place == 0 || !number.is_empty())
        };
        let ids = name.split('_').enumerate().take_while(is_id);
        ids.map(|(_, word)| word.to_uppercase()).collect()
    }

    fn may_be_skipped(&self) -> bool {
        let ids = self.ids();
        ids.iter().any(|id| MAY_BE_SKIPPED.contains(&&**id))
    }

    fn fault(&self) -> String {
        let lines = self.fault.iter().map(|line| line.trim());
        let sentence = lines.collect::<Vec<_>>().join(" ");
        sentence.trim_end_matches('.').to_string()
    }
}

/// How a row ended, as its process and those around it have it.
enum Outcome {
    /// With the longest time that a failure took to come, if one was awaited.
    Passed(Option<Duration>),
    Skipped(String),
    Failed(String),
}

/// A line of the table.
struct Line {
    row: &'static Row,
    outcome: String,
    time: String,
}

/// Is whatever this process was started to be: a row, a program of a row's, or the suite.
pub(crate) fn main(rows: &[&'static [Row]], programs: &[&[Program]]) -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [ROW, name, report] => {
            let mut all = rows.iter().copied().flatten();
            let row = all.find(|row| row.name() == name).expect("a row");
            be_row(row, report);
            ExitCode::SUCCESS
        }
        [PROGRAM, name] => {
            let mut all = programs.iter().copied().flatten();
            let (_, program) = all.find(|(its, _)| *its == name).expect("a program");
            program();
            ExitCode::SUCCESS
        }
        _ => be_suite(rows),
    }
}

fn be_suite(rows: &[&'static [Row]]) -> ExitCode {
    let arguments = Arguments::from_args();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let trial = |row: &'static Row| {
        let (lines, show) = (Arc::clone(&lines), arguments.nocapture);
        Trial::ignorable_test(row.name(), move || try_row(row, show, &lines))
    };
    let trials = rows.iter().copied().flatten().map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut lines = lines.lock().expect("no trial panics with it");
    // Under nextest, each row is a run.
    let is_read = matches!(arguments.format, None | Some(FormatSetting::Pretty));
    if lines.len() >= TABLE_FROM && is_read {
        lines.sort_by_key(|line| order(line.row));
        print_table(&lines);
    }
    conclusion.exit_code()
}

/// Letters first, then numbers as numbers.
fn order(row: &Row) -> (String, u32, &'static str) {
    let first = row.ids().swap_remove(0);
    let (letter, number) = first.split_at(1);
    (
        letter.to_string(),
        number.parse().unwrap_or(u32::MAX),
        row.name,
    )
}

fn print_table(lines: &[Line]) {
    println!("| id | fault | outcome | time to the failure or to the end |");
    println!("| --- | --- | --- | --- |");
    for Line { row, outcome, time } in lines {
        let (ids, fault) = (row.ids().join(", "), row.fault());
        println!("| {ids} | {fault} | {outcome} | {time} |");
    }
    println!();
}

fn try_row(row: &'static Row, show: bool, lines: &Mutex<Vec<Line>>) -> Result<Completion, Failed> {
    let began = Instant::now();
    let outcome = run(row, show);
    let (text, failure, result) = match outcome {
        Outcome::Passed(failure) => ("passed".to_string(), failure, Ok(Completion::Completed)),
        Outcome::Skipped(why) => {
            let text = format!("skipped, because {why}");
            (text, None, Ok(Completion::ignored_with(why)))
        }
        Outcome::Failed(how) => ("**failed**".to_string(), None, Err(how.into())),
    };
    let time = match failure {
        Some(failure) => format!("{} to the failure", milliseconds(failure)),
        None => format!("{} to the end", milliseconds(began.elapsed())),
    };
    let line = Line {
        row,
        outcome: text,
        time,
    };
    lines.lock().expect("no trial panics with it").push(line);
    result
}

fn milliseconds(time: Duration) -> String {
    match time.as_millis() {
        0 => "under 1 ms".to_string(),
        some => format!("{some} ms"),
    }
}

/// Runs a row in a new process.
fn run(row: &'static Row, show: bool) -> Outcome {
    let report = report_path();
    let mut command = this_program();
    command.arg(ROW).arg(row.name()).arg(&report);
    command.stdin(Stdio::null());
    if !show {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let child = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn();
    let output = under_watchdog(
        child.expect("a process for the row"),
        Child::wait_with_output,
    );
    let output = output.expect("the row's end");
    let said = fs::read_to_string(&report);
    let _ = fs::remove_file(&report);
    match (output.status.code(), said) {
        (Some(0), Ok(said)) => {
            let longest = said.parse().ok().filter(|micros| *micros > 0);
            Outcome::Passed(longest.map(Duration::from_micros))
        }
        (Some(SKIPPED), Ok(why)) if row.may_be_skipped() => Outcome::Skipped(why),
        (_, said) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
            let said = said.unwrap_or_default();
            Outcome::Failed(format!("{}\n{said}\n{stdout}\n{stderr}", output.status))
        }
    }
}

/// Where a row says how it ended.
fn report_path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("errback-row-{}-{number}", std::process::id());
    std::env::temp_dir().join(name)
}

fn this_program() -> Command {
    Command::new(std::env::current_exe().expect("this binary"))
}

/// This program, to be another one.
pub(crate) fn program(name: &str) -> Command {
    program_at(&std::env::current_exe().expect("this binary"), name)
}

/// The same of a copy of this program.
pub(crate) fn program_at(path: &Path, name: &str) -> Command {
    let mut command = Command::new(path);
    command.args([PROGRAM, name]);
    command
}

/// Waits for a process that leads a group; the group is killed when it takes too long.
fn under_watchdog<T>(child: Child, wait: impl FnOnce(Child) -> T) -> T {
    let group = Pid::from_child(&child);
    let (done, watchdog) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let end = watchdog.recv_timeout(WATCHDOG);
        if end.is_err_and(|error| error == mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{}", stacks(group));
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    });
    let end = wait(child);
    drop(done);
    watchdog.join().expect("the watchdog");
    end
}

/// Where the threads of a process hang.
fn stacks(pid: Pid) -> String {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    let threads = fs::read_dir(tasks)
        .into_iter()
        .flatten()
        .flatten()
        .map(|thread| {
            let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            format!(
                "{} {} {}",
                read("comm").trim(),
                read("wchan"),
                read("syscall").trim()
            )
        });
    threads.collect::<Vec<_>>().join("\n")
}

/// Where this process says how it ended.
static REPORT: OnceLock<PathBuf> = OnceLock::new();

/// The longest time that a failure took to come in this process, in microseconds.
static LONGEST: AtomicU64 = AtomicU64::new(0);

fn be_row(row: &Row, report: &str) {
    // Somebody who interrupts the suite wants its rows to end too, which are not in the terminal's group.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    REPORT.set(report.into()).expect("one row for each process");
    (row.body)();
    let longest = LONGEST.load(Ordering::Relaxed).to_string();
    fs::write(report, longest).expect("a report");
}

/// Notes how long an awaited failure took to come.
pub(crate) fn failure_took(time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    LONGEST.fetch_max(micros.max(1), Ordering::Relaxed);
}

/// Ends this row, which the machine forbids.
pub(crate) fn skip_because(why: &str) -> ! {
    let report = REPORT.get().expect("only rows are skipped");
    fs::write(report, why).expect("a report");
    std::process::exit(SKIPPED)
}

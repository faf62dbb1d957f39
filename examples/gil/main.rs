//! What the interpreter's lock costs, and what is left of the cost when the functions run in a pool of processes.
//!
//! `cargo run --release --example gil [TEXT]`: the same pure Python (`words.py`) over each word of a text, in one thread, in
//! threads of one interpreter, and in worker processes. The text is `docs/protocol.md` if no other is given.

mod bar;
mod interpreter;

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use errback::{
    Deferred, Failure, LoopingCall, Pool, PythonTask, Reactor, ensure, map_to_process, python,
    react, try_deferred,
};
use serde::Deserialize;

use bar::{Progress, Row};

const LOAD: PythonTask<(String,), Vec<String>> = python("words:load");
const NEAREST: PythonTask<(String,), Nearest> = python("words:nearest");

/// A word, and how many changes lead there.
type Nearest = (String, u32);

fn main() -> ExitCode {
    let python = match interpreter::find() {
        Ok(python) => python,
        Err(how) => {
            println!("{how}");
            return ExitCode::SUCCESS;
        }
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::env::args_os().nth(1);
    let text = text.map_or_else(|| here.join("docs/protocol.md"), PathBuf::from);
    let comparison = Comparison {
        python,
        modules: here.join("examples/gil"),
        text: text.display().to_string(),
    };
    react(move |reactor| try_deferred(|| comparison.run(reactor)))
}

struct Comparison {
    python: String,
    modules: PathBuf,
    text: String,
}

/// What one way of running it came to.
#[derive(Deserialize)]
struct Outcome {
    seconds: f64,
    results: Vec<Nearest>,
}

impl Comparison {
    fn run(self, reactor: &Reactor) -> Result<Deferred<()>, Failure> {
        // As many as may really run at once.
        let pool = Pool::builder()
            .python("words")
            .python_interpreter(&self.python)
            .python_path(&self.modules)
            .initializer(LOAD, (self.text.clone(),))
            .build()?;
        let workers = pool.size();
        let words = pool.apply_async(LOAD, (self.text.clone(),)).get()?;
        println!("{} words of {}, {workers} CPUs\n", words.len(), self.text);
        let one = self.in_threads(1, words.len())?;
        let many = self.in_threads(workers, words.len())?;
        let all = in_processes(reactor, &pool, words)?;
        Ok(all.add_callback(move |pooled| {
            ensure!(
                pooled.results == one.results && many.results == one.results,
                "all ways come to the same"
            );
            let row = |what: String, outcome: &Outcome| Row {
                what,
                seconds: outcome.seconds,
                words: outcome.results.len(),
            };
            bar::print(&[
                row("1 thread".to_string(), &one),
                row(format!("{workers} threads of one interpreter"), &many),
                row(format!("{workers} worker processes"), &pooled),
            ]);
            Ok(())
        }))
    }

    /// Runs the script that does it in threads, and follows what it prints.
    fn in_threads(&self, threads: usize, words: usize) -> Result<Outcome, Failure> {
        let mut script = Command::new(&self.python)
            .arg(self.modules.join("threads.py"))
            .args([&self.text, &threads.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = script.stdout.take().expect("it is a pipe");
        let mut progress = Progress::new(format!("{threads} threads"), words);
        let mut last = String::new();
        for line in BufReader::new(output).lines() {
            last = line?;
            if let Ok(done) = last.parse() {
                progress.show(done);
            }
        }
        progress.end();
        let status = script.wait()?;
        ensure!(status.success(), "threads.py: {status}");
        Ok(serde_json::from_str(&last)?)
    }
}

/// Runs it in the pool, each worker of which has been started before.
fn in_processes(
    reactor: &Reactor,
    pool: &Pool,
    words: Vec<String>,
) -> Result<Deferred<Outcome>, Failure> {
    // One for each worker: the time is that of the work and not of the starts.
    let ready = pool.map(NEAREST, vec!["ready".to_string(); 4 * pool.size()]);
    ready
        .chunk_size(1)
        .try_for_each(|result| result.map(drop))?;
    let progress = Rc::new(RefCell::new(Progress::new("the pool", words.len())));
    let before = pool.stats();
    let began = Instant::now();
    let all = map_to_process(reactor, pool, NEAREST, words);
    let drawing = LoopingCall::new(reactor.clone(), {
        let (progress, pool) = (Rc::clone(&progress), pool.clone());
        // What the pool counts is chunks.
        move || {
            let now = pool.stats();
            let chunks = now.submitted - before.submitted;
            progress
                .borrow_mut()
                .show_part(now.finished - before.finished, chunks);
        }
    });
    drawing
        .start(Duration::from_millis(100), true)
        .log_failure();
    Ok(all.add_both(move |results| {
        let seconds = began.elapsed().as_secs_f64();
        drawing.stop();
        progress.borrow_mut().end();
        let results = results?.into_iter().collect::<Result<_, Failure>>()?;
        Ok(Outcome { seconds, results })
    }))
}

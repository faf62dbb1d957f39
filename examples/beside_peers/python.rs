//! Bench D once more, with functions in Python: one tiny job, 100,000 through `map`, and 64 MiB there and back; and the same
//! functions in a `multiprocessing.Pool`, which is what one would use without us.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use errback::{Buffer, Pool, PythonTask, ensure, python};

use crate::options::{Options, WORKERS};
use crate::report::greatest;
use crate::{Done, interpreter, jobs, on_a_reactor, payloads};

const ADD: PythonTask<(i64, i64), i64> = python("peers_jobs:add");
const INCREMENT: PythonTask<(i64,), i64> = python("peers_jobs:increment");
const ECHO: PythonTask<(Buffer,), Buffer> = python("peers_jobs:echo");

const ITEMS: i64 = 100_000;
const SIZE: usize = 64 << 20;

pub(crate) fn python_jobs(options: &Options) -> Done {
    let interpreter = match interpreter::find() {
        Ok(interpreter) => interpreter,
        Err(how) => {
            eprintln!("{how}");
            return Ok(());
        }
    };
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/beside_peers");
    let pool = Pool::builder()
        .size(WORKERS)
        .python("peers_jobs")
        .python_interpreter(&interpreter)
        .python_path(&modules)
        .build()?;
    let count = options.count(3000) as i64;
    let row = options.row("D", "_python");
    row.say("map100k_best_per_s", mapped(&pool)?, "items/s");
    on_a_reactor(move |reactor| async move {
        let mut times = jobs::one_at_a_time(&reactor, &pool, ADD, count).await?;
        row.say_percentiles("job1", &mut times);
        let data = || Buffer::from(payloads::sample(SIZE));
        let patience = Duration::from_millis(1500);
        let times = payloads::echoes(&reactor, &pool, ECHO, data, patience).await?;
        payloads::report(&row, "64MiB", SIZE, &times);
        Ok(())
    })?;
    let mut peer = Command::new(interpreter);
    peer.arg(modules.join("peers_jobs.py"));
    let status = peer
        .args([count, ITEMS, SIZE as i64].map(|it| it.to_string()))
        .status()?;
    ensure!(status.success(), "multiprocessing.Pool: {status}");
    Ok(())
}

/// Items per second, in the best of some rounds.
fn mapped(pool: &Pool) -> Result<f64, errback::Failure> {
    let mut rates = Vec::new();
    for _ in 0..6 {
        let start = Instant::now();
        let numbers = pool
            .map(INCREMENT, 0..ITEMS)
            .collect::<Result<Vec<i64>, _>>()?;
        rates.push(ITEMS as f64 / start.elapsed().as_secs_f64());
        assert!(numbers.into_iter().eq(1..=ITEMS));
    }
    Ok(greatest(&rates))
}

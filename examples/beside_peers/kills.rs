//! Bench D: what becomes of 200 jobs when one of two workers is killed (SIGKILL), while it works or before.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use errback::{AsyncResult, Failure, Pool};
use rustix::process::{Pid, Signal, kill_process};

use crate::Done;
use crate::options::Options;
use crate::tasks::{add, slow, warm_pool};

const JOBS: usize = 200;
/// How many are done when the busy worker is killed.
const DONE_BEFORE: usize = 20;
/// A job that has no result by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn busy(options: &Options) -> Done {
    let (pool, pids) = warm_pool(options)?;
    let mut jobs = submit(&pool);
    let rest = jobs.split_off(DONE_BEFORE);
    for job in jobs {
        job.get()?;
    }
    sleep(Duration::from_millis(3)); // it is in the middle of its next job
    kill(pids[0])?;
    let fates = Fates::of(rest, DONE_BEFORE);
    report(options, "kill_busy", &fates, &pool);
    Ok(())
}

pub(crate) fn idle(options: &Options) -> Done {
    let (pool, pids) = warm_pool(options)?;
    sleep(Duration::from_millis(500));
    kill(pids[0])?;
    sleep(Duration::from_millis(200));
    let fates = Fates::of(submit(&pool), 0);
    report(options, "kill_idle", &fates, &pool);
    Ok(())
}

fn submit(pool: &Pool) -> Vec<AsyncResult<u32>> {
    (0..JOBS).map(|_| pool.apply_async(slow, (10,))).collect()
}

fn kill(pid: u32) -> Done {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::msg("a worker's process id is one"))?;
    Ok(kill_process(pid, Signal::KILL)?)
}

/// How jobs ended.
struct Fates {
    ok: usize,
    hung: usize,
    failed: BTreeMap<String, usize>,
}

impl Fates {
    fn of(jobs: Vec<AsyncResult<u32>>, ok: usize) -> Fates {
        let end = Instant::now() + PATIENCE;
        let mut fates = Fates {
            ok,
            hung: 0,
            failed: BTreeMap::new(),
        };
        for job in jobs {
            match job.get_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Ok(_)) => fates.ok += 1,
                Ok(Err(failure)) => *fates.failed.entry(kind(&failure)).or_default() += 1,
                Err(_) => fates.hung += 1,
            }
        }
        fates
    }
}

/// The last word of the error's type.
fn kind(failure: &Failure) -> String {
    let name = failure.type_name();
    name.rsplit("::").next().unwrap_or(name).to_owned()
}

fn report(options: &Options, part: &str, fates: &Fates, pool: &Pool) {
    let row = options.row("D", "");
    let Fates { ok, hung, failed } = fates;
    let failed = match failed.is_empty() {
        true => "0".to_owned(),
        false => format!("{failed:?}").replace('"', "'"),
    };
    let text = format!("of {JOBS}: {ok} ok, {hung} hung for 20 s, failed {failed}");
    row.say_text(&format!("{part}_jobs"), &text);
    row.say_text(&format!("{part}_pool_after"), &after(pool));
}

/// Whether the pool can still be used.
fn after(pool: &Pool) -> String {
    match pool
        .apply_async(add, (1, 2))
        .get_timeout(Duration::from_secs(5))
    {
        Ok(Ok(3)) => "usable".to_owned(),
        Ok(Ok(_)) => "wrong answer".to_owned(),
        Ok(Err(failure)) => format!("not usable: {}", kind(&failure)),
        Err(_) => "not usable: hangs".to_owned(),
    }
}

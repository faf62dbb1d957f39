//! A result to wait for without any event loop: `multiprocessing`'s `AsyncResult`, which is also a `Future`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use errback_deferred::Failure;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::pool::{Called, Decode, End, Ending, JobKey, Outcome, Pool, lost};
use crate::task::Task;

/// The result of a task that runs, or waits to run, in a worker process.
///
/// It may go to another thread. Dropping it changes nothing for the job, unless
/// [`cancel_on_drop`](AsyncResult::cancel_on_drop) was asked for, or it was the last handle to its pool, which is terminated
/// then.
///
/// ```no_run
/// # #[errback::task] fn square(n: u64) -> u64 { n * n }
/// # async fn example() -> Result<(), errback::Failure> {
/// let pool = errback::Pool::new()?;
/// let result = pool.apply_async(square, (7,));
/// println!("{}", result.await?); // or result.get()?, which blocks
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it drops the result, and any failure with it"]
pub struct AsyncResult<T> {
    cell: Arc<Cell<T>>,
    /// So that a pool is not ended by its last handle's drop while somebody waits for its results.
    pool: Pool,
    /// The two numbers of the job's key, which takes more room than they do: there may be a million of these.
    id: u64,
    index: u32,
    cancel_on_drop: bool,
}

/// Where the result is put, and all else that a job's end needs: one allocation for each job.
struct Cell<T> {
    decode: Decode<T>,
    state: Mutex<CellState<T>>,
    ready: Condvar,
}

enum CellState<T> {
    Pending(Option<Waker>),
    Ready(Result<T, Failure>),
    Taken,
}

impl<T: Send + 'static> AsyncResult<T> {
    pub(crate) fn submit<F: Task<Output = T>>(pool: &Pool, task: F, args: &F::Args) -> Self {
        let (cell, job) = match pool.encode(task, args) {
            Ok(call) => {
                let cell = Arc::new(Cell::new(call.decode()));
                let end = End::new(Arc::clone(&cell) as Arc<dyn Ending>);
                (cell, pool.submit_job(call.job_for(end)))
            }
            Err(error) => {
                let cell = Cell::new(|_, _| unreachable!("nobody answers it"));
                cell.fill(Err(error.into()));
                (Arc::new(cell), None)
            }
        };
        let (index, id) = job.map_or(JobKey::NONE, |job| job.key).parts();
        AsyncResult {
            cell,
            pool: pool.clone(),
            id,
            index,
            cancel_on_drop: false,
        }
    }

    /// Blocks until the result is there, and returns it.
    ///
    /// # Errors
    /// The job's failure; see [`Pool::apply_async`].
    pub fn get(self) -> Result<T, Failure> {
        self.wait();
        self.take()
    }

    /// As [`get`](AsyncResult::get), for a while.
    ///
    /// ```no_run
    /// # #[errback::task] fn square(n: u64) -> u64 { n * n }
    /// # use std::time::Duration;
    /// # let result = errback::Pool::new()?.apply_async(square, (7,));
    /// match result.get_timeout(Duration::from_secs(1)) {
    ///     Ok(result) => println!("{}", result?),
    ///     Err(pending) => pending.cancel(),
    /// }
    /// # Ok::<(), errback::Failure>(())
    /// ```
    ///
    /// # Errors
    /// The `AsyncResult` itself, when it is not ready by then: nothing is lost, and one may wait on.
    pub fn get_timeout(self, patience: Duration) -> Result<Result<T, Failure>, AsyncResult<T>> {
        if self.wait_timeout(patience) {
            Ok(self.take())
        } else {
            Err(self)
        }
    }

    fn take(&self) -> Result<T, Failure> {
        let mut state = self.look()?;
        match std::mem::replace(&mut *state, CellState::Taken) {
            CellState::Ready(result) => result,
            _ => unreachable!("who takes it has waited for it, and takes it by value"),
        }
    }
}

impl<T> AsyncResult<T> {
    /// The state, to look at or to wait for. In a process that was forked from the pool's own nobody will ever fill it in:
    /// what is still pending fails; and the error stands for a cell that a thread was just filling in at the fork, whose
    /// lock is held for ever.
    fn look(&self) -> Result<MutexGuard<'_, CellState<T>>, Failure> {
        let Some(forked) = self.pool.shared().forked() else {
            return Ok(self.cell.state.lock());
        };
        match self.cell.state.try_lock() {
            Some(mut state) => {
                if let CellState::Pending(_) = *state {
                    *state = CellState::Ready(Err(forked));
                }
                Ok(state)
            }
            None => Err(forked),
        }
    }

    /// Looks for the answer for a moment, if it is not there: nobody has to be woken for one that comes soon.
    fn listen(&self) {
        if !self.ready() {
            let shared = self.pool.shared();
            shared.listen(self.key(), || self.cell.is_ready());
        }
    }

    fn key(&self) -> JobKey {
        JobKey::from_parts(self.index, self.id)
    }

    /// Blocks until the result is there.
    pub fn wait(&self) {
        self.listen();
        let Ok(mut state) = self.look() else { return };
        while let CellState::Pending(_) = *state {
            self.cell.ready.wait(&mut state);
        }
    }

    /// As [`wait`](AsyncResult::wait), for a while. Returns whether the result is there.
    pub fn wait_timeout(&self, patience: Duration) -> bool {
        let Some(until) = Instant::now().checked_add(patience) else {
            self.wait();
            return true;
        };
        if !patience.is_zero() {
            self.listen();
        }
        let Ok(mut state) = self.look() else {
            return true;
        };
        while let CellState::Pending(_) = *state {
            if self.cell.ready.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        !matches!(*state, CellState::Pending(_))
    }

    /// Whether the result is there.
    pub fn ready(&self) -> bool {
        !self
            .look()
            .is_ok_and(|state| matches!(*state, CellState::Pending(_)))
    }

    /// Whether the result is a value; `None` while it is not there.
    pub fn successful(&self) -> Option<bool> {
        let Ok(state) = self.look() else {
            return Some(false);
        };
        match &*state {
            CellState::Ready(result) => Some(result.is_ok()),
            _ => None,
        }
    }

    /// Asks for the job not to be done. One that waits, or that its worker has not begun, is taken back; one that runs is asked to stop
    /// ([`cancel_requested`](crate::worker::cancel_requested)), and after a [grace](crate::Builder::cancel_grace) killed with
    /// its worker, which is replaced; one that is done stays as it is. Returns at once.
    ///
    /// The result then is a [`CancelledError`](crate::CancelledError), whatever the job still returns, and comes when the job has
    /// stopped or the killed process is gone. Only an answer that had come before counts.
    pub fn cancel(&self) {
        self.pool.shared().cancel(self.key());
    }

    /// From now on dropping this cancels the job.
    pub fn cancel_on_drop(mut self) -> Self {
        self.cancel_on_drop = true;
        self
    }
}

impl<T> Drop for AsyncResult<T> {
    fn drop(&mut self) {
        if self.cancel_on_drop {
            self.cancel();
        }
    }
}

/// # Panics
/// When polled again after it was ready.
impl<T> Future for AsyncResult<T> {
    type Output = Result<T, Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = match self.look() {
            Ok(state) => state,
            Err(failure) => return Poll::Ready(Err(failure)),
        };
        match &mut *state {
            CellState::Pending(Some(waker)) => waker.clone_from(context.waker()),
            CellState::Pending(waker) => *waker = Some(context.waker().clone()),
            CellState::Ready(_) => {
                if let CellState::Ready(result) = std::mem::replace(&mut *state, CellState::Taken) {
                    return Poll::Ready(result);
                }
            }
            CellState::Taken => panic!("an AsyncResult was polled after it was ready"),
        }
        Poll::Pending
    }
}

impl<T> fmt::Debug for AsyncResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.look().as_deref() {
            Ok(CellState::Pending(_)) => "<AsyncResult: pending>",
            Ok(CellState::Ready(Ok(_))) => "<AsyncResult: a value>",
            Ok(CellState::Ready(Err(_))) | Err(_) => "<AsyncResult: a failure>",
            Ok(CellState::Taken) => "<AsyncResult: taken>",
        })
    }
}

impl<T> Cell<T> {
    fn new(decode: Decode<T>) -> Cell<T> {
        Cell {
            decode,
            state: Mutex::new(CellState::Pending(None)),
            ready: Condvar::new(),
        }
    }

    fn is_ready(&self) -> bool {
        !matches!(*self.state.lock(), CellState::Pending(_))
    }

    /// Puts the result there, if there is none.
    fn fill(&self, result: Result<T, Failure>) {
        let mut state = self.state.lock();
        let CellState::Pending(waker) = &mut *state else {
            return;
        };
        let waker = waker.take();
        *state = CellState::Ready(result);
        drop(state);
        self.ready.notify_all();
        if let Some(waker) = waker {
            waker.wake(); // user code: outside the lock
        }
    }
}

impl<T: Send + 'static> Ending for Cell<T> {
    fn end(&self, _: u32, outcome: Outcome<'_>, called: Called<'_>) {
        self.fill(called.result(self.decode, outcome));
    }

    fn lost(&self, _: u32) {
        self.fill(Err(lost()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_results_take_little_memory() {
        assert!(size_of::<AsyncResult<u64>>() <= 32);
        assert!(size_of::<Cell<u64>>() <= 48); // and two counts
    }
}

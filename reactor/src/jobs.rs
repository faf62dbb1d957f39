//! The queue of the thread pool: which thread takes which job, and who is woken for it.
//!
//! Waking a thread takes longer than many a job. So nobody is woken for a job that somebody who is awake will take:
//!
//! - A thread that has done its job takes the next before it goes on.
//! - One at a time *looks* for a while before it sleeps, as the loop does (`spin.rs`).
//! - One at a time is *called*: until it comes it counts for all jobs that are queued meanwhile, and when it takes one
//!   and more are left, it calls the next.
//!
//! What must hold under the lock: while a job waits and a thread sleeps, one is looking or called.

use std::collections::VecDeque;
use std::hint;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::ReactorHandle;
use crate::spin::Spin;

/// What a thread is to do. It tells the [`Worker`] when the function has returned.
pub(crate) type Job = Box<dyn FnOnce(&mut Worker<'_>) + Send>;

/// The jobs of one pool, for those who queue them and those who do them.
#[derive(Default)]
pub(crate) struct Jobs {
    /// Protects the jobs, and what is known of the threads.
    queue: Mutex<Queue>,
    /// Whether jobs wait; changed under the lock, for the thread that looks.
    waiting: AtomicBool,
    /// Where threads sleep.
    called: Condvar,
}

#[derive(Default)]
struct Queue {
    /// In order; without a bound, because a full one would block the reactor's thread. `None` where one was taken back.
    jobs: VecDeque<Option<Job>>,
    /// The number of the first of them; they are numbered in order.
    first: u64,
    /// How many are still wanted.
    waiting: usize,
    /// How many are being done.
    running: usize,
    asleep: usize,
    /// A thread looks for jobs.
    looking: bool,
    /// A thread was called and has not come yet.
    called: bool,
    closed: bool,
}

/// One thread of the pool, while it does a job.
pub(crate) struct Worker<'a> {
    jobs: &'a Jobs,
    reactor: &'a ReactorHandle,
    next: Option<Job>,
}

impl Jobs {
    /// Queues a job and returns its number.
    pub(crate) fn add(&self, job: Job) -> u64 {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(Some(job));
        queue.waiting += 1;
        let number = queue.first + queue.jobs.len() as u64 - 1;
        self.release(queue);
        number
    }

    /// Gives a job back that nobody has taken yet.
    pub(crate) fn take_back(&self, number: u64) -> Option<Job> {
        let mut queue = self.queue.lock();
        let index = number.checked_sub(queue.first)?;
        let job = queue.jobs.get_mut(usize::try_from(index).ok()?)?.take()?;
        queue.waiting -= 1;
        self.release(queue);
        Some(job)
    }

    /// How many jobs wait or are being done.
    pub(crate) fn unfinished(&self) -> usize {
        let queue = self.queue.lock();
        queue.waiting + queue.running
    }

    /// No more jobs will come. Threads do those that are there, and leave.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.called.notify_all();
    }

    /// What a thread does from its start to its end. It looks for `spin` before it sleeps, as long as that pays.
    pub(crate) fn work(&self, reactor: &ReactorHandle, spin: Duration) {
        let mut spin = Spin::new(spin);
        let mut worker = Worker {
            jobs: self,
            reactor,
            next: None,
        };
        while let Some(job) = worker.next.take().or_else(|| self.wait(&mut spin)) {
            job(&mut worker);
        }
    }

    /// Waits for a job; `None` when there will be none.
    fn wait(&self, spin: &mut Spin) -> Option<Job> {
        let mut queue = self.queue.lock();
        let mut looked = false;
        loop {
            if let Some(job) = queue.take() {
                self.release(queue);
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            if !looked && !queue.looking {
                looked = true;
                queue.looking = true;
                MutexGuard::unlocked(&mut queue, || self.look(spin));
                queue.looking = false;
            } else {
                self.sleep(&mut queue, spin);
                looked = false;
            }
        }
    }

    /// Looks for jobs for a while.
    fn look(&self, spin: &mut Spin) {
        if !spin.is_on() {
            // On one core whoever may bring a job can do so only if we let it run.
            thread::yield_now();
        } else if spin.is_worth_it() {
            let began = Instant::now();
            while !self.waiting.load(Relaxed) {
                let time = began.elapsed();
                if time > spin.limit() {
                    return spin.found_nothing(time);
                }
                hint::spin_loop();
            }
            spin.found();
        }
    }

    fn sleep(&self, queue: &mut MutexGuard<'_, Queue>, spin: &mut Spin) {
        let began = spin.is_on().then(Instant::now);
        queue.asleep += 1;
        self.called.wait(queue);
        queue.asleep -= 1;
        queue.called = false;
        if let Some(began) = began {
            spin.slept(began.elapsed(), true);
        }
    }

    /// Unlocks, and calls a thread if one is needed.
    fn release(&self, mut queue: MutexGuard<'_, Queue>) {
        let waiting = queue.waiting > 0;
        if self.waiting.load(Relaxed) != waiting {
            self.waiting.store(waiting, Relaxed);
        }
        let call = waiting && queue.asleep > 0 && !queue.looking && !queue.called;
        queue.called |= call;
        drop(queue);
        if call {
            self.called.notify_one();
        }
    }
}

impl Queue {
    /// The first job that is still wanted.
    fn take(&mut self) -> Option<Job> {
        while let Some(first) = self.jobs.pop_front() {
            self.first += 1;
            if first.is_some() {
                self.waiting -= 1;
                self.running += 1;
                return first;
            }
        }
        None
    }
}

impl<'a> Worker<'a> {
    /// The reactor to which the pool belongs.
    pub(crate) fn reactor(&self) -> &'a ReactorHandle {
        self.reactor
    }

    /// The function has returned. To be called before its result is known to anybody: who waits for the result and then
    /// sends the next job must find this thread counted as free.
    pub(crate) fn is_free(&mut self) {
        let mut queue = self.jobs.queue.lock();
        queue.running -= 1;
        self.next = queue.take();
        self.jobs.release(queue);
    }
}

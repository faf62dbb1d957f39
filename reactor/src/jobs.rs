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
//!
//! Jobs that come from one place have one type, and many of them come from few places. So what follows a job of its own
//! type lies beside it in a queue of that type, a *run*, and the thread that takes one works on as long as the next has
//! that type too: a job is moved, once, and needs no box (which one thread would allocate and another would free).

use std::any::Any;
use std::collections::VecDeque;
use std::hint;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::ReactorHandle;
use crate::spin::Spin;

/// What a thread is to do.
pub(crate) trait Job: Send + 'static {
    /// Does it. What is returned hands the result over: it is called when the thread counts as free again, so that who
    /// waits for the result and then sends the next job finds that.
    fn work(self) -> impl FnOnce(&ReactorHandle);

    /// It is not wanted any more.
    fn taken_back(self);
}

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
    /// In order; without a bound, because a full one would block the reactor's thread. In the first of them a job waits,
    /// or it is the only one, and kept for its memory.
    runs: VecDeque<Box<dyn Run>>,
    /// The number of the next job; they are numbered in order.
    next: u64,
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

/// Jobs of one type, whichever it is. The functions are for those who hold the lock and do not know that type.
trait Run: Any + Send {
    fn is_empty(&self) -> bool;
    /// The number of the first job.
    fn first(&self) -> u64;
    /// Does jobs of this type, as long as the first run is of this type.
    fn working_on(&self) -> fn(&Jobs, MutexGuard<'_, Queue>, &ReactorHandle);
    /// Takes the job of that number back, from the run at that index.
    fn taking_back(&self) -> fn(&Jobs, MutexGuard<'_, Queue>, usize, u64);
}

/// Jobs of one type that follow each other.
struct RunOf<J> {
    first: u64,
    /// `None` where one was taken back, but never at the front.
    jobs: VecDeque<Option<J>>,
}

/// An empty run is kept for its memory up to this many bytes.
const KEPT: usize = 1 << 18;

impl Jobs {
    /// Queues a job and returns its number.
    pub(crate) fn add<J: Job>(&self, job: J) -> u64 {
        let mut queue = self.queue.lock();
        let number = queue.add(job);
        self.release(queue);
        number
    }

    /// Takes a job back that nobody has taken yet.
    pub(crate) fn take_back(&self, number: u64) {
        let queue = self.queue.lock();
        let after = queue.runs.partition_point(|run| run.first() <= number);
        if let Some(index) = after.checked_sub(1) {
            let taking_back = queue.runs[index].taking_back();
            taking_back(self, queue, index, number);
        }
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
        while let Some(queue) = self.wait(&mut spin) {
            let working_on = queue.runs[0].working_on();
            working_on(self, queue, reactor);
        }
    }

    /// Waits for a job to be in the queue; `None` when there will be none.
    fn wait(&self, spin: &mut Spin) -> Option<MutexGuard<'_, Queue>> {
        let mut queue = self.queue.lock();
        let mut looked = false;
        loop {
            if queue.waiting > 0 {
                return Some(queue);
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
        if spin.yields() || !spin.is_on() {
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

/// Does jobs of one type, from the one that is first in the queue.
fn work_on<J: Job>(jobs: &Jobs, mut queue: MutexGuard<'_, Queue>, reactor: &ReactorHandle) {
    let mut next = queue.take::<J>();
    jobs.release(queue);
    while let Some(job) = next {
        let hand_over = job.work();
        let mut queue = jobs.queue.lock();
        queue.running -= 1;
        next = queue.take::<J>();
        jobs.release(queue);
        hand_over(reactor);
    }
}

fn take_back<J: Job>(jobs: &Jobs, mut queue: MutexGuard<'_, Queue>, index: usize, number: u64) {
    let run = queue.run_of::<J>(index).expect("it was asked for its type");
    let Some(job) = run.take_back(number) else {
        return;
    };
    queue.waiting -= 1;
    queue.drop_empty_runs();
    jobs.release(queue);
    job.taken_back();
}

impl Queue {
    fn run_of<J: Job>(&mut self, index: usize) -> Option<&mut RunOf<J>> {
        let run: &mut dyn Any = &mut **self.runs.get_mut(index)?;
        run.downcast_mut()
    }

    fn add<J: Job>(&mut self, job: J) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting += 1;
        let last = self.runs.len().wrapping_sub(1);
        match self.run_of::<J>(last) {
            Some(run) => run.jobs.push_back(Some(job)),
            None => {
                self.runs.push_back(Box::new(RunOf {
                    first: number,
                    jobs: VecDeque::from([Some(job)]),
                }));
                self.drop_empty_runs(); // one that was kept
            }
        }
        number
    }

    /// The first job that is still wanted, if it is a `J`. It counts as being done.
    fn take<J: Job>(&mut self) -> Option<J> {
        let run = self.run_of::<J>(0)?;
        let job = run.take()?;
        if run.is_empty() {
            self.drop_empty_runs();
        }
        self.waiting -= 1;
        self.running += 1;
        Some(job)
    }

    fn drop_empty_runs(&mut self) {
        while self.runs.len() > 1 && self.runs[0].is_empty() {
            self.runs.pop_front();
        }
    }
}

impl<J: Job> RunOf<J> {
    fn take(&mut self) -> Option<J> {
        let job = self.jobs.pop_front()??;
        self.first += 1;
        self.skip_taken_back();
        Some(job)
    }

    fn take_back(&mut self, number: u64) -> Option<J> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let job = self.jobs.get_mut(index)?.take();
        self.skip_taken_back();
        job
    }

    fn skip_taken_back(&mut self) {
        while self.jobs.front().is_some_and(Option::is_none) {
            self.jobs.pop_front();
            self.first += 1;
        }
        if self.jobs.is_empty() && self.jobs.capacity() * size_of::<J>() > KEPT {
            self.jobs = VecDeque::new();
        }
    }
}

impl<J: Job> Run for RunOf<J> {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    fn first(&self) -> u64 {
        self.first
    }

    fn working_on(&self) -> fn(&Jobs, MutexGuard<'_, Queue>, &ReactorHandle) {
        work_on::<J>
    }

    fn taking_back(&self) -> fn(&Jobs, MutexGuard<'_, Queue>, usize, u64) {
        take_back::<J>
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reactor;
    use std::sync::{Arc, Mutex};

    type Seen = Arc<Mutex<Vec<(u64, &'static str)>>>;

    /// A job whose type depends on the number.
    struct Note<const TYPE: u64> {
        number: u64,
        seen: Seen,
    }

    impl<const TYPE: u64> Note<TYPE> {
        fn add(jobs: &Jobs, number: u64, seen: &Seen) {
            let seen = seen.clone();
            assert_eq!(jobs.add(Note::<TYPE> { number, seen }), number);
        }
    }

    impl<const TYPE: u64> Job for Note<TYPE> {
        fn work(self) -> impl FnOnce(&ReactorHandle) {
            self.seen.lock().unwrap().push((self.number, "done"));
            move |_| self.seen.lock().unwrap().push((self.number, "told"))
        }

        fn taken_back(self) {
            self.seen.lock().unwrap().push((self.number, "back"));
        }
    }

    fn add(jobs: &Jobs, number: u64, types: u64, seen: &Seen) {
        match number * number % 7 % types {
            0 => Note::<0>::add(jobs, number, seen),
            1 => Note::<1>::add(jobs, number, seen),
            _ => Note::<2>::add(jobs, number, seen),
        }
    }

    /// Adds a hundred jobs of so many types, takes those back that are `unwanted`, and does the others.
    fn do_all_but(unwanted: impl Fn(u64) -> bool, types: u64) {
        let reactor = Reactor::new().unwrap();
        let (jobs, seen) = (Jobs::default(), Seen::default());
        (0..100).for_each(|number| add(&jobs, number, types, &seen));
        let (back, wanted): (Vec<u64>, Vec<u64>) = (0..100).partition(|number| unwanted(*number));
        back.iter().rev().for_each(|number| jobs.take_back(*number));
        back.iter().for_each(|number| jobs.take_back(*number)); // they are gone
        assert_eq!(jobs.unfinished(), wanted.len());
        let expected = back.iter().rev().map(|number| (*number, "back"));
        assert_eq!(
            seen.lock().unwrap().drain(..).collect::<Vec<_>>(),
            expected.collect::<Vec<_>>()
        );
        add(&jobs, 100, types, &seen);
        jobs.close();
        jobs.work(&reactor.handle(), Duration::ZERO);
        let expected = wanted.into_iter().chain([100]);
        let expected: Vec<_> = expected.flat_map(|n| [(n, "done"), (n, "told")]).collect();
        assert_eq!(*seen.lock().unwrap(), expected);
        assert_eq!(jobs.unfinished(), 0);
        assert!(jobs.queue.lock().runs.len() <= 1);
        (0..101).for_each(|number| jobs.take_back(number)); // too late
    }

    #[test]
    fn jobs_of_any_types_are_done_in_order_and_those_taken_back_are_not() {
        for types in 1..=3 {
            do_all_but(|_| false, types);
            do_all_but(|number| number % 3 == 0, types);
            do_all_but(|number| number < 60, types);
            do_all_but(|number| (30..70).contains(&number), types);
            do_all_but(|number| number > 40, types);
            do_all_but(|_| true, types);
        }
    }
}

//! Random calls of the public methods from inside callbacks, errbacks, cancellers, coroutines and `drop`.
//!
//! Nothing may panic, nothing may be called twice, and when all is let go of nothing may be left: each closure owns a
//! [`Token`], and tokens are counted.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use errback_deferred::*;

const SEEDS: u64 = 3_000;
const CALLS: usize = 60;
/// How deep a call may stand inside others' callbacks.
const DEPTH: u32 = 3;

#[test]
fn any_method_may_be_called_from_anywhere() {
    for seed in 1..=SEEDS {
        play(seed);
    }
}

fn play(seed: u64) {
    let panics = Rc::new(RefCell::new(Vec::new()));
    let log = panics.clone();
    let observer = observe_unhandled(move |it| {
        if it.failure.is::<PanicError>() {
            log.borrow_mut().push(it.to_string());
        }
    });
    let world = Rc::new(World::new(seed));
    for _ in 0..CALLS {
        world.clone().call(DEPTH);
    }
    world.close();
    drop(observer);
    assert_eq!(*panics.borrow(), Vec::<String>::new(), "seed {seed}");
    assert_eq!(world.tokens.get(), 0, "seed {seed}");
    assert_eq!(
        Rc::strong_count(&world),
        1,
        "seed {seed}: something holds the world"
    );
}

struct World {
    random: Cell<u64>,
    tokens: Rc<Cell<isize>>,
    closed: Cell<bool>,
    deferreds: RefCell<Vec<Deferred<i64>>>,
    resolvers: RefCell<Vec<Resolver<i64>>>,
    shared: RefCell<Vec<SharedResolver<i64>>>,
    pauses: RefCell<Vec<Pause>>,
    handles: RefCell<Vec<CancelHandle>>,
    observables: RefCell<Vec<ObservableDeferred<i64>>>,
    clock: RefCell<Clock>,
    delayed: RefCell<Vec<DelayedCall>>,
    lock: DeferredLock,
    semaphore: DeferredSemaphore,
    permits: RefCell<Vec<Permit>>,
    queue: DeferredQueue<i64>,
    loops: RefCell<Vec<LoopingCall>>,
    tasks: RefCell<Vec<CooperativeTask>>,
    cooperator: RefCell<Option<Cooperator>>,
}

/// Owned by every closure. When it is dropped, that too makes a call.
struct Token {
    world: Rc<World>,
    depth: u32,
}

impl Token {
    fn new(world: &Rc<World>, depth: u32) -> Token {
        world.tokens.set(world.tokens.get() + 1);
        Token {
            world: world.clone(),
            depth,
        }
    }

    /// What a closure does: something.
    fn act(&self) {
        if self.depth > 0 {
            self.world.clone().call(self.depth - 1);
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.world.tokens.set(self.world.tokens.get() - 1);
        if self.world.chance(4) {
            self.act();
        }
    }
}

/// Takes a random one out; the borrow ends before anything is done with it.
fn take<T>(world: &World, from: &RefCell<Vec<T>>) -> Option<T> {
    let mut from = from.borrow_mut();
    let count = from.len();
    (count > 0).then(|| from.swap_remove(world.below(count)))
}

fn put<T>(to: &RefCell<Vec<T>>, it: T) {
    to.borrow_mut().push(it);
}

impl World {
    fn new(seed: u64) -> World {
        let clock = Clock::new();
        World {
            random: Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            tokens: Rc::default(),
            closed: Cell::new(false),
            deferreds: RefCell::default(),
            resolvers: RefCell::default(),
            shared: RefCell::default(),
            pauses: RefCell::default(),
            handles: RefCell::default(),
            observables: RefCell::default(),
            delayed: RefCell::default(),
            lock: DeferredLock::new(),
            semaphore: DeferredSemaphore::new(2),
            permits: RefCell::default(),
            queue: DeferredQueue::with_limits(Some(3), Some(3)),
            loops: RefCell::default(),
            tasks: RefCell::default(),
            cooperator: RefCell::new(Some(Cooperator::with_termination(clock.clone(), || {
                let mut steps = 0;
                move || {
                    steps += 1;
                    steps > 5
                }
            }))),
            clock: RefCell::new(clock),
        }
    }

    fn below(&self, n: usize) -> usize {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x >> 16) as usize % n
    }

    fn chance(&self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs(self.below(4) as u64)
    }

    fn deferred(&self) -> Option<Deferred<i64>> {
        take(self, &self.deferreds)
    }

    fn keep(&self, d: Deferred<i64>) {
        put(&self.deferreds, d);
    }

    fn result(&self) -> Result<i64, Failure> {
        match self.below(3) {
            0 => Err(Failure::msg("random")),
            n => Ok(n as i64),
        }
    }

    /// A result, or a new Deferred: one that is in use already might wait for the very Deferred that is to wait for it, and
    /// two that wait for each other hold each other for ever.
    fn outcome(&self) -> Outcome<i64> {
        if !self.closed.get() && self.chance(3) {
            let (resolver, d) = Deferred::new();
            put(&self.resolvers, resolver);
            return Outcome::Later(d);
        }
        Outcome::Now(self.result())
    }

    /// One random call. Those that come of the end of the world do nothing.
    fn call(self: Rc<Self>, depth: u32) {
        if self.closed.get() {
            return;
        }
        let token = Token::new(&self, depth);
        match self.below(12) {
            0 | 1 => self.make(token),
            2 | 3 => self.add(token),
            4 | 5 => self.fire(),
            6 => self.hold(),
            7 => self.combine(),
            8 => self.time(token),
            9 => self.turns(token),
            10 => self.work(token),
            _ => self.let_go(),
        }
    }

    fn make(&self, token: Token) {
        let (resolver, d) = match self.below(6) {
            0 => Deferred::new(),
            1 => return self.keep(maybe_deferred(|| self.outcome())),
            2 => return self.keep(succeed(1).with_visible_input()),
            3 => {
                let (resolver, d) = Deferred::new();
                d.set_take_back(Rc::new(move |_| token.act()), 0);
                (resolver, d)
            }
            4 => {
                let (resolver, d) = Deferred::new();
                d.set_cancel_request(Rc::new(move |_| token.act()), 0);
                (resolver, d)
            }
            _ => Deferred::with_canceller(move || {
                token.act();
                let world = &token.world;
                (!world.chance(3)).then(|| world.result())
            }),
        };
        match self.chance(2) {
            true => put(&self.resolvers, resolver),
            false => put(&self.shared, resolver.into_shared()),
        }
        self.keep(d);
    }

    fn add(&self, token: Token) {
        let Some(d) = self.deferred() else { return };
        let pause = self.chance(2).then(|| d.pause());
        let d = match self.below(5) {
            0 => d.add_callback(move |_| {
                token.act();
                token.world.outcome()
            }),
            1 => d.add_errback(move |_| {
                token.act();
                token.world.outcome()
            }),
            2 => {
                let other = Token::new(&token.world, token.depth);
                d.add_callbacks(
                    move |_| {
                        token.act();
                        token.world.outcome()
                    },
                    move |_| {
                        other.act();
                        other.world.outcome()
                    },
                )
            }
            // To a new one: two that are to fire each other would hold each other for ever.
            3 => {
                let (end, next) = Deferred::new();
                let end = end.into_shared();
                put(&self.shared, end.clone());
                self.keep(next);
                d.chain_deferred(end).add_callback(|()| Ok(0))
            }
            _ => d.add_both(move |_| {
                token.act();
                token.world.outcome()
            }),
        };
        self.keep(d);
        drop(pause);
    }

    fn fire(&self) {
        if self.chance(2)
            && let Some(resolver) = take(self, &self.resolvers)
        {
            let _ = resolver.called();
            let _ = resolver.fire(self.result());
        } else if let Some(end) = take(self, &self.shared) {
            if self.chance(3) {
                put(&self.shared, end.clone());
            }
            let _ = end.called();
            let _ = end.fire(self.result());
        }
    }

    fn hold(&self) {
        let Some(d) = self.deferred() else { return };
        match self.below(6) {
            0 => d.cancel(),
            1 => put(&self.pauses, d.pause()),
            2 => put(&self.handles, d.cancel_handle()),
            3 => drop((d.state(), d.called(), format!("{d:?}"))),
            4 => {
                put(&self.observables, ObservableDeferred::new(d));
                return;
            }
            _ => {
                let handle = take(self, &self.handles);
                handle.into_iter().for_each(|handle| handle.cancel());
            }
        }
        self.keep(d);
    }

    fn combine(&self) {
        let some: Vec<_> = (0..self.below(4)).filter_map(|_| self.deferred()).collect();
        let d = match self.below(4) {
            0 => gather_results(some).add_callback(|v| Ok(v.len() as i64)),
            1 => race(some).add_callback(|(_, v)| Ok(v)),
            2 => (DeferredList::new(some).fire_on_one_callback().start()).add_callback(|_| Ok(1)),
            _ => match take(self, &self.observables) {
                Some(observable) => {
                    let d = observable.observe();
                    put(&self.observables, observable);
                    some.into_iter().for_each(|d| self.keep(d));
                    d
                }
                None => DeferredList::new(some)
                    .results()
                    .add_callback(|v| Ok(v.len() as i64)),
            },
        };
        self.keep(d);
    }

    fn time(&self, token: Token) {
        let clock = self.clock.borrow().clone();
        let delay = self.seconds();
        match self.below(5) {
            0 => clock.advance(delay),
            1 => {
                let call = move || token.act();
                put(&self.delayed, clock.call_later(delay, Box::new(call)));
            }
            2 => {
                let Some(call) = take(self, &self.delayed) else {
                    return;
                };
                let _ = match self.below(3) {
                    0 => call.cancel(),
                    1 => call.reset(delay),
                    _ => call.delay(delay),
                };
            }
            3 => self.keep(defer_later(&clock, delay, move || {
                token.act();
                token.world.outcome()
            })),
            _ => {
                let Some(d) = self.deferred() else { return };
                self.keep(d.add_timeout_with(delay, &clock, move |result, _| {
                    token.act();
                    result
                }));
            }
        }
    }

    fn turns(&self, token: Token) {
        match self.below(6) {
            0 => self.keep(self.lock.acquire().add_callback(move |it| {
                put(&token.world.permits, it);
                token.act();
                Ok(0)
            })),
            1 => self.keep(self.semaphore.acquire().add_callback(move |it| {
                drop(it);
                token.act();
                Ok(0)
            })),
            2 => {
                let run = move || {
                    token.act();
                    token.world.outcome()
                };
                self.keep(match self.chance(2) {
                    true => self.lock.run(run),
                    false => self.semaphore.run(run),
                });
            }
            3 => drop(take(self, &self.permits)),
            4 => drop(self.queue.put(1)),
            _ => self.keep(self.queue.get()),
        }
    }

    fn work(self: &Rc<Self>, token: Token) {
        match self.below(5) {
            0 => {
                let looping = LoopingCall::with_count(self.clock.borrow().clone(), move |_| {
                    token.act();
                    token.world.outcome()
                });
                put(&self.loops, looping.clone());
                let interval = self.seconds() + Duration::from_secs(1);
                let d = looping.start(interval, self.chance(2));
                self.keep(d.add_callback(|_| Ok(0)));
            }
            1 => {
                let Some(looping) = take(self, &self.loops) else {
                    return;
                };
                match self.chance(2) {
                    true => looping.stop(),
                    false => looping.reset(),
                }
                put(&self.loops, looping);
            }
            2 => {
                let Some(cooperator) = self.cooperator.borrow().clone() else {
                    return;
                };
                let mut left = self.below(5);
                let task = cooperator.cooperate(std::iter::from_fn(move || {
                    token.act();
                    left = left.checked_sub(1)?;
                    Some(token.world.outcome())
                }));
                self.keep(task.when_done().add_callback(|()| Ok(0)));
                put(&self.tasks, task);
            }
            3 => {
                let Some(task) = take(self, &self.tasks) else {
                    return;
                };
                let _ = match self.below(3) {
                    0 => task.pause().is_ok(),
                    1 => task.resume().is_ok(),
                    _ => task.stop().is_ok(),
                };
                put(&self.tasks, task);
            }
            _ => {
                let awaited: Vec<_> = (0..2).filter_map(|_| self.deferred()).collect();
                let d = ensure_deferred(async move {
                    for d in awaited {
                        let _ = d.await;
                        token.act();
                    }
                    token.world.outcome()
                });
                self.keep(d);
            }
        }
    }

    fn let_go(&self) {
        match self.below(5) {
            0 => drop(self.deferred()),
            1 => drop(take(self, &self.resolvers)),
            2 => drop(take(self, &self.pauses)),
            3 => self.deferred().into_iter().for_each(Deferred::log_failure),
            _ => drop(take(self, &self.shared)),
        }
    }

    /// Lets go of everything, until what that sets in motion has come to rest too.
    fn close(&self) {
        self.closed.set(true);
        for looping in self.loops.take() {
            looping.stop();
        }
        let cooperator = self.cooperator.take();
        cooperator
            .into_iter()
            .for_each(|cooperator| cooperator.stop());
        for task in self.tasks.take() {
            let _ = task.stop();
        }
        loop {
            let before = self.tokens.get();
            drop(self.pauses.take());
            drop(self.deferreds.take());
            drop(self.resolvers.take());
            drop(self.shared.take());
            drop(self.observables.take());
            drop(self.permits.take());
            drop(self.delayed.take());
            drop(self.clock.take());
            if self.tokens.get() == before {
                break;
            }
        }
        // What waits in the lines of the lock, the semaphore and the queue is let in.
        while self.queue.waiting() > 0 {
            let _ = self.queue.put(0);
        }
        drop((
            self.pauses.take(),
            self.deferreds.take(),
            self.permits.take(),
        ));
        let left = [self.lock.waiting(), self.semaphore.waiting()];
        assert_eq!(left, [0, 0], "everybody who had a permit is gone");
    }
}

//! A list of closures of any types, in order, that does not allocate for each of them.
//!
//! Closures that come from one place have one type, and those that come in great numbers come from few places. So what
//! follows a closure of its own type lies beside it in a plain `Vec` of that type: a *run*. A run costs one allocation
//! where boxes cost one for each closure (made by one thread and freed by another, which allocators are slow at), and its
//! closures are called without a look into a table. Types that alternate cost a box each, as they would anyway.

use std::any::Any;
use std::mem;

use crate::Reactor;
use crate::reports::contained;

/// Closures that wait to be called with the reactor.
#[derive(Default)]
pub(crate) struct CallList {
    /// In order. The last one may be empty: it is kept for its memory.
    runs: Vec<Box<dyn Run>>,
}

/// Calls of one type, whichever it is.
trait Run: Any + Send {
    /// Makes the calls in order. A panic is reported, and the others are made.
    fn make(&mut self, reactor: &Reactor);
    /// Drops the calls. A panic is reported, and the others are dropped.
    fn discard(&mut self);
    fn len(&self) -> usize;
    /// The bytes that it would keep when it is empty.
    fn room(&self) -> usize;
}

struct Calls<F> {
    /// One has no allocation beside that of the run itself.
    first: Option<F>,
    others: Vec<F>,
}

/// An empty run is kept for its memory up to this many bytes.
const KEPT: usize = 1 << 18;

impl CallList {
    pub(crate) fn push<F: FnOnce(&Reactor) + Send + 'static>(&mut self, call: F) {
        let last = self.runs.last_mut().map(|run| &mut **run as &mut dyn Any);
        match last.and_then(|run| run.downcast_mut::<Calls<F>>()) {
            Some(run) => run.push(call),
            None => self.runs.push(Box::new(Calls {
                first: Some(call),
                others: Vec::new(),
            })),
        }
    }

    pub(crate) fn make(&mut self, reactor: &Reactor) {
        self.runs.iter_mut().for_each(|run| run.make(reactor));
    }

    pub(crate) fn discard(&mut self) {
        self.runs.iter_mut().for_each(|run| run.discard());
    }

    pub(crate) fn len(&self) -> usize {
        self.runs.iter().map(|run| run.len()).sum()
    }

    /// Takes the memory of a list that is empty now.
    pub(crate) fn reuse(&mut self, mut emptied: CallList) {
        if !self.runs.is_empty() || emptied.runs.len() > KEPT / 16 {
            return;
        }
        if let Some(last) = emptied.runs.pop() {
            emptied.runs.clear();
            emptied
                .runs
                .extend(Some(last).filter(|run| run.room() <= KEPT));
        }
        mem::swap(self, &mut emptied);
    }
}

impl<F> Calls<F> {
    fn push(&mut self, call: F) {
        let is_empty = self.first.is_none() && self.others.capacity() == 0;
        match is_empty {
            true => self.first = Some(call),
            false => self.others.push(call),
        }
    }

    /// Takes the calls out in order and gives each to `with`; after a panic it goes on with the next.
    fn each(&mut self, what: &'static str, mut with: impl FnMut(F)) {
        let mut calls = self.first.take().into_iter().chain(self.others.drain(..));
        let mut done = false;
        while !done {
            // One guard for all of them; after a panic another for what is left.
            contained(what, || {
                calls.by_ref().for_each(&mut with);
                done = true;
            });
        }
    }
}

impl<F: FnOnce(&Reactor) + Send + 'static> Run for Calls<F> {
    fn make(&mut self, reactor: &Reactor) {
        self.each("a call from a thread", |call| call(reactor));
    }

    fn discard(&mut self) {
        self.each("dropping a call from a thread", drop);
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    fn room(&self) -> usize {
        self.others.capacity().saturating_mul(size_of::<F>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Seen = Arc<Mutex<Vec<u32>>>;

    fn note(seen: &Seen, n: u32) -> impl FnOnce(&Reactor) + Send + use<> {
        let seen = seen.clone();
        move |_| seen.lock().unwrap().push(n)
    }

    #[test]
    fn calls_are_made_in_order_whatever_their_types_and_their_memory_serves_again() {
        let reactor = Reactor::new().unwrap();
        let seen = Seen::default();
        let mut list = CallList::default();
        for round in 0..3 {
            for n in 0..100 {
                match (n + round) % 7 {
                    0..4 => list.push(note(&seen, n)),
                    4 => {
                        let seen = seen.clone();
                        list.push(move |_| seen.lock().unwrap().push(n));
                    }
                    _ => {
                        let boxed: Box<dyn FnOnce(&Reactor) + Send> = Box::new(note(&seen, n));
                        list.push(boxed);
                    }
                }
            }
            let mut batch = mem::take(&mut list);
            assert_eq!(batch.len(), 100);
            batch.make(&reactor);
            assert_eq!(batch.len(), 0);
            list.reuse(batch);
            assert_eq!((list.len(), list.runs.len()), (0, 1));
            assert_eq!(
                mem::take(&mut *seen.lock().unwrap()),
                (0..100).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn calls_of_one_type_lie_in_one_run() {
        let seen = Seen::default();
        let mut list = CallList::default();
        (0..1000).for_each(|n| list.push(note(&seen, n)));
        assert_eq!((list.len(), list.runs.len()), (1000, 1));
        list.discard();
        assert_eq!((list.len(), Arc::strong_count(&seen)), (0, 1));
    }

    #[test]
    fn after_a_panic_the_others_are_made_and_dropped_all_the_same() {
        struct Bomb(Seen);
        impl Drop for Bomb {
            fn drop(&mut self) {
                self.0.lock().unwrap_or_else(|e| e.into_inner()).push(7);
                panic!("dropped");
            }
        }
        let reactor = Reactor::new().unwrap();
        let reports = Seen::default();
        let counted = reports.clone();
        let _guard = errback_deferred::observe_unhandled(move |_| counted.lock().unwrap().push(0));
        let seen = Seen::default();
        let mut list = CallList::default();
        let fill = |list: &mut CallList| {
            for _ in 0..3 {
                let bomb = Bomb(seen.clone());
                list.push(move |_| drop(bomb));
            }
        };
        fill(&mut list);
        list.make(&reactor);
        assert_eq!(seen.lock().unwrap().len(), 3);
        fill(&mut list);
        list.discard();
        assert_eq!(seen.lock().unwrap().len(), 6);
        assert_eq!(reports.lock().unwrap().len(), 6);
    }
}

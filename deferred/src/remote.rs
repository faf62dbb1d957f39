//! The firing end that other threads may hold.
//!
//! A Deferred belongs to one thread and cannot leave it. So its resolver stays there too, parked in a table of that
//! thread's, and what travels is its place in the table and a handle to the loop: the result comes back through
//! `call_from_thread` and fires the resolver at home.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::event_loop::ReactorFromThreads;
use crate::{Deferred, Failure, Resolver};

thread_local! {
    /// What this thread keeps for others to refer to: a [`Table`] for each type.
    static PARKED: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Things of one type by their places, which are used again. (A box for each would be an allocation for each result that
/// comes from a thread.)
struct Table<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T: 'static> Table<T> {
    /// Runs `with` on this thread's table for `T`. A program has few such types: looking through them is quick.
    fn with<R>(with: impl FnOnce(&mut Table<T>) -> R) -> Option<R> {
        // The tables are gone when the thread ends, and what lay in them with them.
        let result = PARKED.try_with(|tables| {
            let mut tables = tables.borrow_mut();
            let known = tables.iter().position(|table| table.is::<Table<T>>());
            let index = known.unwrap_or_else(|| {
                tables.push(Box::new(Table::<T> {
                    places: Vec::new(),
                    free: Vec::new(),
                }));
                tables.len() - 1
            });
            with(
                tables[index]
                    .downcast_mut()
                    .expect("it was found by its type"),
            )
        });
        result.ok()
    }
}

/// Keeps `it` on this thread. Where it lies may be told to others.
pub(crate) fn park<T: 'static>(it: T) -> usize {
    let place = Table::with(|table: &mut Table<T>| match table.free.pop() {
        Some(place) => {
            table.places[place] = Some(it);
            place
        }
        None => {
            table.places.push(Some(it));
            table.places.len() - 1
        }
    });
    place.expect("nothing is deferred to others while the thread ends")
}

/// Takes what lies at `place`.
pub(crate) fn unpark<T: 'static>(place: usize) -> Option<T> {
    let it = Table::with(|table: &mut Table<T>| {
        table.free.push(place);
        table.places[place].take()
    });
    it.flatten()
}

/// Looks at what lies at `place`.
pub(crate) fn with_parked<T: 'static, R>(place: usize, look: impl FnOnce(&T) -> R) -> Option<R> {
    Table::with(|table: &mut Table<T>| table.places.get(place)?.as_ref().map(look)).flatten()
}

/// Fires a Deferred from any thread. It is consumed by firing; dropped unfired, it fails its Deferred.
///
/// ```no_run
/// # fn get_loop() -> std::sync::Arc<dyn errback_deferred::ReactorFromThreads> { unimplemented!() }
/// use errback_deferred::RemoteResolver;
/// let (remote, d) = RemoteResolver::<u64>::new(get_loop());
/// std::thread::spawn(move || remote.fire(Ok((1..=20).product())));
/// # drop(d);
/// ```
///
/// The result is lost when the loop is gone for good before it arrives; the Deferred then fails when its thread ends.
pub struct RemoteResolver<T: Send + 'static> {
    event_loop: Arc<dyn ReactorFromThreads>,
    /// `None` once fired.
    place: Option<usize>,
    _result: PhantomData<fn(T)>,
}

impl<T: Send + 'static> RemoteResolver<T> {
    /// A Deferred on this thread, which must be the loop's own, and its firing end for any thread.
    #[track_caller]
    pub fn new(event_loop: Arc<dyn ReactorFromThreads>) -> (RemoteResolver<T>, Deferred<T>) {
        let (resolver, d) = Deferred::new();
        (RemoteResolver::of(event_loop, resolver), d)
    }

    /// Lets other threads fire through `resolver`. To be called on the loop's own thread.
    pub fn of(event_loop: Arc<dyn ReactorFromThreads>, resolver: Resolver<T>) -> RemoteResolver<T> {
        RemoteResolver {
            event_loop,
            place: Some(park(resolver)),
            _result: PhantomData,
        }
    }

    /// Has the loop fire the Deferred, soon. When it was cancelled in the meantime, the result is dropped on the loop's
    /// thread.
    pub fn fire(mut self, result: Result<T, Failure>) {
        self.send(result);
    }

    /// The call that fires the Deferred, to be made on the loop's own thread: for loops that have a shorter way there
    /// than a boxed closure. Dropped instead of called, the result is lost as if the loop were gone.
    pub fn into_call(mut self, result: Result<T, Failure>) -> impl FnOnce() + Send + use<T> {
        let place = self.place.take().expect("only firing takes it");
        move || fire_parked(place, result)
    }

    fn send(&mut self, result: Result<T, Failure>) {
        let Some(place) = self.place.take() else {
            return;
        };
        let call = Box::new(move || fire_parked(place, result));
        let _ = self.event_loop.call_from_thread(call); // gone: see the type's documentation
    }
}

fn fire_parked<T: 'static>(place: usize, result: Result<T, Failure>) {
    if let Some(resolver) = unpark::<Resolver<T>>(place) {
        let _ = resolver.fire(result); // a canceller was faster
    }
}

impl<T: Send + 'static> Drop for RemoteResolver<T> {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.send(Err(Failure::from(RemoteResolverDropped)));
        }
    }
}

impl<T: Send + 'static> fmt::Debug for RemoteResolver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<RemoteResolver>")
    }
}

/// The firing end that had gone to another thread was dropped there before it fired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteResolverDropped;

impl fmt::Display for RemoteResolverDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the thread that was to fire this Deferred let go of it")
    }
}

impl std::error::Error for RemoteResolverDropped {}

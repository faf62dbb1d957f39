//! The firing end that other threads may hold.
//!
//! A Deferred belongs to one thread and cannot leave it. So its resolver stays there too, parked in a table of that
//! thread's, and what travels is its place in the table and a handle to the loop: the result comes back through
//! `call_from_thread` and fires the resolver at home.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::event_loop::ReactorFromThreads;
use crate::node::Promise;
use crate::{Deferred, Failure, Resolver};

thread_local! {
    /// What this thread is to fire when others say so.
    static PARKED: RefCell<Table<Promise>> = const { RefCell::new(Table::new()) };
}

/// Things that others refer to by their places, which are used again. (A box for each would be an allocation for each
/// result that comes from a thread.)
pub(crate) struct Table<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

/// Where something lies in a table.
pub(crate) type Place = u32;

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Table {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn put(&mut self, it: T) -> Place {
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = Some(it);
            return place;
        }
        self.places.push(Some(it));
        Place::try_from(self.places.len() - 1).expect("fewer than 2^32 things wait for threads")
    }

    pub(crate) fn take(&mut self, place: Place) -> Option<T> {
        self.free.push(place);
        self.places[place as usize].take()
    }

    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }
}

/// Resolvers of one type that lie on their thread, for others to refer to by numbers.
///
/// For event loops and pools that have much out at a time and a place of their own for it: what travels is a plain number,
/// which needs no type. (A [`ParkedResolver`] lies with its thread, and is lost when it is dropped.) Resolvers that are in the
/// table when it is dropped are dropped, and fail their Deferreds.
///
/// ```
/// use errback_deferred::{Deferred, ResolverTable};
/// let mut table = ResolverTable::new();
/// let (resolver, d) = Deferred::new();
/// let number = table.put(resolver);
/// let answer = std::thread::spawn(move || (number, 6 * 7)).join().unwrap();
/// assert!(table.take(answer.0).is_some_and(|resolver| resolver.callback(answer.1).is_ok()));
/// assert!(table.take(number).is_none());
/// # d.add_callback(|n| assert_eq!(n, 42));
/// ```
pub struct ResolverTable<T> {
    table: Table<Resolver<T>>,
}

impl<T: 'static> ResolverTable<T> {
    /// One that is empty.
    pub const fn new() -> ResolverTable<T> {
        ResolverTable {
            table: Table::new(),
        }
    }

    /// Puts a resolver there; its number, which may be that of one that has been taken.
    ///
    /// # Panics
    /// When there are 2^32 of them.
    pub fn put(&mut self, resolver: Resolver<T>) -> u32 {
        self.table.put(resolver)
    }

    /// Takes the resolver that has this number, if there is one.
    pub fn take(&mut self, number: u32) -> Option<Resolver<T>> {
        self.table.get(number)?;
        self.table.take(number)
    }
}

impl<T: 'static> Default for ResolverTable<T> {
    fn default() -> Self {
        ResolverTable::new()
    }
}

impl<T> fmt::Debug for ResolverTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<ResolverTable>")
    }
}

/// A resolver that lies on its own thread, for another thread to refer to. Nothing but its number travels.
///
/// For event loops, which have ways of their own to bring a result home; others use a [`RemoteResolver`]. When it is lost,
/// the Deferred stays unfired until its thread ends.
///
/// ```
/// use errback_deferred::ParkedResolver;
/// let (parked, d) = ParkedResolver::new();
/// let (parked, answer) = std::thread::spawn(move || (parked, 6 * 7)).join().unwrap();
/// parked.fire(Ok(answer));
/// # d.add_callback(|n| assert_eq!(n, 42));
/// ```
#[derive(Debug)]
pub struct ParkedResolver<T> {
    place: Place,
    _result: PhantomData<fn(T)>,
}

impl<T: 'static> ParkedResolver<T> {
    /// A Deferred on this thread, and its firing end.
    #[track_caller]
    pub fn new() -> (ParkedResolver<T>, Deferred<T>) {
        let (resolver, d) = Deferred::new();
        (ParkedResolver::of(resolver), d)
    }

    fn of(resolver: Resolver<T>) -> ParkedResolver<T> {
        let promise = resolver.into_promise();
        ParkedResolver {
            place: PARKED.with_borrow_mut(|parked| parked.put(promise)),
            _result: PhantomData,
        }
    }

    /// Fires the Deferred. To be called on the thread where this was made. When the Deferred was cancelled in the meantime,
    /// the result is dropped.
    pub fn fire(self, result: Result<T, Failure>) {
        // The table is gone when the thread ends, and what lay in it with it.
        let promise = PARKED.try_with(|parked| parked.borrow_mut().take(self.place));
        if let Ok(Some(promise)) = promise {
            let _ = promise.fire(result); // a canceller was faster
        }
    }
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
    parked: Option<ParkedResolver<T>>,
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
            parked: Some(ParkedResolver::of(resolver)),
        }
    }

    /// Has the loop fire the Deferred, soon. When it was cancelled in the meantime, the result is dropped on the loop's
    /// thread.
    pub fn fire(mut self, result: Result<T, Failure>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<T, Failure>) {
        let Some(parked) = self.parked.take() else {
            return;
        };
        let call = Box::new(move || parked.fire(result));
        let _ = self.event_loop.call_from_thread(call); // gone: see the type's documentation
    }
}

impl<T: Send + 'static> Drop for RemoteResolver<T> {
    fn drop(&mut self) {
        if self.parked.is_some() {
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

//! Sources of readiness: sockets, pipes, whatever mio can watch, each with the callback for its events.
//!
//! A source is known by a number that is never given out twice, so that an event which was already on its way when its
//! source went, and another came, cannot reach the wrong one. Events are edge-triggered, as mio's are: a callback reads
//! (or writes, or accepts) until it would block.
//!
//! mio wants a source for itself alone when its registration changes, and that is often asked for while somebody up the
//! stack uses the source. Such a change is made before the next poll; nobody has to know who borrows what.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::rc::{Rc, Weak};

use errback_deferred::log_err;
use mio::event::{Event, Source};
use mio::{Interest, Registry, Token};

use crate::reports::contained;

/// The token of the waker, which no source has.
pub(crate) const WAKE: Token = Token(0);

/// The token of the alarm for the timers, which no source has either.
pub(crate) const ALARM: Token = Token(1);

/// The sources of one reactor.
pub(crate) struct Sources {
    registry: Registry,
    registered: RefCell<HashMap<Token, Rc<dyn Dispatch>>>,
    /// Those with a change that could not be made at once.
    unsettled: RefCell<Vec<Rc<dyn Dispatch>>>,
    last_token: Cell<usize>,
    closed: Cell<bool>,
}

/// A [`Registered`] of any kind of source.
trait Dispatch {
    fn dispatch(&self, event: &Event);
    fn settle(&self);
    fn close(&self);
}

type Callback<S> = Box<dyn FnMut(&Registered<S>, &Event)>;

impl Sources {
    pub(crate) fn new(registry: Registry) -> Rc<Sources> {
        Rc::new(Sources {
            registry,
            registered: RefCell::default(),
            unsettled: RefCell::default(),
            last_token: Cell::new(ALARM.0),
            closed: Cell::new(false),
        })
    }

    pub(crate) fn register<S: Source + 'static>(
        self: &Rc<Self>,
        mut source: S,
        interest: Interest,
        callback: Callback<S>,
    ) -> io::Result<Registration<S>> {
        if self.closed.get() {
            return Err(io::Error::other(
                "the reactor has stopped and watches nothing any more",
            ));
        }
        let token = Token(self.last_token.get() + 1);
        self.registry.register(&mut source, token, interest)?;
        self.last_token.set(token.0);
        let registered = Rc::new_cyclic(|this| Registered {
            source: RefCell::new(source),
            token,
            callback: RefCell::new(Some(callback)),
            pending: Cell::new(None),
            sources: self.clone(),
            this: Weak::clone(this),
        });
        self.registered
            .borrow_mut()
            .insert(token, registered.clone());
        Ok(Registration {
            registered,
            kept: false,
        })
    }

    /// Runs the callback for an event, unless its source has gone meanwhile.
    pub(crate) fn dispatch(&self, event: &Event) {
        let registered = self.registered.borrow().get(&event.token()).cloned();
        if let Some(registered) = registered {
            contained("the callback of a source", || registered.dispatch(event));
        }
    }

    /// Makes the changes that could not be made at once. To be called when no callback runs.
    pub(crate) fn settle(&self) {
        if !self.unsettled.borrow().is_empty() {
            self.unsettled
                .take()
                .into_iter()
                .for_each(|registered| registered.settle());
        }
    }

    /// Lets go of every source and its callback, and refuses others.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let mut all: Vec<_> = self.registered.take().into_iter().collect();
        all.sort_by_key(|(token, _)| token.0);
        for (_, registered) in all {
            contained("dropping a source", || registered.close());
        }
        self.settle();
    }
}

/// A source that a reactor watches; from [`Reactor::register`](crate::Reactor::register). Dropping it ends the watching.
///
/// It may be dropped at any time, from inside the source's own callback too. It dereferences to the [`Registered`] that
/// the callback is given.
#[must_use = "dropping the registration takes the source away from the reactor again; `keep` it, or hold it"]
pub struct Registration<S: Source + 'static> {
    registered: Rc<Registered<S>>,
    kept: bool,
}

impl<S: Source> Registration<S> {
    /// Leaves the source with the reactor: watched until the reactor ends or the callback calls
    /// [`deregister`](Registered::deregister).
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use errback_reactor::{Reactor, mio::{Interest, net::TcpListener}};
    ///
    /// let reactor = Reactor::new()?;
    /// let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap())?;
    /// reactor
    ///     .register(listener, Interest::READABLE, |listener, _event| {
    ///         while let Ok((_stream, peer)) = listener.source().accept() {
    ///             println!("{peer} is here");
    ///         }
    ///     })?
    ///     .keep();
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl<S: Source> Deref for Registration<S> {
    type Target = Registered<S>;

    fn deref(&self) -> &Registered<S> {
        &self.registered
    }
}

impl<S: Source> Drop for Registration<S> {
    fn drop(&mut self) {
        if !self.kept {
            // An error means that the operating system has forgotten it already.
            let _ = self.registered.deregister();
        }
    }
}

impl<S: Source + fmt::Debug> fmt::Debug for Registration<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// A registered source, as its callback sees it.
///
/// It reads and writes where the source does so through a shared reference, as mio's streams do.
pub struct Registered<S: Source + 'static> {
    source: RefCell<S>,
    token: Token,
    /// `None` while it runs, and when it has been removed.
    callback: RefCell<Option<Callback<S>>>,
    /// A change to be made when the source is not borrowed any more.
    pending: Cell<Option<Change>>,
    sources: Rc<Sources>,
    this: Weak<Registered<S>>,
}

#[derive(Clone, Copy)]
enum Change {
    Interest(Interest),
    Removal,
}

impl<S: Source> Registered<S> {
    /// The source, to look at it or to use it as far as a shared reference allows: mio's listeners accept by it.
    ///
    /// # Panics
    /// While [`source_mut`](Self::source_mut) is held.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use errback_reactor::{Reactor, mio::{Interest, net::TcpListener}};
    ///
    /// let reactor = Reactor::new()?;
    /// let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap())?;
    /// let registration = reactor.register(listener, Interest::READABLE, |_, _| ())?;
    /// println!("listening on {}", registration.source().local_addr()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn source(&self) -> Ref<'_, S> {
        self.source.borrow()
    }

    /// The source alone, for one that can be used in no other way. Let go of it before running code that may want it too.
    ///
    /// # Panics
    /// When the source is borrowed already.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use errback_reactor::{Reactor, mio::{Interest, unix::pipe}};
    /// use std::io::Write;
    ///
    /// let reactor = Reactor::new()?;
    /// let (sender, _receiver) = pipe::new()?;
    /// let registration = reactor.register(sender, Interest::WRITABLE, |_, _| ())?;
    /// registration.source_mut().write_all(b"x")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn source_mut(&self) -> RefMut<'_, S> {
        self.source.borrow_mut()
    }

    /// Changes what is watched for. If the source is ready for that already, an event comes.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use errback_reactor::{Reactor, mio::{Interest, net::UnixStream}};
    ///
    /// let reactor = Reactor::new()?;
    /// let (stream, _peer) = UnixStream::pair()?;
    /// let registration = reactor.register(stream, Interest::READABLE, |_, _| ())?;
    /// registration.reregister(Interest::READABLE | Interest::WRITABLE)?; // there is something to send
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the operating system says; `NotFound` when the source is no longer registered. (If the source is borrowed at
    /// the moment, the change is made before the next poll, and an error is reported.)
    pub fn reregister(&self, interest: Interest) -> io::Result<()> {
        if !self.is_registered() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the source is no longer registered",
            ));
        }
        self.change(Change::Interest(interest))
    }

    /// Ends the watching: the callback will not run again, not even for an event that has already been fetched, and is
    /// dropped (when it has returned, if this is called from inside it). Nothing happens if that was done before.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use errback_reactor::{Reactor, mio::{Interest, net::UnixStream}};
    ///
    /// let reactor = Reactor::new()?;
    /// let (stream, _peer) = UnixStream::pair()?;
    /// let registration = reactor.register(stream, Interest::READABLE, |stream, _| stream.deregister().unwrap())?;
    /// registration.deregister()?;
    /// assert!(!registration.is_registered());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the operating system says; as for [`reregister`](Self::reregister).
    pub fn deregister(&self) -> io::Result<()> {
        let was_there = self
            .sources
            .registered
            .borrow_mut()
            .remove(&self.token)
            .is_some();
        if was_there { self.let_go() } else { Ok(()) }
    }

    /// Whether the reactor still watches the source.
    pub fn is_registered(&self) -> bool {
        self.sources.registered.borrow().contains_key(&self.token)
    }

    /// To be called once, when the source has left the list.
    fn let_go(&self) -> io::Result<()> {
        let callback = self.callback.borrow_mut().take();
        let result = self.change(Change::Removal);
        drop(callback);
        result
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let Ok(mut source) = self.source.try_borrow_mut() else {
            self.pending.set(Some(change));
            // Gone already when this is its very drop; then it is closed in a moment.
            self.sources
                .unsettled
                .borrow_mut()
                .extend(self.this.upgrade().map(|it| it as Rc<dyn Dispatch>));
            return Ok(());
        };
        match change {
            Change::Interest(interest) => {
                self.sources
                    .registry
                    .reregister(&mut *source, self.token, interest)
            }
            Change::Removal => self.sources.registry.deregister(&mut *source),
        }
    }
}

impl<S: Source> Dispatch for Registered<S> {
    fn dispatch(&self, event: &Event) {
        // Only the loop dispatches, one event at a time: the callback is there.
        let Some(callback) = self.callback.borrow_mut().take() else {
            return;
        };
        // Put back by a guard, so that a callback that panicked is asked again at the next event.
        let mut running = Running {
            registered: self,
            callback: Some(callback),
        };
        running
            .callback
            .as_mut()
            .expect("only the guard's drop takes it")(self, event);
    }

    fn settle(&self) {
        if let Some(Err(error)) = self.pending.take().map(|change| self.change(change)) {
            log_err(error, "changing the registration of a source");
        }
    }

    fn close(&self) {
        // An error means that the operating system has forgotten it already.
        let _ = self.let_go();
    }
}

/// A callback that runs, and goes back to its place afterwards if it is still registered.
struct Running<'a, S: Source + 'static> {
    registered: &'a Registered<S>,
    callback: Option<Callback<S>>,
}

impl<S: Source> Drop for Running<'_, S> {
    fn drop(&mut self) {
        if self.registered.is_registered() {
            self.registered.callback.replace(self.callback.take());
        }
    }
}

impl<S: Source> Read for &Registered<S>
where
    for<'a> &'a S: Read,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.source()).read(buffer)
    }
}

impl<S: Source> Write for &Registered<S>
where
    for<'a> &'a S: Write,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.source()).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.source()).flush()
    }
}

impl<S: Source + fmt::Debug> fmt::Debug for Registered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Registered");
        out.field("token", &self.token.0)
            .field("registered", &self.is_registered());
        match self.source.try_borrow() {
            Ok(source) => out.field("source", &*source).finish(),
            Err(_) => out.finish_non_exhaustive(),
        }
    }
}

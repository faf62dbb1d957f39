//! A typed slot for what a reactor owns without knowing it.
//!
//! Twisted hangs such things on the reactor as attributes (its thread pool, its resolver). Here the key is the type: the
//! process pool, say, is made by the first call that needs it and found by the next. There is at most one of each type.

use std::any::{Any, TypeId, type_name};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// What hangs on a reactor; see [`Reactor::services`](crate::Reactor::services).
///
/// The services live as long as the reactor, beyond the end of its `run`, so that what is asked of them after the
/// shutdown meets a closed service and not a new one. They are dropped with the last [`Reactor`](crate::Reactor)
/// handle, the latest first, because a later one may use an earlier one. A service must therefore not own a `Reactor`:
/// each would keep the other alive.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use errback_reactor::Reactor;
/// use std::cell::Cell;
///
/// #[derive(Default)]
/// struct Requests(Cell<u64>);
///
/// let reactor = Reactor::new()?;
/// let requests = reactor.services().get_or_init(Requests::default);
/// requests.0.set(1);
/// assert_eq!(reactor.services().get::<Requests>().unwrap().0.get(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Services {
    /// In the order of their making. A handful: a list is faster than a map, and keeps the order.
    made: RefCell<Vec<Service>>,
}

struct Service {
    type_id: TypeId,
    name: &'static str,
    value: Rc<dyn Any>,
}

impl Services {
    /// The service of type `T`, made by `init` if there is none yet.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// let first = reactor.services().get_or_init(|| String::from("made once"));
    /// let second = reactor.services().get_or_init(|| unreachable!());
    /// assert!(std::rc::Rc::ptr_eq(&first, &second));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_or_init<T: 'static>(&self, init: impl FnOnce() -> T) -> Rc<T> {
        match self.get_or_try_init::<T, std::convert::Infallible>(|| Ok(init())) {
            Ok(service) => service,
            Err(never) => match never {},
        }
    }

    /// The service of type `T`, made by `init` if there is none yet and if it can be made.
    ///
    /// `init` may itself ask for services. Should it make one of its own type, that one stays and the result of `init`
    /// is dropped.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// let services = reactor.services();
    /// assert!(services.get_or_try_init(|| "x".parse::<u16>()).is_err());
    /// assert_eq!(*services.get_or_try_init(|| "80".parse::<u16>()).unwrap(), 80);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `init` returned; the next call tries again.
    pub fn get_or_try_init<T: 'static, E>(
        &self,
        init: impl FnOnce() -> Result<T, E>,
    ) -> Result<Rc<T>, E> {
        if let Some(service) = self.get() {
            return Ok(service);
        }
        let made = Rc::new(init()?); // nothing is borrowed while it runs
        if let Some(service) = self.get() {
            return Ok(service);
        }
        let service = Service {
            type_id: TypeId::of::<T>(),
            name: type_name::<T>(),
            value: made.clone(),
        };
        self.made.borrow_mut().push(service);
        Ok(made)
    }

    /// The service of type `T`, if it has been made.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let reactor = errback_reactor::Reactor::new()?;
    /// assert!(reactor.services().get::<String>().is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn get<T: 'static>(&self) -> Option<Rc<T>> {
        let made = self.made.borrow();
        let service = made
            .iter()
            .find(|service| service.type_id == TypeId::of::<T>())?;
        service.value.clone().downcast().ok()
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.made.borrow().iter().map(|service| service.name))
            .finish()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // One at a time and outside the borrow: a service's drop may still ask for those that were made before it.
        while let Some(last) = { self.made.borrow_mut().pop() } {
            drop(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Noted(&'static str, Rc<RefCell<Vec<&'static str>>>);
    struct Other(#[allow(dead_code, reason = "it is there for its drop")] Noted);

    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.borrow_mut().push(self.0);
        }
    }

    #[test]
    fn the_latest_service_is_dropped_first() {
        let log = Rc::default();
        let services = Services::default();
        services.get_or_init(|| Noted("first", Rc::clone(&log)));
        services.get_or_init(|| Other(Noted("second", Rc::clone(&log))));
        drop(services);
        assert_eq!(*log.borrow(), ["second", "first"]);
    }

    #[test]
    fn a_service_may_use_another_while_it_is_made() {
        let services = Services::default();
        let made = services.get_or_init(|| u64::from(*services.get_or_init(|| 7u32)) + 1);
        assert_eq!(*made, 8);
        assert_eq!(services.get::<u32>().as_deref(), Some(&7));
    }
}

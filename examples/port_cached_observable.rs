//! A cache of lookups in which all who ask for the same name share one request.
//!
//! In Twisted, with an `ObservableDeferred` as Matrix's Synapse has it:
//!
//! ```python
//! class Cache:
//!     def get(self, name):
//!         if name not in self.entries:
//!             entry = self.entries[name] = ObservableDeferred(self.lookup(name), consumeErrors=True)
//!             entry.observe().addCallbacks(
//!                 lambda _: self.clock.callLater(TTL, self.entries.pop, name),
//!                 lambda _: self.entries.pop(name))     # failures are not cached
//!         return self.entries[name].observe()
//! ```
//!
//! The port has the same shape. `self` is an `Rc`, of which each closure has its own clone; the dictionary is a
//! `RefCell`, which must not be borrowed while callbacks run. `observe` clones the address, so `T: Clone`. A waiter who
//! cancels the Deferred that `get` returned cancels that one only: the request goes on for the others.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use errback::testing::{assert_no_result, failure_result_of, success_result_of};
use errback::{
    CancelledError, Clock, Deferred, Failure, ObservableDeferred, bail, defer_later, gather_tuple,
};

const TTL: Duration = Duration::from_secs(30);
const ROUND_TRIP: Duration = Duration::from_secs(1);

type Lookup = Box<dyn Fn(&str) -> Deferred<Ipv4Addr>>;

struct Cache {
    clock: Clock,
    lookup: Lookup,
    entries: RefCell<HashMap<String, ObservableDeferred<Ipv4Addr>>>,
}

impl Cache {
    fn get(self: &Rc<Self>, name: &str) -> Deferred<Ipv4Addr> {
        let known = self.entries.borrow().get(name).cloned();
        let entry = known.unwrap_or_else(|| self.ask(name));
        entry.observe()
    }

    fn ask(self: &Rc<Self>, name: &str) -> ObservableDeferred<Ipv4Addr> {
        let entry = ObservableDeferred::new((self.lookup)(name));
        self.entries
            .borrow_mut()
            .insert(name.to_owned(), entry.clone());
        // In the cache first, and only then watched: the lookup may have failed before it returned.
        let (fresh, failed) = (self.clone(), self.clone());
        let (name, same_name) = (name.to_owned(), name.to_owned());
        let _watched = entry.observe().add_callbacks(
            move |_address| {
                let clock = fresh.clock.clone();
                clock.call_later(TTL, move || fresh.forget(&name));
            },
            move |_failure| failed.forget(&same_name), // those who asked are told it themselves
        );
        entry
    }

    fn forget(&self, name: &str) {
        self.entries.borrow_mut().remove(name);
    }
}

fn resolve(name: &str) -> Result<Ipv4Addr, Failure> {
    match name {
        "localhost" => Ok(Ipv4Addr::LOCALHOST),
        "dns" => Ok("9.9.9.9".parse()?),
        _ => bail!("no such name: {name}"),
    }
}

fn main() {
    let clock = Clock::new();
    let requests = Rc::new(Cell::new(0));
    let (network, counted) = (clock.clone(), requests.clone());
    let cache = Rc::new(Cache {
        clock: clock.clone(),
        lookup: Box::new(move |name| {
            counted.set(counted.get() + 1);
            let name = name.to_owned();
            defer_later(&network, ROUND_TRIP, move || resolve(&name))
        }),
        entries: RefCell::default(),
    });

    let [one, impatient, other] = std::array::from_fn(|_| cache.get("localhost"));
    impatient.cancel();
    assert!(failure_result_of(impatient).is::<CancelledError>());
    assert_no_result(&one); // the others wait on
    clock.advance(ROUND_TRIP);
    println!(
        "two waiters:     {} {}",
        success_result_of(one),
        success_result_of(other)
    );
    println!(
        "from the cache:  {}",
        success_result_of(cache.get("localhost"))
    );
    println!("requests:        {}", requests.get());

    let misses = [cache.get("nowhere"), cache.get("nowhere")];
    clock.advance(ROUND_TRIP);
    println!(
        "two failures:    {:?}",
        misses.map(|miss| failure_result_of(miss).to_string())
    );
    let again = cache.get("nowhere"); // asks again: a failure is not kept
    clock.advance(ROUND_TRIP);
    println!("once more:       {}", failure_result_of(again));
    println!(
        "requests:        {}, names in the cache: {}",
        requests.get(),
        cache.entries.borrow().len()
    );

    clock.advance(TTL);
    println!(
        "{}s later:       {} names in the cache",
        TTL.as_secs(),
        cache.entries.borrow().len()
    );
    let both = gather_tuple((cache.get("localhost"), cache.get("dns")));
    clock.advance(ROUND_TRIP);
    println!("asked again:     {:?}", success_result_of(both));
    println!("requests:        {}", requests.get());
}

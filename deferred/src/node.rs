//! The inside of a Deferred, without its type: its state, and the loop that runs the callbacks.
//!
//! A [`Node`] is shared by the two ends, by whatever it waits for, and by the tokens that pause it. Nothing here recurses:
//! a Deferred that waits for another is carried on by the loop in [`run`] when that one has a result, and the last
//! reference to a node of a long chain is let go of in a loop too ([`bury`]). No cell is borrowed while foreign code runs.
//!
//! The order is Twisted's `_runCallbacks`, down to its corners: a pause made by a callback does not keep that Deferred's
//! other callbacks from running in the same go; a Deferred that is returned with its result at hand is emptied at once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;
use std::panic::Location;
use std::rc::Rc;
use std::thread::LocalKey;

use crate::store::{
    Aside, Chunks, Counted, Ends, Entry, Erased, Held, LastRef, Levels, Slot, WeakRef,
};
use crate::unhandled;
use crate::{CancelledError, Failure, ResolverDropped, ResultTaken, ReturnedItself, contain};

/// What is kept for every Deferred; 80 bytes and its two counts.
pub(crate) struct Node {
    /// The current result, if `kind` says that there is one; of the type of the next level's input.
    slot: Slot,
    levels: Levels<Node, Step>,
    /// The Deferred that waits for this one; or what only some have, the one that waits in it.
    aside: Aside<Node, Extra>,
    made_at: &'static Location<'static>,
    kind: Cell<Kind>,
    flags: Cell<u8>,
    pauses: Cell<u32>,
}

/// What the slot holds, or held before a level took it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Nothing: not fired, or the result was taken.
    Empty,
    /// Nothing: a level took the value, or who awaited it.
    GivenValue,
    /// Nothing: a level took the failure, or who awaited it.
    GivenFailure,
    /// A value of the type of the next level's input.
    Value,
    /// A `Failure`.
    Failure,
    /// A `WeakNode`: the Deferred for which this one waits.
    Waiting,
}

/// It has been fired (or cancelled): `callback` is no longer welcome.
const FIRED: u8 = 1;
/// One of its levels is running, perhaps further up the stack.
const RUNNING: u8 = 1 << 1;
/// Cancelled without a canceller: the first firing that comes later is swallowed.
const SUPPRESS: u8 = 1 << 2;
/// Its canceller is running.
const CANCELLING: u8 = 1 << 3;
/// The level that is running fires another Deferred; afterwards the result is `()`.
const LINKING: u8 = 1 << 4;
/// Once fired, a cancel is not passed on to what it waits for (`DeferredList.cancel` in Twisted).
const KEEPS_CANCEL: u8 = 1 << 5;
/// Copies of the inputs of its levels are kept while these run.
const WATCHED: u8 = 1 << 6;
/// It has not fired, and its slot holds a [`TakeBack`] or a [`CancelRequest`] meanwhile.
const TELLS: u8 = 1 << 7;

/// What only some Deferreds have.
#[derive(Default)]
pub(crate) struct Extra {
    /// The Deferred that waits for this one, because a callback of it returned this one. It comes after all levels:
    /// whoever returned this Deferred gave its handle away, so nothing can be added any more.
    waiter: Option<NodeRef>,
    pub(crate) canceller: Option<Canceller>,
    /// How to copy the input of a level, for those who look at it while the level runs.
    visible: Option<fn(&Erased) -> Option<Erased>>,
    visible_copy: Option<(Kind, Erased)>,
    /// Whom to tell when the result is there: somebody awaits it.
    pub(crate) wake: Option<Box<dyn FnOnce() -> Option<NodeRef>>>,
    pub(crate) wake_level: bool,
    /// The level that is running is the one that tells.
    pub(crate) waking: bool,
    /// Its resolver was dropped while its canceller ran.
    abandoned: bool,
    /// A cancel that waits until it is no longer paused.
    pub(crate) when_unpaused: Option<PutOff>,
    /// When debugging: where it was made and first fired.
    history: Option<Box<History>>,
}

/// Takes work back that waits in somebody's queue under a number.
pub(crate) struct TakeBack {
    pub(crate) from: Rc<dyn Fn(u64)>,
    pub(crate) number: u64,
}

/// Asks somebody who does work under a number to stop, and to fire the Deferred then.
pub(crate) struct CancelRequest {
    pub(crate) to: Rc<dyn Fn(u64)>,
    pub(crate) number: u64,
}

/// A cancel that waits.
pub(crate) type PutOff = Box<dyn FnOnce(&NodeRef)>;

pub(crate) enum Canceller {
    /// Runs at the first cancel before the Deferred fired; if it does not fire it, CancelledError does.
    Once(Box<dyn FnOnce(&NodeRef)>),
    /// Runs at each cancel before the Deferred fired, in place of firing it.
    Instead(Rc<dyn Fn(&NodeRef)>),
}

#[derive(Default)]
struct History {
    made: String,
    fired: Option<String>,
}

/// What a level did.
pub(crate) enum Step {
    /// It put its result into the slot (or left what is there).
    Done,
    /// It returned this Deferred.
    Wait(NodeRef),
    /// It fired this Deferred, whose levels are to run now; its own result is `()`.
    Link(NodeRef),
    /// It resumed a coroutine that has come to its end: the levels of its Deferred are to run now.
    Resumed(NodeRef),
}

// ---------------------------------------------------------------- references

/// A strong reference to a node. The last one to go does so by way of [`bury`].
pub(crate) type NodeRef = Counted<Node>;

/// A reference that does not keep it alive.
pub(crate) type WeakNode = WeakRef<Node>;

impl NodeRef {
    #[track_caller]
    #[inline]
    pub(crate) fn unfired() -> Self {
        let node = Counted::new(Node {
            slot: Slot::empty(),
            levels: Levels::new(),
            aside: Aside::empty(),
            made_at: Location::caller(),
            kind: Cell::new(Kind::Empty),
            flags: Cell::new(0),
            pauses: Cell::new(0),
        });
        if crate::debug::debugging() {
            node.note_stack();
        }
        node
    }

    #[cold]
    fn note_stack(&self) {
        let history = History {
            made: crate::debug::stack(),
            fired: None,
        };
        self.extra(|extra| extra.history = Some(Box::new(history)));
    }
}

thread_local! {
    static NODES: Chunks = const { Chunks::new(NodeRef::LAYOUT) };
}

impl Ends for Node {
    fn end(last: LastRef<Node>) {
        bury(Last::Reference(last));
    }

    #[inline]
    fn pieces() -> &'static LocalKey<Chunks> {
        &NODES
    }
}

/// The one reference to a node that is to fire it. Dropped before it has, it fails its Deferred.
pub(crate) struct Promise(NodeRef);

impl Promise {
    #[inline]
    pub(crate) fn of(node: NodeRef) -> Promise {
        Promise(node)
    }
}

impl Deref for Promise {
    type Target = NodeRef;
    #[inline]
    fn deref(&self) -> &NodeRef {
        &self.0
    }
}

impl Drop for Promise {
    #[inline]
    fn drop(&mut self) {
        if !self.fired() {
            self.0.clone().abandon();
        }
    }
}

// ---------------------------------------------------------------- letting go without recursion

/// The end of something that may own the next one like it.
enum Last {
    /// The last reference to a node: its callbacks may own other Deferreds.
    Reference(LastRef<Node>),
    /// A resolver that never fired: failing its Deferred may drop callbacks that own other resolvers.
    Resolver(NodeRef),
}

/// So many ends may be nested on the stack; what comes inside the innermost waits until that one is through. Deep enough
/// that nothing in ordinary life is put off.
const DEEPEST: u32 = 16;

struct Depth {
    nested: Cell<u32>,
    /// How many wait in the pit.
    put_off: Cell<u32>,
}

thread_local! {
    /// Apart from the pit, because it needs no destructor, and so costs nothing to get at.
    static DEPTH: Depth = const { Depth { nested: Cell::new(0), put_off: Cell::new(0) } };
    static PIT: RefCell<VecDeque<Last>> = const { RefCell::new(VecDeque::new()) };
}

fn bury(last: Last) {
    struct Up;
    impl Drop for Up {
        #[inline]
        fn drop(&mut self) {
            DEPTH.with(|depth| depth.nested.set(depth.nested.get() - 1));
        }
    }
    let nested = DEPTH.with(|depth| depth.nested.get());
    if nested == DEEPEST {
        return put_off(last);
    }
    DEPTH.with(|depth| depth.nested.set(nested + 1));
    let _up = Up;
    last.end();
    while DEPTH.with(|depth| depth.put_off.get()) > 0 {
        let Some(last) = next_put_off() else { return };
        last.end();
    }
}

#[cold]
fn put_off(last: Last) {
    let mut last = Some(last);
    let _ = PIT.try_with(|pit| {
        pit.borrow_mut().extend(last.take());
        DEPTH.with(|depth| depth.put_off.set(depth.put_off.get() + 1));
    });
    last.into_iter().for_each(Last::end); // the thread is ending, and its pit is gone
}

#[cold]
fn next_put_off() -> Option<Last> {
    let last = PIT.try_with(|pit| pit.borrow_mut().pop_front()).ok()?;
    DEPTH.with(|depth| depth.put_off.set(depth.put_off.get() - 1));
    last
}

impl Last {
    fn end(self) {
        match self {
            Last::Reference(last) => drop(last),
            Last::Resolver(node) => {
                let made_at = node.made_at;
                let _ = node.fire::<()>(Err(ResolverDropped { made_at }.into()));
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.take_waiter());
        if self.kind.get() == Kind::Failure
            && let Some(Ok(failure)) = self.slot.take().map(Erased::downcast::<Failure>)
        {
            unhandled::report(failure, self.made_at, None);
        }
    }
}

// ---------------------------------------------------------------- state

impl Node {
    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.flags.get() & flag != 0
    }

    #[inline]
    fn set(&self, flag: u8) {
        self.flags.set(self.flags.get() | flag);
    }

    #[inline]
    fn clear(&self, flag: u8) {
        self.flags.set(self.flags.get() & !flag);
    }

    #[inline]
    pub(crate) fn fired(&self) -> bool {
        self.has(FIRED)
    }

    #[inline]
    pub(crate) fn paused(&self) -> bool {
        self.pauses.get() > 0
    }

    pub(crate) fn made_at(&self) -> &'static Location<'static> {
        self.made_at
    }

    /// What one who looks from outside sees: while a level runs, what that level was given.
    pub(crate) fn seen(&self) -> Kind {
        match (self.has(RUNNING), self.kind.get()) {
            (true, Kind::GivenFailure | Kind::Failure) => Kind::Failure,
            (true, _) => Kind::Value,
            (false, Kind::GivenValue | Kind::GivenFailure) => Kind::Empty,
            (false, kind) => kind,
        }
    }

    /// A result is put into the slot; what was there is dropped.
    #[inline]
    pub(crate) fn put(&self, kind: Kind, result: Erased) {
        self.kind.set(kind);
        self.slot.put_erased(result);
    }

    #[inline]
    pub(crate) fn put_result<T: 'static>(&self, result: Result<T, Failure>) {
        match result {
            Ok(value) => {
                self.kind.set(Kind::Value);
                self.slot.put(value);
            }
            Err(failure) => self.put_failure(failure),
        }
    }

    #[inline]
    pub(crate) fn put_failure(&self, failure: Failure) {
        self.kind.set(Kind::Failure);
        self.slot.put(failure);
    }

    #[inline]
    fn take(&self) -> Option<(Kind, Erased)> {
        let kind = self.kind.replace(Kind::Empty);
        self.slot.take().map(|result| (kind, result))
    }

    /// Moves the result to `other`, which waited for it.
    fn give_result_to(&self, other: &Node) {
        match self.take() {
            Some((kind, result)) => other.put(kind, result),
            None => other.put_failure(ResultTaken.into()),
        }
    }

    /// The result, for a level whose input is a `T`.
    #[inline]
    pub(crate) fn take_result<T: 'static>(&self) -> Result<T, Failure> {
        let typed = "the slot holds the type of the next level's input";
        match self.kind.get() {
            Kind::Value => {
                self.kind.set(Kind::GivenValue);
                Ok(self.slot.take_as().expect(typed))
            }
            Kind::Failure => {
                self.kind.set(Kind::GivenFailure);
                Err(self.slot.take_as().expect(typed))
            }
            _ => {
                self.kind.set(Kind::Empty);
                Err(ResultTaken.into())
            }
        }
    }

    /// Whether the result is a failure; a level that only wants values then has nothing to do.
    #[inline]
    pub(crate) fn failed(&self) -> bool {
        self.kind.get() == Kind::Failure
    }

    /// Whether the result is a value; a level that only wants failures then has nothing to do.
    #[inline]
    pub(crate) fn succeeded(&self) -> bool {
        self.kind.get() == Kind::Value
    }

    /// The address of the Deferred that this one waits for.
    pub(crate) fn waits_for(&self) -> Option<WeakNode> {
        if self.kind.get() != Kind::Waiting {
            return None;
        }
        let slot = self.slot.take();
        let weak = slot
            .as_ref()
            .and_then(|w| w.downcast_ref::<WeakNode>().cloned());
        slot.into_iter()
            .for_each(|value| self.slot.put_erased(value));
        weak
    }

    /// Takes the final result for one who awaits it, who may be in the level that tells him; `None` while there is none.
    pub(crate) fn poll_result<T: 'static>(&self) -> Option<Result<T, Failure>> {
        // A pause that was made since has no effect on the level that tells who awaits: it runs in the same go.
        let waking = || self.if_extra(|extra| extra.waking.then_some(())).is_some();
        if !self.fired() || !self.levels.is_empty() || (self.paused() && !waking()) {
            return None;
        }
        match (self.has(RUNNING), self.kind.get()) {
            (_, Kind::Waiting) => None,
            // A callback has it and will put another there, unless this is the level that tells who awaits: taken twice.
            (true, Kind::Empty | Kind::GivenValue | Kind::GivenFailure) if !waking() => None,
            _ => Some(self.take_result()),
        }
    }

    /// A look at the result of a Deferred whose levels have all run.
    pub(crate) fn look<T: 'static, R>(
        &self,
        look: impl FnOnce(Result<&T, &Failure>) -> R,
    ) -> Option<R> {
        let slot = self.slot.take();
        let answer = match (self.kind.get(), &slot) {
            (Kind::Value, Some(value)) => value.downcast_ref::<T>().map(|value| look(Ok(value))),
            (Kind::Failure, Some(failure)) => failure
                .downcast_ref::<Failure>()
                .map(|failure| look(Err(failure))),
            _ => None,
        };
        slot.into_iter()
            .for_each(|value| self.slot.put_erased(value));
        answer
    }
}

// ---------------------------------------------------------------- what only some have

impl Node {
    /// Uses what only some have, which is made when there is none yet.
    ///
    /// It is out of its place meanwhile, so `use_it` must not come back to this Deferred.
    pub(crate) fn extra<R>(&self, use_it: impl FnOnce(&mut Extra) -> R) -> R {
        let mut extra = match self.aside.take() {
            Held::Boxed(extra) => extra,
            Held::Reference(waiter) => Box::new(Extra {
                waiter: Some(waiter),
                ..Extra::default()
            }),
            Held::Nothing => Box::default(),
        };
        let answer = use_it(&mut extra);
        self.aside.put(Held::Boxed(extra));
        answer
    }

    /// As [`extra`](Self::extra), when there is one.
    #[inline]
    pub(crate) fn if_extra<R>(&self, use_it: impl FnOnce(&mut Extra) -> Option<R>) -> Option<R> {
        if self.aside.holds_box() {
            return self.extra(use_it);
        }
        None
    }

    fn set_waiter(&self, waiter: NodeRef) {
        if self.aside.holds_box() {
            self.extra(|extra| extra.waiter = Some(waiter));
        } else {
            self.aside.put(Held::Reference(waiter));
        }
    }

    #[inline]
    fn take_waiter(&self) -> Option<NodeRef> {
        if self.aside.holds_nothing() {
            return None;
        }
        match self.aside.take() {
            Held::Reference(waiter) => Some(waiter),
            Held::Boxed(mut extra) => {
                let waiter = extra.waiter.take();
                self.aside.put(Held::Boxed(extra));
                waiter
            }
            Held::Nothing => None,
        }
    }
}

impl NodeRef {
    /// What a cancel does before all else, if it comes before the firing: a [`TakeBack`], or a [`CancelRequest`]. It lies in the
    /// slot, which is empty until then: a canceller would cost two allocations.
    pub(crate) fn tell<T: 'static>(&self, whom: T) {
        if !self.has(FIRED) {
            self.set(TELLS);
            self.slot.put(whom);
        }
    }

    #[inline]
    fn take_told(&self) -> Option<Erased> {
        if !self.has(TELLS) {
            return None;
        }
        self.clear(TELLS);
        self.slot.take()
    }

    pub(crate) fn set_canceller(&self, canceller: Canceller) {
        // A request is what a canceller is; work is taken back besides.
        if let Some(told) = self.take_told()
            && let Ok(take_back) = told.downcast::<TakeBack>()
        {
            self.tell(take_back);
        }
        self.extra(|extra| extra.canceller = Some(canceller));
    }

    /// Once it has fired, a cancel is not passed on.
    pub(crate) fn keep_cancel(&self) {
        self.set(KEEPS_CANCEL);
    }

    /// From now on the input of a running level can be seen, by a copy made with `copy`.
    pub(crate) fn make_visible(&self, copy: fn(&Erased) -> Option<Erased>) {
        self.set(WATCHED);
        self.extra(|extra| extra.visible = Some(copy));
    }

    #[inline]
    fn watched(&self) -> bool {
        self.has(WATCHED)
    }

    /// A copy of the input of the level that runs, if there is one, it is kept visible, and it is a `T`.
    pub(crate) fn visible_copy<T: 'static>(&self) -> Option<Result<T, Failure>> {
        if !self.has(RUNNING) || self.paused() || !self.watched() {
            return None;
        }
        let (copy, kept) =
            self.if_extra(|extra| Some((extra.visible?, extra.visible_copy.take()?)))?;
        let answer = match &kept {
            (Kind::Failure, failure) => failure.downcast_ref::<Failure>().cloned().map(Err),
            (_, value) => copy(value).and_then(|value| value.downcast().ok().map(Ok)),
        };
        self.keep_visible(Some(kept));
        answer
    }

    fn note_visible(&self) {
        let Some(copy) = self.if_extra(|extra| extra.visible) else {
            return;
        };
        let slot = self.slot.take();
        let copied = match (self.kind.get(), &slot) {
            (Kind::Failure, Some(failure)) => copy_failure(failure).map(|f| (Kind::Failure, f)),
            (kind, Some(value)) => copy(value).map(|v| (kind, v)),
            _ => None,
        };
        slot.into_iter()
            .for_each(|value| self.slot.put_erased(value));
        self.keep_visible(copied);
    }

    fn keep_visible(&self, copy: Option<(Kind, Erased)>) {
        drop(self.extra(|extra| std::mem::replace(&mut extra.visible_copy, copy)));
    }

    fn forget_visible(&self) {
        drop(self.if_extra(|extra| extra.visible_copy.take()));
    }
}

fn copy_failure(failure: &Erased) -> Option<Erased> {
    failure.downcast_ref::<Failure>().cloned().map(Erased::new)
}

// ---------------------------------------------------------------- firing and running

impl NodeRef {
    /// Adds a level, and runs it if the result is there.
    #[inline]
    pub(crate) fn add<E: Entry<Node, Output = Step>>(&self, level: E) {
        self.levels.push(level);
        if self.has(FIRED) {
            run(self);
        }
    }

    /// Gives the Deferred its result and runs its levels.
    ///
    /// The result comes back when the Deferred has fired already, unless that firing is to be swallowed.
    #[track_caller]
    #[inline]
    pub(crate) fn fire<T: 'static>(
        &self,
        result: Result<T, Failure>,
    ) -> Result<(), Result<T, Failure>> {
        if self.accept(result)? {
            run(self);
        }
        Ok(())
    }

    /// Gives the Deferred its result. `Ok(true)`: its levels are now to be run; `Ok(false)`: the result was swallowed.
    #[track_caller]
    #[inline]
    pub(crate) fn accept<T: 'static>(
        &self,
        result: Result<T, Failure>,
    ) -> Result<bool, Result<T, Failure>> {
        if self.has(FIRED) {
            return if self.swallows() {
                Ok(false)
            } else {
                Err(result)
            };
        }
        let told = self.take_told();
        self.set(FIRED);
        self.put_result(result);
        // These may own anything, so the Deferred is in order before.
        if let Some(canceller) = self.canceller_of_fired() {
            drop(canceller);
        }
        if let Some(told) = told {
            drop(told);
        }
        Ok(true)
    }

    /// Whether a firing that comes too late is the one that a cancel without a canceller lets pass.
    #[cold]
    fn swallows(&self) -> bool {
        let suppress = self.has(SUPPRESS);
        self.clear(SUPPRESS);
        suppress
    }

    /// It has fired: its canceller will not be needed any more.
    #[track_caller]
    #[inline]
    fn canceller_of_fired(&self) -> Option<Canceller> {
        self.if_extra(|extra| {
            if let Some(history) = &mut extra.history {
                history.fired = Some(crate::debug::stack());
            }
            extra.canceller.take()
        })
    }

    /// The end of a resolver that did not fire.
    #[inline]
    pub(crate) fn abandon(self) {
        if self.has(FIRED) {
            return;
        }
        if self.has(CANCELLING) {
            // The canceller stopped the work that owned it, as cancellers do. What that returns decides.
            return self.extra(|extra| extra.abandoned = true);
        }
        bury(Last::Resolver(self));
    }

    pub(crate) fn history(&self) -> Option<String> {
        self.if_extra(|extra| {
            let history = extra.history.as_ref()?;
            let fired = history.fired.as_deref().unwrap_or("not yet");
            Some(format!(
                "made at:\n{}\nfirst fired at:\n{fired}",
                history.made
            ))
        })
    }

    pub(crate) fn pause(&self) {
        self.pauses.set(self.pauses.get() + 1);
    }

    pub(crate) fn unpause(&self) {
        self.pauses.set(self.pauses.get() - 1);
        if self.paused() {
            return;
        }
        let put_off = self.if_extra(|extra| extra.when_unpaused.take());
        if let Some(put_off) = put_off {
            put_off(self);
        }
        if self.has(FIRED) {
            run(self);
        }
    }

    /// Cancels what does not have its result yet: this Deferred, or the innermost of those that it waits for.
    pub(crate) fn cancel(&self) {
        let mut node = self.clone();
        loop {
            if !node.has(FIRED) {
                return node.cancel_unfired();
            }
            if node.has(KEEPS_CANCEL) {
                return;
            }
            let Some(inner) = node.waits_for().and_then(|weak| weak.upgrade()) else {
                return;
            };
            node = inner;
        }
    }

    fn cancel_unfired(&self) {
        if self.has(CANCELLING) {
            return; // its canceller is on the stack above us and will see to it
        }
        if let Some(told) = self.take_told() {
            let fires = match told.downcast::<CancelRequest>() {
                Ok(request) => self.request(request),
                Err(told) => {
                    if let Ok(TakeBack { from, number }) = told.downcast() {
                        self.guarded(|| from(number));
                    }
                    self.has(FIRED)
                }
            };
            if fires {
                return;
            }
        }
        let canceller = self.if_extra(|extra| match &extra.canceller {
            Some(Canceller::Instead(hook)) => Some(Canceller::Instead(hook.clone())), // it stays for the next time
            _ => extra.canceller.take(),
        });
        match canceller {
            None => self.set(SUPPRESS),
            Some(Canceller::Instead(hook)) => {
                self.guarded(|| hook(self));
                if !self.is_abandoned() {
                    return; // the producer will fire it
                }
            }
            Some(Canceller::Once(canceller)) => self.guarded(|| canceller(self)),
        }
        if !self.has(FIRED) {
            let _ = self.fire::<()>(Err(CancelledError.into()));
        }
    }

    /// Asks for the end of the work. Whether it fires the Deferred, now or later: else nobody will.
    fn request(&self, request: CancelRequest) -> bool {
        let CancelRequest { to, number } = request;
        // It stays for the next time.
        let again = CancelRequest {
            to: Rc::clone(&to),
            number,
        };
        self.tell(again);
        self.guarded(|| to(number));
        self.has(FIRED) || !self.is_abandoned()
    }

    /// Whether its resolver was dropped while its canceller ran.
    fn is_abandoned(&self) -> bool {
        self.if_extra(|extra| extra.abandoned.then_some(()))
            .is_some()
    }

    /// Runs a canceller, which may panic and may come back to this Deferred.
    fn guarded(&self, canceller: impl FnOnce()) {
        self.set(CANCELLING);
        let result = contain(canceller);
        self.clear(CANCELLING);
        if let Err(panic) = result {
            crate::log_err(panic, "a canceller");
        }
    }
}

/// Runs the levels of `start`, and whatever they set in motion, until nothing more can run.
#[inline]
pub(crate) fn run(start: &NodeRef) {
    if start.has(RUNNING) {
        return; // the loop that runs it is further up the stack and will come to what was added
    }
    match start.advance(false) {
        Advance::Stopped => {}
        Advance::Handed(waiter) => carry_on(waiter, Vec::new()),
        Advance::Called(other) => carry_on(other, vec![start.clone()]),
    }
}

/// The rest of [`run`], when that comes to other Deferreds.
///
/// One loop for three things that call each other in Twisted: a level that returned a Deferred is carried on when
/// that one is finished; a level that fires another Deferred (`chain_deferred`) or resumes a coroutine has that one's
/// levels run first. `callers` are those that wait for the latter.
fn carry_on(mut current: NodeRef, mut callers: Vec<NodeRef>) {
    let mut resuming = false;
    loop {
        match current.advance(resuming) {
            Advance::Handed(waiter) => {
                resuming = false;
                current = waiter;
            }
            Advance::Called(other) => {
                resuming = false;
                callers.push(std::mem::replace(&mut current, other));
            }
            Advance::Stopped => {
                let Some(caller) = callers.pop() else { return };
                current = caller;
                current.returned();
                resuming = true;
            }
        }
    }
}

enum Advance {
    /// It is paused, waits, or has nothing left to run.
    Stopped,
    /// Its result went to the Deferred that waited for it.
    Handed(NodeRef),
    /// A level had this other Deferred fire; it goes on when that one stops.
    Called(NodeRef),
}

impl NodeRef {
    /// Runs this Deferred's levels for as long as they go. `resuming`: it comes back from a Deferred that it called, so it
    /// is in the middle of its levels, where a pause has no effect yet.
    fn advance(&self, resuming: bool) -> Advance {
        if !resuming && self.paused() {
            return Advance::Stopped;
        }
        loop {
            match contain(|| self.run_levels()) {
                Ok(advance) => return advance,
                Err(panic) => {
                    self.put_failure(panic.into());
                    self.level_ended();
                }
            }
        }
    }

    #[inline]
    fn run_levels(&self) -> Advance {
        self.set(RUNNING);
        while let Some(step) = self.run_level() {
            // It stays marked as running from one level to the next; in between no foreign code can see it.
            if matches!(step, Step::Done) && !self.watched() {
                continue;
            }
            match step {
                Step::Done => self.level_ended(),
                Step::Wait(inner) => {
                    self.level_ended();
                    if !self.adopt(inner) {
                        return Advance::Stopped;
                    }
                }
                // The level has not ended: it is the caller of what the other one's levels do.
                Step::Link(other) => {
                    self.set(LINKING);
                    return Advance::Called(other);
                }
                Step::Resumed(other) => return Advance::Called(other),
            }
            self.set(RUNNING);
        }
        self.clear(RUNNING);
        self.finish()
    }

    #[inline]
    fn run_level(&self) -> Option<Step> {
        if self.watched() && !self.levels.is_empty() {
            self.note_visible();
        }
        self.levels.run_next(self)
    }

    #[inline]
    fn level_ended(&self) {
        self.clear(RUNNING);
        if self.watched() {
            self.forget_visible();
        }
    }

    /// What it called has stopped.
    fn returned(&self) {
        if self.has(LINKING) {
            self.clear(LINKING);
            self.put(Kind::Value, Erased::new(()));
        }
        self.level_ended();
    }

    /// Takes the result of `inner`, which a level returned, or waits for it. Returns whether the result is here.
    fn adopt(&self, inner: NodeRef) -> bool {
        if self.ptr_eq(&inner) {
            self.put_failure(ReturnedItself.into());
            return true;
        }
        if inner.idle() {
            inner.give_result_to(self);
            return true;
        }
        self.pause();
        // Weak, because the one that is waited for owns the one that waits: it must see to it that it goes on.
        self.put(Kind::Waiting, Erased::new(inner.downgrade()));
        inner.set_waiter(self.clone());
        false
    }

    /// Whether it has its final result, as far as levels were added.
    pub(crate) fn idle(&self) -> bool {
        self.has(FIRED) && !self.paused() && !self.has(RUNNING) && self.levels.is_empty()
    }

    /// All levels have run.
    fn finish(&self) -> Advance {
        let Some(waiter) = self.take_waiter() else {
            return Advance::Stopped;
        };
        self.give_result_to(&waiter);
        waiter.pauses.set(waiter.pauses.get() - 1);
        Advance::Handed(waiter)
    }
}

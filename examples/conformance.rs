//! Runs conformance programs (`tests/conformance/LANGUAGE.md`): JSON lines on standard input, traces on standard output.
//!
//! ```sh
//! cargo run --example conformance < tests/conformance/programs.jsonl > actual.jsonl
//! python3 tests/conformance/compare.py tests/conformance/expected.jsonl actual.jsonl
//! ```
//!
//! The programs are untyped, so everything runs on one dynamic [`Value`]. Nothing here knows how a Deferred behaves: an op
//! is a call of the public API, and what comes of it goes into the trace.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, Write};
use std::rc::Rc;
use std::time::Duration;

use errback::{
    AlreadyCalledError, CancelledError, Clock, Deferred, DeferredList, DeferredLock, DeferredQueue,
    DeferredSemaphore, DelayedCall, Failure, FailureGroup, FirstError, IntoOutcome, ListResult,
    LoopingCall, NotActive, NotHeld, Outcome, Pause, Permit, QueueUnderflow, ReactorTime,
    SharedResolver, State, TimeoutError, defer_later, ensure_deferred, fail, gather_results,
    observe_unhandled, race, succeed,
};
use serde_json::{Value as Json, json};

fn main() -> io::Result<()> {
    let exact = std::env::args().any(|argument| argument == "--exact");
    let mut carried = Vec::new();
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let report = match exact {
            true => run_line(&line)?,
            false => as_recorded(&line, &mut carried)?,
        };
        writeln!(out, "{report}")?;
    }
    out.flush()
}

/// Runs the program on one line; gives the line that says what happened.
pub(crate) fn run_line(line: &str) -> io::Result<String> {
    let program: Json = serde_json::from_str(line)?;
    let run = Run::program(&program["ops"]);
    Ok(report(
        &program,
        run.trace,
        run.unhandled.into_iter().chain(run.of_the_last),
    ))
}

/// As [`run_line`], with the failures where the oracle of the first recording counts them (README.md, *The last register*):
/// that of the last register with the next program if it was raised, else nowhere.
fn as_recorded(line: &str, carried: &mut Vec<Failure>) -> io::Result<String> {
    let program: Json = serde_json::from_str(line)?;
    let run = Run::program(&program["ops"]);
    let raised = run
        .of_the_last
        .into_iter()
        .filter(|failure| was_raised(failure, &run.raised))
        .collect();
    let before = std::mem::replace(carried, raised);
    Ok(report(
        &program,
        run.trace,
        run.unhandled.into_iter().chain(before),
    ))
}

fn report(program: &Json, trace: Vec<Json>, unhandled: impl Iterator<Item = Failure>) -> String {
    let mut kinds: Vec<String> = unhandled.map(|failure| kind_of(&failure)).collect();
    kinds.sort();
    json!({"name": program["name"], "trace": trace, "unhandled": kinds}).to_string()
}

/// Whether Python would have a traceback in it.
fn was_raised(failure: &Failure, raised: &[Failure]) -> bool {
    let is_raised = |failure: &Failure| was_raised(failure, raised);
    failure.is_any::<(AlreadyCalledError, TimeoutError)>()
        || raised.iter().any(|one| one.ptr_eq(failure))
        || failure
            .check::<FirstError>()
            .is_some_and(|first| is_raised(&first.failure))
        || failure
            .check::<FailureGroup>()
            .is_some_and(|group| group.failures.iter().any(is_raised))
}

/// What a program did.
struct Report {
    trace: Vec<Json>,
    /// The failures that nobody handled, but those of the last register.
    unhandled: Vec<Failure>,
    of_the_last: Vec<Failure>,
    /// The failures that callbacks and coroutines raised.
    raised: Vec<Failure>,
}

// ---------------------------------------------------------------- values and failures

/// What Deferreds of a program carry.
#[derive(Clone)]
enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Str(Rc<str>),
    Array(Rc<[Value]>),
    /// In a list of results.
    Failed(Failure),
}

impl Value {
    fn from_json(json: &Json) -> Value {
        match json {
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => Value::Int(n.as_i64().expect("numbers are integers")),
            Json::String(s) => Value::Str(s.as_str().into()),
            Json::Array(values) => values.iter().map(Value::from_json).collect(),
            _ => Value::Null,
        }
    }

    fn show(&self) -> Json {
        match self {
            Value::Null => Json::Null,
            Value::Bool(b) => json!(b),
            Value::Int(n) => json!(n),
            Value::Str(s) => json!(**s),
            Value::Array(values) => values.iter().map(Value::show).collect(),
            Value::Failed(failure) => show_failure(failure),
        }
    }

    fn text(text: &str) -> Value {
        Value::Str(text.into())
    }

    fn index(index: usize) -> Value {
        Value::Int(i64::try_from(index).expect("programs are short"))
    }
}

impl FromIterator<Value> for Value {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        Value::Array(values.into_iter().collect())
    }
}

/// A result in the list that a `DeferredList` fires with.
fn list_entry(result: Result<Value, Failure>) -> Value {
    match result {
        Ok(value) => Value::from_iter([Value::Bool(true), value]),
        Err(failure) => Value::from_iter([Value::Bool(false), Value::Failed(failure)]),
    }
}

macro_rules! kinds {
    ($($kind:ident)*) => {
        $(
            /// One of the errors that a program may raise.
            #[derive(Debug)]
            struct $kind;
            impl fmt::Display for $kind {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(stringify!($kind))
                }
            }
            impl std::error::Error for $kind {}
        )*

        fn failure(kind: &Json) -> Failure {
            match text(kind) {
                $(stringify!($kind) => Failure::from($kind),)*
                other => panic!("there is no failure {other}"),
            }
        }

        fn kind_of(failure: &Failure) -> String {
            $(if failure.is::<$kind>() {
                return stringify!($kind).to_owned();
            })*
            kind_of_library(failure)
        }
    };
}

kinds! { A B C }

fn kind_of_library(failure: &Failure) -> String {
    let kind = if failure.is::<CancelledError>() {
        "CancelledError"
    } else if failure.is::<TimeoutError>() {
        "TimeoutError"
    } else if failure.is::<FirstError>() {
        "FirstError"
    } else if failure.is::<FailureGroup>() {
        "FailureGroup"
    } else if failure.is::<AlreadyCalledError>() {
        "AlreadyCalledError"
    } else {
        failure.type_name()
    };
    kind.to_owned()
}

fn show_failure(failure: &Failure) -> Json {
    if let Some(first) = failure.check::<FirstError>() {
        return json!({"fail": "FirstError", "index": first.index, "sub": show_failure(&first.failure)});
    }
    if let Some(group) = failure.check::<FailureGroup>() {
        let failures: Json = group.failures.iter().map(show_failure).collect();
        return json!({"fail": "FailureGroup", "failures": failures});
    }
    json!({"fail": kind_of(failure)})
}

fn show(result: &Result<Value, Failure>) -> Json {
    match result {
        Ok(value) => value.show(),
        Err(failure) => show_failure(failure),
    }
}

// ---------------------------------------------------------------- a program under way

struct Run {
    trace: RefCell<Vec<Json>>,
    registers: RefCell<Registers>,
    /// The firing ends, by the register that `new` made.
    ends: RefCell<HashMap<String, SharedResolver<Value>>>,
    pauses: RefCell<HashMap<String, Vec<Pause>>>,
    clock: RefCell<Clock>,
    laters: RefCell<HashMap<String, DelayedCall>>,
    loops: RefCell<HashMap<String, LoopingCall>>,
    locks: RefCell<HashMap<String, Lock>>,
    queues: RefCell<HashMap<String, DeferredQueue<Value>>>,
    /// The failures that the last callbacks saw.
    left: RefCell<Vec<Failure>>,
    /// What callbacks and coroutines have raised.
    raised: RefCell<Vec<Failure>>,
    /// The trace is closed: what is dropped now may still fire things.
    ended: Cell<bool>,
}

/// The Deferreds by name, in the order of creation; `None` when it was consumed.
#[derive(Default)]
struct Registers {
    names: HashMap<String, usize>,
    deferreds: Vec<(String, Option<Deferred<Value>>)>,
}

impl Run {
    /// Runs a program.
    fn program(ops: &Json) -> Report {
        let unhandled = Rc::new(RefCell::new(Vec::new()));
        let log = unhandled.clone();
        let observer = observe_unhandled(move |it| log.borrow_mut().push(it.failure.clone()));
        let run = Rc::new(Run {
            trace: RefCell::default(),
            registers: RefCell::default(),
            ends: RefCell::default(),
            pauses: RefCell::default(),
            clock: RefCell::default(),
            laters: RefCell::default(),
            loops: RefCell::default(),
            locks: RefCell::default(),
            queues: RefCell::default(),
            left: RefCell::default(),
            raised: RefCell::default(),
            ended: Cell::new(false),
        });
        run.ops(ops);
        run.finals();
        run.ended.set(true);
        let last = run.registers.borrow_mut().take_last();
        run.drop_registers();
        let mut failures = unhandled.take();
        drop(last);
        let of_the_last = unhandled.take();
        run.let_go();
        // What never fired has fired now. What came of that is not the program's; what it had left in a Deferred is.
        let late = unhandled.take().into_iter();
        failures.extend(late.filter(|failure| run.left(failure)));
        drop(observer);
        Report {
            trace: run.trace.take(),
            unhandled: failures,
            of_the_last,
            raised: run.raised.take(),
        }
    }

    fn drop_registers(&self) {
        drop(self.registers.take());
        self.fire_ends(SharedResolver::called); // late ends hold their Deferreds; nothing else comes of this
    }

    /// Lets everything fire that never did: Deferreds that are to fire each other would hold each other else.
    fn let_go(&self) {
        self.fire_ends(|_| true);
        drop(self.ends.take());
        drop(self.laters.take());
        drop(self.clock.take()); // with the calls that are still to be made
        drop(self.locks.take());
        drop(self.queues.take());
        drop(self.pauses.take());
        for looping in self.loops.take().into_values() {
            looping.stop(); // it and its clock keep each other alive as long as it runs
        }
    }

    fn fire_ends(&self, which: impl Fn(&SharedResolver<Value>) -> bool) {
        let ends: Vec<_> = self.ends.borrow().values().cloned().collect();
        for end in ends.into_iter().filter(which) {
            let _ = end.errback(CancelledError);
        }
    }

    /// Whether a Deferred had this failure at the end of the program.
    fn left(&self, failure: &Failure) -> bool {
        let left = self.left.borrow();
        left.iter().any(|other| other.ptr_eq(failure))
    }

    fn clock(&self) -> Clock {
        self.clock.borrow().clone()
    }

    fn finals(self: &Rc<Self>) {
        let mut names = self.registers.borrow().names_in_order();
        for name in names.drain(..) {
            let (run, shown) = (self.clone(), name.clone());
            self.change(&name, move |d| {
                d.add_both(move |result| {
                    run.record(json!(["final", shown, show(&result)]));
                    if !run.ended.get() {
                        run.left.borrow_mut().extend(result.clone().err());
                    }
                    result
                })
            });
        }
    }

    fn raise(&self, kind: &Json) -> Failure {
        let failure = failure(kind);
        self.raised.borrow_mut().push(failure.clone());
        failure
    }

    fn record(&self, event: Json) {
        if !self.ended.get() {
            self.trace.borrow_mut().push(event);
        }
    }

    fn error(&self, kind: &str) {
        self.record(json!(["error", kind]));
    }

    // ------------------------------------------------------------ registers

    fn register(&self, name: &Json, d: Deferred<Value>) {
        let mut registers = self.registers.borrow_mut();
        let place = registers.deferreds.len();
        registers.names.insert(text(name).to_owned(), place);
        // A program may look at a Deferred whose callback is running.
        let d = d.with_visible_input();
        registers.deferreds.push((text(name).to_owned(), Some(d)));
    }

    fn consume(&self, name: &str) -> Deferred<Value> {
        let d = self.registers.borrow_mut().place(name).take();
        d.unwrap_or_else(|| panic!("{name} is consumed"))
    }

    /// Adds to a Deferred, which moves. Paused meanwhile, so that a callback that runs at once finds it under its name.
    fn change(&self, name: &str, add: impl FnOnce(Deferred<Value>) -> Deferred<Value>) {
        let d = self.consume(name);
        let pause = d.pause();
        let d = add(d);
        self.registers.borrow_mut().place(name).replace(d);
        drop(pause);
    }

    fn look<R>(&self, name: &Json, look: impl FnOnce(&Deferred<Value>) -> R) -> R {
        let mut registers = self.registers.borrow_mut();
        look(registers.place(text(name)).as_ref().expect("not consumed"))
    }

    // ------------------------------------------------------------ callbacks

    /// What a program's callback does with its input.
    fn call(self: &Rc<Self>, spec: &Json, input: Result<Value, Failure>) -> Outcome<Value> {
        if self.ended.get() {
            return input.into_outcome();
        }
        self.record(json!(["run", spec["name"], show(&input)]));
        self.ops(&spec["do"]);
        let end = &spec["end"];
        match text(&end[0]) {
            "value" => Outcome::Now(Ok(Value::from_json(&end[1]))),
            "input" => Outcome::Now(input),
            "plus" => Outcome::Now(Ok(plus(input, &end[1]))),
            "raise" => Outcome::Now(Err(self.raise(&end[1]))),
            "await" => Outcome::Later(self.consume(text(&end[1]))),
            other => panic!("there is no end {other}"),
        }
    }

    fn caller(
        self: &Rc<Self>,
        spec: &Json,
    ) -> impl Fn(Result<Value, Failure>) -> Outcome<Value> + use<> {
        let (run, spec) = (self.clone(), spec.clone());
        move |input| run.call(&spec, input)
    }

    fn function(self: &Rc<Self>, spec: &Json) -> impl Fn() -> Outcome<Value> + use<> {
        let caller = self.caller(spec);
        move || caller(Ok(Value::Null))
    }

    fn canceller(self: &Rc<Self>, name: &Json, spec: &Json) -> impl FnOnce() + use<> {
        let (run, name, spec) = (self.clone(), name.clone(), spec.clone());
        move || {
            if run.ended.get() {
                return;
            }
            run.record(json!(["cancel", spec["name"]]));
            run.ops(&spec["do"]);
            match spec["fire"].get(0).and_then(Json::as_str) {
                Some("callback") => run.fire(&name, Ok(Value::from_json(&spec["fire"][1]))),
                Some(_) => run.fire(&name, Err(failure(&spec["fire"][1]))),
                None => {}
            }
        }
    }

    fn fire(&self, name: &Json, result: Result<Value, Failure>) {
        let end = self.ends.borrow()[text(name)].clone();
        if end.fire(result).is_err() {
            self.error("AlreadyCalledError");
        }
    }

    // ------------------------------------------------------------ ops

    fn ops(self: &Rc<Self>, ops: &Json) {
        for op in ops.as_array().into_iter().flatten() {
            self.op(op);
        }
    }

    fn op(self: &Rc<Self>, op: &Json) {
        match text(&op[0]) {
            "new" => self.new_deferred(&op[1], op.get(2)),
            "succeed" => self.register(&op[1], succeed(Value::from_json(&op[2]))),
            "fail" => self.register(&op[1], fail(failure(&op[2]))),
            "add" => self.add(text(&op[1]), &op[2], &op[3]),
            "both" => {
                let call = self.caller(&op[2]);
                self.change(text(&op[1]), |d| d.add_both(call));
            }
            "callback" => self.fire(&op[1], Ok(Value::from_json(&op[2]))),
            "errback" => self.fire(&op[1], Err(failure(&op[2]))),
            "cancel" => self.look(&op[1], Deferred::cancel_handle).cancel(),
            "pause" => {
                let pause = self.look(&op[1], Deferred::pause);
                let mut pauses = self.pauses.borrow_mut();
                pauses
                    .entry(text(&op[1]).to_owned())
                    .or_default()
                    .push(pause);
            }
            "unpause" => {
                let pause = self
                    .pauses
                    .borrow_mut()
                    .get_mut(text(&op[1]))
                    .and_then(Vec::pop);
                pause.expect("it is paused").unpause();
            }
            "chain" => self.chain(text(&op[1]), text(&op[2])),
            "state" => {
                let state = match self.look(&op[1], Deferred::state) {
                    State::Unfired => "unfired",
                    State::Waiting => "waiting",
                    State::Value => "value",
                    State::Failure => "failure",
                };
                self.record(json!(["state", op[1], state]));
            }
            "list" | "gather" | "race" => self.combine(op),
            "coroutine" => self.coroutine(op),
            "lock" | "semaphore" | "acquire" | "release" | "run_locked" => self.lock_op(op),
            "queue" | "put" | "get" => self.queue_op(op),
            _ => self.time_op(op),
        }
    }

    fn new_deferred(self: &Rc<Self>, name: &Json, canceller: Option<&Json>) {
        let (resolver, d) = match canceller.filter(|spec| !spec.is_null()) {
            None => Deferred::new(),
            Some(spec) => {
                let cancel = self.canceller(name, spec);
                Deferred::with_canceller(|| {
                    cancel();
                    None
                })
            }
        };
        let mut ends = self.ends.borrow_mut();
        ends.insert(text(name).to_owned(), resolver.into_shared());
        self.register(name, d);
    }

    fn add(self: &Rc<Self>, name: &str, cb: &Json, eb: &Json) {
        let callback = |spec| {
            let call = self.caller(spec);
            move |value| call(Ok(value))
        };
        let errback = |spec| {
            let call = self.caller(spec);
            move |failure| call(Err(failure))
        };
        self.change(name, |d| match (cb.is_null(), eb.is_null()) {
            (false, false) => d.add_callbacks(callback(cb), errback(eb)),
            (false, true) => d.add_callback(callback(cb)),
            (true, false) => d.add_errback(errback(eb)),
            (true, true) => d.add_both(|result| result),
        });
    }

    fn chain(&self, from: &str, to: &str) {
        let end = self.ends.borrow()[to].clone();
        self.change(from, |d| {
            d.chain_deferred(end).add_callback(|()| Ok(Value::Null))
        });
    }

    fn combine(&self, op: &Json) {
        let names = op[2].as_array().into_iter().flatten();
        let deferreds: Vec<_> = names.map(|name| self.consume(text(name))).collect();
        let d = match text(&op[0]) {
            "list" => list(deferreds, &op[3]),
            "gather" => gather_results(deferreds)
                .add_callback(|values| Ok(values.into_iter().collect::<Value>())),
            _ => race(deferreds)
                .add_callback(|(index, value)| Ok(Value::from_iter([Value::index(index), value]))),
        };
        self.register(&op[1], d);
    }

    fn time_op(self: &Rc<Self>, op: &Json) {
        match text(&op[0]) {
            "timeout" => self.timeout(op),
            "advance" => self.clock().advance(seconds(&op[1])),
            "later" => self.later(&op[1], &op[2], &op[3]),
            "later_cancel" => self.delayed(&op[1], DelayedCall::cancel),
            "later_reset" => self.delayed(&op[1], |call| call.reset(seconds(&op[2]))),
            "later_delay" => self.delayed(&op[1], |call| call.delay(seconds(&op[2]))),
            "defer_later" => {
                let null = || Ok(Value::Null);
                let d = defer_later(&self.clock(), seconds(&op[2]), null).with_visible_input();
                self.register(&op[1], d.add_callback(self.caller_of_values(&op[3])));
            }
            "loop" => self.start_loop(op),
            "loop_stop" => {
                let looping = self.loops.borrow()[text(&op[1])].clone();
                looping.stop();
            }
            other => panic!("there is no op {other}"),
        }
    }

    fn caller_of_values(self: &Rc<Self>, spec: &Json) -> impl Fn(Value) -> Outcome<Value> + use<> {
        let call = self.caller(spec);
        move |value| call(Ok(value))
    }

    fn timeout(self: &Rc<Self>, op: &Json) {
        let (name, timeout) = (text(&op[1]), seconds(&op[2]));
        match op.get(3).filter(|spec| !spec.is_null()) {
            None => self.change(name, |d| d.add_timeout(timeout, &self.clock())),
            Some(spec) => {
                let call = self.caller(spec);
                self.change(name, |d| {
                    d.add_timeout_with(timeout, &self.clock(), move |result, _| call(result))
                });
            }
        }
    }

    fn later(self: &Rc<Self>, name: &Json, delay: &Json, ops: &Json) {
        let (run, shown, ops) = (self.clone(), name.clone(), ops.clone());
        let call = move || {
            run.record(json!(["later", shown, run.clock().seconds().as_secs_f64()]));
            run.ops(&ops);
        };
        let call = self.clock().call_later(seconds(delay), Box::new(call));
        self.laters.borrow_mut().insert(text(name).to_owned(), call);
    }

    fn delayed(&self, name: &Json, change: impl FnOnce(&DelayedCall) -> Result<(), NotActive>) {
        let call = self.laters.borrow()[text(name)].clone();
        match change(&call) {
            Ok(()) => {}
            Err(NotActive::AlreadyCalled) => self.error("AlreadyCalled"),
            Err(NotActive::AlreadyCancelled) => self.error("AlreadyCancelled"),
        }
    }

    fn start_loop(self: &Rc<Self>, op: &Json) {
        let looping = LoopingCall::new(self.clock(), self.function(&op[5]));
        let name = text(&op[1]).to_owned();
        self.loops
            .borrow_mut()
            .insert(name.clone(), looping.clone());
        let d = looping.start(seconds(&op[3]), op[4] == Json::Bool(true));
        self.register(&op[2], d.add_callback(move |_| Ok(Value::text(&name))));
    }

    fn lock_op(self: &Rc<Self>, op: &Json) {
        let name = text(&op[1]).to_owned();
        let new = match text(&op[0]) {
            "lock" => Some(Lock::Lock(DeferredLock::new())),
            "semaphore" => Some(Lock::Semaphore(DeferredSemaphore::new(count(&op[2])))),
            _ => None,
        };
        if let Some(lock) = new {
            self.locks.borrow_mut().insert(name, lock);
            return;
        }
        let lock = self.locks.borrow()[&name].clone();
        match text(&op[0]) {
            "acquire" => {
                let d = lock.acquire().add_callback(move |permit| {
                    permit.forget(); // the program releases the lock by its name
                    Ok(Value::text(&name))
                });
                self.register(&op[2], d);
            }
            "run_locked" => self.register(&op[2], lock.run(self.function(&op[3]))),
            _ => lock.release().expect("it is held"),
        }
    }

    fn queue_op(&self, op: &Json) {
        let name = text(&op[1]).to_owned();
        if text(&op[0]) == "queue" {
            let limit = |limit: &Json| (!limit.is_null()).then(|| count(limit));
            let queue = DeferredQueue::with_limits(limit(&op[2]), limit(&op[3]));
            self.queues.borrow_mut().insert(name, queue);
            return;
        }
        let queue = self.queues.borrow()[&name].clone();
        if text(&op[0]) == "put" {
            if queue.put(Value::from_json(&op[2])).is_err() {
                self.error("QueueOverflow");
            }
            return;
        }
        let d = queue.get();
        match d.state() {
            // The queue holds no failures: it is the refusal.
            State::Failure => {
                self.error("QueueUnderflow");
                drop(
                    d.add_errback(|failure| failure.trap::<QueueUnderflow>().map(|_| Value::Null)),
                );
            }
            _ => self.register(&op[2], d),
        }
    }

    // ------------------------------------------------------------ coroutines

    fn coroutine(self: &Rc<Self>, op: &Json) {
        let (run, name, steps) = (self.clone(), op[2].clone(), op[3].clone());
        let d = ensure_deferred(async move { run.steps(&name, &steps).await });
        self.register(&op[1], d);
    }

    async fn steps(self: &Rc<Self>, name: &Json, steps: &Json) -> Result<Value, Failure> {
        let mut last = Value::Null;
        for step in steps.as_array().into_iter().flatten() {
            if self.ended.get() {
                return Ok(Value::Null);
            }
            match text(&step[0]) {
                "await" => {
                    last = self.consume(text(&step[1])).await?;
                    self.record(json!(["step", name, last.show()]));
                }
                "catch" => {
                    let result = self.consume(text(&step[1])).await;
                    if let Err(failure) = &result
                        && failure.is::<AlreadyCalledError>()
                    {
                        return result; // not among those that a program catches
                    }
                    self.record(json!(["step", name, show(&result)]));
                    last = result.unwrap_or(Value::Null);
                }
                "do" => self.ops(&step[1]),
                "return" => return Ok(Value::from_json(&step[1])),
                "last" => return Ok(last),
                "raise" => return Err(self.raise(&step[1])),
                other => panic!("there is no step {other}"),
            }
        }
        Ok(Value::Null)
    }
}

impl Registers {
    fn place(&mut self, name: &str) -> &mut Option<Deferred<Value>> {
        let place = self.names[name];
        &mut self.deferreds[place].1
    }

    /// Those that are not consumed.
    /// The Deferred of the register that was made last, if the program has not given it away.
    fn take_last(&mut self) -> Option<Deferred<Value>> {
        self.deferreds.last_mut()?.1.take()
    }

    fn names_in_order(&self) -> Vec<String> {
        let there = self.deferreds.iter().filter(|(_, d)| d.is_some());
        there.map(|(name, _)| name.clone()).collect()
    }
}

/// A lock or a semaphore: ops on them are the same.
#[derive(Clone)]
enum Lock {
    Lock(DeferredLock),
    Semaphore(DeferredSemaphore),
}

impl Lock {
    fn acquire(&self) -> Deferred<Permit> {
        match self {
            Lock::Lock(lock) => lock.acquire(),
            Lock::Semaphore(semaphore) => semaphore.acquire(),
        }
    }

    fn run(&self, f: impl FnOnce() -> Outcome<Value> + 'static) -> Deferred<Value> {
        match self {
            Lock::Lock(lock) => lock.run(f),
            Lock::Semaphore(semaphore) => semaphore.run(f),
        }
    }

    fn release(&self) -> Result<(), NotHeld> {
        match self {
            Lock::Lock(lock) => lock.release(),
            Lock::Semaphore(semaphore) => semaphore.release(),
        }
    }
}

fn list(deferreds: Vec<Deferred<Value>>, flags: &Json) -> Deferred<Value> {
    let mut list = DeferredList::new(deferreds);
    if flags["one_callback"] == Json::Bool(true) {
        list = list.fire_on_one_callback();
    }
    if flags["one_errback"] == Json::Bool(true) {
        list = list.fire_on_one_errback();
    }
    list.start().add_callback(|result| {
        Ok(match result {
            ListResult::All(results) => results.into_iter().map(list_entry).collect(),
            ListResult::One(value, index) => Value::from_iter([value, Value::index(index)]),
        })
    })
}

/// The input plus `by` when the input is an integer, else `by`.
fn plus(input: Result<Value, Failure>, by: &Json) -> Value {
    let by = by.as_i64().expect("an integer is added");
    match input {
        Ok(Value::Int(n)) => Value::Int(n + by),
        _ => Value::Int(by),
    }
}

fn text(json: &Json) -> &str {
    json.as_str().expect("a name is a string")
}

fn seconds(json: &Json) -> Duration {
    Duration::from_secs_f64(json.as_f64().expect("seconds are a number"))
}

fn count(json: &Json) -> usize {
    let count = json.as_u64().expect("a count is a natural number");
    usize::try_from(count).expect("programs are small")
}

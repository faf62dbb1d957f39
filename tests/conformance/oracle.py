#!/usr/bin/env python3
"""Run conformance programs (LANGUAGE.md) on real Twisted and print what happened.

    python3 oracle.py < programs.jsonl > expected.jsonl

Needs `pip install twisted`. A program that breaks the rules of LANGUAGE.md is reported on standard error
and skipped.
"""
import gc
import json
import signal
import sys

from twisted.internet import defer, error, task
from twisted.logger import globalLogBeginner, globalLogPublisher
from twisted.python.failure import Failure


class A(Exception):
    pass


class B(Exception):
    pass


class C(Exception):
    pass


KINDS = {"A": A, "B": B, "C": C}

# Unhandled errors are observed below, not printed.
globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False, discardBuffer=True)


class Invalid(Exception):
    """The program breaks a rule of the language."""


class TooLong(BaseException):
    """The program does not come to an end in Twisted."""


class Alarm:
    """Ends a program that goes round in a circle, by the time that it computes: a loaded machine makes no difference."""

    def __init__(self):
        self.rang = False
        signal.signal(signal.SIGVTALRM, self.ring)

    def ring(self, signum, frame):
        # Twisted takes an exception for a coroutine's own, and goes on: so it is remembered too.
        self.rang = True
        raise TooLong

    def set(self, seconds):
        self.rang = False
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)

    def clear(self):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


ALARM = Alarm()


def show(value):
    if isinstance(value, Failure):
        exc = value.value
        if isinstance(exc, defer.FirstError):
            return {"fail": "FirstError", "index": exc.index, "sub": show(exc.subFailure)}
        if isinstance(exc, defer.FailureGroup):
            return {"fail": "FailureGroup", "failures": [show(f) for f in exc.failures]}
        return {"fail": type(exc).__name__}
    if isinstance(value, (defer.DeferredLock, defer.DeferredSemaphore, task.LoopingCall)):
        return value.conformance_name
    if isinstance(value, (list, tuple)):
        return [show(v) for v in value]
    return value


class Run:
    def __init__(self, program):
        self.program = program
        self.trace = []
        self.regs = {}        # name -> Deferred
        self.consumed = set()  # may no longer be touched by name
        self.fire_consumed = set()
        self.fireable = set()
        self.pauses = {}
        self.clock = task.Clock()
        self.laters = {}
        self.loops = {}
        self.locks = {}
        self.queues = {}
        self.coroutines = set()
        self.invalid = None

    # -- helpers
    def bad(self, why):
        if self.invalid is None:
            self.invalid = why
        raise Invalid(why)

    def put(self, name, d, fireable=False):
        if name in self.regs:
            self.bad(f"{name} exists")
        self.regs[name] = d
        if fireable:
            self.fireable.add(name)

    def handle(self, name):
        if name not in self.regs:
            self.bad(f"no {name}")
        if name in self.consumed:
            self.bad(f"{name} is consumed")
        return self.regs[name]

    def consume(self, name):
        d = self.handle(name)
        self.consumed.add(name)
        return d

    def error(self, kind):
        self.trace.append(["error", kind])

    def callback(self, spec, owner=None):
        if spec is None:
            return None

        def run(result):
            if self.invalid:
                return None
            self.trace.append(["run", spec["name"], show(result)])
            self.ops(spec.get("do", []))
            if self.invalid:
                return None
            return self.end(spec["end"], result, owner)

        return run

    def end(self, end, result, owner=None):
        what = end[0]
        if what == "value":
            return end[1]
        if what == "input":
            return result
        if what == "plus":
            return result + end[1] if isinstance(result, int) and not isinstance(result, bool) else end[1]
        if what == "raise":
            raise KINDS[end[1]]()
        if what == "await":
            if end[1] == owner:
                self.bad("a Deferred awaits itself")
            return self.consume(end[1])
        self.bad(f"end {end}")

    def canceller(self, spec):
        def run(d):
            if self.invalid:
                return
            self.trace.append(["cancel", spec["name"]])
            self.ops(spec.get("do", []))
            fire = spec.get("fire")
            if fire:
                self.guard_fire(d, fire[0], fire[1])

        return run

    def guard_fire(self, d, how, arg):
        try:
            if how == "callback":
                d.callback(arg)
            else:
                d.errback(KINDS[arg]())
        except defer.AlreadyCalledError:
            self.error("AlreadyCalledError")

    def ops(self, ops):
        for op in ops:
            if self.invalid:
                return
            try:
                getattr(self, "op_" + op[0])(*op[1:])
            except Invalid:
                return

    # -- ops
    def op_new(self, name, canceller=None):
        d = defer.Deferred(self.canceller(canceller)) if canceller else defer.Deferred()
        self.put(name, d, fireable=True)

    def op_succeed(self, name, v):
        self.put(name, defer.succeed(v))

    def op_fail(self, name, kind):
        self.put(name, defer.fail(KINDS[kind]()))

    def op_add(self, name, cb, eb):
        d = self.handle(name)
        passthru = lambda r: r
        d.addCallbacks(self.callback(cb, name) or passthru, self.callback(eb, name) or passthru)

    def op_both(self, name, cb):
        self.handle(name).addBoth(self.callback(cb, name))

    def firing(self, name):
        if name not in self.fireable:
            self.bad(f"{name} has no firing end")
        if name in self.fire_consumed:
            self.bad(f"{name}'s firing end is consumed")
        return self.regs[name]

    def op_callback(self, name, v):
        self.guard_fire(self.firing(name), "callback", v)

    def op_errback(self, name, kind):
        self.guard_fire(self.firing(name), "errback", kind)

    def op_cancel(self, name):
        self.handle(name).cancel()

    def op_pause(self, name):
        self.handle(name).pause()
        self.pauses[name] = self.pauses.get(name, 0) + 1

    def op_unpause(self, name):
        d = self.handle(name)
        if not self.pauses.get(name):
            self.bad(f"{name} is not paused")
        self.pauses[name] -= 1
        d.unpause()

    def op_chain(self, one, two):
        if one == two:
            self.bad("chain to itself")
        d1, d2 = self.handle(one), self.firing(two)
        self.fire_consumed.add(two)
        d1.chainDeferred(d2)

    def op_state(self, name):
        d = self.handle(name)
        if name in self.coroutines:
            self.bad("the state of a coroutine's Deferred is Twisted's own affair")
        if not d.called:
            s = "unfired"
        elif isinstance(d.result, defer.Deferred):
            s = "waiting"
        else:
            s = "failure" if isinstance(d.result, Failure) else "value"
        self.trace.append(["state", name, s])

    def several(self, names):
        if len(set(names)) != len(names):
            self.bad("the same Deferred twice")
        return [self.consume(n) for n in names]

    def op_list(self, name, names, flags=None):
        f = flags or {}
        if not names and f.get("one_callback"):
            self.bad("such a list never fires in Twisted")
        self.put(name, defer.DeferredList(
            self.several(names),
            fireOnOneCallback=f.get("one_callback", False),
            fireOnOneErrback=f.get("one_errback", False),
            consumeErrors=True))

    def op_gather(self, name, names):
        self.put(name, defer.gatherResults(self.several(names), consumeErrors=True))

    def op_race(self, name, names):
        self.put(name, defer.race(self.several(names)))

    def op_timeout(self, name, seconds, cb=None):
        translate = None
        if cb:
            run = self.callback(cb, name)
            translate = lambda result, timeout: run(result)
        self.handle(name).addTimeout(seconds, self.clock, translate)

    def op_advance(self, seconds):
        self.clock.advance(seconds)

    def op_later(self, name, seconds, ops):
        if name in self.laters:
            self.bad(f"{name} exists")

        def run():
            if self.invalid:
                return
            self.trace.append(["later", name, self.clock.seconds()])
            self.ops(ops)

        self.laters[name] = self.clock.callLater(seconds, run)

    def delayed(self, name, what, *args):
        if name not in self.laters:
            self.bad(f"no {name}")
        try:
            getattr(self.laters[name], what)(*args)
        except (error.AlreadyCalled, error.AlreadyCancelled) as e:
            self.error(type(e).__name__)

    def op_later_cancel(self, name):
        self.delayed(name, "cancel")

    def op_later_reset(self, name, s):
        self.delayed(name, "reset", s)

    def op_later_delay(self, name, s):
        self.delayed(name, "delay", s)

    def op_defer_later(self, name, seconds, cb):
        run = self.callback(cb, name)
        self.put(name, task.deferLater(self.clock, seconds, run, None))

    def op_loop(self, name, dname, interval, now, cb):
        if name in self.loops:
            self.bad(f"{name} exists")
        run = self.callback(cb, dname)
        loop = task.LoopingCall(run, None)
        loop.conformance_name = name
        loop.clock = self.clock
        self.loops[name] = loop
        # `start` may run the function at once, before its Deferred has a name.
        d = loop.start(interval, now)
        self.put(dname, d)

    def op_loop_stop(self, name):
        if name not in self.loops:
            self.bad(f"no {name}")
        if not self.loops[name].running:
            self.bad(f"{name} does not run")
        self.loops[name].stop()

    def op_lock(self, name):
        self.new_lock(name, defer.DeferredLock())

    def op_semaphore(self, name, n):
        self.new_lock(name, defer.DeferredSemaphore(n))

    def new_lock(self, name, lock):
        if name in self.locks:
            self.bad(f"{name} exists")
        lock.conformance_name = name
        self.locks[name] = lock

    def op_acquire(self, name, dname):
        if name not in self.locks:
            self.bad(f"no {name}")
        self.put(dname, self.locks[name].acquire())

    def op_release(self, name):
        if name not in self.locks:
            self.bad(f"no {name}")
        lock = self.locks[name]
        held = lock.locked if isinstance(lock, defer.DeferredLock) else lock.tokens < lock.limit
        if not held:
            self.bad(f"{name} is not held")
        lock.release()

    def op_run_locked(self, name, dname, cb):
        if name not in self.locks:
            self.bad(f"no {name}")
        self.put(dname, self.locks[name].run(self.callback(cb, dname), None))

    def op_queue(self, name, size, backlog):
        if name in self.queues:
            self.bad(f"{name} exists")
        self.queues[name] = defer.DeferredQueue(size, backlog)

    def op_put(self, name, v):
        if name not in self.queues:
            self.bad(f"no {name}")
        try:
            self.queues[name].put(v)
        except defer.QueueOverflow:
            self.error("QueueOverflow")

    def op_get(self, name, dname):
        if name not in self.queues:
            self.bad(f"no {name}")
        if dname in self.regs:
            self.bad(f"{dname} exists")
        try:
            self.put(dname, self.queues[name].get())
        except defer.QueueUnderflow:
            self.error("QueueUnderflow")

    def op_coroutine(self, dname, name, steps):
        async def body():
            last = None
            for step in steps:
                if self.invalid:
                    return None
                what = step[0]
                if what == "await":
                    last = await self.consume(step[1])
                    self.trace.append(["step", name, show(last)])
                elif what == "catch":
                    d = self.consume(step[1])
                    try:
                        last = await d
                        shown = show(last)
                    except (A, B, C, defer.CancelledError, defer.TimeoutError, defer.FirstError, defer.FailureGroup) as e:
                        last = None
                        shown = show(Failure(e))
                    self.trace.append(["step", name, shown])
                elif what == "do":
                    self.ops(step[1])
                elif what == "return":
                    return step[1]
                elif what == "last":
                    return last
                elif what == "raise":
                    raise KINDS[step[1]]()
                else:
                    self.bad(f"step {step}")

        self.coroutines.add(dname)
        self.put(dname, defer.ensureDeferred(body()))

    # -- the whole program
    def run(self):
        unhandled = []

        def observe(event):
            f = event.get("log_failure")
            if f is not None:
                shown = show(f)
                unhandled.append(shown["fail"])

        globalLogPublisher.addObserver(observe)
        try:
            try:
                ALARM.set(1)
                self.ops(self.program["ops"])
            except (RecursionError, TooLong):
                self.invalid = "it does not come to an end in Twisted"
            finally:
                ALARM.clear()
            if ALARM.rang:
                self.invalid = "it does not come to an end in Twisted"
            for name in self.regs:
                if self.pauses.get(name) and isinstance(getattr(self.regs[name], "result", None), Failure):
                    # Twisted loses it in silence; what a library says of it is its own affair.
                    self.invalid = f"{name} ends paused with a failure"
            if not self.invalid:
                for name in list(self.regs):
                    if name in self.consumed:
                        continue

                    def final(result, name=name):
                        self.trace.append(["final", name, show(result)])
                        return result

                    self.regs[name].addBoth(final)
            trace = list(self.trace)
            self.regs.clear()
            self.laters.clear()
            self.loops.clear()
            self.locks.clear()
            self.queues.clear()
            self.clock = None
            gc.collect()
        finally:
            globalLogPublisher.removeObserver(observe)
        if "AssertionError" in unhandled or '"AssertionError"' in json.dumps(trace):
            self.invalid = "a lock was released under the feet of its `run`"
        if self.invalid:
            return None
        return {"name": self.program["name"], "trace": trace, "unhandled": sorted(unhandled)}


def main():
    bad = 0
    for line in sys.stdin:
        if not line.strip():
            continue
        program = json.loads(line)
        run = Run(program)
        result = run.run()
        if result is None:
            bad += 1
            print(f"invalid: {program['name']}: {run.invalid}", file=sys.stderr)
            continue
        print(json.dumps(result, separators=(",", ":")))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

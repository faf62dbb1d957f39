"""Jobs that go wrong in every way, for the tests. Nothing is marked, so that all is served."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import errback_worker

print("printed while it was imported")


def add(a, b=1):
    return a + b


def echo(value):
    return value


def variadic(*values):
    return len(values)


def keyword_only(a, *, b):
    return a


def divide(a, b):
    return a / b


class Shapes:
    @staticmethod
    def area(width, height):
        return width * height

    class Inner:
        @staticmethod
        def name():
            return "inner"


def _hidden():
    return 1


def leave(code):
    sys.exit(code)


def interrupt():
    raise KeyboardInterrupt


def recurse():
    return recurse()


def exhaust():
    return [bytes(1 << 40)]


def a_set():
    return {"list": [1, 2, {"x": {3}}]}


def fork_and_return():
    child = os.fork()
    if child == 0:
        print("from the child")
        return "the child's answer"
    return os.waitpid(child, 0)[1]


def fork_and_raise():
    child = os.fork()
    if child == 0:
        raise ValueError("in the child")
    return os.waitpid(child, 0)[1]


def fork_at(number, at):
    if number == at:
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1]
    return number


def close_descriptors(first, last):
    os.closerange(first, last)


def replace_standard_output(path):
    os.close(0)
    os.close(1)
    os.close(2)
    names = [os.open(path, os.O_WRONLY | os.O_CREAT) for _ in range(3)]
    return names


def take_signals():
    signal.signal(signal.SIGURG, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sleep(seconds):
    time.sleep(seconds)
    return "slept"


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "busy"


def is_there(fifo):
    """Tells the test that the job has come so far."""
    open(fifo, "w").close()


def polls(fifo):
    end = time.monotonic() + 60
    try:
        is_there(fifo)
        while time.monotonic() < end:
            time.sleep(0.001)
    except errback_worker.JobCancelled:
        return errback_worker.cancel_requested()


def swallows(seconds):
    """An `except Exception` around everything must not hold a request up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except Exception:
            pass


def waits_for_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def waits_for_child():
    subprocess.run(["sleep", "60"])


def thread_asks(fifo):
    """From another thread of the job."""
    seen = []
    done = threading.Event()

    def look():
        while not errback_worker.cancel_requested():
            time.sleep(0.001)
        seen.append(True)
        done.set()

    threading.Thread(target=look, daemon=True).start()
    try:
        is_there(fifo)
        done.wait()
    except errback_worker.JobCancelled:
        # There is one for a job.
        done.wait()
    return seen


cleaned = []


def cleans_up(fifo, seconds):
    try:
        is_there(fifo)
        time.sleep(seconds)
    finally:
        cleaned.append(1)


def cleaned_up():
    return len(cleaned)


def spin_for(microseconds):
    end = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < end:
        pass
    return microseconds


def lingers():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


def writes(text):
    sys.stdout.write(text)


def logs():
    logging.getLogger("sample").warning("a warning of %s", "the task")


async def coroutine():
    return 1


counted = [0]


def counts():
    """The same list each time."""
    counted[0] += 1
    return counted


def counts_from(number):
    """The same list each time, but for some that are simple."""
    counted[0] = number
    return counted if number % 3 else number


def swallows_if(number):
    """Once 3 has come, it waits for the request and takes no notice of it."""
    if number == 3:
        try:
            time.sleep(600)
        except errback_worker.JobCancelled:
            pass
    if number > 3:
        os._exit(7)
    return number

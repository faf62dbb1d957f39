"""The tasks of tests/python: each does one thing that a worker should survive, or die of alone."""

import collections
import ctypes
import itertools
import os
import signal
import socket
import struct
import sys
import threading
import time

import errback_worker


def add(a, b):
    return a + b


def hold(gate):
    """Waits at a gate, and says which process it is."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(gate)
        stream.sendall(struct.pack("=I", os.getpid()))
        stream.recv(1)
    return os.getpid()


def reach(gate):
    """Says at a gate that this process has come so far. The connection is left open: it ends with the process."""
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(gate)
    stream.sendall(struct.pack("=I", os.getpid()))
    _kept.append(stream)


_kept = []


def worker_pid():
    return os.getpid()


def echo(value):
    return value


def described(value):
    """What a value is to Python."""
    return f"{type(value).__name__} {value!r}"


def evaluated(expression):
    """A result of any type."""
    return eval(expression, {"sys": sys})


# Deaths.


def leave(status):
    os._exit(status)


def system_exit(status):
    sys.exit(status)


def interrupt():
    raise KeyboardInterrupt


def signal_oneself(number):
    os.kill(os.getpid(), number)
    return os.getpid()


def recurse():
    return recurse() + 1


def allocate(size):
    return len(bytearray(size))


def leave_after_the_answer():
    import atexit

    def leave_when_idle():
        os._exit(3)

    # The answer is written when the function has returned; the thread's end comes whenever.
    threading.Timer(0.05, leave_when_idle).start()
    atexit.register(leave_when_idle)
    return os.getpid()


# Endless, in every way.


def spin(gate):
    reach(gate)
    while True:
        pass


def sleep(gate):
    reach(gate)
    time.sleep(3600)


def hold_the_gil(gate):
    """Sleeps in C, with the interpreter's lock: no other thread of the worker gets to do anything."""
    reach(gate)
    ctypes.PyDLL(None).sleep(3600)


def compute_with_the_gil(gate):
    """A loop in C that never ends, and looks up for nothing: the bytecode never goes on."""
    reach(gate)
    collections.deque(itertools.repeat(0), maxlen=0)


def ignore_everything(gate):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGURG):
        signal.signal(number, signal.SIG_IGN)
    reach(gate)
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass


# Failures.


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.lock = threading.Lock()


class Mute(ValueError):
    def __str__(self):
        raise RuntimeError("no")


def raise_two_arguments():
    raise TwoArguments(1, 2)


def raise_mute():
    raise Mute


def raise_key_error(key):
    return {}[key]


def raise_chain(length):
    failure = None
    for number in range(length):
        try:
            raise LookupError(f"number {number}") from failure
        except LookupError as error:
            failure = error
    raise failure


def raise_loop():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one


def raise_noted():
    error = ValueError("noted")
    error.__notes__ = ["first", "second"]
    raise error


def raise_group():
    raise ExceptionGroup("two", [ValueError("one"), ExceptionGroup("inner", [KeyError("k")])])


def raise_long():
    raise ValueError("x" * 1_000_000)


# Descriptors and processes.


def close_descriptors(first, last):
    os.closerange(first, last)
    return os.getpid()


def take_standard_descriptors(path):
    for number in (0, 1, 2):
        try:
            os.close(number)
        except OSError:
            pass
    files = [open(path, "ab") for _ in range(3)]
    for file in files:
        file.write(b"mine")
        file.flush()
    return [file.fileno() for file in files]


def print_much(size):
    sys.stdout.write("o" * size)
    os.write(2, b"\xff\x00e" * (size // 3))
    return size


def leave_a_child(gate, how):
    """A grandchild that keeps every descriptor and outlives this process, unless somebody sees to it."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        reach(gate)
        os.write(writer, b"!")
        time.sleep(3600)
        os._exit(0)
    # A death that comes too soon would take the grandchild along before it has been seen.
    os.read(reader, 1)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leave":
        os._exit(0)
    return os.getpid()


def fork_many(gate, count):
    for _ in range(count):
        if os.fork() == 0:
            reach(gate)
            time.sleep(3600)
            os._exit(0)
    ignore_everything(gate)


def environment(name):
    return os.environ.get(name)


def working_directory():
    return os.getcwd()


def flags():
    return [sys.flags.optimize, sys.flags.dont_write_bytecode]


def numpy_sum(array):
    return float(errback_worker.as_numpy(array).sum())


def numpy_range(count):
    import numpy

    return numpy.arange(count, dtype="<i4").reshape(2, -1)


class Counter:
    @staticmethod
    def double(n):
        return 2 * n


def remember(value):
    _remembered.append(value)


def remembered():
    return _remembered


_remembered = []


def keep(size):
    """Memory that is used and never let go of."""
    _kept.append(b"x" * size)
    return os.getpid()


# Large buffers.

_views = []


def look(value):
    """The type of a value, whether it can be written to, its length and its sum."""
    return [type(value).__name__, memoryview(value).readonly, len(value), sum(value[:1000]), value[-1]]


def keep_view(value):
    _views.append(value[5:10])


def kept_views():
    return [bytes(view) for view in _views]


def keep_no_views():
    _views.clear()


def inverted(value):
    return bytes(255 - byte for byte in value)


def same_anywhere(value):
    return {"one": bytearray(value), "two": [1, memoryview(value)], "three": value}


def as_array(value):
    import numpy

    return numpy.frombuffer(value, "u1").reshape(2, -1)


def as_array_within(value):
    return {"arrays": [as_array(value), as_array(value)], "note": "x" * 1000}


def large(size, byte):
    return bytes([byte]) * size

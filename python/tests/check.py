"""The tasks that ``examples/check_worker`` calls, in Python."""

from __future__ import annotations

import fcntl
import os
import resource
import sys
import time

import errback_worker


class Refused(Exception):
    """What :func:`fail` raises."""


def add(a, b):
    return a + b


def echo(value):
    return value


def nothing():
    pass


def bytes(count):
    return b"\x07" * count


def fail(message):
    raise Refused(message)


def unsendable():
    return {1, 2}


def spin(seconds):
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            time.sleep(min(0.5, max(0, end - time.monotonic())))
    except errback_worker.JobCancelled:
        return "asked" if errback_worker.cancel_requested() else "struck without a request"
    return "ran"


def print(line):
    sys.stdout.write(line + "\n")
    sys.stderr.write(line + "\n")


def exit(code):
    os._exit(code)


def limits():
    numbers = (
        *resource.getrlimit(resource.RLIMIT_AS)[:1],
        *resource.getrlimit(resource.RLIMIT_CPU),
        *resource.getrlimit(resource.RLIMIT_NOFILE)[:1],
    )
    return [None if number == resource.RLIM_INFINITY else number for number in numbers]


def variable(name):
    return os.environ.get(name)


def inheritable():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and not fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.append(name)
        except OSError:
            # The one that listed them.
            pass
    return found

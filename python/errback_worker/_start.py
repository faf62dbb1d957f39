"""What a process does to itself to become a worker, and how it ends.

The host has no code between ``fork`` and ``exec``: descriptors, signals and limits are set here, on its word.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import socket
import sys
from types import ModuleType
from typing import NoReturn, Optional

_VARIABLE = "ERRBACK_WORKER"
_PR_SET_PDEATHSIG = 1

# An end that hangs, in an exit handler or a thread of a job's, is cut short after this many seconds. The host does not
# wait so long; this is for the worker whose host is gone.
_END_SECONDS = 10


class Leaving(Exception):
    """Why a worker ends, other than by its jobs: an exit code of docs/protocol.md, and a line for standard error."""

    def __init__(self, code: int, why: Optional[str] = None) -> None:
        super().__init__(code, why)
        self.code = code
        self.why = why

    def exit(self) -> NoReturn:
        """Ends the process by ``sys.exit``, so that exit handlers run and buffers are written."""
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_END_SECONDS)
        except (OSError, ValueError):
            pass
        for name in ("stdout", "stderr"):
            if not flushed(getattr(sys, name, None)):
                # A job has closed the descriptor. The interpreter would make an exit code of it.
                setattr(sys, name, None)
        if self.why is not None:
            say(f"errback worker {os.getpid()}: {self.why}")
        sys.exit(self.code)


def say(line: str) -> None:
    """Writes a line to descriptor 2, whatever ``sys.stderr`` is by now."""
    try:
        os.write(2, line.replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass


def flushed(stream: object) -> bool:
    """Writes out what ``stream`` holds back, and says whether that went well. It may be anything: jobs replace it."""
    try:
        stream.flush()  # type: ignore[attr-defined]
    except Exception:
        return stream is None or getattr(stream, "closed", False) is True
    return True


def take_mark() -> None:
    """Reads by what this process knows that it is a worker, and takes it out of the environment: jobs start programs.

    It asks the kernel for its death with its parent's. That the parent is not the host says nothing here: a command of
    the user's own may stand between them, as a shell does. Then the end of the connection tells.
    """
    mark = os.environ.pop(_VARIABLE, None)
    if mark is None:
        raise Leaving(78, f"this is started by a program that uses errback, with {_VARIABLE} in its environment")
    parts = mark.split(":")
    if len(parts) != 3 or parts[0] != "1" or not (parts[1].isdigit() and parts[2].isdigit()):
        raise Leaving(78, f"{_VARIABLE}={mark} is not a mark of the form 1:DEPTH:HOST")
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        # Not this system's. The end of the connection tells there too, between jobs.
        pass


def take_connection() -> socket.socket:
    """Moves the connection from descriptor 0 to one that no child inherits, and puts ``/dev/null`` into its place."""
    try:
        descriptor = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
        connection = socket.socket(fileno=descriptor)
    except OSError:
        connection = None
    if connection is None or connection.family != socket.AF_UNIX or connection.type != socket.SOCK_STREAM:
        raise Leaving(78, "started as a worker, but standard input is no connection to a host")
    try:
        connection.setblocking(True)
        os.close(0)
        fill_standard_descriptors()
    except OSError as error:
        raise Leaving(71, f"standard descriptors: {error}") from None
    return connection


def fill_standard_descriptors() -> None:
    """Puts ``/dev/null`` into the places of descriptors 0, 1 and 2 where they are closed: a file that a task opens must
    not become its standard output."""
    for standard in (0, 1, 2):
        try:
            fcntl.fcntl(standard, fcntl.F_GETFD)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, standard)
            if nothing > 2:
                os.close(nothing)


def close_inherited() -> None:
    """Closes what came from the host by mistake: descriptors above 2 that ``exec`` would pass on further."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except (OSError, ValueError):
        numbers = list(range(3, 1024))
    for number in numbers:
        if number > 2:
            try:
                if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                    os.close(number)
            except OSError:
                pass


def reset_signals() -> None:
    """No signal is blocked; a broken pipe is an error, and not the end; what the host ignores is not ignored here."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Between jobs it would hit the worker. A job gets a handler of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def limit(what: str, amount: int, soft_to_hard: int = 0) -> None:
    """Sets a limit of this process, ``RLIMIT_<what>``. One that is lower already stays as it is."""
    try:
        import resource

        number = getattr(resource, f"RLIMIT_{what}")
        soft, hard = resource.getrlimit(number)

        def lower(inherited: int, wanted: int) -> int:
            return wanted if inherited == resource.RLIM_INFINITY else min(inherited, wanted)

        most = 2**63 - 1
        resource.setrlimit(
            number, (lower(soft, min(amount, most)), lower(hard, min(amount + soft_to_hard, most)))
        )
    except (ImportError, AttributeError, ValueError, OverflowError, OSError) as error:
        raise Leaving(78, f"the limit RLIMIT_{what} of {amount} cannot be set: {error}") from None


def import_modules(names: list[str]) -> list[ModuleType]:
    """Imports the modules of the tasks. One that cannot be is the end: the host would only start the same again."""
    import logging

    # What nobody has configured a handler for: formatted, and to where the host reads it.
    fallback = logging.StreamHandler()
    fallback.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.lastResort = fallback
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except BaseException as error:
            raise _cannot_import(name, error) from None
    return modules


def _cannot_import(name: str, error: BaseException) -> Leaving:
    from errback_worker import _failures

    sys.stderr.write(_failures.backtrace(error) or "")
    hint = ""
    if name.endswith(".py") or "/" in name:
        hint = " (a module is named as in an import statement, not as a file)"
    flushed(sys.stdout)
    flushed(sys.stderr)
    say(f"errback worker: cannot import module {name!r}: {type(error).__name__}: {_failures.message(error)}{hint}")
    return Leaving(78)

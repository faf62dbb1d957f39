"""Requests to stop: the host no longer wants a job's result, and the job is told.

A thread waits for the requests; it is the only one of the worker's, and it is there only when the host has sent the
socket for them. It raises :class:`JobCancelled` in the main thread by a signal, because only that ends a blocking system
call such as ``time.sleep``.

An exception from a handler may strike between any two steps of the main thread. What keeps it to the job that is meant:

- The handler runs in the main thread itself. It raises only while a *window* is open, and the window bears the id of a
  call: a late signal finds it closed, or open for another call.
- What raises closes the window first. So there is one exception for a window at the most, and none strikes the code
  that deals with the first.
- The window is closed in a ``finally``; an exception that comes just before the closing is still caught around it.
- The main thread opens the window and then looks for a request, the other thread stores the request and then looks at
  the window. One of them sees the other, whatever the order.
- A signal that comes between the interpreter's last look and the kernel's sleep would be slept through. So it is
  repeated until the window is closed.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import threading
import time
from types import FrameType
from typing import Any, Callable, Optional

# Nobody uses it, and a process that has no handler for it (a job may take ours away) ignores it.
_SIGNAL = signal.SIGURG

# `signal.getsignal` makes an enum of the answer, which takes longer than a small job.
_getsignal: Any = getattr(getattr(signal, "_signal", signal), "getsignal")

# A packet about shared memory, and room for its descriptor.
_LONGEST = 24
_ROOM = socket.CMSG_SPACE(array.array("i").itemsize)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

_WHY = "the host does not want the result any more"
_ID = struct.Struct("=Q")
_STACK = 256 * 1024
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


class JobCancelled(BaseException):
    """The host does not want this job's result any more.

    It is raised in the main thread of a job, wherever that is. It is not an ``Exception``, so that ``except Exception``
    lets it through. Who catches it to clean up should raise it again: a job that goes on is killed with its worker.
    """

    __module__ = "errback_worker"


class Window:
    """Which call is running, and whether an exception may be raised in it."""

    def __init__(self) -> None:
        self.open: Optional[int] = None
        """The call that may be struck by an exception."""
        self.job: Optional[int] = None
        """The call that is running."""
        self.request: Optional[int] = None
        """The call that the last request was for."""
        self.calls: Optional[tuple[int, list[Any]]] = None
        """The chunk that is running, by its call, and what is still to be run of it. Whoever wants it to end empties the
        list, so that nothing needs to be looked at between two of its calls."""
        self._bring: Optional[Callable[[bytes, list[int]], None]] = None
        # A method would be a new object each time that it is asked for, and these are compared.
        self._handlers = {signal.SIGINT: self._interrupt}

    def listen(self, requests: socket.socket, bring: Optional[Callable[[bytes, list[int]], None]] = None) -> None:
        """Takes requests from now on. What is said of shared memory goes to `bring`, with its descriptors."""
        self._bring = bring
        self._handlers[_SIGNAL] = self._cancel
        before = threading.stack_size(_STACK)
        listener = threading.Thread(target=self._listen, args=(requests,), name="errback requests", daemon=True)
        listener.start()
        threading.stack_size(before)

    def arm(self) -> None:
        """Puts the handlers in place, where a job or a module has put others."""
        for number, handler in self._handlers.items():
            if _getsignal(number) is not handler:
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises where a request for this call has come before it began, or between two calls of a chunk."""
        if self.request is not None and self.request == self.job:
            self.open = None
            raise JobCancelled(_WHY)

    def take_calls(self, id: Optional[int] = None) -> None:
        """Ends the chunk that is running, if it is this one, or whichever it is."""
        calls = self.calls
        if calls is not None and (id is None or calls[0] == id):
            calls[1].clear()

    def _listen(self, requests: socket.socket) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            try:
                packet, ancillary, _, _ = requests.recvmsg(_LONGEST + 1, _ROOM, _CLOEXEC)
            except OSError:
                # A job has closed it. The worker will see that with its connection.
                return
            if not packet:
                return
            descriptors = _descriptors(ancillary)
            if len(packet) == _LONGEST and self._bring is not None:
                self._bring(packet, descriptors)
                continue
            for descriptor in descriptors:
                os.close(descriptor)
            if len(packet) != _ID.size:
                continue
            (wanted,) = _ID.unpack(packet)
            self.request = wanted
            self.take_calls(wanted)
            pause = _FIRST_PAUSE
            while self.open == wanted:
                signal.pthread_kill(main, _SIGNAL)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _cancel(self, number: int, frame: Optional[FrameType]) -> None:
        if self.open is not None and self.open == self.request:
            self.open = None
            raise JobCancelled(_WHY)

    def _interrupt(self, number: int, frame: Optional[FrameType]) -> None:
        if self.open is not None:
            self.open = None
            raise KeyboardInterrupt


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return numbers.tolist()


# The worker's one window. Nothing opens it in a process that is no worker.
window = Window()


def cancel_requested() -> bool:
    """Whether the host has asked for the end of the job that is running: for tasks that look themselves, from any
    thread. In a process that is no worker, nobody has."""
    return window.request is not None and window.request == window.job

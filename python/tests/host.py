"""A host made by hand: starts a worker, and speaks the protocol with it."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import msgpack

PACKAGE = Path(__file__).resolve().parent.parent
TESTS = Path(__file__).resolve().parent
DEADLINE = 60


class Host:
    """A worker, and its host."""

    def __init__(self, modules=("sample",), command=None, environment=None, hello=(), greet=True, path=None):
        self.socket, end = socket.socketpair()
        self.socket.settimeout(DEADLINE)
        self.requests, workers_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A pipe counts as an eventfd does: eight bytes for each call.
        self._begun, workers_begun = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        path = [str(PACKAGE), str(TESTS)] if path is None else path
        variables = {
            **os.environ,
            "ERRBACK_WORKER": f"1:1:{os.getpid()}",
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        }
        # What is printed shall lie in a buffer.
        variables.pop("PYTHONUNBUFFERED", None)
        self._output = tempfile.TemporaryFile()
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*(command or [sys.executable, "-m", "errback_worker"]), *modules],
            stdin=end,
            stdout=self._output,
            stderr=self._errors,
            env=variables,
            start_new_session=True,
        )
        end.close()
        members = {"protocol": 1, **dict(hello)}
        descriptors = array.array("i", [workers_begun, workers_requests.fileno()])
        self.socket.sendmsg(
            [framed([2, "hello", [members]])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        )
        os.close(workers_begun)
        workers_requests.close()
        self._ids = 1 << 32
        self.hello = self.receive()[2][0] if greet else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for file in (self.socket, self.requests, self._output, self._errors):
            file.close()
        os.close(self._begun)

    def fresh_id(self):
        self._ids += 1
        return self._ids

    def send(self, task, *args, id=None):
        """Sends a call and gives its id."""
        id = self.fresh_id() if id is None else id
        self.socket.sendall(framed([0, id, task, list(args)]))
        return id

    def receive(self):
        """The next message."""
        header = self._exactly(4)
        return msgpack.unpackb(self._exactly(struct.unpack(">I", header)[0]), strict_map_key=False)

    def _exactly(self, count):
        read = bytearray()
        while len(read) < count:
            piece = self.socket.recv(count - len(read))
            if not piece:
                raise EOFError(f"the worker has ended: {self.stderr()}")
            read += piece
        return bytes(read)

    def answer(self, id):
        """The error and the result of the next answer, which is the one to this call."""
        kind, answered, error, result = self.receive()
        assert (kind, answered) == (1, id), (kind, answered, id)
        return error, result

    def call(self, task, *args):
        """The error and the result of a call."""
        return self.answer(self.send(task, *args))

    def result(self, task, *args):
        """The result of a call that must not fail."""
        error, result = self.call(task, *args)
        assert error is None, error
        return result

    def error(self, task, *args):
        """The error of a call that must fail."""
        error, result = self.call(task, *args)
        assert error is not None, result
        return error

    def request(self, id):
        self.requests.send(struct.pack("=Q", id))

    def begun(self):
        """How many calls have begun since the last time."""
        try:
            return len(os.read(self._begun, 65536)) // 8
        except BlockingIOError:
            return 0

    def wait_for_begin(self):
        ready, _, _ = select.select([self._begun], [], [], DEADLINE)
        assert ready, "it does not begin"
        os.read(self._begun, 8)

    def interrupt(self):
        """Interrupts the call that the worker has begun with: until it answers, as the function itself may not run yet."""
        self.wait_for_begin()
        ready = []
        while not ready:
            self.kill()
            ready, _, _ = select.select([self.socket], [], [], 0.05)

    def end(self):
        """Closes the connection; the exit code."""
        self.socket.close()
        return self.process.wait(DEADLINE)

    def wait(self):
        return self.process.wait(DEADLINE)

    def kill(self, number=signal.SIGINT):
        os.kill(self.process.pid, number)

    def stdout(self):
        return _text(self._output)

    def stderr(self):
        return _text(self._errors)


def _text(file):
    file.seek(0)
    return file.read().decode()


def as_pairs(results):
    """The results of a chunk, of whichever form, as pairs."""
    return [[None, value] for value in results["all"]] if isinstance(results, dict) else results


def framed(message):
    body = msgpack.packb(message)
    return struct.pack(">I", len(body)) + body


def embedded():
    """The worker as a Rust program carries it: a text for `python3 -c`, and the sources in a variable."""
    sources = {}
    for file in sorted((PACKAGE / "errback_worker").glob("*.py")):
        if file.stem != "_bootstrap":
            name = "errback_worker" + ("" if file.stem == "__init__" else "." + file.stem)
            sources[name] = file.read_text()
    return (PACKAGE / "errback_worker" / "_bootstrap.py").read_text(), json.dumps(sources)

"""The worker's end of the connection: a blocking socket, one read for a small call and one write for its answer.

It is read and written by ``recv`` and ``send``, which fail on anything that is no socket. So a job that closes every
descriptor it can find and opens files in their places breaks its worker, but never has protocol bytes written to its
files.
"""

from __future__ import annotations

import array
import hashlib
import os
import socket
import struct
import sys
from typing import Any, Optional

from errback_worker import __version__, _start, _wire

_LENGTH = struct.Struct(">I")
_ROOM = 65536
_STEP = 1 << 20
_ZEROS = bytes(_STEP)
_MOST_DESCRIPTORS = 16
_MOST_PIECES = 512


class Hello:
    """What the host has said first."""

    def __init__(self, members: dict[Any, Any], descriptors: list[int]) -> None:
        self.protocol = _unsigned(members, "protocol", 1)
        self.max_frame = _unsigned(members, "max_frame", _wire.MAX_FRAME)
        self.buffers = _unsigned(members, "buffers", None)
        self.memory_limit = _unsigned(members, "memory_limit", None)
        self._limits = [
            ("AS", self.memory_limit, 0),
            ("CPU", _unsigned(members, "cpu_limit", None), 1),
            ("NOFILE", _unsigned(members, "open_files", None), 0),
        ]
        if not self.protocol:
            raise _wire.ProtocolError("it asks for version 0")
        self.begun = descriptors[0] if descriptors else None
        self.requests: Optional[socket.socket] = None
        if len(descriptors) > 1:
            try:
                self.requests = socket.socket(fileno=descriptors[1])
                self.requests.setblocking(True)
            except OSError as error:
                raise _wire.ProtocolError(f"the requests to stop are no socket: {error}") from None
        # A later version's.
        for descriptor in descriptors[2:]:
            os.close(descriptor)

    def apply_limits(self) -> None:
        """Sets the limits that the host asks for."""
        for what, amount, soft_to_hard in self._limits:
            if amount is not None:
                _start.limit(what, amount, soft_to_hard)


def _unsigned(members: dict[Any, Any], name: str, missing: Any) -> Any:
    value = members.get(name, missing)
    if value is not missing and (type(value) is not int or value < 0):
        raise _wire.ProtocolError(f"a bad hello: {name} is no unsigned integer")
    return value


class Channel:
    """Frames in, frames out."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray(_ROOM)
        # What has been read and not taken lies between these two.
        self._start = 0
        self._end = 0
        self.max_frame = _wire.MAX_FRAME

    def receive_hello(self) -> Hello:
        """Waits for the host's greeting, and the descriptors that come with it."""
        descriptors = array.array("i")
        try:
            room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * descriptors.itemsize)
            while self._whole() is None:
                self._make_room()
                with memoryview(self._buffer)[self._end :] as free:
                    count, ancillary, _, _ = self._connection.recvmsg_into([free], room, socket.MSG_CMSG_CLOEXEC)
                if not count:
                    raise _start.Leaving(0)
                self._end += count
                for level, kind, data in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            message = self.receive()
            if message is None or message[:2] != [2, "hello"]:
                raise _wire.ProtocolError("its first message is not a hello")
            parameters = message[2]
            if len(parameters) != 1 or type(parameters[0]) is not dict:
                raise _wire.ProtocolError("a bad hello: it has not a map as its only parameter")
            hello = Hello(parameters[0], descriptors.tolist())
        except _wire.ProtocolError as error:
            raise _protocol(error) from None
        except ConnectionError:
            raise _start.Leaving(0) from None
        except OSError as error:
            raise _start.Leaving(71, f"recvmsg: {error}") from None
        self.max_frame = max(_wire.MIN_FRAME, hello.max_frame)
        return hello

    def send_hello(self, protocol: int, tasks: int, buffers: bool = False) -> None:
        """Says that calls may come."""
        build = hashlib.blake2b(f"{__version__} {sys.version}".encode(), digest_size=8).hexdigest()
        hello: dict[str, Any] = {
            "protocol": min(protocol, 1),
            "pid": os.getpid(),
            "language": "python",
            "version": __version__,
            "build": build,
            "tasks": tasks,
        }
        if buffers:
            hello["buffers"] = True
        self.notify("hello", hello)

    def notify(self, method: str, parameter: dict[str, Any]) -> None:
        """Sends a notification."""
        import msgpack

        body = msgpack.packb([2, method, [parameter]])
        self.send([_LENGTH.pack(len(body)), body])

    def receive(self) -> Optional[list[Any]]:
        """The next message. None: the host has closed the connection, and between two frames."""
        try:
            length = self._whole()
            while length is None:
                try:
                    if self._start == self._end:
                        # The usual case: one read brings one call.
                        self._start = self._end = 0
                        count = self._connection.recv_into(self._buffer)
                    else:
                        self._make_room()
                        with memoryview(self._buffer)[self._end :] as free:
                            count = self._connection.recv_into(free)
                except ConnectionError:
                    count = 0
                if not count:
                    if self._start == self._end:
                        return None
                    raise _wire.ProtocolError("it left in the middle of a frame")
                self._end += count
                length = self._whole()
            body_start = self._start + _LENGTH.size
            self._start = body_start + length
            with memoryview(self._buffer)[body_start : self._start] as body:
                message = _wire.parse(body)
        except _wire.ProtocolError as error:
            raise _protocol(error) from None
        except OSError as error:
            raise _start.Leaving(71, f"recv: {error}") from None
        if self._start == self._end and len(self._buffer) > _STEP:
            # A job that takes long shall not hold its arguments twice.
            self._buffer = bytearray(_ROOM)
        return message

    def _whole(self) -> Optional[int]:
        """The length of the next frame's body, if all of it is there."""
        there = self._end - self._start
        if there < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(self._buffer, self._start)[0]
        if length > self.max_frame:
            raise _wire.ProtocolError(f"a frame of {length} bytes, where {self.max_frame} are the most")
        return length if there >= _LENGTH.size + length else None

    def _make_room(self) -> None:
        """Makes room for a read. The buffer grows by what has come, not by what was announced."""
        there = self._end - self._start
        if self._start:
            self._buffer[:there] = self._buffer[self._start : self._end]
            self._start, self._end = 0, there
        if self._end == len(self._buffer):
            self._buffer += _ZEROS[: max(_ROOM, min(_STEP, self._end))]

    def send(self, pieces: list[_wire.Buffer]) -> None:
        """Writes all of these bytes, big ones from where they lie."""
        try:
            if sum(map(len, pieces)) < _ROOM:
                self._connection.sendall(b"".join(pieces), socket.MSG_NOSIGNAL)
            else:
                self._send_big(pieces)
        except ConnectionError:
            raise _start.Leaving(0) from None
        except OSError as error:
            raise _start.Leaving(71, f"send: {error}") from None

    def _send_big(self, pieces: list[_wire.Buffer]) -> None:
        left = [memoryview(piece) for piece in _joined(pieces)]
        left.reverse()
        while left:
            sent = self._connection.sendmsg(left[: -_MOST_PIECES - 1 : -1], [], socket.MSG_NOSIGNAL)
            while left and sent >= len(left[-1]):
                sent -= len(left.pop())
            if sent:
                left[-1] = left[-1][sent:]


def _joined(pieces: list[_wire.Buffer]) -> list[_wire.Buffer]:
    """The same bytes in fewer pieces: small neighbours are joined, big pieces are not copied."""
    joined: list[_wire.Buffer] = []
    small: list[_wire.Buffer] = []
    for piece in pieces:
        if len(piece) < _ROOM:
            small.append(piece)
        else:
            joined += [b"".join(small), piece]
            small = []
    return [piece for piece in [*joined, b"".join(small)] if len(piece)]


def _protocol(error: _wire.ProtocolError) -> _start.Leaving:
    return _start.Leaving(76, f"the host does not speak the protocol: {error}")

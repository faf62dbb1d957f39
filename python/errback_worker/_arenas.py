"""Large byte strings in memory that host and worker share; docs/protocol.md, "Buffers".

What the host has put there is read where it lies, through a ``memoryview`` that cannot be written to. Large results are
put into memory of the worker's own, which is kept and used again when the host has read them.

A function may keep a view of its argument. The host is told so before the answer, and lets that memory be. A child that a
job forks has all views that its parent had, so a fork keeps them too.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
import threading
from collections import deque
from typing import Any, Optional

import msgpack

EXTENSION = 69
"""The type of the extension value that stands for a byte string elsewhere."""

PACKET = struct.Struct("=QQQ")
"""What is said of arenas on the socket of requests: a word, the number, the size."""

COPY = 70
"""The same for one that is to be bytes of one's own."""

_REFERENCE = struct.Struct(">QQQ")
_ANNOUNCED, _HANDED_OVER, _FORGET, _RETURNED = range(1, 5)
_MOST_REFERENCES = 64
_MOST_OWN = 64
_KEEP = 128 << 20
_STEP = 65536
_PIECE = 1 << 18
_PATIENCE = 10.0
_NOTICED_AT_ONCE = 24
# Python has no name for it.
_SEAL_FUTURE_WRITE = 0x10


class _Theirs:
    """An arena of the host's."""

    def __init__(self, memory: mmap.mmap, size: int, handed_over: bool) -> None:
        self.memory = memory
        self.size = size
        self.handed_over = handed_over
        self.used = 0
        self.forks = 0
        self.kept = False


class _Own:
    """An arena of this worker's."""

    def __init__(self, number: int, memory: mmap.mmap, size: int) -> None:
        self.number = number
        self.memory = memory
        self.size = size
        self.lent = 0


class Arenas:
    """Both kinds, for one worker."""

    def __init__(self, share_from: int, memory_limit: Optional[int], requests: socket.socket) -> None:
        self.share_from = share_from
        self._requests = requests
        self._keep = _KEEP if memory_limit is None else min(_KEEP, memory_limit // 8)
        # What the thread that reads requests has brought. The lock protects nothing else.
        self._packets: deque[tuple[int, int, int, list[int]]] = deque()
        self._more = threading.Condition()
        self._theirs: dict[int, _Theirs] = {}
        # Those that could not be mapped, or that a call has waited for in vain: it asks for each of its values again.
        self._missing: set[int] = set()
        self._in_use: set[int] = set()
        self._uses = 0
        self._forks = 0
        self._own: dict[int, _Own] = {}
        self._free: list[_Own] = []
        self._last_number = 0
        # What the answer refers to that is being encoded, by the value that was put there.
        self._placed: dict[int, tuple[Any, _Own, msgpack.ExtType]] = {}
        self._notice: dict[str, list[int]] = {"kept": [], "freed": [], "forgotten": [], "gone": []}
        os.register_at_fork(before=self._note_fork)

    def _note_fork(self) -> None:
        self._forks += 1

    def bring(self, packet: bytes, descriptors: list[int]) -> None:
        """A packet has come. On the thread that reads them."""
        word, number, size = PACKET.unpack(packet)
        with self._more:
            self._packets.append((word, number, size, descriptors))
            self._more.notify()

    def _look(self) -> None:
        while self._packets:
            word, number, size, descriptors = self._packets.popleft()
            if word in (_ANNOUNCED, _HANDED_OVER):
                self._missing.add(number)
                if descriptors:
                    self._map(number, size, descriptors[0], word == _HANDED_OVER)
            elif word == _FORGET:
                self._drop(number)
            elif word == _RETURNED and number in self._own:
                own = self._own[number]
                own.lent -= 1
                if not own.lent:
                    self._free.append(own)
            for descriptor in descriptors:
                os.close(descriptor)

    def _map(self, number: int, size: int, descriptor: int, handed_over: bool) -> None:
        needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _SEAL_FUTURE_WRITE
        for keep in (self._keep, 0):
            try:
                sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & needed == needed
                if sealed and os.fstat(descriptor).st_size == size:
                    memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
                    self._theirs[number] = _Theirs(memory, size, handed_over)
                    self._missing.discard(number)
                return
            except (OSError, ValueError, OverflowError):
                # What is mapped and not read may have taken the room. Without it, the call that needs it fails.
                self._shrink(keep)

    def _drop(self, number: int) -> None:
        theirs = self._theirs.pop(number, None)
        if theirs is not None and not _is_read(theirs.memory):
            theirs.memory.close()

    def view(self, content: bytes) -> memoryview:
        """The bytes that a reference means.

        :raises ValueError: they are not there.
        """
        number, offset, length = _REFERENCE.unpack(content)
        self._look()
        if number not in self._theirs and number not in self._missing:
            self._await(number)
        theirs = self._theirs.get(number)
        if theirs is None:
            # Next time it is to be announced again.
            if number not in self._notice["forgotten"]:
                self._notice["forgotten"].append(number)
            raise ValueError(f"there is no shared memory of the number {number}")
        if offset + length > theirs.size:
            raise ValueError("a buffer behind the end of its shared memory")
        self._uses += 1
        theirs.used = self._uses
        if not theirs.kept:
            theirs.forks = self._forks
        self._in_use.add(number)
        return memoryview(theirs.memory)[offset : offset + length]

    def _await(self, number: int) -> None:
        """It was sent before the call. The thread that reads it may not have come so far."""
        with self._more:
            self._more.wait_for(lambda: any(packet[1] == number for packet in self._packets), _PATIENCE)
        self._look()
        if number not in self._theirs:
            self._missing.add(number)

    def place(self, value: Any) -> Any:
        """A reference to a copy of these bytes, if that is what should be sent; else the value itself."""
        known = self._placed.get(id(value))
        if known is not None:
            return known[2]
        with memoryview(value) as view:
            size = view.nbytes
            if size < self.share_from or len(self._placed) == _MOST_REFERENCES or not view.c_contiguous:
                return value
            own = self._take(size)
            if own is None:
                return value
            with memoryview(own.memory) as memory:
                memory[:size] = view.cast("B") if view.ndim != 1 or view.format != "B" else view
        reference = msgpack.ExtType(EXTENSION, _REFERENCE.pack(own.number, 0, size))
        # The value is held, so that no other has its id meanwhile.
        self._placed[id(value)] = (value, own, reference)
        return reference

    def place_array(self, owner: Any, data: Any) -> Any:
        """The same for the bytes of an array, which may be asked for again while it is encoded."""
        known = self._placed.get(id(owner))
        if known is not None:
            return known[2]
        reference = self.place(data)
        if reference is not data:
            self._placed[id(owner)] = (owner, *self._placed.pop(id(data))[1:])
        return reference

    def place_members(self, value: Any) -> Any:
        """The same for a whole result: for its bytes, or those that are members of it."""
        kind = type(value)
        if kind in _BYTES:
            return self.place(value)
        if kind in (list, tuple) and len(value) <= _MOST_REFERENCES:
            if not _BYTES.isdisjoint(map(type, value)):
                return [self.place(item) if type(item) in _BYTES else item for item in value]
        elif kind is dict and len(value) <= _MOST_REFERENCES:
            if not _BYTES.isdisjoint(map(type, value.values())):
                return {key: self.place(item) if type(item) in _BYTES else item for key, item in value.items()}
        return value

    def _take(self, size: int) -> Optional[_Own]:
        self._look()
        enough = [own for own in self._free if size <= own.size <= 2 * size + _STEP]
        if enough:
            own = min(enough, key=lambda own: own.size)
            self._free.remove(own)
            return own
        if len(self._own) >= _MOST_OWN:
            self._free_own(0)
            return None
        return self._make(-(-size // _STEP) * _STEP)

    def _make(self, size: int) -> Optional[_Own]:
        descriptor = -1
        try:
            descriptor = os.memfd_create("errback", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            # In pieces: a signal takes back what one call has made.
            for start in range(0, size, _PIECE):
                os.posix_fallocate(descriptor, start, min(_PIECE, size - start))
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            memory = mmap.mmap(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
            self._last_number += 1
            own = _Own(self._last_number, memory, size)
            word = _ANNOUNCED if size <= self._keep else _HANDED_OVER
            self._requests.sendmsg(
                [PACKET.pack(word, own.number, size)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))],
                socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
            )
        except (OSError, ValueError, OverflowError, MemoryError):
            return None
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if word == _ANNOUNCED:
            self._own[own.number] = own
        return own

    def settle(self, sent: bool) -> None:
        """The answer has been encoded; or, if it is not `sent`, it has become an error."""
        for _, own, _ in self._placed.values():
            if own.number not in self._own:
                # Handed over: the host lets go of it.
                own.memory.close()
            elif sent:
                own.lent += 1
            else:
                self._free.append(own)
        self._placed.clear()

    def _free_own(self, keep: int) -> None:
        while self._free and sum(own.size for own in self._free) > keep:
            own = self._free.pop(0)
            del self._own[own.number]
            own.memory.close()
            self._notice["gone"].append(own.number)

    def finish_call(self) -> list[dict[str, list[int]]]:
        """A call has been answered. What the host has to know before that."""
        if self._packets:
            self._look()
        for number, theirs in list(self._theirs.items()):
            is_read = _is_read(theirs.memory) or theirs.forks != self._forks
            if is_read and not theirs.kept and number in self._in_use:
                theirs.kept = True
                self._notice["kept"].append(number)
            elif theirs.kept and not is_read:
                theirs.kept = False
                self._notice["freed"].append(number)
            if theirs.handed_over and not theirs.kept:
                self._drop(number)
        self._in_use.clear()
        self._missing.clear()
        self._shrink(self._keep)
        self._free_own(self._keep)
        return self._notices()

    def _shrink(self, keep: int) -> None:
        idle = [(theirs.used, number) for number, theirs in self._theirs.items() if not _is_read(theirs.memory)]
        left = sum(self._theirs[number].size for _, number in idle)
        for _, number in sorted(idle):
            if left <= keep:
                break
            left -= self._theirs[number].size
            self._drop(number)
            self._notice["forgotten"].append(number)

    def _notices(self) -> list[dict[str, list[int]]]:
        notices = []
        while any(self._notice.values()):
            notices.append({name: numbers[:_NOTICED_AT_ONCE] for name, numbers in self._notice.items() if numbers})
            self._notice = {name: numbers[_NOTICED_AT_ONCE:] for name, numbers in self._notice.items()}
        return notices


_BYTES = frozenset((bytes, bytearray, memoryview))


def _is_read(memory: mmap.mmap) -> bool:
    """Whether there is a view of it. A memory that cannot be written to cannot be resized either; what is looked at first
    is whether there are views."""
    try:
        memory.resize(len(memory))
    except BufferError:
        return True
    except (TypeError, ValueError, SystemError, OSError):
        pass
    return False


def supported() -> bool:
    """Whether this system and this Python have what it takes."""
    if not (hasattr(os, "memfd_create") and hasattr(fcntl, "F_GET_SEALS") and hasattr(os, "posix_fallocate")):
        return False
    try:
        descriptor = os.memfd_create("errback", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            memory = mmap.mmap(descriptor, mmap.PAGESIZE, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return False
    view = memoryview(memory)
    part = view[1:2]
    view.release()
    seen = _is_read(memory)
    part.release()
    return seen and not _is_read(memory)


def reader(arenas: Arenas) -> Any:
    """What ``msgpack`` asks about extension values."""

    def read(code: int, content: bytes) -> Any:
        if code in (EXTENSION, COPY) and len(content) == _REFERENCE.size:
            view = arenas.view(content)
            return view if code == EXTENSION else bytes(view)
        return msgpack.ExtType(code, content)

    return read

"""The bytes between host and worker: frames' bodies into messages, and answers into bytes.

``msgpack`` does the work. What it does not tell apart is told apart here, once it has failed: bytes that are no message,
which end the worker, from values that Python cannot hold, which fail one job. So the usual case pays for nothing.
"""

from __future__ import annotations

import gc
import struct
from itertools import repeat
from typing import Any, Iterator, Optional, Union

import msgpack

from errback_worker import _values

MAX_DEPTH = 512
"""How deep arrays and maps may nest in arguments, results and errors."""

MAX_FRAME = 1 << 30
"""The longest body of a frame, until the host says otherwise."""

MIN_FRAME = 1024
"""The smallest that can be agreed on."""

MAP = "errback.map"
"""The name under which a chunk of calls comes."""

EACH = "errback.each"
"""The same for calls of one argument, each of which is there without an array around it."""

SIMPLE = frozenset((type(None), bool, int, float, str, bytes))
"""The types of values that nobody can change, and that have nothing in them."""

_KEEP_BUFFER = 1 << 20
_CONTAINERS = frozenset((list, dict))
_KNOWN = SIMPLE | _CONTAINERS
_KNOWN_RESULTS = _KNOWN | frozenset((tuple,))
_PAIR = b"\x92\xc0"
_ALL = b"\x81\xa3all"
_ANSWER = struct.Struct(">IBBBQB")
_ERROR_ANSWER = struct.Struct(">IBBBQ")

Buffer = Union[bytes, bytearray, memoryview]


class ProtocolError(Exception):
    """The host does not speak the protocol."""


class Undecodable:
    """What stands for arguments that MessagePack holds and Python does not: a string that is not UTF-8, say."""

    def __init__(self, why: str) -> None:
        self.why = why


class Patchy(list[Any]):
    """The calls of a chunk, of which some may be :class:`Undecodable`."""


class EncodeError(Exception):
    """A result that cannot be sent; the message names the place in it."""


_options: dict[str, Any] = {"raw": False, "strict_map_key": False, "use_list": True}


def read_extensions(hook: Any) -> None:
    """Has extension values read by `hook` from now on."""
    _options["ext_hook"] = hook


def unpack(body: Buffer) -> Any:
    """One MessagePack value, as plain Python values."""
    return msgpack.unpackb(body, **_options)


def parse(body: Buffer) -> list[Any]:
    """One message: ``[0, id, task, args]`` or ``[2, method, params]``.

    In the place of ``args``, or of the arguments of one call of a chunk, there may be an :class:`Undecodable`.
    """
    try:
        message = unpack(body)
    except MemoryError:
        raise
    except Exception as error:
        return _parse_slowly(memoryview(body), error)
    if type(message) is list and message:
        kind = message[0]
        if type(kind) is int:
            if kind == 0 and len(message) == 4:
                _, id, name, value = message
                if type(id) is not int or id < 0:
                    raise ProtocolError("a call whose id is no unsigned integer")
            elif kind == 2 and len(message) == 3:
                _, name, value = message
            elif kind == 1:
                raise ProtocolError("an answer where a call was due")
            else:
                raise ProtocolError(f"a message of kind {kind} with {len(message)} elements")
            if type(name) is not str:
                raise ProtocolError("a name that is no string")
            if type(value) is not list:
                raise ProtocolError("arguments that are no array")
            # So many levels take so many bytes.
            if len(body) > MAX_DEPTH:
                _check_depth(value)
            return message
    raise ProtocolError("a value that is no message")


def _check_depth(value: list[Any]) -> None:
    """Goes down level by level, in C where a level is flat: an array of a million numbers costs a few milliseconds."""
    level = gc.get_referents(value)
    for _ in range(MAX_DEPTH - 1):
        inner = gc.get_referents(*level)
        # What is empty itself is no deeper than the limit here.
        if not inner:
            return
        types = set(map(type, level))
        # Simple values refer to nothing, and may stay. Extension types do.
        if not types <= _KNOWN:
            if types.isdisjoint(_CONTAINERS):
                return
            inner = gc.get_referents(*[item for item in level if type(item) in _CONTAINERS])
        level = inner
    if not _CONTAINERS.isdisjoint(map(type, level)):
        raise ProtocolError(f"nested deeper than {MAX_DEPTH}")


def _parse_slowly(body: memoryview, error: Exception) -> list[Any]:
    """Bad bytes, or a good message with a value that Python cannot hold?"""
    scanner = Scanner(body)
    length = scanner.array()
    kind = scanner.unsigned() if length else 255
    if kind == 0 and length == 4:
        id = scanner.unsigned()
        task = scanner.text()
        start = scanner.at
        Scanner(body, start).array()
        scanner.value()
        scanner.end()
        return [0, id, task, _arguments(body, task, start, error)]
    if kind == 2 and length == 3:
        method = scanner.text()
        Scanner(body, scanner.at).array()
        scanner.value()
        scanner.end()
        return [2, method, []]
    raise ProtocolError(f"a message of kind {kind} with {length} elements")


def _arguments(body: memoryview, task: str, start: int, error: Exception) -> Any:
    """Arguments one by one. A chunk's are looked at by calls, so that one that is unreadable fails alone."""
    scanner = Scanner(body, start)
    count = scanner.array()
    if task in (MAP, EACH) and count == 2:
        one = _call_arguments if task == MAP else _argument
        try:
            name = scanner.text()
            calls = Patchy(one(scanner) for _ in range(scanner.array()))
        except ProtocolError as fault:
            return Undecodable(f"not a task and an array of calls: {fault}")
        return [name, calls]
    return _call_arguments(Scanner(body, start), error)


def _argument(scanner: Scanner) -> Any:
    value = scanner.value()
    try:
        return unpack(value)
    except MemoryError:
        raise
    except Exception as fault:
        return Undecodable(f"argument 1 cannot be read: {type(fault).__name__}: {fault}")


def _call_arguments(scanner: Scanner, error: Optional[Exception] = None) -> Any:
    inner = Scanner(scanner.body, scanner.at)
    value = scanner.value()
    try:
        return unpack(value)
    except MemoryError:
        raise
    except Exception as fault:
        error = fault
    try:
        count = inner.array()
    except ProtocolError:
        return Undecodable(str(error))
    for number in range(1, count + 1):
        try:
            unpack(inner.value())
        except Exception as fault:
            return Undecodable(f"argument {number} cannot be read: {type(fault).__name__}: {fault}")
    return Undecodable(f"the arguments cannot be read: {error}")


class Scanner:
    """Walks over MessagePack without making anything of it. Slow, and only for what ``msgpack`` has refused."""

    def __init__(self, body: memoryview, at: int = 0) -> None:
        self.body = body
        self.at = at

    def value(self) -> memoryview:
        """Passes over one value, and gives its bytes."""
        start = self.at
        # How many values each open array or map still needs, the innermost last.
        needed: list[int] = []
        while True:
            values = self._head()
            if values is not None and len(needed) == MAX_DEPTH:
                raise ProtocolError(f"nested deeper than {MAX_DEPTH}")
            if values:
                needed.append(values)
                continue
            while needed:
                needed[-1] -= 1
                if needed[-1]:
                    break
                needed.pop()
            else:
                return self.body[start : self.at]

    def array(self) -> int:
        """The length of an array."""
        marker = self._byte()
        if 0x90 <= marker <= 0x9F:
            return marker & 0x0F
        if marker in (0xDC, 0xDD):
            return self._number(2 << (marker - 0xDC))
        raise ProtocolError(f"an array was due, and the marker {marker:02x} came")

    def text(self) -> str:
        """A string."""
        marker = self._byte()
        if 0xA0 <= marker <= 0xBF:
            length = marker & 0x1F
        elif 0xD9 <= marker <= 0xDB:
            length = self._number(1 << (marker - 0xD9))
        else:
            raise ProtocolError(f"a string was due, and the marker {marker:02x} came")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError:
            raise ProtocolError("a name that is not UTF-8") from None

    def unsigned(self) -> int:
        """An integer that is not negative."""
        marker = self._byte()
        if marker <= 0x7F:
            return marker
        if 0xCC <= marker <= 0xCF:
            return self._number(1 << (marker - 0xCC))
        raise ProtocolError(f"an unsigned integer was due, and the marker {marker:02x} came")

    def end(self) -> None:
        """Nothing may follow."""
        extra = len(self.body) - self.at
        if extra:
            raise ProtocolError(f"{extra} bytes after the message in one frame")

    def _head(self) -> Optional[int]:
        """Passes over a marker and the bytes that belong to it. The number of values that do, of an array or a map."""
        marker = self._byte()
        if marker <= 0x7F or marker >= 0xE0 or marker in (0xC0, 0xC2, 0xC3):
            return None
        if marker <= 0x8F:
            return 2 * (marker & 0x0F)
        if marker <= 0x9F:
            return marker & 0x0F
        if marker <= 0xBF:
            self._take(marker & 0x1F)
        elif marker == 0xC1:
            raise ProtocolError("the marker c1, which MessagePack does not use")
        elif 0xC4 <= marker <= 0xC6:
            self._take(self._number(1 << (marker - 0xC4)))
        elif 0xC7 <= marker <= 0xC9:
            # Extension types: one byte of type, then the data.
            self._take(self._number(1 << (marker - 0xC7)) + 1)
        elif 0xCA <= marker <= 0xCB:
            self._take(4 << (marker - 0xCA))
        elif 0xCC <= marker <= 0xCF:
            self._take(1 << (marker - 0xCC))
        elif 0xD0 <= marker <= 0xD3:
            self._take(1 << (marker - 0xD0))
        elif 0xD4 <= marker <= 0xD8:
            self._take(1 + (1 << (marker - 0xD4)))
        elif 0xD9 <= marker <= 0xDB:
            self._take(self._number(1 << (marker - 0xD9)))
        elif marker <= 0xDD:
            return self._number(2 << (marker - 0xDC))
        else:
            return 2 * self._number(2 << (marker - 0xDE))
        return None

    def _byte(self) -> int:
        return self._take(1)[0]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, length: int) -> memoryview:
        left = len(self.body) - self.at
        if length > left:
            raise ProtocolError(f"a length of {length} where {left} bytes are left")
        taken = self.body[self.at : self.at + length]
        self.at += length
        return taken


class Encoder:
    """Makes answers of results and errors. No frame of its is longer than ``max_frame``."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.max_frame = max(MIN_FRAME, min(max_frame, 2**32 - 1))
        self._packer = _new_packer()
        self._spines: dict[int, Optional[tuple[Any, list[Any], int]]] = {}

    def answer(self, id: int, value: Any) -> list[Buffer]:
        """``[1, id, nil, value]``, in pieces to be sent behind each other."""
        # What is many bytes is sent from where it lies.
        if type(value) is bytes and len(value) > 0xFFFF:
            size = len(value)
            if size > 0xFFFFFFFF:
                raise EncodeError(f"result: {size} bytes cannot be sent at once")
            pieces: list[Buffer] = [b"\xc6" + size.to_bytes(4, "big"), value]
            length = size + 5
        else:
            piece = self.value(value, 0)
            pieces = [piece]
            length = len(piece)
        return self._framed(id, pieces, length)

    def results(self, id: int, results: Results) -> list[Buffer]:
        """The answer to a chunk."""
        pieces = results.pieces()
        return self._framed(id, pieces, sum(map(len, pieces)))

    def error(self, id: int, error: dict[str, Any]) -> list[Buffer]:
        """``[1, id, error, nil]``; with fewer and shorter texts where a small ``max_frame`` asks for it."""
        for shorter in _ever_shorter(error):
            packed = self._pack(shorter)
            length = 11 + len(packed) + 1
            if length <= self.max_frame:
                return [_ERROR_ANSWER.pack(length, 0x94, 0x01, 0xCF, id) + packed + b"\xc0"]
        raise AssertionError("MIN_FRAME is enough for an error without texts")

    def _framed(self, id: int, pieces: list[Buffer], length: int) -> list[Buffer]:
        length += _ANSWER.size - 4
        if length > self.max_frame:
            raise EncodeError(f"result: it needs {length} bytes, and a frame may have {self.max_frame}")
        return [_ANSWER.pack(length, 0x94, 0x01, 0xCF, id, 0xC0), *pieces]

    def value(self, value: Any, depth: int) -> Buffer:
        """One value, that has ``depth`` arrays around it; slowly where ``msgpack`` says no, to find out why."""
        try:
            packed: bytes = self._packer.pack(value)
            # So many levels take so many bytes.
            if len(packed) > MAX_DEPTH - depth and not _surely_shallow(value, MAX_DEPTH - depth):
                return self._pack_in_spine(value, depth)
        except Exception:
            return _encode_slowly(value, depth)
        if len(packed) > _KEEP_BUFFER:
            self._packer = _new_packer()
        return packed

    def _pack_in_spine(self, value: Any, depth: int) -> Buffer:
        """The limit of ``msgpack`` is another one in each of its versions. This moves it to where it should be."""
        if depth not in self._spines:
            self._spines[depth] = _spine(depth)
        spine = self._spines[depth]
        if spine is None:
            return _encode_slowly(value, depth)
        outermost, innermost, levels = spine
        innermost[0] = value
        try:
            packed: bytes = self._packer.pack(outermost)
        finally:
            innermost[0] = None
        self._packer = _new_packer()
        return memoryview(packed)[levels:]

    def _pack(self, value: Any) -> bytes:
        """One of the worker's own, of which it is known that it can be packed."""
        packed: bytes = self._packer.pack(value)
        return packed

    def error_pair(self, error: dict[str, Any]) -> Buffer:
        """``[error, nil]``."""
        return b"\x92" + self._pack(error) + b"\xc0"

    def bare(self, values: list[Any]) -> Buffer:
        """Many simple values, or pairs of such, behind each other."""
        packed = self._pack(values)
        if len(packed) > _KEEP_BUFFER:
            self._packer = _new_packer()
        return memoryview(packed)[len(_array_header(len(values))) :]


class Results:
    """The results of a chunk, as they come. One that does not fit behind the others is an error of its own.

    Until one fails, they are bare values, as the shorter form of the answer wants them; and those that nobody can change
    are not even encoded.
    """

    def __init__(self, encoder: Encoder, count: int) -> None:
        self._encoder = encoder
        self._count = count
        self._room = encoder.max_frame - (_ANSWER.size - 4) - len(_array_header(count))
        # Encoded values and lists of simple ones, in their order, as long as none has failed. How long the encoded are.
        self._bare: list[Union[list[Any], Buffer]] = []
        self._length = 0
        # After that.
        self._failed = False
        self._pairs: list[Buffer] = []
        self.simple: list[Any] = []
        """Values of the types in ``SIMPLE`` that come behind all others: many are encoded in one go."""

    def value(self, value: Any) -> None:
        """Adds a value. It is encoded now: the task may change it later."""
        self._end_simple()
        # Two levels are around it in the answer, in either form.
        piece = self._encoder.value(value, 2)
        if self._failed:
            return self._add_value(piece)
        self._check_room(len(piece), self._room - self._length)
        self._length += len(piece)
        self._bare.append(piece)

    def error(self, error: dict[str, Any]) -> None:
        """Adds an error."""
        self._fail()
        self._add_error(error)

    def pieces(self) -> list[Buffer]:
        """``{"all": [value, ...]}``, or pairs, ``[nil, value]`` and ``[error, nil]``, if one has failed."""
        self._end_simple()
        if not self._failed:
            pieces: list[Buffer] = [_ALL + _array_header(self._count)]
            try:
                pieces.extend(self._encoder.bare(part) if isinstance(part, list) else part for part in self._bare)
                if sum(map(len, pieces)) - len(pieces[0]) <= self._room - len(_ALL):
                    return pieces
            except Exception:
                # One of them is too big an integer, or no Unicode: it is found below.
                pass
        self._fail()
        return [_array_header(self._count), *self._pairs]

    def _end_simple(self) -> None:
        values = self.simple
        if values:
            self.simple = []
            if self._failed:
                self._add_simple(values)
            else:
                self._bare.append(values)

    def _fail(self) -> None:
        """Makes pairs of what is there."""
        self._end_simple()
        self._failed = True
        bare, self._bare = self._bare, []
        for part in bare:
            if isinstance(part, list):
                self._add_simple(part)
            else:
                self._add_or_fail(part)

    def _add_simple(self, values: list[Any]) -> None:
        try:
            piece = self._encoder.bare(list(zip(repeat(None), values)))
        except Exception:
            # One of them is too big an integer, or no Unicode: it is found below.
            piece = None
        if piece is not None and len(piece) <= self._room:
            return self._add(piece)
        for value in values:
            try:
                encoded = self._encoder.value(value, 2)
            except EncodeError as error:
                self._add_error({"kind": "encode_result", "message": str(error)})
            else:
                self._add_or_fail(encoded)

    def _add_or_fail(self, piece: Buffer) -> None:
        try:
            self._add_value(piece)
        except EncodeError as error:
            self._add_error({"kind": "encode_result", "message": str(error)})

    def _add_value(self, piece: Buffer) -> None:
        self._check_room(len(_PAIR) + len(piece), self._room)
        self._add(_PAIR)
        self._add(piece)

    def _check_room(self, length: int, room: int) -> None:
        if length > room:
            raise EncodeError(
                f"result: it needs {length} bytes, and {room} are left for the results of this chunk"
            )

    def _add_error(self, error: dict[str, Any]) -> None:
        for shorter in _ever_shorter(error):
            piece = self._encoder.error_pair(shorter)
            if len(piece) <= self._room:
                return self._add(piece)
        raise EncodeError("the results of this chunk do not fit into a frame")

    def _add(self, piece: Buffer) -> None:
        self._room -= len(piece)
        self._pairs.append(piece)


def _new_packer() -> Any:
    return msgpack.Packer(default=_values.plain, use_bin_type=True, unicode_errors="strict")


def _levels_of_msgpack() -> int:
    """How deep a value may nest for this version of ``msgpack``: 512 or 1025, as far as is known."""
    value: Any = ()
    for levels in range(1, 1100):
        try:
            _new_packer().pack(value)
        except ValueError:
            return levels - 1
        except RecursionError:
            # Written in Python, it comes to the end of the stack first. That is no exact limit.
            break
        value = (value,)
    return 0


def _spine(depth: int) -> Optional[tuple[Any, list[Any], int]]:
    """Arrays around a value, so many that ``msgpack`` refuses it where it nests too deep behind ``depth`` others.

    The outermost, the innermost, and how many they are: each is a byte of the result that is not sent.
    """
    levels = _levels_of_msgpack() - MAX_DEPTH + depth
    if levels < 1:
        return None
    innermost: list[Any] = [None]
    outermost = innermost
    for _ in range(levels - 1):
        outermost = [outermost]
    return outermost, innermost, levels


def _surely_shallow(value: Any, levels: int) -> bool:
    """Whether a value nests no deeper than this, as far as a look says that knows only plain types."""
    if type(value) in SIMPLE:
        return True
    if type(value) not in _KNOWN_RESULTS:
        return False
    level = [value]
    for _ in range(levels):
        level = gc.get_referents(*level)
        if SIMPLE.issuperset(map(type, level)):
            return True
        if not _KNOWN_RESULTS.issuperset(map(type, level)):
            return False
    return False


def _array_header(count: int) -> bytes:
    if count <= 15:
        return bytes((0x90 | count,))
    if count <= 0xFFFF:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def _map_header(count: int) -> bytes:
    if count <= 15:
        return bytes((0x80 | count,))
    if count <= 0xFFFF:
        return b"\xde" + count.to_bytes(2, "big")
    return b"\xdf" + count.to_bytes(4, "big")


def _ever_shorter(error: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield error
    short = {"kind": error["kind"], "type": error.get("type", "")[:128], "message": error["message"][:256]}
    yield short
    yield {"kind": error["kind"]}


def _encode_slowly(root: Any, depth: int) -> bytes:
    """Encodes what ``msgpack`` has refused, or says at which place it cannot be.

    It knows one level more than ``msgpack`` does, the 512th. ``depth`` is how many levels are around it already.
    """
    packer = _new_packer()
    pieces: list[bytes] = []
    # The open arrays and maps, the innermost last: what is still to come of each, and which step leads there.
    open_values: list[Iterator[tuple[str, Any]]] = []
    open_containers: list[Any] = []
    steps: list[str] = []
    value = root
    while True:
        try:
            value = _values.converted(value)
            if type(value) is msgpack.ExtType:
                pieces.append(packer.pack(value))
            elif isinstance(value, (dict, list, tuple)):
                if any(value is container for container in open_containers):
                    raise ValueError("it contains itself")
                if depth + len(open_values) == MAX_DEPTH:
                    raise ValueError(f"it nests deeper than {MAX_DEPTH}")
                header = _map_header if isinstance(value, dict) else _array_header
                children = list(_children(value))
                pieces.append(header(len(value)))
                open_values.append(iter(children))
                open_containers.append(value)
                steps.append("")
            else:
                pieces.append(packer.pack(value))
        except BaseException as error:
            raise EncodeError(f"result{_path(steps)}: {_why(value, error)}") from None
        while open_values:
            following = next(open_values[-1], None)
            if following is not None:
                steps[-1], value = following
                break
            open_values.pop()
            open_containers.pop()
            steps.pop()
        else:
            return b"".join(pieces)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            name = _short(key)
            yield f" (the key {name})", key
            yield f"[{name}]", item
    else:
        for number, item in enumerate(value):
            yield f"[{number}]", item


def _short(key: Any) -> str:
    """A key as it is written in a program. Only of plain ones: others have a ``repr`` of their own."""
    if type(key) in (int, float, bool, str, bytes, type(None)):
        text = ascii(key) if type(key) is not str or not key.isprintable() else repr(key)
        return text if len(text) <= 60 else text[:57] + "..."
    return f"<{type(key).__name__}>"


def _path(steps: list[str]) -> str:
    path = "".join(steps)
    return path if len(path) <= 240 else f"{path[:120]}...{path[-100:]}"


def _why(value: Any, error: BaseException) -> str:
    if isinstance(error, OverflowError) and isinstance(value, int):
        # Without the C extension.
        return f"an integer of {value.bit_length()} bits cannot be sent; 64 are the most"
    if isinstance(error, UnicodeEncodeError):
        return "a string with a lone surrogate cannot be sent; bytes can, such as os.fsencode makes"
    text = str(error) if isinstance(error, (TypeError, ValueError)) else ""
    return text or f"{type(error).__name__} while it was encoded"

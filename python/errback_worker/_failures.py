"""An exception as a map that travels: what it is, what it says, what caused it, and where.

An exception is user code: its ``__str__`` may raise, its attributes may be anything, its causes may go round in a
circle. Whatever it does, the description is a map of strings.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Any, Iterator, Optional

MAX_TEXT = 65536
"""The longest text, in bytes."""

MAX_MEMBERS = 50
"""The most causes, bases and notes, and the most members of groups together."""

_MARK = " [... cut here]"
_MIDDLE = "\n[... cut here ...]\n"
_FRAMES = 1000


def error(kind: str, message: str) -> dict[str, Any]:
    """An error of the worker's own: there is no exception."""
    return {"kind": kind, "message": text(message)}


def describe(failure: BaseException) -> dict[str, Any]:
    """The error map of what a task raised."""
    try:
        return _describe(failure, [MAX_MEMBERS])
    except BaseException as again:
        # Out of memory, or out of stack: say less.
        failure.__traceback__ = None
        failure.__context__ = None
        again.__traceback__ = None
        return {"kind": "error", "type": type_name(type(failure)), "message": message(failure)}


def _describe(failure: BaseException, members_left: list[int]) -> dict[str, Any]:
    return {
        "kind": "error",
        "type": type_name(type(failure)),
        "message": message(failure),
        "chain": [f"{type_name(type(cause))}: {message(cause)}" for cause in _causes(failure)],
        "backtrace": backtrace(failure),
        "location": None,
        "value": None,
        "bases": _bases(type(failure)),
        "notes": _notes(failure),
        "exceptions": [_describe(member, members_left) for member in _members(failure, members_left)],
    }


def type_name(kind: type) -> str:
    """``builtins.ValueError``."""
    try:
        module = type.__getattribute__(kind, "__module__")
        qualname = type.__getattribute__(kind, "__qualname__")
    except BaseException:
        return "unknown"
    return text(f"{module}.{qualname}" if type(module) is str else str.__str__(qualname))


def message(failure: BaseException) -> str:
    """What an exception says, or why it says nothing."""
    try:
        return text(str(failure))
    except BaseException as error:
        return f"<its __str__ raised {type_name(type(error))}>"


def text(anything: str) -> str:
    """A text that can be sent: with surrogates written out, and cut where it is too long."""
    encoded = str.encode(anything, "utf-8", "backslashreplace")
    if len(encoded) > MAX_TEXT:
        return encoded[: MAX_TEXT - len(_MARK)].decode("utf-8", "ignore") + _MARK
    return encoded.decode("utf-8")


def backtrace(failure: BaseException) -> Optional[str]:
    """The traceback as Python prints it, without the worker's own frames. Of a long one, its beginning and its end."""
    outermost = _users_part(failure.__traceback__)
    try:
        summary = traceback.TracebackException(type(failure), failure, outermost, limit=-_FRAMES)
        lines = "".join(summary.format())
    except BaseException:
        try:
            lines = "".join(traceback.format_tb(outermost, limit=-_FRAMES))
        except BaseException:
            return None
    encoded = lines.encode("utf-8", "backslashreplace")
    if len(encoded) > MAX_TEXT:
        half = (MAX_TEXT - len(_MIDDLE)) // 2
        head, tail = encoded[:half].decode("utf-8", "ignore"), encoded[-half:].decode("utf-8", "ignore")
        return head + _MIDDLE + tail
    return encoded.decode("utf-8")


def _users_part(outermost: Optional[TracebackType]) -> Optional[TracebackType]:
    while outermost is not None:
        name = outermost.tb_frame.f_globals.get("__name__")
        if not (type(name) is str and (name.startswith("errback_worker.") or name.startswith("importlib"))):
            break
        outermost = outermost.tb_next
    return outermost


def _causes(failure: BaseException) -> Iterator[BaseException]:
    seen = {id(failure)}
    cause: Optional[BaseException] = failure
    for _ in range(MAX_MEMBERS):
        assert cause is not None
        if cause.__cause__ is not None:
            cause = cause.__cause__
        elif cause.__suppress_context__:
            return
        else:
            cause = cause.__context__
        if cause is None or id(cause) in seen:
            return
        seen.add(id(cause))
        yield cause


def _bases(kind: type) -> list[str]:
    try:
        bases = type.__getattribute__(kind, "__mro__")[1:-1]
    except BaseException:
        return []
    return [type_name(base) for base in bases[:MAX_MEMBERS]]


def _notes(failure: BaseException) -> list[str]:
    try:
        notes = getattr(failure, "__notes__", ())
    except BaseException:
        return []
    if not isinstance(notes, (list, tuple)):
        return []
    return [text(note) for note in list(notes[:MAX_MEMBERS]) if isinstance(note, str)]


def _members(failure: BaseException, left: list[int]) -> Iterator[BaseException]:
    if not isinstance(failure, _groups()):
        return
    try:
        members = list(getattr(failure, "exceptions"))
    except BaseException:
        return
    for member in members:
        if left[0] > 0 and isinstance(member, BaseException):
            left[0] -= 1
            yield member


def _groups() -> tuple[type, ...]:
    """The types of groups: Python's own since 3.11, and those of the backport where it is in use."""
    modules = (sys.modules.get("builtins"), sys.modules.get("exceptiongroup"))
    found = (getattr(module, "BaseExceptionGroup", None) for module in modules)
    return tuple(group for group in found if isinstance(group, type))

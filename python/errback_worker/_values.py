"""What becomes of Python's values on their way to the host, beyond those that MessagePack has itself.

What arrives there, or in a task, are plain values: nothing is turned back. The table is in the README.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional

place: Optional[Callable[[Any, Any], Any]] = None
"""While a result is encoded that may refer to shared memory: gives a reference to bytes, or the bytes themselves."""

_HINTS = {
    "set": "a list can",
    "frozenset": "a list can",
    "range": "a list can",
    "deque": "a list can",
    "generator": "a list can",
    "map": "a list can",
    "filter": "a list can",
    "zip": "a list can",
    "dict_keys": "a list can",
    "dict_values": "a list can",
    "dict_items": "a list can",
    "array": "bytes can, or a list",
    "complex": "its parts can",
    "timedelta": "its total_seconds() can",
    "coroutine": "a task is a plain function, which may use asyncio.run",
    "PosixPath": "str of it can",
    "function": "its result can",
    "type": "its name can",
}


def plain(value: Any) -> Any:
    """One step from a value that MessagePack does not have to one that it may have.

    :raises TypeError: there is none; the message is a whole sentence.
    """
    kind = type(value)
    if isinstance(value, int):
        raise TypeError(f"an integer of {value.bit_length()} bits cannot be sent; 64 are the most")
    if hasattr(kind, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in _field_names(value)}
    for module, name, convert in _CONVERTERS:
        loaded = sys.modules.get(module)
        # A value of its types cannot exist before it has been imported.
        if loaded is not None and isinstance(value, getattr(loaded, name)):
            return convert(value)
    hint = _HINTS.get(kind.__name__)
    if hint is None and isinstance(value, BaseException):
        hint = "raise it"
    article = "an" if kind.__name__[:1].lower() in "aeiou" else "a"
    raise TypeError(f"{article} {kind.__name__} cannot be sent" + (f"; {hint}" if hint else ""))


def converted(value: Any) -> Any:
    """All steps, to a value that MessagePack has."""
    for _ in range(100):
        if value is None or isinstance(value, _PLAIN):
            return value
        value = plain(value)
    raise ValueError("it is converted again and again")


_PLAIN: tuple[type, ...] = (bool, int, float, str, bytes, bytearray, memoryview, list, tuple, dict)


def _field_names(value: Any) -> list[str]:
    import dataclasses

    return [field.name for field in dataclasses.fields(value)]


def _array(value: Any) -> dict[str, Any]:
    """An array of numpy's, which is copied only if it is not in C order already."""
    import numpy

    if value.dtype.hasobject or value.dtype.names is not None:
        raise TypeError(f"a numpy array of dtype {value.dtype} cannot be sent; value.tolist() may be")
    if value.size == 0 or value.dtype.itemsize == 0:
        data: Any = b""
    else:
        data = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8).data
        if place is not None:
            data = place(value, data)
    return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}


# datetime is a date, and comes to the same text either way.
_CONVERTERS: tuple[tuple[str, str, Any], ...] = (
    ("enum", "Enum", lambda value: value.value),
    ("datetime", "date", lambda value: value.isoformat()),
    ("datetime", "time", lambda value: value.isoformat()),
    ("decimal", "Decimal", str),
    ("uuid", "UUID", lambda value: value.bytes),
    ("numpy", "ndarray", _array),
    ("numpy", "generic", lambda value: value.item()),
)


def as_numpy(value: dict[str, Any]) -> Any:
    """The numpy array that travels as ``{"dtype": str, "shape": [int, ...], "data": bytes}``.

    The array looks at the bytes where they lie, and so it cannot be written to; ``.copy()`` gives one that can.

    :raises ValueError: the number of bytes is not that of the shape.
    :raises TypeError: ``value`` is no such map, or its dtype is none of numpy's.
    """
    import numpy

    try:
        dtype, shape, data = numpy.dtype(value["dtype"]), value["shape"], value["data"]
    except (KeyError, IndexError) as error:
        raise TypeError(f"a map with dtype, shape and data was expected: {error} is missing") from None
    if 0 in shape:
        return numpy.empty(shape, dtype)
    return numpy.frombuffer(data, dtype).reshape(shape)

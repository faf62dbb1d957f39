"""What results become, and what is said of those that cannot be sent."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import random
import unittest
import uuid

import msgpack

from errback_worker import _wire, as_numpy
from tests.host import as_pairs

try:
    import numpy
except ImportError:
    numpy = None


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    when: datetime.date


Pair = collections.namedtuple("Pair", "a b")


def sent(value):
    """A value as it arrives."""
    fast = b"".join(_wire.Encoder().answer(1, value))[16:]
    assert _wire._encode_slowly(value, 0) == fast
    return msgpack.unpackb(fast, strict_map_key=False)


def refusal(value):
    encoder = _wire.Encoder()
    try:
        encoder.answer(1, value)
    except _wire.EncodeError as error:
        return str(error)
    raise AssertionError(f"{value!r} was sent")


def nested(levels, innermost=()):
    value = list(innermost)
    for _ in range(levels - 1):
        value = [value]
    return value


class Values(unittest.TestCase):
    def test_common_types(self):
        moment = datetime.datetime(2026, 11, 22, 1, 2, 3, tzinfo=datetime.timezone.utc)
        some_id = uuid.UUID(int=5)
        for value, arrives in [
            ((1, (2,)), [1, [2]]),
            (Pair(1, 2), [1, 2]),
            (bytearray(b"x"), b"x"),
            (memoryview(b"xyz")[1:], b"yz"),
            (moment, "2026-11-22T01:02:03+00:00"),
            (moment.date(), "2026-11-22"),
            (moment.time(), "01:02:03"),
            (decimal.Decimal("1.10"), "1.10"),
            (some_id, some_id.bytes),
            (Colour.RED, "red"),
            (Level.HIGH, 3),
            ([Point(1, moment.date())], [{"x": 1, "when": "2026-11-22"}]),
            (collections.Counter("aab"), {"a": 2, "b": 1}),
            ({1: {None: True}}, {1: {None: True}}),
            (2**64 - 1, 2**64 - 1),
            (-(2**63), -(2**63)),
        ]:
            self.assertEqual(sent(value), arrives)
        self.assertNotEqual(sent(float("nan")), sent(float("nan")))

    def test_refusals_name_the_place(self):
        cycle = []
        cycle.append({"again": cycle})
        for value, words in [
            ({1}, "result: a set cannot be sent; a list can"),
            ([0, 1, 2, {"x": {3}}], "result[3]['x']: a set cannot be sent; a list can"),
            ({"a": [lambda: 1]}, "result['a'][0]: a function cannot be sent; its result can"),
            ([object()], "result[0]: an object cannot be sent"),
            ({"n": 2**70}, "result['n']: an integer of 71 bits cannot be sent; 64 are the most"),
            ([-(2**64)], "result[0]: an integer of 65 bits cannot be sent; 64 are the most"),
            (["\ud800"], "result[0]: a string with a lone surrogate cannot be sent; bytes can"),
            ({"k\ud800": 1}, "result (the key 'k\\ud800'): a string with a lone surrogate"),
            ({frozenset(): 1}, "result (the key <frozenset>): a frozenset cannot be sent"),
            (cycle, "result[0]['again']: it contains itself"),
            (ValueError("x"), "result: a ValueError cannot be sent; raise it"),
            (Point, "result: a type cannot be sent; its name can"),
            ((n for n in ()), "result: a generator cannot be sent; a list can"),
            ([1j], "result[0]: a complex cannot be sent"),
        ]:
            said = refusal(value)
            self.assertTrue(said.startswith(words), said)

    def test_a_hostile_value_is_an_error_too(self):
        class Liar(list):
            def __iter__(self):
                raise SystemExit(1)

        class Field:
            __dataclass_fields__ = property(lambda self: 1 / 0)

        @dataclasses.dataclass
        class Raises:
            x: int

            def __getattribute__(self, name):
                if name == "x":
                    raise KeyError("x")
                return super().__getattribute__(name)

        for value in ([Field()], [Raises(1)]):
            self.assertIn("result[0]: ", refusal(value))
        # The C packer does not ask it for an iterator, the slow way does.
        with self.assertRaises(_wire.EncodeError):
            _wire._encode_slowly(Liar([1]), 0)

    def test_depth_is_exact(self):
        for innermost in ((), (1,), ({},)[:0]):
            sent(nested(512, innermost))
            self.assertIn("nests deeper than 512", refusal(nested(513, innermost)))
        self.assertIn("nests deeper", refusal(nested(100_000)))
        for levels, good in [(510, True), (511, False)]:
            results = _wire.Results(_wire.Encoder(), 1)
            if good:
                results.value(nested(levels))
                results.value(nested(levels, (1,)))
            else:
                with self.assertRaises(_wire.EncodeError):
                    results.value(nested(levels))

    def test_depth_of_converted_values_is_exact(self):
        @dataclasses.dataclass
        class Link:
            next: object

        for levels, good in [(512, True), (513, False)]:
            value = Link(None)
            for _ in range(levels - 1):
                value = Link(value)
            if good:
                self.assertEqual(len(sent(value)), 1)
            else:
                self.assertIn("nests deeper than 512", refusal(value))

    def test_incoming_depth_is_exact(self):
        def call(levels, innermost=b"\x90"):
            return b"\x94\x00\x01\xa1x" + b"\x91" * (levels - 1) + innermost

        for innermost in (b"\x90", b"\x91\x01", b"\x80", b"\x81\x01\x02", b"\x91\xd4\x05\x00"):
            _wire.parse(call(512, innermost))
            with self.assertRaisesRegex(_wire.ProtocolError, "nested deeper"):
                _wire.parse(call(513, innermost))
        with self.assertRaises(_wire.ProtocolError):
            _wire.parse(call(1_000_000))

    def test_any_bytes_are_a_message_or_a_protocol_error(self):
        chance = random.Random(7)
        seed = msgpack.packb([0, 1, "x:y", [1, "a", b"b", {"k": [1.5, None]}, [True]]])
        for _ in range(20_000):
            body = bytearray(seed)
            for _ in range(chance.randrange(1, 4)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            del body[chance.randrange(len(body)) + chance.randrange(2) * 100 :]
            try:
                message = _wire.parse(bytes(body))
            except _wire.ProtocolError:
                continue
            self.assertIn(message[0], (0, 2))

    def test_a_chunk_is_the_same_however_it_is_encoded(self):
        chance = random.Random(8)
        choices = [1, "x", b"y", None, True, 2.5, [1], {"a": (1,)}, {1}, "\ud800", 2**70, "long" * 50]
        for max_frame in (1024, 1 << 20):
            for _ in range(300):
                values = [chance.choice(choices) for _ in range(chance.randrange(0, 25))]
                encoder = _wire.Encoder(max_frame)
                results = _wire.Results(encoder, len(values))
                try:
                    for value in values:
                        if type(value) in _wire.SIMPLE and chance.random() < 0.9:
                            results.simple.append(value)
                            continue
                        try:
                            results.value(value)
                        except _wire.EncodeError as error:
                            results.error({"kind": "encode_result", "message": str(error)})
                    frame = b"".join(encoder.results(1, results))
                except _wire.EncodeError:
                    self.assertEqual(max_frame, 1024)
                    continue
                self.assertEqual(int.from_bytes(frame[:4], "big"), len(frame) - 4)
                self.assertLessEqual(len(frame) - 4, max_frame)
                answered = msgpack.unpackb(frame[4:])[3]
                pairs = as_pairs(answered)
                self.assertEqual(len(pairs), len(values))
                # The short form is for those of which none failed, and no other is.
                self.assertEqual(isinstance(answered, dict), all(error is None for error, _ in pairs))
                for (error, arrived), value in zip(pairs, values):
                    if error is None:
                        self.assertEqual(arrived, list(value) if isinstance(value, tuple) else sent(value))
                    else:
                        self.assertEqual(error["kind"], "encode_result")

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_numpy(self):
        for array in [
            numpy.arange(6, dtype="<i2").reshape(2, 3),
            numpy.arange(6.0).reshape(2, 3).T,
            numpy.zeros((0, 3)),
            numpy.array(5.5),
            numpy.array(["a", "bc"]),
            numpy.array(["2026-11-22"], "datetime64[D]"),
            numpy.arange(10)[::2],
        ]:
            back = as_numpy(sent([array])[0])
            numpy.testing.assert_array_equal(back, array)
            self.assertEqual((back.dtype, back.shape), (array.dtype, array.shape))
        self.assertEqual(sent([numpy.int64(3), numpy.float32(0.5), numpy.bool_(True)]), [3, 0.5, True])
        self.assertIn("dtype object cannot be sent", refusal(numpy.array([object()])))
        with self.assertRaises(TypeError):
            as_numpy({"dtype": "<i2"})


if __name__ == "__main__":
    unittest.main()

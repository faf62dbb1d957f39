"""The examples of docs/protocol.md are what is read and what is written."""

from __future__ import annotations

import json
import unittest

import msgpack

from errback_worker import _wire
from tests.host import PACKAGE

DOCUMENT = (PACKAGE.parent / "docs" / "protocol.md").read_text(encoding="utf-8")


def examples(kind):
    """The fenced blocks whose first word is `kind`: name, the message in JSON, the bytes."""
    found = []
    lines = iter(DOCUMENT.splitlines())
    for line in lines:
        if not line.startswith(f"```{kind} "):
            continue
        block = []
        for row in lines:
            if row.startswith("```"):
                break
            block.append(row)
        said = json.loads(block[0][2:]) if block[0].startswith("# ") else None
        frame = bytes.fromhex("".join(row.split("#")[0] for row in block))
        found.append((line.split(" ", 1)[1], said, frame))
    assert found, kind
    return found


def as_json(value):
    if isinstance(value, msgpack.ExtType):
        return {"ext": [value.code, value.data.hex()]}
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return value


class Document(unittest.TestCase):
    def test_examples_are_what_they_say(self):
        for name, said, frame in examples("hex"):
            with self.subTest(name):
                self.assertEqual(int.from_bytes(frame[:4], "big"), len(frame) - 4)
                self.assertEqual(as_json(msgpack.unpackb(frame[4:])), said)

    def test_calls_and_hellos_are_understood(self):
        understood = 0
        for name, said, frame in examples("hex"):
            with self.subTest(name):
                if said[0] == 1:
                    with self.assertRaisesRegex(_wire.ProtocolError, "an answer"):
                        _wire.parse(frame[4:])
                else:
                    understood += 1
                    self.assertEqual(as_json(_wire.parse(frame[4:])), said)
                    # And the slow way, which reads the same in other words.
                    self.assertEqual(_wire._parse_slowly(memoryview(frame)[4:], ValueError())[:2], said[:2])
        self.assertGreaterEqual(understood, 4)

    def test_answers_are_written_so(self):
        encoder = _wire.Encoder()
        results = _wire.Results(encoder, 2)
        results.simple.append(3)
        results.error({"kind": "panic", "message": "4?"})
        all_good = _wire.Results(encoder, 2)
        all_good.simple += [2, 3]
        written = {
            "answer": encoder.answer(7, 3),
            "chunk-answer": encoder.results(8, results),
            "each-answer": encoder.results(9, all_good),
        }
        for name, said, frame in examples("hex"):
            if name == "answer-with-error":
                error = {**said[2], "value": bytes.fromhex(said[2]["value"]["bin"])}
                written[name] = encoder.error(7, error)
            if name in written:
                self.assertEqual(b"".join(written.pop(name)), frame, name)
        self.assertEqual(written, {})

    def test_bad_bytes_are_refused(self):
        for name, _, frame in examples("hex-bad"):
            with self.subTest(name):
                length = int.from_bytes(frame[:4], "big")
                if length > _wire.MAX_FRAME:
                    continue
                self.assertEqual(length, len(frame) - 4)
                for parse in (_wire.parse, lambda body: _wire._parse_slowly(memoryview(body), ValueError())):
                    with self.assertRaises(_wire.ProtocolError):
                        parse(frame[4:])

    def test_values_of_the_table_come_back_as_they_were(self):
        rows = [row.split("|") for row in DOCUMENT.split("## Values")[1].split("##")[0].splitlines()]
        table = [row[4].strip().strip("`") for row in rows if len(row) > 5]
        values = [bytes.fromhex(digits) for digits in table if digits and set(digits) <= set("0123456789abcdef ")]
        self.assertGreater(len(values), 15)
        encoder = _wire.Encoder()
        for value in values:
            plain = _wire.unpack(value)
            self.assertEqual(b"".join(encoder.answer(7, plain)[1:]), value)
            self.assertEqual(_wire._encode_slowly(plain, 0), value)


if __name__ == "__main__":
    unittest.main()

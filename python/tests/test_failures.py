"""What is said of exceptions, whatever they do."""

from __future__ import annotations

import sys
import unittest

import msgpack

from errback_worker import _failures


def described(raising):
    try:
        raising()
    except BaseException as error:
        map = _failures.describe(error)
    # Whatever it is, it can be sent.
    return msgpack.unpackb(msgpack.packb(map))


class Application(Exception):
    pass


class Overdrawn(Application, ValueError):
    def __init__(self, amount, currency):
        super().__init__(f"by {amount} {currency}")


class Failures(unittest.TestCase):
    def test_type_bases_and_message(self):
        def raising():
            raise Overdrawn(5, "EUR")

        error = described(raising)
        here = __name__
        self.assertEqual(error["kind"], "error")
        self.assertEqual(error["type"], f"{here}.Overdrawn")
        self.assertEqual(
            error["bases"],
            [f"{here}.Application", "builtins.ValueError", "builtins.Exception", "builtins.BaseException"],
        )
        self.assertEqual(error["message"], "by 5 EUR")
        self.assertIn("in raising", error["backtrace"])
        self.assertIn('raise Overdrawn(5, "EUR")', error["backtrace"])

    def test_the_chain(self):
        def raising():
            try:
                try:
                    {}["x"]
                except KeyError:
                    raise ValueError("second")
            except ValueError as error:
                raise RuntimeError("third") from error

        self.assertEqual(described(raising)["chain"], ["builtins.ValueError: second", "builtins.KeyError: 'x'"])

        def suppressed():
            try:
                {}["x"]
            except KeyError:
                raise ValueError("alone") from None

        self.assertEqual(described(suppressed)["chain"], [])

    def test_a_chain_that_goes_round_or_on_for_ever(self):
        def circle():
            first, second = ValueError("1"), ValueError("2")
            first.__cause__, second.__cause__ = second, first
            raise first

        self.assertEqual(described(circle)["chain"], ["builtins.ValueError: 2"])

        def long():
            error = ValueError("0")
            for number in range(1, 2000):
                error, inner = ValueError(str(number)), error
                error.__cause__ = inner
            raise error

        self.assertEqual(len(described(long)["chain"]), 50)

    def test_hostile_exceptions(self):
        class NoString(Exception):
            def __str__(self):
                raise SystemExit(1)

            __repr__ = __str__

        class NoText(Exception):
            def __str__(self):
                return 5

        class Odd(Exception):
            __module__ = 7
            __notes__ = property(lambda self: 1 / 0)

            def __getattribute__(self, name):
                raise KeyboardInterrupt

        class Meta(type):
            def __getattribute__(cls, name):
                raise RuntimeError("not even this")

        class Unfriendly(Exception, metaclass=Meta):
            pass

        for kind in (NoString, NoText, Odd, Unfriendly):

            def raising():
                raise kind("words")

            error = described(raising)
            self.assertEqual(error["kind"], "error")
            self.assertTrue(error["type"])

        def no_string():
            raise NoString

        self.assertEqual(described(no_string)["message"], "<its __str__ raised builtins.SystemExit>")

    def test_texts_are_bounded_and_can_be_sent(self):
        def raising():
            raise ValueError("\ud800" + "é" * 200_000)

        error = described(raising)
        self.assertLessEqual(len(error["message"].encode()), 65536)
        self.assertTrue(error["message"].startswith("\\ud800é"))
        self.assertTrue(error["message"].endswith("[... cut here]"))
        self.assertLessEqual(len(error["backtrace"].encode()), 65536)

    def test_recursion_and_memory(self):
        def recurse():
            recurse()

        error = described(recurse)
        self.assertEqual(error["type"], "builtins.RecursionError")
        self.assertLess(len(error["backtrace"]), 65536)

        def exhaust():
            bytes(1 << 60)

        self.assertEqual(described(exhaust)["type"], "builtins.MemoryError")

    @unittest.skipIf(sys.version_info < (3, 11), "notes and groups are Python 3.11's")
    def test_notes_and_groups(self):
        def raising():
            error = ValueError("one")
            error.add_note("while reading line 7")
            group = ExceptionGroup("some", [error, ExceptionGroup("inner", [KeyError("x")])])  # noqa: F821
            group.add_note("of the group")
            raise group

        error = described(raising)
        self.assertEqual(error["notes"], ["of the group"])
        first, inner = error["exceptions"]
        self.assertEqual((first["type"], first["notes"]), ("builtins.ValueError", ["while reading line 7"]))
        self.assertEqual(inner["exceptions"][0]["type"], "builtins.KeyError")
        self.assertEqual(inner["exceptions"][0]["exceptions"], [])

        def big():
            members = [ExceptionGroup("g", [ValueError(n) for n in range(30)]) for _ in range(30)]  # noqa: F821
            raise ExceptionGroup("big", members)  # noqa: F821

        def count(error):
            return sum(1 + count(member) for member in error["exceptions"])

        self.assertEqual(count(described(big)), 50)


if __name__ == "__main__":
    unittest.main()

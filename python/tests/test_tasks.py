"""Which functions are found, and how many arguments they take."""

from __future__ import annotations

import functools
import math
import sys
import types
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import marked  # noqa: E402
import sample  # noqa: E402

import errback_worker  # noqa: E402
from errback_worker import _tasks  # noqa: E402


class Tasks(unittest.TestCase):
    def refused(self, table, name):
        with self.assertRaises(_tasks.UnknownTask) as caught:
            table.find(name)
        return str(caught.exception)

    def test_a_module_without_marks_is_served_whole(self):
        table = _tasks.Table([sample, math])
        self.assertIs(table.find("sample:add").function, sample.add)
        self.assertIs(table.find("math:sqrt").function, math.sqrt)
        self.assertEqual(table.find("sample:Shapes.area").function(2, 3), 6)
        self.assertEqual(table.find("sample:Shapes.Inner.name").function(), "inner")
        for name in ("sample:_hidden", "sample:__name__", "sample:os.system", "sample:add.__call__", "sample:cleaned"):
            self.assertIn("no task", self.refused(table, name))
        self.assertIn("did you mean `sample:divide`?", self.refused(table, "sample:divde"))
        self.assertIn("module 'os' was not given", self.refused(table, "os:getcwd"))

    def test_a_module_with_marks_serves_those(self):
        table = _tasks.Table([marked])
        self.assertIs(table.find("marked:doubled").function, marked.doubled)
        self.assertIs(table.find("sums.mean").function, marked.mean)
        for name in ("marked:unmarked", "marked:mean"):
            self.assertIn("marks its tasks", self.refused(table, name))
        self.assertGreaterEqual(len(table), 2)

    def test_two_tasks_of_one_name(self):
        with self.assertRaisesRegex(_tasks.DuplicateTask, "two tasks have the name 'sums.mean'"):
            errback_worker.task(name="sums.mean")(sample.add)
        with self.assertRaises(ValueError):
            errback_worker.task(name="errback.mine")(sample.add)
        # A module that is imported anew defines the same again.
        self.assertIs(errback_worker.task(name="sums.mean")(marked.mean), marked.mean)

    def test_arity(self):
        def decorated(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)

            return wrapper

        class Callable:
            def __call__(self, a):
                return a

        def kinds(a, b=1, /, c=2, *, d=3):
            return a

        many = float("inf")
        for function, arity in [
            (sample.add, (1, 2)),
            (sample.variadic, (0, many)),
            (sample.Shapes.area, (2, 2)),
            (decorated(sample.add), (1, 2)),
            (functools.partial(sample.add, 1), (0, 1)),
            (Callable(), (1, 1)),
            (Callable().__call__, (1, 1)),
            (kinds, (1, 3)),
            (len, (1, 1)),
            (types.SimpleNamespace, None),
        ]:
            task = _tasks.Task("x", function)
            if arity is not None:
                self.assertEqual((task.least, task.most), arity, function)
        nobody = _tasks.Task("x", sample.keyword_only)
        self.assertFalse(nobody.takes([1]))
        self.assertIn("missing a required", nobody.refusal([1]))
        self.assertIn("too many", _tasks.Task("x", sample.add).refusal([1, 2, 3]))


if __name__ == "__main__":
    unittest.main()

"""A real worker, and jobs that go wrong in it."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
from pathlib import Path

from tests.host import DEADLINE, PACKAGE, Host, as_pairs, embedded


class Jobs(unittest.TestCase):
    def test_hello_answers_and_end(self):
        with Host() as host:
            self.assertEqual(
                {name: host.hello[name] for name in ("protocol", "pid", "language")},
                {"protocol": 1, "pid": host.process.pid, "language": "python"},
            )
            self.assertGreater(host.hello["tasks"], 20)
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            self.assertEqual(host.result("sample:Shapes.area", 2, 3), 6)
            self.assertEqual(host.end(), 0)
            self.assertEqual((host.stdout(), host.stderr()), ("printed while it was imported\n", ""))

    def test_arguments(self):
        with Host() as host:
            self.assertEqual(host.result("sample:variadic", *range(100)), 100)
            self.assertEqual(host.result("sample:add", 1), 2)
            host.begun()
            for task, args in [("sample:add", []), ("sample:add", [1, 2, 3]), ("sample:keyword_only", [1])]:
                error = host.error(task, *args)
                self.assertEqual(error["kind"], "decode_args")
                self.assertIn(task, error["message"])
            self.assertEqual(host.begun(), 3)
            value = {1: [b"x", {None: 2.5}], "é": [True]}
            self.assertEqual(host.result("sample:echo", value), value)

    def test_failures_are_answers_and_the_worker_lives_on(self):
        with Host() as host:
            for task, args, kind, words in [
                ("divide", [1, 0], "builtins.ZeroDivisionError", "division"),
                ("leave", [3], "builtins.SystemExit", "3"),
                ("interrupt", [], "builtins.KeyboardInterrupt", ""),
                ("recurse", [], "builtins.RecursionError", "recursion"),
                ("exhaust", [], "builtins.MemoryError", ""),
            ]:
                error = host.error(f"sample:{task}", *args)
                self.assertEqual((error["kind"], error["type"]), ("error", kind))
                self.assertIn(words, error["message"])
                self.assertIn(f"in {task}", error["backtrace"])
                self.assertNotIn("_jobs.py", error["backtrace"])
            error = host.error("sample:a_set")
            self.assertEqual(error["kind"], "encode_result")
            self.assertIn("result['list'][2]['x']: a set cannot be sent", error["message"])
            self.assertIn("asyncio.run", host.error("sample:coroutine")["message"])
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            self.assertEqual(host.end(), 0)

    def test_a_result_is_encoded_when_it_is_given(self):
        with Host() as host:
            results = host.result("errback.map", "sample:counts", [[], [], []])
            self.assertEqual(as_pairs(results), [[None, [1]], [None, [2]], [None, [3]]])
            self.assertEqual(host.begun(), 1)
            results = host.result("errback.each", "sample:counts_from", list(range(8)))
            self.assertEqual(results, {"all": [0, [1], [2], 3, [4], [5], 6, [7]]})

    def test_a_chunk_of_one_argument_each(self):
        with Host() as host:
            many = [*range(5000), 2.5, None, True, "text", b"bytes", [1, [2]], {"a": 1}]
            self.assertEqual(host.result("errback.each", "sample:echo", many), {"all": many})
            self.assertEqual(host.result("errback.each", "sample:variadic", [[1, 2], 3]), {"all": [1, 1]})
            self.assertEqual(host.result("errback.each", "sample:add", [1, 2]), {"all": [2, 3]})
            self.assertEqual(host.result("errback.each", "sample:echo", []), {"all": []})
            for (error, value), number in zip(host.result("errback.each", "sample:divide", [1, 2]), (1, 2)):
                self.assertEqual((error["kind"], value), ("decode_args", None))
                self.assertIn("missing a required argument: 'b'", error["message"])
            # One fails, in its own place; and then there are pairs.
            results = host.result("errback.each", "sample:add", [1, "x", 2, [], 2**64 - 1, 3])
            self.assertEqual([value for _, value in results], [2, None, 3, None, None, 4])
            kinds = [error and error["kind"] for error, _ in results]
            self.assertEqual(kinds, [None, "error", None, "error", "encode_result", None])
            self.assertEqual(host.end(), 0)

    def test_a_memory_limit(self):
        with Host(hello={"memory_limit": 1 << 30}.items()) as host:
            error = host.error("sample:exhaust")
            self.assertEqual(error["type"], "builtins.MemoryError")
            self.assertEqual(host.end(), 0)

    def test_a_memory_limit_that_is_too_low_to_start_with(self):
        with Host(hello={"memory_limit": 1 << 20}.items(), greet=False) as host:
            self.assertIn(host.wait(), (71, 78))
            self.assertIn("errback worker", host.stderr())

    def test_big_values(self):
        blob = random.Random(1).getrandbits(8 * (70 << 20)).to_bytes(70 << 20, "big")
        with Host() as host:
            sender = threading.Thread(target=host.send, args=("sample:echo", blob), kwargs={"id": 1})
            sender.start()
            error, result = host.answer(1)
            sender.join()
            self.assertIsNone(error)
            self.assertTrue(result == blob)
            self.assertEqual(host.result("sample:variadic", *range(200_000)), 200_000)
            self.assertEqual(host.result("sample:echo", ["x" * 100] * 50_000), ["x" * 100] * 50_000)

    def test_prints_and_logs_come_before_the_answer(self):
        with Host() as host:
            host.result("sample:writes", "no newline")
            self.assertTrue(host.stdout().endswith("no newline"))
            host.result("sample:logs")
            self.assertIn("WARNING sample: a warning of the task\n", host.stderr())


class Hostile(unittest.TestCase):
    def test_a_forked_child_does_not_answer(self):
        with Host() as host:
            self.assertEqual(host.result("sample:fork_and_return"), 0)
            self.assertEqual(host.result("sample:fork_and_raise") >> 8, 1)
            self.assertIn("from the child\n", host.stdout())
            self.assertIn("ValueError: in the child", host.stderr())
            calls = [[number, 3] for number in range(8)]
            results = host.result("errback.map", "sample:fork_at", calls)
            self.assertEqual(as_pairs(results), [[None, 0 if number == 3 else number] for number in range(8)])
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            self.assertEqual(host.end(), 0)

    def test_a_job_that_closes_the_connection_ends_the_worker_with_71(self):
        with Host() as host:
            host.send("sample:close_descriptors", 3, 1024)
            self.assertEqual(host.wait(), 71)
            self.assertIn("Bad file descriptor", host.stderr())

    def test_a_job_that_closes_the_standard_descriptors_does_no_harm(self):
        with Host() as host:
            host.result("sample:writes", "kept")
            host.result("sample:close_descriptors", 0, 3)
            host.result("sample:writes", "lost")
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            self.assertEqual(host.end(), 0)

    def test_files_in_the_places_of_the_standard_descriptors(self):
        with Host() as host, tempfile.NamedTemporaryFile() as file:
            self.assertEqual(host.result("sample:replace_standard_output", file.name), [0, 1, 2])
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            host.result("sample:writes", "text")
            self.assertEqual(host.end(), 0)
            self.assertEqual(file.read(), b"text")

    def test_an_interrupt_fails_the_job_alone(self):
        with Host() as host:
            for _ in range(20):
                # Between jobs it is nobody's.
                host.kill()
                id = host.send("sample:sleep", 60)
                host.interrupt()
                error, _ = host.answer(id)
                self.assertEqual(error["type"], "builtins.KeyboardInterrupt")
                self.assertEqual(host.result("sample:add", 1, 2), 3)
                host.begun()
            self.assertEqual(host.end(), 0)

    def test_a_storm_of_interrupts_never_breaks_the_worker(self):
        with Host() as host:
            stop = threading.Event()

            def storm():
                while not stop.is_set():
                    host.kill()

            thread = threading.Thread(target=storm)
            thread.start()
            try:
                for number in range(2000):
                    error, result = host.call("sample:add", number, 1)
                    self.assertTrue(result == number + 1 or error["type"] == "builtins.KeyboardInterrupt")
            finally:
                stop.set()
                thread.join()
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            self.assertEqual(host.end(), 0)

    def test_threads_of_jobs(self):
        with Host() as host:
            host.result("sample:lingers")
            self.assertEqual(host.end(), 0)


class Requests(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.fifo = os.path.join(folder.name, "fifo")
        os.mkfifo(self.fifo)

    def asked(self, host, task, *args):
        id = host.send(task, *args)
        host.wait_for_begin()
        if self.fifo in args:
            # The function has begun before it is in its `try`.
            open(self.fifo).close()
        host.request(id)
        answer = host.answer(id)
        self.assertEqual(host.result("sample:add", 1, 2), 3)
        host.begun()
        return answer

    def test_a_request_ends_what_blocks_and_what_computes(self):
        with Host() as host:
            for task, *args in [
                ("sleep", 600),
                ("busy", 600),
                ("swallows", 600),
                ("waits_for_lock",),
                ("waits_for_child",),
                ("cleans_up", self.fifo, 600),
            ]:
                error, _ = self.asked(host, f"sample:{task}", *args)
                self.assertEqual(error["type"], "errback_worker.JobCancelled")
            self.assertEqual(host.result("sample:cleaned_up"), 1)
            self.assertEqual(self.asked(host, "sample:polls", self.fifo), (None, True))
            self.assertEqual(self.asked(host, "sample:thread_asks", self.fifo), (None, [True]))
            self.assertEqual(host.end(), 0)

    def test_a_request_ends_the_whole_chunk(self):
        with Host() as host:
            error, _ = self.asked(host, "errback.map", "sample:sleep", [[600], [600]])
            self.assertEqual(error["type"], "errback_worker.JobCancelled")
            error, _ = self.asked(host, "errback.map", "sample:spin_for", [[1000]] * 100_000)
            self.assertEqual(error["type"], "errback_worker.JobCancelled")
            error, _ = self.asked(host, "errback.each", "sample:spin_for", [1000] * 100_000)
            self.assertEqual(error["type"], "errback_worker.JobCancelled")

    def test_a_request_that_a_call_swallows_ends_its_chunk_all_the_same(self):
        with Host() as host:
            error, _ = self.asked(host, "errback.each", "sample:swallows_if", list(range(8)))
            self.assertEqual(error["type"], "errback_worker.JobCancelled")
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            self.assertEqual(host.end(), 0)

    def test_requests_for_others_are_passed_over(self):
        with Host() as host:
            done = host.fresh_id()
            self.assertEqual(host.answer(host.send("sample:add", 1, id=done)), (None, 2))
            id = host.send("sample:sleep", 0.2)
            for other in (done, id + 1, 0, 2**64 - 1):
                host.request(other)
            host.requests.send(b"short")
            host.requests.send(b"much too long to be an id")
            self.assertEqual(host.answer(id), (None, "slept"))

    def test_a_request_for_a_call_that_is_still_to_come(self):
        with Host() as host:
            first = host.send("sample:sleep", 0.2)
            second = host.send("sample:sleep", 600)
            third = host.send("sample:add", 1)
            host.request(second)
            self.assertEqual(host.answer(first), (None, "slept"))
            error, _ = host.answer(second)
            self.assertEqual(error["type"], "errback_worker.JobCancelled")
            self.assertEqual(host.answer(third), (None, 2))

    def test_a_job_that_takes_the_signals_away_is_followed_by_one_that_can_be_ended(self):
        with Host() as host:
            host.result("sample:take_signals")
            host.begun()
            error, _ = self.asked(host, "sample:sleep", 600)
            self.assertEqual(error["type"], "errback_worker.JobCancelled")
            host.send("sample:sleep", 600)
            host.interrupt()
            self.assertEqual(host.receive()[2]["type"], "builtins.KeyboardInterrupt")

    def test_a_request_at_any_moment_hits_its_own_job_or_nothing(self):
        rounds = int(os.environ.get("ERRBACK_RACES", "3000"))
        chance = random.Random(os.getpid())
        cancelled = 0
        with Host() as host:
            for n in range(rounds):
                # Now and then one that lasts, so that some are hit on a loaded machine too.
                microseconds = chance.choice((0, 20, 50, 100, 200)) if n % 50 else 50_000
                victim = host.send("sample:spin_for", microseconds)
                # The next is on the socket already, so that it begins at once.
                follower = host.send("sample:add", 1, 2)
                end = time.perf_counter() + chance.random() * 2.5e-4
                while time.perf_counter() < end:
                    pass
                host.request(victim)
                error, result = host.answer(victim)
                if error is None:
                    self.assertEqual(result, microseconds)
                else:
                    self.assertEqual(error["type"], "errback_worker.JobCancelled")
                    cancelled += 1
                self.assertEqual(host.answer(follower), (None, 3))
            self.assertEqual(host.end(), 0)
        self.assertGreater(cancelled, 0)
        self.assertLess(cancelled, rounds)

    def test_requests_end_sleeps_again_and_again(self):
        with Host() as host:
            for _ in range(500):
                id = host.send("sample:sleep", 600)
                host.request(id)
                error, _ = host.answer(id)
                self.assertEqual(error["type"], "errback_worker.JobCancelled")
            self.assertEqual(host.end(), 0)


class Starts(unittest.TestCase):
    def failed(self, *modules, **options):
        with Host(modules, greet=False, **options) as host:
            self.assertEqual(host.wait(), 78)
            return host.stderr()

    def test_a_module_that_cannot_be_imported(self):
        said = self.failed("no_such_module")
        self.assertEqual(
            said.splitlines()[-1],
            "errback worker: cannot import module 'no_such_module': ModuleNotFoundError: No module named 'no_such_module'",
        )
        self.assertIn("is named as in an import statement", self.failed("sample.py").splitlines()[-1])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "broken.py").write_text("import sys\nprint('before')\nsys.exit('no licence')\n")
            said = self.failed("broken", path=[str(PACKAGE), folder])
            self.assertIn("line 3, in <module>", said)
            self.assertNotIn("importlib", said)
            self.assertEqual(
                said.splitlines()[-1], "errback worker: cannot import module 'broken': SystemExit: no licence"
            )

    def test_two_tasks_of_one_name(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("one", "two"):
                text = f"import errback_worker\n@errback_worker.task(name='same')\ndef {name}(): pass\n"
                Path(folder, f"{name}.py").write_text(text)
            said = self.failed("one", "two", path=[str(PACKAGE), folder])
            self.assertIn("two tasks have the name 'same': one.one and two.two", said.splitlines()[-1])

    def test_without_msgpack(self):
        said = self.failed("sample", command=[sys.executable, "-S", "-m", "errback_worker"])
        self.assertEqual(len(said.splitlines()), 1, said)
        self.assertIn("pip install 'msgpack>=1.0'", said)

    def test_without_modules_or_mark_or_connection(self):
        self.assertIn("no module was named", self.failed())
        self.assertIn("is not a mark", self.failed("sample", environment={"ERRBACK_WORKER": "1:x"}))
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        for variables, words in [({}, "started by a program"), ({"ERRBACK_WORKER": "1:1:1"}, "no connection to a host")]:
            ended = subprocess.run(
                [sys.executable, "-m", "errback_worker", "math"],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**environment, **variables},
                timeout=DEADLINE,
            )
            self.assertEqual(ended.returncode, 78)
            self.assertIn(words, ended.stderr.decode())

    def test_marked_tasks(self):
        with Host(["marked"]) as host:
            self.assertEqual(host.hello["tasks"], 2)
            self.assertEqual(host.result("marked:doubled", 4), 8)
            self.assertEqual(host.result("sums.mean", [1, 2]), 1.5)
            self.assertEqual(host.error("marked:unmarked")["kind"], "unknown_task")

    def test_embedded(self):
        bootstrap, sources = embedded()
        self.assertLess(len(bootstrap) + len(sources), 120 * 1024)
        options = {
            "command": [sys.executable, "-c", bootstrap],
            "environment": {"ERRBACK_WORKER_SOURCE": sources},
            "path": [str(Path(__file__).parent)],
        }
        with Host(["marked"], **options) as host:
            self.assertEqual(host.result("marked:doubled", 4), 8)
            self.assertIn("in doubled", host.error("marked:doubled", None)["backtrace"])
            self.assertEqual(host.end(), 0)
        with Host(["sample"], **options) as host:
            id = host.send("sample:sleep", 600)
            host.request(id)
            self.assertEqual(host.answer(id)[0]["type"], "errback_worker.JobCancelled")
        with Host(["no_such"], greet=False, **options) as host:
            self.assertEqual(host.wait(), 78)

    def test_an_old_python_is_told_so(self):
        # What an old one executes must be readable by it: these files have nothing that is younger than Python 2.
        for name in ("__init__.py", "_bootstrap.py"):
            text = (PACKAGE / "errback_worker" / name).read_text()
            self.assertNotIn("from __future__", text)
            self.assertNotRegex(text, r"\bf\"|->|: (str|int)\b")
            self.assertLess(text.index("version_info"), text.index("import json") if "json" in text else len(text))


class Ends(unittest.TestCase):
    def test_a_worker_dies_with_its_host(self):
        program = textwrap.dedent(
            """
            import sys, time
            from tests.host import Host
            host = Host()
            host.send("sample:sleep", 600)
            host.wait_for_begin()
            print(host.process.pid, flush=True)
            time.sleep(600)
            """
        )
        host = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(PACKAGE)}
        )
        with host:
            pid = int(host.stdout.readline())
            pidfd = getattr(os, "pidfd_open", None)
            host.kill()
            host.wait()
        if pidfd is None:
            return
        end = time.monotonic() + DEADLINE
        while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            self.assertLess(time.monotonic(), end, "it has outlived its host")

    def test_the_connection_may_end_in_the_middle_of_an_answer(self):
        with Host() as host:
            host.send("sample:echo", bytes(10 << 20))
            host.socket.recv(100)
            self.assertEqual(host.end(), 0)

    def test_the_end_of_the_requests_is_no_end_of_the_worker(self):
        with Host() as host:
            host.requests.shutdown(socket.SHUT_RDWR)
            self.assertEqual(host.result("sample:add", 1, 2), 3)
            self.assertEqual(host.end(), 0)

    def test_half_a_frame(self):
        with Host() as host:
            host.socket.sendall(struct.pack(">I", 100) + b"\x94")
            self.assertEqual(host.end(), 76)


if __name__ == "__main__":
    signal.alarm(600)
    unittest.main()

"""Running what a call asks for: one job, or a chunk of jobs of one task.

Jobs run one after another on the main thread. Whatever one does short of ending the process becomes an answer.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from itertools import groupby, starmap
from typing import Any, Callable, Iterator, NoReturn, Optional

from errback_worker import _failures, _start, _values, _wire
from errback_worker._arenas import Arenas, reader
from errback_worker._cancel import window
from errback_worker._channel import Channel
from errback_worker._tasks import Table, Task, UnknownTask

_ONE = (1).to_bytes(8, sys.byteorder)


class _Refused(Exception):
    """The arguments of one call of a chunk are not what the task takes."""


class Jobs:
    """The worker's loop."""

    def __init__(
        self,
        table: Table,
        channel: Channel,
        begun: Optional[int],
        requests: Optional[socket.socket],
        arenas: Optional[Arenas] = None,
    ) -> None:
        self._table = table
        self._channel = channel
        self._encoder = _wire.Encoder(channel.max_frame)
        self._begun = begun
        self._pid = os.getpid()
        self._forked = False
        os.register_at_fork(after_in_child=self._note_fork)
        self._arenas = arenas
        if arenas is not None:
            _wire.read_extensions(reader(arenas))
        if requests is not None:
            window.listen(requests, None if arenas is None else arenas.bring)

    def _note_fork(self) -> None:
        self._forked = True
        window.take_calls()

    def serve(self) -> None:
        """Answers calls until the host closes the connection."""
        while True:
            message = self._channel.receive()
            if message is None:
                return
            if message[0] == 0:
                window.arm()
                pieces = self._answer(message)
                # What the job has printed comes before its answer.
                _start.flushed(sys.stdout)
                _start.flushed(sys.stderr)
                try:
                    _start.fill_standard_descriptors()
                except OSError:
                    # A job has used up all descriptors. The next one will hear of it.
                    pass
                if self._arenas is not None:
                    for notice in self._arenas.finish_call():
                        self._channel.notify("buffers", notice)
                self._channel.send(pieces)
                # A big value is let go of now, and not when the next call has come.
                del pieces
            # Else a notification, of a later version: whoever needs it done does not send it to this one.
            del message

    def _answer(self, message: list[Any]) -> list[_wire.Buffer]:
        _, id, task, args = message
        # The job alone holds its arguments.
        message.clear()
        # Before all else: the host tells by it which calls this worker has begun with.
        self._count()
        try:
            if task == _wire.MAP or task == _wire.EACH:
                return self._run_chunk(id, args, task == _wire.EACH)
            return self._run_one(id, task, args)
        except UnknownTask as error:
            return self._encoder.error(id, _failures.error("unknown_task", str(error)))
        except _wire.EncodeError as error:
            return self._encoder.error(id, _failures.error("encode_result", str(error)))

    def _run_one(self, id: int, name: str, args: Any) -> list[_wire.Buffer]:
        if type(args) is _wire.Undecodable:
            self._table.find(name)
            return self._encoder.error(id, _failures.error("decode_args", f"`{name}`: {args.why}"))
        task = self._table.find(name)
        if not task.takes(args):
            return self._encoder.error(id, _failures.error("decode_args", task.refusal(args)))
        # How the window is used is told in `_cancel`.
        try:
            try:
                window.job = id
                window.open = id
                window.check()
                value = task.function(*args)
            finally:
                window.open = None
        except BaseException as failure:
            self._end_child(failure)
            return self._encoder.error(id, _failures.describe(failure))
        finally:
            window.job = None
        self._end_child(None)
        del args
        if self._arenas is not None:
            return self._answer_sharing(self._arenas, id, value)
        return self._encoder.answer(id, value)

    def _answer_sharing(self, arenas: Arenas, id: int, value: Any) -> list[_wire.Buffer]:
        """An answer that may refer to shared memory."""
        _values.place = arenas.place_array
        sent = False
        try:
            pieces = self._encoder.answer(id, arenas.place_members(value))
            sent = True
            return pieces
        finally:
            _values.place = None
            arenas.settle(sent)

    def _run_chunk(self, id: int, args: Any, each: bool) -> list[_wire.Buffer]:
        if type(args) is _wire.Undecodable:
            return self._encoder.error(id, _failures.error("decode_args", args.why))
        if len(args) != 2 or type(args[0]) is not str or not isinstance(args[1], list):
            return self._encoder.error(id, _failures.error("decode_args", "not a task and an array of calls"))
        name, calls = args
        task = self._table.find(name)
        results = _wire.Results(self._encoder, len(calls))
        try:
            try:
                window.job = id
                window.calls = (id, calls)
                window.open = id
                self._run_calls(self._runs(task, calls, each), results)
            finally:
                window.open = None
        except _wire.EncodeError:
            raise
        except BaseException as failure:
            self._end_child(failure)
            return self._encoder.error(id, _failures.describe(failure))
        finally:
            window.job = window.calls = None
        self._end_child(None)
        return self._encoder.results(id, results)

    def _runs(self, task: Task, calls: list[Any], each: bool) -> Iterator[Any]:
        """Runs the next call each time that it is asked. It goes on behind an exception of one."""
        readable = type(calls) is not _wire.Patchy
        run = self._checked(task)
        if each:
            if readable and task.takes_count(1):
                return map(task.function, calls)
            return map(lambda argument: run(argument if type(argument) is _wire.Undecodable else [argument]), calls)
        if readable and task.takes_all(calls):
            return starmap(task.function, calls)
        return map(run, calls)

    def _run_calls(self, runs: Iterator[Any], results: _wire.Results) -> None:
        simple = _wire.SIMPLE
        while True:
            try:
                window.check()
                # Values of one type come in groups, and go on their way without a step of Python's own for each.
                for kind, values in groupby(runs, type):
                    if kind in simple:
                        results.simple.extend(values)
                    else:
                        for value in values:
                            self._add(results, value)
            except _Refused as refused:
                results.error(_failures.error("decode_args", str(refused)))
            except BaseException as failure:
                # What closed the window, or is the chunk's own, ends the chunk.
                if window.open is None or self._forked or type(failure) is _wire.EncodeError:
                    raise
                results.error(_failures.describe(failure))
            else:
                # All have run; or a fork or a request has taken the rest away.
                self._end_child(None)
                window.check()
                return

    def _checked(self, task: Task) -> Callable[[Any], Any]:
        """The function behind a look at its arguments, call by call."""

        def run(args: Any) -> Any:
            if not task.takes(args):
                raise _Refused(args.why if type(args) is _wire.Undecodable else task.refusal(args))
            return task.function(*args)

        return run

    def _add(self, results: _wire.Results, value: Any) -> None:
        try:
            results.value(value)
        except _wire.EncodeError as error:
            results.error(_failures.error("encode_result", str(error)))

    def _count(self) -> None:
        if self._begun is not None:
            try:
                os.write(self._begun, _ONE)
            except OSError:
                # It would take 2**64 jobs that nobody reads to fill it. A job has closed it, then.
                pass

    def _end_child(self, failure: Optional[BaseException]) -> None:
        """A process that a job has forked, and that comes back from the job, must not answer in its parent's place."""
        if os.getpid() != self._pid:
            _end_process(failure)


def _end_process(failure: Optional[BaseException]) -> NoReturn:
    status = 0
    try:
        if isinstance(failure, SystemExit):
            status = failure.code if isinstance(failure.code, int) else int(failure.code is not None)
        elif failure is not None:
            status = 1
            traceback.print_exception(type(failure), failure, failure.__traceback__)
        _start.flushed(sys.stdout)
        _start.flushed(sys.stderr)
    finally:
        os._exit(status & 0xFF)

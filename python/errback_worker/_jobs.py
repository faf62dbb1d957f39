"""Running what a call asks for: one job, or a chunk of jobs of one task.

Jobs run one after another on the main thread. Whatever one does short of ending the process becomes an answer.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from itertools import starmap
from typing import Any, Callable, Iterator, NoReturn, Optional

from errback_worker import _failures, _start, _wire
from errback_worker._cancel import window
from errback_worker._channel import Channel
from errback_worker._tasks import Table, Task, UnknownTask

_ONE = (1).to_bytes(8, sys.byteorder)


class _Refused(Exception):
    """The arguments of one call of a chunk are not what the task takes."""


class Jobs:
    """The worker's loop."""

    def __init__(
        self, table: Table, channel: Channel, begun: Optional[int], requests: Optional[socket.socket]
    ) -> None:
        self._table = table
        self._channel = channel
        self._encoder = _wire.Encoder(channel.max_frame)
        self._begun = begun
        self._pid = os.getpid()
        self._forked = False
        os.register_at_fork(after_in_child=self._note_fork)
        if requests is not None:
            window.listen(requests)

    def _note_fork(self) -> None:
        self._forked = window.up = True

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
            if task == _wire.MAP:
                return self._run_chunk(id, args)
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
        return self._encoder.answer(id, value)

    def _run_chunk(self, id: int, args: Any) -> list[_wire.Buffer]:
        if type(args) is _wire.Undecodable:
            return self._encoder.error(id, _failures.error("decode_args", args.why))
        if len(args) != 2 or type(args[0]) is not str or type(args[1]) is not list:
            return self._encoder.error(id, _failures.error("decode_args", "not a task and an array of calls"))
        name, calls = args
        task = self._table.find(name)
        results = _wire.Results(self._encoder, len(calls))
        try:
            try:
                window.job = id
                window.open = id
                self._run_calls(id, task, calls, results)
            finally:
                window.open = None
        except _wire.EncodeError:
            raise
        except BaseException as failure:
            self._end_child(failure)
            return self._encoder.error(id, _failures.describe(failure))
        finally:
            window.job = None
        self._end_child(None)
        return self._encoder.results(id, len(calls), results)

    def _run_calls(self, id: int, task: Task, calls: list[Any], results: _wire.Results) -> None:
        # An iterator goes on behind an exception of the function that it calls.
        if task.takes_all(calls):
            if calls:
                window.check()
            runs: Iterator[Any] = starmap(task.function, calls)
        else:
            runs = map(self._checked(task), calls)
        look, simple = window, _wire.SIMPLE
        add_simple = results.simple.append
        while True:
            try:
                window.check()
                for value in runs:
                    if type(value) in simple:
                        add_simple(value)
                    else:
                        self._add(results, value)
                    # To the host, the chunk is one job: a request means all that is left of it.
                    if look.up:
                        look.up = False
                        if window.request == id or self._forked:
                            break
                else:
                    return
            except _Refused as refused:
                results.error(_failures.error("decode_args", str(refused)))
            except BaseException as failure:
                # What closed the window, or is the chunk's own, ends the chunk.
                if window.open is None or self._forked or type(failure) is _wire.EncodeError:
                    raise
                results.error(_failures.describe(failure))
            else:
                self._end_child(None)

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

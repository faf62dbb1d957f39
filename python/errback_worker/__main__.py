"""``python3 -m errback_worker MODULE ...``: a worker's whole life.

The order is that of docs/protocol.md, "Start". The modules are imported between the two greetings: when the host's
limits are in force, and before the host is told that calls may come.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Makes a worker of this process. It does not return: the process ends when its host closes the connection."""
    from errback_worker import _start

    try:
        _serve(sys.argv[1:])
        leaving = _start.Leaving(0)
    except _start.Leaving as reason:
        leaving = reason
    except MemoryError:
        # A job's is an answer. This one struck between jobs.
        leaving = _start.Leaving(71, "out of memory")
    leaving.exit()


def _serve(names: list[str]) -> None:
    from errback_worker import _start

    _start.take_mark()
    connection = _start.take_connection()
    _start.close_inherited()
    _start.reset_signals()
    if not names:
        raise _start.Leaving(78, "no module was named: python3 -m errback_worker MODULE ...")
    try:
        import msgpack

        if msgpack.version < (1, 0):
            raise ImportError("an old version, " + ".".join(map(str, msgpack.version)))
    except ImportError as error:
        raise _start.Leaving(
            78, f"the package msgpack is missing ({error}): {sys.executable} -m pip install 'msgpack>=1.0'"
        ) from None

    from errback_worker import _arenas, _channel, _jobs, _tasks

    channel = _channel.Channel(connection)
    hello = channel.receive_hello()
    hello.apply_limits()
    table = _tasks.Table(_start.import_modules(names))
    arenas = None
    if hello.buffers is not None and hello.requests is not None and _arenas.supported():
        arenas = _arenas.Arenas(hello.buffers, hello.memory_limit, hello.requests)
    jobs = _jobs.Jobs(table, channel, hello.begun, hello.requests, arenas)
    # What a module prints on its import comes before the first job's output, wherever that goes.
    _start.flushed(sys.stdout)
    _start.flushed(sys.stderr)
    channel.send_hello(hello.protocol, len(table), arenas is not None)
    jobs.serve()


if __name__ == "__main__":
    main()

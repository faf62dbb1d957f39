"""What a worker does about shared memory that it has heard nothing of."""

from __future__ import annotations

import socket
import struct
import unittest
from unittest import mock

import msgpack

from errback_worker import _arenas, _wire


def reference(number):
    return msgpack.ExtType(_arenas.EXTENSION, struct.pack(">QQQ", number, 0, 1))


@unittest.skipUnless(_arenas.supported(), "no shared memory here")
class ThatIsMissing(unittest.TestCase):
    def setUp(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.arenas = _arenas.Arenas(1 << 20, None, ours)
        options = mock.patch.dict(_wire._options, ext_hook=_arenas.reader(self.arenas))
        options.start()
        self.addCleanup(options.stop)
        more = mock.patch.object(self.arenas._more, "wait_for", side_effect=lambda *_: False)
        self.waits = more.start()
        self.addCleanup(more.stop)

    def parse(self, *arguments):
        return _wire.parse(msgpack.packb([0, 1, "tasks:read", list(arguments)]))[3]

    def test_a_call_waits_for_it_once(self):
        # The arguments that cannot be read are read again, one by one, to say which it is.
        undecodable = self.parse(1, reference(6))
        self.assertIn("argument 2 cannot be read", undecodable.why)
        self.assertIn("no shared memory of the number 6", undecodable.why)
        self.assertEqual(self.waits.call_count, 1)

    def test_the_next_call_waits_for_it_again(self):
        self.parse(reference(6))
        self.assertEqual(self.arenas.finish_call(), [{"forgotten": [6]}])
        self.parse(reference(6))
        self.assertEqual(self.waits.call_count, 2)
        self.assertEqual(self.arenas.finish_call(), [{"forgotten": [6]}])

    def test_each_has_its_own_wait(self):
        self.parse(reference(6), reference(7))
        self.parse(reference(7), reference(6))
        self.assertEqual(self.waits.call_count, 2)


if __name__ == "__main__":
    unittest.main()

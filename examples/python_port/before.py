"""The program before: Twisted, with its work in threads, in the 2009 package's pool, and in ampoule's."""

from ampoule import child, pool
from twisted.internet import defer, task, threads
from twisted.internet.processes import deferToProcess
from twisted.protocols import amp

import catalog


class Price(amp.Command):
    arguments = [(b"name", amp.Unicode())]
    response = [(b"cents", amp.Integer())]


class Child(child.AMPChild):
    @Price.responder
    def price(self, name):
        return {"cents": catalog.price(name)}


@defer.inlineCallbacks
def main(reactor):
    # Step 1: a function in a thread.
    entry = yield threads.deferToThread(catalog.parse, "pear 3 250")
    print(entry["name"], entry["count"], entry["cents"])

    # Step 2: a function in a process, and what it raises.
    d = deferToProcess(catalog.parse, "pear many 250")
    d.addErrback(lambda failure: failure.trap(catalog.BadLine) and print("refused:", failure.getErrorMessage()))
    yield d

    # Step 3: a command of ampoule's, with a timeout.
    workers = pool.ProcessPool(Child, max=2)
    yield workers.start()
    response = yield workers.doWork(Price, name="pear", _timeout=5)
    print(response["cents"], "cents")

    # Step 4: one function over many arguments.
    lines = ["pear 3 250", "fig 10 40", "kiwi many 90"]
    results = yield defer.DeferredList([deferToProcess(catalog.parse, line) for line in lines], consumeErrors=True)
    print(sum(success for success, _ in results), "of", len(results), "lines are good")
    yield workers.stop()


task.react(main)

"""A module that says which of its functions are tasks, and gives one another name."""

import errback_worker


@errback_worker.task
def served(n):
    return helper(n)


@errback_worker.task(name="marked:another_name")
def named(n):
    return n + 1


def helper(n):
    return n

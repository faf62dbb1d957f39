"""A module that marks its tasks."""

from __future__ import annotations

import errback_worker


@errback_worker.task
def doubled(n):
    return 2 * n


@errback_worker.task(name="sums.mean")
def mean(numbers):
    return sum(numbers) / len(numbers)


def unmarked():
    return 1

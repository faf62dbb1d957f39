"""The functions of the program: they stay as they are."""

_prices = {}


class BadLine(ValueError):
    """A line that is none."""


def load(prices):
    """What each worker needs once."""
    _prices.update(prices)


def parse(line):
    """``pear 3 250``: a name, a count, a price in cents."""
    name, count, cents = line.split()
    if not count.isdigit():
        raise BadLine(f"{count!r} is no count")
    return {"name": name, "count": int(count), "cents": int(cents)}


def price(name):
    return _prices[name]

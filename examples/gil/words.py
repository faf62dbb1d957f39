"""Finds to each word of a text the one that is most like it. Plain Python, and much of it."""

import re

_vocabulary = []


def load(path):
    """Reads the text. Returns its words, each once."""
    with open(path, encoding="utf-8") as file:
        words = sorted(set(re.findall(r"[a-z]{4,}", file.read().lower())))
    _vocabulary[:] = words
    return words


def nearest(word):
    """The other word of the text that takes the fewest changes of a letter to be this one, and how many."""
    best, changes = "", len(word) + 1
    for other in _vocabulary:
        if other != word and abs(len(other) - len(word)) < changes:
            distance = _distance(word, other)
            if distance < changes:
                best, changes = other, distance
    return best, changes


def _distance(a, b):
    """The edit distance, row by row."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != other))
    return row[-1]

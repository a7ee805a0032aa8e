"""Finds words that come into a text at a place and stay: where a play begins, and its names.

Nothing here knows a corpus. A word is what the letters and digits of any script make together, so
a text without spaces has no words that come again, and nothing is found in it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from report.analysis import Columns
from surprisal import LN2

WORD = re.compile(r"\w+")
LEAST = 5  # times that a new word has to come again, soon
NEW_PARTS = 5  # parts of a text in which the words of a beginning come first
NEXT_PARTS = 20  # parts in which they come again
MIN_SHARE = 0.02  # of all words there
MAX_MARKS = 12
WORDS_OF_A_MARK = 5
TIMES = 10  # that a new word comes, of which each has a cost
MIN_WORDS = 5  # whose costs make a mean

Words = Mapping[str, np.ndarray]  # where each word begins, in bytes, in order


class NewWord(NamedTuple):
    """A word that comes first near a place, and again soon: how many times."""

    times: int
    first: int  # in bytes
    word: str


class Newcomers(NamedTuple):
    """Says where new words begin and end the first TIMES times, in bytes, (words, TIMES) each.

    So all means over them are of the same words. The most frequent word comes first.
    """

    words: list[str]
    starts: np.ndarray
    stops: np.ndarray


def find_words(text: bytes) -> dict[str, np.ndarray]:
    """Find where each word of a text begins, in bytes.

    >>> {word: places.tolist() for word, places in find_words("é à é".encode()).items()}
    {'é': [0, 6], 'à': [3]}
    """
    characters = text.decode(errors="surrogateescape")
    sizes = [len(each.encode(errors="surrogateescape")) for each in characters]
    starts = np.append(0, np.cumsum(sizes, dtype=int))
    places: dict[str, list[int]] = {}
    for found in WORD.finditer(characters):
        start = starts[found.start()]
        places.setdefault(found[0], []).append(start)
    return {word: np.array(own) for word, own in places.items()}


def select_new(words: Words, known: Iterable[str] | None, part_bytes: int) -> dict[str, np.ndarray]:
    """Select the words of a text that were not read before, and come LEAST times or more.

    `known` are the words of the text before. Without them, the first parts of the text itself are
    what was read before.
    """
    known_words = set(known or ())
    start = 0
    if known is None:
        start = NEXT_PARTS * part_bytes
    new = {}
    for word, places in words.items():
        is_old = word in known_words or places[0] < start
        is_rare = len(places) < LEAST or len(word) == 1
        if not is_old and not is_rare:
            new[word] = places
    return new


def find_marks(words: Words, new: Words, part_bytes: int) -> list[dict[str, Any]]:
    """Find where many new words come first, and soon again: perhaps a play or a chapter begins.

    Returns the "start" of each place, in bytes, and its most frequent "words", in the order of the
    text.
    """
    beginnings = find_beginnings(new, part_bytes)
    last = max((places[-1] for places in words.values()), default=0)
    num_parts = 1 + int(last) // part_bytes
    num_words = sum(len(places) for places in words.values())
    num_next = NEXT_PARTS * num_words / num_parts
    shares = {}  # of the next words that are new
    for part, found in beginnings.items():
        shares[part] = sum(each.times for each in found) / num_next
    marks: list[dict[str, Any]] = []
    taken: list[int] = []
    for part in sorted(shares, key=lambda part: -shares[part]):
        is_near = any(abs(part - other) <= NEXT_PARTS // 2 for other in taken)
        if shares[part] < MIN_SHARE or is_near:
            continue
        taken.append(part)
        names = distinct([each.word for each in beginnings[part]])
        start = min(each.first for each in beginnings[part] if each.word in names)
        marks.append({"start": start, "words": names})
    return sorted(marks[:MAX_MARKS], key=lambda mark: int(mark["start"]))


def find_beginnings(new: Words, part_bytes: int) -> dict[int, list[NewWord]]:
    """Find, for each part of a text, the words that come first in it or soon after, and again soon.

    So a part where something begins has the most of them. The most frequent word comes first.
    """
    found: dict[int, list[NewWord]] = {}
    for word, places in new.items():
        first = int(places[0])
        own = first // part_bytes
        for part in range(max(0, own - NEW_PARTS + 1), own + 1):
            stop = (part + NEXT_PARTS) * part_bytes
            times = int(np.searchsorted(places, stop))
            if times >= LEAST:
                found.setdefault(part, []).append(NewWord(times, first, word))
    for some in found.values():
        some.sort(reverse=True)
    return found


def distinct(names: Sequence[str]) -> list[str]:
    """Keep a few names, and of those that differ only in capitals the first.

    >>> distinct(["TROILUS", "Helen", "Troilus"])
    ['TROILUS', 'Helen']
    """
    kept: dict[str, str] = {}
    for name in names:
        kept.setdefault(name.casefold(), name)
    return list(kept.values())[:WORDS_OF_A_MARK]


def select_newcomers(new: Words, learned: Columns) -> Newcomers:
    """Select the new words that come TIMES times or more; none if they are too few for a mean.

    `learned` has the targets of the text: a word that is masked does not count.
    """
    offsets = learned["offset"] - learned["offset"][0]
    words = []
    starts = []
    stops = []
    for word, places in sorted(new.items(), key=lambda item: -len(item[1])):
        start = places[:TIMES]
        stop = start + len(word.encode())
        targets = np.searchsorted(offsets, stop) - np.searchsorted(offsets, start)
        if len(start) == TIMES and targets.all():
            words.append(word)
            starts.append(start)
            stops.append(stop)
    if len(words) < MIN_WORDS:
        nowhere = np.empty((0, TIMES), int)
        return Newcomers([], nowhere, nowhere)
    return Newcomers(words, np.stack(starts), np.stack(stops))


def bits_by_time(newcomers: Newcomers, learned: Columns) -> list[float]:
    """Measure the mean cost of new words the first time, the second time, and so on.

    A word costs what the tokens cost that it has a part in.
    """
    starts = learned["offset"] - learned["offset"][0]
    ends = starts + learned["bytes"]
    first = np.searchsorted(ends, newcomers.starts, side="right")
    stop = np.searchsorted(starts, newcomers.stops)
    nats_before = np.append(0.0, np.cumsum(learned["nll"]))
    nats = nats_before[stop] - nats_before[first]
    return mean_by_time(nats / LN2)


def mean_by_time(bits: np.ndarray) -> list[float]:
    """Return the means over words, (words, TIMES); none without words."""
    if len(bits) == 0:
        return []
    return [float(mean) for mean in bits.mean(axis=0).round(3)]

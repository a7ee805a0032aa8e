"""Where new words come into a text, and what they cost: counted by hand, on texts of all kinds."""

import random

import numpy as np
import pytest

from report.new_words import (
    LEAST,
    MAX_MARKS,
    NEW_PARTS,
    NEXT_PARTS,
    TIMES,
    bits_by_time,
    find_marks,
    find_words,
    select_new,
    select_newcomers,
)

PART = 100  # bytes
OLD = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "went",
    "home",
    "again",
    "with",
    "some",
    "more",
    "of",
    "those",
    "words",
]
NAMES = [
    ["Dromio", "Adriana", "Luciana", "Angelo", "Pinch", "Balthazar"],
    ["Übü", "Пётр", "日本", "Ørsted", "Çelik", "Łukasz"],  # more than a byte a letter
]


def write(length: int, names: list[str], seed: int = 0) -> str:
    """Write about so many bytes of old words, of which each fourth is one of the names."""
    rng = random.Random(seed)
    words: list[str] = []
    while len(" ".join(words).encode()) < length:
        words += rng.choices(OLD, k=3)
        if names:
            words.append(rng.choice(names))
    return " ".join(words) + "\n"


def marks_of(text: str, known: list[str] | None) -> list[tuple[int, set[str]]]:
    words = find_words(text.encode())
    marks = find_marks(words, select_new(words, known, PART), PART)
    return [(mark["start"], set(mark["words"])) for mark in marks]


@pytest.mark.parametrize("known", [OLD, None])
def test_a_mark_stands_at_the_first_new_word(known) -> None:
    """Also where nobody says what was read before: then the text's own beginning is that."""
    before = write(3000, [])
    play = write(5000, NAMES[0], seed=1)
    other = write(5000, NAMES[1], seed=2)
    marks = marks_of(before + play + other, known)
    expected = []
    start = len(before.encode())
    for text, names in ((play, NAMES[0]), (other, NAMES[1])):
        first = min(text.index(name) for name in names)
        expected.append(start + len(text[:first].encode()))
        start += len(text.encode())
    assert [place for place, _ in marks] == expected
    for (_, words), names in zip(marks, NAMES, strict=True):
        assert len(words) == 5
        assert words < set(names)


def test_names_that_are_known_make_no_mark() -> None:
    text = write(3000, []) + write(5000, NAMES[0])
    assert marks_of(text, OLD + NAMES[0]) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        write(20_000, []),
        "日本語の文章は空白なしに続く" * 500,  # one long word
        " \n" * 5000,
        " ".join(f"w{n}" for n in range(5000)),  # new ones, of which none comes again
    ],
)
def test_a_text_without_new_words_that_stay_has_no_mark(text: str) -> None:
    assert marks_of(text, None) == []
    assert marks_of(text, OLD) == []


def test_bytes_that_are_no_text_are_counted() -> None:
    words = find_words(b"\xff\xfe abc \x80def \xf0\x9f\x8e\x89 abc")
    assert list(words) == ["abc", "def"]
    assert words["abc"].tolist() == [3, 17]
    assert words["def"].tolist() == [8]


def test_marks_are_few_and_not_near_each_other() -> None:
    text = ""
    for n in range(40):
        names = [f"{letter}{n:02d}" for letter in "ABCDEF"]
        text += write(1500, names, seed=n)
    marks = marks_of(text, OLD)
    assert len(marks) == MAX_MARKS
    places = [place for place, _ in marks]
    near = NEXT_PARTS // 2 - NEW_PARTS
    assert (np.diff(places) > near * PART).all()
    assert places == sorted(places)


def test_a_rare_word_is_not_new() -> None:
    text = "new " * (LEAST - 1) + "newer " * LEAST + "I " * 100
    assert list(select_new(find_words(text.encode()), [], PART)) == ["newer"]


def columns_of(sizes: list[int], nats: np.ndarray) -> dict[str, np.ndarray]:
    """Make the columns of targets of so many bytes, after a first token of 3 bytes."""
    ends = np.cumsum(sizes)
    return {"offset": 3 + ends - sizes, "bytes": np.array(sizes), "nll": nats}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_new_word_costs_what_its_tokens_cost(size: int) -> None:
    """The tokens may be longer than a letter, and reach over the word's borders."""
    text = write(9000, NAMES[0]).encode()
    rest = len(text) % size
    sizes = [size] * (len(text) // size)
    if rest:
        sizes.append(rest)
    nats = np.random.default_rng(0).random(len(sizes))
    learned = columns_of(sizes, nats)
    words = find_words(text)
    newcomers = select_newcomers(select_new(words, OLD, PART), learned)
    assert sorted(newcomers.words) == sorted(NAMES[0])
    times = [len(words[word]) for word in newcomers.words]
    assert times == sorted(times, reverse=True)
    expected = np.zeros(TIMES)
    for word in NAMES[0]:
        for time, place in enumerate(words[word][:TIMES]):
            first = place // size
            last = (place + len(word) - 1) // size
            expected[time] += nats[first : last + 1].sum()
    expected /= len(NAMES[0]) * np.log(2)
    assert bits_by_time(newcomers, learned) == pytest.approx(expected.tolist(), abs=1e-3)


def test_few_new_words_make_no_mean() -> None:
    text = write(9000, NAMES[0][:4]).encode()
    learned = columns_of([1] * len(text), np.ones(len(text)))
    newcomers = select_newcomers(select_new(find_words(text), OLD, PART), learned)
    assert newcomers.words == []
    assert bits_by_time(newcomers, learned) == []


def test_a_masked_word_has_no_cost() -> None:
    text = write(9000, NAMES[0]).encode()
    words = find_words(text)
    masked = NAMES[0][2]
    start = int(words[masked][3])
    kept = np.ones(len(text), bool)
    kept[start : start + len(masked)] = False
    learned = columns_of([1] * len(text), np.ones(len(text)))
    learned = {name: column[kept] for name, column in learned.items()}
    newcomers = select_newcomers(select_new(words, OLD, PART), learned)
    assert masked not in newcomers.words
    assert len(newcomers.words) == len(NAMES[0]) - 1

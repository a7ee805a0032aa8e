"""Documents, and what of them is scored.

A document is a list of segments `(text, scored)`; what is not scored is given: the model reads it, and
is not asked to predict it. A corpus is one document, unless the configuration or its format cuts it up.
"""

import itertools
import json
import re
from dataclasses import dataclass

import numpy as np

from config.schema import DataConfig
from data.tokenizer import Tokenizer
from errors import UserError

Document = list[tuple[str, bool]]

SEPARATORS = {"lines": "\n", "paragraphs": "\n\n"}  # what stands between documents, and what their end stands for
SEPARATED = {"lines": r"(?:\r?\n)+", "paragraphs": r"\r?\n(?:\r?\n)+"}  # by


@dataclass(frozen=True)
class Split:
    """Token ids `(N,)`, and which of them are scored, `(N,)` bool; None = all."""

    tokens: np.ndarray
    scored: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.scored is not None and len(self.scored) != len(self.tokens):
            raise ValueError(f"a mask for {len(self.scored):,} tokens, and there are {len(self.tokens):,}")

    def first(self, n: int) -> "Split":
        """The same, up to the n-th token that can be predicted; n = 0: all of it."""
        part = self if n == 0 else Split(self.tokens[: n + 1], None if self.scored is None else self.scored[: n + 1])
        if not part.count_scored():
            raise UserError(f"eval_tokens={n}: none of these validation tokens is scored; use more, or 0 for all")
        return part

    def targets(self) -> np.ndarray:
        """The tokens that are scored: the first has nothing to be predicted from, others may be given."""
        return self.tokens[1:] if self.scored is None else self.tokens[1:][self.scored[1:]]

    def count_scored(self) -> int:
        return len(self.targets())


def read_documents(text: str, config: DataConfig) -> list[Document]:
    """The documents of a corpus; records of JSONL, lines, paragraphs, or the text as it is."""
    if config.is_jsonl:
        return [[(prompt, False), *mark_given(completion, config.mask)]
                for prompt, completion in read_records(text, config.corpus)]
    if config.documents == "none":
        return [mark_given(text, config.mask)]
    parts = re.split(SEPARATED[config.documents], text)
    return [mark_given(part, config.mask) for part in parts if part]


def mark_given(text: str, mask: str) -> Document:
    """What the regular expression `mask` matches is given, the rest is scored; no mask, no match.

    >>> mark_given("CAT:\\nNo.\\n\\nDOG:\\nWoof.", "^[A-Z]+:$")
    [('CAT:', False), ('\\nNo.\\n\\n', True), ('DOG:', False), ('\\nWoof.', True)]
    """
    document, end = [], 0
    for match in re.finditer(mask, text, re.MULTILINE) if mask else ():
        if match[0]:
            document += [(text[end: match.start()], True), (match[0], False)]
            end = match.end()
    return [segment for segment in [*document, (text[end:], True)] if segment[0]]


def read_records(text: str, corpus: str) -> list[tuple[str, str]]:
    """(prompt, completion) of each line of JSONL; UserError naming the line that is not such a record."""
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"corpus {corpus}, line {number}: not JSON ({error})") from None
        prompt, completion = (record.get(name) if isinstance(record, dict) else None
                              for name in ("prompt", "completion"))
        if not (isinstance(prompt, str) and isinstance(completion, str) and completion):
            raise UserError(f'corpus {corpus}, line {number}: should be {{"prompt": "...", "completion": "..."}}, '
                            "two texts, the second not empty")
        try:
            (prompt + completion).encode()
        except UnicodeEncodeError:
            raise UserError(f"corpus {corpus}, line {number}: has half a character, a lone surrogate") from None
        records.append((prompt, completion))
    return records


def given_first(document: Document) -> str:
    """What a document opens with that is not scored, for a model to go on from."""
    return "".join(text for text, _ in itertools.takewhile(lambda segment: not segment[1], document))


def plain_text(documents: list[Document], between: str = "\n") -> str:
    """All characters, to learn a vocabulary from."""
    return between.join("".join(text for text, _ in document) for document in documents)


def encode_text(documents: list[Document], tokenizer: Tokenizer, config: DataConfig, name: str, owner: str) -> Split:
    """The tokens of a text, of which at least one can be scored; UserError, saying it of the `owner` in `name`."""
    try:
        split = encode_documents(documents, tokenizer, config.score_end)
    except UserError as error:  # a character that is not in the vocabulary
        raise UserError(f"{name}: {error}") from None
    if len(split.tokens) < 2:
        raise UserError(f"{name}: too short: {owner} has {len(split.tokens)} token(s), and it takes two to predict one "
                        "from the other")
    if not split.count_scored():
        raise UserError(f"{name}: nothing to score in {owner}: mask={config.mask} matches all of it")
    return split


def encode_documents(documents: list[Document], tokenizer: Tokenizer, score_end: bool) -> Split:
    """Documents as tokens, one after another.

    Segments are encoded one by one, so that no token is half given, half scored. Where the tokenizer
    has an end token, it opens the first document and closes each, opening the next.
    """
    segments = [segment for document in documents for segment in document]
    tokens, counts = tokenizer.encode_all([text for text, _ in segments])
    scored = np.repeat(np.array([scored for _, scored in segments], dtype=bool), counts)
    if tokenizer.end is not None:
        last = np.cumsum([len(document) for document in documents], dtype=int) - 1  # segment of each document
        borders = np.concatenate([[0], np.cumsum(counts)[last]])
        tokens, scored = np.insert(tokens, borders, tokenizer.end), np.insert(scored, borders, score_end)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    return Split(tokens.astype(dtype), None if scored.all() else scored)

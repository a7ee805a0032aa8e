"""Documents, and which of their tokens are targets.

A document is a list of segments (text, is_target). The model reads a masked segment and does not have to predict it.
A corpus is one document, unless its format or the option `documents` cuts it up.
"""

import itertools
import json
import re
from dataclasses import dataclass

import numpy as np
import regex

from config.errors import UserError
from config.schema import DataConfig
from data.tokenizer import Tokenizer

Document = list[tuple[str, bool]]

SEPARATORS = {"lines": "\n", "paragraphs": "\n\n"}  # between documents; what the eos token stands for
SEPARATOR_PATTERNS = {"lines": r"(?:\r?\n)+", "paragraphs": r"\r?\n(?:\r?\n)+"}
MASK_TIMEOUT = 60  # seconds


@dataclass(frozen=True)
class Split:
    """Token ids (N,), and which of them are not masked, (N,) bool; None = no token is masked."""

    tokens: np.ndarray
    unmasked: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.unmasked is not None and len(self.unmasked) != len(self.tokens):
            raise ValueError(f"a mask for {len(self.unmasked):,} tokens, and there are {len(self.tokens):,}")

    def first(self, n: int) -> "Split":
        """The same, up to the n-th token that can be a target."""
        return Split(self.tokens[:n + 1], None if self.unmasked is None else self.unmasked[:n + 1])

    def targets(self) -> np.ndarray:
        """The targets in order: all tokens but the first, which nothing precedes, and the masked ones."""
        return self.tokens[1:] if self.unmasked is None else self.tokens[1:][self.unmasked[1:]]

    def num_targets(self) -> int:
        return len(self.targets())


def read_documents(text: str, config: DataConfig) -> list[Document]:
    """The documents of a corpus: records of JSONL, lines, paragraphs, or the whole text."""
    if config.is_jsonl:
        return [[(prompt, False), *apply_mask(completion, config.mask)]
                for prompt, completion in read_records(text, config.corpus)]
    if config.documents == "none":
        return [apply_mask(text, config.mask)]
    parts = re.split(SEPARATOR_PATTERNS[config.documents], text)
    return [apply_mask(part, config.mask) for part in parts if part]


def apply_mask(text: str, mask: str) -> Document:
    """The text in segments: what the regular expression `mask` matches is masked, the rest is a target.

    >>> apply_mask("CAT:\\nNo.\\n\\nDOG:\\nWoof.", "^[A-Z]+:$")
    [('CAT:', False), ('\\nNo.\\n\\n', True), ('DOG:', False), ('\\nWoof.', True)]
    """
    document, end = [], 0
    try:
        for match in regex.finditer(mask, text, regex.MULTILINE, timeout=MASK_TIMEOUT) if mask else ():
            if match[0]:
                document += [(text[end:match.start()], True), (match[0], False)]
                end = match.end()
    except TimeoutError:
        raise UserError(f"mask={mask:.80}: took longer than {MASK_TIMEOUT} s; nested repeats such as (a+)+ take "
                        "forever: write them without nesting, or make them possessive, (a+)++") from None
    return [segment for segment in [*document, (text[end:], True)] if segment[0]]


def read_records(text: str, corpus: str) -> list[tuple[str, str]]:
    """(prompt, completion) of each line of JSONL; UserError that names the first line that is not such a record."""
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt, completion = record["prompt"], record["completion"]
            (prompt + completion).encode()
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"corpus {corpus}, line {number}: not JSON ({error})") from None
        except UnicodeEncodeError:
            raise UserError(f"corpus {corpus}, line {number}: has half a character, a lone surrogate") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            prompt = completion = None
        if not (isinstance(prompt, str) and isinstance(completion, str) and completion):
            raise UserError(f'corpus {corpus}, line {number}: should be {{"prompt": "...", "completion": "..."}}, '
                            "two texts, the second not empty")
        records.append((prompt, completion))
    return records


def opening_prompt(document: Document) -> str:
    """The masked text that a document starts with: a prompt to sample from."""
    return "".join(text for text, _ in itertools.takewhile(lambda segment: not segment[1], document))


def plain_text(documents: list[Document]) -> str:
    """All text, masked or not, to learn a vocabulary from."""
    return "\n".join("".join(text for text, _ in document) for document in documents)


def encode_text(documents: list[Document], tokenizer: Tokenizer, config: DataConfig, name: str, part: str) -> Split:
    """The tokens of a text with at least one target; UserError that names the corpus and its part."""
    try:
        split = encode_documents(documents, tokenizer, config.predict_eos)
    except UserError as error:  # a character that is not in the vocabulary
        raise UserError(f"{name}: {error}") from None
    if len(split.tokens) < 2:
        raise UserError(f"{name}: too short: {part} has {len(split.tokens)} token(s), and a prediction needs two")
    if not split.num_targets():
        raise UserError(f"{name}: no targets in {part}: mask={config.mask} matches all of it")
    return split


def encode_documents(documents: list[Document], tokenizer: Tokenizer, predict_eos: bool) -> Split:
    """Documents as tokens, one after another.

    Segments are encoded one by one, so that no token is half masked. Where the tokenizer has an eos token, it opens
    the first document and follows each; so it also opens the next.
    """
    segments = [segment for document in documents for segment in document]
    tokens, counts = tokenizer.encode_all([text for text, _ in segments])
    unmasked = np.repeat(np.array([is_target for _, is_target in segments], dtype=bool), counts)
    if tokenizer.eos is not None:
        last = np.cumsum([len(document) for document in documents], dtype=int) - 1  # segment of each document
        borders = np.concatenate([[0], np.cumsum(counts)[last]])
        tokens, unmasked = np.insert(tokens, borders, tokenizer.eos), np.insert(unmasked, borders, predict_eos)
    return Split(tokens, None if unmasked.all() else unmasked)

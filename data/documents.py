"""Documents, and which of their tokens are targets.

A document is a list of segments (text, is_target). The model reads a masked segment and does not
have to predict it. A corpus is one document, unless its format or the option `documents` cuts it
up.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import regex
from pydantic import BaseModel, Field, ValidationError

from config.errors import UserError
from config.schema import DataConfig
from data.tokenizer import Tokenizer

Document = list[tuple[str, bool]]

MASK_TIMEOUT = 60  # seconds
TUNING_FRACTION = 0.1  # of the training text


@dataclass(frozen=True)
class Split:
    """Token ids (N,), and which are not masked, (N,) bool; None = no token is masked."""

    tokens: np.ndarray
    unmasked: np.ndarray | None = None
    vocab_size: int = 2**32  # no token of a sound file is as large
    file: Path | None = None  # that has the tokens, or a pattern of several

    def take(self, at: np.ndarray | slice) -> np.ndarray:
        """Take some of the tokens, as int64. UserError for one that is not in the vocabulary.

        The hash of a large file is not compared at each start: what is read of it is checked here.
        """
        tokens = self.tokens[at].astype(np.int64)
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            remedy = f"; remove {self.file.parent}, and it is prepared again" if self.file else ""
            raise UserError(
                f"{self.file or 'the text'}: damaged: it has a token {int(tokens.max()):,}, and "
                f"the vocabulary has {self.vocab_size:,}{remedy}"
            )
        return tokens

    def first(self, n: int) -> "Split":
        """Keep the beginning, up to the n-th token that can be a target."""
        return self.part(slice(n + 1))

    def last(self, n: int) -> "Split":
        """Keep the last n tokens."""
        return self.part(slice(-n, None))

    def part(self, part: slice) -> "Split":
        unmasked = None if self.unmasked is None else self.unmasked[part]
        return replace(self, tokens=self.tokens[part], unmasked=unmasked)

    def first_target(self) -> int:
        """Find the place of the first target."""
        if self.unmasked is None:
            return 1
        return 1 + int(np.argmax(self.unmasked[1:]))

    def targets(self) -> np.ndarray:
        """Return the targets in order: tokens that are not masked, and not the first of all."""
        after_first = self.tokens[1:]
        if self.unmasked is None:
            return after_first
        return after_first[self.unmasked[1:]]

    def num_targets(self) -> int:
        if self.unmasked is None:
            return len(self.tokens) - 1
        return int(np.count_nonzero(self.unmasked[1:]))


class Exchange(BaseModel):
    """A line of a .jsonl corpus: only the completion has targets."""

    prompt: str
    completion: str = Field(min_length=1)


def split_documents(text: str, cfg: DataConfig) -> dict[str, list[Document]]:
    """Divide a text into the documents of both splits; documents stay whole.

    "val" is what `find_val` finds.
    """
    if cfg.eos_text is None:
        start, end = find_val(len(text), cfg)
        train = read_documents(text[:start], cfg)
        val = read_documents(text[start:end], cfg)
        return {"train": train, "val": val}
    documents = read_documents(text, cfg)
    start, end = find_val(len(documents), cfg)
    if not 0 < start < end:
        raise UserError(
            f"corpus {cfg.corpus}: has {len(documents)} document(s); one is needed for each split"
        )
    return {"train": documents[:start], "val": documents[start:end]}


def find_val(size: int, cfg: DataConfig) -> tuple[int, int]:
    """Find where the text for evaluations begins and ends, in characters or documents.

    It is the end of the text, validation; or with split=tuning the end of what comes before that.

    >>> find_val(200, DataConfig()), find_val(200, DataConfig(split="tuning"))
    ((180, 200), (162, 180))
    """
    start = find_cut(size, cfg.val_fraction)
    if cfg.split == "tuning":
        return find_cut(start, TUNING_FRACTION), start
    return start, size


def find_cut(size: int, fraction: float) -> int:
    """Find where the last part begins. Of two characters or documents each part has one."""
    cut = int(size * (1 - fraction))
    return min(max(1, cut), size - 1)


def read_documents(text: str, cfg: DataConfig) -> list[Document]:
    """Divide a text into documents: records of JSONL, lines, paragraphs, or the whole text."""
    if cfg.is_jsonl:
        documents = []
        for exchange in read_exchanges(text, cfg.corpus):
            completion = apply_mask(exchange.completion, cfg.mask)
            documents.append([(exchange.prompt, False), *completion])
        return documents
    parts = [text]
    if cfg.eos_text is not None:
        parts = re.split(cfg.eos_text + "\n*", text)
    return [apply_mask(part, cfg.mask) for part in parts if part]


def apply_mask(text: str, mask: str) -> Document:
    """Cut a text into segments: what the regular expression `mask` matches is masked.

    >>> apply_mask("CAT:\\nNo.\\n\\nDOG:\\nWoof.", "^[A-Z]+:$")
    [('CAT:', False), ('\\nNo.\\n\\n', True), ('DOG:', False), ('\\nWoof.', True)]
    """
    document = []
    end = 0  # of the last match
    for start, stop in find_matches(text, mask):
        document.append((text[end:start], True))
        document.append((text[start:stop], False))
        end = stop
    document.append((text[end:], True))
    return [segment for segment in document if segment[0]]


def find_matches(text: str, mask: str) -> list[tuple[int, int]]:
    """Find where each match of a regular expression starts and stops; UserError if it is none."""
    if not mask:
        return []
    try:
        matches = regex.finditer(mask, text, regex.MULTILINE, timeout=MASK_TIMEOUT)
        return [match.span() for match in matches if match[0]]
    except TimeoutError:
        raise UserError(
            f"mask={mask:.80}: took longer than {MASK_TIMEOUT} s; nested repeats such as (a+)+ "
            "take forever: write them without nesting, or make them possessive, (a+)++"
        ) from None
    except (regex.error, OverflowError, RecursionError) as error:
        raise UserError(f"mask={mask!a:.80}: not a regular expression: {error}") from None


def read_exchanges(text: str, corpus: str) -> list[Exchange]:
    """Read the lines of a .jsonl corpus; UserError that names the first line that is no record."""
    exchanges = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            exchanges.append(Exchange.model_validate_json(line))
        except ValidationError as error:
            raise UserError(
                f'corpus {corpus}, line {number}: should be {{"prompt": "...", "completion": '
                '"..."}, two texts, the second not empty (or, from the first line on, '
                f'{{"text": "..."}}): {error.errors()[0]["msg"]}'
            ) from None
    return exchanges


def encode_documents(
    documents: list[Document], tokenizer: Tokenizer, cfg: DataConfig, name: str
) -> Split:
    """Encode documents, one after another; UserError that says `name` if there is no target.

    Segments are encoded one by one, so that no token is half masked. Where the tokenizer has an eos
    token, it opens the first document and follows each; so it also opens the next.
    """
    tokens: list[np.ndarray] = []  # of each segment
    is_target: list[bool] = []

    def add_eos() -> None:
        if tokenizer.eos is not None:
            tokens.append(np.array([tokenizer.eos], tokenizer.dtype))
            is_target.append(cfg.predict_eos)

    add_eos()
    for document in documents:
        for text, text_is_target in document:
            try:
                tokens.append(tokenizer.encode(text))
            except UserError as error:  # a character that is not in the vocabulary
                raise UserError(f"{name}: {error}") from None
            is_target.append(text_is_target)
        add_eos()
    lengths = [len(part) for part in tokens]
    if sum(lengths) < 2:
        raise UserError(f"{name}: too short: a prediction needs two tokens")
    unmasked = np.repeat(is_target, lengths)
    if not unmasked[1:].any():
        raise UserError(f"{name}: no targets: mask={cfg.mask} matches all of it")
    if unmasked.all():
        return Split(np.concatenate(tokens))
    return Split(np.concatenate(tokens), unmasked)

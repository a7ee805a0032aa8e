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


@dataclass(frozen=True)
class Split:
    """Token ids (N,), and which of them are not masked, (N,) bool; None = no token is masked."""

    tokens: np.ndarray
    unmasked: np.ndarray | None = None
    vocab_size: int = 2**32  # no token of a sound file is as large
    file: Path | None = None  # that has the tokens, or a pattern of several

    def take(self, at: np.ndarray | slice) -> np.ndarray:
        """Some of the tokens, as int64. UserError for one that is not in the vocabulary.

        The hash of a large file is not compared at each start: what is read of it is checked here.
        """
        tokens = self.tokens[at].astype(np.int64)
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            remedy = f"; remove {self.file.parent}, and it is prepared again" if self.file else ""
            where = self.file or "the text"
            raise UserError(
                f"{where}: damaged: it has a token {int(tokens.max()):,}, and the "
                f"vocabulary has {self.vocab_size:,}{remedy}"
            )
        return tokens

    def first(self, n: int) -> "Split":
        """The same, up to the n-th token that can be a target."""
        unmasked = None if self.unmasked is None else self.unmasked[: n + 1]
        return replace(self, tokens=self.tokens[: n + 1], unmasked=unmasked)

    def last(self, n: int) -> "Split":
        """The last n tokens."""
        return Split(self.tokens[-n:], None if self.unmasked is None else self.unmasked[-n:])

    def first_target(self) -> int:
        """The place of the first token that can be a target, and is not masked."""
        return 1 if self.unmasked is None else 1 + int(np.argmax(self.unmasked[1:]))

    def targets(self) -> np.ndarray:
        """The targets in order: all tokens but the first, which nothing precedes, and the masked
        ones.
        """
        return self.tokens[1:] if self.unmasked is None else self.tokens[1:][self.unmasked[1:]]

    def num_targets(self) -> int:
        if self.unmasked is None:
            return len(self.tokens) - 1
        return int(np.count_nonzero(self.unmasked[1:]))


class Record(BaseModel):
    """A line of a .jsonl corpus."""

    prompt: str
    completion: str = Field(min_length=1)


def split_documents(text: str, cfg: DataConfig) -> dict[str, list[Document]]:
    """The documents of both splits. The validation split is the end of the text; documents stay
    whole.
    """
    if cfg.eos_text is None:
        cut = int(len(text) * (1 - cfg.val_fraction))
        return {"train": read_documents(text[:cut], cfg), "val": read_documents(text[cut:], cfg)}
    documents = read_documents(text, cfg)
    if len(documents) < 2:
        raise UserError(
            f"corpus {cfg.corpus}: has {len(documents)} document(s); one is needed for each split"
        )
    cut = min(max(1, int(len(documents) * (1 - cfg.val_fraction))), len(documents) - 1)
    return {"train": documents[:cut], "val": documents[cut:]}


def read_documents(text: str, cfg: DataConfig) -> list[Document]:
    """The documents of a text: records of JSONL, lines, paragraphs, or the whole text."""
    if cfg.is_jsonl:
        return [
            [(record.prompt, False), *apply_mask(record.completion, cfg.mask)]
            for record in read_records(text, cfg.corpus)
        ]
    parts = [text] if cfg.eos_text is None else re.split(cfg.eos_text + "\n*", text)
    return [apply_mask(part, cfg.mask) for part in parts if part]


def apply_mask(text: str, mask: str) -> Document:
    """The text in segments: what the regular expression `mask` matches is masked, the rest is a
    target.

    >>> apply_mask("CAT:\\nNo.\\n\\nDOG:\\nWoof.", "^[A-Z]+:$")
    [('CAT:', False), ('\\nNo.\\n\\n', True), ('DOG:', False), ('\\nWoof.', True)]
    """
    document, end = [], 0
    try:
        for match in (
            regex.finditer(mask, text, regex.MULTILINE, timeout=MASK_TIMEOUT) if mask else ()
        ):
            if match[0]:
                document += [(text[end : match.start()], True), (match[0], False)]
                end = match.end()
    except TimeoutError:
        raise UserError(
            f"mask={mask:.80}: took longer than {MASK_TIMEOUT} s; nested repeats such as (a+)+ take "
            "forever: write them without nesting, or make them possessive, (a+)++"
        ) from None
    except (regex.error, OverflowError, RecursionError) as error:
        raise UserError(f"mask={mask!a:.80}: not a regular expression: {error}") from None
    return [segment for segment in [*document, (text[end:], True)] if segment[0]]


def read_records(text: str, corpus: str) -> list[Record]:
    """The lines of a .jsonl corpus; UserError that names the first line that is not a record."""
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError as error:
                raise UserError(
                    f'corpus {corpus}, line {number}: should be {{"prompt": "...", "completion": "..."}}, '
                    "two texts, the second not empty (or, from the first line on, "
                    f'{{"text": "..."}}): {error.errors()[0]["msg"]}'
                ) from None
    return records


def encode_documents(
    documents: list[Document], tokenizer: Tokenizer, cfg: DataConfig, name: str
) -> Split:
    """Documents as tokens, one after another; UserError that says `name` if none of the tokens is a
    target.

    Segments are encoded one by one, so that no token is half masked. Where the tokenizer has an eos
    token, it opens the first document and follows each; so it also opens the next.
    """
    eos = (
        []
        if tokenizer.eos is None
        else [(np.array([tokenizer.eos], tokenizer.dtype), cfg.predict_eos)]
    )
    parts = [*eos]
    for document in documents:
        try:
            parts += [(tokenizer.encode(text), is_target) for text, is_target in document]
        except UserError as error:  # a character that is not in the vocabulary
            raise UserError(f"{name}: {error}") from None
        parts += eos
    if sum(len(tokens) for tokens, _ in parts) < 2:
        raise UserError(f"{name}: too short: a prediction needs two tokens")
    unmasked = np.repeat(
        [is_target for _, is_target in parts], [len(tokens) for tokens, _ in parts]
    )
    if not unmasked[1:].any():
        raise UserError(f"{name}: no targets: mask={cfg.mask} matches all of it")
    return Split(
        np.concatenate([tokens for tokens, _ in parts]), None if unmasked.all() else unmasked
    )

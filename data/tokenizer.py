"""Text to tokens and back, exactly.

A tokenizer is saved with the run as `tokenizer.json`, so that sampling needs nothing else.
"""

import base64
import itertools
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import UserError
from files import read_sealed

# Words with the space before them, numbers, punctuation, line ends, and other spaces; every
# character is in one of them. Pieces are short, so that merging them takes linear time.
PATTERN = r" ?\p{L}{1,32}(?:'\p{L}{1,8})?| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,16}|[\r\n]{1,16}|\s{1,16}"

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # Radford et al. 2019


class Tokenizer:
    """What char and byte-pair tokens have in common."""

    token_bytes: list[bytes]  # the UTF-8 bytes that each token stands for, by token id
    separator: str | None  # what the end token stands for; None without one

    @property
    def end(self) -> int | None:
        """The token that opens and closes documents, the last of the vocabulary; None where there is none."""
        return self.vocab_size - 1 if self.separator is not None else None

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    def encode(self, text: str) -> np.ndarray:
        """Token ids `(N,)` of any text of this tokenizer's characters."""
        raise NotImplementedError

    def encode_all(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids `(N,)` of many texts, each encoded by itself; and how many each has."""
        raise NotImplementedError

    def to_json(self) -> dict[str, object]:
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """At least one token to go on from: a document opens with the end of the one before, no text is a new line."""
        tokens: list[int] = self.encode(text).tolist()
        if self.end is not None:
            return [self.end, *tokens]
        return tokens or [self.token_bytes.index(b"\n") if b"\n" in self.token_bytes else 0]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; a character cut in two becomes U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self.token_bytes[token] for token in tokens)

    def count_bytes(self, tokens: np.ndarray) -> int:
        """Bytes of UTF-8 that some tokens stand for: what bits per byte are divided by."""
        return int(self.byte_lengths[tokens].sum())

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of each token, `(V,)`."""
        return np.array([len(token) for token in self.token_bytes])


class CharTokenizer(Tokenizer):
    """A token is a character; the vocabulary is every character of the corpus, in code point order."""

    def __init__(self, characters: str, separator: str | None = None) -> None:
        self.characters, self.separator = "".join(sorted(set(characters))), separator
        self.token_bytes = [text.encode() for text in [*self.characters, *([separator] if separator else [])]]

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Token ids `(len(text),)`; UserError naming the first character that the corpus doesn't have."""
        codes = _code_points(text)
        tokens = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        if len(wrong := np.flatnonzero(self._codes[tokens] != codes)):
            at = int(wrong[0])
            raise UserError(f"the character {text[at]!r} (U+{ord(text[at]):04X}, at position {at}) is not in this "
                            f"char vocabulary of {len(self.characters)}; leave it out, or train with --tokenizer=bpe")
        return tokens

    def encode_all(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.encode("".join(texts)), np.array([len(text) for text in texts], dtype=np.int64)

    def to_json(self) -> dict[str, object]:
        return {"kind": "char", "characters": self.characters, "separator": self.separator}


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding, run by tiktoken: any text has tokens, and comes back."""

    def __init__(self, pattern: str, ranks: list[bytes], special: dict[str, int], separator: str | None = None) -> None:
        self.pattern, self.ranks, self.special, self.separator = pattern, ranks, special, separator
        self.token_bytes = ranks + [(separator or text).encode() for text in special]

    @cached_property
    def _encoding(self):  # type: ignore[no-untyped-def]
        import tiktoken

        return tiktoken.Encoding("run", pat_str=self.pattern, special_tokens=self.special,
                                 mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)})

    def encode(self, text: str) -> np.ndarray:
        """Token ids; what looks like a special token in the text is ordinary text."""
        return np.array(self._encoding.encode_ordinary(text), dtype=np.int64)

    def encode_all(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._encoding.encode_ordinary(text) for text in texts]
        return (np.fromiter(itertools.chain.from_iterable(parts), dtype=np.int64),
                np.array([len(part) for part in parts], dtype=np.int64))

    def to_json(self) -> dict[str, object]:
        return {"kind": "bpe", "pattern": self.pattern, "special": self.special, "separator": self.separator,
                "ranks": [base64.b64encode(token).decode() for token in self.ranks]}


def make_tokenizer(kind: str, text: str, train_text: str, vocab_size: int, separator: str | None = None) -> Tokenizer:
    """A tokenizer for a corpus: `char` and `gpt2` are given, `bpe` is learned from the training split.

    With a separator of documents it has an end token, which stands for that separator.
    """
    if kind == "char":
        return CharTokenizer(text, separator)
    return _load_gpt2(separator) if kind == "gpt2" else _train_bpe(train_text, vocab_size, separator)


def _train_bpe(text: str, vocab_size: int, separator: str | None) -> BPETokenizer:
    """At most `vocab_size` tokens, the 256 bytes among them; a short text has fewer pairs to merge."""
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator([text], vocab_size - bool(separator), pattern=PATTERN)
    ranks = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    return BPETokenizer(PATTERN, ranks, {"<|end|>": len(ranks)} if separator else {}, separator)


def _load_gpt2(separator: str | None) -> BPETokenizer:
    import tiktoken

    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' errors, or a cache that cannot be read
        raise UserError(f"tiktoken could not fetch the gpt2 vocabulary ({type(error).__name__}); connect to the "
                        "network once, or set TIKTOKEN_CACHE_DIR to a folder that has it, or use --tokenizer=bpe"
                        ) from None
    ranks = sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.__getitem__)
    return BPETokenizer(GPT2_PATTERN, ranks, gpt2._special_tokens, separator)


def load_tokenizer(path: Path, remedy: str) -> Tokenizer:
    """The tokenizer of a prepared corpus or a run; UserError, with the remedy, if the file is not one."""
    try:
        saved = json.loads(read_sealed(path, remedy))
        if saved["kind"] == "char":
            return CharTokenizer(saved["characters"], saved.get("separator"))
        if saved["pattern"] not in (PATTERN, GPT2_PATTERN):  # a stranger's could take forever
            raise ValueError(f"the pattern {saved['pattern']!r:.40} is not one of ours")
        ranks = [base64.b64decode(token, validate=True) for token in saved["ranks"]]
        if len(set(ranks)) < len(ranks) or not {bytes([byte]) for byte in range(256)} <= set(ranks):
            raise ValueError("its tokens are not distinct, or leave out a byte")
        if [*saved["special"].values()] != [*range(len(ranks), len(ranks) + len(saved["special"]))]:
            raise ValueError("its special tokens do not follow on the others")
        return BPETokenizer(saved["pattern"], ranks, saved["special"], saved.get("separator"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a tokenizer of this program ({type(error).__name__}: {error}); {remedy}"
                        ) from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)

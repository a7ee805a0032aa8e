"""Text to tokens and back, exactly.

A tokenizer is saved with the run as `tokenizer.json`, so that sampling needs nothing else.
"""

import base64
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import UserError

# Words with the space before them, numbers, punctuation, line ends, and other spaces; every
# character is in one of them. Pieces are short, so that merging them takes linear time.
PATTERN = r" ?\p{L}{1,32}(?:'\p{L}{1,8})?| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,16}|[\r\n]{1,16}|\s{1,16}"


class Tokenizer:
    """What char and byte-pair tokens have in common."""

    token_bytes: list[bytes]  # the UTF-8 bytes that each token stands for, by token id

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    def encode(self, text: str) -> np.ndarray:
        """Token ids `(N,)` of any text of this tokenizer's characters."""
        raise NotImplementedError

    def to_json(self) -> dict[str, object]:
        raise NotImplementedError

    def first_token(self) -> int:
        """What text goes on from when there is none: a new line, if the vocabulary has it."""
        return self.token_bytes.index(b"\n") if b"\n" in self.token_bytes else 0

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

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self.token_bytes = [character.encode() for character in self.characters]

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

    def to_json(self) -> dict[str, object]:
        return {"kind": "char", "characters": self.characters}


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding, run by tiktoken: any text has tokens, and comes back."""

    def __init__(self, pattern: str, ranks: list[bytes], special: dict[str, int]) -> None:
        self.pattern, self.ranks, self.special = pattern, ranks, special
        self.token_bytes = ranks + [text.encode() for text in special]

    @cached_property
    def _encoding(self):  # type: ignore[no-untyped-def]
        import tiktoken

        return tiktoken.Encoding("run", pat_str=self.pattern, special_tokens=self.special,
                                 mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)})

    def encode(self, text: str) -> np.ndarray:
        """Token ids; what looks like a special token in the text is ordinary text."""
        return np.array(self._encoding.encode_ordinary(text), dtype=np.int64)

    def to_json(self) -> dict[str, object]:
        return {"kind": "bpe", "pattern": self.pattern, "special": self.special,
                "ranks": [base64.b64encode(token).decode() for token in self.ranks]}


def make_tokenizer(kind: str, text: str, train_text: str, vocab_size: int) -> Tokenizer:
    """A tokenizer for a corpus: `char` and `gpt2` are given, `bpe` is learned from the training split."""
    if kind == "char":
        return CharTokenizer(text)
    return _load_gpt2() if kind == "gpt2" else _train_bpe(train_text, vocab_size)


def _train_bpe(text: str, vocab_size: int) -> BPETokenizer:
    """At most `vocab_size` tokens, the 256 bytes among them; a short text has fewer pairs to merge."""
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator([text], vocab_size, pattern=PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return BPETokenizer(PATTERN, [bytes(token) for token, _ in ranks], {})


def _load_gpt2() -> BPETokenizer:
    import tiktoken

    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' errors, or a cache that cannot be read
        raise UserError(f"tiktoken could not fetch the gpt2 vocabulary ({type(error).__name__}); connect to the "
                        "network once, or set TIKTOKEN_CACHE_DIR to a folder that has it, or use --tokenizer=bpe"
                        ) from None
    ranks = sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.__getitem__)
    return BPETokenizer(gpt2._pat_str, ranks, gpt2._special_tokens)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    path.write_text(json.dumps(tokenizer.to_json(), ensure_ascii=True), encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a prepared corpus or a run; UserError if the file is not one."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["kind"] == "char":
            return CharTokenizer(saved["characters"])
        return BPETokenizer(saved["pattern"], [base64.b64decode(t, validate=True) for t in saved["ranks"]],
                            saved["special"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a tokenizer of this program ({type(error).__name__}: {error})") from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)

"""Text to tokens and back, exactly. A run keeps its tokenizer as tokenizer.json."""

import base64
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from config.errors import UserError

# Words with the space before them, numbers, punctuation, line ends, other spaces: every character is in one of them.
# Pieces are short, so that merging them takes linear time.
PATTERN = r" ?\p{L}{1,32}(?:'\p{L}{1,8})?| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,16}|[\r\n]{1,16}|\s{1,16}"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # Radford et al. 2019
PIECE = 2**22  # characters encoded, or tokens counted, at once, which bounds the memory


class Tokenizer:
    """What character and byte-pair tokenizers have in common."""

    token_bytes: list[bytes]  # the UTF-8 bytes of each token, by token id
    eos_text: str | None  # the text that the eos token stands for; None without an eos token

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @property
    def eos(self) -> int | None:
        """The token before and after each document, the last of the vocabulary; None without documents."""
        return self.vocab_size - 1 if self.eos_text is not None else None

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def encode(self, text: str) -> np.ndarray:
        """Token ids (N,); UserError for a character that is not in the vocabulary."""
        raise NotImplementedError

    def encode_all(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (N,) of many texts, each encoded by itself, and the number of tokens of each."""
        parts = [self.encode(text) for text in texts]
        return np.concatenate([np.zeros(0, self.dtype), *parts]), np.array([len(part) for part in parts], np.int64)

    def to_json(self) -> dict[str, object]:
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """At least one token to continue: a document starts with eos, an empty text with a new line."""
        tokens: list[int] = self.encode(text).tolist()
        if self.eos is not None:
            return [self.eos, *tokens]
        return tokens or [self.token_bytes.index(b"\n") if b"\n" in self.token_bytes else 0]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; a character cut in two becomes U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self.token_bytes[token] for token in tokens)

    def count_bytes(self, tokens: np.ndarray) -> int:
        """UTF-8 bytes of some tokens; bits per byte divide by it."""
        pieces = (tokens[start:start + PIECE] for start in range(0, len(tokens), PIECE))
        return sum(int(np.bincount(piece, minlength=self.vocab_size) @ self.byte_lengths) for piece in pieces)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of each token, (V,)."""
        return np.array([len(token) for token in self.token_bytes])


class CharTokenizer(Tokenizer):
    """A token is a character; the vocabulary is every character of the corpus, in the order of code points."""

    def __init__(self, characters: str, eos_text: str | None = None) -> None:
        self.characters, self.eos_text = "".join(sorted(set(characters))), eos_text
        self.token_bytes = [text.encode() for text in [*self.characters, *([eos_text] if eos_text else [])]]

    @cached_property
    def _table(self) -> np.ndarray:
        """The token of each code point; V where there is none."""
        codes = _code_points(self.characters)
        table = np.full(int(codes.max(initial=0)) + 2, self.vocab_size, dtype=np.uint32)
        table[codes] = np.arange(len(codes))
        return table

    def encode(self, text: str) -> np.ndarray:
        tokens = np.empty(len(text), self.dtype)
        for start in range(0, len(text), PIECE):
            codes = _code_points(text[start:start + PIECE])
            piece = self._table[np.minimum(codes, len(self._table) - 1)]
            if len(unknown := np.flatnonzero(piece == self.vocab_size)):
                at = start + int(unknown[0])
                raise UserError(f"the character {text[at]!r} (U+{ord(text[at]):04X}, at position {at}) is not in this "
                                f"char vocabulary of {len(self.characters)}; leave it out, or train with "
                                "--tokenizer=bpe")
            tokens[start:start + PIECE] = piece
        return tokens

    def encode_all(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.encode("".join(texts)), np.array([len(text) for text in texts], dtype=np.int64)

    def to_json(self) -> dict[str, object]:
        return {"kind": "char", "characters": self.characters, "eos_text": self.eos_text}


class BPETokenizer(Tokenizer):
    """Byte-pair encoding of bytes, run by tiktoken: any text has tokens, and they give it back."""

    def __init__(self, pattern: str, ranks: list[bytes], special: dict[str, int], eos_text: str | None = None) -> None:
        self.pattern, self.ranks, self.special, self.eos_text = pattern, ranks, special, eos_text
        self.token_bytes = ranks + [(eos_text or text).encode() for text in special]

    @cached_property
    def _encoding(self):  # type: ignore[no-untyped-def]
        import tiktoken

        return tiktoken.Encoding("run", pat_str=self.pattern, special_tokens=self.special,
                                 mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)})

    def encode(self, text: str) -> np.ndarray:
        """Token ids; text that looks like a special token is ordinary text."""
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)

    def to_json(self) -> dict[str, object]:
        return {"kind": "bpe", "pattern": self.pattern, "special": self.special, "eos_text": self.eos_text,
                "ranks": [base64.b64encode(token).decode() for token in self.ranks]}


def make_tokenizer(kind: str, characters: str, train_text: str, vocab_size: int, eos_text: str | None = None
                   ) -> Tokenizer:
    """A tokenizer for a corpus: char needs its characters, bpe learns from its training split, gpt2 is given."""
    if kind == "char":
        return CharTokenizer(characters, eos_text)
    return _load_gpt2(eos_text) if kind == "gpt2" else _train_bpe(train_text, vocab_size, eos_text)


def _train_bpe(text: str, vocab_size: int, eos_text: str | None) -> BPETokenizer:
    """At most `vocab_size` tokens, the 256 bytes among them; a short text has fewer pairs to merge."""
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator([text], vocab_size - bool(eos_text), pattern=PATTERN)
    ranks = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    return BPETokenizer(PATTERN, ranks, {"<|eos|>": len(ranks)} if eos_text else {}, eos_text)


def _load_gpt2(eos_text: str | None) -> BPETokenizer:
    import tiktoken

    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # of requests, or of a cache that cannot be read
        raise UserError(f"tiktoken could not fetch the gpt2 vocabulary ({type(error).__name__}); connect to the "
                        "network once, or set TIKTOKEN_CACHE_DIR to a folder that has it, or use --tokenizer=bpe"
                        ) from None
    ranks = sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.__getitem__)
    return BPETokenizer(GPT2_PATTERN, ranks, gpt2._special_tokens, eos_text)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a prepared corpus or a run; UserError if the file is not one."""
    try:
        saved = json.loads(path.read_bytes())
        if saved["kind"] == "char":
            return CharTokenizer(saved["characters"], saved["eos_text"])
        if saved["pattern"] not in (PATTERN, GPT2_PATTERN):  # a stranger's pattern could take forever
            raise ValueError(f"the pattern {saved['pattern']!r:.40} is not one of this program's")
        ranks = [base64.b64decode(token, validate=True) for token in saved["ranks"]]
        if len(set(ranks)) < len(ranks) or not {bytes([byte]) for byte in range(256)} <= set(ranks):
            raise ValueError("its tokens are not distinct, or a byte is missing")
        if [*saved["special"].values()] != [*range(len(ranks), len(ranks) + len(saved["special"]))]:
            raise ValueError("its special tokens do not follow the others")
        return BPETokenizer(saved["pattern"], ranks, saved["special"], saved["eos_text"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a tokenizer of this program ({type(error).__name__}: {error})") from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)

"""Text to tokens and back, exactly. A run keeps its tokenizer as tokenizer.json."""

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
PIECE = 2**22  # tokens counted at once, which bounds the memory


class Tokenizer:
    """What character and byte-pair tokenizers have in common.

    `token_bytes` has the UTF-8 bytes of each token, by token id. `eos_text` is the text that the eos token stands for,
    None without an eos token.
    """

    def __init__(self, token_bytes: list[bytes], eos_text: str | None) -> None:
        self.token_bytes, self.eos_text = token_bytes, eos_text
        self.vocab_size = len(token_bytes)
        self.eos = None if eos_text is None else self.vocab_size - 1  # before and after each document
        self.dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        self.byte_lengths = np.array([len(token) for token in token_bytes])  # (V,)

    def encode(self, text: str) -> np.ndarray:
        """Token ids (N,); UserError for a character that is not in the vocabulary."""
        raise NotImplementedError

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
        return sum(int(self.byte_lengths[tokens[start:start + PIECE]].sum()) for start in range(0, len(tokens), PIECE))


class CharTokenizer(Tokenizer):
    """A token is a character; the vocabulary is every character of the corpus, in the order of code points."""

    def __init__(self, characters: str, eos_text: str | None = None) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._ids = {character: token for token, character in enumerate(self.characters)}
        super().__init__([text.encode() for text in [*self.characters, *([eos_text] if eos_text else [])]], eos_text)

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.fromiter(map(self._ids.__getitem__, text), self.dtype, len(text))
        except KeyError as error:
            unknown = error.args[0]
            raise UserError(f"the character {unknown!r} (U+{ord(unknown):04X}, at position {text.index(unknown)}) is "
                            f"not in this char vocabulary of {len(self.characters)}; leave it out, or train with "
                            "--tokenizer=bpe") from None

    def to_json(self) -> dict[str, object]:
        return {"kind": "char", "characters": self.characters, "eos_text": self.eos_text}


class BPETokenizer(Tokenizer):
    """Byte-pair encoding of bytes, run by tiktoken: any text has tokens, and they give it back."""

    def __init__(self, pattern: str, token_bytes: list[bytes], eos_text: str | None = None) -> None:
        super().__init__(token_bytes, eos_text)
        self.pattern = pattern

    @cached_property
    def _encoding(self):  # type: ignore[no-untyped-def]
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(self.token_bytes[:self.eos])}  # text never becomes eos
        return tiktoken.Encoding("run", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text).astype(self.dtype)

    def to_json(self) -> dict[str, object]:
        return {"kind": "bpe", "pattern": self.pattern, "eos_text": self.eos_text,
                "tokens": [token.decode("latin-1") for token in self.token_bytes]}  # a character for each byte


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
    tokens = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    return BPETokenizer(PATTERN, tokens + ([eos_text.encode()] if eos_text else []), eos_text)


def _load_gpt2(eos_text: str | None) -> BPETokenizer:
    """GPT-2's 50,257 tokens. The last, <|endoftext|>, is the eos token; text never becomes it."""
    import tiktoken

    try:
        ranks = tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:  # of requests, or of a cache that cannot be read
        raise UserError(f"tiktoken could not fetch the gpt2 vocabulary ({type(error).__name__}); connect to the "
                        "network once, or set TIKTOKEN_CACHE_DIR to a folder that has it, or use --tokenizer=bpe"
                        ) from None
    return BPETokenizer(GPT2_PATTERN, [*sorted(ranks, key=ranks.__getitem__), (eos_text or "<|endoftext|>").encode()],
                        eos_text)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a prepared corpus or a run; UserError if the file is not one."""
    try:
        saved = json.loads(path.read_bytes())
        if saved["kind"] == "char":
            return CharTokenizer(saved["characters"], saved["eos_text"])
        tokens = [token.encode("latin-1") for token in saved["tokens"]]
        if saved["pattern"] not in (PATTERN, GPT2_PATTERN) or not {bytes([byte]) for byte in range(256)} <= {*tokens}:
            raise ValueError("an unknown pattern, or a byte is missing")
        return BPETokenizer(saved["pattern"], tokens, saved["eos_text"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a tokenizer of this program ({type(error).__name__}: {error})") from None

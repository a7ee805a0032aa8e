"""Text to tokens and back, exactly. A run keeps its tokenizer as tokenizer.json."""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from config.errors import DamagedError, UserError, first_line
from config.files import check_entries, without_bom

PATTERNS = {
    # Words with the space before them, numbers, punctuation, line ends, other spaces: every
    # character is in one of them. Pieces are short, so that merging them takes linear time.
    "bpe": r" ?\p{L}{1,32}(?:'\p{L}{1,8})?| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]{1,16}|[\r\n]{1,16}|\s{1,16}",
    # Radford et al. 2019
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
}

BYTES = {bytes([byte]) for byte in range(256)}
MAX_TOKEN_BYTES = 1000  # of a token in a file: those of bpe and gpt2 have at most some 200
SPECIAL = re.compile(r"<.+>|\[.+\]")  # as some models call tokens that stand for no text
UNKNOWN = 2**32 - 1
EOS = b"<|endoftext|>"  # GPT-2's eos token, and that of any model in Hugging Face's format


class Tokenizer(BaseModel):
    """Makes tokens of characters (char), or of pairs of bytes (bpe and gpt2, by tiktoken)."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    kind: Literal["char", "bpe", "gpt2"]
    token_bytes: list[bytes]  # the UTF-8 bytes of each token, by token id
    # what the eos token, the last one, stands for; None without an eos token
    eos_text: str | None = None

    def __eq__(self, other: object) -> bool:
        # pydantic would compare cached arrays, too
        return isinstance(other, Tokenizer) and self._identity() == other._identity()

    def _identity(self) -> tuple[str, list[bytes], str | None]:
        return self.kind, self.token_bytes, self.eos_text

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @property
    def eos(self) -> int | None:
        """The token before and after each document; None without documents."""
        return None if self.eos_text is None else self.vocab_size - 1

    @property
    def end(self) -> int | None:
        """The token with which a model ends a text: eos, or <|endoftext|> without documents too."""
        has_end = self.eos is not None or self.token_bytes[-1:] == [EOS]
        return self.vocab_size - 1 if has_end else None

    def window_border(self, padded: bool) -> int | None:
        """Return the eos token if each window holds one document, `padded`; else None."""
        return self.eos if padded else None

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of each token, (V,)."""
        return np.array([len(token) for token in self.token_bytes])

    @cached_property
    def ids(self) -> dict[Any, int]:
        """The token of each character or string of bytes; no text becomes the eos token."""
        names: Iterable[Any] = self.token_bytes[: self.eos]
        if self.kind == "char":
            names = [token.decode() for token in names]
        return {name: number for number, name in enumerate(names)}

    @cached_property
    def char_ids(self) -> np.ndarray:
        """The token of each code point, or UNKNOWN."""
        ids = np.full(0x110000, UNKNOWN, np.uint32)
        for character, token in self.ids.items():
            if len(character) == 1:  # the others are names, such as EOS
                ids[ord(character)] = token
        return ids

    @property
    def characters(self) -> frozenset[str]:
        """The characters that a char tokenizer knows."""
        return frozenset(name for name in self.ids if len(name) == 1)

    @cached_property
    def encoding(self) -> Any:
        import tiktoken

        return tiktoken.Encoding(
            self.kind, pat_str=PATTERNS[self.kind], mergeable_ranks=self.ids, special_tokens={}
        )

    def encode(self, text: str) -> np.ndarray:
        """Encode a text, (N,); UserError for a character that is not in the vocabulary."""
        if self.kind != "char":
            return self.encoding.encode_to_numpy(text).astype(self.dtype)
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        tokens = self.char_ids[code_points]
        unknown = np.flatnonzero(tokens == UNKNOWN)
        if unknown.size:
            at = int(unknown[0])
            others = f", nor are {len(unknown) - 1:,} others after it" if len(unknown) > 1 else ""
            raise UserError(
                f"the character {text[at]!r} (U+{ord(text[at]):04X}, at position {at}) is not in "
                f"this char vocabulary of {len(self.ids)}{others}; leave it out, use "
                "--unknown=replace (evaluate.py, sample.py), or train with --tokenizer=bpe"
            )
        return tokens.astype(self.dtype)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text to continue, as at least one token.

        A document starts with eos, and an empty text with a new line.
        """
        tokens: list[int] = self.encode(text).tolist()
        if self.eos is not None:
            return [self.eos, *tokens]
        if tokens:
            return tokens
        return [self.token_bytes.index(b"\n") if b"\n" in self.token_bytes else 0]

    def encode_after_context(self, text: str) -> list[int]:
        """Encode a text after a token of context, eos or a new line: so all of it is scored."""
        return [*self.encode_prompt(""), *self.encode(text).tolist()]

    def decode(self, tokens: Iterable[int]) -> str:
        """Make text of tokens; a character cut in two becomes U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self.token_bytes[token] for token in tokens)

    def count_bytes(self, tokens: np.ndarray) -> int:
        """Count the UTF-8 bytes of some tokens, by which bits per byte divide."""
        return int(np.bincount(tokens, minlength=self.vocab_size) @ self.byte_lengths)


def char_tokenizer(characters: Iterable[str], eos_text: str | None = None) -> Tokenizer:
    """Make a vocabulary of these characters, in the order of code points."""
    tokens = sorted(set(characters))
    if eos_text:
        tokens.append(eos_text)
    return Tokenizer(
        kind="char", token_bytes=[token.encode() for token in tokens], eos_text=eos_text
    )


def train_bpe(text: str, vocab_size: int, eos_text: str | None = None) -> Tokenizer:
    """Learn at most `vocab_size` tokens, the 256 bytes among them.

    A short text has fewer pairs to merge.
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator([text], vocab_size - bool(eos_text), pattern=PATTERNS["bpe"])
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = [bytes(token) for token, _ in ranks]
    if eos_text:
        tokens.append(eos_text.encode())
    return Tokenizer(kind="bpe", token_bytes=tokens, eos_text=eos_text)


def make_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int, eos_text: str | None
) -> Tokenizer:
    """Make char from the characters of some texts, or learn bpe from them; gpt2 is fetched."""
    if kind == "gpt2":
        return load_gpt2(eos_text)
    if kind == "bpe":
        return train_bpe("\n".join(texts), vocab_size, eos_text)
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return char_tokenizer(characters, eos_text)


def load_gpt2(eos_text: str | None = None) -> Tokenizer:
    """Fetch GPT-2's 50,257 tokens; the last, <|endoftext|>, is eos where there are documents."""
    import tiktoken

    try:
        ranks = tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:  # of requests, or of a cache that cannot be read
        raise UserError(
            f"could not fetch the gpt2 vocabulary ({type(error).__name__}); connect to the network "
            "once, or set TIKTOKEN_CACHE_DIR to a folder that has it, or use --tokenizer=bpe"
        ) from None
    tokens = sorted(ranks, key=ranks.__getitem__)
    tokenizer = Tokenizer(kind="gpt2", token_bytes=[*tokens, EOS])
    return with_eos(tokenizer, eos_text, "gpt2")


def with_eos(tokenizer: Tokenizer, eos_text: str | None, name: str) -> Tokenizer:
    """Make the last token, eos, stand for what separates the documents of a text.

    UserError if there is no eos token for that.
    """
    if tokenizer.eos_text == eos_text:
        return tokenizer
    if tokenizer.eos_text is None and tokenizer.token_bytes[-1] != EOS:
        raise UserError(
            f"{name}: its tokens have no eos token, which the documents of this text need"
        )
    eos = EOS if eos_text is None else eos_text.encode()
    tokens = [*tokenizer.token_bytes[:-1], eos]
    return Tokenizer(kind=tokenizer.kind, token_bytes=tokens, eos_text=eos_text)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of a prepared corpus or a run; DamagedError if the file is not one."""
    try:
        tokenizer = Tokenizer.model_validate_json(without_bom(path.read_bytes()))
        check_tokens(tokenizer)
        return tokenizer
    except ValueError as error:
        reason = first_line(error)
        raise DamagedError(f"{path}: not a tokenizer of this program ({reason})") from None


def read_tokenizer(run: Path) -> Tokenizer:
    """Read the tokenizer in the directory of a run."""
    check_entries(run)
    return load_tokenizer(run / "tokenizer.json")


def check_tokens(tokenizer: Tokenizer) -> None:
    """Raise ValueError if a tokenizer is not what this program makes.

    tiktoken, in Rust, ends the process where one of the 256 bytes is missing, and takes very long
    where a token is very long.
    """
    tokens = tokenizer.token_bytes
    if not tokens:
        raise ValueError("it has no tokens")
    if max(map(len, tokens)) > MAX_TOKEN_BYTES:
        raise ValueError(f"a token has more than {MAX_TOKEN_BYTES:,} bytes")
    if tokenizer.eos is not None or tokens[-1] == EOS:
        tokens = tokens[:-1]
    if len(set(tokens)) < len(tokens):
        raise ValueError("a token is there twice")
    if tokenizer.kind != "char" and not set(tokens) >= BYTES:
        raise ValueError("one of the 256 bytes is missing")
    if tokenizer.kind == "char":
        names = [token.decode() for token in tokens]
        if any(len(name) != 1 and not SPECIAL.fullmatch(name) for name in names):
            raise ValueError("a token is more or less than one character")

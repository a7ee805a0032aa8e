"""A tokenizer in Hugging Face's tokenizer.json, and back: the same tokens for every text."""

import itertools
import math
from typing import Any, Literal

from config.errors import UserError
from data.tokenizer import EOS, PATTERNS, Tokenizer, check_tokens

# GPT-2's name for each byte: printable bytes are themselves, the others characters from U+0100 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_NAMES = {byte: chr(byte) for byte in PRINTABLE}
BYTE_NAMES |= {byte: chr(256 + number) for number, byte in enumerate(OTHERS)}
NAMED_BYTES = {name: byte for byte, name in BYTE_NAMES.items()}
OTHER_ORDER = "its tokens are not the 256 bytes and then one for each merge, in that order"

Kind = Literal["char", "bpe", "gpt2"]
BY_REGEX = {"type": "Split", "behavior": "Isolated", "invert": False}
BY_BYTES = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
SPECIAL = {
    "content": EOS.decode(),
    "special": True,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}
# How each kind of tokenizer splits a text before it looks for tokens.
SPLITS: dict[str, dict[str, Any]] = {
    "char": BY_REGEX | {"pattern": {"Regex": r"[\s\S]"}},
    "gpt2": BY_BYTES | {"use_regex": True},
    "bpe": {
        "type": "Sequence",
        "pretokenizers": [BY_REGEX | {"pattern": {"Regex": PATTERNS["bpe"]}}, BY_BYTES],
    },
}


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer.json of a tokenizer."""
    tokens = tokenizer.token_bytes
    has_eos = tokenizer.end is not None
    model: dict[str, Any]
    decoder: dict[str, Any]
    if tokenizer.kind == "char":
        names = [token.decode() for token in tokens]
        model = {"type": "WordLevel", "unk_token": ""}
        decoder = {"type": "Fuse"}
    else:
        names = [name_bytes(token) for token in tokens]
        model = {
            "type": "BPE",
            "merges": list_merges(tokenizer),
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
        }
        decoder = BY_BYTES
    added = []
    if has_eos:
        names[-1] = EOS.decode()
        added.append({"id": len(tokens) - 1, **SPECIAL})
    model["vocab"] = {name: number for number, name in enumerate(names)}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": SPLITS[tokenizer.kind],
        "model": model,
        "decoder": decoder,
    }


def name_bytes(token: bytes) -> str:
    """Return the name of a token there.

    >>> name_bytes(b" a")
    'Ġa'
    """
    return "".join(BYTE_NAMES[byte] for byte in token)


def list_merges(tokenizer: Tokenizer) -> list[list[str]]:
    """Return the two tokens that each longer one is merged of, in the order of the tokens."""
    tokens = tokenizer.token_bytes[: tokenizer.end]  # no merge makes eos
    pairs = [find_merge(token, tokenizer.ids) for token in tokens if len(token) > 1]
    return [[name_bytes(part) for part in pair] for pair in pairs]


def find_merge(token: bytes, ids: dict[Any, int]) -> list[bytes]:
    """Find the two tokens that byte-pair encoding merges last to make a token.

    It merges the earliest pair first.

    >>> find_merge(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5})
    [b'a', b'bc']
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        ranks = [ids.get(left + right, math.inf) for left, right in itertools.pairwise(parts)]
        first = ranks.index(min(ranks))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def from_tokenizer_json(found: dict[str, Any], name: str, eos: object = None) -> Tokenizer:
    """Return the tokenizer of such a file; UserError if this repository cannot make its tokens.

    `eos` is config.json's eos_token_id, a number or several. Added tokens after it, such as [PAD],
    are left out: no text becomes them.
    """
    try:
        return _read_tokenizer(found, eos)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{name}: cannot be used: {error!s:.200}") from None


def _read_tokenizer(found: dict[str, Any], eos: object) -> Tokenizer:
    """ValueError for a tokenizer that is not one of ours, or another error of what is missing."""
    model = found["model"]
    added = found["added_tokens"]
    special = {token["content"]: token["id"] for token in added}
    vocabulary: dict[str, int] = model["vocab"] | special
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    if sorted(vocabulary.values()) != list(range(len(names))):
        raise ValueError("its token ids are not 0, 1, 2, ...")
    names = names_up_to_eos(names, added, eos)
    if found.get("normalizer"):
        raise ValueError("it changes the text before it splits it (normalizer)")
    # OpenAI's own files have no type
    kind = kind_of(model.get("type", "BPE"), found["pre_tokenizer"])
    tokens = []
    for token in names:
        if kind == "char" or token in special:
            tokens.append(token.encode())
        else:
            tokens.append(bytes(NAMED_BYTES[character] for character in token))
    if kind != "char":
        _check_merges(model["merges"], vocabulary)
        if not {bytes([byte]) for byte in range(256)} <= set(tokens):
            raise ValueError(OTHER_ORDER)
    tokenizer = Tokenizer(kind=kind, token_bytes=tokens)
    check_tokens(tokenizer)
    return tokenizer


def _check_merges(merges: list[Any], vocabulary: dict[str, int]) -> None:
    """Raise a ValueError if merges do not make the tokens in their order."""
    merged = []
    for parts in merges:
        if isinstance(parts, str):  # OpenAI's own files have the two in one string
            parts = parts.split(" ")
        merged.append(vocabulary["".join(parts)])
    if merged != sorted(merged):
        raise ValueError(OTHER_ORDER)


def names_up_to_eos(names: list[str], added: list[dict[str, Any]], eos: object) -> list[str]:
    """Return the names of the tokens, without special ones after eos; the last is then EOS.

    ValueError if eos is not the last one then. A number that is that of no special token is a
    default that nobody changed.
    """
    special = {token["id"] for token in added if token.get("special", True)}
    wanted = list(eos) if isinstance(eos, list) else [eos]
    wanted += [number for number in special if names[number] == EOS.decode()]
    found = [number for number in wanted if number in special]
    length = len(names)
    while length - 1 in special and length - 1 not in found[:1]:
        length -= 1
    if not found:
        return names[:length]
    if found[0] != length - 1:
        raise ValueError(
            f"its eos token is number {found[0]} of {length:,}; here it can only be the last one"
        )
    return [*names[: length - 1], EOS.decode()]


def kind_of(model: str, splits: dict[str, Any]) -> Kind:
    """Return which of our tokenizers splits text in the same way; ValueError if none does."""
    patterns = []
    for step in splits.get("pretokenizers", [splits]):
        by_bytes = (step["type"], step.get("use_regex", True), step.get("add_prefix_space"))
        patterns.append(step.get("pattern") or by_bytes)
    kinds: dict[Kind, tuple[str, list[Any]]] = {
        "char": ("WordLevel", [{"Regex": r"[\s\S]"}]),
        "gpt2": ("BPE", [("ByteLevel", True, False)]),
        "bpe": ("BPE", [{"Regex": PATTERNS["bpe"]}, ("ByteLevel", False, False)]),
    }
    for kind, expected in kinds.items():
        if (model, patterns) == expected:
            return kind
    raise ValueError("it splits text in another way than gpt2 and this repository's char and bpe")

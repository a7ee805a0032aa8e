"""A tokenizer in Hugging Face's tokenizer.json, and back: the same tokens for every text."""

import math
from typing import Any, Literal

from config.errors import UserError
from data.tokenizer import EOS, PATTERNS, Tokenizer, check_tokens

# GPT-2's name for each byte: printable bytes are themselves, the others characters from U+0100 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_NAMES = {byte: chr(byte) for byte in PRINTABLE} | {
    byte: chr(256 + number)
    for number, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)
}


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer.json says of a tokenizer."""
    tokens, by_regex = (
        tokenizer.token_bytes,
        {"type": "Split", "behavior": "Isolated", "invert": False},
    )
    by_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    has_eos = tokenizer.eos is not None or tokens[-1] == EOS
    if tokenizer.kind == "char":
        names = [token.decode() for token in tokens]
        model: dict[str, Any] = {"type": "WordLevel", "unk_token": ""}
        splits: dict[str, Any] = by_regex | {"pattern": {"Regex": r"[\s\S]"}}
        decoder: dict[str, Any] = {"type": "Fuse"}
    else:
        names = ["".join(map(BYTE_NAMES.__getitem__, token)) for token in tokens]
        merges = [
            [
                "".join(map(BYTE_NAMES.__getitem__, part))
                for part in find_merge(token, tokenizer.ids)
            ]
            for token in tokens[: len(tokens) - has_eos]
            if len(token) > 1
        ]
        model = {
            "type": "BPE",
            "merges": merges,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
        }
        splits = (
            by_bytes | {"use_regex": True}
            if tokenizer.kind == "gpt2"
            else {
                "type": "Sequence",
                "pretokenizers": [by_regex | {"pattern": {"Regex": PATTERNS["bpe"]}}, by_bytes],
            }
        )
        decoder = by_bytes
    if has_eos:
        names[-1] = EOS.decode()
    special = {
        "content": EOS.decode(),
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    return {
        "version": "1.0",
        "added_tokens": [{"id": len(tokens) - 1, **special}] * has_eos,
        "pre_tokenizer": splits,
        "model": model | {"vocab": {name: number for number, name in enumerate(names)}},
        "decoder": decoder,
    }


def find_merge(token: bytes, ids: dict[Any, int]) -> list[bytes]:
    """The two tokens that byte-pair encoding merges last to make a token: it merges the earliest
    pair first.

    >>> find_merge(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5})
    [b'a', b'bc']
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        first = min(range(len(parts) - 1), key=lambda i: ids.get(parts[i] + parts[i + 1], math.inf))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def from_tokenizer_json(found: dict[str, Any], name: str, eos: object = None) -> Tokenizer:
    """The tokenizer that such a file describes; UserError if it makes other tokens than this
    repository can.

    `eos` is config.json's eos_token_id, a number or several. Added tokens after it, such as [PAD],
    are left out: no text becomes them.
    """
    try:
        model, added = found["model"], found["added_tokens"]
        vocabulary: dict[str, int] = model["vocab"] | {
            each["content"]: each["id"] for each in added
        }
        names = sorted(vocabulary, key=vocabulary.__getitem__)
        if sorted(vocabulary.values()) != list(range(len(names))):
            raise ValueError("its token ids are not 0, 1, 2, ...")
        names = names_up_to_eos(names, added, eos)
        if found.get("normalizer"):
            raise ValueError("it changes the text before it splits it (normalizer)")
        # OpenAI's own files have no type
        kind = kind_of(model.get("type", "BPE"), found["pre_tokenizer"])
        if kind == "char":
            tokenizer = Tokenizer(kind=kind, token_bytes=[each.encode() for each in names])
            check_tokens(tokenizer)
            return tokenizer
        to_byte, special = (
            {each: byte for byte, each in BYTE_NAMES.items()},
            {each["content"] for each in added},
        )
        tokens = [
            each.encode() if each in special else bytes(map(to_byte.__getitem__, each))
            for each in names
        ]
        merged = [
            vocabulary["".join(each if isinstance(each, list) else each.split(" "))]
            for each in model["merges"]
        ]
        if merged != sorted(merged) or not {bytes([byte]) for byte in range(256)} <= set(tokens):
            raise ValueError(
                "its tokens are not the 256 bytes and then one for each merge, in that order"
            )
        tokenizer = Tokenizer(kind=kind, token_bytes=tokens)
        check_tokens(tokenizer)
        return tokenizer
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{name}: cannot be used: {error!s:.200}") from None


def names_up_to_eos(names: list[str], added: list[dict[str, Any]], eos: object) -> list[str]:
    """The tokens, in order, without the special ones after eos; ValueError if eos is not the last
    one then.

    The eos token gets its name here, EOS. A number that is that of no special token is a default
    that nobody changed.
    """
    special = {each["id"] for each in added if each.get("special", True)}
    wanted = eos if isinstance(eos, list) else [eos]
    named = [number for number in special if names[number] == EOS.decode()]
    found = [number for number in [*wanted, *named] if number in special][:1]
    length = len(names)
    while length - 1 in special and length - 1 not in found:
        length -= 1
    if found and found != [length - 1]:
        raise ValueError(
            f"its eos token is number {found[0]} of {length:,}; here it can only be the last one"
        )
    return [*names[: length - 1], EOS.decode()] if found else names[:length]


def kind_of(model: str, splits: dict[str, Any]) -> Literal["char", "bpe", "gpt2"]:
    """Which of our tokenizers splits text in the same way; ValueError if none does."""
    steps = splits.get("pretokenizers", [splits])
    patterns = [
        step.get("pattern") or (step["type"], step.get("use_regex", True), step["add_prefix_space"])
        for step in steps
    ]
    kinds: dict[Literal["char", "bpe", "gpt2"], tuple[str, list[Any]]] = {
        "char": ("WordLevel", [{"Regex": r"[\s\S]"}]),
        "gpt2": ("BPE", [("ByteLevel", True, False)]),
        "bpe": ("BPE", [{"Regex": PATTERNS["bpe"]}, ("ByteLevel", False, False)]),
    }
    for kind, expected in kinds.items():
        if (model, patterns) == expected:
            return kind
    raise ValueError("it splits text in another way than gpt2 and this repository's char and bpe")

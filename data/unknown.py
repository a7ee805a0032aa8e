"""Characters that a char vocabulary lacks: what stands for them, and a list that gives them back.

A model of 69 characters can read any text if similar ones stand for the others, ' for ’ and e for
é. What has no similar one is left out. The list says what the characters were, so that no byte of
the text is lost; its bits are the price.
"""

import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable

from data.documents import Document
from data.tokenizer import Tokenizer

SIMILAR = [  # characters, and what stands for them if it is known; the first that fits counts
    ("“”„‟″«»", '"'),
    ('’‘‛′ʼ`´"“”„‟″«»', "'"),
    ("'’‘", '"'),
    ("—―", "--"),
    ("–‐‑‒−—―", "-"),
    ("…", "..."),
    ("[{<", "("),
    ("]}>", ")"),
    ("\t", " "),
    ("ß", "ss"),
    ("æ", "ae"),
    ("Æ", "AE"),
    ("œ", "oe"),
    ("Œ", "OE"),
    ("ø", "o"),
    ("Ø", "O"),
    ("ł", "l"),
    ("Ł", "L"),
    ("đð", "d"),
    ("ı", "i"),
]
MAX_LIST = 2**31  # bytes of a list, unpacked
SHOWN = 8  # kinds of characters that are named


class Unknown:
    """Replaces the unknown characters of a text, piece by piece, and keeps the list of what they
    were.

    `gaps` has, for each of them, the characters of the replaced text between it and the one before.
    """

    def __init__(self, known: frozenset[str]) -> None:
        self.known = known
        self.stand_ins: dict[str, str] = {}  # of each kind of unknown character
        self.gaps: list[int] = []
        self.characters: list[str] = []
        self.gap = 0  # since the last unknown character
        self.added_bytes = 0  # UTF-8 bytes of the text beyond those of the replaced text

    def replace(self, text: str) -> str:
        """The text in known characters.

        >>> unknown = Unknown(frozenset("abcde' "))
        >>> unknown.replace("décadé’ 12")
        "decade' "
        >>> unknown.restore("decade' ")
        'décadé’ 12'
        """
        kinds = set(text) - self.known
        for kind in kinds - self.stand_ins.keys():
            self.stand_ins[kind] = find_similar(kind, self.known)
        parts, at = [], 0
        if kinds:
            for match in re.finditer(f"[{re.escape(''.join(sorted(kinds)))}]", text):
                stand_in = self.stand_ins[match[0]]
                self.gaps.append(self.gap + match.start() - at)
                self.characters.append(match[0])
                self.added_bytes += len(to_bytes(match[0])) - len(to_bytes(stand_in))
                self.gap = 0
                parts += [text[at : match.start()], stand_in]
                at = match.end()
        self.gap += len(text) - at
        return "".join([*parts, text[at:]])

    def restore(self, replaced: str) -> str:
        """The text that `replace` made this of; ValueError if the list cannot belong to it."""
        parts, at = [], 0
        for gap, character in zip(self.gaps, self.characters, strict=True):
            parts += [replaced[at : at + gap], character]
            at += gap + len(self.stand_ins[character])
        return "".join([*parts, replaced[at:]])

    def pack(self) -> bytes:
        """The list as a file holds it; empty if every character is known."""
        if not self.characters:
            return b""
        content = [self.stand_ins, "".join(self.characters), self.gaps]
        return zlib.compress(
            to_bytes(json.dumps(content, ensure_ascii=False, separators=(",", ":"))), 9
        )

    def describe(self) -> str:
        """How many characters there are, and what became of each kind."""
        kinds = Counter(self.characters).most_common()
        shown = []
        for kind, count in kinds[:SHOWN]:
            stand_in = self.stand_ins[kind]
            became = f"became {stand_in}" if stand_in else "was left out"
            shown.append(f"{show_character(kind)} {became} ({count:,})")
        if len(kinds) > SHOWN:
            shown.append(f"and {len(kinds) - SHOWN:,} other kinds")
        number = len(self.characters)
        return f"{number:,} characters are not in the vocabulary of {len(self.known):,}: {', '.join(shown)}"


def replace_in_documents(
    documents: Iterable[Document], known: frozenset[str]
) -> tuple[list[Document], Unknown, Unknown]:
    """The documents in known characters; and what was unknown in targets, and in masked text, which
    costs nothing.
    """
    in_targets, masked = Unknown(known), Unknown(known)
    replaced = []
    for document in documents:
        segments = []
        for text, is_target in document:
            unknown = in_targets if is_target else masked
            segments.append((unknown.replace(text), is_target))
        replaced.append(segments)
    return replaced, in_targets, masked


def to_bytes(text: str) -> bytes:
    """UTF-8, also of bytes on a command line that are no text."""
    return text.encode(errors="surrogatepass")


def show_character(character: str) -> str:
    """A character in a line; one that cannot be printed by its number."""
    return character if character.isprintable() else f"U+{ord(character):04X}"


def unpack_list(packed: bytes, known: frozenset[str]) -> Unknown:
    """The list that `pack` made; ValueError if it is none."""
    unknown = Unknown(known)
    if packed:
        try:
            content = zlib.decompressobj().decompress(packed, MAX_LIST)
            stand_ins, characters, gaps = json.loads(content)
            unknown.stand_ins = {str(kind): str(stand_in) for kind, stand_in in stand_ins.items()}
            unknown.characters = list(characters)
            unknown.gaps = [int(gap) for gap in gaps]
            if min(unknown.gaps) < 0 or not set(unknown.characters) <= unknown.stand_ins.keys():
                raise ValueError
        except (zlib.error, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(str(error)) from None
    return unknown


def find_similar(character: str, known: frozenset[str]) -> str:
    """Known characters that stand for an unknown one; "" = it is left out.

    >>> find_similar("É", frozenset("eE")), find_similar("É", frozenset("e")), find_similar("7", frozenset("e"))
    ('E', 'e', '')
    """
    for characters, stand_in in SIMILAR:
        if character in characters and known.issuperset(stand_in):
            return stand_in
    parts = unicodedata.normalize("NFKD", character)  # é is e and an accent
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    for stand_in in (plain, plain.lower(), plain.upper()):
        if known.issuperset(stand_in):
            return stand_in
    return ""


def known_to(tokenizers: Iterable[Tokenizer]) -> frozenset[str] | None:
    """The characters that all of them know; None = every character."""
    known = [tokenizer.characters for tokenizer in tokenizers if tokenizer.kind == "char"]
    return frozenset.intersection(*known) if known else None

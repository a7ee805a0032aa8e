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

from config.values import UnknownCharacters
from data.tokenizer import Tokenizer

# characters, and what stands for them if it is known; the first that fits counts
SIMILAR = [
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
KINDS_SHOWN = 8  # of unknown characters, in a summary


class Replacer:
    """Replaces the unknown characters of a text, piece by piece, and lists what they were.

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
        """Write the text in known characters.

        >>> replacer = Replacer(frozenset("abcde' "))
        >>> replacer.replace("décadé’ 12")
        "decade' "
        >>> replacer.restore("decade' ")
        'décadé’ 12'
        """
        kinds = sorted(set(text) - self.known)
        if not kinds:
            self.gap += len(text)
            return text
        for kind in kinds:
            if kind not in self.stand_ins:
                self.stand_ins[kind] = find_similar(kind, self.known)
        parts = []
        end = 0  # of the last unknown character
        for match in re.finditer(f"[{re.escape(''.join(kinds))}]", text):
            character = match[0]
            stand_in = self.stand_ins[character]
            parts += [text[end : match.start()], stand_in]
            self.gaps.append(self.gap + match.start() - end)
            self.characters.append(character)
            self.added_bytes += len(to_bytes(character)) - len(to_bytes(stand_in))
            self.gap = 0
            end = match.end()
        self.gap += len(text) - end
        return "".join([*parts, text[end:]])

    def restore(self, replaced: str) -> str:
        """Give back the text that `replace` made this of.

        ValueError if the list cannot belong to it.
        """
        parts = []
        start = 0
        for gap, character in zip(self.gaps, self.characters, strict=True):
            parts += [replaced[start : start + gap], character]
            start += gap + len(self.stand_ins[character])
        return "".join([*parts, replaced[start:]])

    def pack(self) -> bytes:
        """Pack the list as a file holds it; empty if every character is known."""
        if not self.characters:
            return b""
        content = [self.stand_ins, "".join(self.characters), self.gaps]
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return zlib.compress(to_bytes(text), 9)

    def summary(self) -> str:
        """Say how many unknown characters there are, and what became of each kind."""
        kinds = Counter(self.characters).most_common()
        shown = []
        for kind, count in kinds[:KINDS_SHOWN]:
            stand_in = self.stand_ins[kind]
            became = f"became {stand_in}" if stand_in else "was left out"
            shown.append(f"{show_character(kind)} {became} ({count:,})")
        if len(kinds) > KINDS_SHOWN:
            shown.append(f"and {len(kinds) - KINDS_SHOWN:,} other kinds")
        return (
            f"{len(self.characters):,} characters are not in the vocabulary of "
            f"{len(self.known):,}: {', '.join(shown)}"
        )


def make_replacer(tokenizers: Iterable[Tokenizer], unknown: UnknownCharacters) -> Replacer | None:
    """Make what --unknown asks for; None where no character is replaced.

    That is where the tokenizers know every character, or an unknown one is refused.
    """
    known = known_to(tokenizers)
    if unknown == "refuse" or known is None:
        return None
    return Replacer(known)


def known_to(tokenizers: Iterable[Tokenizer]) -> frozenset[str] | None:
    """Find the characters that all of the tokenizers know; None = every character."""
    known = [tokenizer.characters for tokenizer in tokenizers if tokenizer.kind == "char"]
    return frozenset.intersection(*known) if known else None


def unpack_list(packed: bytes, known: frozenset[str]) -> Replacer:
    """Read the list that `pack` made; ValueError if it is none."""
    replacer = Replacer(known)
    if not packed:
        return replacer
    try:
        content = zlib.decompressobj().decompress(packed, MAX_LIST)
        stand_ins, characters, gaps = json.loads(content)
        for kind, stand_in in stand_ins.items():
            replacer.stand_ins[str(kind)] = str(stand_in)
        replacer.characters = list(characters)
        replacer.gaps = [int(gap) for gap in gaps]
        is_sound = min(replacer.gaps) >= 0 and set(replacer.characters) <= stand_ins.keys()
    except (zlib.error, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not is_sound:
        raise ValueError("the list does not hold together")
    return replacer


def to_bytes(text: str) -> bytes:
    """Encode a text as UTF-8, also bytes on a command line that are no text."""
    return text.encode(errors="surrogatepass")


def show_character(character: str) -> str:
    """Show a character in a line; one that cannot be printed by its number."""
    return character if character.isprintable() else f"U+{ord(character):04X}"


def find_similar(character: str, known: frozenset[str]) -> str:
    """Find known characters that stand for an unknown one; "" = it is left out.

    >>> find_similar("É", frozenset("eE")), find_similar("É", frozenset("e"))
    ('E', 'e')
    >>> find_similar("7", frozenset("e"))
    ''
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

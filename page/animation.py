"""Draws how a model learns: an SVG of a passage whose colours change as the steps go by.

It needs no script and no library, so a README can show it. Each token has a rectangle behind it,
whose opacity is its surprisal; SMIL gives each rectangle its values, one for each evaluation.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from config.errors import UserError
from config.files import check_place, write_atomically
from config.terminal import count_columns
from data.info import Baseline, choose_landmarks, passed_and_ahead
from data.show import show_token
from engine.metrics import find_best
from engine.run import Run, open_run
from page.records import read_passages
from report.analysis import Passage
from surprisal import LN2, nats_to_bits, uniform_nll

FRAMES = 24  # evaluations, spread evenly
SECONDS = 0.5  # that each is shown
REST = 8  # times as long is the last one
COSTLIEST = 10  # bits, in the strongest colour
STRONGEST = 0.85  # opacity
COLUMNS = 64  # characters in a line, at most
LINES = 14  # of the text, at most
CHARACTER = 10  # units wide
LINE = 24  # units high
MARGIN = 28
HEAD = 104  # above the text
FOOT = 64  # below it
LEGEND = (0, 1, 2, 5, 10)  # bits
STYLE = """
    svg { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f23; --dim: #5c6670;
          --line: #d9dee3; --cost: #d55e00; --loss: #0072b2; }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #14171b; --ink: #e6e9ec; --dim: #9aa4ae; --line: #363c43;
            --cost: #f0803c; --loss: #4aa8e0; } }
    text { fill: var(--ink); font: 15px system-ui, sans-serif; }
    .text { font: 16px ui-monospace, Menlo, Consolas, monospace; white-space: pre;
            direction: ltr; unicode-bidi: bidi-override; }
    .dim { fill: var(--dim); font-size: 13px; }
    .cost { fill: var(--cost); }
    .loss { fill: var(--loss); }
    .line { fill: var(--line); }
    .tick { fill: var(--ink); }
    .step { font-weight: 600; }
    .card { fill: var(--paper); stroke: var(--line); }
"""

Place = tuple[int, int, str]  # line, column and text of a token


def write_animation(path: Path, folder: Path) -> None:
    """Write the animated picture of a run, for `curves.py --animation`."""
    if path.suffix.lower() != ".svg":
        raise UserError(f"animation={path}: it is an SVG; name a file that ends with .svg")
    check_place(path)
    write_atomically(path, draw_run(open_run(folder)).encode())


def draw_run(run: Run) -> str:
    """Draw the first passage of a run at its evaluations; UserError if there is none."""
    losses: dict[int, float] = {}  # by step
    records = run.read_metrics()
    for record in records:
        if "val_nll" in record:
            losses[int(record["step"])] = record["val_nll"]
    best_step = find_best(records).get("step", 0)
    passages = read_passages(run.path / "passage.jsonl", run.tokenizer, FRAMES, best_step)
    evaluations: list[Passage] = []
    if passages:
        evaluations = [each for each in passages[0] if each.step in losses]
    if not evaluations:
        raise UserError(
            f"{run.path}: nothing to animate: it has no passage.jsonl, which a training with "
            "watchers writes, or none that can be read"
        )
    names = [show_token(run.tokenizer, token) for token in evaluations[0].tokens]
    nll = [losses[each.step] for each in evaluations]
    places = lay_out(names)
    height = HEAD + LINE * (1 + places[-1][0]) + FOOT
    parts = [
        *draw_head(run, evaluations, nll),
        *draw_tokens(places, evaluations),
        *draw_text(places),
        *draw_legend(height - FOOT + 16),
    ]
    return frame(parts, height, f"{run.name}: what each token of a text costs as the model learns")


def frame(parts: Sequence[str], height: int, title: str) -> str:
    """Put the parts of a picture on a card, which is readable on any page."""
    width = 2 * MARGIN + CHARACTER * COLUMNS
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def lay_out(names: Sequence[str]) -> list[Place]:
    """Give each token its place in lines of at most COLUMNS characters; the last ones are cut."""
    places = []
    line = 0
    column = 0
    for name in names:
        width = count_columns(name)
        if column > 0 and column + width > COLUMNS:
            line += 1
            column = 0
        if line == LINES:
            break
        places.append((line, column, name))
        column += width
        if name.endswith(("⏎", "<|eos|>")):
            line += 1
            column = 0
    return places


def draw_head(run: Run, evaluations: Sequence[Passage], nll: Sequence[float]) -> list[str]:
    """Draw the loss at each evaluation as a bar up to log|V|, and what it has passed."""
    width = CHARACTER * COLUMNS
    log_v = uniform_nll(run.info.vocab_size)
    scale = log_v or 1.0  # of a single token in the vocabulary
    unit = "character" if run.tokenizer.kind == "char" else "token"
    right = MARGIN + width
    lengths = [f"{width * min(1.0, each / scale):.0f}" for each in nll]
    drawn = [
        f'<text x="{right}" y="34" text-anchor="end" class="dim">log|V| = {log_v:.2f} nats</text>',
        rectangle("line", (MARGIN, 46, width, 10)),
        rectangle("loss", (MARGIN, 46, float(lengths[-1]), 10), animate("width", lengths)),
    ]
    landmarks = choose_landmarks(run.info.baselines)
    for baseline in landmarks:
        place = MARGIN + width * baseline.nats_per_token / scale
        if place < right - 1:
            drawn.append(rectangle("tick", (place, 43, 2, 16)))
    for number, evaluation in enumerate(evaluations):
        shown = ["0"] * len(evaluations)
        shown[number] = "1"
        passed, ahead = passed_and_ahead(nll[number], landmarks)
        standing = f"passed: {in_words(passed)}; ahead: {in_words(ahead)}"
        drawn += [
            f'<g opacity="{shown[-1]}">{animate("opacity", shown)}',
            f'<text x="{MARGIN}" y="34" class="step">step {evaluation.step:,}</text>',
            f'<text x="{MARGIN + 130}" y="34">loss {nll[number]:.2f} nats a {unit}</text>',
            f'<text x="{MARGIN}" y="80" class="dim">{escape(standing)}</text></g>',
        ]
    return drawn


def in_words(baselines: Sequence[Baseline]) -> str:
    names = [each.label.replace("uniform, ", "") for each in baselines]
    return ", ".join(names) or "none"


def draw_tokens(places: Sequence[Place], evaluations: Sequence[Passage]) -> list[str]:
    """Draw a rectangle behind each token; where the token is masked, without a colour."""
    drawn = []
    for number, (line, column, name) in enumerate(places):
        values = [opacity_of(evaluation.nll[number]) for evaluation in evaluations]
        x = MARGIN + CHARACTER * column
        box = (x, HEAD + LINE * line, CHARACTER * count_columns(name), LINE - 2)
        drawn.append(rectangle("cost", box, animate("fill-opacity", values), values[-1]))
    return drawn


def draw_text(places: Sequence[Place]) -> list[str]:
    """Draw the lines of the text; each is as wide as its rectangles, whatever the font."""
    lines: dict[int, str] = {}
    for line, _, name in places:
        lines[line] = lines.get(line, "") + name
    drawn = []
    for line, text in lines.items():
        y = HEAD + LINE * line + 16
        width = CHARACTER * count_columns(text)
        drawn.append(
            f'<text class="text" x="{MARGIN}" y="{y}" textLength="{width}">{escape(text)}</text>'
        )
    return drawn


def draw_legend(y: int) -> list[str]:
    """Draw what the colours mean."""
    right = MARGIN + CHARACTER * COLUMNS
    marks = "marks on the bar: baselines"
    drawn = [
        f'<text x="{MARGIN}" y="{y + 17}" class="dim">bits that each token costs:</text>',
        f'<text x="{right}" y="{y + 17}" text-anchor="end" class="dim">{marks}</text>',
    ]
    for number, bits in enumerate(LEGEND):
        x = MARGIN + 180 + 50 * number
        drawn.append(rectangle("cost", (x, y, 44, LINE), opacity=opacity_of(bits * LN2)))
        drawn.append(f'<text x="{x + 22}" y="{y + 17}" text-anchor="middle">{bits}</text>')
    return drawn


def opacity_of(nll: float | None) -> str:
    """Return the opacity of a token's colour.

    >>> [opacity_of(nll) for nll in (None, 0.0, 1.0, 99.0)]
    ['0', '0', '0.12', '0.85']
    """
    share = nats_to_bits(nll or 0.0) / COSTLIEST
    return f"{STRONGEST * min(1.0, max(0.0, share)):.2g}"


Box = tuple[float, float, float, float]  # x, y, width and height


def rectangle(kind: str, box: Box, content: str = "", opacity: str = "1") -> str:
    x, y, width, height = box
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'fill-opacity="{opacity}">{content}</rect>'
    )


def animate(name: str, values: Sequence[str]) -> str:
    """Give an attribute its values one after another, for ever; the last one stays longer."""
    frames = [*values, *[values[-1]] * (REST - 1)]
    seconds = SECONDS * len(frames)
    return (
        f'<animate attributeName="{name}" values="{";".join(frames)}" dur="{seconds:g}s" '
        'calcMode="discrete" repeatCount="indefinite"/>'
    )

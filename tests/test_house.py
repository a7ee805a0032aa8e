"""How this repository reads, in figures: `python tests/test_house.py` prints them, and pytest holds
them.

Counted are names, operators and literals, as the `tokenize` module tells them apart; an f-string is
one token. Lines that hold only a comment or a docstring do not count. A module is imported if an
import statement names it, wherever in a file it stands.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASIDE = ("tests", "bench")  # measured in columns and dense lines only
FORMAT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)

# The limits, and what is wanted in the end where that is less.
TOKENS_A_LINE = {"": 8.6, "train.py": 9.1, "model.py": 13.3, "loss.py": 11.0}
DENSE = 24  # tokens; a line of code with more has to be read twice
DENSEST = 32
MAX_DENSE_SHARE = 0.04
MAX_LONG_LINES = 213  # beyond 100 columns
MAX_STATEMENT = 60  # tokens
MODULES = {"train.py": 62, "sample.py": 39, "curves.py": 33}
STORY_TOKENS = 66_000  # of train.py and all that it imports
NAMES_IMPORTED = 51  # by train.py
PARAMETERS = 5  # by position, and as many more by keyword
MAX_LONG_STATEMENTS = 16
MAX_GOLF = 170
MAX_MANY_PARAMETERS = 11
MAX_DENSEST_LINES = 25
MAX_DENSE_LINES_ASIDE = 620
ALL_TOKENS = 77_000


def files(*folders: str) -> list[Path]:
    """The Python files of the repository, or of some of its folders."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        is_ours = parts[0] != "out" and not any(part.startswith(".") for part in parts)
        if is_ours and (not folders or part_of(path) in folders):
            found.append(path)
    return found


def part_of(path: Path) -> str:
    """The folder of a file in the repository; "" at the top."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


@cache
def house() -> list[Path]:
    """What is measured in full."""
    return [path for path in files() if part_of(path) not in ASIDE]


@cache
def lines_of(path: Path) -> dict[int, int]:
    """How many tokens each line of code has."""
    source = path.read_text(encoding="utf-8")
    docstrings = {
        line for start, end in find_docstrings(ast.parse(source)) for line in range(start, end + 1)
    }
    counts: dict[int, int] = {}
    depth = 0  # of f-strings
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name.endswith("STRING_END"):
            depth -= 1
        is_counted = depth == 0 and token.type not in FORMAT and not name.endswith("STRING_END")
        if name.endswith("STRING_START"):
            depth += 1
        line = token.start[0]
        if is_counted and line not in docstrings:
            counts[line] = counts.get(line, 0) + 1
    return counts


def find_docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """The first and the last line of each docstring."""
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
        ):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.lineno, first.end_lineno or first.lineno


def tokens_of(path: Path) -> int:
    return sum(lines_of(path).values())


def tokens_a_line(paths: list[Path]) -> float:
    counts = [count for path in paths for count in lines_of(path).values()]
    return statistics.fmean(counts)


def dense_lines(most: int, paths: list[Path]) -> list[str]:
    """Lines of code with more tokens than that."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {count} tokens"
        for path in paths
        for line, count in sorted(lines_of(path).items())
        if count > most
    ]


def long_lines(most: int) -> list[str]:
    found = []
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > most:
                found.append(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns")
    return found


@cache
def imports_of(path: Path) -> frozenset[Path]:
    """The modules of this repository that a file imports by itself, packages with an empty __init__
    left out.
    """
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    names |= {name.rpartition(".")[0] for name in names}
    found = set()
    for name in names - {""}:
        base = ROOT.joinpath(*name.split("."))
        for module in (base.with_suffix(".py"), base / "__init__.py"):
            if module.exists() and module.stat().st_size > 0:
                found.add(module)
    return frozenset(found - {path})


def reached_from(path: Path) -> set[Path]:
    """The modules of this repository that a file imports, directly or through others."""
    reached: set[Path] = set()
    waiting = [path]
    while waiting:
        new = imports_of(waiting.pop()) - reached
        reached |= new
        waiting += new
    return reached - {path}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def story_tokens() -> int:
    train = ROOT / "train.py"
    return tokens_of(train) + sum(tokens_of(path) for path in reached_from(train))


def names_imported(path: Path) -> int:
    return sum(
        len(node.names)
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    )


def many_parameters() -> list[str]:
    """Functions with more parameters than a reader can hold: by position, or by keyword only."""
    found = []
    for path in house():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                by_position = [
                    arg
                    for arg in (*node.args.posonlyargs, *node.args.args)
                    if arg.arg not in ("self", "cls", "ctx")
                ]
                if max(len(by_position), len(node.args.kwonlyargs)) > PARAMETERS:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    return found


def long_statements() -> list[str]:
    """Statements with more than MAX_STATEMENT tokens; literals, signatures and declarations of
    options may have more.
    """
    found = []
    for path in house():
        counts = lines_of(path)
        for node in ast.walk(tree_of(path)):
            if not isinstance(
                node, (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.Raise, ast.Assert)
            ):
                continue
            value = getattr(node, "value", None)
            is_literal = isinstance(
                value, (ast.Dict, ast.List, ast.Tuple, ast.Set, ast.Constant)
            ) and not any(isinstance(inner, ast.comprehension) for inner in ast.walk(value))
            if is_literal and path_is_top_level(node, path):
                continue
            tokens = sum(
                counts.get(line, 0)
                for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
            )
            if tokens > MAX_STATEMENT:
                found.append(
                    f"{path.relative_to(ROOT)}:{node.lineno}: {tokens} tokens in a statement"
                )
    return found


def path_is_top_level(node: ast.stmt, path: Path) -> bool:
    return node in tree_of(path).body


def golf() -> list[str]:
    """Shapes that say two things at once."""
    found = []
    for path in house():
        for node in ast.walk(tree_of(path)):
            for line, what in find_golf(node):
                found.append(f"{path.relative_to(ROOT)}:{line}: {what}")
    return sorted(set(found))


def find_golf(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call):
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(argument, ast.IfExp):
                yield argument.lineno, "a condition as an argument"
            if any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(argument)):
                yield argument.lineno, "a walrus in an argument"
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    if isinstance(node, comprehensions) and any(
        isinstance(inner, ast.IfExp) for inner in ast.walk(node)
    ):
        yield node.lineno, "a condition in a comprehension"
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield node.lineno, "two assignments in one"
    if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
        yield node.lineno, "a star import"


def test_lines_say_one_thing() -> None:
    for name, most in TOKENS_A_LINE.items():
        paths = [ROOT / name] if name else house()
        assert tokens_a_line(paths) <= most, name or "all"
    lines = sum(len(lines_of(path)) for path in house())
    assert len(dense_lines(DENSE, house())) <= MAX_DENSE_SHARE * lines
    assert len(dense_lines(DENSEST, house())) <= MAX_DENSEST_LINES
    assert len(dense_lines(DENSE, files(*ASIDE))) <= MAX_DENSE_LINES_ASIDE
    assert len(long_lines(100)) <= MAX_LONG_LINES
    assert len(long_statements()) <= MAX_LONG_STATEMENTS
    assert len(golf()) <= MAX_GOLF
    assert len(many_parameters()) <= MAX_MANY_PARAMETERS


def test_the_core_is_small() -> None:
    train = ROOT / "train.py"
    for name, most in MODULES.items():
        assert len(reached_from(ROOT / name)) <= most, name
    assert story_tokens() <= STORY_TOKENS
    assert names_imported(train) <= NAMES_IMPORTED
    assert sum(map(tokens_of, house())) <= ALL_TOKENS


def describe() -> str:
    """The table of figures."""
    train = ROOT / "train.py"
    dense = dense_lines(DENSE, house())
    lines = sum(len(lines_of(path)) for path in house())
    rows = [("tokens a line of code, mean", f"{tokens_a_line(house()):.2f}")]
    rows += [
        (f"the same: {name}", f"{tokens_a_line([ROOT / name]):.2f}")
        for name in TOKENS_A_LINE
        if name
    ]
    rows += [
        ("lines of code", f"{lines:,}"),
        (f"lines with more than {DENSE} tokens", f"{len(dense)} ({len(dense) / lines:.1%})"),
        (f"lines with more than {DENSEST} tokens", f"{len(dense_lines(DENSEST, house()))}"),
        ("the same in tests and bench", f"{len(dense_lines(DENSE, files(*ASIDE)))}"),
        ("lines beyond 100 columns, everywhere", f"{len(long_lines(100))}"),
        ("modules that train.py imports", f"{len(reached_from(train))}"),
        ("tokens of train.py and all that it imports", f"{story_tokens():,}"),
        (
            "modules that sample.py, curves.py import",
            ", ".join(f"{len(reached_from(ROOT / name))}" for name in ("sample.py", "curves.py")),
        ),
        ("names that train.py imports", f"{names_imported(train)}"),
        ("functions with many parameters", f"{len(many_parameters())}"),
        ("long statements", f"{len(long_statements())}"),
        ("two things at once", f"{len(golf())}"),
        ("modules, tokens of the whole", f"{len(house())}, {sum(map(tokens_of, house())):,}"),
    ]
    return "\n".join(f"{name:<48}{value:>18}" for name, value in rows)


if __name__ == "__main__":
    print(describe())
    if "--lines" in sys.argv:
        print(
            "\n".join(
                [*dense_lines(DENSE, house()), *long_statements(), *golf(), *many_parameters()]
            )
        )
    if "--modules" in sys.argv:
        for path in sorted(reached_from(ROOT / "train.py"), key=tokens_of, reverse=True):
            print(f"{tokens_of(path):7,} {tokens_a_line([path]):6.1f}  {path.relative_to(ROOT)}")

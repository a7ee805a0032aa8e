"""Measures how this repository reads: `python tests/test_house.py` prints the figures.

pytest holds them. Counted are names, operators and literals, as the `tokenize` module tells them
apart; an f-string is one token. Lines that hold only a comment or a docstring do not count. A
module is imported if an import statement names it, wherever in a file it stands. With --lines it
names the lines that a reader would read twice, with --modules what train.py imports.
"""

import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ROOT / "train.py"
CORE = ("config", "data", "engine", "report")
COMMANDS = ("train.py", "sample.py", "evaluate.py", "curves.py")  # of the core
WINGS = ("page", "trackers", "large", "huggingface", "convert", "compress", "sweep", "sweeps")
# Wings may use their own folder, and the sweep may show a page.
PAIRS = {("convert", "huggingface"), ("sweep", "sweeps"), ("sweep", "page"), ("sweeps", "page")}
ASIDE = ("tests", "bench")  # measured in columns and dense lines only
LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)

# Lines.
TOKENS_A_LINE = {"": 9.5, "train.py": 8.5, "model.py": 11.0, "loss.py": 11.0}
DENSE = 24  # tokens; a line of code with more is read twice
DENSEST = 32
MAX_DENSE_SHARE = 0.01
MAX_COLUMNS = 100
MAX_STATEMENT = 60  # tokens
MAX_PARAMETERS = 5  # by position, and as many more by keyword

# The core: many small files with one purpose each, so the number of modules says little.
MAX_STORY_TOKENS = 60_950  # of train.py and all that it imports
MAX_NAMES = 50  # that train.py imports
MAX_MODULES = {"train.py": 67, "sample.py": 33, "curves.py": 22}


@cache
def python_files(*folders: str) -> list[Path]:
    """List the Python files of the repository, or of some of its folders."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        is_ours = parts[0] != "out" and not any(part.startswith(".") for part in parts)
        if is_ours and (not folders or folder_of(path) in folders):
            found.append(path)
    return found


def folder_of(path: Path) -> str:
    """Return the first folder of a file in the repository; "" at the top."""
    parts = path.relative_to(ROOT).parts
    if len(parts) == 1:
        return ""
    return parts[0]


@cache
def house() -> list[Path]:
    """List what is measured in full."""
    return [path for path in python_files() if folder_of(path) not in ASIDE]


def place(path: Path, line: int, what: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {what}"


# Tokens and lines.


@cache
def lines_of(path: Path) -> dict[int, int]:
    """Count the tokens of each line of code."""
    source = path.read_text(encoding="utf-8")
    docstrings: set[int] = set()
    for first, last in find_docstrings(tree_of(path)):
        docstrings.update(range(first, last + 1))
    counts: dict[int, int] = {}
    depth = 0  # of f-strings, which newer Pythons take apart
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        line = token.start[0]
        is_end = name.endswith("STRING_END")
        if is_end:
            depth -= 1
        if depth == 0 and not is_end and token.type not in LAYOUT and line not in docstrings:
            counts[line] = counts.get(line, 0) + 1
        if name.endswith("STRING_START"):
            depth += 1
    return counts


def find_docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Find the first and the last line of each docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.lineno, first.end_lineno or first.lineno


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def count_tokens(*paths: Path) -> int:
    return sum(sum(lines_of(path).values()) for path in paths)


def tokens_a_line(*paths: Path) -> float:
    counts: list[int] = []
    for path in paths:
        counts += lines_of(path).values()
    return statistics.fmean(counts)


def dense_lines(most: int, paths: list[Path]) -> list[str]:
    """Name the lines of code with more tokens than that."""
    found = []
    for path in paths:
        for line, count in sorted(lines_of(path).items()):
            if count > most:
                found.append(place(path, line, f"{count} tokens"))
    return found


def long_lines() -> list[str]:
    """Name the lines with more than MAX_COLUMNS, everywhere, also in the page's scripts."""
    found = []
    scripts = sorted((ROOT / "page/web").glob("*.js"))
    for path in [*python_files(), *scripts]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > MAX_COLUMNS:
                found.append(place(path, number, f"{len(line)} columns"))
    return found


# Imports.


@cache
def imports_of(path: Path) -> frozenset[Path]:
    """Find the modules that a file imports by itself; packages with an empty __init__ left out."""
    found = set()
    for name in imported_names(path):
        base = ROOT.joinpath(*name.split("."))
        for module in (base.with_suffix(".py"), base / "__init__.py"):
            if module.exists() and module.stat().st_size > 0:
                found.add(module)
    return frozenset(found - {path})


def imported_names(path: Path) -> set[str]:
    """List what import statements name: packages, modules, and names in modules."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parents = set()
    for name in names:
        parts = name.split(".")
        parents |= {".".join(parts[:length]) for length in range(1, len(parts))}
    return names | parents


def reached_from(path: Path) -> set[Path]:
    """Find the modules that a file imports, directly or through others."""
    reached: set[Path] = set()
    waiting = [path]
    while waiting:
        new = imports_of(waiting.pop()) - reached
        reached |= new
        waiting += new
    return reached - {path}


def count_imported_names(path: Path) -> int:
    statements = [
        node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    return sum(len(statement.names) for statement in statements)


def find_circles() -> list[str]:
    """Name the modules that import themselves through others."""
    circles = []
    for path in house():
        if any(path in reached_from(module) for module in imports_of(path)):
            circles.append(str(path.relative_to(ROOT)))
    return circles


def wings_in_the_core() -> list[str]:
    """Name the places where a file of the core imports a wing."""
    found = []
    core = python_files(*CORE) + [ROOT / name for name in COMMANDS]
    for path in core:
        for module in imports_of(path):
            top = module.relative_to(ROOT).parts[0].removesuffix(".py")
            if top in WINGS:
                found.append(f"{path.relative_to(ROOT)} imports {module.relative_to(ROOT)}")
    return found


def wings_in_wings() -> list[str]:
    """Name the places where a wing imports another wing."""
    found = []
    for path in house():
        wing = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports_of(path):
            top = module.relative_to(ROOT).parts[0].removesuffix(".py")
            is_other = wing in WINGS and top in WINGS and top != wing
            if is_other and (wing, top) not in PAIRS:
                found.append(f"{path.relative_to(ROOT)} imports {module.relative_to(ROOT)}")
    return found


def dynamic_imports() -> list[str]:
    """Name the files of the core that import by a name made up as they run."""
    pattern = r"\bimport_module\b|\b__import__\b"
    paths = python_files("", *CORE)
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    return [name for name, text in texts.items() if re.search(pattern, text)]


# Shapes.


def many_parameters() -> list[str]:
    """Name functions with more parameters than a reader can hold."""
    found = []
    for path in house():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef):
                continue
            by_position = [*node.args.posonlyargs, *node.args.args]
            names = {argument.arg for argument in by_position} - {"self", "cls", "ctx"}
            if max(len(names), len(node.args.kwonlyargs)) > MAX_PARAMETERS:
                found.append(place(path, node.lineno, node.name))
    return found


def long_statements() -> list[str]:
    """Name statements with many tokens; literals, signatures and declarations may have more."""
    kinds = (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.Raise, ast.Assert)
    literals = (ast.Dict, ast.List, ast.Tuple, ast.Set, ast.Constant)
    found = []
    for path in house():
        counts = lines_of(path)
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, kinds) or isinstance(getattr(node, "value", None), literals):
                continue
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            tokens = sum(counts.get(line, 0) for line in lines)
            if tokens > MAX_STATEMENT:
                found.append(place(path, node.lineno, f"{tokens} tokens in a statement"))
    return found


def golf() -> list[str]:
    """Name the places where a line says two things at once."""
    found = []
    for path in house():
        for node in ast.walk(tree_of(path)):
            for line, what in find_golf(node):
                found.append(place(path, line, what))
    return sorted(set(found))


def find_golf(node: ast.AST) -> Iterator[tuple[int, str]]:
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    if isinstance(node, ast.Call):
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(argument, ast.IfExp):
                yield argument.lineno, "a condition as an argument"
            if contains(argument, ast.NamedExpr):
                yield argument.lineno, "a walrus in an argument"
    elif isinstance(node, comprehensions) and contains(node, ast.IfExp):
        yield node.lineno, "a condition in a comprehension"
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
        if isinstance(node.targets[0], ast.Tuple):
            yield node.lineno, "two assignments in one"
    elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        yield node.lineno, "a star import"


def contains(node: ast.AST, kind: type[ast.AST]) -> bool:
    return any(isinstance(inner, kind) for inner in ast.walk(node))


def only_reexports() -> list[str]:
    """Name modules that define nothing, and only hand names on."""
    found = []
    for path in house():
        kinds = {type(node) for node in tree_of(path).body}
        if kinds and kinds <= {ast.Import, ast.ImportFrom, ast.Expr}:
            found.append(str(path.relative_to(ROOT)))
    return found


def in_words() -> str:
    """Lay out the table of figures."""
    lines = sum(len(lines_of(path)) for path in house())
    dense = len(dense_lines(DENSE, house()))
    reached = reached_from(TRAIN)
    rows = [
        ("tokens a line of code, mean", f"{tokens_a_line(*house()):.2f}"),
        ("the same: train.py", f"{tokens_a_line(TRAIN):.2f}"),
        ("the same: model.py", f"{tokens_a_line(ROOT / 'model.py'):.2f}"),
        ("the same: loss.py", f"{tokens_a_line(ROOT / 'loss.py'):.2f}"),
        ("lines of code", f"{lines:,}"),
        (f"lines with more than {DENSE} tokens", f"{dense} ({dense / lines:.1%})"),
        (f"lines with more than {DENSEST} tokens", f"{len(dense_lines(DENSEST, house()))}"),
        (f"more than {DENSE} in tests, bench", f"{len(dense_lines(DENSE, python_files(*ASIDE)))}"),
        (f"lines beyond {MAX_COLUMNS} columns, everywhere", f"{len(long_lines())}"),
        ("long statements", f"{len(long_statements())}"),
        ("two things at once", f"{len(golf())}"),
        ("functions with many parameters", f"{len(many_parameters())}"),
        ("tokens of train.py and all that it imports", f"{count_tokens(TRAIN, *reached):,}"),
        ("names that train.py imports", f"{count_imported_names(TRAIN)}"),
    ]
    for name in MAX_MODULES:
        rows.append((f"modules that {name} imports", f"{len(reached_from(ROOT / name))}"))
    rows.append(("modules of the whole", f"{len(house())}"))
    rows.append(("tokens of the whole", f"{count_tokens(*house()):,}"))
    return "\n".join(f"{name:<46}{value:>14}" for name, value in rows)


def test_a_line_says_one_thing() -> None:
    for name, most in TOKENS_A_LINE.items():
        paths = [ROOT / name] if name else house()
        assert tokens_a_line(*paths) <= most, name or "all"
    lines = sum(len(lines_of(path)) for path in house())
    assert len(dense_lines(DENSE, house())) <= MAX_DENSE_SHARE * lines
    assert dense_lines(DENSEST, house()) == []
    assert long_lines() == []


def test_tests_and_bench_are_not_dense_either() -> None:
    paths = python_files(*ASIDE)
    lines = sum(len(lines_of(path)) for path in paths)
    assert len(dense_lines(DENSE, paths)) <= MAX_DENSE_SHARE * lines
    assert dense_lines(DENSEST, paths) == []


def test_a_statement_says_one_thing() -> None:
    assert golf() == []
    assert long_statements() == []
    assert many_parameters() == []


def test_the_core_knows_no_wing() -> None:
    assert wings_in_the_core() == []
    assert wings_in_wings() == []
    assert dynamic_imports() == ["engine/watchers.py"]
    reached = {path.relative_to(ROOT).parts[0] for path in reached_from(TRAIN)}
    assert not reached & {*WINGS, *(f"{wing}.py" for wing in WINGS)}


def test_imports_go_one_way() -> None:
    assert find_circles() == []
    assert only_reexports() == []


def test_the_core_is_not_larger() -> None:
    assert count_tokens(TRAIN, *reached_from(TRAIN)) <= MAX_STORY_TOKENS
    assert count_imported_names(TRAIN) <= MAX_NAMES
    for name, most in MAX_MODULES.items():
        assert len(reached_from(ROOT / name)) <= most, name


def test_a_training_without_watchers_imports_no_wing(clone: Path) -> None:
    """Not as it runs, either; nor scipy, which only the sweep needs."""
    small = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--max_iters=1"]
    options = ["--corpus=text.txt", "--out_dir=out/unwatched", "--watchers=", *small]
    code = f"""
import sys
import train
try:
    train.main({options!r})
except SystemExit:
    print([name for name in {(*WINGS, "scipy")!r} if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


if __name__ == "__main__":
    print(in_words())
    if "--lines" in sys.argv:
        dense = dense_lines(DENSE, python_files())
        print("\n".join([*dense, *long_lines(), *long_statements(), *golf(), *many_parameters()]))
    if "--modules" in sys.argv:
        for module in sorted(reached_from(TRAIN), key=count_tokens, reverse=True):
            name = module.relative_to(ROOT)
            print(f"{count_tokens(module):7,} {tokens_a_line(module):6.1f}  {name}")

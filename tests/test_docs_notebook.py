"""docs/cross_entropy.ipynb runs from start to end, without a network, and prints what it shows.

`python -m tests.test_docs_notebook` runs it and saves its new outputs.
"""

import ast
import base64
import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from tests.conftest import ROOT
from tests.test_house import DENSE, MAX_COLUMNS, lines_of

NOTEBOOK = ROOT / "docs/cross_entropy.ipynb"
SHOWN: NotebookNode = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell for cell in SHOWN.cells if cell.cell_type == "code"]
VARIES = "varies"  # the tag of cells whose outputs depend on the machine or the version of Python
MAX_LINES = 12  # of a cell
MAX_BYTES = 1_500_000
OURS = {"surprisal", "loss", "report.notebook"}  # what the README names
INSTALLED = {"numpy", "torch", "matplotlib"}


def execute(path: Path) -> NotebookNode:
    """Return the notebook with new outputs; CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata.language_info = {"name": "python"}  # without the version
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = shrink(output.data["image/png"])
    return notebook


def shrink(png: str) -> str:
    """Return a picture with at most 256 colours: a third of the size, and it looks the same."""
    image = open_picture(png).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def open_picture(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def varies(cell: NotebookNode) -> bool:
    return VARIES in cell.metadata.get("tags", [])


def python(cell: NotebookNode) -> str:
    """Return a cell's code without IPython's own commands."""
    return re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)


def sections() -> dict[str, list[NotebookNode]]:
    """Return the cells of each numbered section, its heading first."""
    found: dict[str, list[NotebookNode]] = {}
    cells: list[NotebookNode] = []  # what is before the first section belongs to none
    for cell in SHOWN.cells:
        heading = re.match(r"## (.+)", cell.source)
        if heading:
            cells = found.setdefault(heading[1], [])
        cells.append(cell)
    del found["To take away"]
    return found


def ends(cell: NotebookNode, *endings: str) -> bool:
    return cell.id.endswith(endings)


def is_setup(cell: NotebookNode) -> bool:
    return cell.id.startswith("setup")


def list_files(clone: Path) -> set[Path]:
    """List what is in a clone, but for what git ignores there: prepared corpora and caches."""
    files = set()
    for path in clone.rglob("*"):
        parts = path.relative_to(clone).parts
        is_prepared = parts[0] == "data" and len(parts) > 1 and (clone / "data" / parts[1]).is_dir()
        if "__pycache__" not in parts and not is_prepared:
            files.add(path)
    return files


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of zmq and tornado
def test_it_runs_in_a_clone_and_prints_what_it_shows(clone: Path) -> None:
    before = list_files(clone)
    executed = execute(clone / "docs" / NOTEBOOK.name)
    assert list_files(clone) == before
    for shown, cell in zip(SHOWN.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            assert [output.output_type for output in cell.outputs] == [
                output.output_type for output in shown.outputs
            ]
            if not varies(cell):
                assert printed(cell) == printed(shown), cell.id


def test_cells_are_short_and_lines_are_plain(tmp_path: Path) -> None:
    for cell in SHOWN.cells:
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.id
    for cell in CODE:
        assert max(map(len, cell.source.splitlines())) <= MAX_COLUMNS, cell.id
        path = tmp_path / f"{cell.id}.py"
        path.write_text(python(cell), encoding="utf-8")
        assert max(lines_of(path).values()) <= DENSE, cell.id


def test_it_imports_what_the_readme_names() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for module in OURS:
        assert module in readme or f"{module.replace('.', '/')}.py" in readme
    for cell in CODE:
        for node in ast.walk(ast.parse(python(cell))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                assert name in OURS or top in INSTALLED | sys.stdlib_module_names, cell.id


def test_a_cell_computes_or_draws_or_checks() -> None:
    for cell in CODE:
        tree = ast.parse(python(cell))
        draws = "plt." in cell.source or ".curves()" in cell.source
        checks = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
        assert is_setup(cell) or draws == ends(cell, "-figure"), cell.id
        assert checks == ends(cell, "-check"), cell.id
        if checks:
            assert not cell.outputs, cell.id


def test_each_section_draws_and_checks_and_ends_with_a_question() -> None:
    numbers = [int(title.partition(".")[0]) for title in sections()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 20
    for title, cells in sections().items():
        assert any(ends(cell, "-figure") for cell in cells), title
        assert any(ends(cell, "-check") for cell in cells), title
        assert cells[-1].cell_type == "markdown", title
        question = r"\*\*Question\.\*\* .+\?\s+<details><summary>Answer</summary>\n\n.+\n</details>"
        assert re.fullmatch(question, cells[-1].source, re.DOTALL), title
        assert sum("**Question.**" in cell.source for cell in cells) == 1, title


def test_figures_have_one_light_background_and_named_axes() -> None:
    for cell in CODE:
        if ends(cell, "-figure"):
            (picture,) = [
                output.data["image/png"]
                for output in cell.outputs
                if "image/png" in output.get("data", {})
            ]
            colors = open_picture(picture).convert("RGBA")
            assert colors.getpixel((0, 0)) == (0xFC, 0xFC, 0xFA, 0xFF), cell.id
            assert "label" in cell.source or ".curves()" in cell.source, cell.id


def test_it_is_committed_with_its_outputs() -> None:
    nbformat.validate(SHOWN)
    assert NOTEBOOK.stat().st_size <= MAX_BYTES
    counts = [cell.execution_count for cell in CODE]
    assert counts == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 30
    assert all("execution" not in cell.metadata for cell in CODE)  # no times of day
    assert SHOWN.metadata.kernelspec.name == "python3"


def test_its_outputs_hold_no_warning_and_no_path_of_a_machine() -> None:
    outputs = [output for cell in CODE for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        "stream",
        "execute_result",
        "display_data",
    }
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    texts = [cell.source for cell in SHOWN.cells]
    texts += [printed(cell) for cell in CODE]
    for output in outputs:
        data = output.get("data", {})
        texts += [data.get("text/plain", ""), data.get("text/html", "")]
    for text in texts:
        assert not re.search(r"""(?:^|[\s"'=(])/\w+/| at 0x|\bit/s\b""", text)


def test_its_figures_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last section reads docs/results.json: after new results, the notebook is run again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT)
    of_results = [cell for cell in CODE if cell.id in ("ours-compute", "seeds-compute")]
    names: dict[str, object] = {}
    out = io.StringIO()
    with matplotlib.rc_context({"backend": "agg"}), redirect_stdout(out):
        for cell in [*filter(is_setup, CODE), *of_results]:
            exec(python(cell), names)
    stale = "docs/results.json has changed since: run `python -m tests.test_docs_notebook`"
    assert out.getvalue() == "".join(map(printed, of_results)), stale


def test_most_cells_are_compared() -> None:
    assert sum(varies(cell) for cell in CODE) < len(CODE) / 2


if __name__ == "__main__":
    nbformat.write(execute(NOTEBOOK), NOTEBOOK)

"""docs/cross_entropy.ipynb runs from start to end, without a network, and prints what it shows.

`python -m tests.test_docs_notebook` runs it and saves its new outputs.
"""

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib
import nbformat
import pytest
from matplotlib import pyplot
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs/cross_entropy.ipynb"
SHOWN: NotebookNode = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell for cell in SHOWN.cells if cell.cell_type == "code"]
VARIES = "varies"  # the tag of cells whose outputs depend on the machine or the version of Python


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
    return notebook


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def varies(cell: NotebookNode) -> bool:
    return VARIES in cell.metadata.get("tags", [])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of zmq and tornado
def test_it_runs_in_a_clone_and_prints_what_it_shows(clone: Path) -> None:
    before = {path for path in clone.rglob("*") if "__pycache__" not in path.parts}
    executed = execute(clone / "docs" / NOTEBOOK.name)
    assert {path for path in clone.rglob("*") if "__pycache__" not in path.parts} == before
    for shown, cell in zip(SHOWN.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            assert [output.output_type for output in cell.outputs] == [
                output.output_type for output in shown.outputs
            ]
            if not varies(cell):
                assert printed(cell) == printed(shown), cell.id


def test_it_is_committed_with_its_outputs() -> None:
    nbformat.validate(SHOWN)
    assert NOTEBOOK.stat().st_size < 1_000_000
    counts = [cell.execution_count for cell in CODE]
    assert counts == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 10
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
    """The last cell reads docs/results.json: after new results, the notebook is run again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT)
    cells = {cell.id: cell for cell in CODE}
    setup = cells["setup"].source.replace("%matplotlib inline", "")
    names: dict[str, object] = {}
    out = io.StringIO()
    with matplotlib.rc_context({"backend": "agg"}), redirect_stdout(out):
        exec(setup, names)
        exec(cells["ours-code"].source, names)
        pyplot.close("all")
    stale = "docs/results.json has changed since: run `python -m tests.test_docs_notebook`"
    assert out.getvalue() == printed(cells["ours-code"]), stale


def test_most_cells_are_compared() -> None:
    assert sum(varies(cell) for cell in CODE) < len(CODE) / 2


if __name__ == "__main__":
    nbformat.write(execute(NOTEBOOK), NOTEBOOK)

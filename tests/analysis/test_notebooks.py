"""The notebooks: they run from top to bottom on any store, and show what real runs gave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from analysis.collecting.collector import collect

NOTEBOOKS = Path(__file__).parents[2] / "analysis/notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


def read(name: str) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra [notebook]")
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def images(notebook: Any) -> int:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return sum("image/png" in out.get("data", {}) for out in outputs)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(sweep_place: Path, monkeypatch, name: str) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the extra [notebook]")
    collect()
    monkeypatch.setenv("OPTSWEEP_STORE", str(sweep_place / "store"))
    notebook = read(name)
    shown = images(notebook)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    assert images(notebook) == shown > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_real_results_and_no_places_of_its_maker(name: str) -> None:
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs and cell.execution_count for cell in code)
    kinds = {out.output_type for cell in code for out in cell.outputs}
    assert kinds <= {"execute_result", "stream"}
    texts = [cell.source for cell in notebook.cells]
    texts += [str(out.get("text") or out.data.get("text/plain")) for c in code for out in c.outputs]
    assert not [text for text in texts if re.search(r"(?<![.\w])/(?!lr)\w+/", text)]
    assert (NOTEBOOKS / name).stat().st_size < 400_000


def test_both_notebooks_are_there() -> None:
    assert NAMES == ["compare.ipynb", "lr_sensitivity.ipynb"]

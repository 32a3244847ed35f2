"""The notebook that trains a first ablation, run from top to bottom."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest

from tests.marks import slow

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "first_ablation.ipynb"
SMALL = {
    "arch=resnet8": "arch=mlp_sigmoid arch.units=8",  # compiles fast
    "seed=0,1,2": "seed=0,1",
    "epochs=4": "epochs=1",
}
"""Overrides in the notebook, with replacements that make fewer and shorter runs."""


def test_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("small", [True, slow(False)])
def test_notebook_runs(small: bool, tmp_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if small:
        code = "".join(cell.source for cell in notebook.cells)
        assert all(override in code for override in SMALL)
        for cell in notebook.cells:
            for override, smaller in SMALL.items():
                cell.source = cell.source.replace(override, smaller)
    monkeypatch.setenv("NORMBENCH_STORE", str(tmp_store))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=os.pathsep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(tmp_store.parent)}}
        ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        + str(output.get("data", {}).get("text/html", ""))
        for output in outputs
    )  # fmt: skip
    assert "did you mean 'gn'" in text
    assert "'status': 'finished'" in text
    assert "Test accuracy (%)" in text
    assert "images/s" in text  # the progress of the run
    assert "(None, 10)" in text
    assert ("_norm'" if small else "stem_norm") in text
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 1
    runs = [path for path in tmp_store.iterdir() if path.name.startswith("digits-")]
    assert len(runs) == 1 + 2 * 2 * (2 if small else 3)

"""The notebook that analyses a store, run from top to bottom."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "analyze_a_store.ipynb"


def test_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_notebook_names_confounds(
    grid: Callable[..., Path], synth: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = grid(norms=("bn",), batches=(16, 64), seeds=5, epochs=5)
    synth.write_grid(root, ("gn",), (16, 64), 5, 2, optimizer__lr=0.02)
    monkeypatch.setenv("NORMBENCH_STORE", str(root))
    source = [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    output = io.StringIO()
    wanted = ("STORE =", "frames = load", "study = studies", "grid = build", "in findings(grid")
    with contextlib.redirect_stdout(output):
        names: dict = {}
        for code in source:
            if any(part in code for part in wanted):
                exec(code, names)
    differences = "differ in epochs (BN 5, GN 2) and learning rate (BN 0.1, GN 0.02)"
    assert f"Confounded: rows also {differences}" in output.getvalue()
    assert "[confounded] GN beats BN at batch size 16" in output.getvalue()
    assert "[significant]" not in output.getvalue()


def test_notebook_runs(mixed_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("NORMBENCH_STORE", str(mixed_store))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=os.pathsep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(
            notebook, timeout=120, resources={"metadata": {"path": str(mixed_store.parent)}}
        ).execute()
    texts = [
        str(output.get("text", "")) + str(output.get("data", {}).get("text/markdown", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    text = "\n".join(texts)
    assert "63 runs" in text
    assert "GN+WS" in text
    assert "Holm" in text
    assert "Steps to 9" in text or "Steps to the target" in text
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/svg+xml" in output.get("data", {})
    ]
    assert len(pictures) == 2

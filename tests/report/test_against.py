"""``normbench report --against``: a store's runs compared with those of a published store."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from normbench.cli import main
from normbench.report.sides import compare
from normbench.report.stores import load_stores


def write_runs(
    synth: SimpleNamespace, store: Path, values: dict[str, float], **changes: object
) -> Path:
    """Write three runs of each norm with test accuracies close to a value."""
    for norm, value in values.items():
        for seed in range(3):
            run = synth.write_run(store, synth.config(norm, 16, seed, epochs=3, **changes))
            path = run / "summary.json"
            result = {"test_acc": value + 0.004 * (seed - 1), "weights_sha256": f"{store}-{seed}"}
            path.write_text(json.dumps(json.loads(path.read_text()) | result))
    return store


def test_report_gives_each_config_a_verdict(
    synth: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = write_runs(synth, tmp_path / "published", {"bn": 0.91, "gn": 0.92, "ln": 0.8})
    own_store = write_runs(synth, tmp_path / "own", {"bn": 0.911, "gn": 0.87})
    out = tmp_path / "report"
    words = ["report", str(own_store), "--against", str(published), "--out", str(out)]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 configs in both: 1 different, 1 within the spread; only in published" in printed
    assert "1 config (3 runs)" in printed
    rows = pd.read_csv(out / "tables" / "against.csv").set_index("config")
    assert rows["verdict"].to_dict() == {
        "digits-resnet8-gn-b16": "different",
        "digits-resnet8-bn-b16": "within the spread",
    }
    assert rows["difference"]["digits-resnet8-gn-b16"] == pytest.approx(-0.05)
    for page in ("index.html", "report.md"):
        text = (out / page).read_text()
        assert "Against published" in text
        assert "1 different, 1 within the spread" in text
    assert "--against" in (out / "index.html").read_text()
    assert (out / "tables" / "against.tex").is_file()
    assert main(["report", str(own_store), "--out", str(out)]) == 0
    assert not (out / "tables" / "against.csv").exists()


def test_backend_and_precision_do_not_prevent_a_comparison(
    synth: SimpleNamespace, tmp_path: Path
) -> None:
    published = write_runs(synth, tmp_path / "published", {"bn": 0.91, "gn": 0.92})
    changes = {"backend": "jax", "precision": "mixed_bfloat16"}
    own_store = write_runs(synth, tmp_path / "own", {"bn": 0.911}, **changes)
    write_runs(synth, own_store, {"gn": 0.92}, label_smoothing=0.1)
    frames, _ = load_stores([published, own_store], ("store",))
    sides = compare(frames, "store", same_science=True)
    (item,) = sides.found
    assert item.runs[0]["norm"].unique() == ["bn"]
    assert list(map(len, item.runs)) == [3, 3]
    assert item.verdict == "within"
    for text in ("backend=jax", "precision=mixed_bfloat16"):
        assert text in item.differs
    assert sides.only == [(1, 3), (1, 3)]


def test_identical_configs_are_matched_first(synth: SimpleNamespace, tmp_path: Path) -> None:
    published = write_runs(synth, tmp_path / "published", {"bn": 0.91})
    write_runs(synth, published, {"bn": 0.93}, backend="jax")
    own_store = write_runs(synth, tmp_path / "own", {"bn": 0.93}, backend="jax")
    frames, _ = load_stores([published, own_store], ("store",))
    sides = compare(frames, "store", same_science=True)
    (item,) = sides.found
    assert item.differs == ""
    assert set(item.runs[0]["backend"]) == {"jax"}
    assert sides.only == [(1, 3), (0, 0)]


def test_cells_tuned_to_different_values_are_compared(
    synth: SimpleNamespace, tmp_path: Path
) -> None:
    def accuracy(best: float):
        return lambda norm, batch, lr, seed: 0.9 if lr == best else 0.8

    for name, best, rates in (("published", 0.1, (0.05, 0.1)), ("own", 0.2, (0.1, 0.2))):
        options = {"norms": ("bn",), "batches": (16,), "accuracy": accuracy(best)}
        synth.write_tuned(tmp_path / name, rates=rates, **options)
    frames, _ = load_stores([tmp_path / "published", tmp_path / "own"], ("store",))
    sides = compare(frames, "store", same_science=True)
    (item,) = sides.found
    assert list(map(len, item.runs)) == [3, 3]
    assert item.differs == "optimizer.lr=0.1 and optimizer.lr=0.2"
    assert sides.only == [(0, 0), (0, 0)]  # trials are not results


def test_user_errors_are_one_line(
    synth: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_store = str(write_runs(synth, tmp_path / "own", {"bn": 0.9}))
    other = str(write_runs(synth, tmp_path / "other", {"gn": 0.9}))
    out = ["--out", str(tmp_path / "report")]
    for words, says in (
        ([own_store, "--against", other], "have no config of which both have complete runs"),
        ([own_store, other, "--against", own_store], "--against compares one store, not 2"),
        ([own_store, "--against", own_store], "is named twice"),
        ([own_store, "--against", own_store + "2"], "own2"),
        ([own_store, "--against", other, "--metric", "images_per_s"], "is not compared: times"),
    ):
        assert main(["report", *words, *out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert not (tmp_path / "report").exists()

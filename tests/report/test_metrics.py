"""Metrics by the names that users type, including probe values and values over epochs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.cli import main
from normbench.engine.observer import ProbeValue, described_values
from normbench.errors import UserError
from normbench.probes.sharpness import Sharpness
from normbench.report.frames import Frames, load
from normbench.report.metrics import METRICS, find_metric, known_metrics
from normbench.report.sections import request, sections

ECE = {"label": "Calibration error", "unit": "%", "scale": 100.0, "digits": 2,
       "higher_is_better": False, "curve": "linear"}  # fmt: skip


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / name
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        change(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def probed(grid: Callable[..., Path]) -> Path:
    """A store whose runs measured ``ece`` every second epoch and describe how to show it."""
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=4)
    for place, folder in enumerate(sorted(root.glob("*-resnet8-*"))):

        def measured(row: dict[str, Any], place: int = place) -> None:
            row["probe/mine/unlisted"] = 1.0
            if row["epoch"] % 2 == 0:
                row["probe/mine/ece"] = 0.01 * row["epoch"] + 0.001 * place
            row["probe/mine/conv1/depth"] = 1.0

        rewrite(folder, "metrics.jsonl", measured)
        rewrite(folder, "meta.json", lambda meta: meta.update(probe_values={"probe/mine/ece": ECE}))
    return root


def values(frames: Frames, name: str) -> list[float]:
    frames, metric = frames.with_metric(name)
    return frames.runs[metric.name].tolist()


def test_epoch_metrics_are_reduced_to_one_value_per_run(probed: Path) -> None:
    frames = load(probed)
    groups = [rows for _, rows in frames.curves.groupby("run")]
    assert list(frames.runs["name"]) == [rows["run"].iloc[0] for rows in groups]
    for over, function in (("max", np.max), ("min", np.min), ("mean", np.mean)):
        wanted = [function(rows["grad_norm"]) for rows in groups]
        np.testing.assert_allclose(values(frames, f"grad_norm:{over}"), wanted)
    assert values(frames, "grad_norm") == [rows["grad_norm"].iloc[-1] for rows in groups]
    assert values(frames, "val_acc:best") == [rows["val_acc"].max() for rows in groups]
    assert values(frames, "val_loss:best") == [rows["val_loss"].min() for rows in groups]


def test_probe_value_is_compared_as_its_probe_declares(probed: Path) -> None:
    frames = load(probed)
    np.testing.assert_allclose(values(frames, "mine/ece"), [0.04, 0.041, 0.042, 0.043])
    np.testing.assert_allclose(values(frames, "mine/ece:best"), [0.02, 0.021, 0.022, 0.023])
    (section,), _ = sections(frames, request(None, "norm,batch", "mine/ece", "bn", None))
    table = section.tables[0]
    assert table.title.startswith("Calibration error, last epoch (%)")
    assert table.slug == "mine-ece-last"
    assert table.rows[0][1].text.startswith("4.05")
    assert "optimizer" not in str(section.study.conditions)  # its columns are not config keys
    assert section.study.conditions == []


def test_undescribed_value_is_shown_by_its_name(probed: Path) -> None:
    metrics = load(probed).metrics
    assert metrics["probe/mine/ece"].curve == "linear"
    assert metrics["probe/mine/unlisted"].label == "unlisted (mine)"
    assert metrics["probe/mine/unlisted"].curve == ""  # its probe describes which values are drawn
    alone = known_metrics(["probe/other/value", "probe/other/conv1/value"], {})
    assert alone["probe/other/value"].curve == "linear"
    assert alone["probe/other/conv1/value"].curve == ""


def test_pattern_describes_the_values_of_layers() -> None:
    described = {"probe/p/*/std": {"label": "Deviation", "digits": 1}}
    metric = known_metrics(["probe/p/block1/conv/std"], described)["probe/p/block1/conv/std"]
    assert metric.label == "Deviation of block1/conv"
    assert metric.show(1.25) == "1.2"


def test_shipped_probes_describe_runs_of_earlier_versions(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=2)
    (folder,) = root.glob("*-resnet8-*")
    rewrite(folder, "metrics.jsonl", lambda row: row.update({"probe/sharpness/eigenvalue": 3.0}))
    metric = load(root).metrics["probe/sharpness/eigenvalue"]
    (wanted,) = (value for value in Sharpness.values if value.name == "eigenvalue")
    assert (metric.label, metric.curve) == (wanted.label, "log")


def test_damaged_description_is_named(probed: Path) -> None:
    folder = min(probed.glob("*-resnet8-*"))
    rewrite(folder, "meta.json", lambda meta: meta["probe_values"]["probe/mine/ece"].pop("label"))
    (left_out,) = load(probed).left_out
    assert "probe_values.probe/mine/ece.label is missing" in str(left_out)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tset_acc", "did you mean 'test_acc'?"),
        ("grad_norm:maximum", "unknown value of grad_norm over epochs 'maximum'"),
        ("test_acc:max", "metric test_acc has one value per run"),
        ("grad_norm:best", "use grad_norm:min or grad_norm:max"),
        ("mine/eec", "did you mean 'probe/mine/ece'?"),
        (":max", "unknown metric ''"),
    ],
)
def test_invalid_metric_name_is_one_line(probed: Path, name: str, wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        load(probed).with_metric(name)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_metric_is_refused_before_the_store_is_read(capsys: Any) -> None:
    assert main(["report", "--store", "nowhere", "--metric", "tset_acc"]) == 2
    assert "did you mean 'test_acc'?" in capsys.readouterr().err


def test_list_has_each_metric_with_its_number_of_runs(
    probed: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--store", str(probed), "--metrics"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    rows = {row["metric"]: row for row in (dict(zip(lines[0], r, strict=True)) for r in lines[1:])}
    assert set(METRICS) < set(rows)
    assert rows["probe/mine/ece"] == {
        "metric": "probe/mine/ece",
        "meaning": "Calibration error (%)",
        "better": "lower",
        "one per": "epoch",
        "runs": "4",
    }
    assert (rows["test_acc"]["runs"], rows["steps_to_target"]["runs"]) == ("4", "0")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # no report


def test_every_probe_value_is_described_for_the_record() -> None:
    described = described_values([Sharpness])
    assert described["probe/sharpness/eigenvalue"] == {
        "label": "Largest Hessian eigenvalue",
        "unit": "",
        "scale": 1.0,
        "digits": 2,
        "higher_is_better": None,
        "curve": "log",
    }
    assert ProbeValue("a", "A").curve == ""


def test_every_epoch_metric_can_be_compared() -> None:
    for metric in METRICS.values():
        if metric.epoch:
            assert find_metric(f"{metric.name}:mean", METRICS).of_run

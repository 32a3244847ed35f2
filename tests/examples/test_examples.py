"""The packages of examples/ train with the commands in their headers."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from normbench.cli import main
from normbench.report import load
from normbench.store import provenance
from normbench.store.store import Store
from tests.marks import slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/__init__.py"))
SMALL = ["epochs=1", "seed=0", "dataset.train_size=160", "dataset.validation=100", "batch=16"]


def commands(name: str) -> list[list[str]]:
    """Return the words of the commands in the header of an example."""
    text = (EXAMPLES / name / "__init__.py").read_text(encoding="utf-8")
    header = text.partition('"""')[0]
    return [shlex.split(line) for line in re.findall(r"^#   normbench (.*)$", header, re.M)]


@pytest.fixture(autouse=True)
def in_examples(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    provenance._spec.cache_clear()
    yield
    for name in NAMES:
        sys.modules.pop(name, None)
    provenance._spec.cache_clear()
    provenance.code_hash.cache_clear()


def run_header(name: str, store: Path, fast: bool) -> Store:
    """Run the commands in an example's header on few images for one epoch; return the store.

    Args:
        fast: Train a network that compiles fast instead of the ResNet that most headers name.
    """
    for words in commands(name):
        verb = words[0]
        words = [word for word in words if not word.startswith("epochs=")]
        if verb in ("run", "sweep"):
            words += [*SMALL, f"backend={keras.backend.backend()}", f"store={store}"]
            if fast and name != "my_network":
                words = [word for word in words if word != "arch=resnet8"]
                words += ["arch=mlp_sigmoid", "arch.units=8"]
            else:
                words.append("arch.width=8")
        if verb == "sweep":
            words += ["norm=bn"] if "executor=timebox" in words else ["executor=inline"]
        if verb == "report":
            words += ["--store", str(store), "--out", str(store.parent / "report")]
        if "RUN" in words:
            words[words.index("RUN")] = Store(store).runs()[0].name
            words += ["--store", str(store)]
        assert main(words) == 0, words
    return Store(store)


def check_probe(store: Store) -> None:
    (row,) = store.runs()[0].metrics()
    assert 0 <= row["probe/calibration/ece"] <= 1
    assert 0.1 <= row["probe/calibration/confidence"] <= 1
    frames, metric = load(store).with_metric("calibration/ece")
    assert metric.label == "Calibration error, last epoch"
    assert list(frames.runs[metric.name]) == [row["probe/calibration/ece"]]


def check_logger(store: Store) -> None:
    (run,) = store.runs()
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_acc"]) for row in rows] == [row["val_acc"] for row in run.metrics()]


CHECKS = {"my_probe": check_probe, "my_logger": check_logger}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fast", [True, slow(False)])
def test_commands_in_the_header_train(name: str, fast: bool, tmp_store: Path, capsys: Any) -> None:
    store = run_header(name, tmp_store, fast)
    summaries = [run.summary for run in store.runs()]
    assert summaries
    assert all(summary["status"] == "finished" for summary in summaries)
    recorded = {key for run in store.runs() for key in run.meta.get("own") or {}}
    changes_numbers = name not in ("my_executor", "my_logger")
    assert any(key.startswith(f"{name}.") for key in recorded) == changes_numbers
    CHECKS.get(name, lambda store: None)(store)


def test_norm_matches_its_formula() -> None:
    from my_norm import L1Normalization  # pyright: ignore[reportMissingImports]

    x = np.random.default_rng(0).normal(3, 2, (2, 4, 4, 6)).astype("float32")
    layer = L1Normalization(epsilon=0.0)
    y = keras.ops.convert_to_numpy(layer(x))
    for image, normalized in zip(x.astype("float64"), y, strict=True):
        centered = image - image.mean()
        expected = centered / (np.abs(centered).mean() * math.sqrt(math.pi / 2))
        np.testing.assert_allclose(normalized, expected, rtol=1e-4, atol=1e-5)


def test_data_set_has_parity_labels() -> None:
    from my_dataset import Parity  # pyright: ignore[reportMissingImports]

    from normbench.data.digits import Digits

    plain, inverted = Parity().arrays(), Parity(inverted=True).arrays()
    np.testing.assert_array_equal(plain.train_labels, Digits().arrays().train_labels % 2)
    np.testing.assert_array_equal(plain.test_images, 255 - inverted.test_images)
    assert len(plain.train_labels) == Parity.train_count
    assert len(plain.test_labels) == Parity.test_count


def test_executor_starts_no_run_after_its_time(tmp_store: Path, capsys: Any) -> None:
    (words,) = commands("my_executor")
    words += [*SMALL, f"backend={keras.backend.backend()}", f"store={tmp_store}"]
    words += ["arch=mlp_sigmoid", "arch.units=8"]
    main([*words, "executor.minutes=0.000001"])
    trained = [json.loads((run.path / "meta.json").read_text()) for run in Store(tmp_store).runs()]
    assert len(trained) < 3

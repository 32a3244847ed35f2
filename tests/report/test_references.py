"""Published lines appear only where the configuration matches that of the publication."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from normbench.report import load
from normbench.report.references import matching

PUBLISHED: dict[str, Any] = {
    "dataset": "cifar10",
    "epochs": 182,
    "arch__name": "resnet20",
    "dataset__crop_padding": 4,
    "dataset__flip": True,
}


def write_store(synth: SimpleNamespace, root: Path, norm: str, batch: int, **changes: Any) -> Path:
    synth.write_run(root, synth.config(norm, batch, 0, **(PUBLISHED | changes)))
    return root


def test_published_configuration_matches(synth: SimpleNamespace, tmp_store: Path) -> None:
    (known,) = matching(load(write_store(synth, tmp_store, "bn", 128)).runs)
    assert known.test_err == 0.0875
    assert "He et al. 2016" in known.text


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "gn"},
        {"batch": 64},
        {"epochs": 30},
        {"arch__name": "resnet8"},
        {"dataset__flip": False},
        {"dataset__train_size": 1000},
        {"label_smoothing": 0.1},
        {"dataset": "mnist"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_configuration_does_not_match(
    synth: SimpleNamespace, tmp_store: Path, change: dict[str, Any]
) -> None:
    options = {"norm": "bn", "batch": 128} | change
    assert matching(load(write_store(synth, tmp_store, **options)).runs) == []

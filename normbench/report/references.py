"""Published results with sources and configurations; :func:`matching` selects those to draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

_HE_2016 = "He et al. 2016, Deep Residual Learning, table 6"
_ZAGORUYKO_2016 = "Zagoruyko & Komodakis 2016, Wide Residual Networks, table 5"


@dataclass(frozen=True)
class Reference:
    """A published test error.

    Attributes:
        dataset, arch, norm, batch: The configuration, in normbench's names.
        epochs: Epochs in the publication; a run must have at least 90 % of them.
        test_err: Published test error, a fraction.
        source: Publication and table.
    """

    dataset: str
    arch: str
    norm: str
    batch: int
    epochs: int
    test_err: float
    source: str

    @property
    def text(self) -> str:
        """Source and error, for a figure's caption."""
        return f"{self.source}: {100 * self.test_err:.2f} % error"


# He et al.: 64k steps of 128 images on 45,000 CIFAR-10 training images, 5,000 held out; padding of
# 4 pixels, random crop, horizontal flip.
REFERENCES = (
    Reference("cifar10", "resnet20", "bn", 128, 182, 0.0875, _HE_2016),
    Reference("cifar10", "resnet32", "bn", 128, 182, 0.0751, _HE_2016),
    Reference("cifar10", "resnet56", "bn", 128, 182, 0.0697, _HE_2016),
    Reference("cifar10", "wrn28_10", "bn", 128, 200, 0.0400, _ZAGORUYKO_2016),
)

_AUGMENTED = {"dataset.crop_padding": 4, "dataset.flip": True}


def matching(runs: pd.DataFrame) -> list[Reference]:
    """Return the publications whose configuration a finished run shares.

    A run must have the same data set (all training images, padded crop and flip), network, norm
    and batch size, no label smoothing, and at least 90 % of the published number of epochs.
    """
    networks = {reference.arch for reference in REFERENCES}
    candidates = (runs["status"] == "finished") & runs["arch"].isin(networks)
    records = runs[candidates].to_dict("records")
    return [
        reference for reference in REFERENCES if any(_matches(reference, run) for run in records)
    ]


def _matches(reference: Reference, run: Mapping[Any, Any]) -> bool:
    size = run.get("dataset.train_size")
    return (
        all(run.get(key) == getattr(reference, key) for key in ("dataset", "arch", "norm", "batch"))
        and all(run.get(key) == value for key, value in _AUGMENTED.items())
        and bool(pd.isna(size))
        and float(run.get("label_smoothing") or 0.0) == 0.0
        and float(run.get("epochs") or 0) >= 0.9 * reference.epochs
    )

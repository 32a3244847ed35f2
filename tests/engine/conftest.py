"""A small data set with something to learn, and configs for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from normbench.config import Config, compose


@pytest.fixture
def small(tmp_store: Path):
    """Compose a config of a run that takes about a second; overrides may be added."""

    def make(*overrides: str) -> Config:
        chosen = [each for each in overrides if each.startswith("norm=")] or ["norm=gn"]
        norm = [*chosen, *(["norm.groups=2"] if chosen[0].startswith("norm=gn") else [])]
        others = [each for each in overrides if each not in chosen]
        return compose(
            [
                "dataset=digits",
                "dataset.train_size=160",
                "dataset.validation=100",
                "arch=resnet8",
                "arch.width=4",
                *norm,
                "batch=16",
                "epochs=2",
                f"store={tmp_store}",
                *others,
            ]
        )

    return make

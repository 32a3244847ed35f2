"""Configs of small runs on a learnable data set, and loops that tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from normbench.config import Config, compose
from normbench.engine.reuse import WarmState
from tests.engine.tinyloop import TINY, SharedLoops


@pytest.fixture
def small(tmp_store: Path):
    """Compose a config of a run that takes about a second; overrides may be added."""

    def make(*overrides: str) -> Config:
        norm = [text for text in overrides if text.startswith("norm=")] or ["norm=gn"]
        groups = ["norm.groups=2"] if norm[0].startswith("norm=gn") else []
        has_arch = any(text.startswith("arch=") for text in overrides)
        return compose(
            [
                "dataset=digits",
                "dataset.train_size=160",
                "dataset.validation=100",
                *([] if has_arch else TINY),
                *norm,
                *groups,
                "batch=16",
                "epochs=2",
                f"store={tmp_store}",
                *(text for text in overrides if text not in norm),
            ]
        )

    return make


@pytest.fixture(scope="module")
def warm() -> WarmState:
    """The compiled loop of the module's previous run, so that each program is compiled once.

    Reuse changes no bit of the results, as test_reuse.py shows.
    """
    return WarmState()


@pytest.fixture(scope="module")
def shared_loop() -> SharedLoops:
    """Return a loop of these options in its initial state; compiled once per module."""
    return SharedLoops()

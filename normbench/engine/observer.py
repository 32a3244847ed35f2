"""What watches a run: the screen, a sweep's worker, nobody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class Observer:
    """Is told how a run goes; this one does nothing with it."""

    def on_start(self, info: Mapping[str, Any]) -> None:
        """A run begins or goes on: name, parameters, images, epochs, devices and the like."""

    def on_progress(
        self,
        epoch: int,
        step: int,
        steps_per_epoch: int,
        loss: float | None,
        acc: float | None,
        images_per_s: float | None,
    ) -> None:
        """``step`` steps of ``epoch`` (from 1) are done; means are over the epoch so far."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is complete; ``row`` is its line of ``metrics.jsonl``."""

    def on_note(self, text: str) -> None:
        """Something happened that a person should know, as a batch that had to be split."""

    def on_end(self, summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """The run ended with ``summary["status"]``."""

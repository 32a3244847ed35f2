"""What a sweep shows of a run while it trains, told by the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from normbench.engine.observer import Observer


class Telling(Observer):
    """Tells what is known of a run, as in :meth:`normbench.sweep.executor.Watch.progress`.

    Args:
        tell: Is handed the facts that are known anew.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._tell = tell

    def on_start(self, info: Mapping[str, Any]) -> None:
        self._tell(
            {
                "epoch": info.get("resumed_from") or 0,
                "epochs": info.get("epochs"),
                "step": 0,
                "steps": info.get("steps_per_epoch"),
            }
        )

    def on_progress(
        self,
        epoch: int,
        step: int,
        steps_per_epoch: int,
        loss: float | None,
        acc: float | None,
        images_per_s: float | None,
    ) -> None:
        self._tell(
            {
                "epoch": epoch - 1,  # completed ones
                "step": step,
                "steps": steps_per_epoch,
                "loss": loss,
                "acc": acc,
                "images_per_s": images_per_s,
            }
        )

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._tell(
            {
                "epoch": row["epoch"],
                "step": 0,
                "loss": row.get("train_loss"),
                "acc": row.get("train_acc"),
                "val_acc": row.get("val_acc"),
                "images_per_s": row.get("images_per_s"),
            }
        )

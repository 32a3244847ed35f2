"""The number of micro-batches that a run's batch is split into, and its record: MicroBatches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normbench.config import Config
from normbench.errors import is_out_of_memory


class MicroBatches:
    """Decides the number of micro-batches of one run (``accumulate=``).

    A number in the config is used as it is. With ``accumulate=auto`` a run begins with its batch
    whole, or split as its record says, and splits it further each time memory runs out. Splitting
    changes which images batch statistics are computed over, so it is done only on request, and is
    recorded.

    Args:
        config: Config of the run.
        meta: The run's ``meta.json``, if it was begun before.
        allowed: Whether ``auto`` may split further now; a sweep first tries again with fewer runs
            beside this one.

    Attributes:
        count: Micro-batches per batch.
        history: For the record, each ``count`` and the number of completed epochs (``epoch``) from
            which on it was used.
    """

    def __init__(
        self, config: Config, meta: Mapping[str, Any] | None, allowed: bool = True
    ) -> None:
        self._batch = config.batch
        self._may_split = config.accumulate == "auto" and allowed
        first = 1 if config.accumulate == "auto" else config.accumulate
        recorded = (meta or {}).get("micro_batches") or [{"epoch": 0, "count": first}]
        self.history: list[dict[str, int]] = [dict(entry) for entry in recorded]
        self.count: int = self.history[-1]["count"]

    def helps_against(self, error: BaseException) -> bool:
        """Return whether an error is a lack of memory that smaller micro-batches may end."""
        return self._may_split and self.count < self._batch and is_out_of_memory(error)

    def split(self, epoch: int) -> None:
        """At least double the number of micro-batches: slightly smaller ones would hardly help.

        Args:
            epoch: Number of completed epochs from which training continues.
        """
        self.count = next(n for n in range(2 * self.count, self._batch + 1) if self._batch % n == 0)
        if self.history[-1]["epoch"] == epoch:
            self.history.pop()  # nothing was trained with it
        self.history.append({"epoch": epoch, "count": self.count})

    @property
    def words(self) -> str:
        """Describe the split, as in ``a batch of 512 as 4 micro-batches of 128``."""
        size = self._batch // self.count
        return f"a batch of {self._batch} as {self.count} micro-batches of {size}"

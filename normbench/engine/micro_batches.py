"""The number of micro-batches that a run's batch is split into: :class:`MicroBatches`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normbench.config import Config
from normbench.errors import is_out_of_memory


class MicroBatches:
    """Decides and records the number of micro-batches of one run (``accumulate=``).

    A number in the config is used directly. With ``accumulate=auto``, a run starts with an unsplit
    batch, or with the split in its record, and splits it further each time memory runs out.
    Splitting changes the images that batch statistics are computed over, so it is only done on
    request, and is recorded.

    Args:
        config: Config of the run.
        meta: The run's ``meta.json``, if it exists.
        allowed: Whether ``auto`` may split further now; a sweep first retries with fewer runs in
            parallel.

    Attributes:
        count: Micro-batches per batch.
        history: For the record, each ``count`` and the number of completed epochs (``epoch``) when
            it came into use.
    """

    def __init__(
        self, config: Config, meta: Mapping[str, Any] | None, allowed: bool = True
    ) -> None:
        self._batch = config.batch
        self._may_split = config.accumulate == "auto" and allowed
        first = 1 if config.accumulate == "auto" else config.accumulate
        entries = (meta or {}).get("micro_batches") or [{"epoch": 0, "count": first}]
        self.history: list[dict[str, int]] = [dict(entry) for entry in entries]
        self.count: int = self.history[-1]["count"]

    def helps_against(self, error: BaseException) -> bool:
        """Return whether an error is a lack of memory that smaller micro-batches may fix."""
        return self._may_split and self.count < self._batch and is_out_of_memory(error)

    def split(self, epoch: int) -> None:
        """Increase the number of micro-batches, at least twofold, because less would hardly help.

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

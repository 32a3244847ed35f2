"""Into how many micro-batches a run's batch is split, and the run's record of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normbench.config import Config
from normbench.errors import is_out_of_memory


class MicroBatches:
    """Decides the number of micro-batches of one run (``accumulate=``).

    A number that the config names stays. With ``auto`` a run begins with its batch whole, or as
    its record says that it was split before, and is split further each time memory is short: that
    changes what batch statistics are of, so it is done only where it was asked for, and recorded.

    Args:
        config: Of the run.
        meta: Its record, if it was begun before.
        allowed: Whether ``auto`` may split further now; a sweep first tries with less beside it.

    Attributes:
        count: Micro-batches a batch.
        history: For the record, of the first count and of each one after: ``count``, and ``epoch``,
            the completed ones when it began.
    """

    def __init__(
        self, config: Config, meta: Mapping[str, Any] | None, allowed: bool = True
    ) -> None:
        self._batch = config.batch
        self._may_split = config.accumulate == "auto" and allowed
        first = 1 if config.accumulate == "auto" else config.accumulate
        known = (meta or {}).get("micro_batches") or [{"epoch": 0, "count": first}]
        self.history: list[dict[str, int]] = [dict(each) for each in known]
        self.count: int = self.history[-1]["count"]

    def helps_against(self, error: BaseException) -> bool:
        """Whether what ended the training is a lack of memory that smaller parts may end."""
        return self._may_split and self.count < self._batch and is_out_of_memory(error)

    def split(self, epoch: int) -> None:
        """Split further, into at least twice as many parts: a little smaller would hardly help.

        Args:
            epoch: Completed epochs from which the training goes on.
        """
        self.count = next(n for n in range(2 * self.count, self._batch + 1) if self._batch % n == 0)
        if self.history[-1]["epoch"] == epoch:
            self.history.pop()  # nothing was trained with it
        self.history.append({"epoch": epoch, "count": self.count})

    @property
    def words(self) -> str:
        """As ``a batch of 512 as 4 micro-batches of 128``."""
        size = self._batch // self.count
        return f"a batch of {self._batch} as {self.count} micro-batches of {size}"

"""Reuse of a run's data set and compiled loop by the process's next run: :class:`WarmState`.

:func:`program` determines which runs can share a compiled loop.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from normbench.config import Config

if TYPE_CHECKING:
    from normbench.engine.loop import Loop


class WarmState:
    """The last run's data set and loop, passed to the next run if it can use them.

    Reading a data set and compiling a loop often take longer than training. A loop is only passed
    to a run of the same :func:`program`, after it has adopted that run's initial state and seed, so
    that results are the same as in a fresh process.
    """

    def __init__(self) -> None:
        self._dataset: tuple[str, Any] | None = None
        self._loop: tuple[str, Loop] | None = None

    def dataset(self, config: Config, load: Callable[[Config], Any]) -> Any:
        """Return the data set of ``config``; call ``load`` if it is not the last run's."""
        key = json.dumps([config.dataset, config.stream], sort_keys=True)
        if self._dataset is None or self._dataset[0] != key:
            self._dataset = None  # free the old one first: memory may not fit both
            self._dataset = (key, load(config))
        return self._dataset[1]

    def loop(self, config: Config, fresh: Loop) -> Loop:
        """Return a loop in the initial state of the run of ``config``.

        Args:
            config: Config of the run.
            fresh: New loop on the run's model, not compiled yet. It is returned, and replaces the
                last run's loop, if that one cannot be used.
        """
        if self.has_loop_for(config, fresh.settings.micro_batches):
            assert self._loop is not None
            self._loop[1].restart(fresh)
        else:
            self._loop = (program(config), fresh)
        return self._loop[1]

    def has_loop_for(self, config: Config, micro_batches: int | None = None) -> bool:
        """Return whether the last run's loop can train the run of ``config``.

        Args:
            config: Config of the run.
            micro_batches: Number of micro-batches per batch, if it is known already.
        """
        if self._loop is None or self._loop[0] != program(config):
            return False
        return micro_batches in (None, self._loop[1].settings.micro_batches)

    def drop_other_loop(self, config: Config, micro_batches: int) -> None:
        """Drop the last run's loop if it cannot train the run of ``config``."""
        if self._loop is not None and not self.has_loop_for(config, micro_batches):
            self.drop_loop()

    def drop_loop(self) -> None:
        """Drop the loop and everything that Keras and its backend store about its model.

        Keras then restarts its automatic names, as in a fresh process. TensorFlow also discards how
        it executes its functions, so existing loops must not be used after this.
        """
        self._loop = None
        if "keras" in sys.modules:
            sys.modules["keras"].backend.clear_session(free_memory=False)  # collected below
        gc.collect()

    def drop_all(self) -> None:
        """Drop everything, for example after a failure that may have left a loop inconsistent."""
        self._dataset = self._loop = None


_NOT_COMPILED_IN = (
    *("seed", "epochs", "schedule", "max_loss", "init", "init_head"),
    *("probe", "logger", "label", "store"),
)
_NOT_COMPILED_IN_OF_OPTIMIZER = ("lr", "base_batch", "scaling")


def program(config: Config) -> str:
    """Return a key that is equal for two configs if their runs can share a compiled loop.

    The network, its normalization, the data set with its split, the batch size, the optimizer's
    constants and the precision are compiled in. The initial weights, the order of the images and
    the learning rates are not: each run passes its own to the loop.
    """
    tree = {key: value for key, value in config.to_dict().items() if key not in _NOT_COMPILED_IN}
    tree["optimizer"] = {
        key: value
        for key, value in tree["optimizer"].items()
        if key not in _NOT_COMPILED_IN_OF_OPTIMIZER
    }
    return json.dumps(tree, sort_keys=True)

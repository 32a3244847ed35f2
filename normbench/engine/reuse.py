"""What a process keeps of one run for the next: the data set, and the compiled loop."""

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
    """Keeps the last run's data set and loop, and hands them on where the next run can use them.

    Reading a data set and compiling a loop take longer than many a run's training. A loop is
    handed on only to a run of the same :func:`~normbench.engine.reuse.program`, after it took
    over that run's own initial state and seed: its numbers are those of a fresh process.
    """

    def __init__(self) -> None:
        self._dataset: tuple[str, Any] | None = None
        self._loop: tuple[str, Loop] | None = None

    def dataset(self, config: Config, load: Callable[[Config], Any]) -> Any:
        """The data set of ``config``, loaded by ``load`` if it is not the last one."""
        key = json.dumps(config.dataset, sort_keys=True)
        if self._dataset is None or self._dataset[0] != key:
            self._dataset = None  # first let go of the old one: two may not fit
            self._dataset = (key, load(config))
        return self._dataset[1]

    def loop(self, config: Config, fresh: Loop) -> Loop:
        """A loop that is about to begin the run of ``config``.

        Args:
            config: Of the run.
            fresh: A new loop on the run's model, not compiled yet; it is kept if the one from
                before cannot be used.
        """
        if self.has_loop_for(config, fresh.settings.micro_batches):
            assert self._loop is not None
            self._loop[1].restart(fresh)
        else:
            self._loop = (program(config), fresh)
        return self._loop[1]

    def has_loop_for(self, config: Config, micro_batches: int | None = None) -> bool:
        """Whether the loop that is kept can be used for the run of ``config``.

        Args:
            config: Of the run.
            micro_batches: Parts that its batch is split into, if that is known already.
        """
        if self._loop is None or self._loop[0] != program(config):
            return False
        return micro_batches in (None, self._loop[1].settings.micro_batches)

    def drop_other_loop(self, config: Config, micro_batches: int) -> None:
        """Let go of a loop that is kept and cannot be used for the run of ``config``."""
        if self._loop is not None and not self.has_loop_for(config, micro_batches):
            self.drop_loop()

    def drop_loop(self) -> None:
        """Let go of the loop, and of what Keras and its backend keep of the model.

        Keras then counts its automatic names from the start, as in a fresh process. It also has
        TensorFlow forget how it executes functions: not to be called while a loop shall serve on.
        """
        self._loop = None
        if "keras" in sys.modules:
            sys.modules["keras"].backend.clear_session()
        gc.collect()

    def drop_all(self) -> None:
        """Let go of everything, as after a failure that may have left a loop half changed."""
        self._dataset = self._loop = None


# --- which runs share a compiled training step --------------------------------------------------

#: What a loop is handed anew for each run: the seed's numbers and the learning rate of each step.
_FREE = ("seed", "epochs", "schedule", "max_loss", "probe", "logger", "label", "store")
_FREE_OF_OPTIMIZER = ("lr", "base_batch", "scaling")


def program(config: Config) -> str:
    """A text that two configs share exactly if one's compiled loop can train the other's run.

    The network, its normalization, the data set with its split, the batch size, the optimizer's
    own constants and the precision are compiled in; all that only decides the initial weights,
    the order of the images or the learning rates is not.
    """
    tree = {key: value for key, value in config.to_dict().items() if key not in _FREE}
    tree["optimizer"] = {
        key: value for key, value in tree["optimizer"].items() if key not in _FREE_OF_OPTIMIZER
    }
    return json.dumps(tree, sort_keys=True)

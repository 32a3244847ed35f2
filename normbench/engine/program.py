"""Which runs share a compiled training step: those that differ in nothing it was compiled with."""

from __future__ import annotations

import json

from normbench.config import Config

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

"""What runs on another machine for one cell: a function of plain values, found by its name there.

What a process keeps between two runs (:class:`normbench.engine.reuse.Kept`) lives here, so that a
worker process that Ray uses again has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normbench.config import Config
from normbench.engine.observer import Observer
from normbench.engine.reuse import Kept
from normbench.store import Store
from normbench.sweep.cellrun import train_cell
from normbench.sweep.check import refusal

_kept = Kept()
_built: dict[str, str] = {}


def remote_cell(
    tree: Mapping[str, Any], store: str, command: Sequence[str], mend: bool
) -> dict[str, Any]:
    """Train a run, or what is left of it; see :func:`normbench.sweep.cellrun.train_cell`.

    Args:
        tree: Of the config.
        store: The folder of runs, as this machine sees it.
        command: What the record names as the command.
        mend: Begin anew where the run's files are damaged.

    Returns:
        The ending, as :meth:`normbench.sweep.ending.Ending.to_dict` gives it.
    """
    ending = train_cell(
        Config.from_dict(tree),
        Store(store),
        observer=Observer(),
        command=command,
        kept=_kept,
        mend=mend,
    )
    return ending.to_dict()


def remote_refusals(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each config why it cannot be trained; an empty text where it can."""
    return [refusal(Config.from_dict(tree), _kept, _built) for tree in trees]

"""How a cell of a sweep ended, and what that says of the failure."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from normbench.engine.memory import chain, is_out_of_memory

Result = Literal["trained", "diverged", "skipped", "locked", "interrupted", "failed"]
"""``skipped``: complete already; ``locked``: another process trains it; ``interrupted``: left
resumable on request."""

Cause = Literal["", "refused", "memory", "disk", "died", "error"]
"""Of a failure: ``refused`` before anything was trained (the config, the data set), out of
``memory``, ``disk`` full, the worker ``died``, any other ``error``."""

LOG_LINES = 12


@dataclass(frozen=True)
class Ending:
    """What became of a cell.

    Attributes:
        result: In one word.
        cause: Of a failure.
        error: Of a failure, in one line.
        log: The last lines of the log that say more, or none.
        seconds: From handing it out to its end.
        tries: How often it was begun in this sweep.
    """

    result: Result
    cause: Cause = ""
    error: str = ""
    log: tuple[str, ...] = ()
    seconds: float = 0.0
    tries: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Ending:
        return replace(cls(**{**tree, "log": ()}), log=tuple(tree["log"]))


def cause_of(error: BaseException) -> Cause:
    """Say what kind of failure an exception is."""
    from normbench.errors import UserError

    if is_out_of_memory(error):
        return "memory"
    for each in chain(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk"
    return "refused" if isinstance(error, UserError) else "error"


def last_lines(text: str, count: int = LOG_LINES) -> tuple[str, ...]:
    """The last ``count`` lines of a log that are not empty, each cut at 300 characters.

    Where Python wrote on its death where it was, innermost call first, the lines around the
    beginning of that say more than its end.
    """
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    fatal = [n for n, line in enumerate(lines) if line.startswith("Fatal Python error")]
    if fatal:
        return tuple(lines[max(0, fatal[-1] - count // 2) :][:count])
    return tuple(lines[-count:])

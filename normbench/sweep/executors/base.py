"""The interface of an executor, and the choice of one by ``executor=``."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from normbench.components import check_name, configured, options_of, read_group
from normbench.config import Config, parse
from normbench.errors import UserError, unknown
from normbench.store.store import Store
from normbench.sweep.observer import SweepObserver
from normbench.sweep.plan import PlannedCell

GROUP = "executor"
DEFAULT = "local"


@dataclass(frozen=True)
class SweepContext:
    """Settings shared by all cells of a sweep.

    Attributes:
        store: The store for the runs.
        command: Command line for the records of the runs.
        logs: Folder for the output of worker processes; None to discard it.
        replace_damaged: Set damaged run folders aside and train these runs again.
        tuned: The trials that chose the values of a final run, for its record, by the run's name.
    """

    store: Store
    command: Sequence[str]
    logs: Path | None = None
    replace_damaged: bool = False
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def order(self, cell: PlannedCell, may_split: bool = True) -> dict[str, Any]:
        """Return everything that :func:`~normbench.sweep.cell.train_cell` needs, as JSON types.

        Args:
            cell: The cell to train.
            may_split: Allow ``accumulate=auto`` to split the batch if memory is short.
        """
        return {
            "config": cell.config.to_dict(),
            "store": str(self.store.root.resolve()),
            "command": list(self.command),
            "replace_damaged": self.replace_damaged,
            "may_split": may_split,
            "tuned": self.tuned.get(cell.name),
        }


class Stop:
    """Context manager that counts requests to stop (Ctrl-C, SIGTERM).

    After the first request nothing new is started, and cells in training are stopped so that they
    can be resumed. After the second, worker processes are killed.

    Attributes:
        requests: Number of requests so far.
        raises: Also raise KeyboardInterrupt, because a cell is training in this process.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.raises = False
        self._handlers_before: dict[int, Any] = {}

    def request(self) -> None:
        """Request a stop, as Ctrl-C does."""
        self.requests += 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request()
        if self.raises:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers_before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)


class Executor(ABC):
    """Trains the cells of a sweep.

    A sweep calls :meth:`allocate`, then :meth:`check`, then :meth:`run`. An executor is a context
    manager, so that everything it starts ends with it.
    """

    @abstractmethod
    def allocate(self, count: int) -> list[str]:
        """Decide where to train up to ``count`` cells.

        Returns:
            The names of the slots, each of which trains one cell at a time.
        """

    @abstractmethod
    def check(self, configs: Sequence[Config]) -> list[str]:
        """Build the networks of configs, without training or writing anything.

        Returns:
            For each config, the reason why it cannot be trained, or an empty string.
        """

    @abstractmethod
    def run(
        self,
        cells: Sequence[PlannedCell],
        context: SweepContext,
        observer: SweepObserver,
        stop: Stop,
    ) -> None:
        """Train cells until all have ended or a stop is requested.

        Calls ``observer.ended`` once for each cell that was started. The failure of one cell does
        not affect the others.
        """

    def close(self) -> None:  # noqa: B027 - not every executor starts something
        """End everything that was started. May be called more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def choose(
    overrides: Sequence[str], config_dir: str | Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Separate the overrides of the executor from those of the runs.

    The executor does not affect a run's results, so it is not part of the runs' configs.

    Args:
        overrides: Such as ``norm=bn,gn``, ``executor=local``, ``executor.workers=2``.
        config_dir: Second folder of config groups.

    Returns:
        The options of the executor with its ``name`` and ``_target_``, and the other overrides.

    Raises:
        UserError: The executor or one of its options does not exist, or there are several.
    """
    name, options, other_overrides = DEFAULT, dict[str, Any](), list[str]()
    for text in overrides:
        (override,) = parse([text])
        key = override.key_or_group
        if key != GROUP and not key.startswith(GROUP + "."):
            other_overrides.append(text)
            continue
        if override.is_sweep_override():
            raise UserError(f"{text!r} names several values: a sweep has one executor")
        if override.is_delete() or override.is_add():
            raise UserError(f"{text!r}: write {key}=VALUE")
        if key == GROUP:
            name = str(override.value())
        else:
            value = override.value()
            is_quoted = type(value).__name__ == "QuotedString"
            options[key.removeprefix(GROUP + ".")] = value.text if is_quoted else value
    spec = {"name": name, **read_group(GROUP, name, config_dir)}
    check_name(GROUP, spec)
    defaults = options_of(spec)
    for key in options:
        if key not in defaults:
            raise unknown(f"option of {GROUP}={name}", key, defaults)
    return {**spec, **options}, other_overrides


def make(options: Mapping[str, Any]) -> Executor:
    """Build the executor from the options that :func:`choose` returned.

    Raises:
        UserError: The executor does not accept an option or its value.
    """
    kind, arguments = configured(GROUP, options)
    return kind(**arguments)


def int_option(name: str, value: Any, least: int, optional: bool = False) -> Any:
    """Return the value of an option; refuse it unless it is an integer of at least ``least``."""
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        suffix = " or null" if optional else ""
        raise UserError(
            f"{GROUP}.{name} must be a whole number of at least {least}{suffix}, got {value!r}"
        )
    return value

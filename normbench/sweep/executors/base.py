"""What carries out a sweep's runs: the interface, and the choice of one by ``executor=``."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from normbench.components import check_name, configured, options_of, read_group
from normbench.config import Config, parse
from normbench.errors import UserError, unknown
from normbench.store.store import Store
from normbench.sweep.cell import CellResult

GROUP = "executor"
DEFAULT = "local"


@dataclass(frozen=True)
class Job:
    """One run that an executor is to carry out.

    Attributes:
        config: Of the run.
        name: Of its folder.
        replace_damaged: Set the run's folder aside and begin anew where its files are damaged.
    """

    config: Config
    name: str
    replace_damaged: bool = False

    @cached_property
    def program(self) -> str:
        """What two jobs share whose runs can use the same compiled function."""
        from normbench.engine.reuse import program

        return program(self.config)


@dataclass(frozen=True)
class SweepContext:
    """What all jobs of a sweep have in common.

    Attributes:
        store: Where the runs are kept.
        command: What the runs' records name as their command.
        logs: A folder for what workers write beside the runs' own logs; None: it is thrown away.
    """

    store: Store
    command: Sequence[str]
    logs: Path | None = None


class SweepObserver:
    """Is told how a sweep goes; this one does nothing with it."""

    def started(self, job: Job, where: str) -> None:
        """A job was handed out to ``where``, as ``gpu 0`` or ``cpu 1``."""

    def progress(self, job: Job, facts: Mapping[str, Any]) -> None:
        """Some of ``epoch``, ``epochs``, ``step``, ``steps``, ``loss``, ``acc``, ``val_acc``,
        ``images_per_s`` are known anew."""

    def ended(self, job: Job, ending: CellResult) -> None:
        """A job came to its end; it is not tried again."""

    def again(self, job: Job, reason: str) -> None:
        """A job that was begun waits again, to be tried once more."""

    def note(self, text: str) -> None:
        """Something happened that a person should know."""

    def idle(self) -> None:
        """Nothing happened for a moment; called a few times a second."""


class Stop:
    """Counts requests to stop (Ctrl-C, SIGTERM) while it is entered.

    The first asks that nothing new is begun and that what runs is left resumable; the second that
    all is stopped at once.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.reason = ""
        self.raises = False
        """Whether a request also raises KeyboardInterrupt: a run trains in this very process."""
        self._before: dict[int, Any] = {}

    def request(self, reason: str = "") -> None:
        """Ask as Ctrl-C does."""
        self.requests += 1
        self.reason = self.reason or reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request("interrupted")
        if self.raises:
            raise KeyboardInterrupt

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Executor(ABC):
    """Carries out jobs. A context manager, so that what it started ends with it."""

    @abstractmethod
    def check(self, configs: Sequence[Config]) -> list[str]:
        """Say of each config why it cannot be trained; an empty text where it can.

        Builds the networks, and trains and writes nothing.
        """

    @abstractmethod
    def run(
        self, jobs: Sequence[Job], task: SweepContext, watch: SweepObserver, stop: Stop
    ) -> None:
        """Carry out all jobs, or until a stop is requested.

        Each job that was begun is reported by ``watch.ended`` once. A failure of one job is no
        failure of the others.
        """

    @abstractmethod
    def place(self, count: int) -> list[str]:
        """Decide where up to ``count`` jobs go, before anything is checked or run.

        Returns:
            The names of the places where runs can go on at the same time.
        """

    def close(self) -> None:  # noqa: B027 - not every executor starts something
        """End what was started for checking and running; harmless if that was done."""

    def __enter__(self) -> Executor:
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
    """Take the choice and the options of the executor out of a sweep's overrides.

    How runs are launched changes none of their numbers, so it is no part of their configs.

    Args:
        overrides: As ``executor=local``, ``executor.workers=2``, beside those of the runs.
        config_dir: A further folder with config groups.

    Returns:
        The executor's options with its ``name`` and ``_target_``, and the other overrides.

    Raises:
        UserError: An unknown executor, or several.
    """
    name, options, rest = DEFAULT, dict[str, Any](), list[str]()
    for text in overrides:
        (override,) = parse([text])
        key = override.key_or_group
        if key != GROUP and not key.startswith(GROUP + "."):
            rest.append(text)
            continue
        if override.is_sweep_override():
            raise UserError(f"{text!r} names several values: a sweep has one executor")
        if override.is_delete() or override.is_add():
            raise UserError(f"{text!r}: write {key}=VALUE")
        if key == GROUP:
            name = str(override.value())
        else:
            value = override.value()
            text_like = type(value).__name__ == "QuotedString"
            options[key.removeprefix(GROUP + ".")] = value.text if text_like else value
    chosen = {"name": name, **read_group(GROUP, name, config_dir)}
    check_name(GROUP, chosen)
    known = options_of(chosen)
    for key in options:
        if key not in known:
            raise unknown(f"option of {GROUP}={name}", key, known)
    return {**chosen, **options}, rest


def make(options: Mapping[str, Any]) -> Executor:
    """Make the executor that :func:`choose` returned the options of.

    Raises:
        UserError: An option that it does not take, or a value that it cannot use.
    """
    made, given = configured(GROUP, options)
    return made(**given)


def int_option(name: str, value: Any, least: int, optional: bool = False) -> Any:
    """Return an option's value, a whole number of at least ``least``, or refuse it."""
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        also = " or null" if optional else ""
        raise UserError(
            f"{GROUP}.{name} must be a whole number of at least {least}{also}, got {value!r}"
        )
    return value

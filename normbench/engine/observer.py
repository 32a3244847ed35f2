"""What watches a run: the screen, a sweep's worker, nobody."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normbench.components import configured
from normbench.errors import NormbenchError, UserError

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.store.run import Run
if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop


class Observer:
    """Is told how a run goes; this one does nothing with it."""

    def on_start(self, info: Mapping[str, Any]) -> None:
        """A run begins or goes on: name, parameters, images, epochs, devices and the like."""

    def on_progress(
        self,
        epoch: int,
        step: int,
        steps_per_epoch: int,
        loss: float | None,
        acc: float | None,
        images_per_s: float | None,
    ) -> None:
        """``step`` steps of ``epoch`` (from 1) are done; means are over the epoch so far."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is complete; ``row`` is its line of ``metrics.jsonl``."""

    def on_note(self, text: str) -> None:
        """Something happened that a person should know, as a batch that had to be split."""

    def on_end(self, summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """The run ended with ``summary["status"]``."""


# --- what a probe is, and how a run gets those that its config names ------------------------------

PREFIX = "probe"


class Probe(ABC):
    """Measures something of a network after an epoch, and changes nothing.

    Attributes:
        name: As in ``probe=``.
        every: Epochs from one measurement to the next; the last epoch is always measured.
    """

    name: str
    every: int = 1

    @abstractmethod
    def check(self, model: keras.Model) -> None:
        """Refuse a network that this cannot be measured in.

        Raises:
            UserError: Say, a layer that is asked for and not there.
        """

    @abstractmethod
    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        """Return values by a name such as ``hidden3_sigmoid/p50``.

        They stand in the epoch's row of metrics as ``probe/<probe>/<name>``.
        """


def make_probes(groups: Mapping[str, Mapping[str, Any]]) -> list[Probe]:
    """Make the probes of a config.

    Args:
        groups: ``config.probe``: by name, each with ``_target_`` and options.

    Raises:
        UserError: An option that the probe does not take.
    """
    made = []
    for name, group in groups.items():
        kind, options = configured("probe", group, called=f"probe={name}")
        made.append(kind(**options))
    return made


def checked_every(name: str, every: int) -> int:
    """Return the option ``every`` of a probe.

    Raises:
        UserError: It is below 1.
    """
    if every < 1:
        raise UserError(f"probe.{name}.every must be at least 1, got {every}")
    return every


def due_probes(probes: list[Probe], epoch: int, epochs: int) -> list[Probe]:
    """Return the probes that measure after an epoch, counted from 1, of a run of ``epochs``."""
    return [probe for probe in probes if epoch % probe.every == 0 or epoch == epochs]


def measure_probes(probes: list[Probe], loop: Loop, dataset: Dataset) -> dict[str, float]:
    """Return what all probes measure, by the names that a row of metrics has."""
    return {
        f"{PREFIX}/{probe.name}/{key}": value
        for probe in probes
        for key, value in probe.measure(loop, dataset).items()
    }


# --- what a logger is, and how a run's rows reach those that its config names ---------------------

log = logging.getLogger("normbench")


class Logger(ABC):
    """Writes what a run's folder holds to a place of another tool's.

    The folder stays the evidence: a logger may be given rows again that it was given by an
    earlier session of the run, and must then hold each once.

    Attributes:
        name: As in ``logger=``.
    """

    name: str

    @abstractmethod
    def start(self, run: Run, config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
        """A run begins or goes on; ``rows`` are those of its earlier sessions."""

    @abstractmethod
    def row(self, row: Mapping[str, Any]) -> None:
        """An epoch is complete; see :meth:`normbench.engine.observer.Observer.on_epoch`."""

    @abstractmethod
    def end(self, summary: Mapping[str, Any]) -> None:
        """The session ended with ``summary["status"]``; what was opened is closed."""


def make_loggers(groups: Mapping[str, Mapping[str, Any]]) -> list[Logger]:
    """Make the loggers of a config.

    Args:
        groups: ``config.logger``: by name, each with ``_target_`` and options.

    Raises:
        UserError: An option that the logger does not take.
        NormbenchError: The library that it writes with is not installed.
    """
    made = []
    for name, group in groups.items():
        kind, options = configured("logger", group, called=f"logger={name}")
        try:
            made.append(kind(**options))
        except ModuleNotFoundError:
            raise NormbenchError(
                f"logger={name} needs a library that is not installed: "
                f"pip install 'normbench[{name}]'"
            ) from None
    return made


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The measured values of a row or a summary: neither texts nor what is not known."""
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class LoggingObserver(Observer):
    """Tells another observer and a run's loggers how the run goes.

    A logger that fails (a server that is down, a full disk) is left out from there on, and the
    run's log says so: nothing of what it is for is worth a run.

    Args:
        observer: Is told everything, first.
        loggers: Are told of rows and of the end.
        run: Whose rows they get.
        config: Of the run.
    """

    def __init__(
        self, observer: Observer, loggers: Sequence[Logger], run: Run, config: Config
    ) -> None:
        self._observer = observer
        self._loggers = list(loggers)
        self._run = run
        self._config = config
        self._started = False

    def on_start(self, info: Mapping[str, Any]) -> None:
        self._observer.on_start(info)
        if self._loggers and not self._started:  # a batch that is split starts once more
            self._started = True
            self._tell("start", self._run, self._config, self._run.metrics())

    def on_progress(self, *progress: Any) -> None:
        self._observer.on_progress(*progress)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._observer.on_epoch(row)
        self._tell("row", row)

    def on_note(self, text: str) -> None:
        self._observer.on_note(text)

    def on_end(self, summary: Mapping[str, Any], path: Any) -> None:
        self._observer.on_end(summary, path)
        self._tell("end", summary)

    def _tell(self, what: str, *facts: Any) -> None:
        for logger in list(self._loggers):
            try:
                getattr(logger, what)(*facts)
            except Exception as error:
                self._loggers.remove(logger)
                log.warning(
                    "logger=%s failed and is left out: %s: %s",
                    logger.name,
                    type(error).__name__,
                    error,
                )

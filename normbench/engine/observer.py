"""The interfaces that watch a run: :class:`Observer`, :class:`Probe` and :class:`Logger`.

An observer follows a run's progress (the screen, a sweep's worker). A probe measures something in
the network after an epoch. A logger exports a run's rows to another tool. Probes and loggers are
plug-ins: subclass the class here, and name the subclass as ``_target_`` in a file of ``conf/probe``
or ``conf/logger``.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from normbench.components import configured
from normbench.config import Config, leaves
from normbench.errors import UserError

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop
    from normbench.store.run import Run

log = logging.getLogger("normbench")


class Observer:
    """Receives the events of a run. This base class ignores all of them."""

    def on_start(self, info: Mapping[str, Any]) -> None:
        """A run begins or continues.

        Args:
            info: ``name``, ``parameters``, ``images``, ``steps_per_epoch``, ``epochs``,
                ``devices``, and ``resumed_from``, the number of epochs that are complete.
        """

    def on_progress(
        self,
        epoch: int,
        step: int,
        steps_per_epoch: int,
        loss: float | None,
        acc: float | None,
        images_per_s: float | None,
    ) -> None:
        """``step`` steps of ``epoch`` (from 1) are done; values are means of the epoch so far."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is complete; ``row`` is its line of ``metrics.jsonl``."""

    def on_note(self, text: str) -> None:
        """Something happened that the user should know, such as a batch that had to be split."""

    def on_end(self, summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """The session ended with ``summary["status"]``; the run's folder is at ``path``."""


# --- probes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeValue:
    """How reports name, scale and plot a value that a probe measures.

    It is recorded with each run, so that a report does not need the probe's code.

    Attributes:
        name: The value's name in the result of ``measure``.
        label: Label of an axis or a heading, without the unit.
        unit: Unit after scaling, as ``%``; empty for a pure number.
        scale: Factor from a measured value to one in ``unit``.
        digits: Digits after the decimal point.
        higher_is_better: None if neither direction is better.
        curve: Axis scale of the figure over epochs, ``linear`` or ``log``; empty for no figure.
    """

    name: str
    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    higher_is_better: bool | None = None
    curve: str = ""


class Probe(ABC):
    """Measures something in a network after an epoch, without changing the run.

    Attributes:
        name: Name of the probe, as in ``probe=NAME``.
        every: Epochs between two measurements; the last epoch is always measured.
        values: How reports show its values. A value that is not listed is shown under its name, and
            plotted over epochs only if the probe lists none.
    """

    name: str
    every: int = 1
    values: ClassVar[tuple[ProbeValue, ...]] = ()

    @abstractmethod
    def check(self, model: keras.Model) -> None:
        """Refuse a network that cannot be measured.

        Raises:
            UserError: For example, the network lacks a layer that an option names.
        """

    @abstractmethod
    def measure(self, loop: Loop, dataset: Dataset) -> dict[str, float]:
        """Return values by name, such as ``hidden3_sigmoid/p50``.

        They are written to the epoch's row of metrics as ``probe/<probe>/<name>``.

        Args:
            loop: Gives access to the network: ``inspect``, ``gradients``, ``evaluate``.
            dataset: Splits of the run's data set.
        """


def make_probes(groups: Mapping[str, Mapping[str, Any]]) -> list[Probe]:
    """Make the probes in ``config.probe``, each given by ``_target_`` and options.

    Raises:
        UserError: A probe does not take one of its options.
    """
    probes = []
    for name, group in groups.items():
        kind, options = configured("probe", group, called=f"probe={name}")
        probe = kind(**options)
        for value in probe.values:
            if not value.label or value.curve not in ("", "linear", "log"):
                raise UserError(
                    f"probe={name}: the value {value.name!r} needs a label, and a curve that is "
                    f"linear, log or empty, got {value.label!r} and {value.curve!r}"
                )
        probes.append(probe)
    return probes


def described_values(probes: Sequence[Probe | type[Probe]]) -> dict[str, dict[str, Any]]:
    """Return the probes' :class:`ProbeValue` as dicts, by column, for the record of a run."""
    descriptions = {}
    for probe in probes:
        for value in probe.values:
            facts = asdict(value)
            descriptions[f"probe/{probe.name}/{facts.pop('name')}"] = facts
    return descriptions


def checked_every(name: str, every: int) -> int:
    """Return the option ``every`` of a probe; refuse a value below 1."""
    if every < 1:
        raise UserError(f"probe.{name}.every must be at least 1, got {every}")
    return every


def due_probes(probes: list[Probe], epoch: int, epochs: int) -> list[Probe]:
    """Return the probes that measure after ``epoch``, counted from 1, of a run of ``epochs``."""
    return [probe for probe in probes if epoch % probe.every == 0 or epoch == epochs]


def measure_probes(probes: list[Probe], loop: Loop, dataset: Dataset) -> dict[str, float]:
    """Return the values of all probes by column of a row of metrics."""
    return {
        f"probe/{probe.name}/{key}": value
        for probe in probes
        for key, value in probe.measure(loop, dataset).items()
    }


# --- loggers --------------------------------------------------------------------------------------


class Logger(ABC):
    """Exports the rows of a run to another tool.

    The run's folder remains the authoritative record. A logger may receive rows again that it
    received in an earlier session of the run; it must store each of them only once.

    Attributes:
        name: Name of the logger, as in ``logger=NAME``.
    """

    name: str

    @abstractmethod
    def start(self, run: Run, config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
        """A run begins or continues; ``rows`` are those of its earlier sessions."""

    @abstractmethod
    def row(self, row: Mapping[str, Any]) -> None:
        """An epoch is complete; ``row`` is its line of ``metrics.jsonl``."""

    @abstractmethod
    def end(self, summary: Mapping[str, Any]) -> None:
        """The session ended with ``summary["status"]``: release all resources."""


def make_loggers(groups: Mapping[str, Mapping[str, Any]]) -> list[Logger]:
    """Make the loggers in ``config.logger``, each given by ``_target_`` and options.

    Raises:
        UserError: A logger does not take one of its options, or its library is not installed.
    """
    loggers = []
    for name, group in groups.items():
        kind, options = configured("logger", group, called=f"logger={name}")
        try:
            loggers.append(kind(**options))
        except ModuleNotFoundError:
            raise UserError(
                f"logger={name} needs a library that is not installed: "
                f"pip install 'normbench[{name}]'"
            ) from None
    return loggers


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numeric values of a row or a summary, without texts and missing values."""
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def final_results(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the results on test images in a run's summary."""
    return {key: value for key, value in numbers(summary).items() if "test_" in key}


def flattened(config: Config) -> dict[str, Any]:
    """Return a config as a flat dict with dotted keys, such as ``norm.groups``: 8."""
    pairs = leaves(config.to_dict())
    return {key: value for key, value in pairs if not isinstance(value, Mapping)}


def check_text(option: str, value: Any) -> None:
    """Check that the value of a logger's option, such as ``mlflow.uri``, is a non-empty string.

    Raises:
        UserError: It is not.
    """
    if not value or not isinstance(value, str):
        raise UserError(f"logger.{option} must be a non-empty string, got {value!r}")


class LoggingObserver(Observer):
    """Passes the events of a run on to another observer and to the run's loggers.

    A logger that fails (a server that is down, a full disk) is disabled from then on, and the run's
    log says so; it must not end the run.

    Args:
        observer: Receives every event, before the loggers.
        loggers: Receive the rows and the end of the run.
        run: Run whose earlier rows the loggers receive.
        config: Config of the run.
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
        if self._loggers and not self._started:  # on_start is called again after a batch is split
            self._started = True
            self._call_loggers("start", self._run, self._config, self._run.metrics())

    def on_progress(self, *progress: Any) -> None:
        self._observer.on_progress(*progress)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._observer.on_epoch(row)
        self._call_loggers("row", row)

    def on_note(self, text: str) -> None:
        self._observer.on_note(text)

    def on_end(self, summary: Mapping[str, Any], path: Any) -> None:
        self._observer.on_end(summary, path)
        self._call_loggers("end", summary)

    def _call_loggers(self, method: str, *arguments: Any) -> None:
        for logger in list(self._loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                self._loggers.remove(logger)
                log.warning(
                    "logger=%s failed and is disabled: %s: %s",
                    logger.name,
                    type(error).__name__,
                    error,
                )

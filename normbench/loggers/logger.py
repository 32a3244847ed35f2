"""What a logger is, and how a run's rows reach those that its config names."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normbench.components import configured
from normbench.engine.observer import Observer
from normbench.errors import NormbenchError

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.runfolder import Run

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

"""What a probe is, and how a run gets those that its config names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from normbench.components import configured
from normbench.errors import UserError

if TYPE_CHECKING:
    import keras

    from normbench.data.split import Dataset
    from normbench.engine.loop import Loop

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


def due(probes: list[Probe], epoch: int, epochs: int) -> list[Probe]:
    """Return the probes that measure after an epoch, counted from 1, of a run of ``epochs``."""
    return [probe for probe in probes if epoch % probe.every == 0 or epoch == epochs]


def measured(probes: list[Probe], loop: Loop, dataset: Dataset) -> dict[str, float]:
    """Return what all probes measure, by the names that a row of metrics has."""
    return {
        f"{PREFIX}/{probe.name}/{key}": value
        for probe in probes
        for key, value in probe.measure(loop, dataset).items()
    }

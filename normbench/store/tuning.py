"""Tuning records: :func:`tuning_of` returns the trials and choices for each cell of a store.

A sweep that tunes keys (``normbench sweep --tune``) writes a file ``tuning.json`` into the folder
of its record, ``sweeps/<name>/``. Only this file distinguishes trials from final runs: a trial is
an ordinary run, and nothing in its config marks it.

Several sweeps may have tuned the same cell, for example a second one with more values. The most
recent choice counts; final runs at a value that an earlier sweep chose are *superseded*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from normbench.store import files
from normbench.store.schema import boolean, integer, mapping, number, record, sequence, text
from normbench.store.store import SWEEPS, Store

FILE = "tuning.json"
SCHEMA = 1

_CELL = record(
    {
        **dict.fromkeys(("key", "name", "differs", "dataset", "arch", "norm", "problem"), text()),
        **dict.fromkeys(("batch", "epochs", "trial_epochs"), integer(1)),
        **dict.fromkeys(("values", "added"), sequence(mapping())),
        "trials": sequence(
            record(
                {
                    **dict.fromkeys(("run", "status"), text()),
                    "values": mapping(),
                    "seed": integer(0),
                    "metric": number(null=True),
                }
            )
        ),
        "means": sequence(number(null=True)),
        "chosen": mapping(null=True),
        "edges": mapping(text("smallest", "largest")),
        "final": sequence(text()),
    }
)
_TUNING = record(
    {
        "schema": integer(1),
        "keys": sequence(text(), least=1),
        **dict.fromkeys(("metric", "rule"), text()),
        "higher_is_better": boolean(),
        "seeds": sequence(integer(0), least=1),
        "extend": integer(0),
        "cells": sequence(_CELL),
    },
    {
        "sampler": record(
            {
                **dict.fromkeys(("name", "optuna"), text()),
                "trials": integer(1),
                "seed": integer(0),
                "space": mapping(text()),
            }
        )
    },
)


@dataclass(frozen=True)
class Trial:
    """A run trained to choose a value.

    Attributes:
        run: The name of its folder.
        values: Its values of the tuned keys.
        seed: Its seed.
        status: ``finished``, ``diverged``, ``failed`` or ``invalid``; before it has ended,
            ``missing``, ``running`` or ``interrupted``.
        metric: The final metric on the validation images; None unless it finished.
    """

    run: str
    values: dict[str, Any]
    seed: int
    status: str
    metric: float | None


@dataclass(frozen=True)
class Superseded:
    """Final runs of a cell at values that an earlier sweep chose but the last one did not.

    Attributes:
        values: The values of the tuned keys that were chosen earlier.
        runs: The names of the runs.
    """

    values: dict[str, Any]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class TunedCell:
    """A cell of a sweep with its trials and the value chosen from them.

    Attributes:
        key: Hash of the config without its seed and the tuned keys; equal for equal cells.
        name: Start of the names of its runs, such as ``digits-resnet8-bn-b16``.
        differs: Values of keys in which cells differ but which the name does not show.
        dataset, arch, norm: Names.
        batch: Images per step.
        epochs: Epochs of the final runs.
        trial_epochs: Epochs of the trials.
        values: The values of the tuned keys that were tried.
        added: The values among them that ``--extend`` added.
        trials: The trials, in the order of ``values``, then of the tuning seeds.
        means: For each of ``values`` the mean of the metric over its trials; None if a trial
            diverged or has not ended.
        chosen: The chosen values of the tuned keys; None if nothing was chosen.
        edges: ``smallest`` or ``largest`` for each tuned key whose chosen value is at an end of its
            list.
        problem: The reason why nothing was chosen, or an empty string.
        final: Names of the final runs.
        sweep: The name of the sweep's record.
        keys: The tuned keys.
        metric: The metric of the trials: a key of ``METRICS``.
        higher_is_better: True if a larger metric is better.
        seeds: The tuning seeds.
        superseded: Final runs of earlier choices; set only in the cells of :func:`tuning_of`.
        sampler: The sampler that proposed ``values``; see :class:`Tuning`.
    """

    key: str
    name: str
    differs: str
    dataset: str
    arch: str
    norm: str
    batch: int
    epochs: int
    trial_epochs: int
    values: tuple[dict[str, Any], ...]
    added: tuple[dict[str, Any], ...]
    trials: tuple[Trial, ...]
    means: tuple[float | None, ...]
    chosen: dict[str, Any] | None
    edges: dict[str, str]
    problem: str
    final: tuple[str, ...]
    sweep: str
    keys: tuple[str, ...]
    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    superseded: tuple[Superseded, ...] = ()
    sampler: Mapping[str, Any] | None = None

    @property
    def identity(self) -> tuple[str, tuple[str, ...]]:
        """Key and tuned keys, equal for two records of the same cell."""
        return self.key, self.keys

    @property
    def described(self) -> str:
        """Description of the cell: its name and the keys in which it differs from other cells."""
        return f"{self.name} {self.differs}".rstrip()


@dataclass(frozen=True)
class Tuning:
    """The content of ``tuning.json``: the keys that a sweep tuned, its trials, and its choices.

    Attributes:
        sweep: The name of the sweep's record.
        keys: The tuned keys.
        metric: The metric of the trials: a key of ``METRICS``.
        higher_is_better: True if a larger metric is better.
        seeds: The tuning seeds.
        extend: Largest number of values that the sweep adds to those of a cell.
        rule: How a value is chosen, in a sentence.
        cells: The cells, in the order of the grid.
        sampler: The sampler that proposed values: ``name``, ``trials`` (values for each cell),
            ``seed``, ``space`` (the ranges or values of each key as they were typed) and the
            version of ``optuna``; None if all combinations of lists were tried.
    """

    sweep: str
    keys: tuple[str, ...]
    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    extend: int
    rule: str
    cells: tuple[TunedCell, ...]
    sampler: Mapping[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write ``tuning.json`` into the folder of a sweep's record, atomically.

        Raises:
            StoreError: It cannot be written.
        """
        tree = asdict(self)
        del tree["sweep"]
        if self.sampler is None:
            del tree["sampler"]
        shared = ("sweep", "keys", "metric", "higher_is_better", "seeds", "superseded", "sampler")
        tree["cells"] = [
            {key: value for key, value in cell.items() if key not in shared}
            for cell in tree["cells"]
        ]
        content = files.printable(files.jsonable({"schema": SCHEMA, **tree}))
        files.write_text(folder / FILE, files.dumps(content, indent=1) + "\n")


def space_of(sampler: Mapping[str, Any]) -> str:
    """Return the space of a sampler as it was typed, such as ``optimizer.lr=log(0.01,1)``."""
    return " ".join(f"{key}={text}" for key, text in sampler["space"].items())


def read(folder: Path) -> Tuning | None:
    """Return the ``tuning.json`` in the folder of a sweep's record; None if it tuned nothing.

    Raises:
        StoreError: The file is damaged or cannot be read.
    """
    tree = files.read_json(folder / FILE, _TUNING)
    if tree is None:
        return None
    shared = {
        "sweep": folder.name,
        "keys": tuple(tree["keys"]),
        "metric": tree["metric"],
        "higher_is_better": tree["higher_is_better"],
        "seeds": tuple(tree["seeds"]),
        "sampler": tree.get("sampler"),
    }
    cells = tuple(_cell(cell, shared) for cell in tree["cells"])
    return Tuning(**shared, extend=tree["extend"], rule=tree["rule"], cells=cells)


def tunings(store: Store) -> list[Tuning]:
    """Return the ``tuning.json`` of each sweep of a store that tuned keys, oldest first.

    Raises:
        StoreError: A record is damaged or cannot be read.
    """
    paths = sorted((store.root / SWEEPS).glob(f"*/{FILE}"))
    return [tuning for path in paths if (tuning := read(path.parent)) is not None]


@dataclass(frozen=True)
class StoreTuning:
    """The combined tuning of all sweeps of a store.

    Attributes:
        cells: Each tuned cell once, in the order in which the cells were first tuned. ``final`` has
            the final runs of all sweeps that made the same choice.
        trials: The names of the runs that are trials but not final runs of any cell.
        superseded: The names of the final runs at earlier choices that are now neither trials nor
            final runs.
    """

    cells: tuple[TunedCell, ...]
    trials: frozenset[str]
    superseded: frozenset[str]


def tuning_of(store: Store) -> StoreTuning:
    """Read and combine all tuning records of a store.

    Raises:
        StoreError: A record is damaged or cannot be read.
    """
    return combined(tunings(store))


def combined(records: Sequence[Tuning]) -> StoreTuning:
    """Combine the records of several sweeps, given oldest first."""
    by_cell: dict[Any, list[TunedCell]] = {}
    for tuning in records:
        for cell in tuning.cells:
            by_cell.setdefault(cell.identity, []).append(cell)
    merged_cells = [_merged(cells) for cells in by_cell.values()]
    final = {name for cell in merged_cells for name in cell.final}
    trial_names = {
        trial.run for cells in by_cell.values() for cell in cells for trial in cell.trials
    }
    trials = frozenset(trial_names - final)
    cells = tuple(_without(cell, final | trials) for cell in merged_cells)
    superseded_names = frozenset(
        name for cell in cells for entry in cell.superseded for name in entry.runs
    )
    return StoreTuning(cells, trials, superseded_names)


def _merged(records: Sequence[TunedCell]) -> TunedCell:
    """Return the last record of a cell with a choice, with the final runs of all records."""
    decided_cells = [cell for cell in records if cell.chosen is not None]
    if not decided_cells:
        return records[-1]
    last = decided_cells[-1]
    final_names = dict.fromkeys(
        name for cell in decided_cells if cell.chosen == last.chosen for name in cell.final
    )
    other_choices: dict[str, tuple[dict[str, Any], dict[str, None]]] = {}
    for cell in decided_cells:
        if cell.chosen is not None and cell.chosen != last.chosen:
            _, names = other_choices.setdefault(repr(cell.chosen), (cell.chosen, {}))
            names.update(dict.fromkeys(cell.final))
    entries = tuple(Superseded(values, tuple(names)) for values, names in other_choices.values())
    return replace(last, final=tuple(final_names), superseded=entries)


def _without(cell: TunedCell, names: Set[str]) -> TunedCell:
    """Return a cell without those of its superseded runs that are among ``names``."""
    entries = [
        replace(entry, runs=tuple(name for name in entry.runs if name not in names))
        for entry in cell.superseded
    ]
    return replace(cell, superseded=tuple(entry for entry in entries if entry.runs))


def _cell(tree: Mapping[str, Any], shared: Mapping[str, Any]) -> TunedCell:
    keys: Sequence[str] = ("values", "added", "means", "final")
    values = {key: tree[key] for key in TunedCell.__dataclass_fields__ if key in tree}
    values |= {key: tuple(tree[key]) for key in keys}
    fields = Trial.__dataclass_fields__
    trials = tuple(Trial(**{key: trial[key] for key in fields}) for trial in tree["trials"])
    return TunedCell(**{**values, "trials": trials, **shared})

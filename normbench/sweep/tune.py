"""Tuning in a sweep: :class:`Tuner` determines each cell's trials and the value that they choose.

Here, a cell is a combination of the grid's values without the seed. Each value of the tuned keys is
trained in each cell with the same seeds and epochs: these runs are the *trials*. The value with the
best mean of a metric on the validation images is chosen, and the final seeds are trained with it.
All state is in the store: the missing trials and the choices are derived from the runs each time,
so a killed sweep resumes where it was.

The values are all combinations of lists, or those that a sampler proposes
(:mod:`normbench.sweep.sampler`), the same number in each cell.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from normbench.config import Config, branch, compose_parsed, group_options, parse
from normbench.errors import UserError
from normbench.formats import counted
from normbench.store.differences import as_overrides, differences
from normbench.store.store import Store, StoreError
from normbench.store.tuning import Trial, TunedCell, Tuning, tunings
from normbench.sweep.axis import Axis, axes_of, lists_without, refuse_extend, refuse_in_grid
from normbench.sweep.experiment import unfold
from normbench.sweep.grid import expand_lists, refuse_too_many, single_values
from normbench.sweep.sampler import Search, imported, refuse_sampler

SEEDS = "1000"
"""Default of ``--tune-seeds``, far from 0, 1, 2, … so that added final seeds never reach it."""


@dataclass(frozen=True)
class TuneMetric:
    """The metric by which values are chosen.

    Attributes:
        name: Its key in the report's ``METRICS``.
        label: Its name in words.
        higher_is_better: True if a larger value is better.
        value: Returns the metric of a run's summary; None if the summary has none.
        show: Formats a value with its unit.
    """

    name: str = "val_acc"
    label: str = "validation accuracy"
    higher_is_better: bool = True
    value: Callable[[Mapping[str, Any]], float | None] = lambda summary: summary.get("val_acc")
    show: Callable[[float], str] = lambda value: f"{100 * value:.2f} %"


@dataclass(frozen=True)
class TuneOptions:
    """The user's options for tuning.

    Attributes:
        keys: The tuned keys with their values, such as ``optimizer.lr=0.05,0.1``, all combinations
            of which are tried; or, for a sampler, with ranges such as ``optimizer.lr=log(0.01,1)``.
        seeds: The seeds of the trials, as the value of an override: ``1000,1001``.
        epochs: Epochs of a trial; None for those of the final run.
        metric: The metric whose mean over the trials decides.
        extend: Largest number of values added to a cell whose best value is at an end of its list.
        sampler: Name of the sampler that proposes values; None to try all combinations.
        trials: Number of values that a sampler proposes in each cell.
    """

    keys: Sequence[str]
    seeds: str = SEEDS
    epochs: int | None = None
    metric: TuneMetric = field(default_factory=TuneMetric)
    extend: int = 0
    sampler: str | None = None
    trials: int | None = None


@dataclass(eq=False)
class TuningCell:
    """A cell of the grid with its tuned keys.

    Attributes:
        base: The config of its first final run before any key is tuned.
        overrides: The parsed overrides from which the cell is composed, without its seed.
        final_seeds: The seeds of its final runs.
        axes: The tuned keys with the values of this cell, which may be extended.
        added: The values that were added, in order of addition.
        ended: Ends of lists at which no value can be added, as (key, ``smallest``/``largest``).
        invalid: Names of trials that cannot be trained.
        record: The results of the trials so far; see :meth:`Tuner.assess`.
        search: Proposes the values; None if all combinations are tried.
    """

    base: Config
    overrides: tuple[Any, ...]
    final_seeds: list[int]
    axes: list[Axis]
    added: list[tuple[str, Any]] = field(default_factory=list)
    ended: set[tuple[str, str]] = field(default_factory=set)
    invalid: set[str] = field(default_factory=set)
    record: TunedCell | None = None
    search: Search | None = None

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """The combinations of tuned values, by key; the last key varies fastest.

        With a sampler these are its proposals so far, in order.
        """
        if self.search is not None:
            return self.search.proposals
        keys = [axis.key for axis in self.axes]
        lists = [axis.values for axis in self.axes]
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*lists)]

    @property
    def chosen(self) -> dict[str, Any] | None:
        return None if self.record is None else self.record.chosen

    @property
    def name(self) -> str:
        """The start of the names of its runs."""
        return self.base.run_name.rpartition("-s")[0]


class Tuner:
    """The cells of a sweep that tunes keys.

    Args:
        lists: Lists of overrides that make up the grid (see :func:`.experiment.unfold`).
        options: The user's options for tuning.
        config_dir: Second folder of config groups.

    Attributes:
        cells: The cells, in the order of the grid.
        seeds: The tuning seeds.
        protocol: The options that affect the choice, as they could be typed.
        sampler: The sampler with its space, for the record; None if all combinations are tried.

    Raises:
        UserError: A key cannot be tuned, has fewer than two values or is also in the grid, a tuning
            seed is a final seed, a list has no step by which to extend it, or a sampler does not
            fit the space or is not installed.
    """

    def __init__(
        self,
        lists: Sequence[Sequence[str]],
        options: TuneOptions,
        config_dir: str | Path | None = None,
    ) -> None:
        self.options = options
        self._config_dir = config_dir
        self._groups = group_options(config_dir)
        self._contents: dict[str, dict[str, Any]] = {}
        self._configs: dict[tuple[Any, ...], Config] = {}
        axes = axes_of(options.keys, self._groups)
        refuse_in_grid(axes, lists)
        self.seeds = _seeds(options.seeds, self._groups)
        if options.epochs is not None and options.epochs < 1:
            raise UserError(f"--tune-epochs must be at least 1, got {options.epochs}")
        refuse_sampler(options.sampler, options.trials, axes)
        if options.extend:
            if options.sampler is not None:
                raise UserError(
                    "--extend continues a list by its step, but --sampler proposes values by "
                    "itself: leave out one of them"
                )
            refuse_extend(options.extend, axes)
        self.protocol = _protocol(options, axes, self.seeds)
        self.cells = self._cells(lists, axes)
        combinations = options.trials or math.prod(len(axis.values) for axis in axes)
        trials = len(self.cells) * combinations * len(self.seeds)
        refuse_too_many(trials + sum(len(cell.final_seeds) for cell in self.cells))
        self.sampler = self._sample(axes)
        for cell in self.cells:
            seeds = sorted(set(cell.final_seeds) & set(self.seeds))
            if seeds:
                raise UserError(
                    f"seed {seeds[0]} is both a tuning seed and a final seed: a value looks better "
                    "with the seed that chose it; set other --tune-seeds"
                )
        trees = [cell.base.to_dict() for cell in self.cells]
        self._differs = [as_overrides(diff) for diff in differences(trees)]
        for cell in self.cells:
            self.trial_configs(cell)  # an unknown key or a wrong value is refused here
            self._compose_limits(cell)

    # --- the grid --------------------------------------------------------------------------------

    @classmethod
    def of(
        cls, overrides: Sequence[str], options: TuneOptions, config_dir: str | Path | None = None
    ) -> Tuner:
        """Build the tuner of a grid from the overrides as they were typed.

        Raises:
            UserError: As for the class, or a name in the overrides is unknown.
        """
        experiment, lists = unfold(overrides, config_dir)
        return cls(lists_without(experiment, lists, options.keys), options, config_dir)

    def _cells(self, lists: Sequence[Sequence[str]], axes: Sequence[Axis]) -> list[TuningCell]:
        cells: dict[tuple[str, str], TuningCell] = {}
        for config, combination in expand_lists(lists, self._config_dir):
            overrides = tuple(o for o in combination if o.key_or_group != "seed")
            key = (_without_seed(config), config.store)
            if key not in cells:
                cells[key] = TuningCell(config, overrides, [], copy.deepcopy(list(axes)))
            if config.seed not in cells[key].final_seeds:
                cells[key].final_seeds.append(config.seed)
        return list(cells.values())

    def _sample(self, axes: Sequence[Axis]) -> dict[str, Any] | None:
        """Have the sampler propose the first values of each cell.

        The sampler's seed is the first tuning seed in all cells, so proposals that use no results
        are equal in all cells.

        Returns:
            The sampler with its space, for the record; None if all combinations are tried.
        """
        name, trials, seed = self.options.sampler, self.options.trials, self.seeds[0]
        if name is None or trials is None:
            return None
        for cell in self.cells:
            cell.search = Search(cell.axes, name, trials, seed)
        return {
            "name": name,
            "trials": trials,
            "seed": seed,
            "space": {axis.key: axis.listed for axis in axes},
            "optuna": imported(name).__version__,
        }

    def _compose_limits(self, cell: TuningCell) -> None:
        """Compose trials at the limits of ranges, so that an invalid limit is refused at once.

        Otherwise a proposal that the config refuses could end the sweep after hours of trials.
        """
        for axis in cell.axes:
            for limit in () if axis.span is None else (axis.span.low, axis.span.high):
                values = {**cell.combinations[0], axis.key: limit}
                self._config(cell, values, self.seeds[0], self.options.epochs)

    def described(self, cell: TuningCell) -> str:
        """Return the start of the names of a cell's runs, and its values of differing keys."""
        return f"{cell.name}  {self._differs[self.cells.index(cell)]}".rstrip()

    # --- the runs --------------------------------------------------------------------------------

    def trial_configs(self, cell: TuningCell) -> list[Config]:
        """Return the configs of a cell's trials: one per combination and tuning seed."""
        return [
            self._config(cell, combination, seed, self.options.epochs)
            for combination in cell.combinations
            for seed in self.seeds
        ]

    def final_configs(self, cell: TuningCell, seeds: Sequence[int] | None = None) -> list[Config]:
        """Return the configs of a cell's final runs at its chosen value.

        Args:
            cell: A cell. If nothing is chosen yet, the first value that can be trained is used in
                place of the chosen one.
            seeds: Seeds to use instead of those of the grid.
        """
        values = cell.chosen or self._stand_in(cell)
        seeds = cell.final_seeds if seeds is None else seeds
        return [self._config(cell, values, seed, None) for seed in seeds]

    def _stand_in(self, cell: TuningCell) -> dict[str, Any]:
        """Return the first combination of values whose trials can be trained."""
        combinations, trials = cell.combinations, iter(self.trial_configs(cell))
        for combination in combinations:
            names = {next(trials).run_name for _ in self.seeds}
            if not names & cell.invalid:
                return combination
        return combinations[0]

    def possible_finals(self, cell: TuningCell) -> list[tuple[Config, list[Config]]]:
        """Return, for each combination, its trials and the first final run it would lead to."""
        trials, count = self.trial_configs(cell), len(self.seeds)
        return [
            (self._config(cell, combination, cell.final_seeds[0], None), trials[start:][:count])
            for start, combination in zip(
                range(0, len(trials), count), cell.combinations, strict=True
            )
        ]

    def trials(self) -> list[Config]:
        """Return the configs of all trials; with a sampler, of those proposed so far."""
        return [config for cell in self.cells for config in self.trial_configs(cell)]

    def unproposed(self, cell: TuningCell) -> int:
        """Return the number of trials of a cell that its sampler has yet to propose."""
        if self.options.trials is None:
            return 0
        return (self.options.trials - len(cell.combinations)) * len(self.seeds)

    def finals(self, chosen: bool) -> list[Config]:
        """Return the configs of the final runs of all cells with, or without, a chosen value.

        Args:
            chosen: True for the cells with a chosen value.
        """
        cells = [cell for cell in self.cells if (cell.chosen is not None) == chosen]
        return [config for cell in cells for config in self.final_configs(cell)]

    def _config(
        self, cell: TuningCell, values: Mapping[str, Any], seed: int, epochs: int | None
    ) -> Config:
        cell_overrides = [axis.override(values[axis.key]) for axis in cell.axes]
        texts = [f"seed={seed}", *([] if epochs is None else [f"epochs={epochs}"])]
        key = (id(cell), *(override.input_line for override in cell_overrides), *texts)
        if key not in self._configs:
            overrides = (*cell.overrides, *cell_overrides, *parse(texts))
            self._configs[key] = compose_parsed(
                overrides, self._config_dir, self._groups, self._contents
            )
        return self._configs[key]

    # --- the results of the trials ---------------------------------------------------------------

    def assess(self, store: Store) -> None:
        """Read the trials from the store; choose a value in each cell whose trials have ended."""
        for cell, differs in zip(self.cells, self._differs, strict=True):
            cell.record = self._assessed(cell, store, differs)

    def _assessed(self, cell: TuningCell, store: Store, differs: str) -> TunedCell:
        configs = iter(self.trial_configs(cell))
        combinations = cell.combinations
        trials = tuple(
            self._trial(next(configs), combination, cell, store)
            for combination in combinations
            for _ in self.seeds
        )
        means = tuple(
            _mean(trials[start : start + len(self.seeds)])
            for start in range(0, len(trials), len(self.seeds))
        )
        unproposed_count = self.unproposed(cell)
        problem, index = _choice(
            trials, means, self.options.metric.higher_is_better, unproposed_count
        )
        values = None if index is None else combinations[index]
        base = cell.base
        record = TunedCell(
            key=self.key(cell),
            name=cell.name,
            differs=differs,
            dataset=base.dataset["name"],
            arch=base.arch["name"],
            norm=base.norm_name,
            batch=base.batch,
            epochs=base.epochs,
            trial_epochs=self.options.epochs or base.epochs,
            values=tuple(combinations),
            added=tuple(
                combination
                for combination in combinations
                if any(combination[key] == value for key, value in cell.added)
            ),
            trials=trials,
            means=means,
            chosen=values,
            edges={} if values is None else _edges(cell, values),
            problem=problem,
            final=(),
            sweep="",
            keys=tuple(axis.key for axis in cell.axes),
            metric=self.options.metric.name,
            higher_is_better=self.options.metric.higher_is_better,
            seeds=tuple(self.seeds),
            sampler=self.sampler,
        )
        if values is None:
            return record
        cell.record = record
        final = tuple(config.run_name for config in self.final_configs(cell))
        return replace(record, final=final)

    def _trial(
        self, config: Config, values: dict[str, Any], cell: TuningCell, store: Store
    ) -> Trial:
        run, metric = store.run(config), None
        try:
            status: str = run.status
            if status == "finished":
                metric = self.options.metric.value(run.summary or {})
        except StoreError:
            status = "unreadable"
        if status == "missing" and run.name in cell.invalid:
            status = "invalid"
        if metric is not None and not math.isfinite(metric):
            metric = None
        return Trial(run.name, values, config.seed, status, metric)

    def key(self, cell: TuningCell) -> str:
        """Return a hash of a cell's config without seed, tuned keys and keys without effect."""
        tree = cell.base.to_dict()
        launch = ("seed", "store", "label", "probe", "logger", "stream")
        for key in (*launch, *(axis.key for axis in cell.axes)):
            group, name = branch(tree, key)
            group.pop(name, None)
        text = json.dumps(tree, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def extend(self, note: Callable[[str], None] = lambda text: None) -> bool:
        """Add a value to each cell whose best value is at an end of its list, up to ``--extend``.

        With a sampler, propose the next value of each cell instead.

        Args:
            note: Receives a line if a value cannot be added.

        Returns:
            True if a value was added to any cell.
        """
        if self.options.sampler is not None:
            proposals = [self._propose(cell) for cell in self.cells]
            return any(proposals)
        has_grown = False
        for cell in self.cells:
            edges = {} if cell.record is None else cell.record.edges
            for axis in cell.axes:
                edge = edges.get(axis.key)
                if edge is None or len(cell.added) >= self.options.extend:
                    continue
                has_grown |= self._extend(cell, axis, edge, note)
        return has_grown

    def _propose(self, cell: TuningCell) -> bool:
        """Have the sampler propose the next value if all trials so far have ended."""
        record, search = cell.record, cell.search
        if record is None or search is None:
            return False
        if any(trial.status not in ("finished", "diverged", "invalid") for trial in record.trials):
            return False
        sign = 1 if self.options.metric.higher_is_better else -1
        return search.advance([-math.inf if m is None else sign * m for m in record.means])

    def _extend(self, cell: TuningCell, axis: Axis, edge: str, note: Callable[[str], None]) -> bool:
        if (axis.key, edge) in cell.ended:
            return False
        value = axis.beyond(edge)
        backup = copy.copy(axis.overrides), copy.copy(axis.values)
        if value is not None:
            axis.add(value)
            try:
                self.trial_configs(cell)
                cell.added.append((axis.key, value))
                return True
            except UserError as error:
                note(f"{cell.name}: {axis.key} is not extended: {error}")
                axis.overrides, axis.values = backup
        cell.ended.add((axis.key, edge))
        return False

    def settle(self, store: Store) -> None:
        """Assess the trials, and extend lists or proposals as far as results are in the store."""
        self.assess(store)
        while self.extend():
            self.assess(store)

    # --- the record ------------------------------------------------------------------------------

    @property
    def rule(self) -> str:
        """Sentence on how a value is chosen."""
        metric = self.options.metric
        order = "highest" if metric.higher_is_better else "lowest"
        first = "value (the smallest)" if self.options.sampler is None else "proposed value"
        return (
            f"the value with the {order} mean of the final {metric.label} over the tuning seeds; "
            f"of equal means the first {first}; a value with a diverged trial is not chosen"
        )

    def tuning(self, sweep: str) -> Tuning:
        """Return the content of the record for the sweep with this name."""
        cells = [cell.record for cell in self.cells if cell.record is not None]
        return Tuning(
            sweep=sweep,
            keys=tuple(axis.key for axis in self.cells[0].axes),
            metric=self.options.metric.name,
            higher_is_better=self.options.metric.higher_is_better,
            seeds=tuple(self.seeds),
            extend=self.options.extend,
            rule=self.rule,
            sampler=self.sampler,
            cells=tuple(replace(cell, sweep=sweep) for cell in cells),
        )

    def refuse_other_budget(self, store: Store) -> None:
        """Refuse a store in which values were chosen with other epochs or seeds of the trials.

        Cells with the same data set, network and number of final epochs are checked, because their
        results are compared with each other.

        Raises:
            UserError: The budgets differ.
            StoreError: A record is damaged.
        """
        budgets = {
            (c.base.dataset["name"], c.base.arch["name"], c.base.epochs): (
                self.options.epochs or c.base.epochs
            )
            for c in self.cells
        }
        for tuning in tunings(store):
            for cell in tuning.cells:
                epochs = budgets.get((cell.dataset, cell.arch, cell.epochs))
                if cell.chosen is None or epochs is None:
                    continue
                budget = (cell.trial_epochs, sorted(cell.seeds))
                if budget != (epochs, sorted(self.seeds)):
                    raise UserError(
                        f"the trials in {store.root} were made with --tune-epochs "
                        f"{cell.trial_epochs} --tune-seeds {_listed(cell.seeds)} (sweep "
                        f"{tuning.sweep}), but this sweep has --tune-epochs {epochs} --tune-seeds "
                        f"{_listed(self.seeds)}: use the same budget or another store"
                    )


# --- the choice -----------------------------------------------------------------------------------


def _mean(trials: Sequence[Trial]) -> float | None:
    values = [trial.metric for trial in trials if trial.metric is not None]
    return math.fsum(values) / len(values) if len(values) == len(trials) else None


def _choice(
    trials: Sequence[Trial],
    means: Sequence[float | None],
    higher_is_better: bool,
    unproposed_count: int,
) -> tuple[str, int | None]:
    """Choose among combinations of values.

    Args:
        trials: The trials.
        means: The mean of the metric for each combination.
        higher_is_better: True if a larger mean is better.
        unproposed_count: Number of trials yet to be proposed.

    Returns:
        The reason why nothing is chosen, or an empty string; and the index of the chosen
        combination, or None.
    """
    failed_trials = [trial for trial in trials if trial.status in ("failed", "unreadable")]
    waiting_trials = [t for t in trials if t.status in ("missing", "running", "interrupted")]
    if failed_trials:
        verb = "has" if len(failed_trials) == 1 else "have"
        first = failed_trials[0].run
        return f"{counted(len(failed_trials), 'trial')} {verb} failed, the first is {first}", None
    if waiting_trials or unproposed_count:
        count, total = (
            len(waiting_trials) + unproposed_count,
            counted(len(trials) + unproposed_count, "trial"),
        )
        return f"{count} of {total} to be trained", None
    pairs = [(index, mean) for index, mean in enumerate(means) if mean is not None]
    if not pairs:
        counts = {
            "diverged": sum(trial.status == "diverged" for trial in trials),
            "cannot be trained": sum(trial.status == "invalid" for trial in trials),
            "ended without the metric": sum(trial.status == "finished" for trial in trials),
        }
        text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        return f"no value is left to choose: of {counted(len(trials), 'trial')}, {text}", None
    sign = 1 if higher_is_better else -1
    return "", max(pairs, key=lambda pair: (sign * pair[1], -pair[0]))[0]


def _edges(cell: TuningCell, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the tuned keys whose chosen number is the smallest or the largest in its list.

    In a range it must be the smallest or the largest that was tried, and near the range's limit.
    """
    edges = {}
    for axis in cell.axes:
        value, candidates = values[axis.key], axis.values
        if axis.span is not None:
            if not axis.span.at_edge(value):
                continue
            candidates = sorted(combination[axis.key] for combination in cell.combinations)
        if axis.numeric and value in (candidates[0], candidates[-1]):
            edges[axis.key] = "smallest" if value == candidates[0] else "largest"
    return edges


# --- the options ----------------------------------------------------------------------------------


def tuned_by_experiment(
    overrides: Sequence[str], config_dir: str | Path | None = None
) -> TuneOptions | None:
    """Return the tuning options of the experiment among a sweep's overrides; None if it has none.

    A value typed in addition to the experiment replaces that of the experiment, so its key is not
    tuned.

    Args:
        overrides: The overrides as they were typed, including ``+experiment=NAME``.
        config_dir: Second folder of config groups.

    Raises:
        UserError: There is no such experiment, or its file is not valid.
    """
    experiment, _ = unfold(overrides, config_dir)
    if experiment is None:
        return None
    override_keys = {str(override.key_or_group) for override in parse(overrides)}
    keys = [text for text in experiment.tune if text.partition("=")[0] not in override_keys]
    if not keys:
        return None
    seeds, extend = experiment.tune_seeds, experiment.extend
    return TuneOptions(
        keys=keys,
        seeds=SEEDS if seeds is None else seeds,
        epochs=experiment.tune_epochs,
        extend=0 if extend is None else extend,
        sampler=experiment.sampler,
        trials=experiment.trials,
    )


def _protocol(options: TuneOptions, axes: Sequence[Axis], seeds: Sequence[int]) -> str:
    """Return the options that affect the choice, as they could be typed."""
    words = [f"--tune {axis.key}={axis.listed}" for axis in axes]
    if options.sampler is not None:
        words.append(f"--sampler {options.sampler} --trials {options.trials}")
    words.append(f"--tune-seeds {_listed(seeds)}")
    if options.epochs is not None:
        words.append(f"--tune-epochs {options.epochs}")
    words.append(f"--tune-metric {options.metric.name}")
    if options.extend:
        words.append(f"--extend {options.extend}")
    return " ".join(words)


def _seeds(text: str, groups: dict[str, list[str]]) -> list[int]:
    """Return the seeds in a value of ``--tune-seeds``."""
    try:
        (override,) = parse([f"seed={text}"])
        seeds = [single.value() for single in single_values(override, groups)]
    except UserError as error:
        raise UserError(f"--tune-seeds {text}: {error}") from None
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UserError(
                "--tune-seeds must be whole numbers in 0..4294967295, such as 1000,1001; "
                f"got {text}"
            )
    return list(dict.fromkeys(seeds))


def _without_seed(config: Config) -> str:
    return replace(config, seed=0).run_name


def _listed(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))

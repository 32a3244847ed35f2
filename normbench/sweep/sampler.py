"""Optuna samplers for ``--tune``: :class:`Search` proposes the values of a cell's trials.

A search stores nothing between sweeps. Its proposals are a function of the sampler, its seed, the
space and the results of the earlier proposals in order. A resumed sweep queries the sampler again
from the first trial, tells it the results in the store, and so arrives at the trials that were
already started.

Optuna's study exists only in memory and does not choose the best value:
:class:`~normbench.sweep.tune.Tuner` does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from normbench.errors import UserError, unknown
from normbench.sweep.axis import Axis

#: Optuna's classes by their names for ``--sampler``.
SAMPLERS = {
    "cmaes": "CmaEsSampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
    "tpe": "TPESampler",
}

#: Samplers that use no results, so that all trials of a cell are proposed at once.
BLIND = ("qmc", "random")

#: Number of random trials before ``tpe`` uses results: Optuna's default.
TPE_START = 10

_REPEATED = 20  # after this many proposals of known values in a row, values are drawn at random
_MOST_ASKED = 10_000


class Search:
    """The proposals of a sampler for one cell.

    Args:
        axes: The tuned keys.
        sampler: A name of :data:`SAMPLERS`.
        trials: Number of values to propose, all different.
        seed: Seed of the sampler.

    Attributes:
        proposals: The values proposed so far, by key. Proposals that need no results are made at
            once: all of ``random`` and ``qmc``, the first :data:`TPE_START` of ``tpe``, the first
            one of ``cmaes``.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, axes: Sequence[Axis], sampler: str, trials: int, seed: int) -> None:
        self._optuna = optuna = imported(sampler)
        self._axes, self._trials = axes, trials
        options: dict[str, Any] = {
            "cmaes": {"warn_independent_sampling": False},
            "qmc": {"scramble": True},  # else the second trial is the corner of all ranges
            "tpe": {"n_startup_trials": TPE_START},
        }.get(sampler, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampling = getattr(optuna.samplers, SAMPLERS[sampler])(seed=seed, **options)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._study = optuna.create_study(sampler=sampling, direction="maximize")
        self._distributions = {axis.key: self._distribution(axis) for axis in axes}
        self._open: list[Any] = []  # Optuna's trials without a result so far
        self.proposals: list[dict[str, Any]] = []
        count = trials if sampler in BLIND else TPE_START if sampler == "tpe" else 1
        for _ in range(min(count, trials)):
            self._propose()

    def advance(self, scores: Sequence[float]) -> bool:
        """Tell the sampler the results of all proposals so far, and request the next proposal.

        Args:
            scores: The result of each proposal, higher is better; minus infinity for values that
                cannot be chosen, so that the sampler avoids their neighborhood.

        Returns:
            False if there are no more proposals.
        """
        if len(self.proposals) >= self._trials:
            return False
        new_scores = scores[len(self.proposals) - len(self._open) :]
        for trial, score in zip(self._open, new_scores, strict=True):
            self._study.tell(trial, score)
        self._open = []
        self._propose()
        return True

    def _propose(self) -> None:
        """Ask the sampler for values that it has not proposed yet.

        A sampler may propose the same values again, because there are few or because of rounding.
        They would be the same runs, so the cell would have fewer trials than others.
        """
        study, sampler = self._study, self._study.sampler
        for count in range(_MOST_ASKED):
            if count == _REPEATED:
                study.sampler = self._random
            trial = study.ask(self._distributions)
            values = {axis.key: _value(axis, trial.params[axis.key]) for axis in self._axes}
            if values not in self.proposals:
                break
            study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            raise UserError(
                f"the space of --tune has too few values for --trials {self._trials}: after "
                f"{len(self.proposals)} the sampler finds no more"
            )
        study.sampler = sampler
        self._open.append(trial)
        self.proposals.append(values)

    def _distribution(self, axis: Axis) -> Any:
        distributions, span = self._optuna.distributions, axis.span
        if span is None:  # by index, because Optuna's choices cannot be lists
            return distributions.CategoricalDistribution(tuple(range(len(axis.values))))
        kind = distributions.IntDistribution if span.whole else distributions.FloatDistribution
        return kind(span.low, span.high, log=span.log)


def _value(axis: Axis, sample: Any) -> Any:
    """Return the value of a tuned key for an index or a number that Optuna sampled."""
    return axis.values[sample] if axis.span is None else axis.span.value(sample)


def imported(sampler: str) -> Any:
    """Import Optuna and silence its messages.

    Raises:
        UserError: Optuna, or a package that the sampler needs, is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("--sampler needs Optuna: pip install 'normbench[optuna]'") from None
    if sampler == "cmaes" and find_spec("cmaes") is None:
        raise UserError("--sampler cmaes needs the package cmaes: pip install cmaes")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def refuse_sampler(sampler: str | None, trials: int | None, axes: Sequence[Axis]) -> None:
    """Check that a sampler, a number of trials and a space fit together.

    Raises:
        UserError: They do not.
    """
    ranges = [axis for axis in axes if axis.span is not None]
    if sampler is None:
        if ranges:
            raise UserError(
                f"--tune {ranges[0].key}={ranges[0].span}: a range is not a list of values; "
                "--sampler tpe --trials 20 tries 20 from it, log(first, last, count) lists some"
            )
        if trials is not None:
            raise UserError(f"--trials {trials} needs --sampler NAME, which proposes them")
        return
    if sampler not in SAMPLERS:
        raise unknown("--sampler", sampler, SAMPLERS)
    if trials is None:
        raise UserError(f"--sampler {sampler} needs --trials N, the number of trials of each cell")
    if trials < 2:
        raise UserError(f"--trials must be at least 2, got {trials}")
    if sampler == "cmaes" and (len(ranges) < 2 or len(ranges) < len(axes)):
        raise UserError(
            "--sampler cmaes needs two or more ranges, and no lists; tpe, random and qmc take "
            "any --tune"
        )
    counts = [len(axis.values) if axis.span is None else axis.span.count for axis in axes]
    combinations = math.prod(counts)
    if not ranges and trials >= combinations:
        raise UserError(
            f"--trials {trials}: there are {combinations} combinations, all of which are tried "
            "without --sampler"
        )
    if ranges and combinations < 2 * trials:  # the last values would take a sampler too long
        raise UserError(
            f"--trials {trials}: the space of --tune has {combinations} values (those of a range "
            f"have three significant digits), but a sampler needs at least {2 * trials}"
        )

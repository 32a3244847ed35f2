"""The same configs in two stores or at two commits: :func:`compare` gives a verdict on each.

A *side* is a store or a commit; a *config* is everything except the seed that determines a run's
numbers. Each config of which both sides have complete runs gets one of :data:`VERDICTS`, according
to :data:`RULES`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normbench.config import branch, signature_without_seed
from normbench.errors import NormbenchError, UserError, unknown
from normbench.formats import counted
from normbench.report import tuning
from normbench.report.caveats import ENDED, describe_values, words
from normbench.report.frames import Frames, is_provenance
from normbench.report.metrics import Metric
from normbench.report.statistics import half_width_of_difference
from normbench.report.stores import is_same
from normbench.report.study import by_age, commits, ranges
from normbench.report.table import EMPTY, Table, TableEntry
from normbench.store.differences import as_overrides, differences
from normbench.store.store import Run

SIDES = ("store", "commit")
"""The kinds of sides: what ``normbench diff --by`` takes."""

VERDICTS = {
    "different": "different",
    "unknown": "spread unknown",
    "within": "within the spread",
    "equal": "equal bits",
}
"""The verdicts in words, in the order of listing."""

RULES = {
    "equal": "Equal bits: the final weights of all seeds that both sides have are equal to the "
    "last bit (for diverged runs, which have no final weights, the results are).",
    "within": "Within the spread: the change of the mean is no larger than ±, the half-width of "
    "the 95 % interval of the difference between two means of as many seeds that differ by chance "
    "alone (Student's t with the standard deviation over the seeds of both sides{together}). A "
    "change smaller than ± cannot be detected.",
    "unknown": "Spread unknown: one seed on each side, or only some runs of a side diverged.",
    "different": "Different: the change is larger than ±, all runs diverged on one side and none "
    "on the other, or equal weights have different results.",
}
"""The rule for each verdict, in a sentence or two."""

EXECUTION = {"backend": "tensorflow", "precision": "float32", "devices": 1}
"""Config keys that affect only how a run is computed, each with the value that replaces all others
when configs are compared for the same science."""

_SAME = 1e-6  # relative; results of equal weights that differ by more are not rounding errors


@dataclass
class Comparison:
    """One config on both sides.

    Attributes:
        runs: The complete runs of each side, as rows of the runs frame.
        values: The metric of the finished runs of each side, by seed.
        name: The config in words.
        differs: Values in which the configs of the two sides differ, if they are not equal but of
            the same science (:func:`compare`).
        shared: Number of seeds that both sides have.
        equal: Number of those whose final weights are equal to the last bit.
        half_width: Half-width of the 95 % interval of a difference by chance; NaN if unknown.
        verdict: A key of :data:`VERDICTS`.
        remark: A few words on the verdict.
    """

    runs: tuple[pd.DataFrame, pd.DataFrame]
    values: tuple[dict[int, float], dict[int, float]]
    name: str = ""
    differs: str = ""
    shared: int = 0
    equal: int = 0
    half_width: float = math.nan
    verdict: str = "unknown"
    remark: str = ""

    @property
    def means(self) -> list[float]:
        """The mean of each side; NaN for a side without values."""
        return [float(np.mean([*side.values()])) if side else math.nan for side in self.values]

    @property
    def difference(self) -> float:
        """The mean of the second side minus that of the first."""
        return self.means[1] - self.means[0]

    @property
    def diverged(self) -> list[int]:
        """The number of diverged runs of each side."""
        return [int((side["status"] == "diverged").sum()) for side in self.runs]


@dataclass(frozen=True)
class Sides:
    """Two stores or two commits side by side.

    Attributes:
        names: The names of the sides.
        metric: The metric whose means are compared.
        found: The configs that both sides have, the different ones first.
        only: For each side, the numbers of configs and complete runs that only it has.
        origin: A sentence for each recorded version or machine in which the sides differ.
        unfinished: Number of incomplete runs, which are not compared.
    """

    names: tuple[str, str]
    metric: Metric
    found: list[Comparison]
    only: list[tuple[int, int]]
    origin: list[str] = field(default_factory=list)
    unfinished: int = 0

    @property
    def exit_code(self) -> int:
        """1 if any config is different, else 0, even if a spread is unknown."""
        return int(any(item.verdict == "different" for item in self.found))

    @property
    def summary(self) -> str:
        """A line with the counts of all verdicts, and of configs that only one side has."""
        verdicts = [item.verdict for item in self.found]
        counts = [
            f"{verdicts.count(key)} {text}" for key, text in VERDICTS.items() if key in verdicts
        ]
        line = f"{counted(len(self.found), 'config')} in both: {', '.join(counts)}"
        for name, (configs, runs) in zip(self.names, self.only, strict=True):
            if configs:
                line += f"; only in {name}: {counted(configs, 'config')} ({counted(runs, 'run')})"
        if self.unfinished:
            line += f"; {counted(self.unfinished, 'run')} not complete"
        return line


def compare(
    frames: Frames, by: str, metric_name: str = "test_acc", *, same_science: bool = False
) -> Sides:
    """Compare two stores or two commits, config by config.

    Args:
        frames: The runs of both (:func:`normbench.report.stores.load_stores` with the same ``by``).
        by: ``store`` or ``commit``.
        metric_name: The metric whose means are compared.
        same_science: Also match configs of the two sides that differ only in :data:`EXECUTION` or
            in tuned keys, and leave out tuning trials.

    Raises:
        UserError: ``by`` is neither, there are not two sides, they have no config in common, or
            the metric does not exist or is a time.
    """
    frames, metric = frames.with_metric(metric_name)
    if metric.timed:
        raise UserError(f"{metric_name} is not compared: times depend on the machine and its load")
    all_runs = frames.runs
    all_runs = all_runs.assign(side=commits(all_runs) if by == "commit" else all_runs["store"])
    if same_science:
        all_runs = all_runs[~tuning.is_aside(all_runs)]
    runs = all_runs[all_runs["status"].isin(ENDED)]
    names = _names(runs, frames, by)
    configs = {run["path"]: _config(run) for run in runs.to_dict("records")}
    keys = runs["path"].map(lambda path: configs[path][0])
    pairs, unmatched_groups = _matched(
        [group for _, group in runs.groupby(keys, sort=False)], names
    )
    if same_science:
        science = _science(runs, configs, frames)
        more_pairs, unmatched_groups = _matched_across(unmatched_groups, names, science)
        pairs += more_pairs
    comparisons = [_comparison(pair, metric) for pair in pairs]
    counts = [
        (len(groups), sum(map(len, groups)))
        for groups in ([g for g in unmatched_groups if g["side"].iloc[0] == name] for name in names)
    ]
    if not comparisons:  # exit code 0 would tell a script that nothing has changed
        raise UserError(
            f"{names[0]} and {names[1]} have no config of which both have complete runs "
            f"({counted(counts[0][0], 'config')} and {counted(counts[1][0], 'config')})"
        )
    trees = [configs[item.runs[0]["path"].iloc[0]][1] for item in comparisons]
    for item, difference in zip(comparisons, differences(trees), strict=True):
        item.name = _described(item.runs[0].iloc[0], difference)
        side_configs = [configs[side["path"].iloc[0]][1] for side in item.runs]
        changes = list(map(as_overrides, differences(side_configs)))
        item.differs = " and ".join(text or "the default" for text in changes if any(changes))
    _judge_spread(comparisons)
    order = list(VERDICTS)
    comparisons.sort(key=lambda item: (order.index(item.verdict), item.name))
    return Sides(
        names,
        metric,
        comparisons,
        counts,
        _origin(runs, names, by),
        len(all_runs) - len(runs),
    )


Match = tuple[
    pd.DataFrame, pd.DataFrame
]  # complete runs of one config on the first and on the second side


def _matched(
    groups: Sequence[pd.DataFrame], names: Sequence[str]
) -> tuple[list[Match], list[pd.DataFrame]]:
    """Divide configs into those that both sides have and those that only one has."""
    pairs, unmatched_groups = [], []
    for group in groups:
        first, second = (group[group["side"] == name] for name in names)
        if first.empty or second.empty:
            unmatched_groups.append(group)
        else:
            pairs.append((first, second))
    return pairs, unmatched_groups


def _matched_across(
    unmatched_groups: Sequence[pd.DataFrame], names: Sequence[str], science: Mapping[str, str]
) -> tuple[list[Match], list[pd.DataFrame]]:
    """Match configs that only one side has with configs of the other of the same science.

    Args:
        unmatched_groups: The unmatched configs of either side.
        names: The names of the sides.
        science: A hash for each run, by its path (:func:`_science`).
    """

    def key(group: pd.DataFrame) -> str:
        return science[group["path"].iloc[0]]

    firsts, seconds = (
        [group for group in unmatched_groups if group["side"].iloc[0] == name] for name in names
    )
    pairs = [(first, second) for first in firsts for second in seconds if key(first) == key(second)]
    used_keys = {key(first) for first, _ in pairs}
    return pairs, [group for group in unmatched_groups if key(group) not in used_keys]


def _science(
    runs: pd.DataFrame, configs: Mapping[str, tuple[str, dict[str, Any]]], frames: Frames
) -> dict[str, str]:
    """Return a hash of each run's config without its seed, execution and tuned keys, by path."""
    cells, first_values = tuning.final_cells(frames), {}
    hashes = {}
    for run in runs.to_dict("records"):
        key, tree = configs[run["path"]]
        tree = copy.deepcopy(tree) | EXECUTION
        cell = cells.get(run["name"])
        for tuned_key in () if cell is None else cell.keys:
            group, name = branch(tree, tuned_key)
            # Replace all values by the first one seen, which the config is sure to accept.
            group[name] = first_values.setdefault(tuned_key, group.get(name))
        try:
            hashes[run["path"]] = signature_without_seed(tree)
        except NormbenchError:
            hashes[run["path"]] = key
    return hashes


def _names(runs: pd.DataFrame, frames: Frames, by: str) -> tuple[str, str]:
    """Return the names of the two sides: stores in the order given, the older commit first."""
    if by not in SIDES:
        raise unknown("side in --by", by, SIDES)
    if by == "store":
        names = [store.name for store in frames.stores]
        if len(names) != 2:
            raise UserError(f"diff compares two stores, not {len(names) or 1}: name two")
        return names[0], names[1]
    names = by_age(runs.assign(commit=runs["side"])) if len(runs) else []
    counts = [f"{name} ({counted(int((runs['side'] == name).sum()), 'run')})" for name in names]
    if len(names) < 2:
        of = f"all complete runs are of the commit {counts[0]}" if names else "no run is complete"
        raise UserError(f"{of}: there are no two commits to compare")
    if len(names) > 2:
        raise UserError(
            f"complete runs are of {len(names)} commits, {', '.join(counts)}: choose two, as with "
            f'--where \'commit in ["{names[0].split()[0]}", "{names[1].split()[0]}"]\''
        )
    return names[0], names[1]


def _config(run: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a hash of a run's config without its seed, and the config.

    A config that this version cannot read equals only that of the same run.
    """
    tree = dict(Run(Path(run["path"])).config or {})
    try:
        return signature_without_seed(tree), tree
    except NormbenchError:
        return f"run {run.get('signature') or run['name']}", tree


def _described(run: pd.Series, difference: Mapping[str, Any]) -> str:
    name = f"{run['dataset']}-{run['arch']}-{run['norm']}-b{run['batch']:g}"
    return f"{name} {as_overrides(difference)}".rstrip()


# --- the verdict ----------------------------------------------------------------------------------


def _comparison(runs: tuple[pd.DataFrame, pd.DataFrame], metric: Metric) -> Comparison:
    """Compare the weights of the seeds that both sides have."""
    values = tuple(
        {
            int(run["seed"]): float(run[metric.name])
            for run in side.to_dict("records")
            if run["status"] == "finished" and not pd.isna(run[metric.name])
        }
        for side in runs
    )
    item = Comparison(runs, (values[0], values[1]))
    by_seed = [{int(run["seed"]): run for run in side.to_dict("records")} for side in runs]
    shared_seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    equal_seeds = [seed for seed in shared_seeds if is_same(by_seed[0][seed], by_seed[1][seed])]
    item.shared, item.equal = len(shared_seeds), len(equal_seeds)
    if not equal_seeds:
        return item
    # Equal weights with different results: the evaluation has changed, which is not chance.
    unequal_seeds = [seed for seed in equal_seeds if not _is_close(item, seed)]
    if unequal_seeds:
        item.verdict, item.remark = "different", f"equal weights, different {metric.name}"
    elif len(equal_seeds) == len(shared_seeds):
        item.verdict = "equal"
        item.values = (
            {seed: value for seed, value in item.values[0].items() if seed in equal_seeds},
            {seed: value for seed, value in item.values[1].items() if seed in equal_seeds},
        )
        if any(len(side) > len(equal_seeds) for side in runs):
            item.remark = f"of {counted(len(equal_seeds), 'shared seed')}"
    else:
        item.remark = f"equal bits in {len(equal_seeds)} of {len(shared_seeds)} seeds"
    return item


def _is_close(item: Comparison, seed: int) -> bool:
    first, second = (side.get(seed, math.nan) for side in item.values)
    return math.isclose(first, second, rel_tol=_SAME) or (math.isnan(first) and math.isnan(second))


def _judge_spread(comparisons: Sequence[Comparison]) -> None:
    """Give a verdict to the configs whose bits are not equal.

    The spread is over seeds, not over paired differences: the question is whether the two sides
    differ by more than another draw of seeds would, and they may have no seed in common. The 5 %
    false alarm rate is for all configs together (union bound), since a comparison of many configs
    would otherwise almost always find one different.
    """
    tested_items = []
    for item in comparisons:
        if item.verdict != "unknown":
            continue
        diverged_counts, counts = item.diverged, [len(side) for side in item.runs]
        if any(diverged_counts):
            texts = [f"{n} of {count}" for n, count in zip(diverged_counts, counts, strict=True)]
            item.remark = f"diverged: {texts[0]} and {texts[1]}"
        if sorted(n / count for n, count in zip(diverged_counts, counts, strict=True)) == [0, 1]:
            item.verdict = "different"
        elif not math.isnan(_half_width(item, 1)) and not any(diverged_counts):
            tested_items.append(item)
    for item in tested_items:
        item.half_width = _half_width(item, len(tested_items))
        # Values that are equal except for rounding have no spread to compare with.
        rounding = 1e-12 * max(map(abs, item.means))
        is_within = abs(item.difference) <= max(item.half_width, rounding)
        item.verdict = "within" if is_within else "different"


def _half_width(item: Comparison, tests: int) -> float:
    first, second = (list(side.values()) for side in item.values)
    return half_width_of_difference(first, second, tests)


def _origin(runs: pd.DataFrame, names: Sequence[str], by: str) -> list[str]:
    """Return sentences on the versions and machines in which the two sides differ."""
    sentences = []
    for key in filter(is_provenance, runs.columns):
        if by == "commit" and key in ("commit", "dirty"):
            continue
        texts = runs[key].dropna().astype(str)
        texts = texts.replace({"": "none", "True": "yes", "False": "no"})
        texts = texts.str.slice(0, 10) if key == "commit" else texts
        values = {
            name: sorted(texts[runs.loc[texts.index, "side"] == name].unique()) for name in names
        }
        if values[names[0]] != values[names[1]] and all(values.values()):
            sentences.append(f"{words(key)}: {describe_values(values)}")
    return sentences


# --- the table ------------------------------------------------------------------------------------


def table(sides: Sides, headers: tuple[str, str] = ("First", "Second")) -> Table:
    """Return the table of all configs that both sides have.

    Args:
        sides: The comparison.
        headers: Headers of the columns of the two sides.
    """
    metric, rows, data = sides.metric, [], []
    titles = [f"{header.lower()} {name}" for header, name in zip(headers, sides.names, strict=True)]
    for item in sides.found:
        seeds = [sorted(side["seed"].astype(int)) for side in item.runs]
        texts = list(dict.fromkeys(map(ranges, seeds)))
        means = item.means
        rows.append(
            [
                TableEntry(item.name, remark=item.differs),
                TableEntry(" and ".join(texts)),
                *(_number(metric.show(mean), mean) for mean in means),
                _number(_signed(item.difference, metric), item.difference),
                _number(_plain(item.half_width, metric), item.half_width),
                TableEntry(VERDICTS[item.verdict], remark=item.remark),
            ]
        )
        data.append(
            {
                "config": item.name,
                **({"differs": item.differs} if any(c.differs for c in sides.found) else {}),
                **{f"runs_{n}": len(side) for n, side in enumerate(item.runs, 1)},
                **{f"diverged_{n}": count for n, count in enumerate(item.diverged, 1)},
                "shared_seeds": item.shared,
                "equal_weights": item.equal,
                **{f"mean_{n}": mean for n, mean in enumerate(means, 1)},
                "difference": item.difference,
                "half_width": item.half_width,
                "verdict": VERDICTS[item.verdict],
                "remark": item.remark,
            }
        )
    tests = sum(not math.isnan(item.half_width) for item in sides.found)
    correction = f"; for {tests} configs together, each at level 1 − 0.05/{tests}"
    verdicts = {item.verdict for item in sides.found} | ({"within"} if tests else set())
    notes = [
        rule.format(together=correction if tests > 1 else "")
        for verdict, rule in RULES.items()
        if verdict in verdicts
    ]
    return Table(
        "configs",
        f"{metric.axis}, {', '.join(titles)}",
        ["Config", "Seeds", *headers, "Change", "±", "Verdict"],
        rows,
        notes,
        pd.DataFrame(data),
    )


@dataclass(frozen=True)
class Published:
    """The part of a report that compares the runs with a published store.

    Attributes:
        title: Its heading.
        lines: The counts of all verdicts, and a sentence for each version or machine in which the
            stores differ.
        table: The configs that both stores have.
    """

    title: str
    lines: list[str]
    table: Table


def published(sides: Sides) -> Published:
    """Return the report's part on a comparison whose first side is the published store."""
    return Published(
        f"Against {sides.names[0]}",
        [sides.summary, *sides.origin],
        replace(table(sides, ("Published", "Here")), slug="against"),
    )


def _number(text: str, value: float) -> TableEntry:
    return EMPTY if math.isnan(value) else TableEntry(text, value)


def _plain(value: float, metric: Metric) -> str:
    return f"{value * metric.scale:.{metric.digits}f}"


def _signed(value: float, metric: Metric) -> str:
    return f"{value * metric.scale:+.{metric.digits}f}"

"""Power: the number of seeds against SciPy's noncentral t, simulation, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from normbench.cli import main
from normbench.errors import UserError
from normbench.report.power import (
    MOST,
    detects,
    ends_at,
    needed,
    needed_for_width,
    power,
    spread_interval,
)
from normbench.report.table import terminal


def reference(n: int, ratio: float, alpha: float) -> float:
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    distribution = stats.nct(n - 1, ratio * math.sqrt(n))
    # SciPy returns NaN far out in the tail.
    return distribution.sf(critical) + np.nan_to_num(distribution.cdf(-critical))


@pytest.mark.parametrize("n", [2, 3, 5, 20, 200, 5000])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 12])
def test_power_matches_the_noncentral_t_distribution(n: int, ratio: float, alpha: float) -> None:
    expected = reference(n, ratio, alpha)
    assert detects(n, ratio, alpha) == pytest.approx(expected, abs=1e-7)


def test_power_matches_simulated_t_tests() -> None:
    differences = np.random.default_rng(1).normal(0.8, 1.0, (20_000, 10))
    p = stats.ttest_1samp(differences, 0.0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(detects(10, 0.8), abs=0.01)


# Sample sizes of G*Power 3.1 for the two-sided t test of dependent means, power 0.8, level 0.05.
@pytest.mark.parametrize(("ratio", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_match_published_sample_sizes(ratio: float, seeds: int) -> None:
    assert needed(ratio) == seeds


@pytest.mark.parametrize("ratio", [0.05, 0.4, 1.3, 60.0])
def test_one_seed_fewer_lacks_the_power(ratio: float) -> None:
    seeds = needed(ratio, 0.9)
    assert detects(seeds, ratio) >= 0.9
    assert seeds == 2 or detects(seeds - 1, ratio) < 0.9


def test_tiny_difference_needs_more_than_the_maximum_of_seeds() -> None:
    assert needed(1e-4) == MOST + 1


def test_one_seed_fewer_is_not_narrow_enough() -> None:
    for looks in (1, 5):
        seeds = needed_for_width(0.5, looks)
        half = [stats.t.ppf(1 - 0.025 / looks, n - 1) / math.sqrt(n) for n in (seeds - 1, seeds)]
        assert half[0] > 0.5 >= half[1]


def test_sweep_ends_at_a_number_of_seeds_in_its_schedule() -> None:
    assert ends_at(1e9, 3, 20) == 3
    assert ends_at(1.0, 3, 20) == 14
    assert ends_at(0.1, 3, 20) == 21


def test_interval_of_the_spread_has_nominal_coverage() -> None:
    values = np.random.default_rng(2).normal(0.0, 3.0, (4000, 4))
    ends = np.array([spread_interval(sd, 4) for sd in values.std(axis=1, ddof=1)])
    covered = ((ends[:, 0] < 3.0) & (ends[:, 1] > 3.0)).mean()
    assert covered == pytest.approx(0.95, abs=0.012)


def test_each_cell_has_the_seeds_that_its_own_spread_requires(grid) -> None:
    store = grid(batches=(16, 64), seeds=4)
    (table,) = power(store, 0.5, until=0.5, max_seeds=40)
    data = table.data
    assert list(data["row"]) == ["gn", "gn", "gn_ws", "gn_ws"]
    for line in data.to_dict("records"):
        low, high = spread_interval(line["sd"], 4)
        assert line["seeds"] == 4
        assert line["needed"] == needed(0.005 / line["sd"])
        assert (line["needed_low"], line["needed_high"]) == (
            needed(0.005 / low),
            needed(0.005 / high),
        )
        assert line["needed_low"] < line["needed"] < line["needed_high"]
        assert line["needed_corrected"] == needed(0.005 / line["sd"], 0.8, 0.05 / 4)
        assert line["until"] == ends_at(0.005 / line["sd"], 3, 40)


def test_spread_is_that_of_the_differences_paired_by_seed(grid) -> None:
    from normbench.report.frames import load

    store = grid(batches=(16,), seeds=4)
    runs = load(store).runs.set_index(["norm", "seed"])["test_acc"]
    (table,) = power(store, 0.5, baseline="gn_ws")
    expected = (runs["bn"] - runs["gn_ws"]).std(ddof=1)
    assert table.data.set_index("row").loc["bn", "sd"] == pytest.approx(expected)


def test_without_a_baseline_runs_are_treated_as_independent(grid) -> None:
    from normbench.report.frames import load

    store = grid(norms=("gn",), batches=(16,), seeds=4)
    (table,) = power(store, 0.5)
    expected = math.sqrt(2) * load(store).runs["test_acc"].std(ddof=1)
    assert table.data["sd"][0] == pytest.approx(expected)
    assert "No baseline" in table.notes[0]


def test_diverged_run_leaves_its_cell_without_a_spread(grid, synth) -> None:
    store = grid(batches=(16,), seeds=3)
    synth.write_run(store, synth.config("gn", 16, 3), status="diverged", stop=2)
    synth.write_run(store, synth.config("bn", 16, 3))
    (table,) = power(store, 0.5)
    assert [entry.text for entry in table.rows[0][3:6]] == ["–", "–", "–"]
    assert table.data["needed"][1] > 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits_the_terminal(grid, width: int) -> None:
    from rich.console import Console

    store = grid(batches=(16, 64), seeds=4)
    (table,) = power(store, 0.05, until=0.5)
    console = Console(width=width)
    with console.capture() as captured:
        console.print(terminal(table))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    for line in table.data.to_dict("records"):
        assert f"{line['needed']:,}" in captured.get()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difference": 0.0}, "--difference must be a number above 0, got 0"),
        ({"difference": -1.0}, "--difference must be a number above 0, got -1"),
        ({"difference": math.nan}, "--difference must be a number above 0, got nan"),
        ({"probability": 1.0}, "--power must be above 0.05 and below 1, got 1"),
        ({"until": 0.0}, "--until must be a number above 0, got 0"),
        ({"until": 1.0, "max_seeds": 1}, "--max-seeds must be at least 2, got 1"),
        ({"baseline": "gm"}, "unknown baseline 'gm': did you mean 'gn'"),
        ({"metric_name": "test_ac"}, "unknown metric 'test_ac': did you mean 'test_acc'"),
        ({"metric_name": "wall_seconds"}, "wall_seconds is not tested"),
        ({"where": "seed == 0"}, "has two finished seeds"),
    ],
)
def test_bad_options_are_refused(grid, options: dict, message: str) -> None:
    store = grid(batches=(16,), seeds=2)
    with pytest.raises(UserError) as error:
        power(store, **{"difference": 0.5, **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_command_prints_the_table(grid, capsys) -> None:
    store = grid(batches=(16,), seeds=3)
    assert main(["power", str(store), "--difference", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "Seeds to detect a difference of 0.5 points of test accuracy from BN" in out
    assert "GN+WS" in out
    assert main(["power", str(store), "--difference", "1"]) == 0
    assert "a difference of 1 point of test accuracy" in capsys.readouterr().out


def test_seeds_of_several_stores_are_pooled(synth, tmp_path, capsys) -> None:
    for name, seeds in (("desk", (0, 1)), ("cluster", (2, 3, 4))):
        for seed in seeds:
            for norm in ("bn", "gn"):
                synth.write_run(tmp_path / name, synth.config(norm, 16, seed))
    (table,) = power([tmp_path / "desk", tmp_path / "cluster"], 0.5)
    assert table.data["seeds"].tolist() == [5]
    assert main(["power", *map(str, tmp_path.iterdir()), "--difference", "0.5"]) == 0
    assert "5" in capsys.readouterr().out


def test_command_errors_are_one_line(grid, capsys) -> None:
    store = grid(batches=(16,), seeds=1)
    assert main(["power", str(store), "--difference", "0.5"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if not line.startswith("normbench: note")] == [
        f"normbench: no cell of {store} has two finished seeds to estimate a spread from: train "
        "more with seed=range(0,3)"
    ]
    assert main(["power", str(store)]) == 2
    assert "--difference" in capsys.readouterr().err

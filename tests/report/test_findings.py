"""Findings: as strong as their tests and no stronger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats

from normbench.report import load
from normbench.report.findings import Finding, findings
from normbench.report.grid import build
from normbench.report.metrics import METRICS
from normbench.report.study import studies
from normbench.report.tables import p_words

UNTUNED = "The learning rate was the same for all rows, and not tuned."


def find_in(root: Path, baseline: str | None = "bn", name: str = "test_acc") -> list[Finding]:
    (study,) = studies(load(root))
    grid = build(study, METRICS[name], baseline)
    return findings(grid)


def texts_of(found: list[Finding], strength: str) -> list[str]:
    return [finding.text for finding in found if finding.strength == strength]


@pytest.fixture
def clear_difference(grid: Callable[..., Path]) -> Path:
    """A store with enough seeds for a difference at batch 16, and with none at 128."""
    return grid(norms=("bn", "gn_ws"), batches=(16, 128), seeds=10, epochs=3)


def test_difference_is_reported_with_size_interval_and_p_value(clear_difference: Path) -> None:
    found = find_in(clear_difference)
    (text,) = texts_of(found, "significant")
    (study,) = studies(load(clear_difference))
    difference = build(study, METRICS["test_acc"], "bn").cells["gn_ws", 16].baseline
    assert text.startswith(
        f"GN+WS beats BN at batch size 16 by {100 * difference.mean:.2f} ± "
        f"{100 * difference.half_width:.2f} points of test accuracy"
    )
    assert "10 seeds" in text
    assert "Holm" in text
    (nothing,) = texts_of(found, "undetected")
    other = build(study, METRICS["test_acc"], "bn").cells["gn_ws", 128].baseline
    assert nothing == (
        "No significant difference between GN+WS and BN at batch size 128 (10 seeds): the 95 % "
        f"interval of the difference spans {100 * other.low:+.2f} to {100 * other.high:+.2f} "
        "points. " + UNTUNED
    ).replace("-", "−")
    assert next(f for f in found if f.strength == "significant").cells == (("gn_ws", 16),)


def test_lower_error_is_better(clear_difference: Path) -> None:
    (text,) = texts_of(find_in(clear_difference, name="test_err"), "significant")
    assert text.startswith("GN+WS beats BN at batch size 16 by ")
    (text,) = texts_of(find_in(clear_difference, "gn_ws", "test_err"), "significant")
    assert text.startswith("BN falls behind GN+WS at batch size 16 by ")


def test_three_seeds_support_few_claims_and_a_note_says_why(mixed_store: Path) -> None:
    found = find_in(mixed_store)
    assert texts_of(found, "significant") == []
    assert all("not after Holm's correction" in text for text in texts_of(found, "suggestive"))
    (note,) = texts_of(found, "note")
    # t of 2 degrees of freedom at 1 - 0.05 / 24 is 15.4; a mean of n = 3 has sd / √3.
    assert note == (
        "With 3 seeds and 12 comparisons, only differences above "
        f"{stats.t.ppf(1 - 0.05 / 24, 2) / 3**0.5:.1f} standard deviations (of the difference "
        "between seeds) can be significant."
    )


def test_divergence_and_single_seeds_are_reported(mixed_store: Path) -> None:
    found = find_in(mixed_store)
    (diverged,) = texts_of(found, "diverged")
    assert diverged == (
        "Diverged runs of No norm: 1 of 3 at batch size 16, 2 of 2 at batch size 512."
    )
    (single,) = texts_of(found, "untested")
    assert single == "LN and BN share one seed at batch size 64: no test is possible."
    assert any("Every run of No norm did worse" in text for text in texts_of(found, "overall"))


def test_even_chance_is_inconclusive(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "bn_ws"), batches=(128, 256), seeds=4, epochs=3)
    found = find_in(root)
    (study,) = studies(load(root))
    chance = build(study, METRICS["test_acc"], "bn").improvements["bn_ws"]
    assert texts_of(found, "overall") == []
    assert texts_of(found, "inconclusive") == [
        f"P(BN+WS beats BN) = {chance.probability:.2f} (95 % bootstrap interval {chance.low:.2f} "
        f"to {chance.high:.2f}) over 2 batch sizes: no evidence either way. {UNTUNED}"
    ]


@pytest.mark.parametrize(
    ("seeds", "strength", "end"),
    [
        # Two columns with 2 + 2 runs are separated by chance in 2 of 6 · 6 orders.
        (2, "inconclusive", "(p = 0.056, exact test): too few runs to exclude chance."),
        (3, "overall", "(p = 0.005, exact test)."),  # 2 / (20 · 20)
    ],
)
def test_complete_separation_is_tested_exactly(
    grid: Callable[..., Path], seeds: int, strength: str, end: str
) -> None:
    root = grid(norms=("bn", "none"), batches=(64, 128), seeds=seeds, epochs=3)
    assert texts_of(find_in(root), strength) == [
        f"Every run of No norm did worse than every run of BN at each of 2 batch sizes {end} "
        + UNTUNED
    ]


def test_rows_without_shared_seeds_are_reported(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    for seed in (2, 3):
        synth.write_run(root, synth.config("gn", 16, seed, epochs=3))
    assert texts_of(find_in(root), "untested") == [
        "GN and BN share no seed at batch size 16: they were not compared."
    ]


def test_very_small_p_value_is_shown_as_a_bound() -> None:
    assert p_words(0.0004) == "p < 0.001"
    assert p_words(0.0123) == "p = 0.012"
    assert p_words(0.04996) == "p < 0.050"  # which is significant, as 0.050 is not
    assert p_words(0.05) == "p = 0.050"


def test_suggestive_difference_may_have_a_very_small_p_value(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn_ws"), batches=(16,), seeds=10, epochs=3)
    (study,) = studies(load(root))
    found = build(study, METRICS["test_acc"], "bn")
    cell = found.cells["gn_ws", 16]
    weak = replace(cell, baseline=replace(cell.baseline, p=0.0004, p_corrected=0.08))
    found.cells["gn_ws", 16] = weak
    (text,) = texts_of(findings(found), "suggestive")
    assert "points, p < 0.001 (10 seeds): below 0.05 alone" in text


@pytest.mark.parametrize("name", ["images_per_s", "train_seconds", "wall_seconds"])
def test_times_are_not_tested(grid: Callable[..., Path], name: str) -> None:
    root = grid(norms=("bn", "none"), batches=(16, 64), seeds=5, epochs=3)
    (only,) = find_in(root, name=name)
    assert only.strength == "note"
    assert "machine and its load" in only.text


def test_without_a_baseline_nothing_is_tested(grid: Callable[..., Path]) -> None:
    root = grid(norms=("gn", "ln"), batches=(16,), seeds=2, epochs=3)
    (only,) = texts_of(find_in(root, None), "note")
    assert "--baseline" in only


def test_metric_without_direction_is_not_compared(mixed_store: Path) -> None:
    assert {finding.strength for finding in find_in(mixed_store, name="parameters")} == {"diverged"}

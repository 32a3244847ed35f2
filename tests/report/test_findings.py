"""Findings: as strong as their tests and no stronger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.report import load
from normbench.report.findings import Finding, findings
from normbench.report.grid import build
from normbench.report.improvement import improvements
from normbench.report.metrics import METRICS
from normbench.report.study import studies


def find(root: Path, baseline: str | None = "bn", name: str = "test_acc") -> list[Finding]:
    (study,) = studies(load(root))
    grid = build(study, METRICS[name], baseline)
    return findings(grid, improvements(grid))


def of(found: list[Finding], strength: str) -> list[str]:
    return [finding.text for finding in found if finding.strength == strength]


@pytest.fixture
def sure(grid: Callable[..., Path]) -> Path:
    """A store with seeds enough for a difference at batch 16 and none at 128."""
    return grid(norms=("bn", "gn_ws"), batches=(16, 128), seeds=10, epochs=3)


def test_a_difference_is_claimed_with_size_interval_and_p(sure: Path) -> None:
    found = find(sure)
    (text,) = of(found, "significant")
    (study,) = studies(load(sure))
    difference = build(study, METRICS["test_acc"], "bn").cells["gn_ws", 16].baseline
    assert text.startswith(
        f"GN+WS beats BN at batch size 16 by {100 * difference.mean:.2f} ± "
        f"{100 * difference.half_width:.2f} points of test accuracy"
    )
    assert "10 seeds" in text
    assert "Holm" in text
    (nothing,) = of(found, "undetected")
    assert "No difference between GN+WS and BN is detectable at batch size 128" in nothing
    assert found[0].cells == (("gn_ws", 16),)


def test_a_lower_error_beats(sure: Path) -> None:
    (text,) = of(find(sure, name="test_err"), "significant")
    assert text.startswith("GN+WS beats BN at batch size 16 by ")
    (text,) = of(find(sure, "gn_ws", "test_err"), "significant")
    assert text.startswith("BN falls behind GN+WS at batch size 16 by ")


def test_three_seeds_claim_little_and_say_why(motley: Path) -> None:
    found = find(motley)
    assert of(found, "significant") == []
    assert all("not after correction" in text for text in of(found, "suggestive"))
    (note,) = of(found, "note")
    assert "With 3 seeds and 12 comparisons" in note


def test_divergence_and_single_seeds_are_said(motley: Path) -> None:
    found = find(motley)
    (diverged,) = of(found, "diverged")
    assert diverged == (
        "No norm diverged in 1 of 3 runs at batch size 16, 2 of 2 runs at batch size 512."
    )
    (single,) = of(found, "untested")
    assert "share one seed at batch size 64" in single
    assert any("every run of No norm did worse" in text for text in of(found, "overall"))


def test_an_even_chance_is_not_ruled_out(grid: Callable[..., Path], synth: SimpleNamespace) -> None:
    root = grid(norms=("bn", "bn_ws"), batches=(128, 256), seeds=4, epochs=3)
    texts = of(find(root), "overall")
    assert len(texts) == 1
    assert "does not rule out an even chance" in texts[0]


def test_without_a_baseline_nothing_is_tested(grid: Callable[..., Path]) -> None:
    root = grid(norms=("gn", "ln"), batches=(16,), seeds=2, epochs=3)
    (only,) = find(root, None)
    assert "--baseline" in only.text


def test_a_metric_without_direction_finds_nothing(motley: Path) -> None:
    assert {finding.strength for finding in find(motley, name="parameters")} == {"diverged"}

"""Signatures name run folders, so a config must keep the signature its runs were stored under.

Never edit a line of `signatures.txt`; only add lines for new configs. If these tests fail, every
user's store would be trained again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from normbench.config import compose
from normbench.sweep.grid import expand

LINES = [
    line.split(maxsplit=1)
    for line in (Path(__file__).parent / "signatures.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
CONFIGS = {config: signature for signature, config in LINES if "+experiment=" not in config}
EXPERIMENTS = {config: signature for signature, config in LINES if "+experiment=" in config}


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_configs_keep_their_signatures(step: int) -> None:
    """Compose every third config by default; all of them take about 15 seconds."""
    assert len(CONFIGS) > 90
    recorded = dict(list(CONFIGS.items())[::step])
    composed = {config: compose(config.split()).signature for config in recorded}
    assert composed == recorded


def digest(config: str) -> str:
    signatures = sorted(cell.signature for cell in expand(config.split()))
    return hashlib.sha256(" ".join(signatures).encode()).hexdigest()[:8]


def test_cells_of_the_quickstart_keep_their_signatures() -> None:
    quickstart = "+experiment=quickstart scale=full"
    assert digest(quickstart) == EXPERIMENTS[quickstart]


@pytest.mark.slow
def test_cells_of_experiments_keep_their_signatures() -> None:
    assert len(EXPERIMENTS) > 20
    assert {config: digest(config) for config in EXPERIMENTS} == EXPERIMENTS

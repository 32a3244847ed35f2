"""From the command to the first training step: what each stage takes, and a further run's stages.

    python benchmarks/startup.py [--arch resnet20] [--norm gn] [--batch 16] [--backend tensorflow]

Each round is a fresh process, which does what a run does, in its order: Python and the command
line; composing the config; reading the data set; importing Keras and its backend and starting the
devices; building the network and its loop; tracing and compiling; the first step, in which what
XLA compiles on first use is compiled. Then, as a sweep's worker does, the same for a run of
another seed, which can use the compiled loop, and for one of another batch size, which cannot.
Medians over the rounds with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from common import machine, shown

STAGES = ("python", "config", "data", "backend", "build", "compile", "first step")
RUNS = ("the first run", "another seed", "another batch size")


def serve(given: argparse.Namespace) -> None:
    """Do it once, and print the seconds of each stage of each run as JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    now = time.time()

    def took() -> float:
        nonlocal now
        before, now = now, time.time()
        return now - before

    import normbench.cli  # noqa: F401 - what the command imports before it knows what it is to do

    stages = [{"python": time.time() - given.began}]
    from normbench.engine.reuse import WarmState

    warm = WarmState()
    took()
    first = _overrides(given)
    for overrides in (first, [*first, "seed=1"], [*first, f"batch={2 * given.batch}"]):
        if overrides is not first:
            stages.append({})
        _prepare(overrides, warm, stages[-1], took)
    print(json.dumps(stages), file=answers)


def _prepare(overrides: list[str], warm: Any, stage: dict[str, float], took: Any) -> None:
    from normbench.config import compose

    config = compose(overrides)
    stage["config"] = took()

    from normbench.engine import backend
    from normbench.engine.setup import load_dataset, prepare

    dataset = warm.dataset(config, load_dataset)
    stage["data"] = took()
    backend.start(config.backend, config.precision)
    stage["backend"] = took()
    warm.drop_other_loop(config, 1)
    prepared = prepare(config, dataset, warm, 1)
    stage["build"] = took()
    prepared.loop.compile()
    stage["compile"] = took()
    prepared.loop.train(0, prepared.rates[:1])
    stage["first step"] = took()


def _overrides(given: argparse.Namespace) -> list[str]:
    names = ("arch", "norm", "batch", "dataset", "backend")
    return [f"{name}={getattr(given, name)}" for name in names]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--arch", default="resnet20")
    options.add_argument("--norm", default="gn")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--dataset", default="digits")
    options.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.began is not None:
        serve(given)
        return
    measured: list[list[dict[str, float]]] = []
    for _ in range(given.rounds):
        command = [sys.executable, *sys.argv, "--began", repr(time.time())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        measured.append(json.loads(done.stdout))
    print(
        f"{machine()}, {given.arch}, {given.norm}, batch {given.batch}, {given.dataset}, "
        f"{given.backend}; seconds, medians of {given.rounds} (range)\n"
    )
    print("| stage | " + " | ".join(RUNS) + " |\n| --- |" + " ---: |" * len(RUNS))
    for stage in STAGES:
        print(f"| {stage} | " + " | ".join(_cells(measured, stage)) + " |")
    print("| **all** | " + " | ".join(_cells(measured, None)) + " |")


def _cells(measured: list[list[dict[str, float]]], stage: str | None) -> list[str]:
    """Seconds of a stage, or of all of them, in each of the runs."""
    cells = []
    for run in range(len(RUNS)):
        stages = [each[run] for each in measured]
        seconds = [sum(s.values()) if stage is None else s.get(stage, 0.0) for s in stages]
        cells.append(shown(seconds))
    return cells


if __name__ == "__main__":
    main()

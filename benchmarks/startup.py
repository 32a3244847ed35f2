"""Time from the command to the first training step, by stage, for a first and a further run.

    python benchmarks/startup.py [--arch resnet20] [--norm gn] [--batch 16] [--backend tensorflow]

Each round is a fresh process that performs the stages of a run in order: starting Python and the
command line; composing the config; reading the data set; importing Keras and its backend and
initializing the devices; building the network and its loop; tracing and compiling; and the first
step, which includes what XLA compiles lazily. Then, like a sweep's worker, it repeats this for a
run with another seed, which can reuse the compiled loop, and for one with another batch size, which
cannot. Prints medians over the rounds with their range.
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


def serve(args: argparse.Namespace) -> None:
    """Measure one round, and print the seconds of each stage of each run as JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep output of libraries out of the answers
    now = time.time()

    def lap() -> float:
        nonlocal now
        before, now = now, time.time()
        return now - before

    import normbench.cli  # noqa: F401 - imported by every command before it parses its arguments

    stages = [{"python": time.time() - args.began}]
    from normbench.engine.reuse import WarmState

    warm = WarmState()
    lap()
    first = _overrides(args)
    for overrides in (first, [*first, "seed=1"], [*first, f"batch={2 * args.batch}"]):
        if overrides is not first:
            stages.append({})
        _prepare(overrides, warm, stages[-1], lap)
    print(json.dumps(stages), file=answers)


def _prepare(overrides: list[str], warm: Any, stage: dict[str, float], lap: Any) -> None:
    from normbench.config import compose

    config = compose(overrides)
    stage["config"] = lap()

    from normbench.engine import backend
    from normbench.engine.setup import load_dataset, prepare

    dataset = warm.dataset(config, load_dataset)
    stage["data"] = lap()
    backend.start(config.backend, config.precision)
    stage["backend"] = lap()
    warm.drop_other_loop(config, 1)
    setup = prepare(config, dataset, warm, 1)
    stage["build"] = lap()
    setup.loop.compile()
    stage["compile"] = lap()
    setup.loop.train(0, setup.rates[:1])
    stage["first step"] = lap()


def _overrides(args: argparse.Namespace) -> list[str]:
    names = ("arch", "norm", "batch", "dataset", "backend")
    return [f"{name}={getattr(args, name)}" for name in names]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--arch", default="resnet20")
    options.add_argument("--norm", default="gn")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--dataset", default="digits")
    options.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--began", type=float, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.began is not None:
        serve(args)
        return
    rounds: list[list[dict[str, float]]] = []
    for _ in range(args.rounds):
        command = [sys.executable, *sys.argv, "--began", repr(time.time())]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(process.stderr)
        rounds.append(json.loads(process.stdout))
    print(
        f"{machine()}, {args.arch}, {args.norm}, batch {args.batch}, {args.dataset}, "
        f"{args.backend}; seconds, medians of {args.rounds} (range)\n"
    )
    print("| stage | " + " | ".join(RUNS) + " |\n| --- |" + " ---: |" * len(RUNS))
    for stage in STAGES:
        print(f"| {stage} | " + " | ".join(_cells(rounds, stage)) + " |")
    print("| **all** | " + " | ".join(_cells(rounds, None)) + " |")


def _cells(rounds: list[list[dict[str, float]]], stage: str | None) -> list[str]:
    """Return the seconds of a stage, or of all stages if None, in each of the runs."""
    cells = []
    for run in range(len(RUNS)):
        stages = [runs[run] for runs in rounds]
        seconds = [sum(s.values()) if stage is None else s.get(stage, 0.0) for s in stages]
        cells.append(shown(seconds))
    return cells


if __name__ == "__main__":
    main()

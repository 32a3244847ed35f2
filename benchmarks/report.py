"""Compare the speed of read-only commands in another commit's tree and this one.

    git worktree add ../before COMMIT
    python benchmarks/report.py ../before [--runs 1000] [--rounds 5] [--only report experiments]

The tasks are the report of a store like the quickstart's (27 runs), the report of a large one, the
list of experiments, and the doctor. Each runs in a fresh process, alternately from either tree; the
order is reversed from one round to the next. The runs are made up by the tests' fixtures. Prints
wall and CPU seconds (user and system, including children), medians over the rounds with their
range, and the median and range of the ratio within a round.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, machine, shown

NORMS = ("bn", "gn", "gn_ws", "bn_ws", "ln", "in", "none", "frn")
BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)


def stores(folder: Path, runs: int) -> dict[str, list[str]]:
    """Write two stores of made-up runs; return the arguments of each task by its name."""
    file = ROOT / "tests" / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("made_up_runs", file)
    assert spec is not None
    assert spec.loader is not None
    fixtures: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    small, large, out = folder / "small", folder / "large", str(folder / "out")
    fixtures.write_grid(small, NORMS[:3], (16, 64, 256), 3, 5)
    seeds = max(1, round(runs / (len(NORMS) * len(BATCHES))))
    fixtures.write_grid(large, NORMS, BATCHES, seeds, 20)
    count = seeds * len(NORMS) * len(BATCHES)
    return {
        "report, 27 runs": ["report", str(small), "--out", out],
        f"report, {count:,} runs": ["report", str(large), "--out", out],
        "experiments": ["experiments"],
        "doctor": ["doctor"],
    }


def seconds(tree: Path, arguments: list[str], folder: Path) -> tuple[float, float]:
    """Return the wall and CPU seconds of a command run from a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "normbench", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{tree}: {process.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("other", type=Path, help="the folder of the other tree")
    options.add_argument("--runs", type=int, default=1000, help="runs of the large store")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", nargs="+", default=[""], help="prefixes of task names")
    args = options.parse_args()
    trees = [args.other.resolve(), ROOT]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = stores(folder, args.runs)
        print(f"{machine()}; seconds, median of {args.rounds} (range)\n")
        print("| task | time | other | this tree | ratio |\n| --- | --- | ---: | ---: | ---: |")
        for task, arguments in tasks.items():
            if not task.startswith(tuple(args.only)):
                continue
            for tree in trees:
                seconds(tree, arguments, folder)  # warm up: compile modules, fill the page cache
            timings: list[list[tuple[float, float]]] = [[], []]
            for turn in range(args.rounds):
                for index in (turn % 2, 1 - turn % 2):
                    timings[index].append(seconds(trees[index], arguments, folder))
            for position, kind in enumerate(("wall", "CPU")):
                other_times, tree_times = ([pair[position] for pair in pairs] for pairs in timings)
                ratios = [
                    after / before for before, after in zip(other_times, tree_times, strict=True)
                ]
                print(
                    f"| {task} | {kind} | {shown(other_times)} | {shown(tree_times)} "
                    f"| {shown(ratios)} |"
                )


if __name__ == "__main__":
    main()

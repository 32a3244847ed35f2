"""Time and memory to read stores of growing size: list, sweep status, sweep --dry-run and report.

    python benchmarks/store.py [--runs 18 1008 10008] [--epochs 100] [--keep FOLDER]

Writes stores of synthetic runs (three normalizations, six batch sizes, as many seeds as needed; all
files of a run except checkpoints, curves of ``--epochs`` epochs), and runs each command in its own
process. Prints its wall seconds and its peak memory in MiB. A command that takes less than two
seconds is run three times, and the median is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import machine

GRID = ("norm=bn,gn,gn_ws", "batch=16,32,64,128,256,512", "dataset=digits", "arch=resnet8")
CELLS = 18  # runs of the grid per seed
COMMANDS = ("list", "sweep status", "sweep --dry-run", "report")


@dataclass(frozen=True)
class Call:
    """Wall time and peak memory of one process."""

    seconds: float
    mebibytes: float


def call(arguments: Sequence[str]) -> Call:
    """Run one command of normbench to its end.

    Raises:
        RuntimeError: The command failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "normbench", *arguments], stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            last = output.read().decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{' '.join(arguments)}: {''.join(last)}")
    return Call(seconds, usage.ru_maxrss / 1024)


def median_call(arguments: Sequence[str]) -> Call:
    """Run a command, three times if it is fast; return the median time and the peak memory."""
    first = call(arguments)
    if first.seconds > 2:
        return first
    calls = [first, *(call(arguments) for _ in range(2))]
    return Call(
        statistics.median(measurement.seconds for measurement in calls),
        max(measurement.mebibytes for measurement in calls),
    )


def overrides(root: Path, seeds: int, epochs: int) -> list[str]:
    return [*GRID, f"seed=range(0,{seeds})", f"epochs={epochs}", f"store={root}"]


def fill(root: Path, seeds: int, epochs: int) -> None:
    """Write a store of complete runs, and the record of the sweep they belong to."""
    from normbench.store.provenance import collect
    from normbench.store.store import Store
    from normbench.sweep.cell import CellResult
    from normbench.sweep.grid import expand
    from normbench.sweep.plan import plan
    from normbench.sweep.record import Record

    configs = expand(overrides(root, seeds, epochs))
    store = Store(root)
    command = ["normbench", "sweep", *GRID]
    provenance = collect(command)
    record = Record.begin(store, plan(configs, store, False), command, {}, provenance)
    rng = np.random.default_rng(0)
    for config in configs:
        run = store.run(config)
        meta = {
            "status": "finished",
            "signature": config.signature,
            "started": "2026-01-01T00:00:00Z",
            "ended": "2026-01-01T00:01:00Z",
            **provenance,
            "devices": ["/device:CPU:0"],
            "engine": {"backend": "tensorflow", "precision": "float32"},
            "error": None,
            "sessions": [{"host": provenance["host"], "pid": 1, "from_epoch": 0, "seconds": 60.0}],
        }
        run.create(config.to_dict(), meta)
        rows = list(curve(config.batch, epochs, rng))
        (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        last = rows[-1]
        keys = ("train_loss", "train_acc", "val_loss", "val_acc", "images_seen", "images_per_s")
        run.write_summary(
            {
                "status": "finished",
                **{key: last[key] for key in keys},
                "test_loss": last["val_loss"],
                "test_acc": last["val_acc"],
                "best_val_epoch": epochs,
                "best_val_acc": last["val_acc"],
                "best_val_test_loss": last["val_loss"],
                "best_val_test_acc": last["val_acc"],
                "weights_sha256": "0" * 64,
                "epochs": epochs,
                "steps": last["step"],
                "parameters": 78_000,
                "classes": 10,
                "train_seconds": 50.0,
                "wall_seconds": 60.0,
            }
        )
        record.ended(run.name, CellResult("trained", seconds=60.0))
    record.close("complete")


def curve(batch: int, epochs: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run whose loss decreases."""
    steps = 1237 // batch
    noise = rng.normal(0, 0.005, (epochs, 2))
    for epoch in range(1, epochs + 1):
        decay = float(np.exp(-5 * epoch / epochs))
        yield {
            "epoch": epoch,
            "step": epoch * steps,
            "images_seen": epoch * steps * batch,
            "train_loss": 2.3 * decay + abs(float(noise[epoch - 1, 0])),
            "train_acc": min(1.0, 0.99 - 0.89 * decay + float(noise[epoch - 1, 0])),
            "val_loss": 2.3 * decay + 0.1,
            "val_acc": min(1.0, 0.97 - 0.87 * decay + float(noise[epoch - 1, 1])),
            "lr": 0.1 * decay,
            "grad_norm": 1.0 + decay,
            "grad_norm_max": 2.0 + decay,
            "images_per_s": 1000.0,
            "train_seconds": 0.5,
            "eval_seconds": 0.1,
            "time": "2026-01-01T00:00:30Z",
        }


def measure(root: Path, seeds: int, epochs: int) -> list[Call]:
    """Call each of :data:`COMMANDS` on a store."""
    store = str(root)
    with tempfile.TemporaryDirectory() as scratch:
        return [
            median_call(["list", "--store", store]),
            median_call(["sweep", "status", "--store", store]),
            median_call(["sweep", *overrides(root, seeds, epochs), "--dry-run"]),
            call(["report", store, "--out", f"{scratch}/report"]),
        ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, nargs="+", default=[18, 1008, 10008])
    options.add_argument("--epochs", type=int, default=100)
    options.add_argument("--keep", type=Path, help="folder for the stores; by default temporary")
    args = options.parse_args()
    print(f"{machine()}; seconds, MiB\n")
    print("| runs | " + " | ".join(f"`{name}`" for name in COMMANDS) + " |")
    print("| ---: |" + " ---: |" * len(COMMANDS), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for count in args.runs:
            seeds = max(1, round(count / CELLS))
            root = (args.keep or Path(scratch)) / f"runs{seeds * CELLS}"
            if not root.is_dir():
                root.mkdir(parents=True)
                fill(root, seeds, args.epochs)
            calls = measure(root, seeds, args.epochs)
            cells = [
                f"{measurement.seconds:.2f}, {measurement.mebibytes:.0f}" for measurement in calls
            ]
            print(f"| {seeds * CELLS:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

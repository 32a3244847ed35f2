"""Check the ``normbench`` command on a GPU: same bits, resuming, divergence, too little memory.

    python benchmarks/gpu/product.py --out product.json

Each check runs one or more commands as a user would type them, in its own store, on random images;
checks run in parallel. For each check, its result and the exit of its commands are printed and
written. ``--memory`` is the share of the GPU's memory that the check of too little memory may use.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import import_path

COMMON = ("backend=jax", "dataset=npz", "arch=resnet8")


class Bench:
    """Run ``normbench`` in a folder.

    Args:
        folder: Folder for the stores and the images.
        seconds: Time from now after which commands are killed.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.until = time.monotonic() + seconds
        self.images = folder / "random.npz"
        rng = np.random.default_rng(0)
        np.savez(
            self.images,
            x_train=rng.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8),
            y_train=rng.integers(0, 10, 4096),
            x_test=rng.integers(0, 256, (500, 32, 32, 3), dtype=np.uint8),
            y_test=rng.integers(0, 10, 500),
        )

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "normbench", *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": import_path(), "KERAS_BACKEND": "jax", **environment},
        )

    def end(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        try:
            output, _ = process.communicate(timeout=max(1, self.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += "\n(killed: the time was up)"
        return {"rc": process.returncode, "output": output[-1500:]}

    def run(self, store: str, *words: str) -> tuple[str, ...]:
        """Return the words of a command that trains in a store."""
        return "run", *COMMON, f"dataset.path={self.images}", *words, f"store={self.folder / store}"

    def train(self, store: str, *words: str, **environment: str) -> dict[str, Any]:
        result = self.end(self.start(*self.run(store, *words), **environment))
        summaries = list((self.folder / store).glob("*/summary.json"))
        return result | (json.loads(summaries[0].read_text()) if summaries else {})


def same_bits(bench: Bench, precision: str, **environment: str) -> dict[str, Any]:
    """Train one config in two fresh processes."""
    name = f"bits-{precision}-{'-'.join(environment)}"
    words = ("norm=gn_ws", "batch=16", "epochs=2", f"precision={precision}")
    runs = [bench.train(f"{name}{i}", *words, **environment) for i in range(2)]
    hashes = [run.get("weights_sha256") for run in runs]
    return {
        "same": hashes[0] is not None and hashes[0] == hashes[1],
        "hashes": hashes,
        "runs": runs,
    }


def resumed(bench: Bench) -> dict[str, Any]:
    """Kill a run midway, resume it, and compare it with one that was not killed."""
    words = ("norm=bn", "batch=32", "epochs=40")
    process = bench.start(*bench.run("killed", *words))
    rows = 0
    while rows < 5 and process.poll() is None and time.monotonic() < bench.until:
        time.sleep(0.2)
        rows = sum(p.read_text().count("\n") for p in bench.folder.glob("killed/*/metrics.jsonl"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed_run, single_run = (bench.train(store, *words) for store in ("killed", "whole"))
    hashes = [run.get("weights_sha256") for run in (resumed_run, single_run)]
    return {
        "same": hashes[0] is not None and hashes[0] == hashes[1],
        "epochs_before": rows,
        "hashes": hashes,
        "runs": [resumed_run, single_run],
    }


def diverges(bench: Bench) -> dict[str, Any]:
    return bench.train("diverges", "norm=none", "batch=32", "epochs=2", "optimizer.lr=1e8")


def little_memory(bench: Bench, share: float) -> dict[str, Any]:
    """Train with a batch that does not fit, split into as few micro-batches as fit."""
    words = ("arch=resnet20", "norm=gn", "batch=2048", "epochs=1", "accumulate=auto")
    return bench.train("memory", *words, XLA_PYTHON_CLIENT_MEM_FRACTION=str(share))


def doctor(bench: Bench) -> dict[str, Any]:
    return bench.end(bench.start("doctor"))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--out", type=Path)
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--memory", type=float, default=0.02)
    args = options.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        bench = Bench(Path(folder), args.seconds)
        environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        checks: dict[str, Callable[[], dict[str, Any]]] = {
            "doctor": lambda: doctor(bench),
            "same bits, float32": lambda: same_bits(bench, "float32"),
            "same bits, bfloat16": lambda: same_bits(bench, "mixed_bfloat16"),
            "same bits, bfloat16, compiled anew": lambda: same_bits(
                bench, "mixed_bfloat16", **environment
            ),
            "resumed": lambda: resumed(bench),
            "diverges": lambda: diverges(bench),
            "little memory": lambda: little_memory(bench, args.memory),
        }
        futures = {pool.submit(check): name for name, check in checks.items()}
        for future in as_completed(futures):
            name = futures[future]
            try:
                result = future.result()
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            results[name] = result
            short = {k: v for k, v in result.items() if k not in ("runs", "output")}
            print(f"## {name}: {json.dumps(short, default=str)[:600]}", flush=True)
            for part in result.get("runs", [result]):
                if part.get("rc") != 0 or name in ("doctor", "little memory"):
                    print(f"rc {part.get('rc')}\n{part.get('output', '')[-1200:]}", flush=True)
            if args.out:
                args.out.write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Complete runs on a GPU: the time to 94 % on CIFAR-10; norms at many batch sizes.

    python benchmarks/gpu/useful.py --data cifar-10-batches-bin --out results

Both are sweeps as a user would type them (the commands are printed); their stores are written to
``--out`` without weights. The time to 94 % is the training time of a complete run whose test
accuracy, measured once at the end, reaches 94 % on average over the seeds. The grid is trained one
seed after another until the time is up, with several runs on the GPU at once; they share CUDA's
Multi-Process Service if it can be started. ``--rehearse`` trains tiny networks, on any device.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import import_path

HALF = ("backend=jax", "precision=mixed_bfloat16")

# airbench94's own normalization and approximately its learning rate and decay at this batch size
# and momentum (Jordan 2024, arXiv 2404.00498). airbench94 also uses alternating flips, test-time
# mirroring, weight averaging and a scaled learning rate for biases; here they are left out.
AIRBENCH = (
    *HALF, "arch=airbench", "norm=bn", "norm.momentum=0.6", "norm.scale=false", "batch=512",
    "dataset.validation=null", "dataset.crop_padding=2", "label_smoothing=0.2",
    "optimizer.lr=0.125", "optimizer.weight_decay=0.001", "schedule.warmup=0.2",
)  # fmt: skip
TINY = {
    "airbench": ("arch.width=0.25", "batch=64"),
    "grid": ("arch=resnet8", "arch.width=8", "norm=bn,gn", "batch=16", "executor.workers=1"),
}


def random_images(file: Path) -> tuple[str, str]:
    """Write 256 random images, and return the overrides that select them."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (256, 32, 32, 3), np.uint8), rng.integers(0, 10, 256)
    np.savez(file, x_train=images, y_train=labels, x_test=images[:64], y_test=labels[:64])
    return "dataset=npz", f"dataset.path={file}"


def normbench(*words: str, until: float) -> None:
    """Run a normbench command, and interrupt it when the time is up."""
    print("$ normbench " + " ".join(words), flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "normbench", *words],
        env={**os.environ, "PYTHONPATH": import_path(), "KERAS_BACKEND": "jax"},
    )
    try:
        code = process.wait(timeout=max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return
    if code:
        sys.exit(f"normbench {words[0]} ended with exit code {code}")


def airbench(
    store: Path, epochs: list[int], seeds: list[int], tiny: tuple[str, ...], until: float
) -> None:
    """Train runs one after another, and print training time and accuracy by number of epochs."""
    words = [*AIRBENCH, *tiny]
    words += [f"epochs={','.join(map(str, epochs))}", f"seed={','.join(map(str, seeds))}"]
    normbench("sweep", *words, "executor=inline", f"store={store}", until=until)
    runs: dict[int, list[tuple[float, float]]] = {}
    for file in sorted(store.glob("*/summary.json")):
        summary = json.loads(file.read_text())
        results = runs.setdefault(summary["epochs"], [])
        results.append((summary["train_seconds"], summary["test_acc"]))
    print("\n| epochs | runs | seconds of training | test accuracy |")
    print("| ---: | ---: | ---: | ---: |")
    for count, results in sorted(runs.items()):
        seconds, accuracies = zip(*results, strict=True)
        print(
            f"| {count} | {len(results)} | {statistics.median(seconds):.2f} | "
            f"{statistics.mean(accuracies):.2%} ({min(accuracies):.2%}–{max(accuracies):.2%}) |",
            flush=True,
        )


def start_mps(folder: Path) -> bool:
    """Start CUDA's Multi-Process Service for the processes started from here on."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        return False
    os.environ.update(CUDA_MPS_PIPE_DIRECTORY=str(folder), CUDA_MPS_LOG_DIRECTORY=str(folder))
    if subprocess.run([control, "-d"], check=False).returncode:
        del os.environ["CUDA_MPS_PIPE_DIRECTORY"], os.environ["CUDA_MPS_LOG_DIRECTORY"]
        return False
    return True


def grid(store: Path, words: list[str], seeds: list[int], until: float) -> None:
    """Train the experiment ``batch_sweep``, all cells of one seed before those of the next."""
    words = ["+experiment=batch_sweep", *HALF, *words]
    with tempfile.TemporaryDirectory() as folder:
        mps = start_mps(Path(folder))
        print(f"Multi-Process Service: {'on' if mps else 'off'}", flush=True)
        for seed in seeds:
            if time.monotonic() < until:
                normbench("sweep", *words, f"seed={seed}", f"store={store}", until=until)
        if mps:
            subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", check=False)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, help="published files of CIFAR-10, to import")
    options.add_argument("--out", type=Path, required=True, help="a folder for stores.tar.gz")
    options.add_argument("--seconds", type=float, default=300, help="for everything")
    options.add_argument("--epochs", type=int, nargs="+", default=[12, 20], help="of airbench")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument(
        "--grid", nargs="*", default=["epochs=10", "executor.jobs_per_gpu=8"], help="overrides"
    )
    options.add_argument("--rehearse", action="store_true")
    args = options.parse_args()
    start = time.monotonic()
    until = start + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data:
        normbench("data", "import", "cifar10", "--from", str(args.data), until=until)
    with tempfile.TemporaryDirectory() as folder:
        stores = [Path(folder) / name for name in ("airbench", "grid")]
        tiny: dict[str, tuple[str, ...]] = {"airbench": (), "grid": ()}
        if args.rehearse:
            images = random_images(Path(folder) / "random.npz")
            tiny = {name: (*images, *words) for name, words in TINY.items()}
        airbench_deadline = start + 0.35 * args.seconds
        airbench(stores[0], args.epochs, args.seeds, tiny["airbench"], airbench_deadline)
        grid(stores[1], [*args.grid, *tiny["grid"]], args.seeds, until)
        with tarfile.open(args.out / "stores.tar.gz", "w:gz") as archive:
            for store in stores:
                if store.is_dir():
                    archive.add(
                        store,
                        store.name,
                        filter=lambda entry: None if "/checkpoint" in entry.name else entry,
                    )


if __name__ == "__main__":
    main()

"""Synthetic stores: run folders in the real format, with plausible learning curves."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from normbench.config import Config

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

VERSIONS = {
    "python": "3.11.9",
    "normbench": "0.1.0",
    "tensorflow": "2.21.0",
    "keras": "3.15.1",
    "numpy": "2.3.0",
}
TRAIN, TEST = 1200, 360

# Final accuracy of a norm at batch 128, and its loss per halving below and doubling above, shaped
# like the figure in the Group Normalization paper.
BEHAVIOR = {
    "bn": (0.962, 0.016, 0.002),
    "gn": (0.951, 0.001, 0.005),
    "gn_ws": (0.966, 0.001, 0.004),
    "bn_ws": (0.965, 0.013, 0.002),
    "ln": (0.944, 0.001, 0.006),
    "in": (0.930, 0.002, 0.006),
    "none": (0.905, 0.002, 0.012),
}
SPEED = {"bn": 3100, "gn": 2700, "gn_ws": 2550, "bn_ws": 2900, "ln": 2750, "in": 2650, "none": 3600}


def config(
    norm: str, batch: int, seed: int, *, epochs: int = 20, dataset: str = "digits", **changes: Any
) -> dict[str, Any]:
    """Return a resolved config as run folders record it."""
    base, _, weight = norm.partition("_")
    tree: dict[str, Any] = {
        "dataset": {"name": dataset, "validation": 237, "split_seed": 0, "train_size": None},
        "arch": {"name": "resnet8", "_target_": "normbench.archs.resnet_small.build", "depth": 8},
        "norm": {
            "weight": {"name": weight or "none", "_target_": None},
            "name": base,
            "_target_": f"normbench.norms.{base}",
            **({"groups": 8} if base == "gn" else {}),
        },
        "optimizer": {"name": "sgd", "lr": 0.1, "base_batch": 128, "scaling": "linear"},
        "schedule": {"name": "cosine", "warmup": 0.05, "final": 0.0},
        "batch": batch,
        "epochs": epochs,
        "seed": seed,
        "precision": "float32",
        "backend": "tensorflow",
        "label_smoothing": 0.0,
        "eval_batch": 500,
        "max_loss": 1000.0,
        "store": "runs",
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        inside = tree
        for part in path:
            inside = inside[part]
        inside[last] = value
    return tree


def curve(
    norm: str, batch: int, seed: int, epochs: int, until: int | None = None
) -> list[dict[str, Any]]:
    """Return the epochs of one run; ``until`` is the epoch at which it diverges."""
    rng = np.random.default_rng([zlib.crc32(norm.encode()), batch, seed])
    best, small, large = BEHAVIOR.get(norm, (0.94, 0.002, 0.004))
    octaves = np.log2(batch / 128)
    final = best - (small * octaves**2 / 3 if octaves < 0 else large * octaves)
    final += rng.normal(0, 0.004)
    steps = max(TRAIN // batch, 1)
    rows = []
    speed = SPEED.get(norm, 2500) * (1 - 0.6 * np.exp(-batch / 40)) * rng.normal(1, 0.02)
    for epoch in range(1, epochs + 1):
        share = epoch / epochs
        rise = 1 - np.exp(-5 * share)
        accuracy = 0.1 + (final - 0.1) * rise + rng.normal(0, 0.006) * (1 - share)
        train = min(accuracy + 0.02 * share + 0.004, 1.0)
        dead = until is not None and epoch >= until
        lr = 0.1 * batch / 128 * 0.5 * (1 + np.cos(np.pi * share))
        row = {
            "epoch": epoch,
            "step": steps * epoch,
            "images_seen": TRAIN * epoch,
            "train_loss": None if dead else float(2.3 * np.exp(-4 * share) + 1.2 * (1 - train)),
            "train_acc": None if dead else float(np.round(train * TRAIN) / TRAIN),
            "val_loss": None if dead else float(2.3 * np.exp(-4 * share) + 2.2 * (1 - accuracy)),
            "val_acc": None if dead else float(np.round(accuracy * 237) / 237),
            "lr": float(lr),
            "grad_norm": None if dead else float(2.5 * np.exp(-2 * share) + 0.1 * rng.random()),
            "grad_norm_max": None if dead else float(6 * np.exp(-2 * share) + rng.random()),
            "images_per_s": float(speed * rng.normal(1, 0.03)),
            "train_seconds": float(TRAIN / speed),
            "eval_seconds": 0.05,
            "time": f"2026-11-01T10:{epoch // 60:02d}:{epoch % 60:02d}Z",
        }
        rows.append(row)
        if dead:
            break
    return rows


def write_run(
    root: Path,
    tree: dict[str, Any],
    *,
    status: str = "finished",
    stop: int | None = None,
    commit: str = "4f9d2c1e8b7a6d5c4b3a29181716151413121110",
    versions: dict[str, str] | None = None,
    processor: str = "Intel(R) Xeon(R) Processor @ 2.20GHz",
) -> Path:
    """Write a run's folder; ``stop`` is the epoch after which it diverged or was interrupted."""
    weight = tree["norm"]["weight"]["name"]
    norm = tree["norm"]["name"] + ("" if weight == "none" else f"_{weight}")
    batch, seed, epochs = tree["batch"], tree["seed"], tree["epochs"]
    dataset, arch = tree["dataset"]["name"], tree["arch"]["name"]
    signature = Config.from_dict(tree).signature
    name = f"{dataset}-{arch}-{norm}-b{batch}-s{seed}-{signature}"
    folder = root / name
    folder.mkdir(parents=True)
    # Not as JSON: YAML reads 1e-05 as text, which changes the signature.
    with (folder / "config.yaml").open("w") as file:
        yaml.dump({**tree, "signature": signature, "schema": 1}, file, _Dumper, sort_keys=False)
    rows = curve(norm, batch, seed, epochs, until=stop if status == "diverged" else None)
    if status != "diverged" and stop is not None:
        rows = rows[:stop]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = status in ("finished", "diverged", "failed")
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "status": "running" if status in ("running", "interrupted") else status,
                "signature": signature,
                "schema": 1,
                "started": "2026-11-01T10:00:00Z",
                "ended": "2026-11-01T10:05:00Z" if ended else None,
                "git": {"commit": commit, "dirty": False},
                "versions": versions or VERSIONS,
                "host": "bench-1",
                "devices": [],
                "processor": processor,
                "command": [
                    "normbench",
                    "run",
                    f"norm={norm}",
                    f"batch={batch}",
                    f"seed={seed}",
                    f"dataset={dataset}",
                    f"arch={arch}",
                    f"epochs={epochs}",
                ],
                "engine": {
                    "backend": "tensorflow",
                    "precision": "float32",
                    "jit_compile": False,
                    "deterministic": True,
                    "threads": 2,
                },
                "error": {"type": "ResourceExhaustedError", "message": "out of memory"}
                if status == "failed"
                else None,
                "sessions": [
                    {
                        "started": "2026-11-01T10:00:00Z",
                        "ended": None,
                        "host": "bench-1",
                        "pid": 4242,
                        "from_epoch": 0,
                    }
                ],
            }
        )
    )
    if status in ("finished", "diverged"):
        (folder / "summary.json").write_text(json.dumps(_summary(rows, status, norm, batch, seed)))
    return folder


def _summary(
    rows: list[dict[str, Any]], status: str, norm: str, batch: int, seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng([7, zlib.crc32(norm.encode()), batch, seed])
    last = rows[-1]
    known = [row for row in rows if row["val_acc"] is not None]
    best = max(known, key=lambda row: row["val_acc"])

    def tested(value: float) -> float:
        return float(np.round(min(value + rng.normal(0, 0.003), 1) * TEST) / TEST)

    diverged = status == "diverged"
    seconds = sum(row["train_seconds"] for row in rows)
    return {
        "status": status,
        "epochs": last["epoch"],
        "steps": last["step"],
        "images_seen": last["images_seen"],
        **{key: last[key] for key in ("train_loss", "train_acc", "val_loss", "val_acc")},
        "test_loss": None if diverged else last["val_loss"] * 1.02,
        "test_acc": None if diverged else tested(last["val_acc"]),
        "best_val_epoch": best["epoch"],
        "best_val_acc": best["val_acc"],
        "best_val_test_acc": tested(best["val_acc"]),
        "best_val_test_loss": best["val_loss"],
        "parameters": 78042,
        "train_seconds": seconds,
        "wall_seconds": seconds * 1.1 + 4,
        "images_per_s": TRAIN * len(rows) / seconds,
        "weights_sha256": f"{zlib.crc32(f'{norm}{batch}{seed}'.encode()):08x}" * 8,
        **(
            {"diverged_epoch": last["epoch"], "diverged_step": last["step"] - 3} if diverged else {}
        ),
    }


def write_grid(
    root: Path,
    norms: Iterable[str] = ("bn", "gn", "gn_ws"),
    batches: Iterable[int] = (16, 32, 64, 128, 256, 512),
    seeds: int = 3,
    epochs: int = 20,
    **changes: Any,
) -> Path:
    """Write a finished run for every cell of a grid; return the store's folder."""
    for norm in norms:
        for batch in batches:
            for seed in range(seeds):
                write_run(root, config(norm, batch, seed, epochs=epochs, **changes))
    return root


def write_mixed(root: Path) -> Path:
    """Write a store with everything that a store can contain, including damaged runs."""
    write_grid(root)
    write_run(root, config("none", 16, 0), status="diverged", stop=4)
    write_run(root, config("none", 16, 1))
    write_run(root, config("none", 16, 2))
    for seed in range(2):
        write_run(root, config("none", 512, seed), status="diverged", stop=2)
    write_run(root, config("ln", 64, 0))
    write_run(root, config("ln", 128, 0), status="failed", stop=3)
    write_run(root, config("in", 128, 0), status="interrupted", stop=9)
    (write_run(root, config("in", 64, 0)) / "meta.json").write_text('{"status": "fini')
    (write_run(root, config("in", 32, 0)) / "config.yaml").unlink()
    torn = write_run(root, config("in", 16, 0), status="interrupted", stop=6) / "metrics.jsonl"
    torn.write_text(torn.read_text()[:-40])
    (root / "holiday-pictures").mkdir()
    (root / "holiday-pictures" / "beach.txt").write_text("sun")
    (root / "notes.txt").write_text("do not forget")
    return root


BEST_RATE = {"bn": 0.2, "gn": 0.1, "gn_ws": 0.1}
"""The learning rate at which the tuned runs of a norm do best, at batch size 128."""


def tuned_accuracy(norm: str, batch: int, lr: float, seed: int) -> float | None:
    """Return the validation accuracy of a run at a learning rate; None where it diverges."""
    octaves = np.log2(lr / BEST_RATE.get(norm, 0.1)) - 0.25 * np.log2(batch / 128)
    if octaves > (1.6 if norm == "bn" else 2.2):
        return None
    rng = np.random.default_rng([zlib.crc32(norm.encode()), batch, seed, round(1e6 * lr)])
    best, width = BEHAVIOR.get(norm, (0.94, 0.002, 0.004))[0], 0.012 if norm == "bn" else 0.005
    return float(best - width * octaves**2 + rng.normal(0, 0.001))


def write_tuned(
    root: Path,
    norms: Iterable[str] = ("bn", "gn", "gn_ws"),
    batches: Iterable[int] = (16, 128),
    rates: Sequence[float] = (0.025, 0.05, 0.1, 0.2, 0.4),
    tuning_seeds: Sequence[int] = (1000,),
    seeds: int = 3,
    epochs: int = 5,
    trial_epochs: int | None = None,
    added: Sequence[float] = (),
    accuracy: Callable[[str, int, float, int], float | None] = tuned_accuracy,
    sweep: str = "20261101-100000-abcd",
    **changes: Any,
) -> Path:
    """Write the store of a sweep that tuned the learning rate of each cell; return its folder."""
    cells = []
    for norm in norms:
        for batch in batches:
            cells.append(
                _write_tuned_cell(
                    root,
                    norm,
                    batch,
                    rates,
                    tuning_seeds,
                    seeds,
                    (epochs, trial_epochs or epochs),
                    added,
                    accuracy,
                    changes,
                )
            )
    write_tuning(root, cells, tuning_seeds, sweep)
    return root


def write_tuning(
    root: Path, cells: list[dict[str, Any]], seeds: Sequence[int], sweep: str, **changes: Any
) -> None:
    """Write the record of a tuned sweep."""
    folder = root / "sweeps" / sweep
    folder.mkdir(parents=True)
    record = {
        "schema": 1,
        "keys": ["optimizer.lr"],
        "metric": "val_acc",
        "higher_is_better": True,
        "seeds": list(seeds),
        "extend": 0,
        "rule": "highest mean of val_acc over the tuning seeds",
        "cells": cells,
        **changes,
    }
    (folder / "tuning.json").write_text(json.dumps(record))


def _write_tuned_cell(
    root: Path,
    norm: str,
    batch: int,
    rates: Sequence[float],
    tuning_seeds: Sequence[int],
    seeds: int,
    epochs: tuple[int, int],
    added: Sequence[float],
    accuracy: Callable[[str, int, float, int], float | None],
    changes: dict[str, Any],
) -> dict[str, Any]:
    trials, means = [], []
    for lr in rates:
        scores = [accuracy(norm, batch, lr, seed) for seed in tuning_seeds]
        means.append(None if None in scores else float(np.mean([s or 0 for s in scores])))
        for seed, score in zip(tuning_seeds, scores, strict=True):
            tree = config(norm, batch, seed, epochs=epochs[1], optimizer__lr=lr, **changes)
            run = write_run(
                root, tree, status="finished" if score else "diverged", stop=None if score else 2
            )
            if score:
                set_result(run, "val_acc", score)
            trials.append(
                {
                    "run": run.name,
                    "values": {"optimizer.lr": lr},
                    "seed": seed,
                    "status": "finished" if score else "diverged",
                    "metric": score,
                }
            )
    known = [(mean, -lr, lr) for mean, lr in zip(means, rates, strict=True) if mean is not None]
    best = max(known)[2] if known else None
    final = []
    if best is not None:
        for seed in range(seeds):
            tree = config(norm, batch, seed, epochs=epochs[0], optimizer__lr=best, **changes)
            final.append(write_run(root, tree).name)
    ends = {rates[0]: "smallest", rates[-1]: "largest"}
    return {
        "key": f"{zlib.crc32(f'{norm}{batch}{changes}'.encode()):08x}",
        "name": f"{changes.get('dataset', 'digits')}-resnet8-{norm}-b{batch}",
        "differs": "",
        "dataset": changes.get("dataset", "digits"),
        "arch": "resnet8",
        "norm": norm,
        "batch": batch,
        "epochs": epochs[0],
        "trial_epochs": epochs[1],
        "values": [{"optimizer.lr": lr} for lr in rates],
        "added": [{"optimizer.lr": lr} for lr in added],
        "trials": trials,
        "means": means,
        "chosen": None if best is None else {"optimizer.lr": best},
        "edges": {"optimizer.lr": ends[best]} if best in ends else {},
        "problem": "" if best is not None else "all trials diverged",
        "final": final,
    }


def set_result(run: Path, key: str, value: float) -> None:
    """Change a number of a run's summary and of its last epoch."""
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    path = run / "metrics.jsonl"
    *rows, last = path.read_text().splitlines()
    rows.append(json.dumps({**json.loads(last), key: value}))
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a store with a finished run in every cell."""
    return lambda **options: write_grid(tmp_path / "runs", **options)


@pytest.fixture(scope="session")
def mixed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with runs in every state, and with folders that are not runs."""
    return write_mixed(tmp_path_factory.mktemp("mixed") / "runs")


@pytest.fixture(scope="session")
def synth() -> SimpleNamespace:
    """The functions of this file that write stores."""
    return SimpleNamespace(
        config=config,
        write_run=write_run,
        write_grid=write_grid,
        write_tuned=write_tuned,
        write_tuning=write_tuning,
        set_result=set_result,
        versions=VERSIONS,
    )


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit reports to a single figure: drawing takes most of their time."""
    monkeypatch.setattr("normbench.report.figures.FIGURES", ("heatmap",))

"""Training speed on an NVIDIA GPU: this engine on JAX beside PyTorch, and against the GPU's limits.

    python benchmarks/gpu.py --pack FOLDER --data cifar10.npz     # once, where the data is
    python benchmarks/gpu.py --data cifar10.npz --out results     # on the machine with the GPU

Needs JAX and PyTorch with CUDA, Keras and Hydra, but neither TensorFlow nor a network. ``--pack``
turns the official folder cifar-10-batches-py into one file of uint8 arrays: train_images
(N, 32, 32, 3), train_labels, test_images, test_labels. Other parts than ``accuracy`` train on
random images, 32×32.

Parts (``--parts``), all in bfloat16, and in ``--minutes`` together; what no longer fits is named:
  throughput  images/s of each network at each batch size: the engine; PyTorch eager; eager with
              channels_last; compiled with channels_last; the same with mode="reduce-overhead"
  limits      the engine's step beside three lower bounds: its kernels at the cost of a launch, the
              bytes they move at the speed of a copy, its operations at that of a matrix product
  together    one, two, four and eight processes that each train ResNet-20, GN, batch 16, at once
  sweep       the engine at all cells of the experiment batch_sweep, and the hours it would take
  accuracy    seconds to 94 % on CIFAR-10's test images with arch=airbench

Contenders are processes of their own that sit idle while another is measured; they make their
networks ready side by side. Figures are medians over interleaved rounds with their range. PyTorch
has its images and their augmentation on the GPU, in large pieces; cuDNN's benchmark, TF32, a fused
optimizer. It keeps no record of loss, accuracy and gradient of each step as the engine does, and
its losses are never read. ``--rehearse`` runs every part, tiny, on whatever JAX finds.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from gpu_bench import Report, Settings
from gpu_parts import PARTS

FIGURES = ("train_images", "train_labels", "test_images", "test_labels")


def nvidia_gpu() -> str | None:
    """Return the first GPU's name, from the driver; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode()


def pack(folder: Path, file: Path) -> None:
    """Write the official python batches of CIFAR-10 into one file."""
    import pickle

    import numpy as np

    arrays = {}
    for split, names in (
        ("train", [f"data_batch_{number}" for number in range(1, 6)]),
        ("test", ["test_batch"]),
    ):
        batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
        planes = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        arrays[f"{split}_images"] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        labels = np.concatenate([batch[b"labels"] for batch in batches])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez_compressed(file, **arrays)
    print(f"{file}: {len(arrays['train_labels'])} + {len(arrays['test_labels'])} images")


def check_data(file: Path) -> None:
    """End here, not after minutes, where the file is not what is asked for."""
    try:
        with zipfile.ZipFile(file) as archive:
            missing = [name for name in FIGURES if f"{name}.npy" not in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        sys.exit(f"--data {file}: {error}")
    if missing:
        sys.exit(f"--data {file} lacks {', '.join(missing)}; see --pack")


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, help="CIFAR-10 in one file, for the part accuracy")
    options.add_argument("--pack", type=Path, metavar="FOLDER", help="write that file, and end")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    options.add_argument(
        "--archs",
        nargs="+",
        choices=["resnet20", "resnet50", "airbench"],
        default=["resnet20", "airbench", "resnet50"],
    )
    options.add_argument("--batches", type=int, nargs="+", default=[16, 128, 512])
    options.add_argument(
        "--norms", nargs="+", choices=["none", "bn", "gn", "bn_ws", "gn_ws"], default=["gn", "bn"]
    )
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    options.add_argument("--epochs", type=int, default=24, help="of the part accuracy")
    options.add_argument("--out", type=Path, help="a folder for gpu.md and gpu.json")
    options.add_argument("--rehearse", action="store_true", help="without a GPU; measures nothing")
    given = options.parse_args()
    if given.pack and not given.data:
        options.error("--pack needs --data, the file to write")
    return given


def main() -> None:
    given = arguments()
    if given.pack:
        pack(given.pack, given.data)
        return
    gpu = nvidia_gpu()
    if gpu is None and not given.rehearse:
        sys.exit("benchmarks/gpu.py measures on an NVIDIA GPU, and there is none on this machine")
    if given.data:
        check_data(given.data)
    began = time.monotonic()
    settings = Settings.of(given)
    report = Report(given.out)
    if given.rehearse:
        report.say(
            "**REHEARSAL: tiny networks, no measurement. No number below means anything.**\n"
        )
    parts: dict[str, Any] = {name: PARTS[name] for name in PARTS if name in given.parts}
    with settings.bench(report) as bench:
        bench.introduce(gpu)
        left = sum(part.share for part in parts.values())
        for name, part in parts.items():
            # A part's share of the time that is left: what one does not use, the next ones have.
            now = time.monotonic()
            until = now + (began + 60 * given.minutes - now) * part.share / left
            left -= part.share
            report.say(f"\n## {name}\n")
            part.run(bench, until)
            report.say(f"\n{name} took {time.monotonic() - now:.0f} s.")
            report.write()
    if given.rehearse:
        report.say("\n**REHEARSAL: no number above means anything.**")
    report.write()


if __name__ == "__main__":
    main()

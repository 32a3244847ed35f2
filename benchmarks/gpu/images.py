"""Compress CIFAR-10 to carry it to a machine without a network, and restore it there.

    python benchmarks/gpu/images.py pack cifar-10-batches-py packed     # where the data is
    python benchmarks/gpu/images.py unpack packed cifar-10-batches-bin  # where it is needed

``pack`` reads the published python version and writes, for each of its six files, the 10,000 images
as one lossless WebP image, 100 rows of 100, and their labels: 100 MB together instead of 184.
``unpack`` writes the files of the published binary version, as many as were packed, and compares
their checksums with the published ones. ``normbench data import cifar10`` reads the folder.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout that is not installed

from normbench.data.checksums import CIFAR10_PACKINGS
from normbench.data.cifar import decode

PYTHON, BINARY = CIFAR10_PACKINGS
SIDE, ROWS = 32, 100


def pack(source: Path, packed: Path, name: str) -> None:
    """Write the images (``name.webp``) and labels (``name.labels``) of one published file."""
    from PIL import Image

    data = (source / name).read_bytes()
    if not PYTHON.files[name].fits(data):
        sys.exit(f"{source / name} is not the published file")
    arrays = decode(data, PYTHON)
    grid = arrays["image"].reshape(ROWS, -1, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
    picture = Image.fromarray(np.ascontiguousarray(grid).reshape(ROWS * SIDE, -1, 3))
    picture.save(packed / f"{name}.webp", lossless=True, quality=100, method=6)
    (packed / f"{name}.labels").write_bytes(arrays["label"].astype(np.uint8).tobytes())


def unpack(packed: Path, target: Path, name: str) -> None:
    """Write one file of the published binary version."""
    from PIL import Image

    grid = np.asarray(Image.open(packed / f"{name}.webp").convert("RGB"))
    images = grid.reshape(ROWS, SIDE, -1, SIDE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3 * SIDE**2)
    labels = np.frombuffer((packed / f"{name}.labels").read_bytes(), np.uint8)
    data = np.concatenate([labels[:, None], images], axis=1).tobytes()
    if not BINARY.files[f"{name}.bin"].fits(data):
        sys.exit(f"{packed / name}.webp does not give the published {name}.bin")
    (target / f"{name}.bin").write_bytes(data)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("action", choices=["pack", "unpack"])
    options.add_argument("source", type=Path)
    options.add_argument("target", type=Path)
    options.add_argument("--files", nargs="+", choices=PYTHON.files, default=list(PYTHON.files))
    args = options.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    action = pack if args.action == "pack" else unpack
    names = [n for n in args.files if action is pack or (args.source / f"{n}.webp").is_file()]
    with ThreadPoolExecutor() as pool:  # Pillow's codecs run side by side
        list(pool.map(partial(action, args.source, args.target), names))
    print(f"{args.target}: {', '.join(names)}")


if __name__ == "__main__":
    main()

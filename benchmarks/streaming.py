"""The cost of streaming: training on 32×32 images read from a file, compared with in memory.

    python benchmarks/streaming.py [--archs lenet resnet8] [--backend jax] [--rounds 5] [--quick]

One process has two loops on the same random images, cropped and flipped, and trains one epoch with
each alternately. One loop has the images in memory; the other gathers them from a mapped file,
chunk by chunk. The file is in the system's page cache, as with any data set that fits in memory, so
the ratio is the cost of gathering, not of a disk. It includes the first chunk of an epoch, which
cannot overlap with computation. Prints images/s, medians over rounds with their range, and the
ratios of times, streamed over in memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import CLASSES, by_turns, compiled_loop, machine, random_split, seconds_a_step, shown


def mapped(split: Any, folder: str) -> Any:
    """Return a split whose images are read from a file."""
    import numpy as np

    from normbench.data import cache
    from normbench.data.streaming import ImageView

    path = Path(folder, "images")
    cache.write(path, {"images": split.images}, {})
    entry = cache.read(path)
    assert entry is not None
    view = ImageView(entry[1]["images"], np.arange(len(split.labels)))
    return SimpleNamespace(images=view, labels=split.labels)


def measure(arch: str, args: argparse.Namespace, folder: str) -> None:
    from normbench.config import compose
    from normbench.engine.loop_stream import CHUNK_BYTES

    config = compose(
        [f"arch={arch}", f"norm={args.norm}", f"batch={args.batch}", f"backend={args.backend}"]
    )
    small_split = random_split(CLASSES, 1)
    train = random_split(args.train)
    loops = {}
    for images, split, size in (
        ("in memory", train, 0),
        ("streamed", mapped(train, folder), CHUNK_BYTES),
    ):
        data = SimpleNamespace(train=split, validation=small_split, test=small_split)
        loops[images] = compiled_loop(config, data, chunk_bytes=size)
        seconds_a_step(loops[images], 2)
    count = args.train // args.batch
    streamed_loop, resident_loop = loops["streamed"], loops["in memory"]
    streamed_times, resident_times, ratios = by_turns(
        streamed_loop, resident_loop, count, args.rounds
    )
    rates = [
        shown((args.batch / seconds for seconds in times), 0)
        for times in (resident_times, streamed_times)
    ]
    print(f"| {arch} | {' | '.join(rates)} | {shown(ratios, 3)} |", flush=True)
    streamed_loop.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--archs", nargs="+", default=["lenet", "resnet8"])
    options.add_argument("--norm", default="bn")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--train", type=int, default=90_000, help="images: just over 4 chunks")
    options.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="a trial: LeNet, 4,500 images")
    args = options.parse_args()
    if args.quick:
        args.archs, args.train, args.rounds = args.archs[:1], 4_500, 1
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(
        f"{args.train} images of 32×32, {args.norm}, batch {args.batch}, float32, "
        f"{args.backend}, {machine()}; medians of {args.rounds} (range)\n"
    )
    print("| network | in memory (images/s) | streamed (images/s) | ratio |")
    print("| --- | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for arch in args.archs:
            measure(arch, args, folder)


if __name__ == "__main__":
    main()

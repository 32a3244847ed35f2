"""What convolutions of 1×1 gain as matrix products, over TensorFlow's own convolution.

    python benchmarks/pointwise.py [--archs mobilenet_v2 resnet50] [--norm gn] [--batches 16 128]

Two loops on one network in one process, by turns, as a run has them on a CPU: one whose 1×1
convolutions are Keras's, one with normbench's. The ratio is that of the seconds of a step, each to
the mean of the measurements of Keras's before and after it; medians over rounds with their range.
Images are random, 32×32.
"""

from __future__ import annotations

import argparse
import os
import statistics
from types import SimpleNamespace
from typing import Any

from common import by_turns, compiled_loop, machine, random_split, seconds_a_step, shown

IMAGES = 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--archs", nargs="+", default=["mobilenet_v2", "resnet50"])
    options.add_argument("--norm", default="gn")
    options.add_argument("--batches", nargs="+", type=int, default=[16, 128])
    options.add_argument("--precision", default="float32")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    given = options.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    split = random_split(IMAGES)
    data = SimpleNamespace(train=split, validation=split, test=split)
    print(f"{machine()}, {given.norm}, {given.precision}; medians of {given.rounds} (range)\n")
    print("| network | batch | Keras's, images/s | ours, images/s | gain |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    for arch in given.archs:
        for batch in given.batches:
            row = measured(arch, batch, given, data)
            print(f"| {arch} | {batch} | {' | '.join(row)} |", flush=True)


def measured(arch: str, batch: int, given: argparse.Namespace, data: Any) -> list[str]:
    from normbench.config import compose

    chosen = [f"arch={arch}", f"norm={given.norm}", f"batch={batch}"]
    config = compose([*chosen, f"precision={given.precision}"])
    ours = compiled_loop(config, data)
    from normbench.kernels.conv import Convolution

    own = Convolution.convolution_op
    del Convolution.convolution_op
    try:
        theirs = compiled_loop(config, data)
    finally:
        Convolution.convolution_op = own
    seconds_a_step(ours, 2)
    seconds_a_step(theirs, 2)
    count = max(2, round(given.seconds / seconds_a_step(theirs, 2)))
    count = min(count, IMAGES // batch)
    steps, peers, ratios = by_turns(ours, theirs, count, given.rounds)
    gains = [1 / ratio for ratio in ratios]
    return [*(f"{batch / statistics.median(each):.1f}" for each in (peers, steps)), shown(gains)]


if __name__ == "__main__":
    main()

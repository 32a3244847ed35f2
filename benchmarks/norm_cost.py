"""The cost of each normalization in a training step, relative to the same network with none.

    python benchmarks/norm_cost.py [--norms bn gn …] [--arch resnet20] [--batch 16] [--quick]

Trains the network with each available normalization, alternating with the network that has none, in
one process: augmentation, forward, backward and update, as in a run. The ratio divides the step
time by the mean of the measurements of ``none`` before and after it; it is printed as the median
over rounds with the range. Images are random, 32×32. A normalization that the network or batch size
does not allow is printed with the reason and skipped.
"""

from __future__ import annotations

import argparse
import os
import statistics
from types import SimpleNamespace
from typing import Any

from common import by_turns, compiled_loop, machine, random_split, seconds_a_step, shown

IMAGES = 4096


def loop_with(norm: str, args: argparse.Namespace, data: Any) -> Any:
    """Return the compiled training loop of the network with one normalization.

    Raises:
        UserError: The network cannot be built with it.
    """
    from normbench.config import compose

    config = compose(
        [
            f"arch={args.arch}",
            f"norm={norm}",
            f"batch={args.batch}",
            f"precision={args.precision}",
            f"backend={args.backend}",
        ]
    )
    return compiled_loop(config, data)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--norms", nargs="+", help="by default all that are available")
    options.add_argument("--arch", default="resnet20")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--precision", default="float32")
    options.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options.add_argument("--quick", action="store_true", help="a trial: two norms, one round")
    args = options.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from normbench.config import group_options

    norms = args.norms or [name for name in group_options()["norm"] if name != "none"]
    if args.quick:
        norms, args.rounds, args.seconds = norms[:2], 1, 0.2
    split = random_split(IMAGES)
    data = SimpleNamespace(train=split, validation=split, test=split)
    baseline = loop_with("none", args, data)
    seconds_a_step(baseline, 2)
    count = max(2, round(args.seconds / seconds_a_step(baseline, 2)))
    count = min(count, IMAGES // args.batch)
    print(
        f"{machine()}, {args.arch}, batch {args.batch}, {args.precision}, "
        f"{args.backend}; medians of {args.rounds} (range)\n"
    )
    print("| norm | images/s | ms a step | over none |\n| --- | ---: | ---: | ---: |", flush=True)
    for norm in norms:
        try:
            loop = loop_with(norm, args, data)
            seconds_a_step(loop, 2)
        except Exception as error:
            print(f"| {norm} | {str(error).splitlines()[0][:100]} | | |", flush=True)
            continue
        seconds, _, ratios = by_turns(loop, baseline, count, args.rounds)
        step = statistics.median(seconds)
        print(
            f"| {norm} | {args.batch / step:.0f} | {1000 * step:.1f} | {shown(ratios)} |",
            flush=True,
        )
        del loop


if __name__ == "__main__":
    main()

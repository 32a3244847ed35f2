"""What each normalization costs a network's training step, over the same network with none.

    python benchmarks/norm_cost.py [--norms bn gn …] [--arch resnet20] [--batch 16] [--quick]

Trains the network with each normalization of the catalogue by turns with the one that has none, in
one process: augmentation, forward, backward and update, as a run does. The ratio is that of the
seconds of a step, each to the mean of the measurements of ``none`` before and after it; medians
over rounds with their range. Images are random, 32×32. Those that the network or the batch cannot
have are named and left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
from types import SimpleNamespace
from typing import Any

from common import by_turns, compiled_loop, machine, random_split, seconds_a_step, shown

IMAGES = 4096


def made(norm: str, given: argparse.Namespace, data: Any) -> Any:
    """Return the compiled loop of one normalization.

    Raises:
        UserError: The network cannot have it.
    """
    from normbench.config import compose

    config = compose(
        [
            f"arch={given.arch}",
            f"norm={norm}",
            f"batch={given.batch}",
            f"precision={given.precision}",
            f"backend={given.backend}",
        ]
    )
    return compiled_loop(config, data)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--norms", nargs="+", help="all of the catalogue if left out")
    options.add_argument("--arch", default="resnet20")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--precision", default="float32")
    options.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options.add_argument("--quick", action="store_true", help="to try it: two of them, one round")
    given = options.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from normbench.config import group_options

    norms = given.norms or [name for name in group_options()["norm"] if name != "none"]
    if given.quick:
        norms, given.rounds, given.seconds = norms[:2], 1, 0.2
    split = random_split(IMAGES)
    data = SimpleNamespace(train=split, validation=split, test=split)
    none = made("none", given, data)
    seconds_a_step(none, 2)
    count = max(2, round(given.seconds / seconds_a_step(none, 2)))
    count = min(count, IMAGES // given.batch)
    print(
        f"{machine()}, {given.arch}, batch {given.batch}, {given.precision}, "
        f"{given.backend}; medians of {given.rounds} (range)\n"
    )
    print("| norm | images/s | ms a step | over none |\n| --- | ---: | ---: | ---: |", flush=True)
    for norm in norms:
        try:
            loop = made(norm, given, data)
            seconds_a_step(loop, 2)
        except Exception as error:
            print(f"| {norm} | {str(error).splitlines()[0][:100]} | | |", flush=True)
            continue
        own, _, ratios = by_turns(loop, none, count, given.rounds)
        step = statistics.median(own)
        print(
            f"| {norm} | {given.batch / step:.0f} | {1000 * step:.1f} | {shown(ratios)} |",
            flush=True,
        )
        del loop


if __name__ == "__main__":
    main()

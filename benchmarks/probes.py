"""What probes cost a run: ResNet-20 on 32×32 images, each probe with its default options.

    python benchmarks/probes.py [--norms bn gn] [--batches 16 128] [--rounds 5] [--quick]

One process trains and measures by turns: some steps, then each probe once, and so on. An epoch is
that of CIFAR-10 with a tenth held out: 45,000 images in training, 5,000 evaluated. Its seconds are
those of its steps, at the speed of the steps before and after the probe, and of an evaluation. The
slow-down is the probe's seconds over those of the ``every`` epochs from one measurement to the
next; that of all together is the sum. Compiling, once a run, is shown apart. Images are random:
what is computed takes the same time, but the iteration of sharpness may settle later.
Prints medians over rounds with their range.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from types import SimpleNamespace
from typing import Any

from common import CLASSES, compiled_loop, machine, random_split, shown

TRAIN, VALIDATION = 45_000, 5_000


def prepared(norm: str, batch: int, given: argparse.Namespace) -> tuple[Any, Any, list[Any]]:
    """Return a loop, its data set, and the probes that can be measured in its network."""
    from normbench.config import compose, group_options

    names = sorted(group_options()["probe"])
    config = compose(
        [
            f"arch={given.arch}",
            f"norm={norm}",
            f"batch={batch}",
            f"backend={given.backend}",
            f"probe=[{','.join(names)}]",
        ]
    )
    data = SimpleNamespace(
        train=random_split(given.train, 0),
        validation=random_split(given.validation, 1),
        test=random_split(CLASSES, 2),
        shape=(32, 32, 3),
        classes=CLASSES,
    )
    loop = compiled_loop(config, data)
    loop.rate = 0.01

    from normbench.engine.observer import make_probes
    from normbench.errors import UserError

    kept = []
    for probe in make_probes(config.probe):
        try:
            probe.check(loop.model)
        except UserError as refusal:
            print(f"left out: {refusal}")
        else:
            kept.append(probe)
    return loop, data, kept


def seconds_a_step(loop: Any, count: int) -> float:
    import numpy as np

    began = time.perf_counter()
    loop.begin_epoch(0)
    loop.train(0, np.full(count, 0.01, np.float32))
    return (time.perf_counter() - began) / count


def seconds_of(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(norm: str, batch: int, given: argparse.Namespace) -> None:
    loop, data, probes = prepared(norm, batch, given)
    seconds_a_step(loop, 2)
    count = max(2, round(given.seconds / seconds_a_step(loop, 2)))
    seconds_of(lambda: loop.evaluate("validation"))
    first = {p.name: seconds_of(lambda p=p: p.measure(loop, data)) for p in probes}
    taken: dict[str, list[float]] = {probe.name: [] for probe in probes}
    slower: dict[str, list[float]] = {probe.name: [] for probe in probes}
    steps = given.train // batch
    for _ in range(given.rounds):
        evaluation = seconds_of(lambda: loop.evaluate("validation"))
        before = seconds_a_step(loop, count)
        for probe in probes:
            seconds = seconds_of(lambda probe=probe: probe.measure(loop, data))
            after = seconds_a_step(loop, count)
            epoch = steps * (before + after) / 2 + evaluation
            taken[probe.name].append(seconds)
            slower[probe.name].append(100 * seconds / (probe.every * epoch))
            before = after
    for probe in probes:
        name = probe.name
        print(
            f"| {norm} | {batch} | {name} | {probe.every} | {shown(taken[name], 2)} | "
            f"{max(first[name] - statistics.median(taken[name]), 0.0):.1f} | "
            f"{shown(slower[name], 2)} |",
            flush=True,
        )
    together = [sum(each) for each in zip(*slower.values(), strict=True)]
    print(f"| {norm} | {batch} | all together | | | | {shown(together, 2)} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--norms", nargs="+", default=["bn", "gn"])
    options.add_argument("--batches", type=int, nargs="+", default=[16, 128])
    options.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0, help="of training between probes")
    options.add_argument("--quick", action="store_true", help="to try it: ResNet-8, 4,500 images")
    given = options.parse_args()
    given.arch, given.train, given.validation = "resnet20", TRAIN, VALIDATION
    if given.quick:
        given.norms, given.batches = given.norms[:1], given.batches[-1:]
        given.rounds, given.seconds = 1, 0.5
        given.arch, given.train, given.validation = "resnet8", TRAIN // 10, VALIDATION // 10
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(
        f"{given.arch}, 32×32, {given.train} images, float32, {given.backend}, {machine()}; "
        f"medians of {given.rounds} (range)\n"
    )
    print(
        "| norm | batch | probe | every (epochs) | a measurement (s) | compiling (s) | "
        "slow-down (%) |"
    )
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    for norm in given.norms:
        for batch in given.batches:
            measure(norm, batch, given)


if __name__ == "__main__":
    main()

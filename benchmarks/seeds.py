"""Seeds of a cell trained in one JAX program, beside the same one after the other.

    python benchmarks/seeds.py [--archs mlp_sigmoid lenet …] [--seeds 3] [--quick]

The one program is the epoch's loop vectorized over states and data orders (``jax.vmap``): a matrix
product or convolution then has a batch of weights. By turns in one process; the gain is the seconds
of the runs apart over those of the program. A sweep gives each of its workers a core: on a CPU
measure on one (``taskset -c 0 python …``). The last column is the largest difference of a loss.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

from common import compiled_loop, machine, random_split, shown

IMAGES = 2048


class Group:
    """Seeds of one cell, ready to train either way from the same state."""

    def __init__(self, loop: Any, seeds: int) -> None:
        import jax
        import jax.numpy as jnp

        def stacked(trees: list[Any]) -> Any:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

        self.loop = loop
        self.data = loop._splits["train"]
        # As a run: the data order is the seed's. All start from the same weights.
        self.epochs = [loop._draw(jnp.int32(0), jnp.uint32(seed)) for seed in range(seeds)]
        self.states = [jax.tree.map(jnp.copy, loop._state) for _ in range(seeds)]
        self.all_epochs, self.all_states = stacked(self.epochs), stacked(self.states)
        axes = (0, None, 0, None, None, None)
        self.program = jax.jit(jax.vmap(loop._run_steps, in_axes=axes), donate_argnums=0)

    def apart(self, count: int, rate: float = 0.0) -> Any:
        """Train each by itself; return its losses."""
        losses = []
        for seed, epoch in enumerate(self.epochs):
            self.states[seed], history = self._called(
                self.loop._run, self.states[seed], epoch, count, rate
            )
            losses.append(history[:count])
        return losses

    def together(self, count: int, rate: float = 0.0) -> Any:
        """Train all in one program; return each one's losses."""
        self.all_states, history = self._called(
            self.program, self.all_states, self.all_epochs, count, rate
        )
        return history[:, :count]

    def _called(
        self, run: Callable[..., Any], state: Any, epoch: Any, count: int, rate: float
    ) -> tuple[Any, Any]:
        import jax.numpy as jnp
        import numpy as np

        rates = jnp.full(self.loop._steps, rate, jnp.float32)
        state, history = run(state, self.data, epoch, jnp.int32(0), jnp.int32(count), rates)
        return state, np.asarray(history[0])


def seconds(train: Callable[[int], Any], count: int) -> float:
    """Seconds of a step of all seeds."""
    began = time.perf_counter()
    # A rate of 0 leaves the weights as they are, so that none gets numbers that cost more.
    train(count)
    return (time.perf_counter() - began) / count


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--archs", nargs="+", default=["mlp_sigmoid", "lenet", "resnet8"])
    options.add_argument("--norms", nargs="+", default=["bn", "gn"])
    options.add_argument("--batches", nargs="+", type=int, default=[16, 128])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--precision", default="float32")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options.add_argument("--quick", action="store_true", help="to try it: one cell, one round")
    given = options.parse_args()
    if given.quick:
        given.archs, given.norms, given.batches = given.archs[:1], given.norms[:1], [16]
        given.rounds, given.seconds = 1, 0.2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from normbench.config import compose

    split = random_split(IMAGES)
    data = SimpleNamespace(train=split, validation=split, test=split)
    print(
        f"{machine()}, {given.seeds} seeds, {given.precision}; medians of {given.rounds} (range)\n"
    )
    print(
        "| arch | norm | batch | apart, ms | together, ms | gain | compiling, s | losses differ |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for arch, norm, batch in product(given.archs, given.norms, given.batches):
        cell = [f"arch={arch}", f"norm={norm}", f"batch={batch}"]
        config = compose([*cell, f"precision={given.precision}", "backend=jax"])
        print(f"| {arch} | {norm} | {batch} | {measured(config, data, given)} |", flush=True)


def measured(config: Any, data: Any, given: argparse.Namespace) -> str:
    """The figures of one cell, as the rest of a table's row."""
    import numpy as np

    group = Group(compiled_loop(config, data), given.seeds)
    began = time.perf_counter()
    together = group.together(2, rate=0.01)
    compiling = time.perf_counter() - began
    apart = np.stack(group.apart(2, rate=0.01))
    differ = np.max(np.abs(together - apart) / apart)
    count = max(1, min(group.loop._steps, round(given.seconds / seconds(group.apart, 1))))
    pairs = [
        (seconds(group.apart, count), seconds(group.together, count)) for _ in range(given.rounds)
    ]
    alone, joint = (1000 * statistics.median(each) for each in zip(*pairs, strict=True))
    gains = [one / other for one, other in pairs]
    return f"{alone:.2f} | {joint:.2f} | {shown(gains)} | {compiling:.1f} | {differ:.0e}"


if __name__ == "__main__":
    main()

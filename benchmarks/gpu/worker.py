"""A worker process of ``fast.py``: it serves one contender and is idle between requests.

Requests and answers are lines of JSON on standard input and output; each request has an action,
``do``, and gets one line in answer. A request that fails is answered with its ``error``, and the
process continues.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from common import CLASSES, compiled_loop, machine, random_split

WARM_STEPS = (
    4  # a CUDA graph of torch.compile is recorded in the second step, replayed in the third
)
SLICE = 0.2
"""Seconds of work between checks of the clock."""


class Engine:
    """normbench's own training on JAX."""

    def start(self) -> None:
        """Import what building needs, so that it does not count as build time."""
        from normbench.engine import backend

        backend.start("jax", "float32")
        backend.loop_class("jax")

    def hello(self) -> dict[str, Any]:
        import jax

        from normbench.store.provenance import version

        device = jax.devices()[0]
        return {
            "gpu": device.platform == "gpu",
            "device": device.device_kind,
            "version": f"JAX {jax.__version__}, Keras {version('keras')}",
            "machine": machine(),
        }

    def count(self, request: dict[str, Any]) -> int:
        self.start()
        from normbench.network import build_model, parameter_count

        return parameter_count(build_model(self._config(request), (32, 32, 3), CLASSES))

    def build(self, request: dict[str, Any]) -> int:
        self.loop: Any = None
        self._forget()
        split, batch_split = random_split(request["images"]), random_split(request["batch"])
        data = SimpleNamespace(train=split, validation=batch_split, test=batch_split)
        self.loop = compiled_loop(self._config(request), data)
        from normbench.network import parameter_count

        self.steps_per_epoch = request["images"] // request["batch"]
        self.place = self.epoch = 0
        return parameter_count(self.loop.model)

    def steps(self, count: int) -> float:
        """Take steps as a run does, epoch after epoch, and return their seconds."""
        import numpy as np

        start = time.perf_counter()
        while count:
            if self.place == self.steps_per_epoch:
                self.place, self.epoch = 0, self.epoch + 1
                self.loop.begin_epoch(self.epoch)
            steps = min(count, self.steps_per_epoch - self.place)
            self.loop.train(self.place, np.full(steps, 0.01, np.float32))  # blocks until done
            self.place += steps
            count -= steps
        return time.perf_counter() - start

    def release(self) -> None:
        """Do nothing: JAX cannot return cached memory."""

    def step_cost(self) -> dict[str, Any]:
        """Return the kernels, bytes and operations of the compiled step."""
        import jax.numpy as jnp
        import numpy as np
        from compiled_step import Program

        loop = self.loop
        # Lowering and compiling hit JAX's cache: the loop's first call has already done both.
        lowered = loop._run.lower(
            loop._state,
            loop._splits["train"],
            loop._epoch,
            jnp.int32(0),
            jnp.int32(0),
            jnp.asarray(np.zeros(self.steps_per_epoch, np.float32)),
        )
        compiled = lowered.compile()
        cost = Program(compiled.as_text() or "").loop_step()
        # Operations come from the uncompiled program, because after compilation XLA cannot count
        # those of library calls. XLA counts one iteration of the loop. xla_bytes is only for
        # comparison.
        return {
            "kernels": cost.kernels,
            "bytes": cost.moved,
            "flops": _entry(lowered.cost_analysis(), "flops"),
            "xla_bytes": _entry(compiled.cost_analysis(), "bytes accessed"),
        }

    def ceilings(self, copied: int, side: int) -> dict[str, float | None]:
        """Measure seconds of a launch, bytes/s of a copy and operations/s of a matrix product.

        Args:
            copied: Number of float32 values to copy.
            side: Side of the square bfloat16 matrices.
        """
        import jax
        import jax.numpy as jnp

        def rate(function: Any, amount: float, *arguments: Any) -> float:
            def seconds(times: int) -> float:
                start = time.perf_counter()
                for _ in range(times):
                    result = function(*arguments)
                result.block_until_ready()
                return (time.perf_counter() - start) / times

            seconds(2)
            return amount / statistics.median(seconds(10) for _ in range(5))

        numbers = jnp.zeros(copied, jnp.float32)
        matrices = [
            jax.random.normal(key, (side, side), jnp.bfloat16)
            for key in jax.random.split(jax.random.key(0))
        ]
        return {
            "launch": _launch_seconds(),
            "copy": rate(jax.jit(lambda x: x + 1), 2 * 4 * copied, numbers),
            "product": rate(jax.jit(jnp.matmul), 2 * side**3, *matrices),
        }

    def _forget(self) -> None:
        """Release the last network and its compiled functions."""
        if "keras" in sys.modules:
            import jax
            import keras

            keras.backend.clear_session()
            gc.collect()
            jax.clear_caches()

    @staticmethod
    def _config(request: dict[str, Any]) -> Any:
        from normbench.config import compose

        width = request.get("width")
        return compose(
            [
                f"arch={request['arch']}",
                f"norm={request['norm']}",
                f"batch={request.get('batch', 128)}",
                f"precision={request.get('precision', 'mixed_bfloat16')}",
                "backend=jax",
                *([f"arch.width={width}"] if width else []),
            ]
        )


class Torch:
    """PyTorch, eager or compiled, in one of its two memory formats.

    Args:
        channels_last: Use channels_last instead of the contiguous format.
        compiled: Options of ``torch.compile``; None for eager mode.
    """

    def __init__(self, channels_last: bool, compiled: dict[str, Any] | None) -> None:
        self.channels_last = channels_last
        self.compiled = compiled

    def start(self) -> None:
        """Import what building needs, and release the last network."""
        import torch
        import torch_networks  # noqa: F401

        self.trainer: Any = None
        if self.compiled is not None:
            torch.compiler.reset()  # else the next network would be compiled as a variant of it

    def hello(self) -> dict[str, Any]:
        import torch

        gpu = torch.cuda.is_available()
        device = torch.cuda.get_device_name(0) if gpu else "CPU"
        return {"gpu": gpu, "device": device, "version": f"PyTorch {torch.__version__}"}

    def count(self, request: dict[str, Any]) -> int:
        from torch_networks import parameter_count

        return parameter_count(self._network(request))

    def build(self, request: dict[str, Any]) -> int:
        from torch_networks import Trainer, parameter_count

        self.release()
        model = self._network(request)
        split = random_split(request["images"])
        # A rehearsal skips code generation, which takes a minute per network on a CPU.
        compiled = self.compiled
        if compiled is not None and request.get("rehearsal"):
            compiled = {"backend": "aot_eager"}
        self.trainer = Trainer(
            model,
            request["batch"],
            split.images,
            split.labels,
            self.channels_last,
            compiled,
            half=request["precision"] == "mixed_bfloat16",
        )
        return parameter_count(model)

    def steps(self, count: int) -> float:
        return self.trainer.steps(count)

    def release(self) -> None:
        """Release cached memory for the other contenders."""
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @staticmethod
    def _network(request: dict[str, Any]) -> Any:
        from torch_networks import NETWORKS

        width = request.get("width")
        options = {"width": width} if width else {}
        return NETWORKS[request["arch"]](request["norm"], CLASSES, **options)


CONTENDERS: dict[str, Callable[[], Any]] = {
    "engine": Engine,
    "eager": lambda: Torch(False, None),
    "eager-channels-last": lambda: Torch(True, None),
    "compile": lambda: Torch(True, {}),
    "compile-reduce-overhead": lambda: Torch(True, {"mode": "reduce-overhead"}),
}


class Server:
    """Answer the requests to one contender."""

    def __init__(self, contender: Any) -> None:
        self.contender = contender
        self.chunk = self.batch = 1

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        action = request.pop("do")
        if action == "build":
            return self.build(request)
        if action == "go":
            return self.go(request["seconds"])
        if action == "count":
            return {"parameters": self.contender.count(request)}
        return getattr(self.contender, action)(**request)

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        self.batch = request["batch"]
        self.contender.start()
        start = time.perf_counter()
        parameters = self.contender.build(request)
        self.contender.steps(WARM_STEPS)
        seconds = time.perf_counter() - start
        self.chunk = max(1, round(SLICE * WARM_STEPS / self.contender.steps(WARM_STEPS)))
        answer = {"parameters": parameters, "ready": seconds}
        if request.get("cost") and isinstance(self.contender, Engine):
            answer["cost"] = self.contender.step_cost()
        self.contender.release()
        return answer

    def go(self, seconds: float) -> dict[str, Any]:
        self.contender.steps(2)  # allocate the memory that release() returned
        count, seconds_spent = 0, 0.0
        while seconds_spent < seconds:
            seconds_spent += self.contender.steps(self.chunk)
            count += self.chunk * self.batch
        self.contender.release()
        return {"rate": count / seconds_spent}


def _launch_seconds() -> float | None:
    """Return the seconds that one more tiny kernel adds to an iteration of a ``lax`` loop.

    This is the difference between a short and a long chain of kernels in the loop's body, so the
    loop's own overhead cancels. None if the compiler makes all chains equally long.
    """
    import jax.numpy as jnp
    from jax import lax

    links = (
        lambda x: lax.optimization_barrier(jnp.sin(x) + 1),
        lambda x: lax.sort(-x),  # on a CPU, a barrier does not prevent fusion, but a sort does
    )
    for link in links:
        (short_seconds, short_kernels), (long_seconds, long_kernels) = (
            _turn(link, 16),
            _turn(link, 144),
        )
        if long_kernels > short_kernels:
            return (long_seconds - short_seconds) / (long_kernels - short_kernels)
    return None


def _turn(link: Callable[[Any], Any], length: int) -> tuple[float, int]:
    """Return the seconds and kernels of an iteration of a loop over a chain of ``link``."""
    import jax
    import jax.numpy as jnp
    from compiled_step import Program
    from jax import lax

    def body(_: Any, x: Any) -> Any:
        for _ in range(length):
            x = link(x)
        return x

    loop = jax.jit(lambda x, turns: lax.fori_loop(0, turns, body, x))
    start = jnp.zeros(128, jnp.float32)
    compiled = loop.lower(start, jnp.int32(0)).compile()
    turns, seconds = 200, []
    for _ in range(6):
        start_time = time.perf_counter()
        compiled(start, jnp.int32(turns)).block_until_ready()
        seconds.append((time.perf_counter() - start_time) / turns)
    return statistics.median(seconds[1:]), Program(compiled.as_text() or "").loop_step().kernels


def _entry(costs: Any, name: str) -> float | None:
    """Return one number of a cost analysis, which may be a list, or missing on some backends."""
    cost = costs[0] if isinstance(costs, list) and costs else costs
    return cost.get(name) if isinstance(cost, dict) else None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep output of libraries out of the answers
    server = Server(CONTENDERS[sys.argv[1]]())
    for line in sys.stdin:
        try:
            print(json.dumps(server.answer(json.loads(line))), file=answers)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            print(json.dumps({"error": f"{type(error).__name__}: {lines[0][:200]}"}), file=answers)


if __name__ == "__main__":
    main()

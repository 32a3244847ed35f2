"""A process that ``gpu.py`` measures in: one contender, which sits idle until it is asked.

Requests and answers are lines of JSON on standard input and output; each request names what to
``do`` and is answered by one line, ``train`` by one for each epoch and a last one. What fails is
answered by its ``error``, and the process goes on.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from common import CLASSES, compiled_loop, machine, random_split

WARM_STEPS = (
    4  # a CUDA graph of torch.compile is recorded in the second step, replayed in the third
)
SLICE = 0.2
"""Seconds of work after which a measurement looks at the clock."""


class Engine:
    """normbench's own training on JAX."""

    def start(self) -> None:
        """Import what building needs, which is no time to compile."""
        from normbench.engine import backend

        backend.start("jax", "mixed_bfloat16")
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
        split, few = random_split(request["images"]), random_split(request["batch"])
        data = SimpleNamespace(train=split, validation=few, test=few)
        self.loop = compiled_loop(self._config(request), data)
        from normbench.network import parameter_count

        self.steps_per_epoch = request["images"] // request["batch"]
        self.place = self.epoch = 0
        return parameter_count(self.loop.model)

    def steps(self, count: int) -> float:
        """Take steps as a run does, epoch after epoch, and return their seconds."""
        import numpy as np

        began = time.perf_counter()
        while count:
            if self.place == self.steps_per_epoch:
                self.place, self.epoch = 0, self.epoch + 1
                self.loop.begin_epoch(self.epoch)
            part = min(count, self.steps_per_epoch - self.place)
            self.loop.train(self.place, np.full(part, 0.01, np.float32))  # waits for its end
            self.place += part
            count -= part
        return time.perf_counter() - began

    def release(self) -> None:
        """JAX keeps its memory, and there is no way to have it give it back."""

    def train(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Train on real images to the end of the schedule; a line for each epoch."""
        import numpy as np

        config = self._config(request)
        from normbench.engine import backend

        backend.start("jax", config.precision)
        from normbench.data.split import channel_statistics
        from normbench.engine.augment import Images
        from normbench.engine.loop import LoopSettings
        from normbench.engine.optimizer import SGD
        from normbench.engine.schedule import cosine
        from normbench.engine.setup import initialize_from
        from normbench.network import build_model

        with np.load(request["data"]) as arrays:
            train, test = (
                SimpleNamespace(
                    images=arrays[f"{split}_images"][: request["limit"]],
                    labels=arrays[f"{split}_labels"][: request["limit"]].astype(np.int32),
                )
                for split in ("train", "test")
            )
        mean, std = channel_statistics(train.images)
        images = Images(mean, std, crop_padding=2, flip=True)
        began = time.perf_counter()
        model = build_model(config, train.images.shape[1:], CLASSES)
        initialize_from(model, train.images, images)
        settings = LoopSettings(
            batch=config.batch,
            eval_batch=config.eval_batch,
            seed=config.seed,
            smoothing=request["smoothing"],
            optimizer=SGD(
                momentum=0.9, nesterov=True, weight_decay=request["weight_decay"], agc=0.0
            ),
            images=images,
            scaled_loss=False,
        )
        make: Any = backend.loop_class("jax")
        loop = make(model, SimpleNamespace(train=train, validation=test, test=test), settings)
        loop.compile()
        loop.evaluate("test")
        yield {"preparation": time.perf_counter() - began}
        steps = len(train.labels) // config.batch
        rates = cosine(request["epochs"] * steps, warmup=request["warmup"], final=0.0)
        rates *= np.float32(request["rate"])
        training = 0.0
        for epoch in range(request["epochs"]):
            began = time.perf_counter()
            loop.begin_epoch(epoch)
            taken = loop.train(0, rates[epoch * steps : (epoch + 1) * steps])
            training += time.perf_counter() - began
            began = time.perf_counter()
            loss, accuracy = loop.evaluate("test")
            yield {
                "epoch": epoch + 1,
                "training": training,
                "evaluation": time.perf_counter() - began,
                "train_loss": float(taken.loss.mean()),
                "loss": loss,
                "accuracy": accuracy,
            }
        yield {"done": True}

    def _forget(self) -> None:
        """Let go of the last network and what was compiled for it."""
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
                "precision=mixed_bfloat16",
                "backend=jax",
                *([f"arch.width={width}"] if width else []),
                *request.get("overrides", []),
            ]
        )


class Torch:
    """PyTorch, eager or compiled, in one of its two memory layouts.

    Args:
        channels_last: Which of them.
        compiled: Options of ``torch.compile``; None for eager mode.
    """

    def __init__(self, channels_last: bool, compiled: dict[str, Any] | None) -> None:
        self.channels_last = channels_last
        self.compiled = compiled

    def start(self) -> None:
        """As :meth:`Engine.start`; and let go of the last network."""
        import torch
        import torch_networks  # noqa: F401

        self.trainer: Any = None
        if self.compiled is not None:
            torch.compiler.reset()  # or the next network would be compiled as a variant of it

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
        # Rehearsed without generating code, which takes a minute for a network on a CPU.
        compiled = self.compiled
        if compiled is not None and request.get("rehearsal"):
            compiled = {"backend": "aot_eager"}
        self.trainer = Trainer(
            model, request["batch"], split.images, split.labels, self.channels_last, compiled
        )
        return parameter_count(model)

    def steps(self, count: int) -> float:
        return self.trainer.steps(count)

    def release(self) -> None:
        """Give cached memory back, which the other contenders may need."""
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
    """Answers requests to one contender."""

    def __init__(self, contender: Any) -> None:
        self.contender = contender
        self.chunk = self.batch = 1

    def answers(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        do = request.pop("do")
        if do == "build":
            yield self.build(request)
        elif do == "go":
            yield self.go(request["seconds"])
        elif do == "count":
            yield {"parameters": self.contender.count(request)}
        elif do == "train":
            yield from self.contender.train(request)
        else:
            yield getattr(self.contender, do)(**request)

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        self.batch = request["batch"]
        self.contender.start()
        began = time.perf_counter()
        parameters = self.contender.build(request)
        self.contender.steps(WARM_STEPS)
        ready = time.perf_counter() - began
        self.chunk = max(1, round(SLICE * WARM_STEPS / self.contender.steps(WARM_STEPS)))
        self.contender.release()
        return {"parameters": parameters, "ready": ready}

    def go(self, seconds: float) -> dict[str, Any]:
        self.contender.steps(2)  # takes memory that was given back
        count, spent = 0, 0.0
        while spent < seconds:
            spent += self.contender.steps(self.chunk)
            count += self.chunk * self.batch
        self.contender.release()
        return {"rate": count / spent}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    server = Server(CONTENDERS[sys.argv[1]]())
    for line in sys.stdin:
        try:
            for answer in server.answers(json.loads(line)):
                print(json.dumps(answer), file=answers)
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            print(json.dumps({"error": f"{type(error).__name__}: {said[0][:200]}"}), file=answers)


if __name__ == "__main__":
    main()

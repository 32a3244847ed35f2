"""The engine with a few NumPy numbers for a network: everything but the framework is the real code.

``install()`` replaces Keras with it in this process. A run's weights depend only on its seed, its
learning rates and its steps, so the result of a killed and resumed run can be compared with that of
an undisturbed one.

The environment variable ``FAKE_FAULTS`` may name a folder. A file there, named after a run,
contains ``kind count``; each start of that run decrements the count and causes the fault ``kind``:
``raise``, ``abort``, ``kill``, ``exit``, ``memory``, ``gpu-memory``, ``disk``, ``refuse`` or
``print``.
Every epoch of every run is logged in ``<folder>/epochs.log``.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STEP_SECONDS = float(os.environ.get("FAKE_STEP_SECONDS", "0.002"))


class ResourceExhaustedError(Exception):
    """Has the name of TensorFlow's exception."""


def install() -> None:
    keras = types.ModuleType("keras")
    keras.ops = types.SimpleNamespace()
    keras.backend = types.SimpleNamespace(clear_session=lambda free_memory: None)
    keras.saving = types.SimpleNamespace(get_custom_objects=dict)
    keras.Model = object
    sys.modules["keras"] = keras
    model = types.ModuleType("normbench.network")
    model.build_model = build_model
    model.parameter_count = lambda model: 3
    model.refuse_too_large = lambda *arguments: None  # fake networks have no layers
    model.layers_within = lambda network: []
    sys.modules["normbench.network"] = model

    from normbench.engine import backend

    backend.on_cpu = lambda: True
    import_module("normbench.engine.setup").initialize_from = lambda *arguments: None
    for name in ("setup", "train"):
        import_module(f"normbench.engine.{name}").load_dataset = load
    _fill_disk()
    backend.start = start
    backend.loop_class = lambda name: make_loop


def _fill_disk() -> None:
    """Make checkpoints fail once ``FAKE_DISK_AFTER`` have been written."""
    limit = os.environ.get("FAKE_DISK_AFTER")
    if limit is None:
        return
    from normbench.store import files

    count, write = [int(limit)], files.write_atomic

    def write_until_full(path: Path, put: Any) -> None:
        count[0] -= path.suffix == ".npz"
        if count[0] < 0:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise files.store_error("write", path, error) from error
        write(path, put)

    files.write_atomic = write_until_full


def load(config: Any) -> Any:
    size = config.dataset["train_size"]
    train = types.SimpleNamespace(labels=np.zeros(size), images=np.zeros((size, 8, 8, 1), np.uint8))
    return types.SimpleNamespace(
        name="digits",
        train=train,
        shape=(8, 8, 1),
        classes=10,
        mean=[0.5],
        std=[0.5],
        fingerprint=None,
        streamed=False,
    )


def start(backend: str, precision: str) -> dict[str, Any]:
    return {"backend": backend, "precision": precision, "jit_compile": False,
            "deterministic": True, "threads": 1}  # fmt: skip


def build_model(config: Any, shape: Any, classes: int) -> Any:
    _inject(fault_of(config.run_name))
    return types.SimpleNamespace(config=config, weights=np.full(3, float(config.seed)))


def fault_of(name: str) -> str:
    """Decrement the number of faults left for a run, and return their kind."""
    folder = os.environ.get("FAKE_FAULTS")
    path = Path(folder or "/nonexistent") / name
    if not path.is_file():
        return ""
    kind, count = path.read_text().split()
    if count == "0":
        return ""
    path.write_text(f"{kind} {int(count) - 1}")
    return kind


def _inject(kind: str) -> None:
    if kind == "refuse":
        from normbench.errors import UserError

        raise UserError("norm=fake cannot be built")
    if kind == "exit":
        os._exit(3)
    if kind == "print":
        print("a library prints to standard output")
        os.write(1, b"and so does native code\n")
    _pending.append(kind)


_pending: list[str] = []


def _fail() -> None:
    kind = _pending.pop() if _pending else ""
    _pending.clear()
    if kind == "raise":
        raise RuntimeError("something broke\nin two lines")
    if kind == "abort":
        os.write(2, b"F0000 xla: a check failed\n")
        os.abort()
    if kind == "kill":
        os.kill(os.getpid(), 9)
    if kind == "memory":
        raise MemoryError("no room")
    if kind == "gpu-memory":
        raise ResourceExhaustedError("OOM when allocating tensor")
    if kind == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")


def make_loop(model: Any, dataset: Any, settings: Any) -> Any:
    from normbench.engine.loop import Loop, Steps

    class FakeLoop(Loop):
        backend = "tensorflow"

        def __init__(self) -> None:
            self.model, self.settings = model, settings
            self.weights = model.weights.copy()
            self.epoch = 0

        def trace(self) -> None:
            pass

        def compile(self) -> None:
            pass

        def begin_epoch(self, epoch: int) -> None:
            self.epoch = epoch
            if epoch == 1:
                _fail()  # after the first checkpoint
            room = os.environ.get("FAKE_ROOM")
            if room and settings.micro_batch > int(room):
                raise ResourceExhaustedError("OOM when allocating tensor")

        def train(self, first: int, rates: np.ndarray) -> Steps:
            for index, rate in enumerate(rates):
                time.sleep(STEP_SECONDS)
                step = self.epoch * 1000 + first + index + self.settings.seed
                self.weights = np.sin(self.weights * 1.1 + step * float(rate) + [0, 1, 2])
            count = len(rates)
            return Steps(np.full(count, abs(self.weights[0]), np.float32),
                         np.ones(count, np.int32), np.ones(count, np.float32))  # fmt: skip

        def recompute(self) -> None:
            _log_epoch(self)

        def evaluate(self, split: str) -> tuple[float, float]:
            return float(abs(self.weights[1])), float(abs(self.weights[2]))

        def state(self) -> dict[str, np.ndarray]:
            return {"model/000/weights": self.weights.copy()}

        def load(self, state: dict[str, np.ndarray]) -> None:
            self.weights = state["model/000/weights"].copy()

        def devices(self) -> list[str]:
            return ["/device:CPU:0"]

    FakeLoop.__abstractmethods__ = frozenset()  # type: ignore  # methods no test here calls
    return FakeLoop()


def _log_epoch(loop: Any) -> None:
    folder = os.environ.get("FAKE_FAULTS")
    if folder:
        with (Path(folder) / "epochs.log").open("a") as file:
            file.write(f"{loop.settings.seed} {loop.epoch} {os.getpid()}\n")


if __name__ == "__main__":
    install()
    from normbench.sweep.executors import worker

    worker.refusal = lambda config, warm, built, here: (
        f"seed {config.seed} is refused"
        if os.environ.get("FAKE_REFUSE") == str(config.seed)
        else ""
    )
    worker.memory = lambda config, warm: 4 << 30
    sys.exit(worker.main())

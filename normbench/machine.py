"""What the frameworks see on this machine, as one line of JSON.

Run as a program of its own (``python -m normbench.machine``), so that an import that hangs,
aborts or takes a GPU's memory does so in a process that can be ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

#: Stands before the line of JSON: frameworks write on standard output, too.
MARK = "normbench-frameworks:"


def _tensorflow() -> dict[str, Any]:
    tensorflow = import_module("tensorflow")
    found: dict[str, Any] = {
        "version": tensorflow.__version__,
        "cuda": bool(tensorflow.test.is_built_with_cuda()),
        "gpus": [],
    }
    for device in tensorflow.config.list_physical_devices("GPU"):
        details = tensorflow.config.experimental.get_device_details(device)
        capability = details.get("compute_capability")
        found["gpus"].append(
            {
                "name": details.get("device_name", device.name),
                "capability": ".".join(map(str, capability)) if capability else None,
            }
        )
    return found


def _keras() -> dict[str, Any]:
    keras = import_module("keras")
    return {"version": keras.__version__, "backend": keras.backend.backend()}


def _jax() -> dict[str, Any]:
    return {"version": import_module("jax").__version__}


def _nvml() -> list[dict[str, Any]]:
    nvml = import_module("pynvml")
    nvml.nvmlInit()
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        gpus.append(
            {
                "name": name.decode() if isinstance(name, bytes) else name,
                "total": int(memory.total),
                "free": int(memory.free),
            }
        )
    return gpus


def probe() -> dict[str, Any]:
    """Import each framework and return what it says of itself, or the error it ends in."""
    parts: dict[str, Callable[[], Any]] = {
        "nvml": _nvml,  # before TensorFlow, which takes memory
        "tensorflow": _tensorflow,
        "keras": _keras,
        "jax": _jax,
    }
    found: dict[str, Any] = {}
    for name, look in parts.items():
        began = time.perf_counter()
        value: Any
        try:
            value = look()
        except Exception as error:  # whatever a broken installation raises is what is asked for
            lines = str(error).strip().splitlines()
            value = {"error": ": ".join([type(error).__name__, *lines[:1]])}
        if isinstance(value, dict):
            value["seconds"] = round(time.perf_counter() - began, 2)
        found[name] = value
    return found


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(f"\n{MARK}{json.dumps(probe())}", flush=True)

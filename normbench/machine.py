"""This machine: its processor, memory and GPUs, and what the frameworks see of it.

``python -m normbench.machine`` imports the frameworks and prints what they see as one line of JSON.
An import may hang, abort or take a GPU's memory, so it is done in a process that can be killed.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def host_name() -> str:
    """Return this machine's name in records: ``NORMBENCH_HOST`` if set, else its host name."""
    return os.environ.get("NORMBENCH_HOST") or socket.gethostname()


_HALF = {
    "mixed_bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "mixed_float16": {"avx512_fp16", "asimdhp"},
}
"""Processor flags for arithmetic in half precision, as Linux names them."""


def instructions() -> frozenset[str]:
    """Return Linux's names for the processor's instruction sets; empty on other systems."""
    return frozenset(_cpuinfo("flags", "features").split())


def is_native(precision: str) -> bool:
    """Return whether the processor has instructions for a precision; True if unknown."""
    if precision not in _HALF:
        return True
    flags = instructions()
    return not flags or bool(_HALF[precision] & flags)


def processor() -> str:
    """Return the processor's name as the system reports it, else its architecture."""
    name = _cpuinfo("model name", "cpu model", "hardware")
    return name or platform.processor() or platform.machine()


def _cpuinfo(*keys: str) -> str:
    """Return the first value that Linux lists under one of the keys; empty if there is none."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip().lower() in keys and value.strip():
                    return value.strip()
    except OSError:  # not Linux
        pass
    return ""


def machine_memory() -> int:
    """Return the bytes of memory and swap that this machine or this container may use."""
    import psutil

    return physical_memory() + psutil.swap_memory().total


def physical_memory() -> int:
    """Return the bytes of memory, without swap, that this machine or this container may use."""
    import psutil

    total, limit = psutil.virtual_memory().total, container_limit()
    return min(total, limit or total)


_SMALLEST_GPU = 2 << 30  # bytes; smaller requests fit on any GPU, so the driver is not queried


def image_memory(needed: int) -> int:
    """Return the bytes of memory available for images: the machine's, or its smallest GPU's.

    Args:
        needed: Bytes needed. GPUs are queried only if the answer can matter, because their driver
            takes up to a second.
    """
    memory = physical_memory()
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if is_hidden or not _SMALLEST_GPU < needed <= memory:
        return memory
    return min([memory, *(gpu["total"] for gpu in nvidia_smi() if gpu["total"])])


def container_limit() -> int | None:
    """Return the container's memory limit in bytes, if there is one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:  # cgroup v1 writes a huge number for no limit
            return int(text)
    return None


def nvidia_smi() -> list[dict[str, Any]]:
    """Return the GPUs that NVIDIA's driver knows: ``name``, ``total`` and ``free`` bytes."""
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no driver on this machine, or a broken one
        return []
    gpus = []
    for line in process.stdout.splitlines():
        name, *numbers = (field.strip() for field in line.rsplit(",", 2))
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            total, free = (int(number) << 20 for number in numbers)
            gpus.append({"name": name, "total": total, "free": free})
        elif name:
            gpus.append({"name": name, "total": None, "free": None})
    return gpus


# --- what the frameworks see --------------------------------------------------------------------

MARK = "normbench-frameworks:"
"""Prefix of the line of JSON, because frameworks write to standard output, too."""


def _tensorflow() -> dict[str, Any]:
    tensorflow = import_module("tensorflow")
    facts: dict[str, Any] = {
        "version": tensorflow.__version__,
        "cuda": bool(tensorflow.test.is_built_with_cuda()),
        "gpus": [],
    }
    for device in tensorflow.config.list_physical_devices("GPU"):
        details = tensorflow.config.experimental.get_device_details(device)
        capability = details.get("compute_capability")
        facts["gpus"].append(
            {
                "name": details.get("device_name", device.name),
                "capability": ".".join(map(str, capability)) if capability else None,
            }
        )
    return facts


def _keras() -> dict[str, Any]:
    if find_spec("tensorflow") is None:
        os.environ["KERAS_BACKEND"] = "jax"  # as a run does, whatever the environment says
    keras = import_module("keras")
    return {"version": keras.__version__, "backend": keras.backend.backend()}


def _jax() -> dict[str, Any]:
    jax = import_module("jax")
    facts: dict[str, Any] = {"version": jax.__version__}
    if find_spec("tensorflow") is None:  # otherwise _tensorflow() lists the GPUs
        facts["gpus"] = [
            {"name": device.device_kind, "capability": getattr(device, "compute_capability", None)}
            for device in jax.devices()
            if device.platform == "gpu"
        ]
    return facts


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
    """Import each framework and return its version and devices, or the error that it raises."""
    frameworks: dict[str, Callable[[], Any]] = {
        "nvml": _nvml,  # before TensorFlow, which takes memory
        "tensorflow": _tensorflow,
        "keras": _keras,
        "jax": _jax,
    }
    facts: dict[str, Any] = {}
    for name, inspect in frameworks.items():
        start = time.perf_counter()
        value: Any
        try:
            value = inspect()
        except Exception as error:  # a broken installation may raise anything
            lines = str(error).strip().splitlines()
            value = {"error": ": ".join([type(error).__name__, *lines[:1]])}
        if isinstance(value, dict):
            value["seconds"] = round(time.perf_counter() - start, 2)
        facts[name] = value
    return facts


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes most of a GPU
    print(f"\n{MARK}{json.dumps(probe())}", flush=True)

"""Slots of this machine, each of which trains one cell at a time on a GPU or on some cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from normbench.machine import nvidia_smi

#: Default limit on the number of cells at a time on one GPU; more slow each other down.
MOST_ON_A_GPU = 8

#: Fraction of a GPU's free memory that cells may use.
SHARE = 0.9


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use.

    Attributes:
        id: Its name in ``CUDA_VISIBLE_DEVICES``.
        free: Free memory in bytes; None if unknown.
    """

    id: str
    free: int | None


@dataclass(frozen=True)
class Slot:
    """Room for one cell at a time.

    Attributes:
        name: Such as ``gpu 0``, ``gpu 0.1`` (the second slot of that GPU) or ``cpu 1``.
        device: Name of the device; slots on the same device share its memory.
        cores: Cores that the cell may use; empty for all.
        environment: Environment variables of the slot's worker.
    """

    name: str
    device: str
    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        return self.device.startswith("gpu")


def visible_gpus(
    driver: Callable[[], list[dict[str, Any]]] = nvidia_smi,
    environment: Mapping[str, str] = os.environ,
) -> list[Gpu]:
    """Return those of the driver's GPUs that ``CUDA_VISIBLE_DEVICES`` makes visible."""
    devices = environment.get("CUDA_VISIBLE_DEVICES")
    if devices is not None and devices.strip() in ("", "-1"):
        return []
    driver_gpus = driver()
    if devices is None:
        return [Gpu(str(index), gpu["free"]) for index, gpu in enumerate(driver_gpus)]
    gpus = []
    for name in devices.split(","):
        index = int(name) if name.strip().isdigit() else None
        if index is not None and index >= len(driver_gpus):
            break  # like CUDA, which ignores everything after a GPU that does not exist
        gpus.append(Gpu(name.strip(), None if index is None else driver_gpus[index]["free"]))
    return gpus


def on_gpus(
    gpus: Sequence[Gpu], jobs_per_gpu: Sequence[int], most: int, cores: Sequence[int] = ()
) -> list[Slot]:
    """Create slots on GPUs, one on each GPU before a second one on any.

    Args:
        gpus: GPUs to use.
        jobs_per_gpu: Number of slots on each GPU.
        most: Largest total number of slots.
        cores: Cores to divide among the slots; if empty, each slot may use all.
    """
    slots = []
    for turn in range(max(jobs_per_gpu, default=0)):
        for gpu, jobs in zip(gpus, jobs_per_gpu, strict=True):
            if turn < jobs:
                slots.append(
                    Slot(
                        f"gpu {gpu.id}" + (f".{turn}" if turn else ""),
                        f"gpu {gpu.id}",
                        environment={
                            "CUDA_VISIBLE_DEVICES": gpu.id,
                            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
                            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                        },
                    )
                )
    slots = slots[:most]
    if not cores:
        return slots
    # Otherwise each worker would compile and prepare batches with as many threads as cores.
    shares = _shares(cores, len(slots))
    return [replace(slot, cores=share) for slot, share in zip(slots, shares, strict=True)]


def on_cores(available: Sequence[int], workers: int) -> list[Slot]:
    """Divide cores among ``workers`` slots, adjacent ones together; surplus slots share cores."""
    environment = {"CUDA_VISIBLE_DEVICES": "-1"}
    return [
        Slot(f"cpu {index}", "cpu", cores, environment)
        for index, cores in enumerate(_shares(available, workers))
    ]


def _shares(cores: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Divide cores into ``count`` shares of adjacent cores, at least one core each."""
    shares = []
    for index in range(count):
        first = index * len(cores) // count
        last = max((index + 1) * len(cores) // count, first + 1)
        shares.append(tuple(cores[first:last]))
    return shares


def fitting(gpu: Gpu, need: int, core_count: int) -> int:
    """Return how many cells of ``need`` bytes each fit on a GPU, but at least one."""
    if gpu.free is None:
        return 1
    return max(1, min(int(SHARE * gpu.free) // need, MOST_ON_A_GPU, core_count))

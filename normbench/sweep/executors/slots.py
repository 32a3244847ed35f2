"""Where a machine's runs go: its GPUs, each with room for some, or else shares of its cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normbench.machine import nvidia_smi

#: Most runs at a time on one GPU where nobody says otherwise; more slow one another down.
MOST_ON_A_GPU = 8

#: Share of a GPU's free memory that is given away.
SHARE = 0.9


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use.

    Attributes:
        id: As ``CUDA_VISIBLE_DEVICES`` names it.
        free: Bytes; None where the driver does not say.
    """

    id: str
    free: int | None


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time.

    Attributes:
        name: As ``gpu 0``, ``gpu 0.1`` (the second run on it), ``cpu 1``.
        device: What slots share that take memory from each other.
        cores: That the run may use; all of them where empty.
        environment: That its worker is started with.
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
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves of those the driver lists."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and chosen.strip() in ("", "-1"):
        return []
    known = driver()
    if chosen is None:
        return [Gpu(str(index), gpu["free"]) for index, gpu in enumerate(known)]
    gpus = []
    for name in chosen.split(","):
        index = int(name) if name.strip().isdigit() else None
        if index is not None and index >= len(known):
            break  # CUDA, too, stops at the first that does not exist
        gpus.append(Gpu(name.strip(), None if index is None else known[index]["free"]))
    return gpus


def on_gpus(gpus: Sequence[Gpu], jobs_per_gpu: Sequence[int], most: int) -> list[Slot]:
    """Lay out slots on GPUs, the first of every GPU before the second of any.

    Args:
        gpus: To be used.
        jobs_per_gpu: For each of them.
        most: Slots that are wanted at all.
    """
    laid = []
    for turn in range(max(jobs_per_gpu, default=0)):
        for gpu, jobs in zip(gpus, jobs_per_gpu, strict=True):
            if turn < jobs:
                laid.append(
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
    return laid[:most]


def on_cores(available: Sequence[int], workers: int) -> list[Slot]:
    """Share cores among ``workers`` slots, neighbours together; more slots than cores share one."""
    count = len(available)
    laid = []
    for index in range(workers):
        first = index * count // workers
        last = max((index + 1) * count // workers, first + 1)
        laid.append(
            Slot(
                f"cpu {index}",
                "cpu",
                tuple(available[first:last]),
                {"CUDA_VISIBLE_DEVICES": "-1"},
            )
        )
    return laid


def fitting(gpu: Gpu, need: int, core_count: int) -> int:
    """How many runs that each take ``need`` bytes fit on a GPU; at least one is tried."""
    if gpu.free is None:
        return 1
    return max(1, min(int(SHARE * gpu.free) // need, MOST_ON_A_GPU, core_count))

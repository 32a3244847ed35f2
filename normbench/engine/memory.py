"""Memory: how much a run needs at least, how much there is, and errors that say it is spent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from normbench.errors import UserError
from normbench.formats import count, size

if TYPE_CHECKING:
    import keras

    from normbench.config import Config


class TooLarge(UserError):
    """A run needs more memory than there is."""


COPIES = 4
"""Times that a run holds its weights at least: themselves, their gradients, the optimizer's state
and the arrays of a checkpoint."""


def machine_memory() -> int:
    """Return the bytes of memory and swap that this machine, or this container, may use."""
    import psutil

    total, limit = psutil.virtual_memory().total, container_limit()
    return min(total, limit or total) + psutil.swap_memory().total


def container_limit() -> int | None:
    """Return the container's memory limit in bytes, if there is one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:  # version 1 writes a huge number for none
            return int(text)
    return None


def refuse_too_large(config: Config, model: keras.Model, on_cpu: bool) -> None:
    """Refuse a network that this machine has not the memory to train.

    The estimate is a lower bound: copies of the weights and, on a CPU, what the backward pass keeps
    of one mini-batch. A GPU says itself that its memory is spent, and ``accumulate=auto`` may split
    the batch.

    Args:
        config: Of the run.
        model: Its network; may have been built without weights.
        on_cpu: Whether the run computes on a CPU.

    Raises:
        TooLarge: It needs more than there is.
    """
    room = machine_memory()
    network = f"norm={config.norm_name} in arch={config.arch['name']}"
    weights = sum(math.prod(variable.shape) for variable in model.variables)
    need = 4 * COPIES * weights
    if need > room:
        raise TooLarge(
            f"{network} has {count(weights)} weights, which take at least {size(need)} in "
            f"training: this machine has {size(room)} of memory"
        )
    if not on_cpu or config.accumulate == "auto":
        return
    from normbench.network import layer_costs

    try:
        kept = sum(layer.kept_bytes for layer in layer_costs(model))
    except ValueError:  # an output of unknown size: nothing can be estimated
        return
    need += kept * config.micro_batch
    if need > room:
        raise TooLarge(
            f"{network} takes at least {size(need)} in training with batch={config.batch} "
            f"({size(kept)} an image): this machine has {size(room)} of memory; use a smaller "
            "batch, or accumulate=N to train it in N parts"
        )


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception, or one that it came from, tells that memory was short.

    TensorFlow and JAX raise types of their own; they are told by name, so that neither is imported
    here.
    """
    return any(
        isinstance(each, MemoryError)
        or type(each).__name__ == "ResourceExhaustedError"
        or ("RESOURCE_EXHAUSTED" in str(each) and "memory" in str(each).lower())
        for each in chain(error)
    )

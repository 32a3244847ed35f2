"""Whether an error says that a device's or the machine's memory is spent."""

from __future__ import annotations

from collections.abc import Iterator


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

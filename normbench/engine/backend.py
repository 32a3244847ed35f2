"""The backend of this process: chosen once, before Keras is imported."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from normbench.engine import threads
from normbench.errors import NormbenchError

if TYPE_CHECKING:
    from normbench.engine.loop import Loop

Spec = tuple[tuple[int, ...], str]
"""Shape and data type of a tensor."""

_OPTIONAL = ("jax", "matplotlib", "pandas", "sklearn")
"""What Keras and TensorFlow import if it is there, for uses that no run has: 2 of 4 seconds."""


def start(backend: str, precision: str) -> dict[str, Any]:
    """Make this process run Keras on ``backend`` under the dtype policy ``precision``.

    On a CPU the backend is told to compute in a fixed order, which on a GPU would cost speed, and
    TensorFlow to divide its threads (:mod:`normbench.engine.threads`).

    Returns:
        What a run's record says of it: backend, precision, jit_compile, deterministic, threads,
        shards.

    Raises:
        NormbenchError: Keras already runs on another backend here, or the backend is missing.
    """
    running = _running_backend()
    if running not in (None, backend):
        raise NormbenchError(
            f"this process already runs Keras on {running}: start another for backend={backend}"
        )
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with _native_messages_held(), _hidden([each for each in _OPTIONAL if each != backend]):
        try:
            import keras
        except ModuleNotFoundError as error:
            if backend == "jax" and error.name in ("jax", "jaxlib"):
                raise NormbenchError(
                    "backend=jax needs JAX: pip install 'normbench[jax]'"
                ) from None
            raise
        computes = _started_tensorflow() if backend == "tensorflow" else _started_jax()
    if not threads.are_divided(computes["shards"]):
        threads.warn()
    keras.config.set_dtype_policy(precision)
    keras.config.set_image_data_format("channels_last")
    return {
        "backend": backend,
        "precision": precision,
        "jit_compile": backend == "jax",
        **computes,
    }


def loop_class(backend: str) -> type[Loop]:
    """Return the :class:`Loop` of a backend."""
    if backend == "tensorflow":
        from normbench.engine.loop_tensorflow import TensorFlowLoop

        return TensorFlowLoop
    from normbench.engine.loop_jax import JaxLoop

    return JaxLoop


def on_cpu() -> bool:
    """Return whether this process computes on a CPU; its backend must have been started."""
    if _running_backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def trace(function: Callable[[Any], Any], specs: Sequence[Sequence[Spec]]) -> None:
    """Trace a function of nested lists of tensors, and compute nothing.

    Args:
        function: Of one list of lists, as ``specs`` are.
        specs: Shape and data type of each tensor.
    """
    if _running_backend() == "jax":
        import jax

        jax.eval_shape(function, [[jax.ShapeDtypeStruct(*spec) for spec in each] for each in specs])
        return
    import tensorflow as tf

    traced = tf.function(function, autograph=False)
    traced.get_concrete_function([[tf.TensorSpec(*spec) for spec in each] for each in specs])


@contextmanager
def _native_messages_held() -> Iterator[None]:
    """Hold back what native code writes to standard error while a backend starts.

    TensorFlow greets with messages that no setting silences and that would tear a live screen;
    they are shown where the start fails.
    """
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(real, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


@contextmanager
def _hidden(packages: list[str]) -> Iterator[None]:
    """Let packages that nothing has imported yet seem to be missing.

    Not in a notebook or at a prompt, where Keras's uses of them may be wanted later.
    """
    interactive = hasattr(sys, "ps1") or "ipykernel" in sys.modules
    hidden = [] if interactive else [each for each in packages if each not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for each in hidden:
            del modules[each]


def _started_jax() -> dict[str, Any]:
    import jax

    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu:
        from normbench.engine import compilation_cache

        compilation_cache.keep()
    return {"deterministic": on_cpu, "threads": threads.cores(), "shards": 1}


def _started_tensorflow() -> dict[str, Any]:
    import tensorflow as tf

    on_cpu = not tf.config.list_physical_devices("GPU")
    shards = threads.tensorflow_shards()
    if on_cpu:
        tf.config.experimental.enable_op_determinism()
        threads.divide(shards)
    tf.config.list_logical_devices()  # starts the devices, with their messages, here
    return {"deterministic": on_cpu, "threads": threads.available(), "shards": shards}


def _running_backend() -> str | None:
    module = sys.modules.get("keras")
    return None if module is None else module.config.backend()

"""The backend of this process, which :func:`start` selects once, before Keras is imported."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from normbench.engine import threads
from normbench.errors import NormbenchError, UserError

if TYPE_CHECKING:
    from normbench.engine.loop import Loop

Spec = tuple[tuple[int, ...], str]
"""Shape and data type of a tensor."""

_OPTIONAL = ("jax", "matplotlib", "pandas", "sklearn")
"""Packages that Keras and TensorFlow import if installed, for features that no run uses; importing
them takes 2 of 4 seconds."""

_LIBRARIES = {
    "tensorflow": ("TensorFlow", ("tensorflow",), "pip install normbench"),
    "jax": ("JAX", ("jax", "jaxlib"), "pip install 'normbench[jax]'"),
}
"""The library of each backend: its name, its packages, and how to install it."""

OTHER = "use backend={}"
"""Advice of :func:`refuse_missing` if the user can choose another backend."""


def start(backend: str, precision: str) -> dict[str, Any]:
    """Make this process run Keras on ``backend`` under the dtype policy ``precision``.

    On a CPU, the backend computes in a fixed order (which would be slow on a GPU), and TensorFlow
    divides its threads (:mod:`normbench.engine.threads`).

    Returns:
        Facts for the run's record: backend, precision, jit_compile, deterministic, threads,
        shards; on a CPU with TensorFlow also onednn (None where TensorFlow decides).

    Raises:
        UserError: The backend is not installed.
        NormbenchError: Keras already runs on another backend here.
    """
    current = _running_backend()
    if current not in (None, backend):
        raise NormbenchError(
            f"this process already runs Keras on {current}: start another for backend={backend}"
        )
    refuse_missing(backend, OTHER)
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    prepare(os.environ)
    with native_messages_held(), _hidden([package for package in _OPTIONAL if package != backend]):
        import keras

        settings = _started_tensorflow() if backend == "tensorflow" else _started_jax()
    if not threads.are_divided(settings["shards"]):
        threads.warn()
    keras.config.set_dtype_policy(precision)
    keras.config.set_image_data_format("channels_last")
    return {
        "backend": backend,
        "precision": precision,
        "jit_compile": backend == "jax",
        **settings,
    }


def is_installed(backend: str) -> bool:
    """Return whether a backend's library is installed; imports nothing."""
    return all(map(_is_there, _LIBRARIES[backend][1]))


def refuse_missing(backend: str, instead: str = "") -> None:
    """Refuse a backend whose library is not installed.

    Args:
        backend: The backend.
        instead: Advice to choose the other backend, if that is installed; its name replaces ``{}``.

    Raises:
        UserError: The library is not installed; the message says how to install it.
    """
    if is_installed(backend):
        return
    library, _, install = _LIBRARIES[backend]
    other = next(name for name in _LIBRARIES if name != backend)
    if instead and is_installed(other):
        install = f"{instead.format(other)}, or {install}"
    if instead == OTHER and backend == "tensorflow":
        backend = "tensorflow (the default)"
    raise UserError(f"backend={backend} needs {library}, which is not installed: {install}")


def _is_there(package: str) -> bool:
    if package in sys.modules:
        return True
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder left behind has no origin


def prepare(environment: MutableMapping[str, str]) -> None:
    """Set the variables that TensorFlow and JAX read when they are imported, unless the user did.

    GPU memory is allocated as needed instead of all at once. TensorFlow uses oneDNN on all x86
    processors; by default it does so only on those with instructions for neural networks, such as
    AVX-512 VNNI, although the others train up to twice as fast with it (docs/speed.md).
    """
    environment.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Once TensorFlow is imported it is too late, and the record would be wrong.
    if platform.machine().lower() in ("x86_64", "amd64") and "tensorflow" not in sys.modules:
        environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


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
        function: Function of one list of lists of tensors.
        specs: Shape and data type of each tensor, in the same nesting.
    """
    if _running_backend() == "jax":
        import jax

        jax.eval_shape(
            function, [[jax.ShapeDtypeStruct(*spec) for spec in group] for group in specs]
        )
        return
    import tensorflow as tf

    graph_function = tf.function(function, autograph=False)
    graph_function.get_concrete_function(
        [[tf.TensorSpec(*spec) for spec in group] for group in specs]
    )


@contextmanager
def native_messages_held() -> Iterator[None]:
    """Suppress native code's output to standard error, but show it if the backend fails to start.

    TensorFlow prints messages that no setting silences and that would garble a live screen.
    """
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    with tempfile.TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(real, 2)
            messages.seek(0)
            os.write(2, messages.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


@contextmanager
def _hidden(packages: list[str]) -> Iterator[None]:
    """Within the context, make packages that are not imported yet appear to be missing.

    Does nothing in a notebook or at a prompt, where Keras may need them later.
    """
    interactive = hasattr(sys, "ps1") or "ipykernel" in sys.modules
    names = [] if interactive else [name for name in packages if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            del modules[name]


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
    onednn = {"0": False, "1": True}.get(os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""))
    return {
        "deterministic": on_cpu,
        "threads": threads.available(),
        "shards": shards,
        **({"onednn": onednn} if on_cpu else {}),
    }


def _running_backend() -> str | None:
    module = sys.modules.get("keras")
    return None if module is None else module.config.backend()

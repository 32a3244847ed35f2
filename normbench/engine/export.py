"""The trained network of a run as a Keras model: :func:`load` returns it, :func:`export` writes it.

The model maps images in 0..255, as the data set provides them, to logits. It has the layers of the
run's network, or equivalent layers of Keras's own (:mod:`normbench.engine.plain`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normbench.config import Config
from normbench.engine.backend import (
    native_messages_held,
    prepare,
    refuse_missing,
)
from normbench.engine.setup import load_dataset
from normbench.engine.weights import final_weights
from normbench.errors import NormbenchError, UserError, unknown, why
from normbench.store.files import expand_user
from normbench.store.provenance import own_changes, own_code, own_data
from normbench.store.store import Run, find_run

if TYPE_CHECKING:
    import keras

FORMATS = {"keras": "keras", "savedmodel": "tf_saved_model", "onnx": "onnx"}
"""File formats of a model, with Keras's names for them. A file's suffix selects one."""

BACKENDS = ("tensorflow", "jax")
"""Keras backends that the layers support."""

Note = Callable[[str], None]


def load(
    run: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    *,
    plain: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
) -> keras.Model:
    """Return the trained network of a run as a Keras model; see :func:`normbench.load`.

    If Keras is not imported yet, it is started on the run's backend. On another backend, the model
    gives the same results up to rounding.
    """
    source = find_run(run, store)
    return _model(source, plain, config_dir, lambda line: warnings.warn(line, stacklevel=6))


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    plain: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
    say: Note = print,
) -> Path:
    """Write the trained network of a finished run to a file, atomically.

    Args:
        run: As for :func:`load`, like ``store``, ``plain`` and ``config_dir``.
        out: The file, or the folder of a SavedModel.
        format: One of :data:`FORMATS`; by default the suffix of ``out``.
        say: Receives each line meant for the user.

    Returns:
        The path of the file.

    Raises:
        UserError: As for :func:`load`; or the format is unknown, its library is missing, or Keras
            cannot write the model in it.
        NormbenchError: As for :func:`load`; or the file cannot be written.
    """
    path = expand_user(out)
    if path.is_dir():
        raise UserError(f"cannot write {str(path)!r}: there is a folder of this name")
    kind = _format_of(path, format)
    source = find_run(run, store)
    _check_library(kind, source)
    _check_precision(kind, source)
    model = _model(source, plain, config_dir, lambda line: say(f"note: {line}"))
    _write(model, path, kind, source)
    images = "×".join(map(str, model.input_shape[1:]))
    say(f"export: {path} ({source.name}; images of {images}, 0..255, to {_classes(model)} logits)")
    if kind == "keras":
        say(f"to load it: {_to_load(model)}keras.saving.load_model({path.name!r})")
    return path


# --- from a run to a model ------------------------------------------------------------------------


def _model(
    run: Run, plain: bool, config_dir: str | os.PathLike[str] | None, note: Note
) -> keras.Model:
    """Build the network of a run with its final weights, preceded by the scaling of images."""
    weights = final_weights(run)
    config = Config.from_run(
        run.config or {}, None if config_dir is None else str(config_dir), f"run {run.name}"
    )
    dataset = load_dataset(config)
    _check_own(run, config, dataset, note)
    with _keras(config):
        from normbench.engine.augment import Images
        from normbench.network import build_model

        network = build_model(config, dataset.shape, dataset.classes)
        _assign(network, weights, run)
        images = Images(
            mean=np.asarray(dataset.mean, np.float32),
            std=np.asarray(dataset.std, np.float32),
            crop_padding=0,
            flip=False,
        )
        try:
            return _with_scaling(network, images, plain)
        except UserError:
            raise
        except Exception as error:  # a layer of the user's own that Keras cannot copy
            raise UserError(
                f"run {run.name} cannot be turned into a model: {why(error)}"
            ) from error


def _check_own(run: Run, config: Config, dataset: Any, note: Note) -> None:
    """Check that the user's own code and data are those that the run was trained with.

    Raises:
        UserError: The data set has changed, so that its images would not be scaled as in training.
    """
    hashes = (run.meta or {}).get("own")
    for line in own_changes(hashes, own_code({**vars(config), "probe": {}, "logger": {}})):
        note(line)
    if changes := own_changes(hashes, own_data(config.dataset, dataset.fingerprint)):
        raise UserError(f"run {run.name}: {'; '.join(changes)}: images would be scaled differently")


@contextmanager
def _keras(config: Config) -> Iterator[None]:
    """Import Keras if necessary, on the run's backend; within the context, use the run's dtype.

    Global settings of Keras are restored on exit.

    Raises:
        UserError: The backend is not installed.
        NormbenchError: Keras runs on a backend that the layers do not support.
    """
    if "keras" not in sys.modules:
        backend = os.environ.get("KERAS_BACKEND") or config.backend
        if backend in BACKENDS:
            refuse_missing(backend, instead="set KERAS_BACKEND={}")
        os.environ["KERAS_BACKEND"] = backend
        prepare(os.environ)
        with native_messages_held():
            _import_keras()
    import keras

    if keras.config.backend() not in BACKENDS:
        raise NormbenchError(
            f"Keras runs on {keras.config.backend()} here: set KERAS_BACKEND to "
            f"{' or '.join(BACKENDS)} before Keras is imported"
        )
    policy, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy(config.precision)
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)


def _import_keras() -> None:
    """Import Keras and start its backend's devices, which print messages as they start."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.list_logical_devices()


def _assign(network: keras.Model, weights: Mapping[str, np.ndarray], run: Run) -> None:
    """Assign a checkpoint's weights to a network's variables, in order.

    Names are not compared, because automatic names depend on the other models of the process.

    Raises:
        UserError: The number of weights or a shape differs from the network's (code has changed).
    """
    variables = list(network.variables)
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [array.shape for array in weights.values()]:
        raise UserError(
            f"the weights of run {run.name} do not fit its network in this version of normbench"
        )
    for variable, array in zip(variables, weights.values(), strict=True):
        variable.assign(array)


def _with_scaling(network: keras.Model, images: Any, plain: bool) -> keras.Model:
    """Copy a network, layer by layer, and prepend the scaling of its images.

    Scaling takes two layers, because a single Rescaling would multiply before it adds and so round
    differently than in training.
    """
    import keras

    from normbench.engine.loop import as_list
    from normbench.engine.plain import plain_layer, plain_weights

    raw = keras.Input(network.input_shape[1:], dtype="float32", name="images")
    centered = keras.layers.Rescaling(
        1.0, offset=(-images.offset).tolist(), dtype="float32", name="subtract_mean"
    )(raw)
    scaled = keras.layers.Rescaling(
        images.factor.tolist(), dtype="float32", name="divide_by_deviation"
    )(centered)
    copies: list[tuple[Any, Any]] = []

    def copy(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):  # an operation without state
            return layer
        twin = plain_layer(layer) if plain else type(layer).from_config(layer.get_config())
        copies.append((layer, twin))
        return twin

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(
            lambda value: scaled if value is raw else value, (args, kwargs)
        )
        # For example a mask, which not all Keras layers accept by name.
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        return layer(*args, **kwargs)

    clone = keras.models.clone_model(
        network, input_tensors=raw, clone_function=copy, call_function=call
    )
    for layer, twin in copies:
        if type(twin) is type(layer):
            pairs = list(zip(twin.variables, layer.variables, strict=True))
        else:
            pairs = [(getattr(twin, name), value) for name, value in plain_weights(layer).items()]
        for variable, value in pairs:
            # Convert to NumPy: on JAX, two variables would share a buffer, which predict() donates.
            variable.assign(keras.ops.convert_to_numpy(value))
    # Auxiliary classifiers, which only matter in training, are left out.
    return keras.Model(raw, as_list(clone.outputs)[0], name=network.name)


# --- from a model to a file -----------------------------------------------------------------------


def _format_of(path: Path, format: str | None) -> str:
    """Return the format of a file, and check that it has the suffix that Keras requires.

    Raises:
        UserError: The format is unknown or missing.
    """
    kind = format or path.suffix.lstrip(".")
    if not kind:
        raise UserError(
            f"{path.name!r} does not say its format: end it in .keras, or give --format "
            f"{', '.join(FORMATS)}"
        )
    if kind not in FORMATS:
        raise unknown("format of a model", kind, FORMATS)
    if kind == "keras" and path.suffix != ".keras":
        raise UserError(f"Keras loads a model from a file that ends in .keras, not {path.name!r}")
    return kind


def _check_library(kind: str, run: Run) -> None:
    """Refuse a format whose libraries are not installed, before the data set is read.

    Raises:
        UserError: A library is missing.
    """
    keras_module = sys.modules.get("keras")
    backend = keras_module.config.backend() if keras_module else os.environ.get("KERAS_BACKEND")
    packages = [] if kind == "keras" else ["tensorflow"]
    if kind == "onnx":
        packages.append("tf2onnx")  # depends on onnx
    missing_packages = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing_packages:
        backend_name = backend or (run.config or {}).get("backend")
        raise UserError(
            f"Keras on {backend_name} needs {' and '.join(packages)} to write the format {kind}: "
            f"pip install {' '.join(missing_packages)}"
        )


def _check_precision(kind: str, run: Run) -> None:
    """Refuse a precision that a format does not support.

    Raises:
        UserError: The format is ONNX and the run's precision is not float32.
    """
    precision = (run.config or {}).get("precision", "float32")
    if kind == "onnx" and precision != "float32":
        raise UserError(
            f"run {run.name} has precision={precision}, but Keras writes ONNX in float32 only: "
            "--format keras and --format savedmodel preserve the precision"
        )


def _write(model: keras.Model, path: Path, kind: str, run: Run) -> None:
    """Write a model to a temporary folder next to its path, then move it there.

    Raises:
        UserError: Keras cannot write the model or cannot read it back.
        NormbenchError: The file cannot be written.
    """
    import keras

    from normbench.kernels.compile import as_if_exporting

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise NormbenchError(f"cannot write {str(path)!r}: {error.strerror}") from None
    draft = Path(scratch) / path.name
    try:
        if kind == "keras":
            model.save(draft)
            # safe_mode: the file must load without executing code of its own.
            keras.saving.load_model(draft, compile=False, safe_mode=True)
        else:
            # Keras only derives the signature of a model that has been called; this one has not.
            images = model.inputs[0]
            signature = [keras.InputSpec(images.dtype, images.shape, name=images.name)]
            with (
                as_if_exporting() if kind == "onnx" else nullcontext(),
                warnings.catch_warnings(),
            ):
                # Keras looks up np.object for tf2onnx, which needs it.
                warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
                model.export(
                    str(draft), format=FORMATS[kind], verbose=False, input_signature=signature
                )
            if kind == "onnx":
                import onnx

                # tf2onnx only logs operations that ONNX lacks, and leaves them in the file.
                onnx.checker.check_model(str(draft))
        draft.replace(path)
    except OSError as error:
        raise NormbenchError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(
            f"Keras cannot write the model of run {run.name} as {kind}: {why(error)}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _classes(model: keras.Model) -> int:
    return int(model.output_shape[-1])


def _to_load(model: keras.Model) -> str:
    """Return the Python imports needed to load a model."""
    modules = {type(layer).__module__ for layer in model.layers}
    own_modules = sorted(name for name in modules if not name.startswith(("keras.", "normbench.")))
    if any(name.startswith("normbench.") for name in modules):
        own_modules.insert(0, "normbench.norms")
    return f"import {', '.join([*own_modules, 'keras'])}; "

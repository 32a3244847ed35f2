"""normbench: the bench on which normalization layers are compared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from normbench.serializable import register as _register_with_keras

if TYPE_CHECKING:
    import keras

__version__ = "0.1.0"

_register_with_keras()


def load(
    run: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    *,
    plain: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
) -> keras.Model:
    """Return the trained network of a finished run as a Keras model.

    The model takes images (N, H, W, C) of 0..255, uint8 or float32, and returns logits
    (N, classes)::

        model = normbench.load("digits-resnet8-gn-b16-s0-1a2b3c4d")
        logits = model.predict(images)

    Args:
        run: Name, signature, or the beginning of either; or the path of a run folder.
        store: Folder of runs that a name is looked up in; by default ``$NORMBENCH_STORE`` if that
            is set, else ``runs``.
        plain: Use Keras's own layers alone.
        config_dir: Additional folder with config groups, for a run with components of one's own.

    Raises:
        normbench.errors.UserError: There is no such run, it has no final weights, its data set is
            missing or has changed, it names a component that no config group has, or a layer has no
            equal among Keras's own.
        normbench.errors.NormbenchError: A file of the run is damaged, or the backend is missing.
    """
    from importlib import import_module

    # By name: the package itself must import none of its rooms, or `import normbench` gets slow.
    engine = import_module("normbench.engine.export")
    return engine.load(run, store, plain=plain, config_dir=config_dir)

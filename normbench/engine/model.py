"""The model of a run, built from its config."""

from __future__ import annotations

import math

import keras
import numpy as np

from normbench.components import configured
from normbench.config import Config
from normbench.engine.images import Images
from normbench.errors import UserError
from normbench.initializers import seeded

SEEN = 5000
"""Training images that a data-dependent initialization is shown."""


def build_model(config: Config, input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Build the network of ``config.arch`` with the normalization of ``config.norm``.

    The initial weights depend on ``config.seed`` alone, on every backend.

    Args:
        config: Of the run.
        input_shape: (H, W, C) of the images.
        classes: Number of logits.

    Raises:
        UserError: A combination that cannot be: groups that do not divide the channels, say.
    """
    from normbench.norms.catalogue import make_norm

    build, options = configured("arch", config.arch, passed=("norm", "input_shape", "classes"))
    try:
        norm = make_norm(config.norm)
        with seeded(config.seed):
            model = build(norm, input_shape, classes, **options)
        norm.check_used()
    except (ValueError, TypeError) as error:
        raise UserError(
            f"norm={config.norm_name} cannot be built into arch={config.arch['name']} at "
            f"{'×'.join(map(str, input_shape))}: {_first_line(error)}"
        ) from error
    if len(model.outputs) > 1 and "auxiliary_weight" not in config.arch:
        raise UserError(
            f"arch={config.arch['name']} has auxiliary classifiers and no option auxiliary_weight"
        )
    return model


def initialize_from(model: keras.Model, pixels: np.ndarray, images: Images) -> None:
    """Let the layers whose first weights depend on the data see training images.

    Such a layer has a method ``initialize_from``, called with scaled images, float32 (N, H, W, C).

    Args:
        model: Built, and not trained yet.
        pixels: uint8 (N, H, W, C), the training images; the first ``SEEN`` of them are shown.
        images: How they are scaled.
    """
    layers = [each for each in model.layers if hasattr(each, "initialize_from")]
    if not layers:
        return
    scaled = keras.ops.convert_to_numpy(images.scaled(np.ascontiguousarray(pixels[:SEEN])))
    for layer in layers:
        layer.initialize_from(scaled)


def parameter_count(model: keras.Model) -> int:
    """Count a model's trained parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

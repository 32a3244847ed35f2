"""The model of a run, built from its config."""

from __future__ import annotations

import math

import keras

from normbench.config import Config
from normbench.errors import UserError
from normbench.initializers import seeded
from normbench.targets import check_options, options_of, target


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

    build = target(config.arch["_target_"])
    options = options_of(config.arch)
    check_options(
        f"arch={config.arch['name']}",
        build,
        {"norm": None, "input_shape": None, "classes": None, **options},
    )
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
    return model


def parameter_count(model: keras.Model) -> int:
    """Count a model's trained parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

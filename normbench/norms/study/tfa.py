"""The normalizations of tensorflow-addons 0.23 as Keras 3 layers, on the TensorFlow backend.

Development of tensorflow-addons ended in May 2024, with layers for Keras 2 (``tf_keras``) and no
wheel for Python 3.12 or later. The package cannot be imported if ``tf.keras`` is Keras 3, and
switching ``tf.keras`` to Keras 2 would break the rest of the process. So its one file of
normalizations is executed here with a private ``tf`` in which ``tf.keras`` is ``tf_keras``; nothing
changes outside that file. The computation is tensorflow-addons' own code; its weights belong to the
Keras 3 layer around it.
"""

from __future__ import annotations

import builtins
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import keras
from keras import ops

from normbench.errors import UserError
from normbench.norms.base import ChannelAffine, groups_dividing

__all__ = [
    "MissingAddons",
    "TfaFilterResponseNormalization",
    "TfaGroupNormalization",
    "TfaInstanceNormalization",
]

_LEARNED_EPSILON = 1e-4
"""Initial value of the learned part of ε, in tensorflow-addons and in the paper."""


class MissingAddons(UserError, ImportError):
    """tensorflow-addons cannot be used in this process; the message says what to do."""


class _Wrapped(ChannelAffine):
    """A Keras 3 layer that delegates its computation to a tensorflow-addons layer."""

    state = "none"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = False

    def made(self, addons: Any, channels: int) -> Any:
        """Return tensorflow-addons' layer, which uses this layer's weights."""
        raise NotImplementedError

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = self.channels_of(input_shape)
        self.addons_layer = self.made(_addons(self.name), channels)
        self.addons_layer.build(tuple(input_shape))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        self.refuse_mask(mask)
        outputs = self.addons_layer.call(ops.cast(inputs, "float32"))
        return ops.cast(outputs, self.compute_dtype)

    def borrowing(self, addons_class: Any) -> Any:
        """Return a subclass of tensorflow-addons' class that adds its weights to this layer."""

        def add_weight(_: Any, name: str, shape: Any, **kwargs: Any) -> Any:
            learned_epsilon = keras.initializers.Constant(_LEARNED_EPSILON)
            initializers = {"gamma": "ones", "beta": "zeros", "learned_epsilon": learned_epsilon}
            return self.float_weight(name, tuple(shape), initializers[name])

        return type(addons_class.__name__, (addons_class,), {"add_weight": add_weight})

    def channels_of(self, input_shape: tuple[int | None, ...]) -> int:
        """Return the number of channels of inputs (N, ..., C).

        Raises:
            ValueError: The number is unknown, or there is no such axis.
        """
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                f"{self.name} needs an input (N, ..., C) of known channels, got {input_shape}"
            )
        return input_shape[-1]


@keras.saving.register_keras_serializable("normbench")
class TfaGroupNormalization(_Wrapped):
    """``tfa.layers.GroupNormalization`` (tensorflow-addons 0.23) as a Keras 3 layer.

    y = γ·(x − μ)/sqrt(σ² + ε) + β with the mean and biased variance of an image's group of
    channels (Wu & He 2018, eq. 2–6). Bit-identical to ``keras.layers.GroupNormalization`` at the
    same epsilon; tensorflow-addons' default is 1e-3.

    Args:
        groups: Number of groups; must divide the channels.
        epsilon: Added to the biased variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32.
    Weights: γ and β, float32 (C,).

    Raises:
        ValueError: ``groups`` does not divide the channels.
        MissingAddons: tensorflow-addons is not installed, or the backend is not TensorFlow; when
            the layer is built.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of an image's group of channels"
    computed_over = "space, channels"
    source = "tensorflow-addons 0.23, GroupNormalization; Wu & He 2018 (arXiv 1803.08494)"

    def __init__(
        self,
        groups: int = 32,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a whole number of at least 1, got {groups!r}")
        self.groups = groups

    def made(self, addons: Any, channels: int) -> Any:
        return self.borrowing(addons.GroupNormalization)(
            groups=groups_dividing(self.name, channels, self.groups, None),
            epsilon=self.epsilon,
            center=self.center,
            scale=self.scale,
            dtype="float32",
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable("normbench")
class TfaInstanceNormalization(_Wrapped):
    """``tfa.layers.InstanceNormalization`` (tensorflow-addons 0.23) as a Keras 3 layer.

    y = γ·(x − μ)/sqrt(σ² + ε) + β with the mean and biased variance of one channel of one image
    (Ulyanov et al. 2016, eq. 1).

    Args:
        epsilon: Added to the biased variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.

    Input and output: (N, ..., C), any float dtype; computed in float32.
    Weights: γ and β, float32 (C,).

    Raises:
        MissingAddons: tensorflow-addons is not installed, or the backend is not TensorFlow; when
            the layer is built.
    """

    formula = "y = γ·(x − μ)/√(σ² + ε) + β, μ and σ² of one channel of an image"
    computed_over = "space"
    source = "tensorflow-addons 0.23, InstanceNormalization; Ulyanov et al. 2016 (arXiv 1607.08022)"

    def __init__(
        self, epsilon: float = 1e-3, center: bool = True, scale: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)

    def made(self, addons: Any, channels: int) -> Any:
        return self.borrowing(addons.InstanceNormalization)(
            epsilon=self.epsilon, center=self.center, scale=self.scale, dtype="float32"
        )


@keras.saving.register_keras_serializable("normbench")
class TfaFilterResponseNormalization(_Wrapped):
    """``tfa.layers.FilterResponseNormalization`` (tensorflow-addons 0.23) as a Keras 3 layer.

    y = γ·x/sqrt(ν² + |ε| + |ε_l|) + β, where ν² is the mean square of one channel of one image
    (Singh & Krishnan 2020, eq. 1–3) and ε_l is optional. tensorflow-addons takes the magnitude of
    the given ε, too. The paper's thresholded linear unit (TLU) is a separate layer in
    tensorflow-addons and not included here.

    Args:
        epsilon: Added to the mean square.
        learned_epsilon: Whether to add a learned |ε_l|, one per layer, initially 1e-4.

    Input and output: (N, H, W, C) of known H and W, any float dtype; computed in float32.
    Weights: γ and β, float32 (1, 1, 1, C), and ε_l, float32 (1,).

    Raises:
        ValueError: The input does not have 4 axes, or H or W is unknown.
        MissingAddons: tensorflow-addons is not installed, or the backend is not TensorFlow; when
            the layer is built.
    """

    formula = "y = γ·x/√(ν² + ε) + β, ν² the mean of x² of one channel of an image"
    computed_over = "space"
    parameters = "γ, β: per channel; ε_l, if learned: per layer"
    source = (
        "tensorflow-addons 0.23, FilterResponseNormalization; "
        "Singh & Krishnan 2020 (arXiv 1911.09737)"
    )

    def __init__(self, epsilon: float = 1e-6, learned_epsilon: bool = False, **kwargs: Any) -> None:
        super().__init__(epsilon=epsilon, center=True, scale=True, **kwargs)
        self.learned_epsilon = bool(learned_epsilon)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                f"{self.name} needs an input (N, H, W, C) of known H, W and C, got {input_shape}"
            )
        super().build(input_shape)

    def made(self, addons: Any, channels: int) -> Any:
        return self.borrowing(addons.FilterResponseNormalization)(
            epsilon=self.epsilon,
            axis=[1, 2],  # the default is a mutable list that all layers share
            learned_epsilon=self.learned_epsilon,
            dtype="float32",
        )

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "learned_epsilon": self.learned_epsilon}
        return {key: value for key, value in config.items() if key not in ("center", "scale")}


def _addons(layer: str) -> Any:
    """Return tensorflow-addons' file of normalizations as a module.

    Raises:
        MissingAddons: tensorflow-addons cannot be used in this process.
    """
    if keras.backend.backend() != "tensorflow":
        raise MissingAddons(
            f"{layer} is a layer of tensorflow-addons, which needs the TensorFlow backend, not "
            f"{keras.backend.backend()!r}: use backend=tensorflow, or gn, in or frn instead"
        )
    spec = find_spec("tensorflow_addons")
    if spec is None or spec.origin is None:
        python = ".".join(map(str, sys.version_info[:2]))
        raise MissingAddons(
            f"{layer} needs tensorflow-addons, which is not installed: "
            + (
                "pip install 'normbench[tfa]'"
                if sys.version_info < (3, 12)
                else f"it has no release for Python {python}; use Python 3.11 and "
                "pip install 'normbench[tfa]'"
            )
        )
    try:
        return _executed(Path(spec.origin).parent / "layers" / "normalizations.py")
    except ImportError as error:
        raise MissingAddons(
            f"{layer} needs tensorflow-addons 0.23, whose layers cannot be imported ({error}): "
            "pip install 'normbench[tfa]'"
        ) from error


@cache
def _executed(path: Path) -> ModuleType:
    """Execute one file of tensorflow-addons with Keras 2 as ``tf.keras``."""
    tensorflow = import_module("tensorflow")
    keras2 = import_module("tf_keras")
    # Stub out the run-time type checks of constructor arguments: they would import more of Keras 2,
    # and the layers here check their own arguments.
    types = SimpleNamespace(Initializer=Any, Regularizer=Any, Constraint=Any)
    typeguard = SimpleNamespace(typechecked=lambda function: function)
    substitutes = {
        "tensorflow": _with_keras(tensorflow, keras2),
        "tensorflow_addons.utils": SimpleNamespace(types=types),
        "typeguard": typeguard,
    }

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        return substitutes.get(name) or builtins.__import__(name, *args, **kwargs)

    module = ModuleType("normbench.norms._tensorflow_addons_normalizations")
    module.__file__ = str(path)
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": importing}
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ImportError(f"no file {path.name}: {error.strerror}") from error
    exec(compile(source, str(path), "exec"), vars(module))
    return module


def _with_keras(tensorflow: ModuleType, keras2: ModuleType) -> Any:
    """Return the module ``tensorflow`` with ``keras`` replaced."""

    class TensorFlow(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(tensorflow, name)

    module = TensorFlow("tensorflow")
    vars(module)["keras"] = keras2
    return module

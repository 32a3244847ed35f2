"""The reference harness: a layer's values and gradients against a float64 formula.

References are plain NumPy, written from the papers, not from the layers. They are
analytic wherever the layer is differentiable, so that their gradients come from complex steps,
∂f/∂x = Im f(x + ih)/h, which are exact in float64: no step length to tune, no cancellation.

Tolerances. A layer computes in float32 whatever its dtype, so its results may be off by

* one rounding to its dtype: eps(dtype) of the value itself;
* float32's own error: ``FLOAT32_ROUNDINGS`` units in the last place of the largest term of
  the sums behind it. For a gradient that term is dy·γ/σ, not the gradient, which may cancel.

No factor |mean|/deviation is allowed: the layers' algorithm is designed to avoid it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

from tests.marks import slow_except_on_jax

FLOAT32_ROUNDINGS = 64
EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""The distance from 1 to the next number."""

FULL = 600
"""Inputs of up to this size have every partial derivative checked; larger ones, projections."""

Array = np.ndarray
Reference = Callable[..., Array]


DISTRIBUTIONS: dict[str, Callable[[Array], Array]] = {
    "ordinary": lambda values: values,
    "far": lambda values: values + 1e3,  # mean 1000, deviation 1
    "constant": lambda values: 0 * values + 1000.1,
    "tiny": lambda values: values * 1e-6,  # variance 1e-12
}


@dataclass(frozen=True)
class Case:
    """A shape and dtype to check a layer with, and the distributions of its inputs."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    distributions: tuple[str, ...] = ("ordinary",)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.dtype}"

    @property
    def channels(self) -> int:
        return self.shape[-1]

    def inputs(self, distribution: str) -> Array:
        values = np.random.default_rng(sum(self.shape)).standard_normal(self.shape)
        return DISTRIBUTIONS[distribution](values).astype(numpy_dtype(self.dtype))


_BASE = (2, 3, 5, 8)
CASES = [
    Case(_BASE, distributions=tuple(DISTRIBUTIONS)),
    Case(_BASE, "bfloat16", tuple(DISTRIBUTIONS)),
]
FURTHER_CASES = [
    Case(_BASE, "float16", tuple(DISTRIBUTIONS)),
    Case((3, 7, 3, 1)),
    Case((1, 5, 3, 4)),
    Case((2, 3, 5, 512)),
    Case((4, 1, 1, 8)),
    Case((5, 8)),
]
"""Only run with ``-m slow`` on JAX, which takes about a second to compile each."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test with an argument `case` all of the cases."""
    if "case" in metafunc.fixturenames:
        cases = slow_except_on_jax(CASES, [*CASES, *FURTHER_CASES])
        metafunc.parametrize("case", cases, ids=str)


def numpy_dtype(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


@dataclass(frozen=True)
class Run:
    """The results of one call of a layer, as float64 arrays."""

    outputs: Array
    d_inputs: Array
    d_weights: dict[str, Array]
    state: dict[str, Array]
    dtype: str


def run_layer(
    layer: keras.layers.Layer, x: Array, upstream: Array | None = None, training: bool = False
) -> Run:
    """Run a layer forward and backward on the current backend, updating its state.

    Args:
        layer: Any layer with one input; built if necessary.
        x: The input.
        upstream: The gradient of the outputs; ones by default.
        training: Whether to call it in training mode.
    """
    if not layer.built:
        layer.build(x.shape)
    upstream = np.ones(x.shape) if upstream is None else upstream
    options = {"training": training} if layer._call_has_training_arg else {}
    backward = _jax_backward if keras.backend.backend() == "jax" else _tensorflow_backward
    outputs, d_inputs, d_weights = backward(
        layer, keras.ops.convert_to_tensor(x), upstream, options
    )
    return Run(
        outputs=_float64(outputs),
        d_inputs=_float64(d_inputs),
        d_weights={
            v.name: _float64(d) for v, d in zip(layer.trainable_variables, d_weights, strict=True)
        },
        state=state_of(layer),
        dtype=keras.backend.standardize_dtype(outputs.dtype),
    )


def _tensorflow_backward(layer: Any, x: Any, upstream: Array, options: dict[str, Any]) -> Any:
    import tensorflow as tf

    variables = [v.value for v in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, **options)
    d_inputs, *d_weights = tape.gradient(
        outputs,
        [x, *variables],
        tf.cast(upstream, outputs.dtype),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return outputs, d_inputs, d_weights


def _jax_backward(layer: Any, x: Any, upstream: Array, options: dict[str, Any]) -> Any:
    import jax

    @jax.jit
    def backward(trainable: Any, other: Any, x: Any, upstream: Any) -> Any:
        def forward(trainable: Any, x: Any) -> Any:
            return layer.stateless_call(trainable, other, x, **options)

        outputs, back, other = jax.vjp(forward, trainable, x, has_aux=True)
        d_weights, d_inputs = back(upstream.astype(outputs.dtype))
        return outputs, d_inputs, d_weights, other

    compiled = layer.__dict__.setdefault("_backward_of_test", {})
    function = compiled.setdefault(str(options), backward)
    outputs, d_inputs, d_weights, other = function(
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
        x,
        upstream.astype(np.float32),
    )
    for variable, value in zip(layer.non_trainable_variables, other, strict=True):
        variable.assign(value)
    return outputs, d_inputs, d_weights


def state_of(layer: keras.layers.Layer) -> dict[str, Array]:
    """A layer's non-trainable weights by name."""
    return {v.name: _float64(v.value) for v in layer.non_trainable_variables}


def _float64(tensor: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(tensor)).astype(np.float64)


def randomize(layer: keras.layers.Layer, seed: int = 0) -> keras.layers.Layer:
    """Move every learned weight of a built layer away from its initial value."""
    random = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        value = keras.ops.convert_to_numpy(variable.value)
        variable.assign(value + 0.3 * random.standard_normal(value.shape).astype(value.dtype))
    return layer


def complex_gradients(
    function: Callable[..., Array], values: dict[str, Array], upstream: Array
) -> dict[str, Array]:
    """Gradients of sum(function·upstream) w.r.t. all entries of ``values``, by complex steps."""
    gradients = {}
    for name, value in values.items():
        gradient = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1e-30j
            result = function(**{**values, name: moved})
            gradient[index] = np.sum(result.imag * upstream) / 1e-30
        gradients[name] = gradient
    return gradients


def complex_slope(
    function: Callable[..., Array],
    values: dict[str, Array],
    name: str,
    direction: Array,
    upstream: Array,
) -> float:
    """The derivative of sum(function·upstream) along a direction in ``values[name]``."""
    moved = {**values, name: values[name] + 1e-30j * direction}
    return float(np.sum(function(**moved).imag * upstream) / 1e-30)


class Checker:
    """Checks layers against references."""

    def __call__(
        self,
        layer: keras.layers.Layer,
        reference: Reference,
        case: Case,
        training: bool = True,
        terms: float = 1.0,
    ) -> None:
        """Assert a layer's outputs and gradients on a case.

        Args:
            layer: Its learned weights are randomized. Its state is reset before each call.
            reference: The formula on float64 or complex arrays, called with ``x`` and the
                layer's learned weights by name.
            case: The inputs to call it on.
            training: Whether to call it in training mode.
            terms: How much larger than the outputs (for gradients: than dy·γ/σ) the largest term
                behind them is, where a layer is known to subtract such terms.
        """
        if not layer.built:
            layer.build(case.shape)
        randomize(layer)
        state = [keras.ops.convert_to_numpy(v.value) for v in layer.non_trainable_variables]
        for distribution in case.distributions:
            for variable, value in zip(layer.non_trainable_variables, state, strict=True):
                variable.assign(value)
            try:
                self._check(
                    layer, reference, case.inputs(distribution), case.dtype, training, terms
                )
            except AssertionError as error:
                raise AssertionError(f"{distribution} inputs: {error}") from None

    def _check(
        self, layer: Any, reference: Reference, x: Array, dtype: str, training: bool, terms: float
    ) -> None:
        random = np.random.default_rng(1)
        upstream = random.standard_normal(x.shape).astype(x.dtype)
        got = run_layer(layer, x, upstream, training)
        assert got.dtype == dtype

        values = {"x": x.astype(np.float64)}
        values.update((v.name, _float64(v.value)) for v in layer.trainable_variables)
        upstream = upstream.astype(np.float64)
        expected = reference(**values)
        assert expected.shape == x.shape
        unit = FLOAT32_ROUNDINGS * EPSILON["float32"] * terms
        half = 0.0 if dtype == "float32" else EPSILON[dtype]
        if dtype == "float16":  # its largest number is 65504
            expected = np.where(np.abs(expected) > 65504, np.copysign(np.inf, expected), expected)
        finite = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        self.close("outputs", got.outputs, expected, half, unit * finite)

        deviation = np.sqrt(getattr(layer, "epsilon", 0.0) + values["x"].var())
        scales = np.abs(values.get("gamma", np.ones(1))).max()
        slope = np.abs(upstream).max() * max(1.0, scales) / max(deviation, 1e-6)
        gradients = {}
        if x.size <= FULL:
            gradients = complex_gradients(reference, values, upstream)
        for name, actual in {"x": got.d_inputs, **got.d_weights}.items():
            rounded = half if name == "x" else 0.0
            if name in gradients:
                target = gradients[name]
                largest = np.abs(target).max()
            else:
                directions = [random.standard_normal(actual.shape) for _ in range(6)]
                slopes = [
                    complex_slope(reference, values, name, direction, upstream)
                    for direction in directions
                ]
                actual = np.array([np.sum(actual * direction) for direction in directions])
                target, largest = np.array(slopes), np.abs(slopes).max()
            if name == "x":
                largest = max(largest, slope)
            else:
                largest = max(largest, np.abs(upstream).sum() / values[name].size)
            self.close(f"d_{name}", actual, target, rounded, unit * largest)

    @staticmethod
    def close(name: str, actual: Array, expected: Array, relative: float, absolute: float) -> None:
        """Assert that two arrays agree, and that neither holds a NaN."""
        np.testing.assert_allclose(
            actual, expected, rtol=relative, atol=absolute, equal_nan=False, err_msg=name
        )


@pytest.fixture(scope="session")
def check() -> Checker:
    """Check a layer against a reference; see :class:`Checker`."""
    return Checker()


@pytest.fixture(scope="session", name="run_layer")
def _run_layer() -> Callable[..., Run]:
    """Run a layer forward and backward; see :func:`run_layer`."""
    return run_layer


@pytest.fixture(scope="session", name="randomize")
def _randomize() -> Callable[..., Any]:
    """Move a built layer's learned weights off their initial values; see :func:`randomize`."""
    return randomize

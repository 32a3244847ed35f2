"""Winograd's algorithm for 3×3 convolutions with TensorFlow on a CPU.

F(2×2, 3×3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
section 4.1: a tile of 2×2 outputs takes 16 multiplications per channel and filter, not 36. The
transforms only add and halve, and a sum has C products instead of 9 C, so that the rounding error
is smaller than that of direct convolution. `docs/speed.md` has measurements. The entry points are
:func:`pays`, :func:`transformed` and :func:`convolved`.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

import keras
from keras import ops

from normbench.kernels.compile import compile_shared, on_cpu

PRODUCTS = "winograd"
"""Name scope of the products in a graph, for profiling."""

Matrix = tuple[tuple[float, ...], ...]

_INPUTS: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
"""B^T, applied to 4 inputs in a row."""
_KERNEL: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
"""G, applied to 3 weights in a row."""
_OUTPUTS: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))
"""A^T, which gives 2 outputs in a row."""
_TURNED = (3, 1, 2, 0)
"""Order of G's rows for which G applied to 3 weights equals G applied to the reversed weights."""


def pays(
    x: Any,
    kernel_shape: tuple[int, ...],
    *,
    strides: tuple[int, int],
    padding: str,
    dilation_rate: tuple[int, int],
    data_format: str,
) -> bool:
    """Return whether Winograd's algorithm is faster for a convolution of ``x``, (N, H, W, C).

    The bounds were measured; see `docs/speed.md`. The transforms write four times as much as they
    read. With few channels the products do not make up for that; with 64 they do only if everything
    fits in the cache and the images have few edge tiles. With few spatial positions the products
    themselves are slower. Half precision is excluded because the transforms would round.
    """
    if None in x.shape or keras.backend.standardize_dtype(x.dtype) != "float32":
        return False
    is_supported = (
        tuple(kernel_shape[:2]) == (3, 3)
        and tuple(strides) == tuple(dilation_rate) == (1, 1)
        and data_format == "channels_last"
        and kernel_shape[2] == x.shape[-1]  # one group
        and (padding == "same" or min(x.shape[1:3]) >= 3)
    )
    if not is_supported or not on_cpu():
        return False
    positions = math.prod(x.shape[:-1])
    min_channels, max_channels = sorted(kernel_shape[2:])
    is_cached = math.prod(x.shape) <= 2**19
    few_edges = min(x.shape[1:3]) >= 16
    is_wide = min_channels >= 128 or (min_channels >= 64 and is_cached and few_edges)
    # Below 2**23 products a step saves less than a millisecond, while compiling takes a second.
    return is_wide and positions >= 128 and positions * min_channels * max_channels >= 2**23


def transformed(kernel: Any) -> Any:
    """Return G g G^T for each 3×3 g of a kernel, float32 (3, 3, C, F): (16, C, F)."""
    import tensorflow as tf

    @tf.custom_gradient
    def function(kernel: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            return compile_shared(_kernel_untiled, upstream, by_xla=True)(upstream)

        return compile_shared(_kernel_tiles, kernel, by_xla=True)(kernel), gradient

    return function(kernel)


def convolved(inputs: Any, kernel: Any, padding: str) -> Any:
    """Return ``inputs`` convolved with a 3×3 kernel.

    Args:
        inputs: float32 (N, H, W, C).
        kernel: The kernel after :func:`transformed`, float32 (16, C, F).
        padding: "same" or "valid".

    Returns:
        float32 (N, H, W, F), or (N, H - 2, W - 2, F) without padding.
    """
    import tensorflow as tf

    before = 1 if padding == "same" else 0

    @tf.custom_gradient
    def function(inputs: Any, kernel: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            # Recompute the tiles: at four times the size of the inputs, they are too large to keep.
            tiles, spread, turned = compile_shared(_gradient_tiles, inputs, by_xla=True)(
                inputs, upstream, before=before
            )
            with tf.name_scope(PRODUCTS):
                d_kernel = tf.matmul(_rows(tiles), _rows(spread), transpose_a=True)
                products = tf.matmul(_rows(turned), kernel, transpose_b=True)
            return _images(products, turned, tuple(inputs.shape[1:3]), _TURNED), d_kernel

        tiles = compile_shared(_input_tiles, inputs, by_xla=True)(inputs, before=before)
        with tf.name_scope(PRODUCTS):
            products = tf.matmul(_rows(tiles), kernel)
        size = tuple(length - 2 + 2 * before for length in inputs.shape[1:3])
        return _images(products, tiles, size, (0, 1, 2, 3)), gradient

    return function(inputs, kernel)


def _rows(tiles: Any) -> Any:
    return ops.reshape(tiles, (16, -1, tiles.shape[-1]))


def _images(products: Any, tiles: Any, size: tuple[int, ...], order: tuple[int, ...]) -> Any:
    """Return the output images (N, *size, F) of the products (16, N h w, F)."""
    products = ops.reshape(products, (*tiles.shape[:-1], products.shape[-1]))
    return compile_shared(_untiled, products, by_xla=True)(products, size=size, order=order)


def _kernel_tiles(kernel: Any) -> Any:
    """Return G g G^T as (16, C, F)."""
    columns = _times(_KERNEL, [kernel[i] for i in range(3)])
    return _rows(_times(_KERNEL, [columns[:, j] for j in range(3)]))


def _kernel_untiled(upstream: Any) -> Any:
    """Return the gradient of :func:`_kernel_tiles`, (3, 3, C, F)."""
    tiles = ops.reshape(upstream, (4, 4, *upstream.shape[1:]))
    rows = _times(_transposed(_KERNEL), [tiles[j] for j in range(4)])
    return _times(_transposed(_KERNEL), [rows[:, i] for i in range(4)])


def _input_tiles(inputs: Any, *, before: int, order: tuple[int, ...] = (0, 1, 2, 3)) -> Any:
    """Return B^T d B of each 4×4 tile d, (4, 4, N, h, w, C); tiles are 2 positions apart.

    The first axis is a tile's columns, here and in all transformed arrays.

    Args:
        inputs: (N, H, W, C).
        before: Width of the zero padding on each side of an image.
        order: Order of the rows of B^T.
    """
    matrix = tuple(_INPUTS[i] for i in order)
    h, w = ((size + 2 * before - 1) // 2 for size in inputs.shape[1:3])
    x = _in_pairs(inputs, before, h + 1, w + 1)
    columns = _times(matrix, [x[:, i // 2 : i // 2 + h, i % 2] for i in range(4)])
    return _times(matrix, [columns[:, :, :, j // 2 : j // 2 + w, j % 2] for j in range(4)])


def _spread(upstream: Any) -> Any:
    """Return A dy A^T of each 2×2 tile of the outputs' gradients, (N, H, W, F)."""
    h, w = ((size + 1) // 2 for size in upstream.shape[1:3])
    dy = _in_pairs(upstream, 0, h, w)
    columns = _times(_transposed(_OUTPUTS), [dy[:, :, i] for i in range(2)])
    return _times(_transposed(_OUTPUTS), [columns[:, :, :, :, j] for j in range(2)])


def _gradient_tiles(inputs: Any, upstream: Any, *, before: int) -> Any:
    """Return the factors of the products for the gradients.

    Returns:
        The tiles of the inputs; the tiles of the outputs' gradients for the kernel's gradient; and
        the same for the inputs' gradient, which is a convolution with the kernel rotated by 180°.
    """
    turned = _input_tiles(upstream, before=2 - before, order=_TURNED)
    return _input_tiles(inputs, before=before), _spread(upstream), turned


def _untiled(products: Any, *, size: tuple[int, int], order: tuple[int, ...]) -> Any:
    """Return A^T m A of each tile m of products, (4, 4, N, h, w, F), as images, (N, *size, F)."""
    _, _, n, h, w, filters = products.shape
    rows = _times(_OUTPUTS, [products[j] for j in order])
    tiles = _times(_OUTPUTS, [rows[:, i] for i in order])
    images = ops.reshape(ops.transpose(tiles, (2, 3, 0, 4, 1, 5)), (n, 2 * h, 2 * w, filters))
    return images[:, : size[0], : size[1]]


def _in_pairs(images: Any, before: int, h: int, w: int) -> Any:
    """Pad images, (N, H, W, C), with zeros and return them as (N, h, 2, w, 2, C)."""
    n, *sizes, channels = images.shape
    margins = [
        (before, 2 * count - before - size) for size, count in zip(sizes, (h, w), strict=True)
    ]
    x = ops.pad(images, ((0, 0), *margins, (0, 0)))
    return ops.reshape(x, (n, h, 2, w, 2, channels))


def _times(matrix: Matrix, vector: list[Any]) -> Any:
    """Multiply a matrix with a vector of tensors."""
    rows = []
    for factors in matrix:
        terms = [
            term if factor == 1 else factor * term
            for factor, term in zip(factors, vector, strict=True)
            if factor
        ]
        rows.append(reduce(add, terms))
    return ops.stack(rows)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))

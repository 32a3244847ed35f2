"""A network layer by layer: :func:`network_of` builds it; :func:`rows` lists layers and costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from normbench.components import make_source
from normbench.errors import UserError
from normbench.formats import count, size

if TYPE_CHECKING:  # the first imports Keras
    from normbench.config import Config
    from normbench.network import LayerCost


class Network(NamedTuple):
    """A network and the data that it was built for.

    Attributes:
        name: Such as ``arch=resnet50 norm=xbn``.
        images: (H, W, C).
        images_of: The data set with this shape and number of classes; None if the user set them.
        classes: Number of logits.
        batch: Number of images per training step.
        layers: The layers and their costs, from :func:`normbench.network.layer_costs`.
    """

    name: str
    images: tuple[int, int, int]
    images_of: str | None
    classes: int
    batch: int
    layers: Sequence[LayerCost]


def network_of(config: Config, images: str | None = None, classes: int | None = None) -> Network:
    """Build the network of a run, without its data.

    Args:
        config: The run's config.
        images: Size of the images, such as ``224x224x3``; None for the data set's.
        classes: Number of logits; None for the data set's.

    Raises:
        UserError: A size or number is invalid, or the network cannot be built.
    """
    if classes is not None and classes < 1:
        raise UserError(f"--classes must be at least 1, got {classes}")
    size_given = None if images is None else _size(images)
    from normbench.engine import backend

    source = make_source(config.dataset)
    backend.start(config.backend, config.precision)
    from normbench.network import build_model, layer_costs

    shape = size_given or source.shape
    logits = classes or int(source.classes)
    model = build_model(config, shape, logits)
    return Network(
        name=f"arch={config.arch['name']} norm={config.norm_name}",
        images=shape,
        images_of=source.title if (shape, logits) == (source.shape, source.classes) else None,
        classes=logits,
        batch=config.micro_batch,
        layers=layer_costs(model),
    )


def _size(images: str) -> tuple[int, int, int]:
    sides = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", images)
    height, width, channels = map(int, sides.groups()) if sides else (0, 0, 0)
    if not min(height, width, channels):
        raise UserError(f"--images must be HEIGHTxWIDTHxCHANNELS, as 224x224x3, got {images!r}")
    return height, width, channels


def rows(network: Network) -> list[dict[str, Any]]:
    """Return the layers as rows of plain values, for a file or a pipe; the last row is the total.

    Bytes are for one image: ``activation_bytes`` for the layer's output, ``kept_bytes`` for what
    the backward pass needs from it.
    """
    layer_rows: list[dict[str, Any]] = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "options": layer.about,
            "place": layer.place,
            "parametrization": layer.parametrization,
            "output": by(layer.output_shape),
            "parameters": layer.parameters,
            "multiply_adds": layer.multiply_adds,
            "activation_bytes": layer.activation_bytes,
            "kept_bytes": layer.kept_bytes,
        }
        for layer in network.layers
    ]
    total = dict.fromkeys(layer_rows[0]) | {"layer": "total"}
    for key in ("parameters", "multiply_adds", "activation_bytes", "kept_bytes"):
        total[key] = sum(row[key] for row in layer_rows)
    return [*layer_rows, total]


def totals(network: Network) -> list[tuple[str, str]]:
    """Return the totals of a network, as pairs of name and text."""
    total = rows(network)[-1]
    of = f" ({network.images_of})" if network.images_of else ""
    pairs = [
        ("images", f"{by(network.images)}, {network.classes:,} classes{of}"),
        ("parameters", _both(total["parameters"])),
        ("multiply-adds", f"{_both(total['multiply_adds'])} per image"),
        ("activations", f"{size(total['activation_bytes'])} per image"),
        (
            "to train",
            f"at least {size(total['kept_bytes'] * network.batch)} of activations at batch "
            f"{network.batch}: the backward pass needs {size(total['kept_bytes'])} per image",
        ),
    ]
    pairs += [("normalization", text) for text in placed(network.layers)]
    counts = Counter(layer.parametrization for layer in network.layers)
    pairs += [("kernels", f"{n} × {name}") for name, n in counts.items() if name]
    return pairs


def placed(layers: Sequence[LayerCost]) -> list[str]:
    """Count the normalizations of each kind by place; ``none`` if there are none."""
    kinds: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.place:
            kinds.setdefault(layer.kind, Counter())[layer.place] += 1
    return [
        f"{places.total()} × {name}: "
        + ", ".join(f"{place} {number}" for place, number in places.items())
        for name, places in kinds.items()
    ] or ["none"]


def norm_styles(
    layers: Sequence[LayerCost], styles: Sequence[str], known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Give each kind of normalization a style.

    Args:
        layers: The layers of the network.
        styles: Styles of other kinds, in order of appearance.
        known: Styles by kind.
    """
    known = known or {}
    kinds = dict.fromkeys(layer.kind for layer in layers if layer.place)
    other_kinds = (name for name in kinds if name not in known)
    other_styles = {name: styles[index % len(styles)] for index, name in enumerate(other_kinds)}
    return {name: known.get(name) or other_styles[name] for name in kinds}


def kind(layer: LayerCost) -> str:
    """Return a layer's kind with its options and its weight parametrization."""
    name = layer.kind.removeprefix("Parametrized") if layer.parametrization else layer.kind
    weight = f"({layer.parametrization})" if layer.parametrization else ""
    return " ".join(filter(None, (name, layer.about, weight)))


def by(shape: Sequence[int]) -> str:
    """Format a shape: ``32×32×3``."""
    return "×".join(map(str, shape))


def short(number: float) -> str:
    """Format a large number with three digits: ``25.6 M``, ``4.09 G``; below 1,000 unchanged."""
    units = ["", " k", " M", " G", " T"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.3g}{units[0]}"


def _both(number: int) -> str:
    return count(number) if number < 1000 else f"{count(number)} ({short(number)})"

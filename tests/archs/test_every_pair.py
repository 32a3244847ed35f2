"""Every normalization of the catalog in every network: built, trained for a step, saved and loaded.

By default, some norms and networks are tested in one pair each, with the compiled step run op by
op. ``pytest -m slow`` tests all pairs that way, and each norm and network once compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from normbench.config import Config, compose, group_options
from normbench.engine.augment import Images
from normbench.engine.backend import loop_class
from normbench.engine.loop import LoopSettings
from normbench.engine.optimizer import SGD
from normbench.engine.setup import initialize_from
from normbench.errors import UserError
from normbench.network import build_model
from tests.marks import slow_except

BACKEND = keras.backend.backend()
SHAPE, CLASSES, BATCH = (28, 28, 1), 10, 16
NORMS = group_options()["norm"]
RESNET = ("arch.blocks=[1,1]", "arch.width=8")
TINY: dict[str, tuple[str, ...]] = {
    "airbench": ("arch.width=0.125",),
    "bn_inception": ("arch.width=0.125", "arch.separable=true"),
    "conv_encoder": ("arch.widths=[8]", "arch.halvings=1", "arch.embedding=8"),
    "googlenet": ("arch.width=0.125", "arch.auxiliary_weight=0.3", "arch.lrn=true"),
    "lenet": (),
    "mlp_sigmoid": (),
    "mobilenet_v2": ("arch.alpha=0.1",),
    "resnet101": RESNET,
    "resnet18": RESNET,
    "resnet20": ("arch.depth=8", "arch.width=8"),
    "resnet20_he2016": ("arch.depth=8", "arch.width=8"),
    "resnet32": ("arch.depth=8", "arch.width=8"),
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet50_post": RESNET,
    "resnet56": ("arch.depth=8", "arch.width=8"),
    "resnet8": ("arch.width=8",),
    "resnet_v2": ("arch.depth=11", "arch.width=8"),
    "resnext50": (*RESNET, "arch.cardinality=4", "arch.group_width=4"),
    "vgg11": ("arch.width=8", "arch.dropout=0.5"),
    "vgg16": ("arch.width=8", "arch.head=full", "arch.units=16"),
    "wrn16_4": ("arch.depth=10", "arch.widening=1", "arch.dropout=0.3"),
    "wrn28_10": ("arch.depth=10", "arch.widening=1"),
}
"""Each network with the options that make it small."""

BASIC = ("resnet18", "resnet20", "resnet20_he2016", "resnet32", "resnet34", "resnet56", "resnet8")
BOTTLENECK = ("resnet101", "resnet50", "resnet50_post", "resnext50")
PLAIN = ("conv_encoder", "lenet", "mlp_sigmoid", "vgg11", "vgg16")
LACKING = {
    "pre": (*BASIC, *PLAIN, "airbench", "wrn16_4", "wrn28_10"),
    "post": PLAIN,
    "head": (*BASIC, *BOTTLENECK, "airbench", "bn_inception", "vgg11"),
}
"""Networks that do not normalize at a place, for lack of a bottleneck, block or hidden head."""
NEEDED = {
    "xbn_pre": "pre",
    "xbn_post": "post",
    **{norm: "head" for norm in NORMS if norm.startswith("bn_head_")},
}
"""Normalizations that need a certain place."""

# Eight groups, or groups of eight channels, do not divide the 6, 84 and 100 channels of these.
GROUPED = [
    *("bcn", "bcn_ws", "evonorm_s0", "gn", "gn_scaled_ws", "gn_tfa", "gn_ws", "gn_ws_assign"),
    *("gn_ws_regularizer", "iternorm"),
]
REFUSED = {
    **{(norm, arch): "does not divide" for norm in GROUPED for arch in ("lenet", "mlp_sigmoid")},
    ("xbn", "mlp_sigmoid"): "does not divide",
    # The layer of tensorflow-addons only takes images; these networks also normalize dense outputs.
    **{
        ("frn_tfa", arch): "needs an input"
        for arch in ("googlenet", "lenet", "mlp_sigmoid", "vgg16")
    },
    # It folds positions into the batch axis; a fully connected network has no positions.
    **{("minmax_reshape", arch): "reshape" for arch in TINY if arch != "mlp_sigmoid"},
    **{
        (norm, arch): f"never normalizes at the place {place!r}"
        for norm, place in NEEDED.items()
        for arch in LACKING[place]
    },
}
"""Incompatible pairs, each with words from its error message."""

SAME = {
    "resnet101": "resnet50",
    "resnet20": "resnet8",
    "resnet32": "resnet8",
    "resnet34": "resnet18",
    "resnet56": "resnet8",
}
"""Networks that differ from another in depth only, and so not when small."""

PAIRS = [(norm, arch) for norm in NORMS for arch in TINY if arch not in SAME]
SMALLEST = ("conv_encoder", "mlp_sigmoid", "lenet")
LARGE = ("bn_inception", "googlenet", "mobilenet_v2")
"""Networks of many layers, which are only saved with one norm and in their own tests."""


def small_network(index: int, norm: str) -> str:
    """A small network for the norm of this index: the next one that is compatible."""
    turned = [*SMALLEST[index % len(SMALLEST) :], *SMALLEST, "resnet50"]
    return next(arch for arch in turned if (norm, arch) not in REFUSED)


ONE_OF_EACH = {
    *((norm, small_network(index, norm)) for index, norm in enumerate(NORMS)),
    *(("bn", arch) for arch in TINY),
}
QUICK_NORMS = ("bn", "bn_head_minmax", "frn", "gn", "gn_ws", "ln", "none", "bn_sn", "xbn")
QUICK_NETWORKS = ("lenet", "mlp_sigmoid", "resnet8", "resnet50", "vgg11", "wrn16_4")
QUICK = [
    *((norm, small_network(NORMS.index(norm), norm)) for norm in QUICK_NORMS),
    *(("bn", arch) for arch in QUICK_NETWORKS),
]


def test_every_network_in_conf_is_covered():
    assert list(TINY) == group_options()["arch"]


@pytest.mark.parametrize(("arch", "other"), SAME.items())
def test_skipped_networks_equal_another_when_small(arch, other):
    small, others = (composed(f"arch={name}", *TINY[name]).arch for name in (arch, other))
    assert {**small, "name": other} == others


@pytest.mark.parametrize(("norm", "arch"), slow_except(QUICK, PAIRS))
def test_every_pair(norm, arch, reloaded):
    # Free what earlier pairs left behind: a thousand do not fit in memory.
    keras.utils.clear_session(free_memory=(norm, arch) not in QUICK)
    with op_by_op(arch):
        check(norm, arch, reloaded if arch not in LARGE else lambda model: model)


@pytest.mark.parametrize(
    ("norm", "arch"),
    [pair for pair in PAIRS if pair in REFUSED and pair[0] in ("gn", "minmax_reshape", "xbn_pre")],
)
def test_incompatible_pairs_are_refused(norm, arch, reloaded):
    check(norm, arch, reloaded)


def test_network_of_many_layers():
    with op_by_op("mobilenet_v2"):
        check("bn", "mobilenet_v2", lambda model: model)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "arch"), sorted(ONE_OF_EACH))
def test_each_norm_and_each_network_when_compiled(norm, arch, reloaded):
    keras.utils.clear_session()
    check(norm, arch, reloaded)


def check(norm: str, arch: str, reloaded: Callable[[keras.Model], keras.Model]) -> None:
    if norm.endswith("_tfa") and (BACKEND != "tensorflow" or not find_spec("tensorflow_addons")):
        pytest.skip("tensorflow-addons is not installed, or not for this backend")
    keras.utils.clear_session(free_memory=False)
    config = replace(composed(f"arch={arch}", *TINY[arch]), norm=composed(f"norm={norm}").norm)
    if (norm, arch) in REFUSED:
        with pytest.raises(UserError, match=f"{norm} cannot be built into arch={arch}") as refused:
            build_model(config, SHAPE, CLASSES)
        assert REFUSED[norm, arch] in str(refused.value)
        assert "\n" not in str(refused.value)
        return
    model = build_model(config, SHAPE, CLASSES)
    train_a_step(model, config.arch.get("auxiliary_weight", 0.0))
    reloaded(model)


@cache
def composed(*overrides: str) -> Config:
    """Half of a pair's config: composing takes longer than a step."""
    return compose(overrides)


def train_a_step(model: keras.Model, auxiliary_weight: float) -> None:
    """Run one step of the engine's loop on random images and check that all weights are finite."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (BATCH, *SHAPE), np.uint8)
    split = SimpleNamespace(images=pixels, labels=random.integers(0, CLASSES, BATCH, np.int32))
    images = Images(np.full(1, 0.5, np.float32), np.full(1, 0.3, np.float32), 0, False)
    settings = LoopSettings(
        batch=BATCH,
        eval_batch=BATCH,
        seed=0,
        smoothing=0.0,
        optimizer=SGD(momentum=0.9, nesterov=True, weight_decay=5e-4, agc=0.0),
        images=images,
        scaled_loss=False,
        auxiliary_weight=auxiliary_weight,
    )
    initialize_from(model, pixels, images)
    make = loop_class(BACKEND)
    loop = make(model, SimpleNamespace(train=split, validation=split, test=split), settings)  # pyright: ignore[reportCallIssue]
    before = loop.state()
    loop.begin_epoch(0)
    steps = loop.train(0, np.full(1, 1e-3, np.float32))
    assert np.isfinite(steps.loss).all()
    assert steps.grad_norm > 0
    after = loop.state()
    assert all(np.isfinite(value).all() for value in after.values())
    trained = [name for name in after if name.startswith("model/") and name.endswith("kernel")]
    assert any(not np.array_equal(before[name], after[name]) for name in trained)


@contextmanager
def op_by_op(arch: str) -> Iterator[None]:
    """Let TensorFlow run functions eagerly, because tracing takes longer than a step.

    Except for ResNeXt: Keras compiles its grouped convolutions with XLA, which has their gradients
    on every processor; op by op, TensorFlow has them only with oneDNN.
    """
    if BACKEND != "tensorflow" or arch == "resnext50":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)

from itertools import pairwise

import numpy as np
import pytest

from normbench.archs.conv_encoder import build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, parameter_count
from normbench.norms.norm import Norm

ORIGINAL = {
    "widths": [8, 32, 32, 64, 64, 128],
    "halvings": 5,
    "embedding": 128,
    "embedding_kernel": 1,
    "head": "flatten",
}


def test_original_embeds_512_by_512_images_at_one_position():
    model = build(Norm(None), (512, 512, 3), 10, **{**ORIGINAL, "embedding_kernel": 16})
    sides = [model.get_layer(f"stage{stage}_conv1").output.shape[1] for stage in range(1, 7)]
    assert sides == [512, 256, 128, 64, 32, 16]
    assert model.get_layer("embedding_conv").output.shape == (None, 1, 1, 128)


def test_stages_have_the_given_widths_and_all_but_the_last_are_halved():
    model = build(Norm(None), (32, 32, 3), 10, **ORIGINAL)
    # By hand: 3×3 convolutions with biases, two per stage and one more per halving.
    chain = [3]
    for width, count in zip(ORIGINAL["widths"], (3, 3, 3, 3, 3, 2), strict=True):
        chain += [width] * count
    convolutions = sum((9 * i + 1) * o for i, o in pairwise(chain))
    assert parameter_count(model) == convolutions + 129 * 128 + 129 * 10


@pytest.mark.parametrize("side", [28, 32, 224])
@pytest.mark.parametrize("head", ["flatten", "global_max", "global_average"])
def test_output_is_one_logit_per_class(side, head):
    options = {"widths": [4, 4, 4], "halvings": 2, "embedding": 4, "embedding_kernel": 3}
    model = build(Norm(None), (side, side, 3), 7, **options, head=head)
    assert model.output_shape == (None, 7)
    size = (side // 4 - 2) ** 2 if head == "flatten" else 1
    assert model.get_layer("logits").kernel.shape == (4 * size, 7)


def test_command_in_the_config_puts_min_max_on_the_embedding_only():
    options = ["arch.halvings=3", "arch.embedding_kernel=3"]
    config = compose(["arch=conv_encoder", "norm=bn_head_minmax", *options])
    model = build_model(config, (32, 32, 3), 10)
    kinds = {layer.name: type(layer).__name__ for layer in model.layers if "_norm" in layer.name}
    assert kinds.pop("embedding_norm") == "MinMaxNormalization"
    assert set(kinds.values()) == {"BatchNormalization"}
    assert len(kinds) == 3 * 3 + 2 * 3
    embedding = model.get_layer("embedding_norm")
    assert not embedding.variables
    assert embedding.input.shape == (None, 2, 2, 128)
    values = np.asarray(embedding(np.random.default_rng(0).normal(size=(3, 2, 2, 128))))
    assert (values.min(), values.max()) == (0, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"head": "global_avg"}, "unknown arch.head 'global_avg': did you mean 'global_average'"),
        ({"halvings": 7}, "arch.halvings must be in 0..6"),
        ({"widths": []}, "arch.widths must hold"),
        ({"widths": [8, 0]}, "arch.widths must hold"),
        ({"embedding": 0}, "arch.embedding must be at least 1"),
        ({"embedding_kernel": 16}, r"does not fit the 1×1 that 5 halvings leave of 32×32"),
        ({"widths": [8] * 7, "halvings": 6}, "halves its images 6 times"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        build(Norm(None), (32, 32, 3), 10, **{**ORIGINAL, **bad})


@pytest.mark.parametrize("norm", ["bn", "minmax_image"])
def test_saves_and_loads(norm, reloaded):
    overrides = ["arch=conv_encoder", f"norm={norm}", "arch.widths=[8,8]", "arch.halvings=1"]
    reloaded(build_model(compose(overrides), (8, 8, 1), 10))

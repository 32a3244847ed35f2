import pytest

from normbench.archs.resnet_small import build
from normbench.errors import UserError
from normbench.norms.norm import Norm
from tests.marks import slow


# He et al. 2016, table 6: 0.27, 0.46 and 0.85 M parameters with shortcuts padded by zeros. Ours
# are convolutions, 512 + 2,048 weights and 192 of their normalizations more.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), slow(32, 0.46), slow(56, 0.85)])
def test_parameter_counts_are_the_published_ones(depth, millions):
    from functools import partial

    from normbench.norms import BatchNormalization

    model = build(Norm(partial(BatchNormalization)), (32, 32, 3), 10, depth=depth, width=16)
    trained = sum(int(v.value.shape.num_elements()) for v in model.trainable_variables)
    padded = trained - 16 * 32 - 32 * 64 - 2 * (32 + 64)
    assert round(padded / 1e6, 2) == millions


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (17, 31, 3)])
def test_output_is_one_logit_a_class(shape):
    model = build(Norm(None), shape, 7, depth=8, width=4)
    assert model.output_shape == (None, 7)


def test_convolutions_have_a_bias_just_where_nothing_normalizes():
    from normbench.norms import GroupNormalization

    def biases(model):
        return [v.path for v in model.variables if v.path.endswith("conv1/bias")]

    assert biases(build(Norm(None), (8, 8, 1), 10, depth=8, width=4))
    norm = Norm(lambda name: GroupNormalization(2, name=name))
    assert not biases(build(norm, (8, 8, 1), 10, depth=8, width=4))


@pytest.mark.parametrize(
    "bad", [{"depth": 9, "width": 4}, {"depth": 2, "width": 4}, {"depth": 8, "width": 0}]
)
def test_impossible_shapes_are_refused(bad):
    with pytest.raises(UserError, match=r"arch\."):
        build(Norm(None), (8, 8, 1), 10, **bad)

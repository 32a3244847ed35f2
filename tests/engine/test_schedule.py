import math

import numpy as np
import pytest

from normbench.engine import schedule
from normbench.errors import UserError


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.4), ("sqrt", 0.2), ("none", 0.1)])
def test_peak_scales_with_the_batch(scaling, expected):
    assert schedule.peak(0.1, 512, 128, scaling) == pytest.approx(expected)


def test_cosine_warms_up_then_falls_to_its_final_share():
    factors = schedule.cosine(100, warmup=0.1, final=0.2)
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10, rtol=1e-6)
    later = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(90)]
    np.testing.assert_allclose(factors[10:], later, rtol=1e-6)
    assert factors.dtype == np.float32


def test_step_drops_at_its_milestones():
    factors = schedule.step(40, warmup=0.0, milestones=[0.5, 0.75], factor=0.1)
    np.testing.assert_allclose(factors, [1.0] * 20 + [0.1] * 10 + [0.01] * 10, rtol=1e-6)


def test_constant_stays():
    assert (schedule.constant(7, warmup=0.0) == 1).all()


@pytest.mark.parametrize(
    "bad",
    [
        lambda: schedule.cosine(10, warmup=1.0, final=0.0),
        lambda: schedule.cosine(10, warmup=0.0, final=2.0),
        lambda: schedule.step(10, warmup=0.0, milestones=[2], factor=0.1),
        lambda: schedule.peak(0.1, 16, 0, "linear"),
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(UserError):
        bad()

"""Numbers out of range are refused with the option's name, in every config group."""

from __future__ import annotations

import re

import pytest

from normbench.config import compose
from normbench.engine.reuse import WarmState
from normbench.errors import NormbenchError
from normbench.sweep.preflight import refusal


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.crop_padding=-1", "dataset.crop_padding must be in 0..7 for images of 8×8, got"),
        ("dataset.crop_padding=8", "dataset.crop_padding must be in 0..7 for images of 8×8, got 8"),
        ("dataset.crop_padding=1000", "dataset.crop_padding must be in 0..7"),
        ("dataset.cutout=8", "dataset.cutout must be in 0..7 for images of 8×8, got 8"),
        ("dataset.cutout=-1", "dataset.cutout must be in 0..7"),
        ("dataset.cutout=1.5", "dataset.cutout must be a whole number, got 1.5"),
        ("dataset.erasing=1.5", "dataset.erasing must be in [0, 1], got 1.5"),
        ("dataset.jitter=1.5", "dataset.jitter must be in [0, 1], got 1.5"),
        ("dataset.randaugment=9", "dataset.randaugment must be a whole number in 0..8, got 9"),
        ("dataset.magnitude=31", "dataset.magnitude must be a whole number in 0..30, got 31"),
        ("dataset.train_size=0", "train_size 0 is not possible"),
        ("dataset.validation=-1", "validation -1 is not possible"),
        ("dataset.split_seed=-1", "split_seed -1"),
        ("optimizer.lr=0", "optimizer.lr must be above 0"),
        ("optimizer.lr=nan", "optimizer.lr must be a finite number"),
        ("optimizer.lr=inf", "optimizer.lr must be a finite number"),
        ("optimizer.momentum=1", "optimizer.momentum must be in [0, 1)"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay must be 0 or more"),
        ("optimizer.base_batch=0", "optimizer.base_batch must be at least 1"),
        ("optimizer.agc=-1", "optimizer.agc must be 0 or more"),
        ("optimizer=adamw optimizer.epsilon=0", "optimizer.epsilon must be above 0, got 0"),
        ("optimizer=adamw optimizer.epsilon=-1", "optimizer.epsilon must be above 0, got -1"),
        ("schedule.warmup=1", "schedule.warmup must be a share of all steps in [0, 1)"),
        ("schedule.final=2", "schedule.final must be in 0..1"),
        ("schedule=step schedule.factor=-1", "schedule.factor must be above 0 and at most 1"),
        ("schedule=step schedule.factor=0", "schedule.factor must be above 0 and at most 1"),
        ("schedule=step schedule.factor=2", "schedule.factor must be above 0 and at most 1"),
        ("schedule=step schedule.milestones=[1]", "schedule.milestones must be shares in 0..1"),
        ("norm=bn norm.epsilon=-1", "epsilon must be 0 or more, got -1"),
        ("norm=bn_keras norm.epsilon=-1", "norm=bn_keras: epsilon must be 0 or more, got -1"),
        ("norm=bn_keras norm.momentum=2", "norm=bn_keras: momentum must be in 0..1, got 2"),
        ("norm=gn_ws norm.weight.epsilon=-1", "norm/weight=ws: epsilon must be 0 or more, got -1"),
        ("norm=gn_ws_assign norm.weight.epsilon=-1", "epsilon must be 0 or more, got -1"),
        ("norm=gn_ws_regularizer norm.weight.epsilon=-1", "epsilon must be 0 or more, got -1"),
        ("norm=gn_scaled_ws norm.weight.gamma=0", "gamma must be above 0, got 0"),
        ("norm=bn_sn norm.weight.iterations=1000000000", "iterations must be in 1..100"),
        ("norm=iternorm norm.iterations=1000000000", "iterations must be in 1..100"),
        ("batch=0", "batch must be at least 1"),
        ("batch=2000", "batch=2000 is larger than the training set"),
        ("epochs=0", "epochs must be at least 1"),
        ("eval_batch=0", "eval_batch must be at least 1"),
        ("eval_batch=1000000000000", "eval_batch must be below 2147483648"),
        ("accumulate=5", "does not divide batch=16 (allowed: 1, 2, 4, 8, 16, auto)"),
        ("label_smoothing=1", "label_smoothing must be in [0, 1)"),
        ("max_loss=0", "max_loss must be above 0"),
        ("seed=-1", "seed must be in 0..4294967295"),
        ("seed=4294967296", "seed must be in 0..4294967295"),
    ],
)
def test_number_out_of_range_is_refused(override, message):
    base = ["dataset=digits", "arch=resnet8", "arch.width=8", "batch=16", "epochs=1"]
    try:
        error_text = refusal(compose([*base, *override.split()]), WarmState(), {})
    except NormbenchError as error:
        error_text = str(error)
    assert re.search(re.escape(message), error_text)
    assert "\n" not in error_text

"""The filter: what it keeps, what it refuses, and that it never executes code."""

from __future__ import annotations

import contextlib

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench.errors import UserError
from normbench.report.where import select

RUNS = pd.DataFrame(
    {
        "name": ["a", "b", "c", "d", "e"],
        "norm": ["bn", "gn", "gn_ws", "none", "bn"],
        "norm.groups": [None, 8.0, 16.0, None, None],
        "batch": [16, 32, 64, 128, 512],
        "status": ["finished", "finished", "diverged", "failed", "running"],
        "test_acc": [0.9, 0.8, None, None, 0.95],
        "val_acc": [0.8, 0.9, 0.1, None, 0.96],
        "commit": ["1", "2", None, "1", "1"],
        "dirty": pd.array([True, False, False, None, True], dtype="boolean"),
    }
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("norm in [bn, gn] and batch <= 64", "ab"),
        ("norm not in (bn, gn)", "cd"),
        ("norm == gn_ws", "c"),
        ("norm == 'gn' or batch == 512", "be"),
        ("not norm == bn", "bcd"),
        ("16 < batch <= 128", "bcd"),
        ("64 >= batch", "abc"),
        ("norm.groups == 8", "b"),
        ("norm.groups != 8", "acde"),
        ("norm == none", "d"),
        ("commit == none", "c"),
        ("test_acc > 0.85", "ae"),
        ("test_acc > val_acc", "a"),
        ("dirty", "ae"),
        ("not dirty", "bcd"),
        ("dirty == false", "bc"),
        ("batch > -1", "abcde"),
        ("(norm == bn and batch == 16) or status == diverged", "ac"),
    ],
)
def test_filter_keeps_matching_runs(text: str, names: str) -> None:
    assert "".join(RUNS["name"][select(text, RUNS).mask]) == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nrom == bn", "did you mean 'norm'"),
        ("norm.group == 8", "did you mean 'norm.groups'"),
        ("norm == gm", "did you mean 'gn'"),
        ("norm = bn", "cannot read --where 'norm = bn': equality is written =="),
        ("batch >= 16 and norm=bn", "equality is written =="),
        ("batch >= >= 16", "invalid syntax"),
        ("tag == paper", "a tag is written tag.NAME"),
        ("tag.paper", "unknown tag in --where 'paper'"),
        ("batch < big", "'batch' is a number"),
        ("batch == bn", "'batch' is a number"),
        ("norm < gn", "has no order"),
        ("norm in bn", "is not a list"),
        ("__import__('os').system('true')", "cannot read --where"),
        ("norm == (lambda: 1)()", "is not a value"),
        ("[x for x in norm]", "is not a comparison"),
        ("batch", "is not a comparison"),
        ("norm == gn-8", "quote text with"),
        ("", "--where is empty"),
        ("batch + 1 == 17", "is not a column"),
        ("norm is bn", "use =="),
        ("batch == 1j", "neither a number nor text"),
        ("not " * 600 + "dirty", "longer than"),
        ("(" * 500 + "dirty" + ")" * 500, "cannot read --where"),
    ],
)
def test_invalid_filter_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")) as caught:
        select(text, RUNS)
    assert "\n" not in str(caught.value)


def test_value_that_no_run_has_is_noted_if_others_match() -> None:
    found = select("norm in [bn, gm]", RUNS)
    assert found.mask.sum() == 2
    assert found.notes == ["no run has norm 'gm' (did you mean 'gn'?)"]


@given(st.text("abnorm.=<>!()[], '\"01+-*_:{}@\\\n", max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert len(select(text, RUNS).mask) == len(RUNS)

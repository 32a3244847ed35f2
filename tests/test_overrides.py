"""Override values: Hydra's grammar, and arbitrary text for keys that take a string."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normbench.config import compose
from normbench.errors import UserError
from normbench.overrides import parse, quoted
from normbench.sweep.executors.base import choose
from normbench.sweep.grid import expand

TEXTS = [
    "実験",
    "it's",
    "1e3",
    "007",
    "1_000",
    "true",
    "null",
    "[a]",
    "{a: 1}",
    "a,b",
    "a, b!",
    "range(3)",
    "f(x)",
    "x=y",
    "(a",
    "'a",
    '"',
    "a&b#c",
    "costs $5 & $6",
    "${",
    "\\",
    "a\nb",
    "🎉",
]


@pytest.mark.parametrize("text", TEXTS)
def test_string_keys_accept_any_text(text: str) -> None:
    config = compose([f"label={text}", f"store={text}"])
    assert (config.label, config.store) == (text, text)


def test_string_keys_of_a_group_accept_any_text() -> None:
    for text in ("it's", "1e3", "file:///a,b"):
        config = compose(["logger=mlflow", f"logger.mlflow.uri={text}"])
        assert config.logger["mlflow"]["uri"] == text
    assert choose(["executor=slurm", "executor.partition=größe"])[0]["partition"] == "größe"


def test_quotes_escapes_and_interpolations_work_as_in_hydra() -> None:
    written = {
        "'a b'": "a b",
        '"it\'s"': "it's",
        r"a\,b": "a,b",
        " x ": "x",
        "": "",
        "b${batch}": "b128",
        '"$\\bn$ plain"': "$\\bn$ plain",
    }
    for text, expected_label in written.items():
        assert compose([f"label={text}"]).label == expected_label
        assert compose(["norm=xbn", f"label={text}"]).label == expected_label


def test_unresolved_interpolation_is_refused_in_one_line() -> None:
    for text in ("${nothing}", "${a!}"):
        with pytest.raises(UserError, match=r"nothing|a!") as caught:
            compose([f"label={text}"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " ", "''"])
def test_empty_store_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="store is empty"):
        compose([f"store={text}"])


def test_sweep_takes_strings_as_typed(tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("name: mine\n_target_: mine.Mine\nmode: a\n")
    cells = expand(["norm=mine", "norm.mode=007,1e3,実験,it's,'a,b',true"], tmp_path)
    assert [cell.norm["mode"] for cell in cells] == ["007", "1e3", "実験", "it's", "a,b", "true"]


def test_store_of_a_sweep_may_contain_a_comma() -> None:
    assert {config.store for config in expand(["store=a,b", "seed=0,1"])} == {"a,b"}


def test_values_that_hydra_cannot_parse_give_an_error_about_their_key() -> None:
    for override, message in {
        "batch=実": "batch must be a whole number, got '実'",
        "batch=[1": "batch must be a whole number, got '[1'",
        "norm=bn!": "unknown norm 'bn!': did you mean 'bn'",
    }.items():
        with pytest.raises(UserError) as caught:
            compose([override])
        assert message in str(caught.value)


def test_lists_of_strings_are_lists() -> None:
    assert parse(["x=[größe,b]"])[0].value() == ["größe", "b"]
    assert parse(["x=größe,b"])[0].is_sweep_override()


@given(st.text(min_size=1).filter(lambda text: "${" not in text))
def test_quoted_text_is_read_back(text: str) -> None:
    (override,) = parse([f"key={quoted(text)}"])
    assert override.value() == text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=log(0.025,0.4,5)", [0.025, 0.05, 0.1, 0.2, 0.4]),
        ("optimizer.lr=log(0.01,1,7)", [0.01, 0.0215, 0.0464, 0.1, 0.215, 0.464, 1.0]),
        ("optimizer.lr=log(0.4,0.00625,7)", [0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625]),
        ("batch=log(16,256,5)", [16, 32, 64, 128, 256]),
    ],
)
def test_log_gives_values_with_a_constant_ratio(override, expected):
    values = [c.optimizer["lr"] if "lr" in override else c.batch for c in expand([override])]
    assert values == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=log(0,1,3)", "'optimizer.lr=log(0,1,3)': log() needs limits above 0, got 0"),
        ("optimizer.lr=log(0.1,0.1,3)", "needs two limits and a count of 2 to 1,000"),
        ("optimizer.lr=log(0.1,0.2,1)", "needs two limits and a count of 2 to 1,000"),
        ("batch=log(1,3,8)", "there are not 8 whole numbers on a log scale in 1..3"),
        ("optimizer.lr=log(0.1)", "optimizer.lr must be a number, got 'log(0.1)'"),
        (
            "optimizer.lr=log(0.1,0.2)",
            "has no finite set of values; use range(start, stop, step)",
        ),
        ("optimizer.lr=log(0,0.2)", "log() needs limits above 0, got 0"),
    ],
)
def test_log_refuses_invalid_limits_and_counts(override, message):
    with pytest.raises(UserError) as refused:
        expand([override])
    assert message in str(refused.value)


def test_label_may_look_like_log():
    assert expand(["label=log(x)"])[0].label == "log(x)"

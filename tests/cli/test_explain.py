"""``normbench explain``: keys and choices, explained by the comments in conf/."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from normbench.cli import main
from normbench.cli.explain import explained, page
from normbench.components import group_options
from normbench.errors import UserError


def test_key_is_explained_by_its_comment():
    assert explained("batch") == [{"key": "batch", "value": "128", "meaning": "images per step"}]


def test_group_key_is_explained_for_each_choice_that_has_it():
    rows = explained("optimizer.lr")
    assert {row["in"]: row["value"] for row in rows} == {"sgd": "0.1", "adamw": "0.001"}
    assert {row["meaning"] for row in rows} == {"at base_batch images per step"}


def test_meaning_falls_back_to_other_choices_and_the_docstring():
    assert all(row["meaning"] for row in explained("dataset.flip"))
    [row] = explained("norm.scale")[:1]
    assert row["meaning"]


def test_choice_includes_the_keys_of_its_defaults():
    keys = [row["key"] for row in explained("norm=gn_ws")]
    assert "norm.groups" in keys
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("group", sorted(group_options()))
def test_every_choice_of_a_group_has_a_meaning(group: str):
    rows = explained(group)
    assert [row["choice"] for row in rows] == [f"{group}={n}" for n in group_options()[group]]
    assert all(row["meaning"] and "@package" not in row["meaning"] for row in rows)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("batc", "batch"), ("arch.dept", "arch.depth"), ("arch=airbenh", "airbench"),
     ("optimiser=sgd", "optimizer")],
)  # fmt: skip
def test_user_error_is_one_line_with_the_nearest_name(word: str, nearest: str, capsys):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
        explained(word)
    assert main(["explain", word]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_terminal_shows_the_header_of_a_choice(capsys):
    Console().print(page("norm.weight=ws", explained("norm.weight=ws"), None))
    assert "Weight Standardization" in capsys.readouterr().out


def test_choices_in_config_dir_are_explained(tmp_path: Path, capsys):
    folder = tmp_path / "schedule"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# Mine.\nname: mine\nsteps: 3   # how many\n")
    assert main(["explain", "schedule=mine", "--config-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "schedule.steps\t3\thow many"

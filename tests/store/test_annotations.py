"""Tags and notes of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from normbench.errors import UserError
from normbench.report.frames import load
from normbench.store.annotations import Annotations, annotate, read
from normbench.store.store import Run, Store, StoreError
from tests.report.conftest import config, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_run(tmp_path, config("bn", 16, 0))
    (run,) = Store(tmp_path).runs()
    return run


def test_tags_and_note_do_not_change_the_record(run: Run) -> None:
    record = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert read(run) == Annotations()
    assert annotate(run, ["paper", "a1"], note="the middle one") == Annotations(
        ("a1", "paper"), "the middle one"
    )
    assert annotate(run, ["paper"], ["a1"]) == Annotations(("paper",), "the middle one")
    assert read(run) == Annotations(("paper",), "the middle one")
    assert annotate(run, note="") == Annotations(("paper",), "")
    for name, data in record.items():
        assert (run.path / name).read_bytes() == data
    run.verify()


def test_tags_become_boolean_columns(run: Run) -> None:
    annotate(run, ["paper"])
    write_run(run.path.parent, config("gn", 16, 0))
    frames = load(run.path.parent)
    assert frames.runs.set_index("norm")["tag.paper"].fillna(False).to_dict() == {
        "bn": True,
        "gn": False,
    }
    assert "tag.paper" not in frames.runs.attrs["config"]


@pytest.mark.parametrize("tag", ["", "two words", "1st", "a-b", "é", "x" * 41, "a.b"])
def test_invalid_tag_is_refused(run: Run, tag: str) -> None:
    with pytest.raises(UserError, match="is not a tag"):
        annotate(run, [tag])
    assert read(run) == Annotations()


def test_removing_an_absent_tag_is_refused(run: Run) -> None:
    annotate(run, ["paper"])
    with pytest.raises(UserError, match="did you mean 'paper'"):
        annotate(run, [], ["papr"])


@pytest.mark.parametrize("content", ["{", '{"tags": "paper"}', '{"tags": ["two words"]}', "[]"])
def test_damaged_annotations_file_is_named(run: Run, content: str) -> None:
    (run.path / "annotations.json").write_text(content)
    with pytest.raises(StoreError, match=r"annotations\.json"):
        read(run)
    (left_out,) = load(run.path.parent).left_out
    assert "annotations.json" in str(left_out)


def test_note_length_is_limited(run: Run) -> None:
    annotate(run, note="x" * 2000)
    with pytest.raises(UserError, match="2,001 characters"):
        annotate(run, note="x" * 2001)
    assert len(json.loads((run.path / "annotations.json").read_text())["note"]) == 2000

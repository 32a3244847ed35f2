"""The archive of a store: the same bytes each time, whole, and readable when unpacked."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.cli import main
from normbench.report.pack import pack
from normbench.report.report import report
from normbench.store.files import StoreError
from normbench.store.store import Store


@pytest.fixture
def store(grid: Callable[..., Path]) -> Path:
    return grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)


def quiet(line: str) -> None:
    pass


def unpacked(archive: Path, folder: Path) -> Path:
    shutil.unpack_archive(archive, folder)
    return folder / "paper"


def test_a_store_has_the_same_archive_wherever_it_lies(store: Path, tmp_path: Path) -> None:
    first = pack(store, tmp_path / "paper.tar.gz", say=quiet).read_bytes()
    store.rename(moved := tmp_path / "elsewhere")
    (moved / ".hidden").write_text("not packed")
    assert pack(moved, tmp_path / "paper.tar.gz", force=True, say=quiet).read_bytes() == first


@pytest.mark.usefixtures("one_figure")
def test_unpacked_archive_is_whole_and_readable(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Store(store).runs()[0]
    (run.path / "checkpoint").mkdir(exist_ok=True)
    (run.path / "checkpoint" / "last.npz").write_bytes(b"weights")
    (run.path / "log.txt").unlink(missing_ok=True)
    (run.path / "log.txt").symlink_to("/etc/passwd")
    folder = unpacked(pack(store, tmp_path / "paper.tar.gz", say=quiet), tmp_path / "out")
    listed = dict(
        reversed(line.split("  ", 1)) for line in (folder / "MANIFEST").read_text().splitlines()
    )
    present = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "MANIFEST"
    }
    assert listed == present
    assert not [name for name in present if name.endswith((".npz", "lock.json", "log.txt"))]
    assert {"README.md", "report/index.html", "conf/norm/gn.yaml"} <= {*present}
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert f"../runs/{run.name}" in page
    assert str(tmp_path) not in page
    assert main(["list", str(folder / "runs")]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["report", str(folder / "runs"), "--out", str(tmp_path / "again")]) == 0
    assert not Store(folder / "runs").foreign()


@pytest.mark.usefixtures("one_figure")
def test_the_report_of_a_tuned_store_is_the_same_in_the_archive(
    tmp_path: Path, synth: SimpleNamespace
) -> None:
    store = synth.write_tuned(tmp_path / "runs", ("bn", "gn"), (16,), (0.1, 0.2), seeds=2)
    report(store, out=tmp_path / "report", say=quiet)
    folder = unpacked(pack(store, tmp_path / "paper.tar.gz", say=quiet), tmp_path / "unpacked")
    tables = sorted(path.name for path in (tmp_path / "report" / "tables").iterdir())
    assert "tuning.md" in tables
    assert sorted(path.name for path in (folder / "report" / "tables").iterdir()) == tables
    for name in ("tuning.md", "test_acc.md", "test_acc-differences.md"):
        packed = (folder / "report" / "tables" / name).read_text()
        assert packed == (tmp_path / "report" / "tables" / name).read_text()


@pytest.mark.usefixtures("one_figure")
def test_checkpoints_are_packed_on_request(store: Path, tmp_path: Path) -> None:
    run = Store(store).runs()[0]
    (run.path / "checkpoint").mkdir(exist_ok=True)
    (run.path / "checkpoint" / "last.npz").write_bytes(b"weights")
    archive = pack(store, tmp_path / "paper.tgz", checkpoints=True, say=quiet)
    with tarfile.open(archive) as opened:
        names = opened.getnames()
        entries = opened.getmembers()
    assert f"paper/runs/{run.name}/checkpoint/last.npz" in names
    assert {(entry.uid, entry.gid, entry.uname, entry.mtime) for entry in entries} == {
        (0, 0, "", 315532800)
    }


@pytest.mark.usefixtures("one_figure")
def test_damaged_runs_are_left_out_and_named(store: Path, tmp_path: Path) -> None:
    run = Store(store).runs()[0]
    (run.path / "meta.json").write_text("{")
    said: list[str] = []
    archive = pack(store, tmp_path / "paper.tar.gz", say=said.append)
    assert said[0].startswith(f"left out: {run.name}: ")
    with tarfile.open(archive) as opened:
        assert not [name for name in opened.getnames() if f"runs/{run.name}" in name]


@pytest.mark.usefixtures("one_figure")
def test_nothing_is_left_of_an_archive_that_could_not_be_written(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("normbench.report.pack._write", full)
    with pytest.raises(StoreError, match="No space left on device"):
        pack(store, tmp_path / "paper.tar.gz", say=quiet)
    assert [path for path in tmp_path.iterdir() if "paper" in path.name] == []


def test_mistakes_are_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.tar.gz"
    there.write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([str(store)], "--out"),
        ([str(store), "--out", str(there)], "exists: --force replaces it"),
        ([str(store), "--out", str(store / "a.tar.gz")], "lies in the store"),
        ([str(store), "--out", str(tmp_path / "a.zip")], "ends in .tar.gz"),
        ([str(tmp_path / "no"), "--out", str(tmp_path / "a.tar.gz")], "there is no store"),
        ([str(tmp_path / "empty"), "--out", str(tmp_path / "a.tar.gz")], "nothing to pack"),
        ([str(store), "--out", str(tmp_path / "no" / "a.tar.gz")], "there is no folder"),
    ):
        assert main(["pack", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert there.read_bytes() == b"mine"

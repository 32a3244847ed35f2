"""The archive of a store: reproducible, complete, and readable when unpacked."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.cli import main
from normbench.report.pack import pack
from normbench.report.report import report
from normbench.store import provenance
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


@pytest.mark.usefixtures("one_figure")
def test_archive_does_not_depend_on_the_location_of_the_store(store: Path, tmp_path: Path) -> None:
    first = pack(store, tmp_path / "paper.tar.gz", say=quiet).read_bytes()
    store.rename(moved := tmp_path / "elsewhere")
    (moved / ".hidden").write_text("not packed")
    assert pack(moved, tmp_path / "paper.tar.gz", force=True, say=quiet).read_bytes() == first


@pytest.mark.usefixtures("one_figure")
def test_unpacked_archive_is_complete_and_readable(
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
def test_report_of_a_tuned_store_is_the_same_in_the_archive(
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
    lines: list[str] = []
    archive = pack(store, tmp_path / "paper.tar.gz", say=lines.append)
    assert lines[0].startswith(f"left out: {run.name}: ")
    with tarfile.open(archive) as opened:
        assert not [name for name in opened.getnames() if f"runs/{run.name}" in name]


@pytest.mark.usefixtures("one_figure")
def test_failed_write_leaves_no_archive(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("normbench.report.pack._write", full)
    with pytest.raises(StoreError, match="No space left on device"):
        pack(store, tmp_path / "paper.tar.gz", say=quiet)
    assert [path for path in tmp_path.iterdir() if "paper" in path.name] == []


def test_user_errors_are_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "there.tar.gz"
    existing.write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([str(store)], "--out"),
        ([str(store), "--out", str(existing)], "exists: --force replaces it"),
        ([str(store), "--out", str(store / "a.tar.gz")], "is in the store"),
        ([str(store), "--out", str(tmp_path / "a.zip")], "ends in .tar.gz"),
        ([str(tmp_path / "no"), "--out", str(tmp_path / "a.tar.gz")], "there is no store"),
        ([str(tmp_path / "empty"), "--out", str(tmp_path / "a.tar.gz")], "nothing to pack"),
        ([str(store), "--out", str(tmp_path / "no" / "a.tar.gz")], "there is no folder"),
    ):
        assert main(["pack", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert existing.read_bytes() == b"mine"


# --- user components ------------------------------------------------------------------------------

LAYER = """
from my_pack_formula import FACTOR

from normbench.norms import GroupNormalization


class Scaled(GroupNormalization):
    def call(self, x):
        return FACTOR * super().call(x)
"""


class UserComponents:
    """A folder with modules, and a folder of config groups that refers to some of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf = folder, folder / "my_conf"
        for name, text in (
            ("my_pack_layer.py", LAYER),
            ("my_pack_formula.py", "FACTOR = 2.0\n"),
            ("my_pack_other.py", "from my_pack_layer import Scaled as Other\n"),
        ):
            (folder / name).write_text(text)
        norm = self.conf / "norm"
        norm.mkdir(parents=True)
        (norm / "scaled.yaml").write_text(
            "defaults: [{weight: none}, scaled_base, _self_]\nname: scaled\n"
            "_target_: my_pack_layer.Scaled\n"
        )
        (norm / "scaled_base.yaml").write_text("groups: 1\n")
        (norm / "other.yaml").write_text("name: other\n_target_: my_pack_other.Other\n")
        (norm / "gn64.yaml").write_text("name: gn64\n_target_: normbench.norms.gn\ngroups: 64\n")

    def run(self, root: Path, synth: SimpleNamespace, seed: int = 0, **changes: object) -> Path:
        """Write a run that uses the folder's normalization and records its code version."""
        named = {"norm__name": "scaled", "norm___target_": "my_pack_layer.Scaled"} | changes
        path = synth.write_run(root, synth.config("gn", 16, seed, **named))
        code = provenance.own_code({"norm": {"_target_": named["norm___target_"]}})
        meta = json.loads((path / "meta.json").read_text())
        versions = {name: [version] for name, version in code.items()}
        (path / "meta.json").write_text(json.dumps(meta | {"own": versions}))
        return path


@pytest.fixture
def components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UserComponents]:
    monkeypatch.syspath_prepend(str(tmp_path))
    caches = (provenance._spec, provenance.code_hash)
    for cache in caches:
        cache.cache_clear()
    yield UserComponents(tmp_path)
    for cache in caches:
        cache.cache_clear()


def user_files(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        names = [name.removeprefix("paper/") for name in opened.getnames()]
        return [name for name in names if Path(name).suffix and name.startswith("own/")]


@pytest.mark.usefixtures("one_figure")
def test_only_user_files_that_runs_name_are_packed(
    store: Path, components: UserComponents, tmp_path: Path, synth: SimpleNamespace
) -> None:
    components.run(store, synth)
    lines: list[str] = []
    archive = pack(store, tmp_path / "paper.tar.gz", say=lines.append, config_dir=components.conf)
    assert user_files(archive) == [
        "own/conf/norm/scaled.yaml",
        "own/conf/norm/scaled_base.yaml",
        "own/my_pack_formula.py",
        "own/my_pack_layer.py",
    ]
    assert [line for line in lines if "note" in line] == []
    folder = unpacked(archive, tmp_path / "out")
    assert (folder / "own" / "my_pack_layer.py").read_text() == LAYER
    command = "PYTHONPATH=own normbench verify runs --sample 5 --config-dir own/conf"
    assert command in (folder / "README.md").read_text()
    manifest = (folder / "MANIFEST").read_text()
    assert "  own/conf/norm/scaled.yaml\n" in manifest
    first = archive.read_bytes()
    again = pack(
        store, tmp_path / "paper.tar.gz", force=True, say=quiet, config_dir=components.conf
    )
    assert again.read_bytes() == first


def test_user_config_of_a_shipped_component_is_packed_if_a_run_names_it(
    store: Path, components: UserComponents, tmp_path: Path, synth: SimpleNamespace
) -> None:
    tree = synth.config("gn", 16, 5, norm__name="gn64")
    synth.write_run(store, tree)
    archive = pack(store, tmp_path / "paper.tar.gz", say=quiet, config_dir=components.conf)
    assert user_files(archive) == ["own/conf/norm/gn64.yaml"]


@pytest.mark.usefixtures("one_figure")
def test_nothing_is_added_without_user_components(
    store: Path, components: UserComponents, tmp_path: Path
) -> None:
    with_folder = pack(store, tmp_path / "paper.tar.gz", say=quiet, config_dir=components.conf)
    assert user_files(with_folder) == []
    first = with_folder.read_bytes()
    assert pack(store, tmp_path / "paper.tar.gz", force=True, say=quiet).read_bytes() == first


def test_code_changed_since_training_is_named(
    store: Path, components: UserComponents, tmp_path: Path, synth: SimpleNamespace
) -> None:
    for seed in (0, 1):
        components.run(store, synth, seed)
    (components.folder / "my_pack_formula.py").write_text("FACTOR = 3.0\n")
    provenance.code_hash.cache_clear()
    lines: list[str] = []
    pack(store, tmp_path / "paper.tar.gz", say=lines.append, config_dir=components.conf)
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert "2 runs cannot be verified: the run was trained with my_pack_layer.Scaled " in note


def test_installed_package_is_named_and_not_packed(
    store: Path, components: UserComponents, tmp_path: Path, synth: SimpleNamespace
) -> None:
    (components.conf / "norm" / "rich.yaml").write_text("name: rich\n_target_: rich.text.Text\n")
    changes = {"norm__name": "rich", "norm___target_": "rich.text.Text"}
    components.run(store, synth, **changes)
    lines: list[str] = []
    archive = pack(store, tmp_path / "paper.tar.gz", say=lines.append, config_dir=components.conf)
    assert user_files(archive) == ["own/conf/norm/rich.yaml"]
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert re.fullmatch(r"note: rich==[\d.]+ is an installed package and not packed: .*", note)
    readme = (unpacked(archive, tmp_path / "out") / "README.md").read_text()
    assert re.search(r"^    pip install rich==[\d.]+$", readme, re.MULTILINE)


def test_missing_user_files_are_refused_in_one_line(
    store: Path,
    components: UserComponents,
    tmp_path: Path,
    synth: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = components.run(store, synth)
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["pack", str(store), "--out", str(tmp_path / "paper.tar.gz")]

    def refusal(*words: str) -> str:
        assert main([*command, *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (tmp_path / "paper.tar.gz").exists()
        return error

    named = f"run {run.name} names 'my_pack_layer.Scaled' at norm, "
    assert f"{named}which no file of norm has in conf/ (--config-dir adds" in refusal()
    missing = refusal("--config-dir", str(empty))
    assert f"{named}which no file of norm has in conf/ or {empty}\n" in missing
    nowhere = tmp_path / "nowhere"
    assert f"--config-dir '{nowhere}' is not a folder" in refusal("--config-dir", str(nowhere))
    (components.folder / "my_pack_layer.py").unlink()
    provenance._spec.cache_clear()
    importlib.invalidate_caches()
    assert f"{named}and there is no module 'my_pack_layer' in " in refusal(
        "--config-dir", str(components.conf)
    )

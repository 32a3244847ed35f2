"""Users' own data sets in every command, without Python: an npz file and a folder of images."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from normbench.cli import main
from normbench.config import compose
from normbench.data.cifar import CIFAR10
from normbench.data.digits import Digits
from normbench.report import load
from normbench.store.store import Store
from tests.marks import slow_except


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "normbench" / "data"


def npz_of_digits(root: Path) -> list[str]:
    """Write the embedded digits as an npz file, and return the overrides that choose it."""
    digits = Digits().arrays()
    np.savez_compressed(
        root / "mine.npz",
        x_train=digits.train_images,
        y_train=digits.train_labels,
        x_test=digits.test_images,
        y_test=digits.test_labels,
    )
    return ["dataset=npz", f"dataset.path={root / 'mine.npz'}"]


def folder_of_digits(root: Path) -> list[str]:
    """Write 400 of the embedded digits as JPEG files, and return the overrides that choose them."""
    digits = Digits().arrays()
    for index, (pixels, label) in enumerate(
        zip(digits.train_images[:400], digits.train_labels, strict=False)
    ):
        file = root / "mine" / str(label) / f"{index:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).resize((20, 16)).save(file, quality=90)
    shares = ["dataset.test=0.2", "dataset.size=8"]
    return ["dataset=images", f"dataset.path={root / 'mine'}", *shares]


FORMS = [npz_of_digits, folder_of_digits]


def run_overrides(store: Path, *more: str) -> list[str]:
    return [
        *("arch=mlp_sigmoid", "arch.units=3", "batch=50", "epochs=1", f"store={store}"),
        *(f"backend={keras.backend.backend()}", *more),
    ]


@pytest.mark.parametrize("form", slow_except([folder_of_digits], FORMS))
def test_every_command_works_with_user_data(
    form: Callable[[Path], list[str]], tmp_path: Path, cache: Path, capsys: Any
) -> None:
    dataset, store = form(tmp_path), tmp_path / "runs"
    run = [*run_overrides(store), *dataset]

    assert main(["show", *run]) == 0
    assert "logits\tDense\t\t\t\t10\t" in capsys.readouterr().out
    assert main(["sweep", *run, "executor=inline", "--dry-run"]) == 0
    assert "missing" in capsys.readouterr().out
    assert not store.exists()
    assert main(["run", *run]) == 0
    (first,) = Store(store).runs()
    assert first.name == compose(run).run_name
    assert first.summary["status"] == "finished"

    # Moved and renamed data still belong to the same run.
    path_override = next(word for word in dataset if word.startswith("dataset.path="))
    old = Path(path_override.partition("=")[2])
    new = old.rename(old.with_name(f"moved{old.suffix}"))
    moved = [word.replace(str(old), str(new)) for word in run]
    capsys.readouterr()
    assert main(["run", *moved]) == 0
    assert "already finished" in capsys.readouterr().out
    assert main(["sweep", *moved, "norm=bn,ln", "executor=inline"]) == 0
    assert len(list(Store(store).runs())) == 2

    # The record has the old path; the images come from the cache, which is keyed by content.
    assert main(["diagnose", first.name, "--probe", "train_gap", "--store", str(store)]) == 0
    assert main(["verify", "--store", str(store)]) == 0
    assert main(["list", "--store", str(store)]) == 0
    assert main(["report", "--store", str(store), "--out", str(tmp_path / "report")]) == 0
    frame = load(store).runs
    assert set(frame["dataset"]) == {"mine", "moved"}
    assert frame["dataset.content"].nunique() == 1
    assert "dataset.path" not in frame

    shutil.rmtree(new) if new.is_dir() else new.unlink()
    shutil.rmtree(cache)
    capsys.readouterr()
    assert main(["run", *moved]) == 2
    assert capsys.readouterr().err.startswith("normbench: there is no f")
    assert main(["diagnose", first.name, "--probe", "gradients", "--store", str(store)]) == 2
    assert capsys.readouterr().err.startswith("normbench: there is no f")


@pytest.mark.parametrize("command", ["run", "sweep", "show"])
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["dataset=npz"], "dataset.path is empty: write dataset.path=FILE"),
        (["dataset=npz", "dataset.path=mime.npz"], "did you mean {root}/mine.npz?"),
        (["dataset=images", "dataset.path=mine.npz"], "is not a folder: dataset=npz reads .npz"),
        (["dataset=tfds"], "dataset.id is empty: write dataset.id=NAME, such as svhn_cropped"),
        (["dataset=npz", "dataset.path=mine.npz", "dataset.sise=8"], "unknown key 'dataset.sise'"),
    ],
)
def test_user_error_is_one_line_and_nothing_is_written(
    command: str,
    chosen: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    npz_of_digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([command, *chosen, *run_overrides(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message.format(root=tmp_path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_too_few_images_for_validation_are_refused(tmp_path: Path, capsys: Any) -> None:
    run = [*run_overrides(tmp_path / "runs"), *npz_of_digits(tmp_path), "dataset.validation=5000"]
    assert main(["run", *run]) == 2
    assert "validation 5000 is not possible: allowed 10..1427" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_sweep_over_two_files_gives_two_rows_with_their_titles(tmp_path: Path, capsys: Any) -> None:
    npz_of_digits(tmp_path)
    with np.load(tmp_path / "mine.npz") as arrays:
        np.savez(tmp_path / "inverted.npz", **{
            name: 255 - array if name[0] == "x" else array for name, array in arrays.items()
        })  # fmt: skip
    files = f"dataset.path={tmp_path}/mine.npz,{tmp_path}/inverted.npz"
    sweep = [*run_overrides(tmp_path / "runs"), "dataset=npz", files, "executor=inline"]
    assert main(["sweep", *sweep]) == 0
    assert set(load(tmp_path / "runs").runs["dataset"]) == {"mine", "inverted"}
    capsys.readouterr()
    assert main(["list", "--store", str(tmp_path / "runs")]) == 0
    listed = capsys.readouterr().out
    assert "mine" in listed
    assert "inverted" in listed
    out = ["--out", str(tmp_path / "report"), "--by", "dataset"]
    assert main(["report", "--store", str(tmp_path / "runs"), *out]) == 0


def test_data_list_says_how_to_use_your_own_data(capsys: Any) -> None:
    assert main(["data", "list"]) == 0
    last = " ".join(capsys.readouterr().out.split())
    forms = "dataset=images dataset.path=FOLDER, dataset=npz dataset.path=FILE, dataset=tfds"
    assert f"your own data: {forms} dataset.id=NAME" in last


ROOT = Path(__file__).resolve().parents[2]


def test_commands_in_the_data_docs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    folder_of_digits(tmp_path)
    (tmp_path / "mine").rename(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    exec(code, {})
    commands = re.findall(r"^normbench run (dataset=(?:npz|images) .*)$", page, re.M)
    share = "dataset.test=0.2"  # photos has no folder of test images
    composed = [
        compose(list(dict.fromkeys([*command.split(), *([share] * ("photos" in command))])))
        for command in commands
    ]
    assert [config.dataset["title"] for config in composed] == ["mine", *["photos"] * 3]


@pytest.mark.data
def test_real_cifar10_images_as_a_file_and_as_a_folder(
    real_data: Path, tmp_path: Path, capsys: Any
) -> None:
    train, test = CIFAR10().read(real_data / "cifar-10-batches-py", lambda line: None)
    splits = {"train": (train, 600), "test": (test, 200)}
    arrays = {
        name: examples[key][:count]
        for split, (examples, count) in splits.items()
        for name, key in ((f"x_{split}", "image"), (f"y_{split}", "label"))
    }
    np.savez(tmp_path / "cifar.npz", **arrays)
    for split in splits:
        pairs = zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)
        for index, (pixels, label) in enumerate(pairs):
            file = tmp_path / "cifar" / split / CIFAR10.class_names[label] / f"{index:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    small = ["arch=resnet8", "batch=100", "epochs=1", f"store={tmp_path / 'runs'}"]
    augmented = ["dataset.flip=true", "dataset.cutout=8", "dataset.erasing=0.5"]
    augmented += ["dataset.jitter=0.4", "dataset.randaugment=2"]
    small += [f"backend={keras.backend.backend()}", *augmented]
    for form, name in (("npz", "cifar.npz"), ("images", "cifar")):
        place = [f"dataset={form}", f"dataset.path={tmp_path / name}", f"dataset.title={form} 600"]
        assert main(["run", *place, *small]) == 0
    frame = load(tmp_path / "runs").runs
    assert set(frame["dataset"]) == {"npz 600", "images 600"}
    assert (frame["status"] == "finished").all()
    assert (frame["classes"] == 10).all()
    out = ["--out", str(tmp_path / "report")]
    assert main(["report", "--store", str(tmp_path / "runs"), *out]) == 0

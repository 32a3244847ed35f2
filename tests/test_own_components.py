"""User components on the command line: options of a data set, edits of a layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from normbench import config
from normbench.cli import main
from normbench.config import compose
from normbench.engine.setup import load_dataset
from normbench.report import load
from normbench.report.origin import mixtures
from normbench.store import provenance
from normbench.store.store import Store
from normbench.sweep.preflight import problems
from tests.marks import slow_except

SOURCE = """
from pathlib import Path
import numpy as np
from normbench.data import Arrays, Source

class Mine(Source):
    name, title, classes, shape = "mine", "Mine", 2, (4, 4, 1)
    class_names, train_count, test_count = ("dark", "light"), 40, 20

    def __init__(self, path, brighter=0):
        self.path, self.brighter = Path(path), brighter

    def arrays(self, data_dir=None):
        images = np.load(self.path) + np.uint8(self.brighter)
        labels = (np.arange(60) % 2).astype("int32")
        return Arrays(images[:40], labels[:40], images[40:], labels[40:])

    def location(self, data_dir=None):
        return self.path if self.path.is_file() else None

    def prepare(self, data_dir=None, say=print):
        np.save(self.path, np.zeros((60, *self.shape), "uint8"))
        return self.path

    def import_from(self, path, data_dir=None, say=print):
        np.save(self.path, np.load(path))
        return self.path
"""

LAYER = """
from normbench.norms import GroupNormalization
from own_formula import FACTOR

class Scaled(GroupNormalization):
    def __init__(self, groups=1, **kwargs):
        super().__init__(groups, **kwargs)

    def call(self, x):
        return FACTOR * super().call(x)
"""


class UserProject:
    """A user's project: a data set, a layer, and config files that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "conf"
        self.store = folder / "runs"
        self.at = ["--config-dir", str(self.conf)]
        for group in ("dataset", "norm"):
            (self.conf / group).mkdir(parents=True)
        (folder / "own_data.py").write_text(SOURCE)
        (folder / "own_layer.py").write_text(LAYER)
        self.write_dataset()
        (self.conf / "norm" / "scaled.yaml").write_text(
            "defaults: [{weight: none}, _self_]\nname: scaled\n"
            "_target_: own_layer.Scaled\ngroups: 1\n"
        )
        self.edit("2.0")
        self.draw(1)

    def write_dataset(self, more: str = "", path: str = "images.npy", padding: bool = True) -> None:
        (self.conf / "dataset" / "mine.yaml").write_text(
            f"name: mine\n_target_: own_data.Mine\npath: {self.folder / path}\n"
            f"validation: 10\nsplit_seed: 0\ntrain_size: null\nflip: false\n{more}"
            f"{'crop_padding: 0' if padding else ''}\n"
        )
        for cached in (config._compose_groups, config._chosen_groups, config._plain_groups):
            cached.cache_clear()  # files are cached per process

    def edit(self, factor: str) -> None:
        """Edit the module that the layer's module imports, as if in a new process."""
        (self.folder / "own_formula.py").write_text(f"FACTOR = {factor}\n")
        for name in ("own_layer", "own_formula"):
            sys.modules.pop(name, None)
        provenance.code_hash.cache_clear()

    def draw(self, seed: int, path: str = "images.npy") -> np.ndarray:
        images = np.random.default_rng(seed).integers(0, 200, (60, 4, 4, 1)).astype("uint8")
        np.save(self.folder / path, images)
        return images

    def overrides(self, *more: str) -> list[str]:
        return [
            *("dataset=mine", "norm=scaled", "arch=mlp_sigmoid", "arch.units=3", "batch=10"),
            *("epochs=1", f"store={self.store}", f"backend={keras.backend.backend()}", *more),
        ]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))
    provenance._spec.cache_clear()
    yield UserProject(tmp_path)
    for name in ("own_data", "own_layer", "own_formula"):
        sys.modules.pop(name, None)
    provenance._spec.cache_clear()
    provenance.code_hash.cache_clear()


def test_data_set_options_reach_its_class(project: UserProject) -> None:
    first, second = project.draw(1), project.draw(2, "second.npy")
    original = load_dataset(compose(["dataset=mine"], project.conf))
    np.testing.assert_array_equal(original.test.images, first[40:])
    project.write_dataset("brighter: 5\n", "second.npy")
    edited = load_dataset(compose(["dataset=mine"], project.conf))
    np.testing.assert_array_equal(edited.test.images, second[40:] + 5)
    path = project.folder / "images.npy"
    chosen = load_dataset(compose(["dataset=mine", f"dataset.path={path}"], project.conf))
    np.testing.assert_array_equal(chosen.test.images, first[40:] + 5)


MISTAKES = [
    ("brightr: 5\n", "unknown option of dataset=mine 'brightr': did you mean 'brighter'?"),
    ("crop_paddin: 0\n", "unknown option of dataset=mine 'crop_paddin': did you mean 'crop_p"),
    (None, "dataset=mine lacks the option 'crop_padding'"),
]
COMMANDS = ["run", "sweep --dry-run", "show", "data list", "data prepare mine", "doctor"]


@pytest.mark.parametrize(
    ("command", "more", "message"),
    slow_except(  # every mistake, and every command
        [
            *(("run", *mistake) for mistake in MISTAKES),
            *((command, *MISTAKES[0]) for command in COMMANDS),
        ],
        [(command, *mistake) for command in COMMANDS for mistake in MISTAKES],
    ),
)
def test_misspelled_data_set_option_is_refused_by_every_command(
    command: str, more: str | None, message: str, project: UserProject, capsys: Any
) -> None:
    project.write_dataset(more or "", padding=False)
    words = command.split()
    overrides = project.overrides() if words[0] in ("run", "sweep", "show") else []
    code = main([*words, *overrides, *project.at])
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())
    assert code == 2 or words[0] == "sweep"  # a plan lists it as an invalid cell
    assert "Traceback" not in printed.err
    assert not project.store.exists()


def test_data_commands_use_the_options_in_the_config_file(
    project: UserProject, capsys: Any
) -> None:
    project.write_dataset("", "elsewhere.npy")
    main(["data", "list", *project.at])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "Mine" in line]
    assert "missing" in row
    composed = compose(project.overrides(), project.conf)
    assert main(["data", "prepare", "mine", *project.at]) == 0
    assert not np.load(project.folder / "elsewhere.npy").any()
    assert (
        main(["data", "import", "mine", "--from", f"{project.folder}/images.npy", *project.at]) == 0
    )
    np.testing.assert_array_equal(
        np.load(project.folder / "elsewhere.npy"), np.load(project.folder / "images.npy")
    )
    assert load_dataset(composed).train.images.any()


def test_plan_checks_each_data_set_with_its_own_options(project: UserProject) -> None:
    from normbench.sweep.plan import plan

    missing = compose(project.overrides(f"dataset.path={project.folder}/nowhere.npy"), project.conf)
    present = compose(project.overrides(), project.conf)
    store = Store(project.store)
    for configs in ([present, missing], [missing, present]):
        errors = problems(
            plan(configs, store).todo, store, lambda configs_to_check: [""] * len(configs_to_check)
        )
        assert set(errors) == {missing.run_name}
        assert "nowhere.npy" in errors[missing.run_name]  # the source's own message


def test_edited_layer_and_replaced_data_are_reported_and_trained_again(
    project: UserProject, capsys: Any
) -> None:
    command = ["run", *project.overrides(), *project.at]
    assert main(command) == 0
    (run,) = Store(project.store).runs()
    first = run.meta["own"]
    data = f"data of mine (path={project.folder / 'images.npy'})"
    assert set(first) == {"own_layer.Scaled", "own_data.Mine", data}
    assert {len(version) for versions in first.values() for version in versions} == {64}
    capsys.readouterr()
    assert main(command) == 0
    assert "this is" not in capsys.readouterr().out  # nothing has changed

    project.edit("3.0")
    project.draw(2)
    assert main(command) == 0
    printed = capsys.readouterr().out
    for name in ("own_layer.Scaled", data):
        assert f"the run was trained with {name} {first[name][0][:10]}, this is " in printed
    assert "with own_data.Mine" not in printed
    assert "--again" in printed
    assert main(["diagnose", run.name, "--probe", "train_gap", "--store", str(project.store)]) == 2
    refusal = capsys.readouterr().err
    assert refusal.startswith(f"normbench: run {run.name} names 'own_data.Mine' at dataset, which")
    assert refusal.endswith("(--config-dir adds a folder of your own)\n")
    diagnose = [
        "diagnose",
        run.name,
        "--probe",
        "train_gap",
        "--store",
        str(project.store),
        *project.at,
    ]
    assert main(diagnose) == 0
    assert "the run was trained with own_layer.Scaled" in capsys.readouterr().err
    assert run.meta["own"] == first
    sweep = ["sweep", *project.overrides(), "executor=inline", "--dry-run", *project.at]
    assert main(sweep) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "mixed: 1 of 1 complete runs: the run was trained with own_layer.Scaled" in printed
    assert main([*sweep, "--again"]) == 0
    assert "missing" in capsys.readouterr().out
    assert run.meta["own"] == first  # a dry run changes nothing

    before = run.summary["weights_sha256"]
    assert main([*command, "--again"]) == 0
    second = run.meta["own"]
    assert second["own_layer.Scaled"] != first["own_layer.Scaled"]
    assert second[data] != first[data]
    assert second["own_data.Mine"] == first["own_data.Mine"]
    assert run.summary["weights_sha256"] != before
    (aside,) = project.store.glob(f".{run.name}.replaced-*")
    assert json.loads((aside / "meta.json").read_text())["own"] == first
    assert Store(project.store).foreign() == []

    project.edit("2.0")
    assert main(["run", *project.overrides("seed=1"), *project.at]) == 0
    notes = " ".join(mixtures(load(project.store).runs))
    old, new = first["own_layer.Scaled"][0][:10], second["own_layer.Scaled"][0][:10]
    assert "runs come from 2 versions of own_layer.Scaled: " in notes
    assert f"{old} (1 run)" in notes
    assert f"{new} (1 run)" in notes
    assert "versions of own_data.Mine" not in notes


def test_run_resumed_with_edited_code_says_so(project: UserProject) -> None:
    from normbench.engine.observer import Observer
    from normbench.engine.train import train

    notes: list[str] = []

    class Stopping(Observer):
        def __init__(self, stops: bool) -> None:
            self.stops = stops

        def on_epoch(self, row: Any) -> None:
            if self.stops:
                raise KeyboardInterrupt

        def on_note(self, text: str) -> None:
            notes.append(text)

    composed = compose(project.overrides("epochs=2"), project.conf)
    with pytest.raises(KeyboardInterrupt):
        train(composed, observer=Stopping(True))
    project.edit("3.0")
    outcome = train(composed, observer=Stopping(False))
    assert outcome.summary["status"] == "finished"
    (note,) = [note for note in notes if "own_layer" in note]
    assert "the run was trained with own_layer.Scaled" in note
    assert "--again" in note
    assert len(outcome.run.meta["own"]["own_layer.Scaled"]) == 2
    frame = load(project.store).runs
    assert " then " in frame["version.own_layer.Scaled"][0]


def test_runs_of_shipped_components_record_no_user_code(tmp_store: Path) -> None:
    composed = compose(["dataset=digits", "norm=xbn", "probe=gradients", "logger=mlflow"])
    assert provenance.own_code(composed.to_dict()) == {}
    assert provenance.own_data(composed.dataset) == {}

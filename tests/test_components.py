"""Components: the config files that name them, their types, and what a run folder may name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from normbench import components
from normbench.cli import main
from normbench.components import (
    check_options,
    check_recorded,
    component,
    conf_dir,
    group_options,
    options_of,
    parameters_of,
    read_group,
    target,
    targets_in,
)
from normbench.config import compose
from normbench.errors import UserError
from normbench.sweep.executors.base import choose
from normbench.sweep.experiment import load


class Layer:
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # as Keras's layers have one
        return super().__new__(cls)

    def __init__(self, groups: int, epsilon: float = 1e-3, name: str = "", **kwargs: Any) -> None:
        self.groups = groups


class Inheriting(Layer):
    pass


def build(norm: Any, *, depth: int, width: int = 16) -> None:
    """Stand in for a class: a component may be a function."""


def test_target_is_imported() -> None:
    assert target("collections.OrderedDict").__name__ == "OrderedDict"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Layer", "is not a dotted path such as package.module.Class"),
        ("nowhere.at.All", "there is no module 'nowhere'"),
        ("collections.OrderedDit", "unknown name in collections 'OrderedDit': did you mean 'Ord"),
    ],
)
def test_unknown_target_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        target(path)
    assert message in str(caught.value)


def test_working_folder_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Like the console script, whose sys.path does not contain the working folder.
    monkeypatch.setattr(
        sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_ones_own.py").write_text("class Half:\n    pass\n")
    (tmp_path / "colorsys.py").write_text("Half = 1\n")
    assert target("of_ones_own.Half").__name__ == "Half"
    with pytest.raises(UserError, match="unknown name in colorsys"):
        target("colorsys.Half")
    with pytest.raises(UserError, match="start normbench in the folder that holds it, or install"):
        target("of_nobody.Half")


def test_yml_files_in_a_group_are_refused(tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "environment.yml").write_text("name: not ours\n")
    assert "gn" in group_options(tmp_path)["norm"]
    (tmp_path / "norm" / "half.yml").write_text("name: half\n")
    with pytest.raises(UserError, match=r"norm/half\.yml is not read: .* \.yaml"):
        group_options(tmp_path)


def test_options_are_the_parameters_of_a_constructor_or_function() -> None:
    assert list(parameters_of(Layer)) == ["groups", "epsilon"]  # not a layer's name
    assert list(parameters_of(Inheriting)) == ["groups", "epsilon"]
    assert list(parameters_of(build)) == ["norm", "depth", "width"]


def test_options_of_a_group_exclude_its_name_and_target() -> None:
    group = {"name": "gn", "_target_": "a.B", "groups": 8, "weight": {}}
    assert options_of(group, "weight") == {"groups": 8}


def test_unknown_and_missing_options_are_refused() -> None:
    check_options("norm=gn", Inheriting, {"groups": 8})
    with pytest.raises(
        UserError, match=r"unknown option of norm=gn 'group': did you mean 'groups'"
    ):
        check_options("norm=gn", Layer, {"group": 8})
    with pytest.raises(UserError, match=r"norm=gn lacks the option 'groups'"):
        check_options("norm=gn", Layer, {"epsilon": 1.0})


# --- config files of groups -----------------------------------------------------------------------

READERS = {
    **{
        f"{group}={name}": lambda folder, text=f"{group}={name}": compose([text], folder)
        for group, name in (
            ("norm", "gn"),
            ("norm/weight", "ws"),
            ("arch", "resnet8"),
            ("dataset", "digits"),
            ("optimizer", "sgd"),
            ("schedule", "cosine"),
            ("probe", "gradients"),
            ("logger", "mlflow"),
        )
    },
    "executor=local": lambda folder: choose(["executor=local"], folder),
    "experiment=quickstart": lambda folder: load("quickstart", folder),
}


@pytest.mark.parametrize("chosen", READERS)
def test_user_file_with_a_shipped_name_is_refused(chosen: str, tmp_path: Path) -> None:
    group, name = chosen.split("=")
    shipped = conf_dir() / group / f"{name}.yaml"
    user_file = tmp_path / group / f"{name}.yaml"
    user_file.parent.mkdir(parents=True)
    shutil.copy(shipped, user_file)
    with pytest.raises(UserError) as caught:
        READERS[chosen](tmp_path)
    message = str(caught.value)
    assert message == f"{chosen} is in both {user_file} and {shipped}: give your file another name"
    user_file.rename(user_file.with_name("my_own.yaml"))
    assert "my_own" in group_options(tmp_path)[group]
    READERS[chosen](tmp_path)


@pytest.mark.parametrize("chosen", [choice for choice in READERS if choice[:10] != "experiment"])
def test_user_code_under_a_shipped_name_is_refused(chosen: str, tmp_path: Path) -> None:
    """Otherwise runs and reports would mistake it for the shipped component."""
    group, name = chosen.split("=")
    user_file = tmp_path / group / "mine.yaml"
    user_file.parent.mkdir(parents=True)
    package = "# @package probe.mine\n" if group == "probe" else ""
    package = "# @package logger.mine\n" if group == "logger" else package
    user_file.write_text(f"{package}name: {name}\n_target_: my_package.Mine\n")
    read = (
        (lambda: choose(["executor=mine"], tmp_path))
        if group == "executor"
        else (lambda: compose([f"{group}=mine"], tmp_path))
    )
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert f"names 'my_package.Mine' has the name {name!r}, already taken by" in message
    assert str(conf_dir() / group / f"{name}.yaml") in message


@pytest.mark.parametrize(
    "command",
    [
        "run norm=gn --print-config",
        "sweep norm=gn --dry-run",
        "run norm=gn --multirun",
        "norms",
        "experiments",
        "data list",
        "doctor",
        "diagnose some-run",
        "show arch=resnet8",
    ],
)
def test_every_command_refuses_a_user_file_with_a_shipped_name(
    command: str, tmp_path: Path, capsys: Any
) -> None:
    user_file = tmp_path / "norm" / "gn.yaml"
    user_file.parent.mkdir()
    shutil.copy(conf_dir() / "norm" / "gn.yaml", user_file)
    assert main([*command.split(), "--config-dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(user_file) in line
    assert str(conf_dir() / "norm" / "gn.yaml") in line


def test_user_folder_cannot_replace_config_yaml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("batch: 7\n")
    with pytest.raises(UserError, match=r"config\.yaml is in both"):
        compose([], tmp_path)


def test_conf_itself_can_be_the_user_folder() -> None:
    assert group_options(conf_dir()) == group_options()


def test_file_without_a_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("- a\n- list\n")
    with pytest.raises(UserError, match=r"norm/mine\.yaml must be a group of keys"):
        read_group("norm", "mine", tmp_path)
    with pytest.raises(UserError, match="unknown norm 'mines': did you mean 'mine'"):
        read_group("norm", "mines", tmp_path)


# --- types of components --------------------------------------------------------------------------

GROUPS = [
    "dataset",
    "arch",
    "norm",
    "norm/weight",
    "optimizer",
    "schedule",
    "probe",
    "logger",
    "executor",
]


@pytest.mark.parametrize("group", GROUPS)
def test_shipped_targets_have_the_type_of_their_group(group: str) -> None:
    named = targets_in(group)
    assert named
    for path in named:
        assert component(group, path, group) is target(path)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "path",
    [
        "subprocess.getoutput",
        "subprocess.Popen",
        "os.system",
        "builtins.dict",
        "builtins.eval",
        "time.sleep",
        "normbench.errors.UserError",
        "normbench.data.base.Source",  # abstract
    ],
)
def test_targets_of_other_types_are_refused_before_they_are_called(group: str, path: str) -> None:
    with pytest.raises(UserError) as caught:
        component(group, path, f"{group}=mine")
    assert f"{group}=mine: _target_ {path!r} must be a" in str(caught.value)


def test_user_file_that_names_a_command_does_not_run_it(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "dataset").mkdir()
    keys = "validation: 1\nsplit_seed: 0\ntrain_size: 9\ncrop_padding: 0\nflip: false\n"
    (tmp_path / "dataset" / "mine.yaml").write_text(
        f"name: mine\n_target_: subprocess.getoutput\ncmd: touch {tmp_path}/ran\n{keys}"
    )
    for command in ("run dataset=mine", "data list", "sweep dataset=mine --dry-run"):
        code = main([*command.split(), "--config-dir", str(tmp_path)])
        printed = capsys.readouterr()
        assert "_target_ 'subprocess.getoutput' must be a subclass of" in printed.err + printed.out
        assert code == 2 or command.startswith("sweep")  # a plan lists it as an invalid cell
    assert not (tmp_path / "ran").exists()


# --- targets recorded in run folders --------------------------------------------------------------


@pytest.fixture
def foreign_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the path of a class whose module creates a file when it is imported."""
    (tmp_path / "stranger.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n"
        "from normbench.norms import GroupNormalization as Layer\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "stranger.Layer"


def _recorded(*overrides: str) -> dict[str, Any]:
    return compose(list(overrides)).to_dict()


RECORDED = """
arch normbench.archs.airbench.build
arch normbench.archs.bn_inception.build
arch normbench.archs.conv_encoder.build
arch normbench.archs.googlenet.build
arch normbench.archs.lenet.build
arch normbench.archs.mlp_sigmoid.build
arch normbench.archs.mobilenet_v2.build
arch normbench.archs.resnet.build
arch normbench.archs.resnet_small.build
arch normbench.archs.resnet_v2.build
arch normbench.archs.vgg.build
arch normbench.archs.wide_resnet.build
dataset normbench.data.cifar10.CIFAR10
dataset normbench.data.cifar100.CIFAR100
dataset normbench.data.digits.Digits
dataset normbench.data.fashion_mnist.FashionMNIST
dataset normbench.data.mnist.MNIST
dataset normbench.data.mnist_binary.BinaryMNIST
executor normbench.sweep.inline.Inline
executor normbench.sweep.local.Local
executor normbench.sweep.rayexecutor.RayExecutor
executor normbench.sweep.slurm.Slurm
logger normbench.loggers.mlflow.MLflow
logger normbench.loggers.tensorboard.TensorBoard
norm normbench.norms.batch.BatchNormalization
norm normbench.norms.batch_apis.KerasBatchNormalization
norm normbench.norms.batch_apis.MomentsBatchNormalization
norm normbench.norms.batch_channel.BatchChannelNormalization
norm normbench.norms.batch_parts.BatchCentering
norm normbench.norms.batch_parts.BatchScaling
norm normbench.norms.batch_renormalization.BatchRenormalization
norm normbench.norms.dynamic_tanh.DynamicTanh
norm normbench.norms.evonorm.EvoNormB0
norm normbench.norms.evonorm.EvoNormS0
norm normbench.norms.filter_response.FilterResponseNormalization
norm normbench.norms.ghost_batch.GhostBatchNormalization
norm normbench.norms.group.GroupNormalization
norm normbench.norms.group.InstanceNormalization
norm normbench.norms.group.LayerNormalization
norm normbench.norms.iterative.IterativeNormalization
norm normbench.norms.local_response.LocalResponseNormalization
norm normbench.norms.minmax.ChannelMinMaxNormalization
norm normbench.norms.minmax.FlatteningMinMaxNormalization
norm normbench.norms.minmax.ImageMinMaxNormalization
norm normbench.norms.minmax.MaxFirstMinMaxNormalization
norm normbench.norms.minmax.MinMaxNormalization
norm normbench.norms.positional.PositionalNormalization
norm normbench.norms.precise_batch.PreciseBatchNormalization
norm normbench.norms.rms.RMSNormalization
norm normbench.norms.switchable.SwitchableNormalization
norm normbench.norms.synchronized_batch.SynchronizedBatchNormalization
norm normbench.norms.tfa.TfaFilterResponseNormalization
norm normbench.norms.tfa.TfaGroupNormalization
norm normbench.norms.tfa.TfaInstanceNormalization
norm/weight normbench.norms.scaled_ws.ScaledWeightStandardization
norm/weight normbench.norms.spectral.SpectralNormalization
norm/weight normbench.norms.weight_normalization.CenteredWeightNormalization
norm/weight normbench.norms.weight_normalization.WeightNormalization
norm/weight normbench.norms.weight_standardization.WeightStandardization
norm/weight normbench.norms.weight_study.WSAsRegularizer
norm/weight normbench.norms.weight_study.WSAssign
optimizer normbench.engine.optimizer.AdamW
optimizer normbench.engine.optimizer.SGD
probe normbench.probes.activations.Activations
probe normbench.probes.batch_dependence.BatchDependence
probe normbench.probes.estimation_shift.EstimationShift
probe normbench.probes.gradients.Gradients
probe normbench.probes.sharpness.Sharpness
probe normbench.probes.smoothness.Smoothness
probe normbench.probes.train_gap.TrainGap
schedule normbench.engine.schedule.constant
schedule normbench.engine.schedule.cosine
schedule normbench.engine.schedule.step
"""

PLACES = {
    "dataset": (),
    "arch": (),
    "norm": (),
    "norm.weight": (),
    "norm.bfn": ("norm=xbn",),
    "norm.places.head": ("norm=bn_head_minmax",),
    "optimizer": (),
    "schedule": (),
    "probe.gradients": ("probe=gradients",),
    "logger.mlflow": ("logger=mlflow",),
    "dataset.extra": (),
    "norm.places.head.weight": ("norm=bn_head_minmax",),
    "extra": (),
}


@pytest.mark.parametrize("place", PLACES)
def test_run_folder_cannot_name_foreign_code(
    place: str, foreign_target: str, tmp_path: Path
) -> None:
    tree = _recorded(*PLACES[place])
    assert check_recorded(tree, None, "run r") == tree
    group = tree
    for key in place.split("."):
        group = group.setdefault(key, {})
    group["_target_"] = foreign_target
    with pytest.raises(UserError) as caught:
        check_recorded(tree, None, "run r")
    message = str(caught.value)
    assert message.startswith(f"run r names {foreign_target!r} at {place}, ")
    assert "\n" not in message
    assert not (tmp_path / "imported").exists()


def test_run_folder_cannot_name_targets_of_another_group() -> None:
    tree = _recorded()
    tree["optimizer"]["_target_"] = "normbench.engine.schedule.cosine"
    with pytest.raises(UserError, match="which no file of optimizer has in conf/"):
        check_recorded(tree, None, "run r")


@pytest.mark.parametrize("path", [["os.system"], {"a": 1}, 7, ""])
def test_recorded_target_that_is_not_a_string_is_refused(path: Any) -> None:
    tree = _recorded()
    tree["optimizer"]["_target_"] = path
    with pytest.raises(UserError, match="which no file of optimizer has in conf/"):
        check_recorded(tree, None, "run r")


def test_user_folder_on_the_command_line_allows_its_targets(
    foreign_target: str, tmp_path: Path
) -> None:
    tree = _recorded()
    tree["norm"]["_target_"] = foreign_target
    user_folder = tmp_path / "conf"
    (user_folder / "norm").mkdir(parents=True)
    with pytest.raises(UserError, match=f"which no file of norm has in conf/ or {user_folder}"):
        check_recorded(tree, user_folder, "run r")
    (user_folder / "norm" / "mine.yaml").write_text(f"name: mine\n_target_: {foreign_target}\n")
    assert check_recorded(tree, user_folder, "run r") == tree


def test_run_folder_cannot_set_options_to_keras_objects(tmp_path: Path) -> None:
    initializer = {"class_name": "Constant", "config": {"value": 0.5}}
    tree = _recorded()
    for value in (initializer, [initializer], {"module": "subprocess", "class_name": "Popen"}):
        tree["norm"]["gamma_initializer"] = value
        with pytest.raises(UserError, match=r"run r sets norm\.gamma_initializer to a group"):
            check_recorded(tree, None, "run r")
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text(
        "gamma_initializer: {class_name: Constant, config: {value: 0.5}}\n"
    )
    tree["norm"]["gamma_initializer"] = initializer
    check_recorded(tree, tmp_path, "run r")


def test_malformed_recorded_config_is_refused() -> None:
    tree = _recorded()
    for broken in ({"norm": "bn"}, {"probe": {"gradients": "x"}}, {"norm": {"places": [1]}}):
        with pytest.raises(UserError, match=r"run r: .* must be a group of keys, not "):
            check_recorded({**tree, **broken}, None, "run r")
    endless: list[Any] = []
    endless.append(endless)
    large: list[Any] = ["x"] * 9
    for _ in range(6):
        large = [large] * 9  # as nested YAML aliases can make it
    for value in (endless, large):
        with pytest.raises(UserError, match="too many values"):
            check_recorded({**tree, "label": value}, None, "run r")


def test_moved_component_is_found_by_its_old_path(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "normbench.old.place.SGD", "normbench.engine.optimizer.SGD"
    tree = _recorded()
    tree["optimizer"]["_target_"] = old
    with pytest.raises(UserError):
        check_recorded(tree, None, "run r")
    monkeypatch.setitem(components.MOVED, old, new)
    assert check_recorded(tree, None, "run r") == _recorded()
    assert component("optimizer", old, "optimizer=sgd") is target(new)


@pytest.mark.parametrize("line", RECORDED.split("\n")[1:-1])
def test_paths_recorded_in_run_folders_still_resolve(line: str) -> None:
    """After moving a component, add its old path to ``MOVED``; never edit this list."""
    group, path = line.split()
    assert components.present_path(path) in targets_in(group)
    assert target(path) is not None

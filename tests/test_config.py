import subprocess
import sys

import pytest
import yaml

from normbench.config import Config, compose, conf_dir, group_options, parse
from normbench.errors import UserError


def test_defaults_are_the_documented_ones():
    config = compose()
    assert config.dataset["name"] == "cifar10"
    assert config.arch["name"] == "resnet20"
    assert config.norm_name == "bn"
    assert config.batch == 128


def test_run_name_tells_the_cell():
    config = compose(["norm=gn_ws", "batch=16", "seed=3", "dataset=digits", "arch=resnet8"])
    assert config.run_name == f"digits-resnet8-gn_ws-b16-s3-{config.signature}"


def test_a_pair_file_and_its_two_parts_are_one_run():
    pair = compose(["norm=gn_ws"])
    parts = compose(["norm=gn", "norm/weight=ws"])
    assert pair == parts
    assert pair.signature == parts.signature


def test_signature_never_changes():
    # Written down. It changes with the defaults in conf/ and with config.SCHEMA, nothing else:
    # where this fails without such a change, every store would be trained again.
    here = compose(["dataset=digits", "arch=resnet8", "norm=gn", "batch=16"]).signature
    code = (
        "from normbench.config import compose;"
        "print(compose(['batch=16', 'norm=gn', 'arch=resnet8', 'dataset=digits']).signature)"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=conf_dir().parent,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    ).stdout.strip()
    assert here == there


@pytest.mark.parametrize("override", ["store=elsewhere"])
def test_signature_is_blind_to_what_cannot_change_numbers(override):
    assert compose([override]).signature == compose().signature


@pytest.mark.parametrize(
    "override",
    [
        "batch=64",
        "seed=1",
        "epochs=3",
        "norm=gn",
        "norm.epsilon=0.01",
        "optimizer.lr=0.2",
        "precision=mixed_bfloat16",
        "backend=jax",
        "dataset.train_size=1000",
        "schedule=step",
        "arch.width=8",
        "label_smoothing=0.1",
    ],
)
def test_signature_sees_what_changes_numbers(override):
    assert compose([override]).signature != compose().signature


def test_equal_numbers_written_differently_are_one_run():
    assert compose(["optimizer.lr=1"]).signature == compose(["optimizer.lr=1.0"]).signature
    assert compose(["optimizer.lr=1e-1"]).signature == compose().signature


def test_config_survives_its_file():
    config = compose(["norm=bn_ws", "dataset.train_size=100"])
    again = Config.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    assert again == config
    assert again.signature == config.signature


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["norm=gm"], "unknown norm 'gm': did you mean 'gn'? (allowed: "),
        (["dataset=mnits"], "unknown dataset 'mnits': did you mean 'mnist'?"),
        (["norm/weight=wss"], "unknown norm/weight 'wss': did you mean 'ws'?"),
        (["bacth=16"], "unknown key 'bacth': did you mean 'batch'?"),
        (["norm=gn", "norm.grups=4"], "unknown key 'norm.grups': did you mean 'norm.groups'?"),
        (["lr=0.1"], "unknown key 'lr': did you mean 'optimizer.lr'?"),
        (["+norm.new=1"], "unknown key 'norm.new'"),
        (["++norm.new=1"], "unknown key 'norm.new'"),
        (["norm.weight=ws"], "'norm.weight' is a group: choose norm/weight=ws"),
        (["norm.name=x"], "'norm.name' is decided by the choice of norm"),
        (["norm._target_=os.system"], "decided by the choice of norm"),
        (["~batch"], "'~batch': a key cannot be removed"),
        (["norm"], "cannot read 'norm': write key=value"),
        (["batch=abc"], "batch must be a whole number, got 'abc'"),
        (["batch=1.5"], "batch must be a whole number, got 1.5"),
        (["batch=true"], "batch must be a whole number, got True"),
        (["batch=null"], "batch must be a whole number, got None"),
        (["batch=0"], "batch must be at least 1, got 0"),
        (["seed=-1"], "seed must be in 0..4294967295, got -1"),
        (["norm=gn", "norm.center=3"], "norm.center must be true or false, got 3"),
        (["norm.epsilon=x"], "norm.epsilon must be a number, got 'x'"),
        (["label_smoothing=1"], "label_smoothing must be in [0, 1), got 1"),
        (["label_smoothing=nan"], "label_smoothing must be a finite number"),
        (["precision=float23"], "unknown precision 'float23': did you mean 'float32'?"),
        (["backend=torch"], "unknown backend 'torch'"),
        (["optimizer.scaling=liner"], "did you mean 'linear'?"),
        (["norm=bn,gn"], "'norm=bn,gn' names several values: one run takes one"),
        (["batch=range(1,3)"], "names several values"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(overrides, message):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_allowed_key_is_named_once():
    with pytest.raises(UserError) as caught:
        compose(["bacth=16"])
    allowed = str(caught.value).partition("(allowed: ")[2].rstrip(")").split(", ")
    assert len(allowed) == len(set(allowed)) > 10


def test_from_dict_refuses_unknown_and_missing_keys():
    tree = compose().to_dict()
    with pytest.raises(UserError, match="unknown key 'bathc': did you mean 'batch'"):
        Config.from_dict({**tree, "bathc": 3})
    del tree["seed"]
    with pytest.raises(UserError, match="lacks the key 'seed'"):
        Config.from_dict(tree)


def test_a_further_config_folder_adds_choices(tmp_path):
    folder = tmp_path / "mine" / "norm"
    folder.mkdir(parents=True)
    (folder / "bn_fast.yaml").write_text(
        "defaults:\n  - bn\n  - _self_\nname: bn_fast\nmomentum: 0.5\n"
    )
    config = compose(["norm=bn_fast"], tmp_path / "mine")
    assert config.norm["momentum"] == 0.5
    assert "bn_fast" in group_options(tmp_path / "mine")["norm"]
    assert "bn_fast" not in group_options()["norm"]
    with pytest.raises(UserError, match="is no folder"):
        compose([], tmp_path / "none")


OF_SWEEPS = ("experiment", "executor")


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group, names in group_options().items()
        for name in names
        if group not in OF_SWEEPS
    ],
)
def test_every_choice_composes(group, name):
    config = compose([f"{group}={name}"])
    assert len(config.signature) == 8


def test_what_is_for_sweeps_is_refused_in_a_run():
    with pytest.raises(UserError, match="normbench sweep takes it"):
        compose(["+experiment=batch_sweep"])


def test_parse_keeps_quotes_and_lists():
    config = compose(["schedule=step", "schedule.milestones=[0.3,0.6]", "store='a b'"])
    assert config.schedule["milestones"] == [0.3, 0.6]
    assert config.store == "a b"
    assert len(parse(["a=1", "b=2"])) == 2

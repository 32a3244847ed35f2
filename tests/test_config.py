import re
import subprocess
import sys

import pytest
import yaml

from normbench import config
from normbench.config import Config, compose, conf_dir, default_store, group_options, parse
from normbench.errors import UserError
from tests.marks import slow_except


def test_defaults_are_the_documented_ones():
    config = compose()
    assert config.dataset["name"] == "cifar10"
    assert config.arch["name"] == "resnet20"
    assert config.norm_name == "bn"
    assert config.batch == 128


def test_run_name_shows_the_main_choices():
    config = compose(["norm=gn_ws", "batch=16", "seed=3", "dataset=digits", "arch=resnet8"])
    assert config.run_name == f"digits-resnet8-gn_ws-b16-s3-{config.signature}"


def test_norm_weight_pair_file_equals_its_two_choices():
    pair = compose(["norm=gn_ws"])
    parts = compose(["norm=gn", "norm/weight=ws"])
    assert pair == parts
    assert pair.signature == parts.signature


def test_signature_is_the_same_in_another_process():
    signature = compose(["dataset=digits", "arch=resnet8", "norm=gn", "batch=16"]).signature
    code = (
        "from normbench.config import compose;"
        "print(compose(['batch=16', 'norm=gn', 'arch=resnet8', 'dataset=digits']).signature)"
    )
    other_process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=conf_dir().parent,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    ).stdout.strip()
    assert signature == other_process


@pytest.mark.parametrize("override", ["store=elsewhere"])
def test_signature_ignores_settings_that_do_not_change_numbers(override):
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
def test_signature_changes_with_settings_that_change_numbers(override):
    assert compose([override]).signature != compose().signature


def test_spelling_of_numbers_does_not_change_the_signature():
    assert compose(["optimizer.lr=1"]).signature == compose(["optimizer.lr=1.0"]).signature
    assert compose(["optimizer.lr=1e-1"]).signature == compose().signature


def test_config_survives_a_round_trip_through_yaml():
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
        (["stream=always"], "stream must be true, false or 'auto', got 'always'"),
        (["stream=1"], "stream must be true, false or 'auto', got 1"),
        (["stream=null"], "stream must be true, false or 'auto', got None"),
        (["accumulate=null"], "accumulate must be a whole number, got None"),
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
def test_mistakes_are_refused_in_one_line(overrides, message):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_streaming_does_not_change_the_signature():
    streamed, resident = compose(["stream=true"]), compose(["stream=false"])
    assert (streamed.stream, resident.stream, compose([]).stream) == (True, False, "auto")
    assert streamed.signature == resident.signature == compose([]).signature


def test_allowed_keys_are_listed_once():
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


def test_user_config_folder_adds_choices(tmp_path):
    folder = tmp_path / "mine" / "norm"
    folder.mkdir(parents=True)
    (folder / "bn_fast.yaml").write_text(
        "defaults:\n  - bn\n  - _self_\nname: bn_fast\nmomentum: 0.5\n"
    )
    config = compose(["norm=bn_fast"], tmp_path / "mine")
    assert config.norm["momentum"] == 0.5
    assert "bn_fast" in group_options(tmp_path / "mine")["norm"]
    assert "bn_fast" not in group_options()["norm"]
    with pytest.raises(UserError, match="is not a folder"):
        compose([], tmp_path / "none")


OF_SWEEPS = ("experiment", "executor")
NEEDING_A_SOURCE = ("images", "npz", "tfds")  # data sets that need a path or a name


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group, names in group_options().items()
        for name in names
        if group not in OF_SWEEPS and (group != "dataset" or name not in NEEDING_A_SOURCE)
    ],
)
def test_every_choice_composes(group, name):
    config = compose([f"{group}={name}"])
    assert len(config.signature) == 8


def test_run_refuses_experiments():
    with pytest.raises(UserError, match="normbench sweep takes it"):
        compose(["+experiment=batch_sweep"])


def test_parse_keeps_quotes_and_lists():
    config = compose(["schedule=step", "schedule.milestones=[0.3,0.6]", "store='a b'"])
    assert config.schedule["milestones"] == [0.3, 0.6]
    assert config.store == "a b"
    assert len(parse(["a=1", "b=2"])) == 2


FOREIGN = "name: half\n_target_: my_package.Half\nfactor: {}\nsteps: [{}, 0.5]\n"
FAST = "defaults: [sgd, _self_]\nname: fast\nlr: {}\nmomentum: 0\n"
DROPS = "name: drops\n_target_: normbench.engine.schedule.step\nwarmup: 0\nmilestones: [{}, 0.5]\n"


def write_config(folder, group, name, text):
    """Write a user's config file, and return the config folder."""
    file = folder / group / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("group", "name", "text"),
    [("norm", "half", FOREIGN), ("optimizer", "fast", FAST), ("schedule", "drops", DROPS)],
)
def test_int_and_float_spellings_in_user_files_have_one_signature(group, name, text, tmp_path):
    number = 1 if text.count("{}") == 1 else 2
    int_folder = write_config(tmp_path / "whole", group, name, text.format(*[number] * 2))
    float_folder = write_config(tmp_path / "point", group, name, text.format(*[float(number)] * 2))
    override = f"{group}={name}"
    assert compose([override], int_folder).signature == compose([override], float_folder).signature


def test_options_of_shipped_classes_keep_their_types_in_user_files(tmp_path):
    fast = write_config(tmp_path / "a", "optimizer", "fast", FAST.format(1))
    group = compose(["optimizer=fast"], fast).optimizer
    assert [type(group[key]) for key in ("lr", "momentum", "base_batch")] == [float, float, int]
    assert compose(["optimizer=fast", "optimizer.lr=0.5"], fast).optimizer["lr"] == 0.5
    # The signature of runs whose file had lr: 1.0 and momentum: 0.0.
    assert compose(["optimizer=fast"], fast).signature == "8d700649"
    wrong = write_config(
        tmp_path / "b", "norm", "odd", "defaults: [gn, _self_]\nname: odd\ngroups: 2.5\n"
    )
    with pytest.raises(UserError, match=re.escape("norm.groups must be a whole number, got 2.5")):
        compose(["norm=odd"], wrong)


def test_integer_option_of_a_user_class_accepts_any_number(tmp_path):
    mine = write_config(tmp_path, "norm", "half", FOREIGN.format(1, 1))
    for text, value in (("0.5", 0.5), ("2", 2), ("2.0", 2)):
        factor = compose(["norm=half", f"norm.factor={text}"], mine).norm["factor"]
        assert (factor, type(factor)) == (value, type(value))
    same = [
        compose(["norm=half", f"norm.factor={factor_text}"], mine).signature
        for factor_text in ("1", "1.0")
    ]
    assert same == [compose(["norm=half"], mine).signature] * 2
    with pytest.raises(UserError, match=r"norm\.factor must be a number, got 'x'"):
        compose(["norm=half", "norm.factor=x"], mine)


def test_placed_user_norm_accepts_any_number(tmp_path):
    mine = write_config(tmp_path, "norm", "half", FOREIGN.format(1, 1))
    config = compose(["norm=xbn", "norm.bfn={norm: half, factor: 0.5}"], mine)
    assert config.norm["bfn"]["factor"] == 0.5


@pytest.mark.parametrize("name", ["wörk 実験", "a,=([{&#'\"~$:%@+!;|*?<>^`b", "end\\"])
def test_config_folder_path_may_have_any_characters(name, tmp_path):
    folder = write_config(tmp_path / name, "norm", "half", "defaults: [bn, _self_]\nname: half\n")
    assert compose(["norm=half"], folder).norm_name == "half"


def test_interpolation_in_a_config_folder_path_is_refused(tmp_path):
    folder = write_config(tmp_path / "${x", "norm", "half", "defaults: [bn, _self_]\nname: half\n")
    with pytest.raises(UserError, match="cannot read a path with"):
        compose(["norm=half"], folder)


def test_environment_variable_sets_the_default_store(monkeypatch):
    before = compose()
    assert before.store == default_store() == "runs"
    monkeypatch.setenv("NORMBENCH_STORE", "/data/runs, old")
    assert compose().store == default_store() == "/data/runs, old"
    assert compose(["norm=xbn"]).store == default_store()
    assert compose(["store=here"]).store == "here"
    assert compose().signature == before.signature
    monkeypatch.setenv("NORMBENCH_STORE", "")
    assert compose().store == default_store() == "runs"


@pytest.mark.parametrize(
    ("key", "value"), [("seed", 3), ("optimizer.lr", 0.1), ("norm/weight", {"name": "ws"})]
)
def test_branch_returns_the_mapping_that_contains_a_key(key, value):
    tree = {"seed": 3, "optimizer": {"lr": 0.1}, "norm": {"weight": {"name": "ws"}}}
    group, name = config.branch(tree, key)
    assert group[name] == value
    assert config.branch({"seed": 3}, "optimizer.lr") == ({}, "lr")


def choices_of_conf():
    """Return each choice of the single-choice groups, and pairs of a norm and a weight."""
    options = config.group_options()
    groups = ("arch", "dataset", "norm", "optimizer", "schedule")
    single = [(f"{group}={name}",) for group in groups for name in options[group]]
    pairs = [("norm=bn", f"norm/weight={name}") for name in options["norm/weight"]]
    return [*single, *pairs, ("norm/weight=ws", "norm=gn_ws", "arch=lenet", "dataset=digits")]


@pytest.mark.parametrize("first", slow_except((0, 3), range(8)))
def test_reader_agrees_with_hydra(first):
    for chosen in choices_of_conf()[first::8]:
        read, by_hydra = config._read_choices(chosen), config._compose_with_hydra(chosen, None)
        assert read is not None, chosen
        assert read == by_hydra, chosen
        assert list(read[0]["norm"]) == list(by_hydra[0]["norm"])


@pytest.mark.parametrize(
    "chosen",
    [
        ("norm=gn", "norm=bn"),
        ("norm=nowhere",),
        ("norm/weight=ws",),
        ("probe=gradients",),
        ("norm='gn'",),
        ("arch=resnet20", "arch/stem=x"),
    ],
)
def test_reader_leaves_other_choices_to_hydra(chosen):
    assert config._read_choices(chosen) is None

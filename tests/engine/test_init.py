"""``init=RUN``: a run that starts from the final weights of another."""

from __future__ import annotations

import json
import shutil

import keras
import numpy as np
import pytest

from normbench.cli import main
from normbench.config import Config, compose
from normbench.engine.reuse import WarmState
from normbench.engine.setup import load_dataset, prepare
from normbench.engine.train import train
from normbench.engine.weights import final_weights, start_from
from normbench.errors import UserError
from normbench.network import build_model
from normbench.store.store import Store
from tests.engine.test_train import Interrupting
from tests.engine.tinyloop import TINY, without_times

SHARED = [
    "dataset=digits",
    "dataset.train_size=160",
    "dataset.validation=100",
    "norm=bn",
    "batch=16",
    f"backend={keras.backend.backend()}",
]
NAME = "digits-resnet8-bn-b16-s0-1234abcd"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with one finished run. Not to be changed."""
    store = tmp_path_factory.mktemp("init") / "runs"
    return train(compose([*SHARED, *TINY, "epochs=1", f"store={store}"])).run


@pytest.fixture
def source(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "runs" / trained.name)
    return Store(tmp_path / "runs").run(trained.name)


def config_from(source, *overrides):
    """Compose a run that starts from another one."""
    arch = [] if any(word.startswith("arch") for word in overrides) else TINY
    words = [*SHARED, *arch, "seed=1", "epochs=2", f"store={source.path.parent}"]
    return compose([*words, f"init={source.name}", *overrides])


# --- the signature --------------------------------------------------------------------------------


def test_only_the_signature_of_the_source_run_enters_the_signature():
    plain = compose(["dataset=digits"])
    forms = [NAME, "1234abcd", f"runs/{NAME}", f"/elsewhere/{NAME}/", "x/1234abcd"]
    signatures = {compose(["dataset=digits", f"init={form}"]).signature for form in forms}
    assert len(signatures) == 1
    assert plain.signature not in signatures
    assert compose(["dataset=digits", "init=1234abce"]).signature not in signatures
    new = compose(["dataset=digits", f"init={NAME}", "init_head=new"])
    assert new.signature not in signatures
    assert compose(["dataset=digits", "init=", "init_head=trained"]).signature == plain.signature


def test_signature_that_looks_like_a_number_is_a_string():
    for text in ("12345678", "1e345678", "00000000"):
        assert compose([f"init={text}"]).init_signature == text


def test_config_of_an_earlier_version_starts_from_random_weights():
    tree = compose(["dataset=digits"]).to_dict()
    del tree["init"], tree["init_head"]
    assert Config.from_dict(tree) == compose(["dataset=digits"])


# --- the weights ----------------------------------------------------------------------------------


def test_run_starts_from_the_final_weights_of_another(source):
    config = config_from(source)
    model = prepare(config, load_dataset(config), WarmState(), 1).model
    weights = final_weights(source)
    for variable, array in zip(model.variables, weights.values(), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), array)


def test_head_can_be_reinitialized(source):
    config = config_from(source, "init_head=new")
    model, random_model = (build_model(config, (8, 8, 1), 7) for _ in range(2))
    start_from(model, config)
    by_path = {name.split("/", 2)[2]: array for name, array in final_weights(source).items()}
    for variable, initial in zip(model.variables, random_model.variables, strict=True):
        is_head = variable.path.startswith("logits/")
        expected = keras.ops.convert_to_numpy(initial) if is_head else by_path[variable.path]
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), expected)


def test_other_normalization_takes_the_weights_that_it_has(source):
    config = config_from(source, "norm=gn", "norm.groups=2")
    model = build_model(config, (8, 8, 1), 10)
    assert start_from(model, config)["run"] == source.name
    assert len(model.variables) < len(final_weights(source))


def test_record_names_the_source_run_and_the_hash_of_its_weights(source, warm):
    run = train(config_from(source), warm=warm).run
    assert run.meta["init"] == {
        "run": source.name,
        "weights_sha256": source.summary["weights_sha256"],
    }
    assert run.config["init"] == source.name
    other = train(config_from(source, "seed=2", "init="), warm=warm).run
    assert "init" not in other.meta


def test_run_resumes_after_the_source_run_is_deleted(source, tmp_path, warm):
    config = config_from(source)
    whole = train(
        config_from(source, f"init={source.path}", f"store={tmp_path / 'whole'}"), warm=warm
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Interrupting(1), warm=warm)
    shutil.rmtree(source.path)
    resumed = train(config, warm=warm)
    assert resumed.run.name == whole.run.name
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert without_times(resumed.run.metrics()) == without_times(whole.run.metrics())
    assert resumed.run.meta["init"] == whole.run.meta["init"]


def test_reused_loop_also_starts_from_the_source_run(source, tmp_path):
    warm = WarmState()
    train(config_from(source, "seed=3", "init="), warm=warm)
    reused = train(config_from(source), warm=warm)
    alone = train(config_from(source, f"init={source.path}"), Store(tmp_path / "alone"))
    assert reused.summary["weights_sha256"] == alone.summary["weights_sha256"]


@pytest.mark.slow
def test_run_that_starts_from_another_can_be_verified(source, capsys):
    run = train(config_from(source)).run
    words = ["verify", str(source.path.parent), "--where", "seed == 1"]
    assert main(words) == 0
    assert f"{run.name}: equal to the last bit" in capsys.readouterr().out
    shutil.rmtree(source.path)
    assert main(words) == 1
    assert f"{run.name}: cannot be trained again: unknown run" in capsys.readouterr().out


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init=mine"], "init=mine does not end in the signature of a run, 8 hex digits: give the"),
        (["init_head=new"], "init_head=new needs init=RUN"),
        ([f"init={NAME}", "init_head=old"], "unknown init_head 'old'"),
    ],
)
def test_invalid_config_is_refused(words, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        compose(words)


def refusal_of(capsys, config, *words):
    tree = config.to_dict()
    command = [*SHARED, *TINY, "seed=1", "epochs=2", f"store={tree['store']}", *words]
    before = sorted(path.name for path in (Store(config.store).root).iterdir())
    assert main(["run", *command]) == 2
    assert sorted(path.name for path in Store(config.store).root.iterdir()) == before
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("normbench: ")


def test_unknown_run_is_refused_with_the_nearest_name(source, capsys):
    near = source.name.replace("bn", "bm")
    line = refusal_of(capsys, config_from(source), f"init={near}")
    assert line.startswith(f"unknown run {near!r}: did you mean {source.name!r}?")


def test_mismatched_layer_is_named_with_both_shapes(source, capsys):
    line = refusal_of(capsys, config_from(source), f"init={source.name}", "arch.embedding=8")
    assert line.startswith(f"init={source.name}: the kernel of the layer ")
    assert " here and " in line
    assert line.endswith("in that run")
    config = config_from(source)
    with pytest.raises(
        UserError, match=r"logits is 256×7 here and 256×10 in that run; init_head=new"
    ):
        start_from(build_model(config, (8, 8, 1), 7), config)


def test_layer_missing_from_the_source_run_is_named(source, capsys):
    line = refusal_of(capsys, config_from(source), f"init={source.name}", "arch.widths=[4,4]")
    assert line.endswith("here, but none in that run")


def test_run_without_final_weights_is_refused(source, capsys):
    shutil.rmtree(source.path / "checkpoint")
    line = refusal_of(capsys, config_from(source), f"init={source.name}")
    assert line.startswith(f"run {source.name} keeps no weights")


def test_sweep_refuses_cells_that_cannot_start_before_training_others(source, capsys):
    store = source.path.parent
    words = [*SHARED, *TINY, "epochs=1", f"init={source.name}", "seed=1,2", "executor=inline"]
    words += ["arch.embedding=4,8", f"store={store}"]
    assert main(["sweep", *words]) == 2
    assert "2 runs cannot be trained" in capsys.readouterr().err
    assert [path.name for path in store.iterdir()] == [source.name]
    assert main(["sweep", *words, "--skip-invalid"]) == 0
    assert "2 trained, 2 invalid" in capsys.readouterr().out


def test_report_separates_runs_with_different_initial_weights(source, warm):
    from normbench.report import load

    train(config_from(source, f"init={source.path}"), warm=warm)
    frame = load(source.path.parent).runs.set_index("name")
    signature = source.name.rpartition("-")[2]
    assert dict(frame["init"]) == {
        source.name: "",
        config_from(source).run_name: signature,
    }
    assert json.loads((source.path / "summary.json").read_text())["status"] == "finished"

"""A run's network as a Keras model: its logits here, in a subprocess and in plain Keras."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import normbench
from normbench.cli import main
from normbench.config import compose
from normbench.engine.augment import Images
from normbench.engine.export import _with_scaling, export
from normbench.engine.loop import logits_of
from normbench.engine.reuse import WarmState
from normbench.engine.setup import load_dataset
from normbench.engine.train import train
from normbench.errors import UserError
from normbench.network import build_model
from normbench.store.store import Store
from tests.engine.tinyloop import TINY
from tests.marks import slow_except

SHARED = [
    "dataset=digits",
    "dataset.train_size=160",
    "dataset.validation=100",
    *TINY,
    "batch=16",
    "epochs=1",
    f"backend={keras.backend.backend()}",
]
NORMS = {
    "bn": ["norm=bn"],
    "gn": ["norm=gn", "norm.groups=2"],
    "gn_ws": ["norm=gn_ws", "norm.groups=2"],
    "ln": ["norm=ln"],
    "in": ["norm=in"],
}
OTHERS = {"frn": ["norm=frn"], "half": ["norm=bn", "precision=mixed_bfloat16"]}

BARE = """
import sys
folder, plain = sys.argv[1], sys.argv[2] == "plain"
if plain:
    sys.modules["normbench"] = None  # importing it fails
else:
    import normbench.norms
import keras
import numpy as np
images = np.load(f"{folder}/images.npy")
for name in sys.argv[3:]:
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    np.save(f"{folder}/{name}.npy", model.predict(images, verbose=0))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("exported") / "runs"


@pytest.fixture(scope="module")
def trained(store):
    """Train a run of a normalization once; return it with the logits that its loop computes."""
    runs = {}

    def of(name):
        if name not in runs:
            config = compose([*SHARED, *{**NORMS, **OTHERS}[name], f"store={store}"])
            warm = WarmState()
            run = train(config, warm=warm).run
            images = load_dataset(config).test.images
            loop = warm._loop[1]
            runs[name] = SimpleNamespace(
                run=run, images=images, logits=loop.inspect(loop.model, images)[0]
            )
        return runs[name]

    return of


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def logits_in_a_subprocess(folder, plain, *names):
    """Load models in a process that at most imports `normbench.norms`; return their logits."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(folder), "plain" if plain else "", *names],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(normbench.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: np.load(folder / f"{name}.npy") for name in names}


# --- in memory ------------------------------------------------------------------------------------


def test_loaded_model_has_the_logits_of_the_run(trained):
    of = trained("bn")
    model = normbench.load(of.run.path)
    assert_close(model.predict(of.images, verbose=0), of.logits)
    assert_close(keras.ops.convert_to_numpy(model(of.images.astype("float32"))), of.logits)
    labels = load_dataset(compose(SHARED)).test.labels
    accuracy = np.mean(np.argmax(model.predict(of.images, verbose=0), -1) == labels)
    assert accuracy == pytest.approx(of.run.summary["test_acc"], abs=1e-9)


def test_run_is_loaded_by_name_without_changing_keras_settings(trained, store, monkeypatch):
    of = trained("bn")
    signature = of.run.name.rpartition("-")[2]
    before = keras.config.dtype_policy().name
    assert normbench.load(signature, store).output_shape == (None, 10)
    monkeypatch.setenv("NORMBENCH_STORE", str(store))
    assert normbench.load(of.run.name).name == normbench.load(str(of.run.path)).name
    assert keras.config.dtype_policy().name == before


def test_half_precision_model_has_the_logits_of_the_run(trained):
    of = trained("half")
    model = normbench.load(of.run.path)
    assert model.get_layer("images").dtype == "float32"
    assert {layer.compute_dtype for layer in model.layers} == {"float32", "bfloat16"}
    np.testing.assert_allclose(model.predict(of.images, verbose=0), of.logits, atol=0.05)


def test_importing_normbench_imports_no_framework():
    code = (
        "import sys, normbench; normbench.load; "
        "print({'keras', 'tensorflow', 'jax', 'numpy', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- in a file ------------------------------------------------------------------------------------


def test_subprocess_computes_the_same_logits(trained, tmp_path, capsys):
    of = trained("gn_ws")
    file = tmp_path / "gn_ws.keras"
    assert main(["export", str(of.run.path), "--model", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"export: {file} ({of.run.name}; images of 8×8×1, 0..255, to 10 logits)",
        "to load it: import normbench.norms, keras; keras.saving.load_model('gn_ws.keras')",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["gn_ws.keras"]
    np.save(tmp_path / "images.npy", of.images)
    assert_close(logits_in_a_subprocess(tmp_path, False, "gn_ws")["gn_ws"], of.logits)


@pytest.fixture(scope="module")
def plain_models(trained, tmp_path_factory):
    """Logits of plain models by normalization, computed by a process without normbench."""
    folder = tmp_path_factory.mktemp("plain")
    for name in NORMS:
        of = trained(name)
        export(of.run.path, folder / f"{name}.keras", plain=True, say=lambda line: None)
        np.save(folder / "images.npy", of.images)
    return folder, logits_in_a_subprocess(folder, True, *NORMS)


@pytest.mark.parametrize("name", NORMS)
def test_plain_model_has_the_same_logits_without_normbench(name, plain_models, trained):
    folder, logits = plain_models
    assert_close(logits[name], trained(name).logits)
    with zipfile.ZipFile(folder / f"{name}.keras") as archive:
        assert b"normbench" not in archive.read("config.json")


NETWORKS = [
    "arch=mlp_sigmoid arch.units=7 norm=pn norm/weight=wn",
    "arch=airbench arch.width=0.125 norm=precise_bn",
    "arch=mobilenet_v2 arch.alpha=0.1 norm=sync_bn norm/weight=sn",
    "arch=googlenet norm=none norm/weight=scaled_ws",
]
QUICK = NETWORKS[:1] if keras.backend.backend() == "jax" else NETWORKS[:2]


@pytest.mark.parametrize("network", slow_except(QUICK, NETWORKS))
def test_networks_of_other_layers_convert_to_plain_models(network):
    model = build_model(compose(network.split()), (32, 32, 3), 10)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(np.abs(variable.numpy() + 0.1 * rng.standard_normal(variable.shape)))
    scaling = Images(np.full(3, 0.5, "float32"), np.full(3, 0.2, "float32"), 0, False)
    pixels = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected = logits_of(model(scaling.scale(pixels), training=False))
    for plain in (False, True):
        copied = _with_scaling(model, scaling, plain)
        assert_close(copied.predict(pixels, verbose=0), keras.ops.convert_to_numpy(expected))
    assert {type(layer).__module__.partition(".")[0] for layer in copied.layers} == {"keras"}


def test_auxiliary_classifiers_are_left_out():
    images = keras.Input((4, 4, 1))
    flat = keras.layers.Flatten()(images)
    outputs = [keras.layers.Dense(3, name=name)(flat) for name in ("logits", "auxiliary")]
    scaling = Images(np.full(1, 0.5, "float32"), np.full(1, 0.2, "float32"), 0, False)
    copied = _with_scaling(keras.Model(images, outputs), scaling, plain=False)
    assert copied.output_shape == (None, 3)
    assert "auxiliary" not in {layer.name for layer in copied.layers}


def test_layer_without_a_plain_equivalent_is_named(trained, tmp_path, capsys):
    of = trained("frn")
    words = ["export", str(of.run.path), "--plain", "--model", str(tmp_path / "m.keras")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "(FilterResponseNormalization) has no equivalent among Keras's own layers" in line
    assert not list(tmp_path.iterdir())


def test_saved_model_has_the_same_logits(trained, tmp_path):
    tf = pytest.importorskip("tensorflow")
    of = trained("gn_ws")
    folder = export(of.run.path, tmp_path / "m", format="savedmodel", say=lambda line: None)
    loaded = tf.saved_model.load(str(folder))
    assert_close(loaded.serve(tf.constant(of.images, tf.float32)).numpy(), of.logits)
    with pytest.raises(UserError, match="there is a folder of this name"):
        export(of.run.path, folder, format="savedmodel")


@pytest.mark.parametrize("name", slow_except(["gn_ws"], [*NORMS, "frn"]))
def test_onnx_file_has_the_same_logits(name, trained, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    of = trained(name)
    file = export(of.run.path, tmp_path / "m.onnx", say=lambda line: None)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert images.name == "images"
    for count in (1, len(of.images)):
        (logits,) = session.run(None, {"images": of.images[:count].astype("float32")})
        assert_close(logits, of.logits[:count])


def test_onnx_in_half_precision_is_refused(trained, tmp_path):
    pytest.importorskip("tf2onnx")
    with pytest.raises(UserError, match="precision=mixed_bfloat16, but Keras writes ONNX in float"):
        export(trained("half").run.path, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_format_with_a_missing_library_is_refused(trained, tmp_path, monkeypatch):
    of = trained("bn")
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "tf2onnx" else find_spec(name, *rest),
    )
    with pytest.raises(
        UserError, match="needs tensorflow and tf2onnx to write the format onnx: pip"
    ):
        export(of.run.path, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", ["save", "load"])
def test_failed_export_leaves_no_partial_files(fails, trained, tmp_path, monkeypatch, capsys):
    of = trained("bn")
    file = tmp_path / "m.keras"
    file.write_text("the old one")

    def broken(*args, **options):
        raise ValueError("no such thing can be saved")

    monkeypatch.setattr(
        "keras.Model.save" if fails == "save" else "keras.saving.load_model", broken
    )
    assert main(["export", str(of.run.path), "--model", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"normbench: Keras cannot write the model of run {of.run.name} as keras: no such thing "
        "can be saved"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]
    assert file.read_text() == "the old one"


# --- refusals -------------------------------------------------------------------------------------


@pytest.fixture
def copied(trained, tmp_path):
    """A store with one finished run, which the test may change."""
    run = trained("bn").run
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    return Store(tmp_path / "runs").run(run.name)


def refusal(capsys, run, *words):
    assert main(["export", str(run), "--model", "m.keras", *words]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line.removeprefix("normbench: ")


def test_unknown_run_is_refused_with_the_nearest_name(copied, capsys):
    near = copied.name.replace("bn", "bm")
    store = str(copied.path.parent)
    wanted = f"unknown run {near!r}: did you mean {copied.name!r}?"
    assert refusal(capsys, near, "--store", store).startswith(wanted)
    assert refusal(capsys, f"{store}/{near}").startswith(wanted)
    assert "has no runs" in refusal(capsys, copied.path.parent.parent / "nowhere" / "x")


def test_run_without_final_weights_is_refused(copied, capsys):
    summary = (copied.path / "summary.json").read_bytes()
    (copied.path / "summary.json").unlink()
    copied.update_meta(status="interrupted")
    assert refusal(capsys, copied.path) == (
        f"run {copied.name} has no final weights: it was interrupted after epoch 1 of 1; its "
        "command again finishes it"
    )
    (copied.path / "summary.json").write_bytes(summary)
    shutil.rmtree(copied.path / "checkpoint")
    line = refusal(capsys, copied.path)
    assert line.startswith(f"run {copied.name} keeps no weights: its folder has no checkpoint/last")
    assert "--again" in line


def test_weights_that_do_not_match_the_run_are_reported_as_damaged(copied, capsys):
    arrays, info = copied.load_checkpoint()
    name = next(name for name in arrays if name.startswith("model/"))
    copied.save_checkpoint({**arrays, name: arrays[name] + 1}, info)
    assert main(["export", str(copied.path), "--model", "m.keras"]) == 1
    assert "does not have the weights that the run was tested with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["RUN", "--model", "m"],
            "'m' does not say its format: end it in .keras, or give --format",
        ),
        (["RUN", "--model", "m.kers"], "unknown format of a model 'kers': did you mean 'keras'?"),
        (["RUN", "--model", "m", "--format", "keras"], "a file that ends in .keras, not 'm'"),
        (["RUN", "--model", "m.keras", "--out", "x.csv"], "--out is for the table: --model FILE"),
        (["--model", "m.keras"], "export --model needs one run: its name, signature"),
        (["--plain"], "--plain is for a model: give --model FILE, too"),
        (["RUN", "--model", ""], "--model is empty"),
        (["RUN", "--model", "."], "cannot write '.': there is a folder of this name"),
    ],
)
def test_invalid_command_is_one_line(words, message, copied, capsys, monkeypatch):
    monkeypatch.chdir(copied.path.parent.parent)
    assert main(["export", *(str(copied.path) if w == "RUN" else w for w in words)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_untrusted_run_folder_executes_no_code(copied, tmp_path, monkeypatch, capsys):
    (tmp_path / "stranger.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import yaml

    from normbench.store import records

    tree = copied.config
    tree["norm"]["_target_"] = "stranger.Layer"
    content = yaml.safe_dump(tree).encode()
    (copied.path / "config.yaml").write_bytes(content)
    seals = {"config.yaml": records.digest(content)}  # an attacker adapts the checksums
    copied._write_json("meta.json", copied.meta, seals)
    line = refusal(capsys, copied.path)
    assert line.startswith(f"run {copied.name} names 'stranger.Layer' at norm, which no file")
    assert not (tmp_path / "imported").exists()


def test_tables_are_still_exported(copied, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(copied.path.parent)]) == 0
    assert "export: runs.csv (1 cell)" in capsys.readouterr().out
    assert json.loads((copied.path / "summary.json").read_text())["status"] == "finished"

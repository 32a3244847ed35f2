"""Experiments: named lists of overrides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from normbench.cli import main
from normbench.cli.experiments import details, rows
from normbench.config import group_options
from normbench.errors import UserError
from normbench.sweep.experiment import load, unfold
from normbench.sweep.grid import expand
from normbench.sweep.tune import TuneOptions, tuned_by_experiment
from tests.marks import slow_except

NAMES = group_options()["experiment"]


# Composing norm_zoo takes seconds: it chooses among a hundred files.
@pytest.mark.parametrize("name", slow_except([n for n in NAMES if n != "norm_zoo"], NAMES))
def test_every_experiment_composes_at_every_scale(name):
    experiment = load(name)
    assert experiment.title
    for scale in ["full", *experiment.scales]:
        cells = expand([f"+experiment={name}", f"scale={scale}", "batch=16", "seed=0"])
        assert cells
        assert len({cell.run_name for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", slow_except(("bn_paper_mnist", "gn_groups"), NAMES))
def test_cells_are_distinct_and_fewer_at_the_small_scale(name):
    counts = {}
    for scale in ["full", *load(name).scales]:
        cells = expand([f"+experiment={name}", f"scale={scale}"])
        counts[scale] = len(cells)
        assert len({cell.run_name for cell in cells}) == len(cells)
    assert counts.get("small", 0) < counts["full"]


def test_experiment_equals_its_typed_overrides():
    grid = ["norm=bn,gn,gn_ws", "batch=16,64,256", "seed=0,1,2"]
    typed = expand(["dataset=digits", "arch=resnet8", *grid, "epochs=5"])
    assert expand(["+experiment=quickstart"]) == typed
    assert expand(["experiment=quickstart"]) == typed


def test_typed_overrides_take_precedence_over_the_experiment():
    cells = expand(["+experiment=quickstart", "norm=ln", "seed=7", "batch=16"])
    assert [(c.norm_name, c.seed, c.batch) for c in cells] == [("ln", 7, 16)]


@pytest.fixture
def user_folder(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "title: a test\n"
        "overrides: [dataset=digits, 'seed=0,1', epochs=9]\n"
        "variants: [[label=a, norm=bn], [label=b, norm=gn, norm.groups=2]]\n"
        "scales: {small: [epochs=1, 'seed=0']}\n"
    )
    return tmp_path


def test_variants_add_cells_and_a_scale_changes_all_of_them(user_folder):
    cells = expand(["+experiment=mine"], user_folder)
    assert [(c.label, c.norm_name, c.seed, c.epochs) for c in cells] == [
        ("a", "bn", 0, 9), ("a", "bn", 1, 9), ("b", "gn", 0, 9), ("b", "gn", 1, 9),
    ]  # fmt: skip
    small = expand(["+experiment=mine", "scale=small"], user_folder)
    assert [(c.label, c.seed, c.epochs) for c in small] == [("a", 0, 1), ("b", 0, 1)]
    assert small[1].norm["groups"] == 2


def test_label_does_not_change_the_signature(user_folder):
    cell = expand(["+experiment=mine", "scale=small"], user_folder)[0]
    typed = expand(["dataset=digits", "norm=bn", "seed=0", "epochs=1"])[0]
    assert cell.label != typed.label
    assert cell.signature == typed.signature


def test_overrides_without_an_experiment_are_unchanged():
    assert unfold(["norm=bn,gn", "batch=16"]) == (None, [["norm=bn,gn", "batch=16"]])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+experiment=batch_swep"], "did you mean 'batch_sweep'"),
        (["+experiment=batch_sweep", "scale=smal"], "did you mean 'small'"),
        (["scale=small"], r"\+experiment=NAME"),
        (["+experiment=quickstart", "+experiment=centering"], "one experiment at a time"),
        (["+experiment=quickstart", "norm=gm"], "did you mean 'gn'"),
    ],
)
def test_mistakes_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        expand(overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\n", "lacks the key 'overrides'"),
        ("title: x\noverrides: []\nscale: {}\n", "did you mean 'scales'"),
        ("title: x\noverrides: norm=bn\n", "must be a list of overrides"),
        ("title: [\n", "is not valid YAML"),
        ("- a\n", "must be a group of keys"),
    ],
)
def test_invalid_experiment_file_is_refused(text, message, user_folder):
    (user_folder / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load("mine", user_folder)


# --- tuned keys -----------------------------------------------------------------------------------

GRID = "title: a test\noverrides: [dataset=digits, arch=resnet8, 'norm=bn,gn', 'seed=0,1']\n"


def list_only(monkeypatch, *names: str) -> None:
    """Let `rows()` list only these experiments: to count the runs of all takes long."""
    monkeypatch.setattr(
        "normbench.cli.experiments.group_options", lambda folder: {"experiment": [*names]}
    )


@pytest.fixture
def tuning(user_folder):
    """Return a function that writes an experiment with tuned keys and returns its folder."""

    def write(text: str, overrides: str = GRID):
        (user_folder / "experiment" / "mine.yaml").write_text(overrides + text)
        return user_folder

    return write


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("tune: {optimizer.lr: [0.05, 0.1]}", "optimizer.lr=0.05,0.1"),
        ("tune: {optimizer.lr: 'log(0.025,0.4,5)'}", "optimizer.lr=log(0.025,0.4,5)"),
        ("tune: {optimizer.lr: '0.05,0.1'}", "optimizer.lr=0.05,0.1"),
        ("tune: {optimizer.weight_decay: [0, 1e-4, 1.0e-5]}",
         "optimizer.weight_decay=0,1e-4,1e-05"),
        ("tune: {optimizer.nesterov: [true, false]}", "optimizer.nesterov=true,false"),
        ("tune: {optimizer: [sgd, adamw]}", "optimizer=sgd,adamw"),
    ],
)  # fmt: skip
def test_tuned_keys_equal_typed_keys(text, typed, tuning):
    folder = tuning(text + "\n")
    assert load("mine", folder).tune == (typed,)
    options = tuned_by_experiment(["+experiment=mine"], folder)
    assert options == replace(TuneOptions([typed]), metric=options.metric)
    assert "tuned in each cell\n  " + typed in details("mine", folder)


def test_experiment_file_sets_the_tuning_protocol(tuning, monkeypatch):
    folder = tuning(
        "tune: {optimizer.lr: [0.05, 0.1], optimizer.weight_decay: [0.0, 0.1, 0.2]}\n"
        "tune_seeds: [7, 8]\ntune_epochs: 3\nextend: 2\n"
    )
    options = tuned_by_experiment(["+experiment=mine"], folder)
    assert options.keys == ["optimizer.lr=0.05,0.1", "optimizer.weight_decay=0.0,0.1,0.2"]
    assert (options.seeds, options.epochs, options.extend) == ("7,8", 3, 2)
    shown = details("mine", folder)
    assert "  trials: seed 7,8, 3 epochs\n  up to 2 further values in each cell" in shown
    assert "  full: 4 after 24 trials" in shown
    list_only(monkeypatch, "mine")
    (row,) = rows(folder)
    assert (row["runs"], row["trials"]) == (4, 24)


def test_key_with_a_typed_value_is_not_tuned(tuning):
    folder = tuning("tune: {optimizer.lr: [0.05, 0.1], optimizer.weight_decay: [0.0, 0.1]}\n")
    options = tuned_by_experiment(["+experiment=mine", "optimizer.lr=0.3"], folder)
    assert options.keys == ["optimizer.weight_decay=0.0,0.1"]
    typed = ["+experiment=mine", "optimizer.lr=0.3", "optimizer.weight_decay=0.1,0.2"]
    assert tuned_by_experiment(typed, folder) is None
    assert tuned_by_experiment(["+experiment=quickstart"]) is None
    assert tuned_by_experiment(["norm=bn,gn"]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tune: optimizer.lr=0.1,0.2", "tune must map keys to their values, such as tune: {opt"),
        ("tune: {}", "tune must map keys to their values"),
        ("tune: {optimizer.lr: 0.1}", "tune.optimizer.lr must have several values"),
        ("tune: {optimizer.lr: [0.1]}", "tune.optimizer.lr must have several values"),
        ("tune: {optimizer.lr: '0.1'}", "must have several values, .* not 0.1"),
        ("tune: {optimizer.lr: [[0.1], [0.2]]}", "tune.optimizer.lr must have several values"),
        ("tune: {optimizer.lr: 0.05,0.1}", "tune.optimizer.lr must have several values"),
        ("tune: {optimizer.lr: 'log(0.1)'}", r"must have several values, .* not log\(0.1\)"),
        ("tune: {optimizer.lr: 'log(0,1,3)'}", r"tune.optimizer.lr: .*log\(\) needs limits above"),
        ("tune: {optimizer.lr: [0.1, 0.2]}\ntune_epochs: 0", "tune_epochs must be a whole number"),
        ("tune: {optimizer.lr: [0.1, 0.2]}\nextend: many", "extend must be a whole number"),
        ("tune: {optimizer.lr: [0.1, 0.2]}\ntune_seeds: [0.5]", "tune_seeds must be seeds"),
        ("tune: {optimizer.lr: [0.1, 0.2]}\ntune_seed: 7", "did you mean 'tune_seeds'"),
        ("extend: 2", "extend needs tune"),
    ],
)
def test_invalid_tuning_in_a_file_is_refused(text, message, tuning):
    folder = tuning(text + "\n")
    with pytest.raises(UserError, match=message) as error:
        load("mine", folder)
    assert "mine.yaml" in str(error.value)


@pytest.fixture
def plan_of(tuning, tmp_store, capsys):
    """Return a function that plans a tuned experiment and returns the lines of the plan."""
    folder = tuning("tune: {optimizer.lr: [0.05, 0.1]}\ntune_seeds: 7\n")

    def plan(*words: str, code: int = 0) -> str:
        command = ["sweep", "+experiment=mine", f"store={tmp_store}", "--config-dir", str(folder)]
        assert main([*command, *words, "--dry-run"]) == code
        out, error = capsys.readouterr()
        return error if code else out

    return plan


@pytest.mark.parametrize(
    ("words", "together", "shown", "absent"),
    [
        ([], "together: 8 runs", ["-s7-", "optimizer.lr=? seed=0,1"], ["-s1000-"]),
        (["--tune", "optimizer.lr=0.1,0.2,0.3"], "together: 10 runs", ["-s7-"], ["lr=0.05"]),
        (["--tune-seeds", "8,9"], "together: 12 runs", ["-s8-", "-s9-"], ["-s7-"]),
        (["--extend", "1"], "together: 8 runs", ["--extend: up to 1 further value"], []),
        (["optimizer.lr=0.3"], "4 runs: 4 to train", [], ["trials", "-s7-"]),
    ],
)
def test_plan_uses_trials_of_the_file_unless_the_command_line_overrides_them(
    words, together, shown, absent, plan_of
):
    text = plan_of(*words)
    assert text.splitlines()[-1].startswith(together)
    for word in shown:
        assert word in text
    for word in absent:
        assert word not in text


def test_tuning_options_need_a_tuned_key(plan_of):
    error = plan_of("optimizer.lr=0.3", "--tune-epochs", "2", code=2)
    assert "--tune-epochs requires --tune KEY=VALUE,VALUE" in error
    assert error.count("\n") == 1


def test_list_shows_cell_counts_and_the_question_of_each_experiment(monkeypatch):
    list_only(monkeypatch, "quickstart", "batch_sweep")
    listed = {(row["experiment"], row["scale"]): row for row in rows()}
    assert listed["quickstart", "full"]["runs"] == 27
    assert listed["batch_sweep", "full"]["runs"] == 4 * 6 * 5
    assert all(row["asks"] for row in listed.values())
    assert not any(row["trials"] for row in listed.values())


def test_details_show_the_commands_of_an_experiment():
    shown = details("batch_sweep")
    assert "normbench sweep +experiment=batch_sweep scale=small" in shown
    assert "norm=bn,gn,bn_ws,gn_ws" in shown
    assert "full: 120" in shown

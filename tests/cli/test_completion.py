"""Completion, called as shells call it: the line in variables, the words on descriptor 8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normbench.cli import COMMANDS, main
from normbench.cli.completion import COMPLETERS
from normbench.store.annotations import annotate
from normbench.store.store import Store
from tests.cli.test_light import HEAVY

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "store" / "written_by_2e78b7c"
WORD_BREAKS = " \t\n\"'@><=;|&(:"  # bash's own

ASK = [
    *("sh", "-c", 'exec "$@" 8>&1 9>/dev/null 1>/dev/null', "sh"),
    *(sys.executable, "-P", "-m", "normbench"),
]


def complete(line: str, folder: Path, shell: str = "fish", **variables: str) -> list[str]:
    """Return the words that a shell offers for Tab at the end of a line."""
    environment = {
        **{key: text for key, text in os.environ.items() if not key.startswith("_ARG")},
        "PYTHONPATH": str(ROOT),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        **variables,
    }
    if shell == "bash":
        environment["_ARGCOMPLETE_COMP_WORDBREAKS"] = WORD_BREAKS
    done = subprocess.run(
        ASK, env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n") if done.stdout else []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of four runs, two of which have tags."""
    shutil.copytree(RUNS, tmp_path / "runs")
    store = Store(tmp_path / "runs")
    for run, tags in zip(store.runs(), (["paper"], ["paper", "slow"]), strict=False):
        annotate(run, add=tags)
    return store


def test_commands_are_completed(tmp_path: Path) -> None:
    assert complete("normbench ", tmp_path) == list(COMMANDS)
    assert complete("normbench rep", tmp_path) == ["report"]
    assert complete("normbench data ", tmp_path) == ["list", "prepare", "import"]


def test_options_are_completed_after_a_dash(tmp_path: Path) -> None:
    assert {"--resume", "--store", "--config-dir"} <= set(complete("normbench run -", tmp_path))
    assert complete("normbench report --by norm --wh", tmp_path) == ["--where"]
    assert not [word for word in complete("normbench run ", tmp_path) if word.startswith("-")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run norm=gn_w", ["norm=gn_ws", "norm=gn_ws_assign", "norm=gn_ws_regularizer"]),
        ("run norm.gro", ["norm.groups="]),
        ("run norm=gn norm.", [f"norm.{key}=" for key in ("groups", "channels_per_group",
                                                          "epsilon", "center", "scale")]),
        ("run norm=bn norm.gro", []),
        ("run norm=gn norm.cen", ["norm.center="]),
        ("run norm.center=", ["norm.center=true", "norm.center=false"]),
        ("run norm/w", ["norm/weight="]),
        ("run norm.weight=sca", ["norm.weight=scaled_ws"]),
        ("run norm=xbn norm.bfn=rm", ["norm.bfn=rms"]),
        ("run ba", ["batch=", "backend="]),
        ("run backend=", ["backend=tensorflow", "backend=jax"]),
        ("run schedule.mil", ["schedule.milestones="]),
        ("run executor", []),
        ("sweep exec", ["executor="]),
        ("sweep executor=slurm executor.at", ["executor.at_a_time="]),
        ("sweep norm=bn,xbn_p", ["norm=bn,xbn_post", "norm=bn,xbn_pre"]),
        ("sweep norm=bn_keras,bn_k", []),
        ("sweep +ex", ["+experiment="]),
        ("sweep +experiment=bn_", [f"+experiment=bn_{name}" for name in (
            "paper_inception", "paper_mnist", "tf_apis")]),
        ("sweep +experiment=batch_sweep sca", ["scale="]),
        ("sweep +experiment=batch_sweep scale=s", ["scale=small"]),
        ("sweep sta", ["status"]),
        ("sweep --tune optimizer.mom", ["optimizer.momentum="]),
        ("sweep --sampler t", ["tpe"]),
        ("run 'probe=[gradients,s", ["probe=[gradients,sharpness", "probe=[gradients,smoothness"]),
        ("run --resume norm=rm", ["norm=rms"]),  # after an option, too
        ("run --store x norm=bn ba", ["batch=", "backend="]),
        ("norms ghost", ["ghost_bn"]),
        ("experiments quickstart_", ["quickstart_tuned"]),
        ("data prepare fash", ["fashion_mnist"]),
        ("explain optimizer.le", []),
        ("explain schedule.warm", ["schedule.warmup"]),
        ("explain arch=resnet10", ["arch=resnet101"]),
        ("diagnose --probe gradients,smo", ["gradients,smoothness"]),
        ("report --metric best_val_test_", [f"best_val_test_{x}" for x in ("acc", "err", "loss")]),
        ("report --metric=best_val_ep", ["--metric=best_val_epoch"]),
        ("report --metric grad_norm:m", [f"grad_norm:{over}" for over in ("mean", "min", "max")]),
        ("report --metric test_acc:", []),
        ("report --by norm,comm", ["norm,commit"]),
        ("report --rows bn,xbn_p", ["bn,xbn_post", "bn,xbn_pre"]),
        ("report --style ne", ["neurips"]),
        ("export --style sl", ["slides"]),
        ("report --formats png,p", ["png,pdf"]),
        ("export --format sa", ["savedmodel"]),
        ("report --where 'norm == bn and opt", ["norm == bn and optimizer"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("unheard-of ", []),
    ],
)  # fmt: skip
def test_words_are_completed(line: str, words: list[str], tmp_path: Path) -> None:
    assert complete(f"normbench {line}", tmp_path) == words


def test_every_format_of_export_is_offered(tmp_path: Path) -> None:
    from normbench.engine.export import FORMATS as MODELS
    from normbench.report.report import FORMATS as TABLES

    assert complete("normbench export --format ", tmp_path) == [*TABLES, *MODELS]


def test_choices_in_config_dir_are_completed(tmp_path: Path) -> None:
    (tmp_path / "mine" / "norm").mkdir(parents=True)
    (tmp_path / "mine" / "norm" / "gn_mine.yaml").write_text(
        "# Mine.\ndefaults: [gn, _self_]\nname: gn_mine\nstrength: 2\n"
    )
    line = "normbench run --config-dir mine "
    assert complete(f"{line}norm=gn_m", tmp_path) == ["norm=gn_mine"]
    assert complete(f"{line}norm=gn_mine norm.", tmp_path)[-1] == "norm.strength="
    assert complete("normbench run norm=gn_m", tmp_path) == []
    assert complete("normbench run --config-dir mi", tmp_path) == ["mine/"]
    assert complete("normbench run --config-dir nowhere norm=g", tmp_path) == []


def test_runs_of_the_store_are_completed(store: Store, tmp_path: Path) -> None:
    names = [run.name for run in store.runs()]
    assert len(names) == 4
    assert complete("normbench show digits", tmp_path) == names
    assert complete(f"normbench diff {names[0]} digits-resnet8-bn", tmp_path) == [names[1]]
    assert complete("normbench tag --add paper digits-resnet8-gn", tmp_path) == names[2:]
    assert complete("normbench rm 756e", tmp_path) == ["756e7836"]
    assert complete("normbench export digits-resnet8-gn_ws-b16-s0", tmp_path) == names[2:3]
    assert complete("normbench rm x --store elsewhere ", tmp_path) == []
    (tmp_path / "elsewhere").mkdir()
    variables = {"NORMBENCH_STORE": str(store.root)}
    words = complete("normbench show digits", tmp_path / "elsewhere", **variables)
    assert words == names
    words = complete("normbench show --store ../runs digits", tmp_path / "elsewhere")
    assert words == names


def test_removed_runs_are_completed_for_restore(store: Store, tmp_path: Path) -> None:
    first = store.runs()[0].name
    assert main(["rm", first, "--store", str(store.root)]) == 0
    assert complete("normbench rm --restore ", tmp_path) == [first]
    assert first not in complete("normbench rm digits", tmp_path)


def test_tags_of_the_store_are_completed(store: Store, tmp_path: Path) -> None:
    assert complete("normbench tag x --remove ", tmp_path) == ["paper", "slow"]
    assert complete("normbench tag x --remove paper,", tmp_path) == ["paper,slow"]
    assert complete("normbench list --where 'tag.s", tmp_path) == ["tag.slow"]


def test_paths_are_completed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "notes.csv").touch()
    assert complete("normbench report ", tmp_path) == ["runs/"]
    assert complete("normbench export --out no", tmp_path) == ["notes.csv"]
    assert complete("normbench run store=ru", tmp_path) == ["store=runs/"]
    assert complete("normbench report runs/swe", tmp_path) == ["runs/sweeps/"]
    inside = complete(f"normbench list --store {tmp_path}/ru", tmp_path)
    assert inside == [f"{tmp_path}/runs/"]


def test_completions_follow_the_conventions_of_each_shell(tmp_path: Path) -> None:
    # bash ends a word at "="; fish and zsh show descriptions.
    assert complete("normbench run norm=iternor", tmp_path, "bash") == ["iternorm"]
    assert complete("normbench run norm=iternor", tmp_path, "fish") == ["norm=iternorm"]
    described = complete("normbench run norm=gn_sc", tmp_path, "fish", _ARGCOMPLETE_DFS="\t")
    (word, _, text), *others = (line.partition("\t") for line in described)
    assert (word, others) == ("norm=gn_scaled_ws", [])
    assert text.startswith("Group Normalization")
    (described,) = complete("normbench doct", tmp_path, "zsh")
    assert described == f"doctor:{COMMANDS['doctor']}"


def test_only_the_text_before_the_cursor_counts(tmp_path: Path) -> None:
    line = "normbench run norm=iternor norm=bn"
    assert complete(line, tmp_path, COMP_POINT="26") == ["norm=iternorm"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_heavy_module_is_imported(command: str, tmp_path: Path) -> None:
    program = f"""
import os, sys
end = os._exit
def report(code):
    os.write(2, " ".join(sorted({{*{HEAVY!r}}} & {{*sys.modules}})).encode())
    end(code)
os._exit = report
from normbench.cli import entry
entry()
"""
    line = f"normbench {command} --metric "
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 8>&1 9>/dev/null', "sh", sys.executable, "-c", program],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    if command in ("report", "diff", "power"):
        assert "test_acc" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
def test_bash_script_completes(tmp_path: Path) -> None:
    normbench = tmp_path / "normbench"
    normbench.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m normbench "$@"\n')
    normbench.chmod(0o755)
    script = """
eval "$(normbench completion bash)"
complete -p normbench >/dev/null || exit 3
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
COMP_LINE="normbench run norm=gn_w" COMP_POINT=23 COMP_TYPE=9
_python_argcomplete normbench
printf '%s\\n' "${COMPREPLY[@]}"
"""
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["gn_ws", "gn_ws_assign", "gn_ws_regularizer"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "normbench" in script
    assert ("complete --command normbench" in script) == (shell == "fish")


def test_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bahs"]) == 2
    assert "unknown shell 'bahs': did you mean 'bash'?" in capsys.readouterr().err
    assert main(["completion"]) == 2


def test_argcomplete_marker_is_in_the_first_1024_characters() -> None:
    for file in ("cli/__init__.py", "__main__.py"):  # argcomplete reads no further
        assert "PYTHON_ARGCOMPLETE_OK" in (ROOT / "normbench" / file).read_text()[:1024]


def test_every_completer_belongs_to_an_argument() -> None:
    from normbench.cli import build_parser

    metavars = {
        action.metavar for parser in build_parser().descendants() for action in parser._actions
    }
    assert set(COMPLETERS) <= metavars

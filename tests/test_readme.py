"""Commands in README, docs/ and conf/: shells, the parser and the configs accept them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normbench.cli import parse
from normbench.config import compose
from normbench.sweep.executors.base import choose
from normbench.sweep.experiment import unfold
from normbench.sweep.grid import expand

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/running.md", "docs/verifying.md")
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
FAIR = (ROOT / "docs" / "fair.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
CLUSTERS = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
PAPERS = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")

#: Pages with commands that no test of this file runs.
NOT_RUN_HERE = {
    "CONTRIBUTING.md": "its targets of make run the tests",
    "docs/data.md": "commands on a user's own images: tests/cli/test_own_data.py makes some",
}
#: Substrings of commands that are not run, with the reason.
NOT_RUN = {
    "executor=ray": "tests/sweep/executors/test_ray.py starts a cluster",
    "executor=slurm": "tests/slurm starts a Slurm",
    "--by commit": "runs of two commits",
}
#: Stores of other machines: copies of the local store.
ELSEWHERE = ("desk/runs", "cluster/runs", "published/runs")


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


BLOCKS = [block for page in (README, FAIR, MODELS, CLUSTERS, PAPERS) for block in blocks_of(page)]

SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]


def commands_of(text: str, prefix: str) -> list[str]:
    return re.findall(rf"^{prefix}(normbench .*)$", text, re.MULTILINE)


COMMENTED = [
    command
    for file in sorted((ROOT / "conf").rglob("*.yaml"))
    for command in commands_of(file.read_text(encoding="utf-8"), "#   ")
]
STUDIES = commands_of((ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), "    ")


def words_in(shell: str, script: str, folder: Path) -> list[list[str]]:
    """Return the words that a shell passes to each `normbench` in a script."""
    stub = folder / "normbench"
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    stub.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c '{code}' \"$@\"\n")
    stub.chmod(0o755)
    empty = folder / "empty"
    empty.mkdir()
    done = subprocess.run(
        [shell, "-e", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=empty,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(empty)},
    )
    assert done.returncode == 0, done.stderr
    assert not list(empty.iterdir())
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_commands_of_every_page_are_run_or_listed() -> None:
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]
    with_commands = {
        page.relative_to(ROOT).as_posix()
        for page in pages
        if blocks_of(page.read_text(encoding="utf-8"))
    }
    run = {*PAGES, "docs/fair.md", "docs/models.md", "docs/clusters.md", "docs/papers.md"}
    assert with_commands == run | NOT_RUN_HERE.keys()
    commands = "".join(BLOCKS)
    assert not [piece for piece in NOT_RUN if piece not in commands]


def test_every_command_is_in_a_shell_block() -> None:
    assert len(BLOCKS) > 10
    pages = README + FAIR + MODELS
    pages += PAPERS  # clusters.md is left out: it also shows output
    outside = re.sub(r"^```.*?^```$", "", pages, flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^ {4}\S.*$", outside, re.MULTILINE)  # blocks name their language


@pytest.mark.parametrize("shell", SHELLS)
def test_every_block_is_valid_shell(shell: str) -> None:
    for block in BLOCKS:
        subprocess.run([shell, "-n", "-c", block], check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_parser_and_configs_accept_every_command_as_a_shell_passes_it(
    shell: str, tmp_path: Path
) -> None:
    script = "\n".join([c for b in BLOCKS for c in commands_of(b, "")] + COMMENTED + STUDIES)
    seen = set()
    for words in words_in(shell, script, tmp_path):
        if words == ["--help"]:
            continue
        arguments = parse(words)
        seen.add(arguments.command)
        if arguments.command == "run" and not arguments.multirun:
            compose([word.replace("init=RUN", "init=00000000") for word in arguments.overrides])
        elif arguments.command in ("run", "sweep") and arguments.overrides != ["status"]:
            _, overrides = choose(arguments.overrides)
            experiment, lists = unfold(overrides)
            if experiment is None:  # experiments are expanded by their own test
                assert expand(lists[0])
    assert seen >= {"run", "sweep", "report", "show", "list", "norms", "diagnose", "data"}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_commands_have_no_characters_that_zsh_would_expand() -> None:
    # zsh refuses a pattern that matches no file, and comments after a typed command.
    for line in [*"".join(BLOCKS).splitlines(), *COMMENTED, *STUDIES]:
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        assert not set("()[]{}*?<>|&;~#$^") & set(unquoted), line


SMALL = """\
#!/bin/sh
# normbench, but runs are small, and RUN and OTHER are the first two that there are.
for word do
    shift
    case "$word $*" in
        "RUN --restore"*|"RUN rm --restore"*) word=$(removed) ;;
    esac
    case $word in
        RUN) word=$(first 0) ;;
        OTHER) word=$(first 1) ;;
        init=RUN) word=init=$(first 0) ;;
        epochs=8) word=epochs=2 ;;
        epochs=*) word=epochs=1 ;;
    esac
    set -- "$@" "$word"
done
case "$1 $2 $*" in
    "sweep status"*|*--print-config*) ;;
    "run "*|"sweep "*)
        case "$*" in *epochs=2*) epochs=2 ;; *) epochs=1 ;; esac
        set -- "$@" dataset=digits dataset.train_size=640 dataset.validation=200 \\
            arch=resnet8 arch.width=8 epochs=$epochs ;;
esac
exec "$PYTHON" -m normbench "$@"
"""
FIRST = """\
#!/bin/sh
"$PYTHON" -m normbench list --json | "$PYTHON" -c "
import json, sys
rows = [row for row in json.load(sys.stdin) if row['status'] == 'finished']
print(rows[$1]['name'])"
"""
REMOVED = """\
#!/bin/sh
ls -A runs | sed -n 's/^\\.\\(.*\\)\\.removed-.*/\\1/p'
"""
SKIPPED = (
    "make ",
    "pip ",
    "source ",
    "docker ",
    "apptainer ",
    "normbench data prepare",
    "normbench data import",
)


def run_commands(blocks: list[str], tmp_path: Path) -> Path:
    """Run the commands of pages in order as small runs; return the folder in which they ran."""
    tools, work = tmp_path / "bin", tmp_path / "work"
    tools.mkdir()
    work.mkdir()
    for name, text in (("normbench", SMALL), ("first", FIRST), ("removed", REMOVED)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    for command in "".join(blocks).splitlines():
        if command.startswith(SKIPPED) or ".quickstart" in command:
            continue
        if any(piece in command for piece in NOT_RUN):
            continue
        for store in ELSEWHERE:
            if store in command and not (work / store).exists():
                here = next(s for s in ("runs", "shared/runs") if (work / s).exists())
                shutil.copytree(work / here, work / store)
        if "experiment=batch_sweep" in command:  # minutes even where its runs are small
            command += " --dry-run"
        done = subprocess.run(
            ["bash", "-c", command], cwd=work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert not re.search("nothing (was trained|to train)", done.stdout), command
    return work


@pytest.mark.slow
def test_commands_of_readme_running_and_verifying_run(tmp_path: Path) -> None:
    work = run_commands(blocks_of(README)[1:], tmp_path)  # the first block is only an overview
    assert (work / "report" / "index.html").is_file()
    assert (work / "runs.csv").is_file()
    rows = "".join(file.read_text() for file in (work / "runs").glob("*/metrics.jsonl"))
    assert "probe/gradients/" in rows
    assert "probe/smoothness/" in rows


@pytest.mark.slow
def test_commands_of_fair_md_run(tmp_path: Path) -> None:
    from normbench.store.store import Store
    from normbench.store.tuning import tuning_of

    work = run_commands(blocks_of(FAIR), tmp_path)
    cells = tuning_of(Store(work / "runs")).cells
    assert len(cells) == 4
    assert all(cell.chosen is not None for cell in cells)


@pytest.mark.slow
def test_commands_and_python_of_models_md_run(tmp_path: Path) -> None:
    work = run_commands(blocks_of(MODELS), tmp_path)
    first = min((work / "runs").glob("digits-*")).name
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for code in re.findall(r"^```python\n(.*?)^```$", MODELS, re.MULTILINE | re.DOTALL):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("RUN", first)],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{code}\n{done.stderr}"


@pytest.mark.slow
def test_commands_of_clusters_md_run(tmp_path: Path) -> None:
    work = run_commands(blocks_of(CLUSTERS), tmp_path)
    assert len([*(work / "shared" / "runs").glob("digits-*")]) == 9
    assert len([*(work / "runs").glob("digits-*/summary.json")]) == 4  # of the detached sweep


@pytest.mark.slow
def test_commands_of_papers_md_run(tmp_path: Path) -> None:
    work = run_commands(blocks_of(PAPERS), tmp_path)
    assert (work / "paper.tar.gz").is_file()
    assert [*(work / "paper" / "tables").glob("*.tex")]
    assert "norm" in (work / "hyperparameters.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_python_of_python_md_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PYTHON, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    code = "\n".join(blocks).replace("arch=resnet8", "arch=mlp_sigmoid arch.units=8")
    code = code.replace('"arch=mlp_sigmoid arch.units=8"', '"arch=mlp_sigmoid", "arch.units=8"')
    done = subprocess.run(
        [sys.executable, "-c", code.replace("epochs=5", "epochs=1")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "unknown norm 'gm': did you mean 'gn'?" in done.stdout
    assert (tmp_path / "report" / "index.html").is_file()

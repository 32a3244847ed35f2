"""The pages of docs/: paths and links point to existing files, and code matches examples/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
]
FOLDERS = ("normbench", "conf", "docs", "examples", "benchmarks", "tests")
SHOWN = re.compile(r"^`(examples/[^`]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", re.M | re.S)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def paths_in(page: Path) -> set[str]:
    """Return the repository's files and folders that a page names outside its code blocks."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S)
    return set(re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", prose))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    missing = [path for path in paths_in(page) if not (ROOT / path).exists()]
    assert not missing


def test_architecture_page_names_many_modules() -> None:
    modules = [path for path in paths_in(ROOT / "docs" / "architecture.md") if ".py" in path]
    assert len(modules) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_existing_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", text(page)):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_code_in_adding_md_matches_the_examples() -> None:
    shown = dict(SHOWN.findall(text(ROOT / "docs" / "adding.md")))
    packages = {path.parent for path in (ROOT / "examples").glob("*/__init__.py")}
    for path, code in shown.items():
        assert code == text(ROOT / path), path
    assert {ROOT / Path(path).parts[0] / Path(path).parts[1] for path in shown} == packages
    assert len(shown) == 2 * len(packages)


# --- the site -------------------------------------------------------------------------------------


def pages_in(nav: object) -> list[str]:
    """Return the pages of a navigation tree."""
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav
    return [page for item in items for page in pages_in(item)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_site_navigation() -> None:
    nav = pages_in(yaml.safe_load(text(ROOT / "mkdocs.yml"))["nav"])
    written = {page for page in nav if not page.startswith("reference/")}
    of_top = {"index.md", "changelog.md", "contributing.md"}
    assert written == of_top | {page.name for page in (ROOT / "docs").glob("*.md")}
    assert len(nav) == len(set(nav))


BUILD = """
import sys
from mkdocs.__main__ import cli
arguments = ["build", "--strict", "--quiet", "--site-dir", sys.argv[1]]
cli(arguments, standalone_mode=False)
imported = {"tensorflow", "keras", "jax"} & set(sys.modules)
assert not imported, imported
"""


@pytest.mark.slow
def test_site_builds_without_tensorflow_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'normbench[docs]'")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"(https?:[^\"]*)", text(page)
        )
        assert not loaded, page
    norms = text(tmp_path / "reference" / "norm.html")
    commands = text(tmp_path / "reference" / "commands.html")
    for name in ("gn_ws", "evonorm_s0", "sync_bn"):
        assert f'id="norm{name}"' in norms
    assert "--tune-seeds SEED[,SEED...]" in commands
    assert 'id="normbench.api.sweep"' in text(tmp_path / "reference" / "python.html")
    assert "running.html#without-tensorflow" in text(tmp_path / "index.html")

"""The pages of docs/ are true: paths and links lead to files, shown code is that of examples/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    """Return the files and folders of the repository that a page names outside its code blocks."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S)
    return set(re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", prose))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    missing = [path for path in paths_in(page) if not (ROOT / path).exists()]
    assert not missing


def test_architecture_names_a_module_for_most_steps() -> None:
    modules = [path for path in paths_in(ROOT / "docs" / "architecture.md") if ".py" in path]
    assert len(modules) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", text(page)):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_adding_shows_the_examples_as_they_are() -> None:
    shown = dict(SHOWN.findall(text(ROOT / "docs" / "adding.md")))
    packages = {path.parent for path in (ROOT / "examples").glob("*/__init__.py")}
    for path, code in shown.items():
        assert code == text(ROOT / path), path
    assert {ROOT / Path(path).parts[0] / Path(path).parts[1] for path in shown} == packages
    assert len(shown) == 2 * len(packages)

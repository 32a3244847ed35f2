"""The HTML page: one file, no network access, and every number leads to its runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from normbench.report import load
from normbench.report.figures import draw, style
from normbench.report.page import svg
from normbench.report.page.build import build
from normbench.report.sections import Request, sections

VOID = {"meta", "input", "br", "hr", "img", "link", "rect", "use", "circle", "path", "stop"}


class Reader(HTMLParser):
    """Collects ids, links and unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[dict[str, str | None]] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.rows: list[dict[str, str | None]] = []
        self.hits: list[dict[str, str | None]] = []
        self.errors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if attributes.get("id"):
            self.ids.append(str(attributes["id"]))
        if tag == "a":
            self.links.append(attributes)
        if tag == "tr" and "data-run" in attributes:
            self.rows.append(attributes)
        if attributes.get("class") == "hit":
            self.hits.append(attributes)
        self.sources += [str(attributes[k]) for k in ("src", "xlink:href") if attributes.get(k)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


@pytest.fixture(scope="module")
def page(mixed_store: Path) -> str:
    frames = load(mixed_store)
    page_request = Request(target=None)
    page_sections, _ = sections(frames, page_request)
    page_sections[0].drawings = [
        d for d in draw(page_sections[0].grid) if not d.slug.endswith("-curves")
    ]
    return build(frames, page_sections, page_request, ["a note"], mixed_store.parent / "out")


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_page_is_well_formed(read: Reader) -> None:
    assert read.errors == []
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))


def test_page_needs_no_network(page: str, read: Reader) -> None:
    assert all(source.startswith(("#", "data:")) for source in read.sources)
    without = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert not re.search(r"https?://", without)
    assert "@import" not in page
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", page)


def test_internal_links_have_targets(read: Reader) -> None:
    inside = [str(a["href"])[1:] for a in read.links if str(a.get("href", "")).startswith("#")]
    assert len(inside) > 60
    assert set(inside) <= set(read.ids)


def test_every_run_is_listed_once_with_its_config(read: Reader, mixed_store: Path) -> None:
    names = [str(row["data-run"]) for row in read.rows]
    assert sorted(names) == list(load(mixed_store).runs["name"])
    targets = [str(a["href"]) for a in read.links if str(a["href"]).endswith("config.yaml")]
    assert len(targets) == 63
    for target in targets:
        assert (mixed_store.parent / "out" / target).resolve().is_file()


def test_hover_targets_lead_to_their_runs(read: Reader) -> None:
    cells = {row["data-cell"] for row in read.rows}
    assert len(read.hits) > 50
    assert {hit["data-cell"] for hit in read.hits if "data-cell" in hit} <= cells
    assert any("GN+WS, batch size 16" in str(hit["data-tip"]) for hit in read.hits)


def test_details_json_cannot_close_the_script_element(page: str) -> None:
    text = page.split('id="details">')[1].split("</script>")[0]
    details = json.loads(text)
    assert "<" not in text
    run = next(iter(details["runs"].values()))
    assert run["command"].startswith("normbench run ")
    assert "batch" in run["facts"]
    assert len(details["cells"]) == 24


def test_text_from_the_store_is_escaped(mixed_store: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(mixed_store, root)
    (root / "<b>bold<").mkdir()
    frames = load(root)
    page_sections, _ = sections(frames, Request())
    text = build(frames, page_sections, Request(where="norm != '<i>'"), ["<u>note"], tmp_path)
    assert "<b>bold<" not in text
    assert "&lt;b&gt;bold&lt;" in text
    assert "<i>" not in text
    assert "<u>note" not in text


def test_figure_colors_are_variables_of_the_page() -> None:
    figure, axes = style.styled(style.new)(style.column(), 2.0)
    axes[0, 0].plot([1, 2], [1, 2], color=style.BLUE)
    text = svg.inline(style.Drawing("x", 'A "line" & more', figure), "p", lambda key: "")
    assert style.INK not in text
    assert "var(--ink)" in text
    assert f"var(--s-{style.BLUE[1:]})" in text
    assert all(name.startswith("p-") for name in re.findall(r'\bid="([^"]*)"', text))
    assert 'aria-label="A &quot;line&quot; &amp; more"' in text
    assert set(svg.DARK) == set(style.COLORS)


@pytest.mark.parametrize("width", [1400, 420])
def test_page_works_in_a_browser(page: str, tmp_path: Path, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    path = tmp_path / "index.html"
    # Failures that a reader would see: a script error, or a page wider than the window.
    probe = (
        "<script>addEventListener('error', (e) => document.title = 'ERROR ' + e.message);"
        "addEventListener('load', () => document.title += ' ' + "
        "document.documentElement.scrollWidth + ' ' + "
        "[...document.querySelectorAll('tr[data-run]')].filter((r) => !r.hidden).length)</script>"
    )
    path.write_text(page.replace("<style>", f"{probe}<style>", 1), encoding="utf-8")
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            f"{path.as_uri()}#c0-1",
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    word, _, wide, rows = title[1].rsplit(" ", 3)
    assert word == "normbench"
    assert int(wide) <= max(width, 500)
    assert int(rows) == 2

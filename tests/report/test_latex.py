"""LaTeX tables fit the columns of each venue's template."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.report import load
from normbench.report import report as commands
from normbench.report.latex import latex, latex_text, text_width
from normbench.report.sections import Request, sections
from normbench.report.table import Table, TableEntry
from normbench.report.venues import VENUES, Venue

TEMPLATES = [name for name, venue in VENUES.items() if venue.columns]
SIZES = {r"\small": 9.0, r"\footnotesize": 8.0}
NORMS = ("bn", "bn_ws", "gn", "gn_ws", "ln", "in", "none")


@pytest.fixture(scope="module")
def tables(synth: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """All tables of a report with seven norms and ten batch sizes, and of one with tuned rates."""
    folder = tmp_path_factory.mktemp("latex")
    batches = [2**power for power in range(1, 11)]
    synth.write_grid(folder / "wide", NORMS, batches, 2, 2)
    synth.write_run(folder / "wide", synth.config("frn", 16, 0), status="diverged", stop=2)
    synth.write_tuned(folder / "tuned")
    tables = []
    for name in ("wide", "tuned"):
        (section,), _ = sections(load(folder / name), Request())
        tables += section.tables
    return tables


def visible(text: str) -> tuple[str, int]:
    """Return the letters of a piece of LaTeX, and how many of them are raised."""
    raised = len(re.findall(r"\\textsuperscript", text))
    text = re.sub(r"\\textsuperscript\{(\\dag|[^{}]*)\}", r"\1", text).replace(r"\dag", "†")
    text = re.sub(r"\\(textbf|allowbreak)", "", text)
    text = re.sub(r"\\text(\w+)\{\}", "x", text).replace(r"$\pm$", "±").replace("$-$", "−")
    return re.sub(r"[{}\\$]", "", text), raised


def widths_of(tex: str, line: float) -> list[float]:
    """Return the width in inches of each tabular, measured from its LaTeX."""
    size = next((points for name, points in SIZES.items() if f"  {name}\n" in tex), 10.0)
    known = re.search(r"\\tabcolsep}{(\d+)pt}", tex)
    gap = float(known[1]) if known else 6.0
    found = []
    for spec, body in re.findall(
        r"\\begin{tabular}{((?:[lr]|p{0\.35\\linewidth})+)}\n(.*?)\\end{tabular}", tex, re.S
    ):
        columns = re.findall(r"[lr]|p{0\.35\\linewidth}", spec)
        widest = [0.0] * len(columns)
        for row in re.findall(r"^    (.*) \\\\$", body, re.M):
            if "multicolumn" in row:
                continue
            cells = re.split(r"(?<!\\) ?& ", row)
            assert len(cells) == len(columns)
            for place, cell in enumerate(cells):
                for part in re.sub(r"\\shortstack{(.*)}", r"\1", cell).split(r" \\ "):
                    letters, raised = visible(part)
                    width = text_width(letters, size) * (1 - 0.25 * raised / max(len(letters), 1))
                    widest[place] = max(widest[place], width)
        for place, column in enumerate(columns):
            if column.startswith("p"):
                widest[place] = 0.35 * line
        found.append(sum(widest) + 2 * gap / 72 * len(columns))
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_tables_are_no_wider_than_the_template(name: str, tables: list[Table]) -> None:
    venue = VENUES[name]
    assert len(tables) >= 14
    for table in tables:
        tex = latex(table, venue=venue)
        wide = r"\begin{table*}" in tex
        assert not (wide and venue.columns == 1)
        line = venue.page if wide or venue.columns == 1 else venue.column
        widths = widths_of(tex, line)
        assert widths
        assert max(widths) <= line, (table.slug, widths)
        assert r"\resizebox" not in tex, table.slug
        shown = visible(tex)[0]
        for row in table.rows:  # no part of a split table loses an entry
            entries = [replace(entry, remark="") for entry in row]
            assert all(visible(latex_of(entry))[0] in shown for entry in entries)


def latex_of(entry: TableEntry) -> str:
    return latex(Table("x", "x", ["a"], [[entry]])).split("\\midrule\n    ")[1].split(r" \\")[0]


def test_wide_table_is_split_and_each_part_repeats_the_row_names() -> None:
    values = [TableEntry(f"{place}.25 ± 1.00", place) for place in range(30)]
    row = [TableEntry("BN"), TableEntry("16", 16.0), *values]
    headers = ["Norm", "Batch size", *(f"Column {place}" for place in range(30))]
    for name in TEMPLATES:
        tex = latex(Table("x", "x", headers, [row], keys=2), venue=VENUES[name])
        parts = tex.split(r"\begin{tabular}")[1:]
        assert len(parts) > 2
        assert all("BN & 16 &" in part for part in parts)
        assert max(widths_of(tex, VENUES[name].page)) <= VENUES[name].page
        assert tex.count(r"$\pm$") == 30
        assert tex.count(r"\label") == tex.count(r"\caption") == 1


def test_table_higher_than_a_page_continues_with_the_same_number() -> None:
    rows = [[TableEntry(f"Row {place}."), TableEntry("1.0", 1.0)] for place in range(150)]
    table = Table("x", "Results", ["Norm", "Value"], rows, notes=["A note."])
    for name in TEMPLATES:
        floats = latex(table, venue=VENUES[name]).split(r"\begin{table}")[1:]
        assert len(floats) > 2
        heights = [text.count(r" \\") for text in floats]
        assert max(heights) < VENUES[name].text_height * 72 / (1.2 * 8)
        assert floats[0].count(r"\caption{Results.}") == floats[0].count(r"\label{tab:x}") == 1
        for text in floats[1:]:
            assert r"\addtocounter{table}{-1}" in text
            assert r"\caption[]{Results (continued).}" in text
            assert r"\label" not in text
        assert [text.count("A note.") for text in floats] == [0] * (len(floats) - 1) + [1]
        shown = re.findall(r"Row (\d+)\.", "".join(floats))
        assert shown == [str(place) for place in range(150)]
    assert latex(table).count(r"\begin{table}") == 1  # the default style knows no page


def test_signs_of_metrics_need_no_unicode_font(tables: list[Table]) -> None:
    assert latex_text("≥ 2, ‖∇f‖ · 10⁻⁸, λ °") == (
        r"$\geq$ 2, $\|$$\nabla$f$\|$ $\cdot$ 10$^{-}$$^8$, $\lambda$ $^{\circ}$"
    )
    assert not any("XeLaTeX" in latex(table, venue=VENUES["icml"]) for table in tables)


def test_letters_that_need_another_encoding_or_engine_are_named() -> None:
    first, second, *_ = latex(Table("x", "«Æther» 実 – “ł”", ["a"], [])).splitlines()
    assert first == r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}"
    assert second == "% needs XeLaTeX or LuaLaTeX and a font that has 実"


def test_table_that_cannot_fit_is_scaled_and_names_its_packages() -> None:
    entry = TableEntry("1.0" * 60, 1.0)
    tex = latex(Table("x", "x", ["Norm", "Value"], [[TableEntry("BN"), entry]]), "", VENUES["cvpr"])
    assert r"\resizebox{\linewidth}{!}{%" in tex
    assert tex.startswith(r"% needs \usepackage{booktabs} and \usepackage{graphicx}")
    assert tex.count("{") == tex.count("}")


def test_labels_are_unique_in_a_report(
    one_figure: None, grid: Callable[..., Path], synth: SimpleNamespace, tmp_path: Path
) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 64), seeds=2, epochs=2)
    synth.write_grid(root, ("bn", "gn"), (16, 64), 2, 2, dataset="mnist")
    for label in ("é", "e9"):
        synth.write_grid(root, ("bn", "gn"), (16,), 1, 2, label=label, optimizer__lr=len(label))
    out = tmp_path / "out"
    commands.report(
        root, by=("norm", "batch", "label"), out=out, style="icml", target=0.5, say=lambda _: None
    )
    labels = [re.search(r"\\label{(.*)}", file.read_text())[1] for file in out.rglob("*.tex")]
    assert len(labels) > 30
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tables_compile_without_overfull_lines(
    name: str, tables: list[Table], tmp_path: Path
) -> None:
    (tmp_path / "paper.tex").write_text(document(VENUES[name], tables))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "Float too large" not in done.stdout


def document(venue: Venue, tables: list[Table]) -> str:
    """Return a paper with the columns of a venue's template and nothing but tables."""
    columns = "twocolumn" if venue.columns > 1 else "onecolumn"
    gap = venue.page - 2 * venue.column if venue.columns > 1 else 0.0
    head = [
        rf"\documentclass[10pt,{columns}]{{article}}",
        r"\usepackage{booktabs,graphicx,times}",
        rf"\setlength{{\textwidth}}{{{venue.page:.3f}in}}",
        rf"\setlength{{\textheight}}{{{venue.text_height:.3f}in}}",
        rf"\setlength{{\columnsep}}{{{gap:.3f}in}}",
        r"\begin{document}",
    ]
    body = [f"{latex(table, str(place), venue)}\n\\clearpage" for place, table in enumerate(tables)]
    return "\n".join([*head, *body, r"\end{document}"])

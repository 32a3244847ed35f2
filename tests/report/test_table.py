"""Tables as text: their content, and the escaping that each format needs."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len

from normbench.report import load, tables
from normbench.report import names as labels
from normbench.report import table as render
from normbench.report.grid import Grid, build
from normbench.report.latex import latex, latex_text
from normbench.report.metrics import METRICS
from normbench.report.report import text
from normbench.report.statistics import paired, sample
from normbench.report.study import studies
from normbench.report.table import Table, TableEntry
from normbench.report.tables import run_list, selection, summary


@pytest.fixture(scope="module")
def grid(mixed_store: Path) -> Grid:
    (study,) = studies(load(mixed_store))
    return build(study, METRICS["test_acc"], "bn")


def cell_of(markdown: str, row: str, column: int) -> str:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {row} "))
    return line.split("|")[column + 1].strip()


def test_matrix_in_markdown(grid: Grid) -> None:
    output = render.markdown(tables.matrix(grid))
    sample = grid.cells["gn_ws", 16].sample
    assert cell_of(output, "GN+WS", 1) == (
        f"**{100 * sample.mean:.2f} ± {100 * sample.half_width:.2f}**"
    )
    assert cell_of(output, "No norm", 1) == "63.06 (1 of 3 diverged)"
    assert cell_of(output, "No norm", 6) == "diverged (all 2 runs)"
    assert cell_of(output, "LN", 3).endswith("(1 seed)")
    assert cell_of(output, "LN", 4) == "– (1 not ended)"
    assert cell_of(output, "LN", 1) == "–"
    assert "†" in cell_of(output, "BN", 4)
    assert "over 3 seeds" in output
    assert "chance level" in output


def test_differences_show_sign_and_star(grid: Grid) -> None:
    output = render.markdown(tables.differences(grid))
    difference = grid.cells["gn", 16].baseline
    assert cell_of(output, "GN", 1).startswith(f"{100 * difference.mean:+.2f} ± ")
    assert "Holm" in output
    assert "over the 12 comparisons of this table that can be tested" in output
    assert "3 more comparisons cannot be tested" in output


def test_table_without_tests_claims_no_significance(
    grid: Grid, synth: SimpleNamespace, tmp_store: Path
) -> None:
    for norm in ("bn", "gn"):
        synth.write_run(tmp_store, synth.config(norm, 16, 0, epochs=3))
    (study,) = studies(load(tmp_store))
    output = render.markdown(tables.differences(build(study, METRICS["test_acc"], "bn")))
    assert "p < 0.05" not in output
    assert "The one comparison cannot be tested: one seed, a diverged run, or no spread." in output
    synth.write_run(tmp_store, synth.config("ln", 16, 0, epochs=3))
    (study,) = studies(load(tmp_store))
    output = render.markdown(tables.differences(build(study, METRICS["test_acc"], "bn")))
    assert "2 comparisons cannot be tested" in output


def test_times_have_no_significance_marks(grid: Grid) -> None:
    for name in ("images_per_s", "train_seconds"):
        timed = build(grid.study, METRICS[name], "bn")
        for table in (tables.matrix(timed), tables.differences(timed), tables.comparisons(timed)):
            output = render.markdown(table)
            assert "†" not in output
            assert "p < 0.05" not in output
            assert "no test is made" in output
        assert not any(cell.baseline.tested for cell in timed.cells.values() if cell.baseline)
        assert any(cell.best for cell in timed.cells.values())  # which describes and claims nothing


def test_interval_is_clipped_to_possible_values() -> None:
    steps, accuracy = METRICS["steps_to_target"], METRICS["test_acc"]
    cut = steps.within(sample([10.0, 20.0, 120.0]))
    assert cut.mean == 50.0
    assert cut.low == 0.0
    assert cut.high == pytest.approx(50 + cut.half_width)
    assert steps.estimate(cut) == f"50 [0, {cut.high:.0f}]"
    assert steps.estimate(steps.within(sample([49.0, 51.0, 50.0]))) == "50 ± 2"
    high = accuracy.within(sample([0.99, 1.0, 0.98]))
    assert high.high == 1.0
    assert accuracy.estimate(high) == f"99.00 ± {100 * high.half_width:.2f}"
    wide = accuracy.within(sample([0.4, 0.69]))  # half of its interval is 184 points
    assert accuracy.estimate(wide) == "54.50 [0.00, 100.00]"


@pytest.mark.parametrize(
    ("name", "values", "text", "amount"),
    [
        ("test_acc", (0.01, 0.02), "+1.50 ± 6.35", "1.50 ± 6.35"),
        ("test_acc", (-0.01, -0.02), "-1.50 ± 6.35", "1.50 ± 6.35"),
        ("test_acc", (0.1, 0.3), "+20.00 [-100.00, +100.00]", "20.00 [-100.00, 100.00]"),
        ("test_acc", (-0.7, -0.8), "-75.00 [-100.00, -11.47]", "75.00 [11.47, 100.00]"),
        ("gap", (1.5, -1.5), "+0.00 [-200.00, +200.00]", "0.00 [-200.00, 200.00]"),
        ("test_loss", (1.0, 3.0), "+2.0000 ± 12.7062", "2.0000 ± 12.7062"),
        ("test_acc", (0.01,), "+1.00", "1.00"),
    ],
)
def test_interval_of_differences_is_clipped_to_possible_ones(name, values, text, amount) -> None:
    difference = paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    assert METRICS[name].difference(difference) == text
    assert METRICS[name].difference(difference, sign=False) == amount


def test_clipped_interval_is_explained(grid: Grid) -> None:
    runs = grid.study.runs
    places = runs.index[(runs["norm"] == "bn") & (runs["batch"] == 16)]
    study = replace(grid.study, runs=runs.assign(steps_to_target=50.0))
    study.runs.loc[places, "steps_to_target"] = [10.0, 20.0, 120.0]
    output = render.markdown(tables.matrix(build(study, METRICS["steps_to_target"])))
    assert r"50 \[0, 201\]" in output
    assert "an interval that is cut at 0" in output


def test_csv_has_unrounded_numbers(grid: Grid) -> None:
    lines = list(csv.DictReader(io.StringIO(render.csv(tables.matrix(grid)))))
    line = next(one for one in lines if one["norm"] == "gn" and one["batch"] == "64")
    assert float(line["mean"]) == grid.cells["gn", 64].sample.mean
    assert float(line["sd"]) == grid.cells["gn", 64].sample.sd
    assert line["n"] == "3"


def test_comparisons_list_every_pair(grid: Grid) -> None:
    table = tables.comparisons(grid)
    assert len(table.rows) == 15
    assert list(table.data["p"].dropna()) == [
        c.baseline.p for c in grid.cells.values() if c.baseline is not None and c.baseline.tested
    ]


def test_improvement_says_what_cannot_be_resampled(grid: Grid) -> None:
    output = render.markdown(tables.improvement(grid))
    assert cell_of(output, "LN", 2) == "– (a task has 1 run)"
    assert cell_of(output, "No norm", 2) == "– (all pairs agree)"
    assert cell_of(output, "GN", 3) == "6"


def test_selection_uses_only_validation(grid: Grid) -> None:
    table = selection(grid.study)
    assert table is not None
    runs = grid.study.runs
    for line in table.data.itertuples():
        row_runs = runs[(runs["norm"] == line.row) & (runs["status"] == "finished")]
        means = row_runs.groupby("batch")["val_acc"].mean()
        if line.row != "none":
            assert line.column == means.idxmax()
            assert line.test_acc == pytest.approx(
                row_runs[row_runs["batch"] == line.column]["test_acc"].mean()
            )


def test_summary_has_every_cell_and_run_list_every_run(grid: Grid, mixed_store: Path) -> None:
    table = summary(grid.study)
    assert len(table.rows) == len(grid.cells)
    assert set(table.data["runs"]) == {1, 2, 3}
    listed = run_list(load(mixed_store))
    assert len(listed.rows) == 63


def test_latex_is_balanced_and_escaped() -> None:
    awkward = Table(
        "a_b",
        "50 % of R&D_x",
        ["Norm", "x_1", "<2>"],
        [
            [
                TableEntry("bn #1"),
                TableEntry("-1.50 ± 0.20", -1.5, best=True),
                TableEntry("3", 3.0),
            ],
            [
                TableEntry("gn ~ {x}"),
                TableEntry("2", 2.0, tied=True, remark="1 seed"),
                TableEntry("^", None),
            ],
        ],
        ["Costs $5."],
        pd.DataFrame(),
        "Batch",
    )
    tex = latex(awkward)
    assert r"\textbf{$-$1.50 $\pm$ 0.20}" in tex
    assert r"50 \% of R\&D\_x" in tex
    assert r"bn \#1" in tex
    assert r"gn \textasciitilde{} \{x\}" in tex
    assert r"2\textsuperscript{\dag}\textsuperscript{a}" in tex
    assert r"\textsuperscript{a} 1 seed." in tex
    assert r"Costs \$5." in tex
    assert r"\multicolumn{2}{c}{Batch}" in tex
    assert tex.count(r"\begin{") == tex.count(r"\end{")
    for rule in ("toprule", "midrule", "bottomrule"):
        assert tex.count(f"\\{rule}") == 1
    assert all(
        line.count("&") == 2
        for line in tex.splitlines()
        if line.endswith(r"} \\") and "multicolumn" not in line
    )


HOSTILE = (
    r"$\bn$ plain",
    "costs $5 and $6",
    "[bold]x[/]",
    "[/nope]",
    ":tada: a:b",
    "<b>&lt;</b> <!-- x",
    "a|b||c",
    "`x` ``",
    "**b** __u__ *i*",
    "~~gone~~",
    "# x",
    "1. x",
    "- x",
    "[link](http://x.y) ![i](j)",
    r"\section{x} 50 % #1 ^2 _3",
    "a -- b --- 3",
    "実験 🔬",
)
"""Names with a meaning in some markup language."""


def named(*names: str) -> Table:
    rows = [[TableEntry(name), TableEntry("95.00 ± 0.10", 0.95)] for name in names]
    return Table("t", names[0], ["Run", names[0]], rows, [names[0]], span=names[0])


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_literal_in_markdown(name: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(render.markdown(named(name)))
    inside = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inside for child in token.children or []}
    assert kinds <= {"text", "text_special", "softbreak"}
    texts = ["".join(child.content for child in token.children or []) for token in inside]
    assert texts[0] == name
    assert texts[2:6] == ["Run", name, name, "95.00 ± 0.10"]
    assert texts[6] == name
    # What GitHub adds to CommonMark: mathematics and emoji codes.
    assert not re.search(r"(?<!\\)\$|(?<!\\):[\w+-]+:", render.markdown(named(name)))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_literal_on_a_terminal(name: str) -> None:
    shown = text(render.terminal(named(name)), 80)
    assert shown.splitlines()[0] == f"{name} (columns: {name.lower()})"
    assert shown.count(name) >= 4
    assert "95.00±0.10" in shown


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (r"$\bn$", r"\$\textbackslash{}bn\$"),
        ("[5pt]", "{[}5pt{]}"),
        ("a -- b -5 --6", "a -{}- b $-$5 -{}-6"),
        ("a|b<c>`d`", r"a\textbar{}b\textless{}c\textgreater{}\textasciigrave{}d\textasciigrave{}"),
    ],
)
def test_names_are_literal_in_latex(name: str, written: str) -> None:
    assert latex_text(name) == written


def test_latex_says_which_characters_need_another_engine() -> None:
    assert "needs XeLaTeX or LuaLaTeX and a font that has 実験" in latex(named("実験"))
    assert "XeLaTeX" not in latex(named("± × – † − é"))


def test_long_names_in_latex_can_break() -> None:
    tex = latex(named("n" * 120))
    assert r"\begin{tabular}{p{0.35\linewidth}r}" in tex
    assert r"n\allowbreak{}n" in tex


def test_filter_in_markdown_is_always_code() -> None:
    code = render.markdown_code("label == `a`` b")
    (token,) = MarkdownIt().parseInline(code)
    assert [(child.type, child.content) for child in token.children or []] == [
        ("code_inline", "label == `a`` b")
    ]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
@pytest.mark.parametrize(
    "names",
    [
        ("gn (groups=4, epsilon=1e-05, momentum=0.99)", "gn (groups=8, epsilon=0.001)"),
        ("x" * 119 + "1", "x" * 119 + "2"),
        ("n" * 150 + "a" + "n" * 150, "n" * 150 + "b" + "n" * 150),
        ("実験" * 40, "実験" * 41),
    ],
)
def test_names_are_shortened_before_numbers(names: tuple[str, ...], width: int) -> None:
    values = [f"{90 + place}.12 ± 0.{place}4" for place in range(6)]
    rows = [
        [
            TableEntry(name),
            *(TableEntry(value, 1.0, best=not place, tied=place == 1) for value in values),
            TableEntry("–", remark="1 of 3 diverged"),
        ]
        for place, name in enumerate(names)
    ]
    table = Table("t", "T", ["Norm", *map(str, (16, 32, 64, 128, 256)), names[0], "9"], rows)
    shown = text(render.terminal(table), width)
    assert max(map(cell_len, shown.splitlines())) <= width
    for value in values:
        assert shown.count(value.replace(" ± ", "±")) == len(names)
    assert shown.count("1 of 3") == shown.count("diverged") == len(names)
    assert ("…" in shown) == (len(names[0]) > 120)


def test_shortened_names_stay_distinct() -> None:
    names = ["n" * 150 + letter + "n" * 150 for letter in "ab"] + ["short"]
    short = labels.shortened(names, 120)
    assert len(set(short)) == 3
    assert max(map(len, short)) <= 125
    assert short[2] == "short"


def test_markdown_is_escaped() -> None:
    output = render.markdown(
        Table("x", "T", ["a|b", "c"], [[TableEntry("_x_"), TableEntry("<i>")]])
    )
    assert r"a\|b" in output
    assert r"\_x\_" in output
    assert r"\<i\>" in output


def test_terminal_fits_eighty_columns(grid: Grid) -> None:
    shown = text(render.terminal(tables.matrix(grid)), 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "95.93±1.05" in shown
    assert "94.07±0.40†" in shown

"""Venues: the values of --style and --formats, and the resulting sizes of figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.text import Text

from normbench.cli import main
from normbench.cli.parser import Parser
from normbench.cli.report import add_arguments
from normbench.errors import UserError
from normbench.report import Grid, build, figures, load, studies
from normbench.report.figures import style
from normbench.report.metrics import METRICS
from normbench.report.venues import DEFAULT, FORMATS, VENUES, find_venue, parse_formats
from tests.marks import slow_except


@pytest.fixture(scope="module")
def grid_of_seven(tmp_path_factory: pytest.TempPathFactory, synth: SimpleNamespace) -> Grid:
    norms = ("bn", "gn", "gn_ws", "ln", "in", "none", "bn_ws")
    root = synth.write_grid(tmp_path_factory.mktemp("seven") / "runs", norms, (16, 64, 512), 2, 4)
    synth.write_run(root, synth.config("frn", 16, 0, epochs=4), status="diverged", stop=2)
    (study,) = studies(load(root))
    return build(study, METRICS["test_acc"], "bn")


@pytest.mark.parametrize(
    ("inches", "drawn"), [(3.0, 5.6), (4.0, 6.3), (6.0, 8.4)], ids=["fits", "reduced", "too tall"]
)
def test_panels_shrink_by_up_to_a_quarter_to_fit_a_slide(inches: float, drawn: float) -> None:
    with style.made_for(VENUES["slides"]):
        figure, _ = style.new(style.page(), inches)
    assert figure.get_size_inches() == pytest.approx([12.6, drawn])


@pytest.mark.parametrize("name", slow_except(("nature", "slides"), VENUES))
def test_figures_have_the_width_of_the_venue_and_readable_text(
    name: str, grid_of_seven: Grid
) -> None:
    venue = VENUES[name]
    drawings = figures.draw(grid_of_seven, venue)
    assert len(drawings) >= 8
    for drawing in drawings:
        drawing.settle()
        figure = drawing.figure
        width, height = figure.get_size_inches()
        assert width == pytest.approx(venue.page if drawing.wide else venue.column), drawing.slug
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        sizes = {text.get_fontsize() for text in texts}
        assert min(sizes) >= style.LEAST, drawing.slug
        assert max(sizes) == pytest.approx(venue.size), drawing.slug
        assert {text.get_fontfamily()[0] for text in texts} == {style._family(venue)}, drawing.slug
        with drawing._drawing():
            inside = figure.get_tightbbox()
        assert -0.03 <= inside.x0 <= inside.x1 <= width + 0.03, drawing.slug
        assert -0.03 <= inside.y0 <= inside.y1 <= height + 0.03, drawing.slug


def test_formats_default_to_the_venue_and_can_be_overridden(
    one_figure: None, grid: Callable[..., Path], tmp_path: Path
) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 64), seeds=2, epochs=2)
    for options, suffixes in (
        ([], {".png", ".svg"}),
        (["--style", "icml"], {".png", ".svg", ".pdf"}),
        (["--style", "icml", "--formats", "pdf"], {".pdf"}),
    ):
        out = tmp_path / "out"
        assert main(["report", str(root), "--out", str(out), *options]) == 0
        assert {path.suffix for path in (out / "figures").iterdir()} == suffixes
        page = (out / "index.html").read_text()
        assert {s for s in (".png", ".svg", ".pdf") if f"heatmap{s}" in page} == suffixes
        assert "<svg" in page
    assert "(figures/test_acc-heatmap.pdf)" in (out / "report.md").read_text()


def test_unknown_styles_and_formats_are_refused() -> None:
    with pytest.raises(UserError, match="unknown style 'neurps': did you mean 'neurips'"):
        find_venue("neurps")
    with pytest.raises(UserError, match="unknown format in --formats 'pgn': did you mean 'png'"):
        parse_formats("svg,pgn", VENUES[DEFAULT])
    with pytest.raises(UserError, match="at least one of png, svg, pdf"):
        parse_formats(",", VENUES[DEFAULT])
    assert parse_formats("PDF, .png", VENUES[DEFAULT]) == ("png", "pdf")


def test_help_names_every_style_and_format() -> None:
    parser = Parser(prog="report")
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    listed = text[text.rindex("--style STYLE") : text.rindex("--formats")]
    assert all(name in listed for name in VENUES)
    assert parser.get_default("style") == DEFAULT
    assert all(format in text[text.rindex("--formats FORMAT") :] for format in FORMATS)

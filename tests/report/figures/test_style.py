"""Style: a norm's look does not depend on what else is drawn, and files are reproducible."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from PIL import Image

from normbench.report import names as labels
from normbench.report.figures import style
from normbench.report.venues import FORMATS


def luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_known_norms_look_different() -> None:
    looks = [
        (style.look("norm", name).color, style.look("norm", name).marker)
        for name in labels.NORMS
        if not name.startswith("none_scaled")
    ]
    assert len(set(looks)) == len(looks)
    main = [style.look("norm", name) for name in ("none", "bn", "bn_ws", "gn", "gn_ws", "ln", "in")]
    assert len({look.color for look in main}) == len(main)
    assert len({look.marker for look in main}) == len(main)


def test_unknown_norm_looks_the_same_in_every_process() -> None:
    here = [tuple(style.look("norm", name)) for name in ("mine", "gn (groups=4)", "ours2")]
    code = (
        "from normbench.report.figures.style import look\n"
        "print([tuple(look('norm', n)) for n in ('ours2', 'gn (groups=4)', 'mine')][::-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(here)


def test_numbers_are_colored_by_order() -> None:
    looks = [style.look("norm.groups", value, [1, 2, 4, 8]) for value in (1, 2, 4, 8)]
    assert len({look.color for look in looks}) == 4
    lights = [luminance(look.color) for look in looks]
    assert lights == sorted(lights)


def test_colors_stand_out_from_the_background() -> None:
    for color in style.COLORS:
        contrast = (luminance(style.PAPER) + 0.05) / (luminance(color) + 0.05)
        assert contrast > 1.7, color


def simulated(color: str, matrix: list[list[float]]) -> tuple[float, ...]:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return tuple(sum(m * c for m, c in zip(row, linear, strict=True)) for row in matrix)


def test_main_colors_differ_for_color_blind_readers() -> None:
    # Machado, Oliveira & Fernandes 2009, severity 1: protanopia and deuteranopia.
    protan = [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
    deutan = [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
    main = [style.look("norm", name).color for name in ("bn", "gn", "gn_ws", "bn_ws", "ln")]
    for matrix in (protan, deutan):
        for a, b in itertools.combinations(main, 2):
            far = (
                sum(
                    (x - y) ** 2
                    for x, y in zip(simulated(a, matrix), simulated(b, matrix), strict=True)
                )
                ** 0.5
            )
            assert far > 0.06, (a, b)


def test_files_are_reproducible(tmp_path: Path) -> None:
    def make(folder: str) -> dict[str, bytes]:
        figure, axes = style.styled(style.new)(style.column(), 2.0)
        axes[0, 0].plot([1, 2, 3], [1, 4, 2])
        drawing = style.Drawing("x", "A line.", figure)
        paths = style.save(drawing, tmp_path / folder, FORMATS)
        return {path.suffix: path.read_bytes() for path in paths}

    assert make("a") == make("b")
    with Image.open(tmp_path / "a" / "x.png") as image:
        assert image.size == (round(style.column() * 300), 600)
        assert round(image.info["dpi"][0]) == 300


@pytest.fixture
def font(tmp_path: Path) -> Iterator[str]:
    """Install a font whose only character is 実, drawn as a box, and yield its family."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord("実"): "box"})
    pen = TTGlyphPen(None)
    for index, corner in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if index else pen.moveTo)(corner)
    pen.closePath()
    box = pen.glyph()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "box": box})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "box": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    names = {"familyName": "One Letter Sans", "styleName": "Regular", "psName": "OneLetterSans"}
    builder.setupNameTable(names)
    builder.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=100)
    builder.setupPost()
    path = tmp_path / "one.ttf"
    builder.save(path)
    known = list(font_manager.fontManager.ttflist)
    caches = (style._entries, style._fonts_with, style._is_in, style._further_fonts)
    for cache in caches:
        cache.cache_clear()
    font_manager.fontManager.addfont(path)
    yield "One Letter Sans"
    font_manager.fontManager.ttflist[:] = known
    for cache in caches:
        cache.cache_clear()


def labeled(text: str) -> style.Drawing:
    figure, axes = style.styled(style.new)(style.column(), 2.0)
    axes[0, 0].set_title(text)
    return style.Drawing("x", "", figure)


def test_installed_font_is_used_for_characters_missing_from_the_first(
    font: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    drawing = labeled("GN 実")
    style.save(drawing, tmp_path, FORMATS)
    assert style.lacking([drawing]) == ""
    assert font.replace(" ", "") in drawing.svg()
    assert style.text_width("実", 10) == pytest.approx(10 / 72, rel=0.1)
    assert not recwarn.list


def test_characters_missing_from_all_fonts_are_named_once(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = "\U0003fffd"  # unassigned
    drawings = [labeled(f"GN {nowhere} {number}") for number in range(3)]
    for drawing, kinds in zip(drawings, [FORMATS, ["svg"], ["svg"]], strict=True):
        style.save(drawing, tmp_path, kinds)
    message = style.lacking(drawings)
    assert message.count(nowhere) == 1
    assert "no installed font has these characters" in message
    assert not recwarn.list
    assert not caplog.records


def test_wrapped_names_fit_and_stay_distinct() -> None:
    names = ["n" * 80 + end for end in "ab"] + ["a_b-c " * 20, "short", "実験" * 30]
    wrapped = style.wrapped(names, 1.0)
    assert len(set(wrapped)) == len(names)
    assert wrapped[3] == "short"
    for text in wrapped:
        assert text.count("\n") < style.LINES
        assert all(style.text_width(line) <= 1.01 for line in text.split("\n"))


def test_figure_is_laid_out_once_and_drawn_once_per_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = labeled("A title")
    counts = {"draw": 0, "layout": 0}

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return call(*args, **kwargs)

        return inner

    engine = drawing.figure.get_layout_engine()
    assert engine is not None
    monkeypatch.setattr(engine, "execute", counted("layout", engine.execute))
    monkeypatch.setattr(drawing.figure, "draw", counted("draw", drawing.figure.draw))
    style.save(drawing, tmp_path, FORMATS)
    drawing.svg()  # the page reuses the SVG that was written
    drawing.hits()
    assert counts == {"draw": len(FORMATS), "layout": 1}

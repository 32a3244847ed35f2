"""The style: a norm's look never depends on what else is drawn; files are the same each time."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from matplotlib.colors import to_rgb
from PIL import Image

from normbench.report import labels
from normbench.report.figures import style


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_known_norms_look_different() -> None:
    looks = [
        (style.look("norm", name).colour, style.look("norm", name).marker)
        for name in labels.NORMS
        if not name.startswith("none_scaled")
    ]
    assert len(set(looks)) == len(looks)
    main = [style.look("norm", name) for name in ("none", "bn", "bn_ws", "gn", "gn_ws", "ln", "in")]
    assert len({look.colour for look in main}) == len(main)
    assert len({look.marker for look in main}) == len(main)


def test_an_unknown_norm_looks_the_same_in_every_process() -> None:
    here = [tuple(style.look("norm", name)) for name in ("mine", "gn (groups=4)", "ours2")]
    code = (
        "from normbench.report.figures.style import look\n"
        "print([tuple(look('norm', n)) for n in ('ours2', 'gn (groups=4)', 'mine')][::-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(here)


def test_numbers_are_coloured_by_order() -> None:
    looks = [style.look("norm.groups", value, [1, 2, 4, 8]) for value in (1, 2, 4, 8)]
    assert len({look.colour for look in looks}) == 4
    lights = [luminance(look.colour) for look in looks]
    assert lights == sorted(lights)


def test_colours_stand_out_from_the_paper() -> None:
    for colour in style.COLOURS:
        contrast = (luminance(style.PAPER) + 0.05) / (luminance(colour) + 0.05)
        assert contrast > 1.7, colour


def simulated(colour: str, matrix: list[list[float]]) -> tuple[float, ...]:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return tuple(sum(m * c for m, c in zip(row, linear, strict=True)) for row in matrix)


def test_main_colours_differ_for_colour_blind_readers() -> None:
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
    main = [style.look("norm", name).colour for name in ("bn", "gn", "gn_ws", "bn_ws", "ln")]
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


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    def make(folder: str) -> dict[str, bytes]:
        figure, axes = style.styled(style.new)(style.COLUMN, 2.0)
        axes[0, 0].plot([1, 2, 3], [1, 4, 2])
        drawing = style.Drawing("x", "A line.", figure)
        return {path.suffix: path.read_bytes() for path in style.save(drawing, tmp_path / folder)}

    assert make("a") == make("b")
    with Image.open(tmp_path / "a" / "x.png") as image:
        assert image.size == (round(style.COLUMN * 300), 600)
        assert round(image.info["dpi"][0]) == 300

"""The drawing of a network."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_rgba

from normbench.config import compose
from normbench.errors import UserError
from normbench.report.figures.network import COLORS, MAPPED, check_file, draw, save
from normbench.report.network import network_of


@pytest.fixture(scope="module")
def network():
    return network_of(compose(["arch=resnet8", "arch.width=8", "norm=xbn", "dataset=digits"]))


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_drawing_shows_blocks_places_shapes_and_totals(network):
    labels = words(draw(network))
    for text in (
        "arch=resnet8 norm=xbn",
        "stage1 block1",
        "batch\nstem",
        "group\nmid",
        "batch\npost",
    ):
        assert text in labels
    assert "conv 16\n3×3 /2" in labels
    assert "images\n8×8×1" in labels
    assert "2×2×32" in labels
    assert labels.count("+") == 3
    assert any("8×8×1 images, 10 classes" in text for text in labels)


def test_normalizations_are_colored_by_kind(network):
    patches = draw(network).axes[0].patches
    fills = [patch.get_facecolor() for patch in patches]
    # Nine normalizations in the places of a ResNet-8 and a legend entry for each kind.
    assert fills.count(to_rgba(COLORS["BatchNormalization"])) == 1 + 3 + 2 + 1
    assert fills.count(to_rgba(COLORS["GroupNormalization"])) == 3 + 1


def test_parametrized_kernels_have_a_color():
    network = network_of(compose(["arch=resnet8", "arch.width=8", "norm=gn_ws", "dataset=digits"]))
    figure = draw(network)
    fills = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert fills.count(to_rgba(MAPPED)) == 9 + 1  # plus the legend entry
    assert "kernels: WeightStandardization" in words(figure)


def test_nothing_is_drawn_outside_the_figure(network):
    figure = draw(network)
    width, height = figure.get_size_inches()
    for patch in figure.axes[0].patches:
        box = patch.get_path().get_extents(patch.get_patch_transform())
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    for line in figure.axes[0].lines:
        assert min(line.get_xdata()) >= 0
        assert max(line.get_xdata()) <= width


def test_names_are_drawn_literally_and_fit(network, tmp_path):
    name = r"$\bn$ costs $5 [/x] " * 12
    layers = [
        replace(layer, place=name, kind=f"{name}Normalization") if layer.place else layer
        for layer in network.layers
    ]
    named = network._replace(name=name, layers=layers)
    figure = draw(named)
    assert any(text.startswith(r"$\bn$ costs") for text in words(figure))
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)
    inside = figure.get_tightbbox()
    assert 0 <= inside.x0 <= inside.x1 <= figure.get_size_inches()[0] + 0.02
    assert save(named, tmp_path / "network.png").exists()


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_suffix_determines_the_file_format(network, tmp_path, suffix):
    file = save(network, tmp_path / f"network{suffix}")
    data = file.read_bytes()
    if suffix == ".svg":
        assert ElementTree.fromstring(data).tag.endswith("svg")
    else:
        assert data.startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])


def test_svg_is_reproducible(network, tmp_path):
    first, second = (save(network, tmp_path / f"{n}.svg").read_bytes() for n in (1, 2))
    assert first == second


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("network.pgn", "did you mean '.png'"),
        ("network", "must end in .png, .svg, .pdf"),
        ("none/network.png", "there is no folder"),
    ],
)
def test_invalid_file_names_are_refused(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check_file(tmp_path / name)

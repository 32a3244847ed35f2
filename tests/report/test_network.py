"""A network's layer table."""

import io
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.console import Console

from normbench.cli.show import network_page
from normbench.network import LayerCost
from normbench.report.network import Network, kind, placed, rows, short, totals


def layer(name, kind="Conv2D", **changed):
    options = {
        "about": "",
        "inputs": (),
        "output_shape": (4, 4, 8),
        "parameters": 0,
        "multiply_adds": 0,
        "activation_bytes": 512,
        "kept_bytes": 0,
    }
    return LayerCost(name, kind, **{**options, **changed})


LAYERS = [
    layer("images", "InputLayer", output_shape=(4, 4, 1), activation_bytes=64, kept_bytes=64),
    layer("conv", "ParametrizedConv2D", about="3×3", inputs=("images",), parameters=72,
          multiply_adds=1152, kept_bytes=512, parametrization="WeightStandardization"),
    layer("norm", "GroupNormalization", about="2 groups", inputs=("conv",), parameters=16,
          place="stem"),
    layer("norm2", "BatchNormalization", inputs=("norm",), parameters=16, place="mid"),
]  # fmt: skip
NETWORK = Network("net with gn_ws", (4, 4, 1), "Digits", 10, 32, LAYERS)


def page_text(width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(network_page(NETWORK, width))
    return console.export_text()


def test_last_row_is_the_sum():
    *listed, total = rows(NETWORK)
    assert [row["layer"] for row in listed] == ["images", "conv", "norm", "norm2"]
    assert total["layer"] == "total"
    assert total["parameters"] == 104
    assert total["multiply_adds"] == 1152
    assert total["activation_bytes"] == 64 + 3 * 512
    assert total["kept_bytes"] == 576
    assert list(total) == list(listed[0])
    assert listed[1]["parametrization"] == "WeightStandardization"
    assert listed[2]["place"] == "stem"


def test_training_memory_is_the_kept_bytes_of_a_batch():
    facts = dict(totals(NETWORK))
    assert facts["to train"].startswith("at least 18.0 KiB of activations at batch 32")
    assert facts["images"] == "4×4×1, 10 classes (Digits)"
    assert dict(totals(NETWORK._replace(images_of=None)))["images"] == "4×4×1, 10 classes"


def test_normalizations_are_counted_by_place():
    assert placed(LAYERS) == ["1 × GroupNormalization: stem 1", "1 × BatchNormalization: mid 1"]
    assert placed(LAYERS[:2]) == ["none"]


@pytest.mark.parametrize("width", [48, 60, 100, 160])
def test_page_has_every_layer_and_fits(width):
    text = page_text(width)
    assert max(map(len, text.splitlines())) <= width
    for cost in LAYERS:
        assert cost.name in text
    assert "1 × WeightStandardization" in " ".join(text.split())


def test_long_names_are_wrapped_before_columns_are_dropped():
    long = replace(LAYERS[1], name="conv_" * 24)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(network_page(NETWORK._replace(name="net [/x]", layers=[*LAYERS, long]), 80))
    text = console.export_text()
    assert "net [/x]" in text
    assert "parameters" in text.splitlines()[1]
    assert text.splitlines()[3].split()[-1] == "72"


def test_columns_are_dropped_on_narrow_terminals():
    headings = [page_text(width).splitlines()[1].split() for width in range(30, 160, 5)]
    assert headings[0] == ["layer", "kind"]
    assert headings[-1][-2:] == ["multiply-adds", "activation"]
    for narrow, wide in pairwise(headings):
        assert set(narrow) <= set(wide)
    assert ["layer", "kind", "place", "parameters"] in headings


def test_kinds_include_the_kernel_parametrization():
    assert kind(LAYERS[1]) == "Conv2D 3×3 (WeightStandardization)"
    assert kind(LAYERS[2]) == "GroupNormalization 2 groups"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (25_557_032, "25.6 M"), (4.089e9, "4.09 G"),
     (999_600, "1 M"), (3.2e12, "3.2 T"), (5e15, "5e+03 T")],
)  # fmt: skip
def test_short_numbers_have_three_digits(number, text):
    assert short(number) == text

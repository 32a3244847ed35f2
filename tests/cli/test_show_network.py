"""``normbench show`` of a network."""

import csv
import io

import pytest

from normbench.cli import main

NETWORK = ("arch=resnet8", "arch.width=8", "norm=xbn", "dataset=digits")


def table(text):
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


def test_network_is_shown_as_a_table(capsys):
    assert main(["show", *NETWORK]) == 0
    captured = capsys.readouterr()
    *layers, total = table(captured.out)
    assert captured.err == ""
    assert layers[0]["layer"] == "images"
    assert layers[0]["output"] == "8×8×1"
    assert layers[-1]["output"] == "10"
    middle = [row for row in layers if row["place"] == "mid"]
    assert {row["kind"] for row in middle} == {"GroupNormalization"}
    assert int(total["parameters"]) == sum(int(row["parameters"]) for row in layers) > 0


def test_no_data_set_is_needed(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    assert main(["show", "arch=resnet8", "dataset=cifar100"]) == 0
    rows = table(capsys.readouterr().out)
    assert (rows[0]["output"], rows[-2]["output"]) == ("32×32×3", "100")


def test_image_shape_and_classes_can_be_set(capsys):
    assert main(["show", *NETWORK, "--images", "20x12x2", "--classes", "7"]) == 0
    rows = table(capsys.readouterr().out)
    assert (rows[0]["output"], rows[-2]["output"]) == ("20×12×2", "7")


def test_overrides_may_follow_options(capsys, tmp_path):
    file = tmp_path / "network.svg"
    assert main(["show", NETWORK[0], "--plot", str(file), *NETWORK[1:]]) == 0
    captured = capsys.readouterr()
    assert file.read_text(encoding="utf-8").startswith("<?xml")
    assert str(file) in captured.err
    assert table(captured.out)[0]["layer"] == "images"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["arch=resnet9"], "unknown arch 'resnet9': did you mean 'resnet8'?"),
        (["arch=resnet8", "3fa2"], "cannot read '3fa2'"),
        ([*NETWORK, "--plot", "x.pgn"], "did you mean '.png'?"),
        ([*NETWORK, "--images", "32x32"], "--images must be HEIGHTxWIDTHxCHANNELS"),
        ([*NETWORK, "--images", "32x0x3"], "--images must be HEIGHTxWIDTHxCHANNELS"),
        ([*NETWORK, "--classes", "0"], "--classes must be at least 1, got 0"),
        ([*NETWORK, "norm.bfn.groups=3"], "does not divide"),
        (["a", "b"], "show takes one run, got a, b"),
        (["a", "--plot", "x.png"], "--plot is for a network"),
        ([], "RUN|KEY=VALUE is required"),
    ],
)
def test_user_error_is_one_line_with_exit_code_2(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["show", *command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err

"""The catalog page, whose only sources are the classes and the config files."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from normbench.cli import main
from normbench.cli.norms import (
    _MORE,
    FIELDS,
    Catalog,
    Described,
    _line,
    _lines,
    details,
    page,
    rows,
    short_rows,
)
from normbench.components import header, options_of, target
from normbench.config import compose, group_options
from normbench.errors import UserError

GROUPS = group_options()


def catalog_of(config_dir: Path | None = None) -> Catalog:
    groups = group_options(config_dir)
    return Catalog(
        groups["norm"],
        groups["norm/weight"],
        lambda choice: compose([choice], config_dir).norm,
        lambda group, name: header(group, name, config_dir),
    )


CATALOG = catalog_of()


def text_of(shown: Any, width: int = 100) -> str:
    file = io.StringIO()
    Console(width=width, file=file).print(shown)
    return file.getvalue()


@pytest.mark.parametrize("name", GROUPS["norm"])
def test_every_norm_is_fully_described(name: str) -> None:
    entry = CATALOG.norm(name)
    spec = compose([f"norm={name}"]).norm
    assert entry.summary, f"conf/norm/{name}.yaml has no comment at its top"
    for field in FIELDS:
        text = getattr(entry, field)
        assert text
        assert "not said" not in text
        assert "\n" not in text
    if spec["_target_"] is not None:
        norm_class = target(spec["_target_"])  # the imported class agrees with the parsed source
        assert norm_class.computed_over in entry.computed_over
        assert norm_class.source in entry.source
        assert norm_class.state == "none" or norm_class.state in entry.state
    keys = {f"norm.{key}" for key in options_of(spec, "weight", "bfn", "places")}
    assert keys <= {option.key for option in entry.options}


@pytest.mark.parametrize("name", GROUPS["norm/weight"])
def test_every_weight_parametrization_is_fully_described(name: str) -> None:
    entry = CATALOG.weight(name)
    spec = compose([f"norm/weight={name}"]).norm["weight"]
    assert entry.summary
    if spec["_target_"] is not None:
        weight_class = target(spec["_target_"])
        assert [getattr(entry, field) for field in FIELDS] == [
            getattr(weight_class, f) for f in FIELDS
        ]
        assert [o.key for o in entry.options] == [f"norm.weight.{o}" for o in options_of(spec)]
        assert all(option.about for option in entry.options)


def test_norm_weight_pair_combines_both_descriptions() -> None:
    entry = CATALOG.entry("gn_ws")
    norm, weight = CATALOG.entry("gn"), CATALOG.weight("ws")
    assert entry.formula == f"{norm.formula}; kernels: {weight.formula}"
    assert entry.state == "none"
    assert entry.parameters == norm.parameters  # ws has none
    assert entry.has_weight
    assert "norm.weight.epsilon" in {option.key for option in entry.options}


def test_placement_says_which_norm_is_used_where() -> None:
    entry = CATALOG.entry("xbn")
    assert entry.computed_over == "batch, space; at mid: space, channels"
    assert entry.source.startswith("Huang et al. 2022")
    keys = {option.key: option.value for option in entry.options}
    assert keys["norm.place"] == "mid"
    assert keys["norm.bfn.groups"] == compose(["norm=xbn"]).norm["bfn"]["groups"]


def test_disabled_scale_and_shift_are_omitted() -> None:
    entry = CATALOG.entry("bn_noaffine")
    assert entry.formula == "y = (x − μ)/√(σ² + ε)"
    assert entry.parameters == "none"


def test_known_wrong_entries_are_marked() -> None:
    wrong = {name for name in CATALOG.weights if CATALOG.weight(name).is_wrong}
    assert wrong == {"ws_assign", "ws_regularizer"}
    assert CATALOG.entry("gn_ws_assign").is_wrong
    assert not CATALOG.entry("gn_ws").is_wrong


def test_unknown_name_is_refused_with_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"unknown norm 'gn_wss': did you mean 'gn_ws'\?"):
        CATALOG.entry("gn_wss")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_list_has_one_line_per_entry_at_any_width(width: int) -> None:
    shown = text_of(page(CATALOG, _line, _MORE), width).splitlines()
    assert max(map(len, shown)) <= width
    count = len(GROUPS["norm"]) + len(GROUPS["norm/weight"])
    assert len(shown) == count + 3 + 4  # headings, empty lines and the last line
    assert any(line.rstrip().endswith("…") for line in shown)
    names = {*GROUPS["norm"], *GROUPS["norm/weight"]}
    assert names <= {line.split()[0] for line in shown if line}
    assert f"{'gn':<26}Group Normalization" in [line.rstrip() for line in shown]
    assert len(short_rows(CATALOG)) == count


def test_titles_are_complete_and_have_no_period() -> None:
    titles = {row["choice"]: row["title"] for row in short_rows(CATALOG)}
    assert titles["norm=gn"] == "Group Normalization"
    assert titles["norm=rms"].endswith(" over space and channels")
    assert all(titles.values())


def test_long_option_adds_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["norms"]) == 0
    short = capsys.readouterr().out
    assert main(["norms", "--long"]) == 0
    long = capsys.readouterr().out
    assert short.splitlines()[0].split("\t") == ["choice", "title"]
    assert long.splitlines()[0].split("\t") == ["choice", *FIELDS]
    assert main(["norms", "gn", "--long"]) == 2
    assert "--long is for the list" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 140])
def test_long_page_shows_every_name_at_any_width(width: int) -> None:
    shown = text_of(page(CATALOG, _lines), width)
    words = set(shown.split())
    assert {*GROUPS["norm"], *GROUPS["norm/weight"]} <= words
    assert max(map(len, shown.splitlines())) <= width
    assert len(rows(CATALOG)) == len(GROUPS["norm"]) + len(GROUPS["norm/weight"])


def test_details_show_each_option_with_its_value() -> None:
    shown = text_of(details(CATALOG.entry("gn_ws")))
    assert "norm.groups" in shown
    assert "Number of groups; must divide the channels" in shown
    assert "norm.weight.epsilon" in shown
    assert "y = γ·(x − μ)/√(σ² + ε) + β" in shown
    (line,) = (text for text in shown.splitlines() if text.startswith("norm.center"))
    assert line.split()[:2] == ["norm.center", "true"]


def test_normalization_from_outside_the_package_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_norms.py").write_text(
        "from normbench.norms.group import GroupNormalization as Grouped\n"
        "class Mine(Grouped):\n"
        '    """Mine.\n\n    Args:\n'
        '        factor: Of the output,\n            in two lines.\n    """\n'
        '    formula = "y = GN(x)" "/2"\n'
        '    source: str = "ours"\n'
        '    state = " ".join(["no", "state"])\n'
    )
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text(
        "# One of ours.\ndefaults: [{weight: none}, _self_]\nname: mine\n"
        "_target_: outside_norms.Mine\nfactor: 2\ngroups: 4\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = catalog_of(tmp_path).entry("mine")
    assert entry.summary == "One of ours."
    assert entry.formula == "y = GN(x)/2"
    assert entry.source == "ours"
    assert entry.state == "no state"  # computed: found by importing the class
    assert entry.computed_over == "space, channels"  # its base's
    about = {option.key: option.about for option in entry.options}
    assert about["norm.factor"] == "Of the output, in two lines."
    assert about["norm.groups"].startswith("Number of groups")
    (tmp_path / "norm" / "yours.yaml").write_text("name: yours\n_target_: outside_norms.Yours\n")
    with pytest.raises(UserError, match=r"outside_norms\.Yours': there is no such class"):
        catalog_of(tmp_path).entry("yours")


def test_catalog_does_not_import_keras() -> None:
    program = (
        "import sys\n"
        "from normbench.config import compose\n"
        "from normbench.components import header\n"
        "from normbench.cli.norms import Catalog\n"
        "c = Catalog(['gn_ws', 'xbn'], ['ws'], lambda o: compose([o]).norm, header)\n"
        "c.norm('gn_ws'), c.norm('xbn'), c.weight('ws')\n"
        "print(*sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


def test_defaults_stated_in_docstrings_match_the_config_files():
    pattern = re.compile(r"default (?:is |of )?(\S*\w)", re.IGNORECASE)
    assert pattern.findall("By default 32, as in the paper") == ["32"]
    choices = [f"norm={name}" for name in CATALOG.norms]
    choices += [f"norm/weight={name}" for name in CATALOG.weights]
    for choice in choices:
        tree = compose([choice]).norm
        for spec in (tree, tree["weight"]):
            for option, value in options_of(spec, "weight").items():
                if spec.get("_target_"):
                    text = Described(spec["_target_"]).about(option)
                    for default in pattern.findall(text):
                        assert default == str(value), (choice, option, text)

"""Tuned keys: trials are not results, and each choice is shown with its basis."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from normbench.cli import main
from normbench.report import load
from normbench.report import tuning_tables as tables
from normbench.report.figures import tuning as drawn
from normbench.report.findings import Finding, findings
from normbench.report.grid import build
from normbench.report.latex import latex
from normbench.report.metrics import METRICS
from normbench.report.origin import counts, unfinished
from normbench.report.sections import choose, request, sections
from normbench.report.study import Study, studies
from normbench.report.table import markdown
from normbench.report.tables import run_list, summary
from normbench.report.tuning import expected_maximum, is_geometric
from normbench.store.files import StoreError

Accuracy = Callable[[str, int, float, int], float | None]
TABLE = {0.025: 0.90, 0.05: 0.94, 0.1: 0.955, 0.2: 0.96, 0.4: 0.93}


def listed(norm: str, batch: int, lr: float, seed: int) -> float | None:
    """BN as in TABLE; GN best at the largest rate."""
    return TABLE[lr] if norm == "bn" else 0.9 + lr / 10


def study_of(root: Path) -> Study:
    (study,) = studies(load(root))
    return study


def texts(study: Study, strength: str = "") -> list[str]:
    found: list[Finding] = findings(build(study, METRICS["test_acc"], "bn"))
    return [finding.text for finding in found if strength in ("", finding.strength)]


@pytest.fixture
def tuned(tmp_store: Path, synth: SimpleNamespace) -> Path:
    """BN and GN at two batch sizes, five learning rates, one tuning seed, three final seeds."""
    return synth.write_tuned(tmp_store, ("bn", "gn"), accuracy=listed)


def test_trials_are_in_no_table_and_do_not_confound(tuned: Path) -> None:
    study = study_of(tuned)
    assert len(study.runs) == 2 * 2 * 3
    assert set(study.runs["seed"]) == {0, 1, 2}
    assert len(study.trials) == 2 * 2 * 5
    assert study.confounds == []
    assert study.context == {"dataset": "digits", "arch": "resnet8"}
    assert study.notes[0] == (
        "Each cell has its own learning rate, chosen in trials by validation alone. Trials are "
        "not included."
    )
    assert not any("Confounded" in text or "was not tuned" in text for text in texts(study))
    assert counts(load(tuned)).endswith("(20 of them trials of tuning)")


def test_untuned_rows_next_to_tuned_rows_are_confounded(
    tuned: Path, synth: SimpleNamespace
) -> None:
    synth.write_grid(tuned, ("gn_ws",), (16, 128), 3, 5)
    study = study_of(tuned)
    (condition,) = study.confounds
    assert condition.key == "optimizer.lr"
    assert "learning rate (GN+WS 0.1, all others tuned)" in study.notes[0] or (
        "learning rate (BN tuned, GN tuned, GN+WS 0.1)" in study.notes[0]
    )


def test_rows_tuned_by_another_protocol_are_confounded(tuned: Path, synth: SimpleNamespace) -> None:
    synth.write_tuned(tuned, ("gn_ws",), rates=(0.05, 0.1), sweep="20261102-100000-beef")
    assert "tuned over 2 values with 1 seed of 5 epochs" in study_of(tuned).notes[0]


def test_results_name_the_chosen_values(tuned: Path) -> None:
    found, _ = sections(load(tuned), request(None, ("norm", "batch"), "test_acc", None, None))
    (section,) = found
    first = section.main[0]
    assert [[entry.remark for entry in row[1:]] for row in first.rows] == [
        ["lr 0.2", "lr 0.2"],
        ["lr 0.4, the largest tried", "lr 0.4, the largest tried"],
    ]
    assert all(not entry.remark for row in section.main[1].rows for entry in row)
    table = summary(section.study)
    assert table.headers[0] == "optimizer.lr"
    assert set(table.data["optimizer.lr"]) == {0.2, 0.4}
    slugs = [table.slug for table in section.tables]
    assert {"tuning", "tuning-range", "tuning-cost"} <= set(slugs)


def test_findings_name_choice_and_edges(tuned: Path) -> None:
    study = study_of(tuned)
    rule, chosen = texts(study, "tuned")
    assert rule.startswith("Tuned for each cell: learning rate, 5 values. Chosen: the value with ")
    assert "over 1 tuning seed (1000), in trials of 5 epochs each, as many as" in rule
    assert chosen == (
        "Chosen learning rate: BN 0.2 at batch size 16, 0.2 at 128; GN 0.4 at batch size 16, 0.4 "
        "at 128."
    )
    (edge,) = [text for text in texts(study, "caution") if "largest tried" in text]
    assert edge.startswith(
        "The best learning rate is the largest tried for GN 0.4 at batch size 16, 0.4 at 128: "
    )


def test_untuned_claims_say_so(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn_ws"), batches=(16, 128), seeds=10, epochs=3)
    (claim,) = texts(study_of(root), "significant")
    assert claim.endswith(" The learning rate was the same for all rows, and not tuned.")


def test_ranges_near_the_best(tuned: Path) -> None:
    table = tables.near_best(study_of(tuned), "optimizer.lr")
    assert table is not None
    assert table.title.startswith(
        "How forgiving: range of the learning rate within 1 point of the best, in factors of two"
    )
    # BN: 0.1 is half a point below 0.2, 0.4 three points. GN: half a point lower with 0.05 less.
    assert [[entry.plain for entry in row] for row in table.rows] == [
        ["BN", "1.0 (0.1 to 0.2)", "1.0 (0.1 to 0.2)"],
        ["GN", "≥ 0.0 (0.4 alone)", "≥ 0.0 (0.4 alone)"],
    ]
    assert list(table.data["width"]) == [1.0, 1.0, 0.0, 0.0]


def test_diverged_value_ends_the_range_and_is_not_chosen(
    tmp_store: Path, synth: SimpleNamespace
) -> None:
    def accuracy(norm: str, batch: int, lr: float, seed: int) -> float | None:
        return None if lr == 0.1 and seed == 1001 else TABLE[lr]

    synth.write_tuned(tmp_store, ("bn",), (16,), tuning_seeds=(1000, 1001), accuracy=accuracy)
    (cell,) = study_of(tmp_store).tuned
    value = cell.along("optimizer.lr")[2]
    assert (value.values["optimizer.lr"], value.diverged, value.scores) == (0.1, 1, [0.955])
    assert np.isnan(value.mean)
    near = cell.near("optimizer.lr")
    assert near is not None
    assert (near.low, near.high, near.open) == (0.2, 0.2, False)
    assert unfinished(load(tmp_store)) == ["diverged: 1 trial of tuning"]
    table = tables.chosen(study_of(tmp_store))
    assert table.rows[0][-1].plain == "10 (1 diverged)"


def test_cell_without_a_choice_gives_a_caution(tmp_store: Path, synth: SimpleNamespace) -> None:
    def accuracy(norm: str, batch: int, lr: float, seed: int) -> float | None:
        return None if norm == "gn" and batch == 128 else TABLE[lr]

    synth.write_tuned(tmp_store, ("bn", "gn"), accuracy=accuracy)
    study = study_of(tmp_store)
    assert "Nothing was chosen for GN at batch size 128: all trials diverged." in texts(study)
    assert ("gn", 128) in {(cell.row, cell.column) for cell in study.tuned}
    assert tables.chosen(study).rows[-1][2].plain == "– (all trials diverged)"
    ranges = tables.near_best(study, "optimizer.lr")
    assert ranges is not None
    assert ranges.rows[1][2].text == "–"


def test_changed_trial_gives_a_caution(tuned: Path, synth: SimpleNamespace) -> None:
    trial = study_of(tuned).tuned[0].cell.trials[0].run
    synth.set_result(tuned / trial, "val_acc", 0.5)
    (text,) = [
        text for text in texts(study_of(tuned), "caution") if "no longer have the result" in text
    ]
    assert trial in text


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_expected_maximum_is_the_mean_over_all_choices(n: int) -> None:
    scores = [0.3, 0.9, 0.9, 0.1, 0.5]
    best = [max(choice) for choice in itertools.combinations(scores, n)]
    assert expected_maximum(scores)[n - 1] == pytest.approx(np.mean(best))


def test_diverged_values_count_at_chance_in_the_expected_best(
    tmp_store: Path, synth: SimpleNamespace
) -> None:
    def accuracy(norm: str, batch: int, lr: float, seed: int) -> float | None:
        return None if lr == 0.4 else 0.9

    synth.write_tuned(tmp_store, ("bn",), (16,), rates=(0.2, 0.4), accuracy=accuracy)
    (cell,) = study_of(tmp_store).tuned
    assert cell.expected_best() == pytest.approx([0.5, 0.9])  # (0.9 + 1 / 10 classes) / 2


def test_cost_counts_trials_and_final_runs(tuned: Path) -> None:
    study = study_of(tuned)
    table = tables.cost(study)
    assert [[row[0].text, row[1].text, row[4].text] for row in table.rows] == [
        ["BN", "10", "6"],
        ["GN", "10", "6"],
        ["All", "20", "12"],
    ]
    hours = float(study.trials["wall_seconds"].sum()) / 3600
    assert table.rows[-1][3].value == pytest.approx(hours)
    assert table.rows[-1][2].value == pytest.approx(20 * 5 * 1200)  # images


def test_filter_for_trials_shows_them_as_ordinary_runs(tuned: Path) -> None:
    frames = load(tuned)
    found, notes = sections(
        frames.select(frames.runs["trial"]),
        request(None, ("norm", "batch"), "test_acc", None, None),
    )
    assert len(found) == 5  # a study for each learning rate
    assert notes[0].startswith("all 20 runs are trials of tuning, shown as ordinary runs")


def test_filter_on_seeds_keeps_the_tuning(tuned: Path) -> None:
    frames = load(tuned)
    (study,) = studies(frames.select(frames.runs["seed"] < 2))
    assert len(study.runs) == 8
    assert len(study.tuned) == 4
    assert len(study.trials) == 20


@pytest.fixture
def rechosen(tuned: Path, synth: SimpleNamespace) -> Path:
    """The same store with an earlier sweep that chose 0.1 for BN at batch size 16."""
    record = json.loads((tuned / "sweeps" / "20261101-100000-abcd" / "tuning.json").read_text())
    cell = dict(record["cells"][0])
    final = [
        synth.write_run(tuned, synth.config("bn", 16, seed, epochs=5, optimizer__lr=0.1)).name
        for seed in range(3)
    ]
    cell |= {"chosen": {"optimizer.lr": 0.1}, "final": final}
    synth.write_tuning(tuned, [cell], (1000,), "20261031-100000-abcd")
    return tuned


def test_superseded_runs_are_in_no_table_unless_requested(rechosen: Path) -> None:
    frames = load(rechosen)
    assert int(frames.runs["superseded"].sum()) == 3
    assert counts(frames).endswith("(20 of them trials of tuning, 3 of them superseded)")
    states = [row[1].text for row in run_list(frames).rows]
    assert states.count("finished (superseded)") == 3
    by = ("norm", "batch")
    shown, notes = choose(frames, request(None, by, "test_acc", None, None))
    assert notes == [
        "3 final runs are superseded and left out, because a later sweep chose other values "
        "(digits-resnet8-bn-b16 optimizer.lr=0.1, now optimizer.lr=0.2): --superseded shows them"
    ]
    (study,) = studies(shown)
    assert len(study.runs) == 12
    assert study.confounds == []
    shown, notes = choose(frames, request(None, by, "test_acc", None, None, superseded=True))
    assert notes == []
    largest, other = studies(shown)
    assert len(largest.runs) == 12
    assert set(other.runs["optimizer.lr"]) == {0.1}
    assert len(other.runs) == 3


def test_filter_for_superseded_runs_shows_them_as_ordinary_runs(rechosen: Path) -> None:
    by = ("norm", "batch")
    options = request("optimizer.lr == 0.1 and seed < 3", by, "test_acc", None, None)
    frames, notes = choose(load(rechosen), options)
    assert notes == []
    found, notes = sections(frames, options)
    assert len(found[0].study.runs) == 3
    assert notes[0].startswith("all 3 runs are superseded, shown as ordinary runs")


def test_report_says_that_runs_are_superseded(
    rechosen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert main(["report", str(rechosen), "--out", str(out)]) == 0
    assert "3 final runs are superseded and left out" in capsys.readouterr().out
    assert "3 final runs are superseded" in (out / "report.md").read_text()
    assert main(["report", str(rechosen), "--out", str(out), "--superseded"]) == 0
    assert "are superseded" not in capsys.readouterr().out
    assert "--superseded" in (out / "index.html").read_text()


def test_run_list_marks_trials(tuned: Path) -> None:
    states = [row[1].text for row in run_list(load(tuned)).rows]
    assert states.count("finished (trial)") == 20
    assert states.count("finished") == 12


def test_tuned_option_of_the_norm_does_not_split_rows(
    tmp_store: Path, synth: SimpleNamespace
) -> None:
    cells = []
    for batch, best in ((16, 4), (128, 8)):
        names = {}
        for groups in (4, 8):
            tree = synth.config("gn", batch, 1000, epochs=3, norm__groups=groups)
            names[groups] = synth.write_run(tmp_store, tree).name
        final = [
            synth.write_run(
                tmp_store, synth.config("gn", batch, seed, epochs=3, norm__groups=best)
            ).name
            for seed in range(2)
        ]
        cells.append(
            {
                "key": f"{batch:08x}",
                "name": f"digits-resnet8-gn-b{batch}",
                "differs": "",
                "dataset": "digits",
                "arch": "resnet8",
                "norm": "gn",
                "batch": batch,
                "epochs": 3,
                "trial_epochs": 3,
                "added": [],
                "edges": {},
                "problem": "",
                "values": [{"norm.groups": groups} for groups in names],
                "trials": [
                    {
                        "run": name,
                        "values": {"norm.groups": groups},
                        "seed": 1000,
                        "status": "finished",
                        "metric": None,
                    }
                    for groups, name in names.items()
                ],
                "means": [None, None],
                "chosen": {"norm.groups": best},
                "final": final,
            }
        )
    synth.write_tuning(tmp_store, cells, (1000,), "20261101-100000-abcd", keys=["norm.groups"])
    study = study_of(tmp_store)
    assert (study.rows, study.columns) == (["gn"], [16, 128])
    assert study.confounds == []


def test_tables_render_in_every_format(tuned: Path) -> None:
    for table in tables.tables(study_of(tuned)):
        assert table.title in markdown(table)
        assert latex(table).count(r"\\") > len(table.rows)
        assert len(table.data)


def test_damaged_record_is_refused(tuned: Path) -> None:
    (record,) = tuned.glob("sweeps/*/tuning.json")
    record.write_text(json.dumps({"schema": 1}))
    with pytest.raises(StoreError, match=r"tuning\.json"):
        load(tuned)


def test_geometric_lists_are_distinguished_from_arithmetic_ones() -> None:
    assert is_geometric([0.025, 0.05, 0.1, 0.2])
    assert is_geometric([0.01, 0.1])
    assert not is_geometric([0.1, 0.2, 0.3, 0.4])
    assert not is_geometric([0, 1, 2])


def test_figures_draw_choice_divergence_and_budget(tmp_store: Path, synth: SimpleNamespace) -> None:
    def accuracy(norm: str, batch: int, lr: float, seed: int) -> float | None:
        return None if lr == 0.4 else TABLE[lr]

    synth.write_tuned(tmp_store, ("bn", "gn"), accuracy=accuracy, seeds=1)
    study = study_of(tmp_store)
    first, second = drawn.figures(build(study, METRICS["test_acc"], "bn"))
    assert (first.slug, second.slug) == ("sensitivity", "expected-best")
    assert "Ring: chosen. Cross: diverged." in first.caption
    assert len(first.points) == 2 * 2 * 4  # norms, batch sizes, values that did not diverge
    assert len(second.points) == 2 * 2 * 5
    assert [axis.get_title() for axis in first.figure.axes] == ["Batch size 16", "Batch size 128"]
    assert all(axis.get_xscale() == "log" for axis in first.figure.axes)


# --- values that a sampler proposed ---------------------------------------------------------------

DECAY = "optimizer.weight_decay"
PROPOSED = {"bn": (0.0131, 0.0462, 0.0517, 0.209, 0.381), "gn": (0.0131, 0.0254, 0.11, 0.27, 0.381)}


@pytest.fixture
def sampled(tmp_store: Path, synth: SimpleNamespace) -> Callable[..., Study]:
    """Write BN and GN, tuned by a sampler with different proposals for each, and load them."""

    def write(sampler: str = "tpe", several: bool = True) -> Study:
        for index, norm in enumerate(PROPOSED):
            synth.write_tuned(
                tmp_store,
                (norm,),
                rates=PROPOSED[norm],
                accuracy=lambda norm, batch, lr, seed: None if lr > 0.3 else 0.9 + lr / 10,
                sweep=f"20261101-10000{index}-abcd",
            )
        for path in tmp_store.glob("sweeps/*/tuning.json"):
            path.write_text(json.dumps(proposed(json.loads(path.read_text()), sampler, several)))
        return study_of(tmp_store)

    return write


def proposed(record: dict, sampler: str, several: bool) -> dict:
    """Turn the record of a list of learning rates into one of values that a sampler proposed."""
    space = {"optimizer.lr": "log(0.01,0.5)"}
    if several:
        space[DECAY] = "log(1e-05,0.01)"
        record["keys"].append(DECAY)
        for cell in record["cells"]:
            trials = [trial["values"] for trial in cell["trials"]]
            for values in (*cell["values"], cell["chosen"], *trials):
                values[DECAY] = 0.0005
    record["sampler"] = {
        "name": sampler, "trials": 5, "seed": 1000, "space": space, "optuna": "5.0.0",
    }  # fmt: skip
    return record


def test_different_proposals_of_one_sampler_do_not_confound(sampled: Callable[..., Study]) -> None:
    study = sampled()
    assert study.confounds == []
    (rule,) = tables.rules(study)
    assert (
        "Values proposed by the sampler tpe of Optuna 5.0.0 with seed 1000, 5 values in each cell, "
        "from optimizer.lr=log(0.01,0.5) optimizer.weight_decay=log(1e-05,0.01)."
    ) in rule


def test_sampler_and_list_are_different_protocols(
    sampled: Callable[..., Study], tmp_store: Path
) -> None:
    sampled(several=False)
    path = max(tmp_store.glob("sweeps/*/tuning.json"))
    record = json.loads(path.read_text())
    del record["sampler"]
    path.write_text(json.dumps(record))
    assert study_of(tmp_store).confounds


def test_scattered_values_are_points(sampled: Callable[..., Study]) -> None:
    study = sampled()
    first, second = drawn.figures(build(study, METRICS["test_acc"], "bn"))
    assert (first.slug, second.slug) == ("sensitivity-lr", "sensitivity-weight_decay")
    assert "against learning rate, weight decay varied with it" in first.caption
    assert len(first.points) == 2 * 2 * 4  # norms, batch sizes, values that did not diverge
    for drawing in (first, second):
        for axis in drawing.figure.axes:
            assert axis.get_xscale() == "log"
            assert {line.get_linestyle() for line in axis.lines} == {"None"}
    assert [table.slug for table in tables.tables(study)] == ["tuning", "tuning-cost"]


def test_values_of_a_single_key_are_joined_by_a_line(sampled: Callable[..., Study]) -> None:
    study = sampled("random", several=False)
    first, second = drawn.figures(build(study, METRICS["test_acc"], "bn"))
    assert (first.slug, second.slug) == ("sensitivity", "expected-best")
    assert any(line.get_linestyle() == "-" for line in first.figure.axes[0].lines)
    assert "tuning-range" in [table.slug for table in tables.tables(study)]


def test_adaptive_sampler_has_no_expected_best(sampled: Callable[..., Study]) -> None:
    study = sampled("tpe", several=False)
    (only,) = drawn.figures(build(study, METRICS["test_acc"], "bn"))
    assert only.slug == "sensitivity"


def test_non_numeric_values_are_points(tmp_store: Path, synth: SimpleNamespace) -> None:
    synth.write_tuned(tmp_store, rates=(0.1, 0.2, 0.4))
    [path] = tmp_store.glob("sweeps/*/tuning.json")
    text = path.read_text().replace('"optimizer.lr"', '"schedule"')
    for rate, name in (("0.1}", '"cosine"}'), ("0.2}", '"step"}'), ("0.4}", '"constant"}')):
        text = text.replace(rate, name)
    path.write_text(text)
    first, _ = drawn.figures(build(study_of(tmp_store), METRICS["test_acc"], "bn"))
    for axis in first.figure.axes:
        assert {line.get_linestyle() for line in axis.lines} == {"None"}

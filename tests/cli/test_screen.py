"""The screen of a run: on terminals of any width, in a log, and at the end."""

from __future__ import annotations

import io
import math
import threading
import time
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from normbench.cli.screen import RunScreen
from normbench.cli.terminal import LiveRegion
from normbench.formats import duration

NAME = "fashion_mnist-resnet20-gn_ws-b16-s0-3fa2b1c0"
PATH = f"runs/{NAME}"
INFO = {
    "name": NAME,
    "parameters": 272474,
    "images": 45000,
    "steps_per_epoch": 2813,
    "epochs": 30,
    "devices": ["/device:CPU:0"],
    "resumed_from": None,
}
SUMMARY = {
    "status": "finished",
    "epochs": 30,
    "test_acc": 0.9123,
    "test_loss": 0.3321,
    "val_acc": 0.92,
    "val_loss": 0.31,
    "best_val_epoch": 27,
    "best_val_acc": 0.923,
    "best_val_test_acc": 0.9101,
    "wall_seconds": 4033.2,
    "train_seconds": 3900.0,
    "images_per_s": 1204.2,
}


def row(epoch: int, val_acc: float | None = 0.5, seconds: float = 10.0) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": 1.25,
        "train_acc": 0.5625,
        "val_loss": 1.5,
        "val_acc": val_acc,
        "lr": 0.05,
        "images_per_s": 1204.3,
        "train_seconds": seconds,
        "eval_seconds": 2.0,
    }


def plain_screen() -> tuple[RunScreen, io.StringIO]:
    file = io.StringIO()
    return RunScreen(Console(file=file, width=80)), file


def drawn(screen: RunScreen, width: int) -> list[str]:
    """Return the lines of the live region on a terminal of ``width`` columns."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    lines = console.render_lines(screen, console.options, pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


@pytest.fixture
def live() -> Any:
    """A started screen on a terminal, and its output."""
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system=None)
    with RunScreen(console) as screen:
        screen.on_start(INFO)
        yield screen, file


# --- plain lines ---------------------------------------------------------------------------------


def test_log_has_a_line_for_the_start_and_each_epoch_and_a_summary() -> None:
    screen, file = plain_screen()
    with screen:
        screen.on_start({**INFO, "epochs": 2})
        for epoch in (1, 2):
            for step in range(0, 2813, 100):
                screen.on_progress(epoch, step, 2813, 1.5, 0.4, 1200.0)
            screen.on_epoch(row(epoch))
        screen.on_end(SUMMARY, PATH)
    text = file.getvalue()
    assert "\x1b" not in text
    assert text.splitlines() == [
        f"{NAME}: 272,474 parameters, 45,000 images, 2 epochs of 2,813 steps, on CPU:0",
        "epoch 1/2  lr 0.0500  train loss 1.2500 acc 56.25%  val loss 1.5000 acc 50.00%  "
        "1,204 images/s  12.0 s  0:12 left",
        "epoch 2/2  lr 0.0500  train loss 1.2500 acc 56.25%  val loss 1.5000 acc 50.00%  "
        "1,204 images/s  12.0 s",
        f"finished  {NAME}",
        "  test accuracy 91.23%  loss 0.3321  after the final epoch (30)",
        "  val accuracy  92.00%  loss 0.3100  best 92.30% at epoch 27 (test 91.01%)",
        "  time          1 h 07 min  training 1 h 05 min, 1,204 images/s",
        f"  folder        {PATH}",
    ]


def test_name_is_never_interpreted_as_markup() -> None:
    screen, file = plain_screen()
    screen.on_start({**INFO, "name": "a[bold]-b:smile:"})
    screen.on_end({"status": "finished"}, "runs/[red]x")
    assert "a[bold]-b:smile:: 272,474" in file.getvalue()
    assert file.getvalue().endswith("folder        runs/[red]x\n")


def test_resumed_run_says_so_and_continues_counting() -> None:
    screen, file = plain_screen()
    screen.on_start({**INFO, "resumed_from": 12})
    screen.on_epoch(row(13))
    start, epoch = file.getvalue().splitlines()
    assert start.endswith("on CPU:0, resumed after epoch 12")
    assert epoch.startswith("epoch 13/30  ")
    assert epoch.endswith("12.0 s  3:24 left")  # 17 epochs of 12 s


def test_diverged_interrupted_and_failed_ends() -> None:
    screen, file = plain_screen()
    screen.on_start(INFO)
    screen.on_epoch(row(1, val_acc=0.25))
    screen.on_epoch(row(2, val_acc=0.5))
    screen.on_epoch({**row(3, val_acc=math.nan), "val_loss": math.nan})
    file.truncate(0)
    file.seek(0)
    screen.on_end(
        {"status": "diverged", "diverged_epoch": 4, "diverged_step": 9001, "val_acc": None}, PATH
    )
    screen.on_end({"status": "interrupted"}, PATH)
    error = {"type": "ResourceExhaustedError", "message": "OOM when allocating\n\nstack"}
    screen.on_end({"status": "failed", "error": error}, PATH)
    assert file.getvalue().splitlines() == [
        f"diverged  {NAME}",
        "  diverged at   epoch 4, step 9,001",
        f"  folder        {PATH}",
        f"interrupted  {NAME}",
        "  completed     3 of 30 epochs",
        "  to resume     run the same command again",
        f"  folder        {PATH}",
        f"failed  {NAME}",
        "  error         ResourceExhaustedError: OOM when allocating stack",
        f"  folder        {PATH}",
    ]


def test_end_without_summary_numbers_shows_the_last_epoch() -> None:
    screen, file = plain_screen()
    screen.on_start(INFO)
    for epoch, val_acc in ((1, 0.25), (2, 0.75), (3, 0.5)):
        screen.on_epoch(row(epoch, val_acc))
    screen.on_end({"status": "interrupted"}, PATH)
    assert "  val accuracy  50.00%  loss 1.5000  best 75.00% at epoch 2" in file.getvalue()


def test_one_epoch_of_one_step_is_singular() -> None:
    screen, file = plain_screen()
    screen.on_start({**INFO, "epochs": 1, "steps_per_epoch": 1})
    assert "1 epoch of 1 step," in file.getvalue()


def test_unknown_numbers_are_dashes() -> None:
    screen, file = plain_screen()
    screen.on_start({"name": "a"})
    nothing = dict.fromkeys(row(1), None)
    screen.on_epoch({**nothing, "epoch": 1})
    screen.on_epoch({"epoch": 2})
    lines = file.getvalue().splitlines()
    assert lines[0] == "a: – parameters, – images, – epochs of – steps"
    assert "train loss – acc –" in lines[1]
    assert lines[1].replace("1/", "2/") == lines[2]
    screen = RunScreen(Console(file=io.StringIO(), force_terminal=True))
    with screen:
        screen.on_start({"name": "a"})
        screen.on_progress(1, 5, 10, float("nan"), None, 3.0)
        assert "loss      –" in drawn(screen, 80)[-1]


@pytest.mark.parametrize("setting", ["no terminal", "dumb terminal"])
def test_output_without_live_line_support_gets_plain_lines(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb" if setting == "dumb terminal" else "xterm-256color")
    file = io.StringIO()
    with RunScreen(Console(file=file, force_terminal=setting == "dumb terminal")) as screen:
        screen.on_start(INFO)
        screen.on_epoch(row(1))
    assert "epoch  1/30  lr" in file.getvalue()
    assert "\x1b[?25l" not in file.getvalue()


class Clock:
    """Replacement for the ``time`` module that advances only when a test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("normbench.cli.screen.time", clock)
    return clock


def test_long_run_estimates_its_duration_after_the_first_steps(clock: Clock) -> None:
    screen, file = plain_screen()
    screen.on_start(INFO)
    clock.now += 50  # the first step is slow and does not count
    screen.on_progress(1, 1, 2813, 2.0, 0.1, 0.3)
    clock.now += 5
    screen.on_progress(1, 51, 2813, 2.0, 0.1, 100.0)
    expected = (30 * 2813 - 51) / 10  # ten steps a second
    assert file.getvalue().splitlines()[1:] == [
        f"about {duration(expected)} left; Ctrl-C stops the run, and the same command resumes it"
    ]
    clock.now += 5
    screen.on_progress(1, 101, 2813, 2.0, 0.1, 100.0)
    assert len(file.getvalue().splitlines()) == 2, "once"


def test_short_run_gives_no_estimate(clock: Clock) -> None:
    screen, file = plain_screen()
    screen.on_start({**INFO, "epochs": 1, "steps_per_epoch": 100})
    screen.on_progress(1, 1, 100, 2.0, 0.1, 0.3)
    clock.now += 6
    screen.on_progress(1, 50, 100, 2.0, 0.1, 100.0)
    assert len(file.getvalue().splitlines()) == 1


def test_log_has_a_line_per_minute_within_a_long_epoch(clock: Clock) -> None:
    screen, file = plain_screen()
    screen.on_start({**INFO, "epochs": 2})
    for step in range(1, 151):
        clock.now += 1
        screen.on_progress(1, step, 2813, 1.5, 0.4, 1000.0)
    lines = [line for line in file.getvalue().splitlines() if line.startswith("epoch")]
    assert [line.split("  ")[1] for line in lines] == ["step 66/2,813", "step 126/2,813"]
    assert lines[0].startswith("epoch 1/2  step 66/2,813  train loss 1.5000 acc 40.00%  1,000 imag")


@pytest.mark.parametrize("setting", ["JPY_PARENT_PID", "FORCE_COLOR"])
def test_notebooks_and_colored_logs_get_plain_lines(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting, "1")
    file = io.StringIO()
    with RunScreen(Console(file=file, force_terminal=True, width=80)) as screen:
        screen.on_start(INFO)
        screen.on_progress(1, 10, 2813, 1.5, 0.4, 1000.0)
        screen.on_epoch(row(1))
    assert "\x1b[?25l" not in file.getvalue()
    assert file.getvalue().count("\n") == 2


# --- the live region -----------------------------------------------------------------------------


def test_startup_is_shown_only_on_a_terminal() -> None:
    file = io.StringIO()
    with RunScreen(Console(file=file, force_terminal=True, width=80)) as screen:
        screen.waits_for("TensorFlow")
        screen.on_start(INFO)
        assert "TensorFlow …" in file.getvalue()
        screen.on_epoch(row(1))
    assert file.getvalue().count("\x1b[?25h") == 2
    screen, file = plain_screen()
    with screen:
        screen.waits_for("TensorFlow")
    assert file.getvalue() == ""


def test_live_line_says_starting_before_the_first_step(live: Any) -> None:
    screen, file = live
    assert "272,474 parameters, 45,000 images, 30 epochs of 2,813 steps" in file.getvalue()
    (line,) = drawn(screen, 80)
    assert line.startswith(" 1/30  ")
    assert "starting, 0:0" in line


def test_live_line_has_epoch_loss_accuracies_speed_and_time_left(live: Any) -> None:
    screen, _ = live
    screen.on_epoch(row(1, 0.5))
    screen.on_progress(2, 1000, 2813, 0.98765, 0.654, 1250.0)
    *_, line = drawn(screen, 80)
    for part in (" 2/30 ", "loss 0.9877", "acc 65.4%", "val 50.0%", "1,250 img/s", "5:44 left"):
        assert part in line, line
    *_, wide = drawn(screen, 120)
    assert "step 1,000/2,813" in wide
    assert "1,250 images/s" in wide
    screen.on_progress(2, 2813, 2813, 0.98765, 0.654, 1250.0)
    assert "evaluating" in drawn(screen, 120)[-1]


def test_progress_bar_grows_with_the_run(live: Any) -> None:
    screen, _ = live

    def filled() -> float:
        console = Console(file=io.StringIO(), width=120, force_terminal=True)
        (line,) = console.render_lines(screen, console.options, pad=False)[-1:]
        bar = [s for s in line if s.style and "bar.complete" in str(s.style)] or [
            s for s in line if set(s.text) <= {"━", "╸"} and s.text
        ][:1]
        return sum(len(s.text) for s in bar)

    lengths = []
    for epoch in (2, 10, 20, 29):
        screen.on_progress(epoch, 1400, 2813, 1.0, 0.5, 1000.0)
        lengths.append(filled())
    assert lengths == sorted(set(lengths)), lengths


@pytest.mark.parametrize("width", range(30, 131, 10))
def test_every_line_of_the_live_region_fits_any_width(live: Any, width: int) -> None:
    screen, _ = live
    for epoch in range(1, 9):
        screen.on_epoch(row(epoch))
    screen.on_progress(9, 1234, 2813, 0.5, 0.75, 104250.0)
    lines = drawn(screen, width)
    assert len(lines) == 7  # a heading, five epochs, the live line
    assert max(map(len, lines)) <= width
    assert len(lines[-1]) <= width - 2, "the terminal echoes ^C behind it"
    assert "…" not in "".join(lines)
    assert [line.split()[0] for line in lines[1:]] == ["4", "5", "6", "7", "8", "9/30"]
    assert lines[-1].endswith(" left")
    assert "50.00%" in lines[-2]


def test_time_left_is_estimated_from_images_then_from_full_epochs(live: Any) -> None:
    screen, _ = live
    screen.on_progress(1, 0, 2813, 1.0, 0.1, 1000.0)
    assert screen._left() == pytest.approx(30 * 45)
    screen.on_progress(1, 2813, 2813, 1.0, 0.1, 1000.0)
    assert screen._left() == pytest.approx(29 * 45)
    for epoch, seconds in enumerate((100.0, 8.0, 10.0, 12.0), start=1):  # the first one compiles
        screen.on_epoch(row(epoch, seconds=seconds))
    assert screen._left() == pytest.approx(26 * 12)
    screen.on_progress(5, 2813 // 2, 2813, 1.0, 0.1, 1.0)
    assert screen._left() == pytest.approx(25.5 * 12, rel=1e-3)


def test_lines_and_frames_are_never_printed_simultaneously(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normbench.cli.terminal.FRAME", 0.001)
    writers: list[str] = []
    together: list[list[str]] = []

    class Watched(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            writers.append(threading.current_thread().name)
            together.append(list(writers))
            time.sleep(0.001)
            super().print(*objects, **options)
            writers.pop()

    console = Watched(file=io.StringIO(), force_terminal=True, width=80)
    region = LiveRegion(Text("frame"), console)
    region.start()
    for number in range(50):
        region.print(Text(f"line {number}"))
        time.sleep(0.001)
    region.stop()
    assert all(len(set(names)) == 1 for names in together)
    assert len({names[0] for names in together}) == 2, "frames were drawn meanwhile"


def test_end_shows_last_epochs_and_summary_and_restores_the_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system=None)
    with RunScreen(console) as screen:
        screen.on_start({**INFO, "epochs": 2})
        screen.on_epoch(row(1))
        screen.on_epoch(row(2))
        screen.on_end(SUMMARY, PATH)
        screen.close()
    text = file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert drawn(screen, 80)[-1].split()[0] == "2"  # no live line is left
    assert text.rstrip().endswith(PATH)
    assert 0 < text.rindex("56.25%") < text.rindex("finished")


def test_exception_restores_the_terminal() -> None:
    file = io.StringIO()

    def train() -> None:
        with RunScreen(Console(file=file, force_terminal=True)) as screen:
            screen.on_start(INFO)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")

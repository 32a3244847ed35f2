"""The screen of a run, :class:`RunScreen`: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.status import Status
from rich.table import Table
from rich.text import Text

from normbench.cli.terminal import STATUS_STYLE, Column, LiveRegion, can_redraw, fitted_table
from normbench.engine.observer import Observer
from normbench.formats import clock, count, counted, duration, failure, is_known, percent, small

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.engine.train import TrainResult

#: Number of epochs shown above the live line.
SHOWN_EPOCHS = 5

#: Seconds between progress lines in an output without a live line.
MINUTE = 60.0

#: Seconds of training after which the remaining time is estimated, and the shortest remaining time
#: that is reported.
MEASURED, LONG = 5.0, 60.0


class RunScreen(Observer):
    """Show one run as it trains; the observer that the engine calls.

    On a terminal it keeps one live line (epoch, bar, loss, accuracies, images/s, time left) under
    a table of the last few epochs; elsewhere it writes one plain line per epoch. Use it as a
    context manager, so that the terminal is restored however the run ends::

        with RunScreen() as screen:
            screen.waits_for("TensorFlow")
            train(config, observer=screen)

    Args:
        console: Console to write to; standard output by default.
        live: Whether to keep a live line; by default only if the console can redraw.
    """

    def __init__(self, console: Console | None = None, live: bool | None = None) -> None:
        self.console = Console() if console is None else console
        self._wants_live = can_redraw(self.console) if live is None else live
        self._live: LiveRegion | Status | None = None
        self._info: Mapping[str, Any] = {}
        self._rows: tuple[Mapping[str, Any], ...] = ()
        self._best: Mapping[str, Any] | None = None
        self._done = 0  # completed epochs
        self._step = 0  # completed steps of the epoch in progress
        self._steps = 0
        self._loss: float | None = None
        self._acc: float | None = None
        self._images_per_s: float | None = None
        self._waits_since = self._told = time.monotonic()
        self._first: tuple[float, int, int] | None = None  # time, epoch and step first seen
        self._estimated = False

    def __enter__(self) -> RunScreen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the live line and restore the terminal; safe to call twice."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def waits_for(self, what: str) -> None:
        """Show on a terminal that something slow happens before the run starts."""
        self.close()
        if self._wants_live:
            self._live = Status(Text(f"{what} …", "dim"), console=self.console)
            self._live.start()

    # --- the Observer interface -----------------------------------------------------------------

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Show the facts of a run that starts or is resumed.

        Args:
            info: ``name``, ``parameters``, ``images`` (of the training split),
                ``steps_per_epoch``, ``epochs``, ``devices`` (list of names), ``resumed_from``
                (completed epochs; None or 0 for a fresh run).
        """
        self.close()
        self._info = info
        self._done = info.get("resumed_from") or 0
        self._steps = info.get("steps_per_epoch") or 0
        self._waits_since = time.monotonic()
        facts = [
            counted(info.get("parameters"), "parameter"),
            counted(info.get("images"), "image"),
            f"{counted(info.get('epochs'), 'epoch')} of "
            + counted(info.get("steps_per_epoch"), "step"),
        ]
        if info.get("devices"):
            facts.append(
                "on " + ", ".join(str(d).removeprefix("/device:") for d in info["devices"])
            )
        if self._done:
            facts.append(f"resumed after epoch {self._done}")
        if self._wants_live:
            self._write(Text(str(info.get("name")), "bold"))
            self._write(Text(", ".join(facts), "dim"))
            self._live = LiveRegion(self, self.console)
            self._live.start()
        else:
            self._write(Text(f"{info.get('name')}: {', '.join(facts)}"))

    def on_note(self, text: str) -> None:
        """Write a note."""
        self._write(Text(text, "yellow"))

    def on_progress(
        self,
        epoch: int,
        step: int,
        steps_per_epoch: int,
        loss: float | None,
        acc: float | None,
        images_per_s: float | None,
    ) -> None:
        """Record the state of the epoch in progress; cheap, because it does not draw.

        Args:
            epoch: The epoch in progress, 1-based.
            step: Number of completed steps of the epoch.
            steps_per_epoch: Number of steps of an epoch.
            loss: Mean training loss of the epoch so far.
            acc: Training accuracy of the epoch so far, as a fraction.
            images_per_s: Training speed.
        """
        self._done, self._step, self._steps = epoch - 1, step, steps_per_epoch
        self._loss, self._acc, self._images_per_s = loss, acc, images_per_s
        self._estimate(epoch, step)
        if not self._wants_live and time.monotonic() - self._told >= MINUTE:
            self._write(self._plain_progress(epoch))

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Show a complete epoch.

        Args:
            row: Its line of ``metrics.jsonl``.
        """
        self._rows = (*self._rows[-SHOWN_EPOCHS + 1 :], row)
        self._done, self._step = row["epoch"], 0
        self._loss, self._acc = row.get("train_loss"), row.get("train_acc")
        self._images_per_s = row.get("images_per_s")
        best = -math.inf if self._best is None else self._best["val_acc"]
        if is_known(row.get("val_acc")) and row["val_acc"] > best:
            self._best = row
        if not self._wants_live:
            self._write(self._plain_epoch(row))
        self._estimated = True  # the line of an epoch, as the live line, shows the time left

    def on_end(self, summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """Show how the run ended.

        Args:
            summary: ``summary.json`` of a run that finished or diverged. For one that was
                interrupted or failed, ``status`` and possibly ``error``: the ``type`` and
                ``message`` of the failure.
            path: The run folder.
        """
        self.close()
        status = str(summary.get("status", "ended"))
        head = Text(status, STATUS_STYLE.get(status, "bold"))
        self._write(head.append(f"  {self._info.get('name') or Path(path).name}", "bold"))
        for label, text in self._ending(status, summary):
            self._write(Text(f"  {label:<14}", "dim").append(text, "default not dim"))
        self._write(Text(f"  {'folder':<14}", "dim").append(os.fspath(path), "default not dim"))

    # --- drawing ---------------------------------------------------------------------------------

    def _write(self, text: Text) -> None:
        if isinstance(self._live, LiveRegion):
            self._live.print(text)
        else:  # not wrapped, so that a path or a log line stays on one line
            self.console.print(text, soft_wrap=True, highlight=False)
        self._told = time.monotonic()

    def _estimate(self, epoch: int, step: int) -> None:
        """Write an estimate of the remaining time once, if it is long."""
        now = time.monotonic()
        if self._first is None:  # the first step may include compilation
            self._first = now, epoch, step
            return
        first_time, first_epoch, first_step = self._first
        if self._estimated or epoch != first_epoch or now - first_time < MEASURED:
            return
        self._estimated = True
        steps = ((self._info.get("epochs") or 0) - epoch + 1) * self._steps - step
        seconds = steps * (now - first_time) / max(1, step - first_step)
        if seconds >= LONG:
            text = f"about {duration(seconds)} left"
            hint = "Ctrl-C stops the run, and the same command resumes it"
            self._write(Text(f"{text}; {hint}", "dim"))

    def _epochs(self) -> str:
        return str(self._info.get("epochs") or "?")

    def _plain_progress(self, epoch: int) -> Text:
        total = self._epochs()
        return Text(
            f"epoch {epoch:>{len(total)}}/{total}  step {self._step:,}/{self._steps:,}  "
            f"train loss {small(self._loss)} acc {percent(self._acc)}  "
            f"{count(self._images_per_s)} images/s  {clock(self._left())} left"
        )

    def _plain_epoch(self, row: Mapping[str, Any]) -> Text:
        total = self._epochs()
        seconds = (row.get("train_seconds") or 0) + (row.get("eval_seconds") or 0)
        return Text(
            f"epoch {row['epoch']:>{len(total)}}/{total}  lr {small(row.get('lr'))}  "
            f"train loss {small(row.get('train_loss'))} acc {percent(row.get('train_acc'))}  "
            f"val loss {small(row.get('val_loss'))} acc {percent(row.get('val_acc'))}  "
            f"{count(row.get('images_per_s'))} images/s  {duration(seconds)}"
            + ("" if str(row["epoch"]) == total else f"  {clock(self._left())} left")
        )

    def _ending(self, status: str, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        lines: list[tuple[str, str]] = []
        if status == "diverged":
            lines.append(
                (
                    "diverged at",
                    f"epoch {count(summary.get('diverged_epoch'))}, "
                    f"step {count(summary.get('diverged_step'))}",
                )
            )
        elif status == "interrupted":
            lines.append(("completed", f"{self._done} of {self._epochs()} epochs"))
            lines.append(("to resume", "run the same command again"))
        error = summary.get("error")
        if error:
            lines.append(("error", failure(error)))
        if is_known(summary.get("test_acc")):
            lines.append(
                (
                    "test accuracy",
                    f"{percent(summary['test_acc'])}  loss {small(summary.get('test_loss'))}  "
                    f"after the final epoch ({count(summary.get('epochs'))})",
                )
            )
        last = self._rows[-1] if self._rows else {}
        val_acc = summary.get("val_acc", last.get("val_acc"))
        if is_known(val_acc):
            text, val_loss = percent(val_acc), summary.get("val_loss", last.get("val_loss"))
            if is_known(val_loss):
                text += f"  loss {small(val_loss)}"
            best_epoch, best_acc = summary.get("best_val_epoch"), summary.get("best_val_acc")
            if best_epoch is None and self._best is not None:
                best_epoch, best_acc = self._best["epoch"], self._best["val_acc"]
            if best_epoch is not None:
                text += f"  best {percent(best_acc)} at epoch {best_epoch}"
                if is_known(summary.get("best_val_test_acc")):
                    text += f" (test {percent(summary['best_val_test_acc'])})"
            lines.append(("val accuracy", text))
        if summary.get("wall_seconds") is not None:
            text = duration(summary["wall_seconds"])
            if summary.get("train_seconds") is not None:
                text += f"  training {duration(summary['train_seconds'])}"
            if summary.get("images_per_s") is not None:
                text += f", {count(summary['images_per_s'])} images/s"
            lines.append(("time", text))
        return lines

    def _left(self) -> float | None:
        """Return the seconds until the last epoch is complete; None while the speed is unknown."""
        epochs = self._info.get("epochs")
        if not epochs:
            return None
        epochs_left = epochs - self._done - (self._step / self._steps if self._steps else 0)
        epoch_seconds = [
            row["train_seconds"] + (row.get("eval_seconds") or 0)
            for row in self._rows[-3:]
            if row.get("train_seconds") is not None
        ]
        if epoch_seconds:
            return epochs_left * sum(epoch_seconds) / len(epoch_seconds)
        images, rate = self._info.get("images"), self._images_per_s
        return epochs_left * images / rate if images and rate else None

    def _line(self, width: int) -> Table:
        """Return the live line without the parts that do not fit in ``width`` characters."""
        width -= len("^C")  # leave room for a terminal's echo of Ctrl-C, which must not wrap
        info, rate, total = self._info, self._images_per_s, self._epochs()
        epochs = info.get("epochs") or 0
        epochs_done = self._done + (self._step / self._steps if self._steps else 0)
        current = min(self._done + 1, epochs) if epochs else self._done + 1
        val = self._rows[-1].get("val_acc") if self._rows else None
        parts: list[Text] = [Text(f"{current:>{len(total)}}/{total}", "bold")]
        if rate is None:
            wait = clock(time.monotonic() - self._waits_since)
            parts.append(Text(f"starting, {wait}", "dim"))
        else:
            if width >= 100:
                step_text = f"step {self._step:,}/{self._steps:,}"
                is_evaluating = self._steps and self._step >= self._steps
                parts.append(Text("evaluating" if is_evaluating else step_text, "dim"))
            parts.append(Text.assemble(("loss ", "dim"), f"{small(self._loss):>6}"))
            parts.append(Text.assemble(("acc ", "dim"), f"{percent(self._acc, 1):>5}"))
            if is_known(val):
                parts.append(Text.assemble(("val ", "dim"), f"{percent(val, 1):>5}"))
            unit = " images/s" if width >= 100 else " img/s"
            parts.append(Text.assemble(f"{count(rate):>5}", (unit, "dim")))
            parts.append(Text.assemble(clock(self._left()), (" left", "dim")))
        while len(parts) > 2 and sum(part.cell_len + 2 for part in parts) + 4 > width:
            parts.pop(-2)
        room = width - sum(part.cell_len + 2 for part in parts)
        bar = ProgressBar(total=epochs or 1, completed=epochs_done, width=max(4, min(40, room)))
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(len(parts) + 1):
            grid.add_column(no_wrap=True)
        grid.add_row(parts[0], bar, *parts[1:])
        return grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the live region: the last epochs, and the live line below them while training."""
        if self._rows:
            best = self._best["epoch"] if self._best else None
            yield epochs_table(self._rows, options.max_width, best)
        if self._live is not None and self._done < (self._info.get("epochs") or math.inf):
            yield self._line(options.max_width)


# --- the table of epochs --------------------------------------------------------------------------


def _epoch_seconds(row: Mapping[str, Any]) -> float | None:
    seconds = row.get("train_seconds")
    return None if seconds is None else seconds + (row.get("eval_seconds") or 0)


_EPOCH_COLUMNS = (
    Column("epoch", lambda row: str(row.get("epoch"))),
    Column("lr", lambda row: small(row.get("lr")), spare=4),
    Column("train loss", lambda row: small(row.get("train_loss")), spare=1),
    Column("train acc", lambda row: percent(row.get("train_acc")), spare=2),
    Column("val loss", lambda row: small(row.get("val_loss")), spare=3),
    Column("val acc", lambda row: percent(row.get("val_acc"))),
    Column("images/s", lambda row: count(row.get("images_per_s")), spare=5),
    Column("time", lambda row: duration(_epoch_seconds(row)), spare=6),
)


def epochs_table(
    metrics: Sequence[Mapping[str, Any]], width: int, best: int | None = None
) -> Table:
    """Return epochs as a table.

    Args:
        metrics: Rows of ``metrics.jsonl``.
        width: Width in characters.
        best: The epoch whose validation accuracy is highlighted.
    """

    def style(row: Mapping[str, Any], heading: str) -> str:
        return "bold green" if heading == "val acc" and row.get("epoch") == best else ""

    table = fitted_table(_EPOCH_COLUMNS, metrics, width, style)
    table.header_style = "dim"
    return table


def print_complete(
    config: Config, result: TrainResult, config_dir: str | None = None, *, again: bool = False
) -> None:
    """Say that a run was already complete, and which parts of the request it was trained without.

    Args:
        config: The requested config.
        result: The result of a run that did not train.
        config_dir: The folder given by ``--config-dir``.
        again: Whether to mention the option ``--again``.
    """
    from normbench.engine.diagnose import trained_without
    from normbench.formats import nothing_to_train
    from normbench.store.provenance import changed_since

    print(nothing_to_train(result.summary))
    print(f"  folder  {result.run.path}")
    hashes = (result.run.meta or {}).get("own")
    changes = changed_since(result.run.config or {}, hashes, config)
    for line in [*trained_without([(config, result.run)], config_dir), *changes]:
        print(f"  {line}")
    if changes and again:
        print("  --again sets its folder aside and trains it from its first step")

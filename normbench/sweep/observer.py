"""Observers of a sweep: :class:`SweepObserver` follows its cells, :class:`SweepView` shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from normbench.engine.observer import Observer
from normbench.store.store import Run, Store
from normbench.sweep.cell import CellResult
from normbench.sweep.plan import PlannedCell, SweepPlan

if TYPE_CHECKING:
    from normbench.sweep.phases import SweepResult
    from normbench.sweep.tune import TuneMetric


class SweepObserver:
    """Follows the cells that an executor trains. The methods of this base class do nothing."""

    def started(self, cell: PlannedCell, where: str) -> None:
        """A cell was assigned to a slot, such as ``gpu 0`` or ``cpu 1``."""

    def progress(self, cell: PlannedCell, facts: Mapping[str, Any]) -> None:
        """A cell has made progress.

        Args:
            cell: The cell.
            facts: The facts that changed: ``epoch`` (completed epochs), ``epochs``, ``step``
                (completed steps of the next epoch), ``steps`` (per epoch), ``loss``, ``acc`` and
                ``val_acc`` (0..1), ``images_per_s``.
        """

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        """A cell has ended and is not tried again."""

    def retrying(self, cell: PlannedCell, reason: str) -> None:
        """A cell that was started is waiting for another try."""

    def note(self, text: str) -> None:
        """Something happened that the user should know."""

    def idle(self) -> None:
        """Nothing happened for a moment; called a few times a second."""


class ForwardingObserver(SweepObserver):
    """Forwards all calls to another observer.

    Args:
        view: The other observer.
    """

    def __init__(self, view: SweepObserver) -> None:
        self._view = view

    def started(self, cell: PlannedCell, where: str) -> None:
        self._view.started(cell, where)

    def progress(self, cell: PlannedCell, facts: Mapping[str, Any]) -> None:
        self._view.progress(cell, facts)

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self._view.ended(cell, result)

    def retrying(self, cell: PlannedCell, reason: str) -> None:
        self._view.retrying(cell, reason)

    def note(self, text: str) -> None:
        self._view.note(text)

    def idle(self) -> None:
        self._view.idle()


class SweepView(SweepObserver):
    """Shows a sweep to its user. This class prints plain lines.

    A subclass may show more: that of the command line has a live table.
    """

    def line(self, text: str) -> None:
        """Show one line about the sweep."""
        print(text)

    def checking(self, cells: int) -> AbstractContextManager[object]:
        """Return a context that is active while the networks of ``cells`` cells are built."""
        return nullcontext()

    def phase(self, text: str, metric: TuneMetric | None = None) -> None:
        """Show that a phase of a sweep begins.

        Args:
            text: The phase, with the number of its cells.
            metric: If the cells are trials, the metric that decides among them; the view then hides
                their test accuracy.
        """
        self.line(text)

    def plan(self, plan: SweepPlan, slots: int) -> None:
        """Show the plan of a sweep that is not carried out."""
        for cell, differs in zip(plan.cells, plan.differs, strict=True):
            self.line(f"{cell.state:<12} {cell.name}  {differs}  {cell.reason}".rstrip())
        self.line(f"{plan.counted()}; {plan.estimate(slots)}")

    def training(self, plan: SweepPlan, slots: int, store: Store) -> AbstractContextManager[object]:
        """Return a context that is active while up to ``slots`` cells are trained at a time."""
        return nullcontext()

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self.line(f"{result.result:<11} {cell.name}  {result.error}".rstrip())

    def retrying(self, cell: PlannedCell, reason: str) -> None:
        self.note(f"{cell.name}: {reason}; trying again")

    def note(self, text: str) -> None:
        self.line(text)

    def failures(self, result: SweepResult) -> None:
        """Repeat why cells failed, at the end of a sweep in which some did."""


class ProgressObserver(Observer):
    """Translates the engine's reports on a run into the facts of :meth:`SweepObserver.progress`.

    Args:
        report: Receives the facts that changed.
    """

    def __init__(self, report: Callable[[Mapping[str, Any]], None]) -> None:
        self._report = report

    def on_start(self, info: Mapping[str, Any]) -> None:
        self._report(
            {
                "epoch": info.get("resumed_from") or 0,
                "epochs": info.get("epochs"),
                "step": 0,
                "steps": info.get("steps_per_epoch"),
            }
        )

    def on_progress(
        self,
        epoch: int,
        step: int,
        steps_per_epoch: int,
        loss: float | None,
        acc: float | None,
        images_per_s: float | None,
    ) -> None:
        self._report(
            {
                "epoch": epoch - 1,  # the engine reports the current epoch, counted from 1
                "step": step,
                "steps": steps_per_epoch,
                "loss": loss,
                "acc": acc,
                "images_per_s": images_per_s,
            }
        )

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._report(
            {
                "epoch": row["epoch"],
                "step": 0,
                "loss": row.get("train_loss"),
                "acc": row.get("train_acc"),
                "val_acc": row.get("val_acc"),
                "images_per_s": row.get("images_per_s"),
            }
        )


def stored_progress(run: Run, epochs: int | None) -> dict[str, Any]:
    """Return the facts of :meth:`SweepObserver.progress` that can be read from a run's folder.

    Args:
        run: The run.
        epochs: Total epochs of the run, from its config.

    Raises:
        StoreError: The folder cannot be read.
    """
    last = run.last_metrics() or {}
    return {
        "epoch": last.get("epoch", 0),
        "epochs": epochs,
        "loss": last.get("train_loss"),
        "val_acc": last.get("val_acc"),
        "images_per_s": last.get("images_per_s"),
    }

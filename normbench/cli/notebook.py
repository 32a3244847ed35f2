"""Notebooks: progress that is updated in place, and rich's tables as HTML.

:class:`NotebookConsole` is the console of :class:`normbench.cli.screen.RunScreen` and
:class:`normbench.cli.sweep_screen.SweepScreen` in a notebook. Lines are printed as plain text; a
live region (:class:`NotebookLive`) is one output that is replaced a few times a second.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 100
"""Width of an output, in characters."""

_PAGE = (
    '<pre style="white-space: pre; overflow-x: auto; line-height: 1.25;'
    "font-family: Menlo, 'DejaVu Sans Mono', Consolas, monospace\">{code}</pre>"
)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")  # IPython in a terminal has none


def as_html(renderable: RenderableType, width: int = WIDTH) -> str:
    """Return rich's rendering as HTML that needs no style sheet."""
    return _recorded(renderable, width).export_html(inline_styles=True, code_format=_PAGE)


def _recorded(renderable: RenderableType, width: int) -> Console:
    console = Console(
        file=io.StringIO(),
        record=True,
        width=width,
        force_terminal=True,
        force_jupyter=False,
        color_system="truecolor",
    )
    console.print(renderable)
    return console


class NotebookConsole(Console):
    """A console that prints lines as plain text in the output of a notebook cell.

    In a notebook, rich itself creates a separate output for each line, and its live display needs
    ipywidgets; this console avoids both.
    """

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, width=WIDTH, force_terminal=False, force_jupyter=False)


class NotebookLive:
    """One output of a notebook cell, replaced as its content changes.

    It has the methods of :class:`rich.live.Live` that
    :class:`normbench.cli.terminal.LiveRegion` calls.

    Args:
        content: The renderable to draw.
        console: Console for lines printed next to the output.
        transient: Whether the output is cleared at the end.
    """

    def __init__(
        self, content: RenderableType, console: NotebookConsole, transient: bool = False
    ) -> None:
        self.console = console
        self._content = content
        self._transient = transient
        self._handle: Any = None
        self._shown = ""

    def start(self, refresh: bool = True) -> None:
        """Show the content for the first time."""
        display = sys.modules["IPython"].display.display  # a notebook's kernel has imported it
        self._handle = display(self._bundle(), raw=True, display_id=True)

    def refresh(self) -> None:
        """Replace the output if the content has changed."""
        previous, bundle = self._shown, self._bundle()
        if self._handle is not None and self._shown != previous:
            self._handle.update(bundle, raw=True)

    def stop(self) -> None:
        """Show the content for the last time, or clear it if it is transient."""
        if self._transient:
            self._content = ""
        self.refresh()
        self._handle = None

    def _bundle(self) -> dict[str, str]:
        if self._content == "":
            self._shown = ""
            return {"text/html": "", "text/plain": ""}
        self._shown = as_html(self._content)
        text = _recorded(self._content, WIDTH).export_text().rstrip("\n")
        return {"text/html": self._shown, "text/plain": text}

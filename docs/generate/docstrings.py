"""The docstrings of the package as Markdown: an extension of griffe, which ``mkdocs.yml`` names."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Markdown(Extension):
    """Rewrite the roles, literals and code blocks of reStructuredText in each docstring."""

    def on_object(self, *, obj: Object, **arguments: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring's text with Markdown's marks.

    ``:func:`~a.b``` becomes the code span ``b``, ``::`` before an indented block becomes ``:``.
    """
    text = re.sub(r":[a-z]+:`~?\.?([^`]+)`", lambda found: f"`{_last(found)}`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"::$", ":", text, flags=re.M)


def _last(found: re.Match[str]) -> str:
    return found[1].rpartition(".")[2] if "~" in found[0] else found[1]

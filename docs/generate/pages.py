"""The hooks of mkdocs that add pages to the site; ``mkdocs.yml`` names this file.

The front page, the changelog and the page for contributors are the files at the top of the
checkout; the reference is written from the code (``reference.py``). Nothing of it is committed.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

import reference
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]

#: Files at the top of the checkout that are pages of the site.
TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}

#: A script that the theme loads from elsewhere, and the one of ours in its place.
FOREIGN = re.compile(r'<script src="https://unpkg.com/iframe-worker/shim">')
WORKER = "worker.js"

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are made of other files."""
    for source, page in TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=linked(text, ".", page)))
    for page, text in reference.pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Lead the links of a page of ``docs/`` to pages of the site."""
    path = page.file.src_uri
    generated = path in TOP.values() or path.startswith("reference/")
    return markdown if generated else linked(markdown, "docs", path)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Have a page load nothing from another host: the theme would load a script for the search."""
    return FOREIGN.sub(f'<script src="{relpath(WORKER, Path(page.file.dest_uri).parent)}">', output)


def on_post_template(output: str, *, template_name: str, config: Any) -> str:
    """Do the same for pages that the theme adds, such as 404.html."""
    return FOREIGN.sub(f'<script src="{WORKER}">', output)


def linked(text: str, folder: str, page: str) -> str:
    """Return a text whose relative links lead to pages of the site.

    A link to a file or folder that is no page, such as ``../examples``, is written as its text.

    Args:
        text: Markdown whose links are right in the checkout.
        folder: Folder in the checkout that the links start from.
        page: Path in the site of the page that the text becomes.
    """

    def moved(found: re.Match[str]) -> str:
        image, label, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return found[0]
        source = normpath(f"{folder}/{path}")
        if source in TOP:
            goal = TOP[source]
        elif source.startswith("docs/") and (ROOT / source).is_file():
            goal = source.removeprefix("docs/")
        elif (ROOT / source).exists():
            return label
        else:
            return found[0]  # mkdocs names a broken link
        start = str(PurePosixPath(page).parent)
        return f"{image}[{label}]({relpath(goal, start)}{hash_}{anchor})"

    # Not in code: blocks and spans stay as they are.
    pieces = re.split(r"(^```.*?^```$|`[^`\n]*`(?!\]))", text, flags=re.M | re.S)
    return "".join(
        piece if index % 2 and piece.startswith("```") else LINK.sub(moved, piece)
        for index, piece in enumerate(pieces)
    )

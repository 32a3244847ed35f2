"""What the files in ``conf/`` say about themselves in their first comment."""

from __future__ import annotations

from pathlib import Path

from normbench.config import conf_dir


def header(group: str, name: str, config_dir: str | Path | None = None) -> str:
    """Return the comment at the top of a group's file on one line; empty where it has none.

    Args:
        group: As ``norm`` or ``norm/weight``.
        name: The file's, one that the group offers.
        config_dir: A further folder with groups like those of ``conf/``.
    """
    for root in (conf_dir(), *([Path(config_dir)] if config_dir is not None else [])):
        file = root / group / f"{name}.yaml"
        if file.is_file():
            lines = []
            for line in file.read_text(encoding="utf-8").splitlines():
                if not line.startswith("#"):
                    break
                lines.append(line.lstrip("# "))
            return " ".join(" ".join(lines).split())
    return ""

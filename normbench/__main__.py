"""``python -m normbench``."""

from normbench.cli import entry

entry()

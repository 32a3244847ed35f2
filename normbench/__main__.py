# PYTHON_ARGCOMPLETE_OK
"""``python -m normbench``."""

from normbench.cli import entry

entry()

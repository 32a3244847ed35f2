"""Names that moved to :mod:`normbench.components`."""

from normbench.components import header

__all__ = ["header"]

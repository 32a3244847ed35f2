"""Names that moved to :mod:`normbench.components`."""

from normbench.components import check_options, options_of, parameters_of, target

__all__ = ["check_options", "options_of", "parameters_of", "target"]

"""Sweeps: from a grid of overrides to a plan, and from the plan to runs.

The package is callable: ``normbench.sweep(…)`` is :func:`normbench.api.sweep`.
"""

from normbench import make_callable

make_callable(__name__)

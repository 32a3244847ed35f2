"""Sweeps: from a grid of overrides to a plan, and from the plan to runs."""

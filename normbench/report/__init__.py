"""Reads a store of runs and writes the tables and figures of a paper. Never imports TensorFlow."""

from normbench.report.frame import Frames, load

__all__ = ["Frames", "load"]

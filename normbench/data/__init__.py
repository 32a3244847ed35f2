"""Where images come from: sources, their splits, and how a data set gets onto a machine."""

from normbench.data.base import Arrays, MissingData, Source
from normbench.data.split import Dataset, Split, load

__all__ = ["Arrays", "Dataset", "MissingData", "Source", "Split", "load"]

"""Data sets: each is a :class:`Source` of images, which :func:`load` splits.

A source is a class in a file of its own or its family (``digits``, ``mnist``, ``cifar``), and is
named by the ``_target_`` of a file in ``conf/dataset/``. ``tfds`` is the base of the sources that
tensorflow-datasets keeps; ``idx``, ``archives`` and ``checksums`` read and check files that a user
imports. ``content`` is the base of data sets of the user's, which are known by their content: a
file (``npz``), a folder (``images``), or any name of tensorflow-datasets (``tfds_any``).
"""

from normbench.data.base import Arrays, MissingData, Source
from normbench.data.split import Dataset, Split, load

__all__ = ["Arrays", "Dataset", "MissingData", "Source", "Split", "load"]

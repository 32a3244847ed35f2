"""Data sets: each is a :class:`Source` of images, which :func:`load` splits.

A source is a class in its own or its family's file (``digits``, ``mnist``, ``cifar``), named by the
``_target_`` of a file in ``conf/dataset/``. ``tfds`` is the base of the sources stored by
tensorflow-datasets; ``idx``, ``archives`` and ``checksums`` read and check files that a user
imports. ``content`` is the base of users' data sets, which are identified by their content: a file
(``npz``), a folder (``images``), or any data set of tensorflow-datasets (``tfds_any``).
"""

from normbench.data.base import Arrays, MissingData, Source
from normbench.data.split import Dataset, Split, load

__all__ = ["Arrays", "Dataset", "MissingData", "Source", "Split", "load"]

"""scikit-learn's digits: 1,797 gray images of 8×8 pixels; no network needed.

Source: E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (its test set), as ``sklearn.datasets.load_digits``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from normbench.data.base import Arrays, Say, Source, silent
from normbench.errors import UserError

TEST_PER_CLASS = 36
_LEVELS = 16  # a pixel is the number of set pixels, 0..16, in a 4×4 block of the scan


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return the positions of the test images, sorted: 36 evenly spaced images of each class.

    The data set has no test split of its own, and its file is ordered by writer. Evenly spaced
    positions therefore include all writers.
    """
    indices = []
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        steps = (2 * np.arange(TEST_PER_CLASS) + 1) * len(of_class) // (2 * TEST_PER_CLASS)
        indices.append(of_class[steps])
    return np.sort(np.concatenate(indices))


def _table() -> np.ndarray:
    """Return the 64 levels and the label of each digit, (1797, 65).

    The file in scikit-learn is read directly if it is at its usual path, because importing
    scikit-learn takes longer than many runs on these images.
    """
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([np.asarray(bunch["data"]), np.asarray(bunch["target"])])


class Digits(Source):
    """scikit-learn's digits: https://scikit-learn.org/stable/datasets/toy_dataset.html."""

    name = "digits"
    title = "Digits"
    classes = 10
    shape = (8, 8, 1)
    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    train_count = 1437
    test_count = 360

    def arrays(self, data_dir: str | Path | None = None) -> Arrays:
        table = _table()
        levels = table[:, :-1].reshape(-1, *self.shape)
        images = np.rint(levels * (255 / _LEVELS)).astype(np.uint8)
        labels = table[:, -1].astype(np.int32)
        test = np.zeros(len(labels), bool)
        test[held_out(labels)] = True
        return Arrays(images[~test], labels[~test], images[test], labels[test])

    def state(self, data_dir: str | Path | None = None) -> str:
        return "built in"

    def prepare(self, data_dir: str | Path | None = None, say: Say = silent) -> None:
        say("Digits comes with scikit-learn: there is nothing to prepare")

    def import_from(
        self, path: str | Path, data_dir: str | Path | None = None, say: Say = silent
    ) -> None:
        raise UserError("digits comes with scikit-learn: there is nothing to import")

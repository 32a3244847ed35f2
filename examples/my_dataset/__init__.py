# A data set of your own: this class, and conf/dataset/parity.yaml, which names it.
#   cd examples
#   normbench run --config-dir my_dataset/conf dataset=parity norm=gn batch=16 arch=resnet8 epochs=5
#   normbench data list --config-dir my_dataset/conf
"""Odd and even digits: scikit-learn's digits under two labels."""

import numpy as np

from normbench.data import Arrays, Source
from normbench.data.digits import Digits


class Parity(Source):
    """Handwritten digits, labeled odd or even. A Source needs these attributes and ``arrays``."""

    name = "parity"
    title = "Parity of digits"
    classes = 2
    class_names = ("even", "odd")
    shape = (8, 8, 1)
    train_count = 1437
    test_count = 360

    def __init__(self, inverted=False):
        self.inverted = inverted  # an option of the data set, which the YAML file must list

    def arrays(self, data_dir=None):
        """Return images (uint8, N×H×W×C) and labels (int32), identical on every machine."""
        digits = Digits().arrays()
        images = [digits.train_images, digits.test_images]
        if self.inverted:
            images = [np.uint8(255) - image for image in images]
        labels = [digits.train_labels % 2, digits.test_labels % 2]
        return Arrays(images[0], labels[0], images[1], labels[1])

    def state(self, data_dir=None):
        return "built in"  # nothing to download; see Source for prepare() and import_from()

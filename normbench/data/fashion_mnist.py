"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): 70,000 articles of clothing, 28×28, grey."""

from __future__ import annotations

from normbench.data.checksums import FASHION_MNIST_FILES
from normbench.data.mnist import MNIST


class FashionMNIST(MNIST):
    """Fashion-MNIST: https://github.com/zalandoresearch/fashion-mnist. Files as MNIST's."""

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    files = FASHION_MNIST_FILES
    folders = ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "data/fashion", "raw")

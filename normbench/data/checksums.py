"""Published checksums and sizes of the files of MNIST, Fashion-MNIST and CIFAR.

Sources of the numbers:

- SHA-256 and size of the official archives and ``.gz`` files: tensorflow-datasets,
  ``url_checksums/*.txt`` (a test compares them with the installed package).
- MD5 of the CIFAR archives: https://www.cs.toronto.edu/~kriz/cifar.html. MD5 of the files of the
  python versions: torchvision's ``CIFAR10`` and ``CIFAR100``.
- MD5 of the files of the binary versions: rai-project/dldataset, ``vision/cifar10.go`` and
  ``vision/cifar100.go``. Those of CIFAR-10 agree with ones computed from the genuine python version
  (both have the same rows in the same order); no genuine CIFAR-100 was available.
- SHA-256 of the unpacked idx files: computed from the genuine ``.gz`` files, whose own SHA-256
  are the published ones. It does not depend on how a file was compressed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """Published checksum and size of a file.

    Attributes:
        digest: ``md5:<hex>`` or ``sha256:<hex>`` of its content.
        size: Size in bytes, if known.
    """

    digest: str
    size: int | None = None

    def of(self, data: bytes) -> str:
        """Return the digest of ``data``, computed with the same algorithm as the published one."""
        kind = self.digest.partition(":")[0]
        return f"{kind}:{hashlib.new(kind, data, usedforsecurity=False).hexdigest()}"

    def fits(self, data: bytes) -> bool:
        """Return whether ``data`` is the content of the published file."""
        return self.size in (None, len(data)) and self.of(data) == self.digest

    def fits_file(self, path: Path) -> bool:
        """Return whether the file at ``path`` is the published one."""
        if self.size not in (None, path.stat().st_size):
            return False
        kind, _, value = self.digest.partition(":")
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest() == value


@dataclass(frozen=True)
class IdxFile:
    """Published checksums of a file of the MNIST family.

    Attributes:
        sha256: SHA-256 of the unpacked idx file, header included.
        shape: Dimensions: (images, height, width) or (labels,).
        packed: Size of the official ``.gz`` in bytes.
        packed_sha256: SHA-256 of the official ``.gz``.
    """

    sha256: str
    shape: tuple[int, ...]
    packed: int
    packed_sha256: str


IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

MNIST_FILES = {
    "train-images-idx3-ubyte": IdxFile(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        (60000, 28, 28),
        9912422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte": IdxFile(
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        (60000,),
        28881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte": IdxFile(
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        (10000, 28, 28),
        1648877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte": IdxFile(
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        (10000,),
        4542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}

FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": IdxFile(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        (60000, 28, 28),
        26421880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "train-labels-idx1-ubyte": IdxFile(
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        (60000,),
        29515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "t10k-images-idx3-ubyte": IdxFile(
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        (10000, 28, 28),
        4422102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "t10k-labels-idx1-ubyte": IdxFile(
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        (10000,),
        5148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}

IDX_SETS = {
    "mnist": ("MNIST", MNIST_FILES),
    "fashion_mnist": ("Fashion-MNIST", FASHION_MNIST_FILES),
}
"""Title and files of each data set, by name, to recognize files of another data set."""


@dataclass(frozen=True)
class Packing:
    """One of the forms in which a CIFAR is published.

    Attributes:
        kind: ``python`` (pickled batches) or ``binary`` (rows of labels and pixels).
        folder: The folder inside the archive.
        archive: The name of the official archive.
        archive_published: The archive's published checksum and size.
        labels: For each label, its name and its key in a pickled batch, in the order of the file.
        train: The files with training images, in order.
        test: The file with test images.
    """

    kind: str
    folder: str
    archive: str
    archive_published: Published
    labels: tuple[tuple[str, str], ...]
    train: dict[str, Published]
    test: dict[str, Published]

    @property
    def files(self) -> dict[str, Published]:
        """The published checksums and sizes of all required files, by name."""
        return self.train | self.test


_BINARY_10 = 10_000 * 3073

CIFAR10_PACKINGS = (
    Packing(
        kind="python",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        archive_published=Published("md5:c58f30108f718f92721af3b95e74349a", 170498071),
        labels=(("label", "labels"),),
        train={
            "data_batch_1": Published("md5:c99cafc152244af753f735de768cd75f", 31035704),
            "data_batch_2": Published("md5:d4bba439e000b95fd0a9bffe97cbabec", 31035320),
            "data_batch_3": Published("md5:54ebc095f3ab1f0389bbae665268c751", 31035999),
            "data_batch_4": Published("md5:634d18415352ddfa80567beed471001a", 31035696),
            "data_batch_5": Published("md5:482c414d41f54cd18b22e5b47cb7c3cb", 31035623),
        },
        test={"test_batch": Published("md5:40351d587109b95175f43aff81a1287e", 31035526)},
    ),
    Packing(
        kind="binary",
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        archive_published=Published(
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            170052171,
        ),
        labels=(("label", "label"),),
        train={
            "data_batch_1.bin": Published("md5:5dd7e06a14cb22eb9f671a540d1b7c25", _BINARY_10),
            "data_batch_2.bin": Published("md5:5ea93a67294ea407fff1d09f752e9692", _BINARY_10),
            "data_batch_3.bin": Published("md5:942cd6a4bcdd0dd3c604fbe906cb4421", _BINARY_10),
            "data_batch_4.bin": Published("md5:ae636b3ba5c66a11e91e8cb52e771fcb", _BINARY_10),
            "data_batch_5.bin": Published("md5:53f37980c15c3d472c316c40844f3f0d", _BINARY_10),
        },
        test={"test_batch.bin": Published("md5:803d5f7f4d78ea53de84dbe85f74fb6d", _BINARY_10)},
    ),
)

CIFAR100_PACKINGS = (
    Packing(
        kind="python",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        archive_published=Published("md5:eb9058c3a382ffc7106e4002c42a8d85", 169001437),
        labels=(("coarse_label", "coarse_labels"), ("label", "fine_labels")),
        train={"train": Published("md5:16019d7e3df5f24257cddd939b257f8d", 155249918)},
        test={"test": Published("md5:f0ef6b0ae62326f3e7ffdfab6717acfc", 31049707)},
    ),
    Packing(
        kind="binary",
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        archive_published=Published(
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            168513733,
        ),
        labels=(("coarse_label", "coarse_label"), ("label", "label")),
        train={"train.bin": Published("md5:6172c7755cfe09b2fe270c85cebc1b15", 50_000 * 3074)},
        test={"test.bin": Published("md5:4499cfba6c016c1be1438163640a0898", 10_000 * 3074)},
    ),
)

CIFAR_SETS = {
    "cifar10": ("CIFAR-10", CIFAR10_PACKINGS),
    "cifar100": ("CIFAR-100", CIFAR100_PACKINGS),
}
"""Title and packings of each CIFAR, by name, to recognize files of another data set."""

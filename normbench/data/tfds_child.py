"""The actions that need tensorflow-datasets; `normbench.data.tfds_process` runs this module.

``python -m normbench.data.tfds_child ACTION ANSWER`` reads its arguments as one line of JSON and
writes its answer, or the message of an error, to the file ANSWER.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from normbench.data import cache, tfds_folder
from normbench.errors import NormbenchError, UserError, nearest

_TIMEOUT = (5.0, 15.0)  # seconds for a host to accept a connection, and to answer


def _examples(
    split: str, arrays: dict[str, np.ndarray], with_id: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield examples with the keys that tfds's own CIFAR and MNIST builders use.

    The key determines the position of an example when tfds shuffles on writing, so the files are
    the same as after a download.
    """
    for index in range(len(arrays["image"])):
        example: dict[str, Any] = {
            key: array[index] if key == "image" else int(array[index])
            for key, array in arrays.items()
        }
        if with_id:
            example["id"] = f"{split}_{index:05d}"
        yield index, example


def write(
    name: str,
    data_dir: str,
    arrays: str,
    label_names: dict[str, list[str]],
    cache_path: str,
) -> dict[str, Any]:
    """Write examples as tfds's own builder would, read them back, compare, and cache them.

    Args:
        name: The data set's name in tfds, whose own builder provides features and description.
        data_dir: The data folder to write to.
        arrays: A file of `normbench.data.cache` with ``<split>/<feature>`` arrays.
        label_names: Class names of a label, if the builder reads them from its files.
        cache_path: Path of the array cache.

    Returns:
        ``folder``, the folder written, and ``version``.
    """
    import tensorflow_datasets as tfds

    entry = cache.read(Path(arrays))
    if entry is None:
        raise NormbenchError(f"{arrays} is incomplete")
    splits: dict[str, dict[str, np.ndarray]] = {}
    for key, array in entry[1].items():
        split, _, feature = key.partition("/")
        splits.setdefault(split, {})[feature] = array

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        for label, names in label_names.items():
            self.info.features[label].names = names
        with_id = "id" in self.info.features
        return {split: _examples(split, data, with_id) for split, data in splits.items()}

    published: Any = tfds.builder_cls(name)
    builder_class: Any = types.new_class(
        published.__name__,
        (published,),
        {"skip_registration": True},
        lambda namespace: namespace.update(
            _split_generators=split_generators, __module__=published.__module__
        ),
    )
    tfds.disable_progress_bar()
    builder = builder_class(data_dir=data_dir)
    builder.download_and_prepare()
    folder = Path(builder.data_dir)
    contents = _decode(folder)
    for split, data in splits.items():
        _compare(
            split, data, {key: contents[f"{split}_{key}s"] for key in ("image", "label")}, folder
        )
    _cache(folder, contents, Path(cache_path))
    return {"folder": str(folder), "version": folder.name}


def _rows(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the examples as rows of bytes, sorted."""
    flat = np.concatenate([labels.astype("<i4").view(np.uint8).reshape(len(labels), 4),
                           images.reshape(len(images), -1)], axis=1)  # fmt: skip
    return np.sort(np.ascontiguousarray(flat).view(f"V{flat.shape[1]}").ravel())


def _compare(
    split: str, expected: dict[str, np.ndarray], actual: dict[str, np.ndarray], folder: Path
) -> None:
    """Check that the examples read back are those written, in any order.

    Raises:
        NormbenchError: They differ.
    """
    if expected["image"].shape != actual["image"].shape or not np.array_equal(
        _rows(expected["image"], expected["label"]), _rows(actual["image"], actual["label"])
    ):
        raise NormbenchError(f"examples read back from {folder} are not those written ({split})")


def _reach(builder: Any, manual: Path) -> None:
    """Check that each host of a download can be reached and has its first file.

    Without a network, tfds itself would keep trying for minutes.

    Raises:
        NormbenchError: A host cannot be reached, or does not have the file.
    """
    import requests

    hosts = set()
    for url, info in (builder.url_infos or {}).items():
        host = url.split("/")[2]
        if host in hosts or (info.filename and (manual / info.filename).is_file()):
            continue
        hosts.add(host)
        try:
            with requests.get(url, stream=True, timeout=_TIMEOUT) as answer:
                if answer.status_code != 200:
                    raise NormbenchError(f"{url} answers with HTTP {answer.status_code}")
        except requests.exceptions.Timeout as error:
            raise NormbenchError(f"{host} does not answer") from error
        except requests.exceptions.ConnectionError as error:
            raise NormbenchError(f"{host} cannot be reached from this machine") from error
        except requests.exceptions.RequestException as error:
            raise NormbenchError(f"{url} cannot be downloaded: {type(error).__name__}") from error


def prepare(
    name: str, data_dir: str, work: str, manual: str, cache_path: str | None
) -> dict[str, Any]:
    """Download and prepare a data set with tfds, and cache its arrays.

    Args:
        name: The data set's name in tfds.
        data_dir: The data folder to write to.
        work: A folder for downloaded and extracted files. No other data set may use it: tfds reuses
            extracted files by name, and the files of MNIST and Fashion-MNIST have the same names.
        manual: A folder in which tfds looks for files before it downloads them.
        cache_path: Path of the array cache; None to cache nothing.

    Returns:
        ``folder``, the folder written, and ``version``.

    Raises:
        UserError: tfds has no such data set, or it does not classify images.
    """
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        close = nearest(
            re.split("[/:]", name)[0], tfds.list_builders(with_community_datasets=False)
        )
        hint = f": did you mean {close!r}?" if close else ""
        raise UserError(f"tensorflow-datasets knows no data set {name!r}{hint}") from error
    if cache_path is None:
        _features(builder, name)  # before anything is downloaded
    _reach(builder, Path(manual))
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_dir=Path(work) / "downloads",
        download_config=tfds.download.DownloadConfig(
            extract_dir=Path(work) / "extracted",
            manual_dir=manual if Path(manual).is_dir() else None,
            try_download_gcs=False,
        ),
    )
    folder = Path(builder.data_dir)
    if cache_path is not None:
        _cache(folder, _decode(folder), Path(cache_path))
    return {"folder": str(folder), "version": folder.name}


# --- any data set that classifies images --------------------------------------------------------


def _features(builder: Any, name: str) -> tuple[str, str]:
    """Return the names of the image and label features of a data set.

    Raises:
        UserError: It does not classify images.
    """
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, builder.info.supervised_keys
    pair = keys if isinstance(keys, tuple) and len(keys) == 2 else ("image", "label")
    pair_features = [
        features[key] if isinstance(key, str) and key in features else None for key in pair
    ]
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if not all(
        isinstance(feature, kind) for feature, kind in zip(pair_features, kinds, strict=True)
    ):
        description = ", ".join(f"{key}: {type(value).__name__}" for key, value in features.items())
        raise UserError(
            f"{name} does not classify images: an image and one class label are needed, but it has "
            f"{description}"
        )
    return pair[0], pair[1]


def classify(
    folder: str, arrays: str, size: int | None, channels: int | None, test: float | str | None
) -> dict[str, Any]:
    """Read any prepared data set that classifies images into a file of :mod:`.cache`.

    Its arrays are ``images``, those of all splits in the order of reading, and, for each of the
    splits train, test and validation that exists, ``<split>_labels`` and ``<split>_positions`` of
    its images among them. Its description has ``class_names``.

    Args:
        folder: The folder of one version.
        arrays: The file to write.
        size, channels, test: As for :class:`normbench.data.tfds_any.Tfds`.

    Raises:
        UserError: It does not classify images, has images of different sizes while ``size`` is
            None, or has images with more than 8 bits per channel.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    from normbench.data.images import fitted, refuse_sizes, refuse_test
    from normbench.data.streaming import empty

    builder: Any = tfds.builder_from_directory(folder)
    name = str(builder.info.full_name)
    image_key, label_key = _features(builder, name)
    feature = builder.info.features[image_key]
    if feature.np_dtype != np.uint8 or feature.shape[-1] not in (1, 3, 4):
        raise UserError(
            f"{name} has images of {feature.np_dtype} and {feature.shape[-1]} channels: uint8 "
            "images of 1, 3 or 4 channels are needed"
        )
    splits = [split for split in ("train", "test", "validation") if split in builder.info.splits]
    if "train" not in splits:
        split_names = ", ".join(builder.info.splits) or "none"
        raise UserError(f"{name} has no split train (it has {split_names})")
    refuse_test(name, splits, test, "split")
    channel_count = channels or (1 if feature.shape[-1] == 1 else 3)
    reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    count = sum(builder.info.splits[split].num_examples for split in splits)
    result: dict[str, np.ndarray] = {}
    all_images: np.ndarray | None = None  # allocated when the size of the first is known
    end = 0
    sizes: list[tuple[str, tuple[int, int]]] = []
    for split in splits:
        start, labels, ids = end, [], []
        data = builder.as_dataset(split=split, shuffle_files=False, read_config=reading)
        for index, example in enumerate(data.as_numpy_iterator()):
            pixels = example[image_key]
            height, width = pixels.shape[:2]
            if size is None:
                sizes = [*sizes[:1], (f"image {index} of {split}", (width, height))]
                refuse_sizes(sizes, name)
            picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            image = fitted(picture, size, channel_count)
            if all_images is None:
                all_images = empty((count, *image.shape), np.uint8, Path(arrays).parent, name)
            if end == count:
                raise NormbenchError(f"{folder} has more images than the {count} that it lists")
            all_images[end] = image
            end += 1
            labels.append(int(example[label_key]))
            if isinstance(example.get("id"), bytes):
                ids.append(example["id"])
        # As in _decode: in the order of the ids if every example has one.
        order = np.argsort(np.array(ids), kind="stable") if len(ids) == len(labels) else slice(None)
        result[f"{split}_positions"] = np.arange(start, end)[order]
        result[f"{split}_labels"] = np.array(labels, np.int32)[order]
        if result[f"{split}_labels"].min() < 0:
            raise UserError(f"{name} has images without a label in {split}")
    if all_images is None or end < count:
        raise NormbenchError(f"{folder} has {end} images, not the {count} that it lists")
    names = builder.info.features[label_key].names
    cache.write(Path(arrays), {"images": all_images, **result}, {"class_names": list(names)})
    return {"folder": folder}


def _decode(folder: Path) -> dict[str, np.ndarray]:
    """Read a prepared folder: ``<split>_images`` uint8 [N, H, W, C], ``<split>_labels`` int32 [N].

    The order is that of the files, shard after shard; if the examples have an ``id`` (CIFAR), it is
    the order of the ids, which is that of the published files.
    """
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features):
        raise NormbenchError(f"{folder} has no image and label in its features")
    reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    arrays = {}
    for split in ("train", "test"):
        count = builder.info.splits[split].num_examples
        images = np.empty((count, *features["image"].shape), np.uint8)
        labels = np.empty(count, np.int32)
        ids: list[bytes] = []
        data = builder.as_dataset(split=split, shuffle_files=False, read_config=reading)
        start = 0
        for batch in data.batch(1000).as_numpy_iterator():
            end = start + len(batch["label"])
            images[start:end], labels[start:end] = batch["image"], batch["label"]
            ids.extend(batch.get("id", ()))
            start = end
        if start != count:
            raise NormbenchError(f"{folder} has {start} images in {split!r}, not {count}")
        if ids:
            order = np.argsort(np.array(ids), kind="stable")
            images, labels = images[order], labels[order]
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels
    return arrays


def _cache(folder: Path, arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write the array cache of a folder."""
    cache.write(path, arrays, {"fingerprint": tfds_folder.fingerprint(folder)})


def decode(folder: str, cache_path: str) -> dict[str, Any]:
    """Read a prepared folder into the array cache."""
    _cache(Path(folder), _decode(Path(folder)), Path(cache_path))
    return {"folder": folder}


def _end_with_parent() -> None:
    """Exit when standard input closes, which happens when the parent dies."""
    # Not sys.stdin: this thread would hold its lock while the interpreter shuts down.
    while os.read(0, 1):
        pass
    os._exit(1)


def main(action: str, answer: str) -> int:
    """Run one action; any error other than a NormbenchError ends in a traceback."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    actions = {"write": write, "prepare": prepare, "decode": decode, "classify": classify}
    try:
        response: dict[str, Any] = {"result": actions[action](**request)}
    except NormbenchError as error:
        response = {"error": str(error), "user": isinstance(error, UserError)}
    Path(answer).write_text(json.dumps(response))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

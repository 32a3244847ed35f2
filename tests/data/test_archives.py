"""Hostile archives are refused quickly, in one line and in little memory."""

from __future__ import annotations

import io
import lzma
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from normbench.data.archives import read_members
from normbench.errors import UserError

GIB = 1 << 30


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def gzipped(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def bomb(first: bytes, pieces: int) -> bytes:
    """Return a gzip file of ``first`` followed by ``pieces`` times 64 MiB of zeros."""
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(first) + packer.flush(zlib.Z_FULL_FLUSH)
    raw = zlib.compressobj(wbits=-15)
    piece = raw.compress(bytes(64 << 20)) + raw.flush(zlib.Z_FULL_FLUSH)
    return data + piece * pieces


def empty_members(count: int) -> bytes:
    return b"".join(header(f"{index}", tarfile.REGTYPE, 0) for index in range(count))


def long_name_chain(count: int) -> bytes:
    """Return long-name headers, each of which names the next one."""
    return (header("a", tarfile.GNUTYPE_LONGNAME, 1) + b"x".ljust(512, b"\0")) * count


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a huge pax header": (lambda: bomb(header("a", tarfile.XHDTYPE, 4 * GIB), 1), "long headers"),
    "a huge global header": (lambda: bomb(header("a", tarfile.XGLTYPE, GIB), 1), "long headers"),
    "a huge name": (lambda: bomb(header("a", tarfile.GNUTYPE_LONGNAME, GIB), 1), "long headers"),
    "a huge link": (lambda: bomb(header("a", tarfile.GNUTYPE_LONGLINK, GIB), 1), "long headers"),
    "many long headers": (
        lambda: gzipped((header("a", tarfile.XHDTYPE, 4096) + b"12 path=abc\n".ljust(4096, b"\0")
                         + header("b", tarfile.REGTYPE, 0)) * 90),
        "long headers",
    ),
    "many members": (lambda: gzipped(empty_members(50_000)), "more than 1,000 members"),
    "names of names": (lambda: gzipped(long_name_chain(5000)), "corrupted"),
    "a member of zeros": (
        lambda: bomb(header("a", tarfile.REGTYPE, 8 * GIB), 40),
        "unpacks to more",
    ),
    "a wanted file of zeros": (
        lambda: bomb(header("train", tarfile.REGTYPE, 8 * GIB), 40),
        "far too many",
    ),
    "many wanted files": (lambda: gzipped(b"".join(header("train", tarfile.REGTYPE, 99 << 20)
                          + bytes(512) for _ in range(9))), "truncated"),
    "zeros after the end": (lambda: bomb(bytes(1024), 40), "unpacks to more"),
    "a negative size": (
        lambda: gzipped(header("a", tarfile.REGTYPE, -4096) + bytes(1024)),
        "corrupted",
    ),
    "a decoder of 1.5 GiB": (
        lambda: (lambda data: data[:1] + (3 << 29).to_bytes(4, "little") + data[5:])(
            lzma.compress(empty_members(3), lzma.FORMAT_ALONE)
        ),
        "emory usage limit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_in_seconds_and_little_memory(
    tmp_path: Path, kind: str
) -> None:
    make, reason = HOSTILE[kind]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(make())
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            read_members(path, {"train"})
        assert time.process_time() - began < 10
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_terabyte_hole_in_a_plain_archive_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    size = 1 << 40
    with path.open("wb") as file:
        file.write(header("movie", tarfile.REGTYPE, size))
        file.seek(size, io.SEEK_CUR)
        file.write(header("train", tarfile.REGTYPE, 3) + b"abc".ljust(512, b"\0") + bytes(1024))
    assert read_members(path, {"train"}) == {"train": b"abc"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_ordinary_archives_are_read(tmp_path: Path, mode: str, form: int) -> None:
    """Cover long and non-ASCII names, fractional times, links, and files that are not wanted."""
    path, folder = tmp_path / "a.tar", "long-" * 18 if form == tarfile.USTAR_FORMAT else "é" * 300
    content = {"train": bytes(range(256)) * 999, "test": b"", "other": b"x" * 70_000}
    with tarfile.open(path, mode, format=form) as archive:  # pyright: ignore
        for name, data in content.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("x/train")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert read_members(path, {"train", "test"}) == {"train": content["train"], "test": b""}


def test_gzip_file_with_several_streams_is_read(tmp_path: Path) -> None:
    tar = header("train", tarfile.REGTYPE, 3) + b"abc".ljust(512, b"\0") + bytes(1024)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzipped(tar[:700]) + gzipped(tar[700:]) + bytes(64))
    assert read_members(path, {"train"}) == {"train": b"abc"}
    path.write_bytes(gzipped(tar) + b"something else")
    with pytest.raises(UserError, match="corrupted"):
        read_members(path, {"train"})

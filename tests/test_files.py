"""Files are written whole, hashed and weighed."""

import hashlib
import os
from pathlib import Path

import pytest

from labkit import files


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "a.json"
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1}

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1} and len(list(path.parent.iterdir())) == 1


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_large_file_is_read_once_while_nobody_writes_to_it(tmp_path, monkeypatch):
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind)
    )
    half_done, product = tmp_path / ".partial-product", tmp_path / "product"
    half_done.mkdir()
    (half_done / "large").write_bytes(bytes(2**24 + 1))
    (half_done / "small").write_bytes(b"abc")
    first = files.marks_of(files.files_of(half_done))
    half_done.rename(product)
    assert files.marks_of(files.files_of(product)) == first
    assert sorted(Path(name).name for name in read) == ["large", "small", "small"]
    with open(product / "large", "r+b") as file:
        file.seek(2**23)
        file.write(b"x")
    now = files.sha256(product / "large")
    assert now == hashlib.sha256((product / "large").read_bytes()).hexdigest() != first["large"]


def test_each_part_of_a_large_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART", 7 * 2**20)
    path, content = tmp_path / "large", bytearray(os.urandom(20 * 2**20))
    marks = set()
    for changed in (0, 7 * 2**20 - 1, 7 * 2**20, len(content) - 1):
        content[changed] ^= 1
        path.write_bytes(content)
        marks.add(files.mark_of(path))
        parts = [content[at : at + files.PART] for at in range(0, len(content), files.PART)]
        wanted = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
        assert files.mark_of(path) == f"parts-{wanted.hexdigest()}"
    whole = hashlib.sha256(content).hexdigest()  # the mark of a run that is older
    assert files.has_mark(path, whole) and files.has_mark(path, files.mark_of(path))
    assert not files.has_mark(path, whole[::-1]) and files.differing({"a": path}, {"a": "b"})
    path.write_bytes(content[: files.PART])
    assert files.mark_of(path) == hashlib.sha256(content[: files.PART]).hexdigest()
    assert len(marks) == 4


def test_a_listing_names_every_file_with_its_size(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"12")
    (tmp_path / "a").write_bytes(b"1")
    assert files.listing(tmp_path) == {"a": 1, "sub/b": 2}
    assert files.listing(tmp_path / "a") == {"a": 1} and files.listing(tmp_path / "none") == {}


def test_sizes_are_in_millions_of_bytes(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"1" * 3_000_000)
    (tmp_path / "a.onnx_adapter").write_bytes(b"1" * 500_000)
    assert files.dir_mb(tmp_path) == 3.5
    assert files.dir_mb(tmp_path, without="*_adapter") == 3.0
    assert files.dir_mb(tmp_path / "a.onnx") == 3.0

"""Files are written whole, hashed and weighed."""

import hashlib

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

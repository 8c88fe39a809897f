"""Any bytes, and whole files with a few of their bytes changed: one LabError or a result.

Never another exception, and never a file that is waited for: each example has its deadline.
"""

import contextlib
import gzip
import io
import json
import string

import pytest
from fuzzing import damaged, ends, fuzz
from hypothesis import given
from hypothesis import strategies as st
from samples import qa

from labkit.data import load_records
from labkit.errors import LabError
from labkit.registry import check_manifest, write_manifest
from labkit.registry.local import LocalRegistry


def parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet as writer

    file = io.BytesIO()
    writer.write_table(pyarrow.Table.from_pylist([qa(n) for n in range(3)]), file)
    return file.getvalue()


ROWS = [qa(n) for n in range(3)]
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
LINES = "".join(json.dumps(row) + "\n" for row in [*ROWS, CHAT]).encode()
FILES = {
    "d.jsonl": [LINES, LINES.replace(b"\n", b"\r\n"), gzip.compress(LINES, mtime=0)],
    "d.json": [json.dumps(ROWS).encode(), json.dumps([CHAT] * 2, indent=1).encode()],
    "d.csv": [b"prompt,response\nQ,A\n", b'prompt;response\n"a\nb";"c;""d"""\n'],
    "d.csv.gz": [gzip.compress(b"prompt,response\nQ,A\n", mtime=0)],
    "d.parquet": [parquet()],
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prompt", "response", "messages", "role", "content", "history", "text"]
            )
            | st.text(string.printable, max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def read(path) -> None:
    with ends(), contextlib.suppress(LabError):
        for record in load_records(path, show=True):
            assert isinstance(record["prompt"], str) and record["response"].strip()


@pytest.mark.parametrize("name", FILES)
@fuzz(300)
@given(data=st.data())
def test_a_data_file_of_any_bytes(name, tmp_path, data):
    path = tmp_path / name
    path.write_bytes(data.draw(st.binary(max_size=200) | damaged(FILES[name])))
    read(path)


@fuzz(400)
@given(rows=st.lists(values, max_size=4), array=st.booleans())
def test_a_data_file_of_any_values(tmp_path, rows, array):
    texts = [json.dumps(row) for row in rows]
    path = tmp_path / "d.json"
    path.write_text(f"[{','.join(texts)}]" if array else "\n".join(texts))
    read(path)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    (folder / "model.onnx").write_bytes(b"weights")
    write_manifest(folder, "name")
    return folder, (folder / "manifest.json").read_bytes()


@fuzz(600)
@given(data=st.data())
def test_a_manifest_of_any_bytes(package, data):
    folder, whole = package
    text = data.draw(
        st.binary(max_size=200) | damaged([whole]) | values.map(json.dumps).map(str.encode)
    )
    (folder / "manifest.json").write_bytes(text)
    with ends(), contextlib.suppress(LabError):
        assert check_manifest(folder) == json.loads(whole)


NOTE = b"""name: name
version: '1'
description: what it is
properties:
  content_sha256: 92de2e7fb5aa1ff5e0107d52df5f92de2e7fb5aa1ff5e0107d52df5f0123456f
$schema: https://example.com
path: model
"""


@fuzz(600)
@given(data=st.data())
def test_a_model_yml_of_any_bytes(tmp_path, data):
    registry = LocalRegistry(tmp_path / "registry", tmp_path / "logs")
    home = tmp_path / "registry" / "name" / "1"
    home.mkdir(parents=True, exist_ok=True)
    lines = st.lists(st.text("ab:-&*!<>|?{}[]\"'# \t\n1%@`", max_size=20), max_size=8).map(
        lambda some: "\n".join(some).encode()
    )
    home.joinpath("model.yml").write_bytes(
        data.draw(st.binary(max_size=200) | lines | damaged([NOTE]))
    )
    with ends():
        found = registry.contents("name")
        assert list(found) == ["1"] and (found["1"] is None or len(found["1"]) == 64)
        assert registry.costs("name")

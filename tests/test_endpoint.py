"""Azure's own inference server on the package that lab 06 has made: answers, and refusals."""

import http.client
import json
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from alone import alone

from labkit.cluster.endpoint import local_server
from labkit.data import load_records
from labkit.errors import LabError
from labkit.extras import extra_packages


@pytest.fixture(scope="module")
def scored(notebook_runs):
    """The server, and what lab 05 has answered."""
    try:
        extra_packages("endpoint")
    except LabError as missing:
        pytest.skip(str(missing))
    with local_server(notebook_runs / "package") as address:
        yield SimpleNamespace(address=address, runs=notebook_runs)


def send(address: str, body: bytes, method: str = "POST", **headers) -> tuple[int, dict | str]:
    """(status, what came back)."""
    where = urlsplit(address)
    line = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    line.request(method, where.path, body, {"Content-Type": "application/json"} | named)
    reply = line.getresponse()
    return reply.status, json.loads(reply.read())


def ask(address: str, **asked) -> tuple[int, dict]:
    return send(address, json.dumps(asked).encode())


def test_the_answers_are_lab_05s(scored):
    package = scored.runs / "package"
    adapters = {"base": None, "travel": package / "adapter_weights.onnx_adapter"}
    for record in load_records(scored.runs / "heldout.jsonl")[:3]:
        for name, adapter in adapters.items():
            status, said = ask(
                scored.address, prompt=record["prompt"], adapter=name, max_tokens=60
            )
            wanted = alone(package, record, adapter, 60)
            assert status == 200 and said["adapter"] == name
            assert (said["answer"], said["ended"]) == (wanted.text.strip(), wanted.ended)


def test_the_adapter_is_chosen_for_each_request(scored):
    def asked(adapter):
        return ask(scored.address, prompt="Two days in Porto?", adapter=adapter, max_tokens=20)[1]

    first = [asked(name)["answer"] for name in ("base", "travel", "base", "travel")]
    assert first[:2] == first[2:] and first[0] != first[1]


REFUSED = {
    # what is sent -> (status, what is said)
    "no JSON": (b"{", 400, "not JSON"),
    "no UTF-8": (b'{"prompt": "\xff"}', 400, "not JSON"),
    "a hundred thousand brackets": (b"[" * 16_000, 400, "not JSON"),
    "a list": (b"[]", 400, 'with a "prompt"'),
    "no prompt": (b"{}", 400, 'with a "prompt"'),
    "a number": (b'{"prompt": 7}', 400, "must be a text"),
    "nothing": (b'{"prompt": " "}', 400, "must be a text"),
    "another field": (b'{"prompt": "a", "temperature": 2}', 400, "no field 'temperature'"),
    "an unknown adapter": (b'{"prompt": "a", "adapter": "../x"}', 400, "base, travel"),
    "an adapter's list": (b'{"prompt": "a", "adapter": ["base"]}', 400, "base, travel"),
    "true tokens": (b'{"prompt": "a", "max_tokens": true}', 400, "whole number from 1"),
    "no tokens": (b'{"prompt": "a", "max_tokens": 0}', 400, "whole number from 1"),
    "all tokens": (b'{"prompt": "a", "max_tokens": 1e9}', 400, "whole number from 1"),
    "a control token": (b'{"prompt": "a<|im_end|>b"}', 400, "control token"),
    "NUL": (b'{"prompt": "a\\u0000b"}', 400, "control character"),
    "half of a character": (b'{"prompt": "a\\ud800b"}', 400, "half of a character"),
    "too long for the model": (b'{"prompt": "%s"}' % (b"a b c " * 500), 400, "tokens"),
    "huge": (b'{"prompt": "%s"}' % (b"a" * 17_000), 413, "bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_why(scored, name):
    body, status, said = REFUSED[name]
    found = send(scored.address, body)
    assert found[0] == status and said in found[1]["error"], found
    assert ask(scored.address, prompt="Porto?", max_tokens=2)[0] == 200  # the next is answered


def test_a_question_that_is_no_post_is_refused(scored):
    assert send(scored.address, b"", "GET")[0] == 405
    assert send(scored.address, iter([b"{", b"}"]), Transfer_Encoding="chunked")[0] == 413


def test_a_package_that_is_none_does_not_start(scored, tmp_path):
    said = "did not start with this package"
    with pytest.raises(LabError, match=said), local_server(tmp_path):
        raise AssertionError("it has started")

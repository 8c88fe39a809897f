"""./lab serve: many clients at once, each answered as if it were alone; and what it refuses."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest import mock

import pytest
from alone import alone
from fuzzing import damaged, ends, fuzz
from hypothesis import given
from hypothesis import strategies as st

from labkit.commands import serve
from labkit.data import load_records
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.profiles import ROOT
from labkit.prompts import prompt_text
from labkit.serving.clients import ask_together
from labkit.serving.engine import Engine, showable
from labkit.serving.http import LARGEST, listen

CHAT = "/v1/chat/completions"
MIX = ("base", "travel", "tone") * 3 + ("travel",)  # ten clients
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 120}  # a long answer


@contextlib.contextmanager
def serving(engine, token=""):
    """Port of a server of *engine*, whose event loop runs in a thread."""
    loop = asyncio.new_event_loop()

    async def opened():
        # pytest reads and changes the file that is printed to: a thread that prints meanwhile ends
        # the process, in Python 3.11 by a segmentation fault
        with mock.patch("labkit.serving.http.say", lambda handler: None):
            return listen(engine, "127.0.0.1", 0, token)

    port = loop.run_until_complete(opened())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield port
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture(scope="module")
def served(notebook_runs):
    """A server of the notebooks' model, and questions that were held out."""
    engine = Engine(notebook_runs / "onnx", serve.adapters_in(notebook_runs))
    questions = [one["prompt"] for one in load_records(notebook_runs / "heldout.jsonl")]
    with serving(engine) as port:
        yield SimpleNamespace(engine=engine, port=port, questions=questions, runs=notebook_runs)
    engine.close()


def send(port, body, *, path=CHAT, method="POST", **headers):
    """(status, body) of one request; *body* is bytes, or what is sent as JSON."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, path, data, {"Content-Type": "application/json"} | names)
        response = line.getresponse()
        return response.status, response.read()
    finally:
        line.close()


def asking(text, model="travel", **options):
    return {"model": model, "messages": [{"role": "user", "content": text}]} | options


def form(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def ask(port, text, model="travel", **options) -> dict:
    """The whole answer."""
    status, body = send(port, asking(text, model, **{"max_tokens": 24} | options))
    assert status == 200, body
    return json.loads(body)


def text_of(answer) -> str:
    return answer["choices"][0]["message"]["content"]


def events(body: bytes) -> list[dict]:
    """The events of a stream, of which the last says that it is done."""
    found = re.findall(r"data: (.*)\n\n", body.decode())
    assert found.pop() == "[DONE]"
    return [json.loads(one) for one in found]


def streamed(port, text, model="travel", **options) -> str:
    status, body = send(port, asking(text, model, stream=True, **{"max_tokens": 24} | options))
    assert status == 200, body
    return "".join(one["choices"][0]["delta"].get("content", "") for one in events(body))


def refused(answer, status: int) -> dict:
    """The error of an *answer*, in OpenAI's form."""
    assert answer[0] == status, answer
    error = json.loads(answer[1])["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    return error


@contextlib.contextmanager
def held_open(port, body):
    """A client that has got the first piece of its answer, and reads no further."""
    data = json.dumps(body | {"stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(head.encode() + data)
        got = b""
        while b"data: " not in got:
            got += line.recv(4096)
        assert b" 200 " in got.splitlines()[0], got
        yield


def soon(true) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def test_the_models_are_the_base_and_its_adapters(served):
    status, body = send(served.port, None, path="/v1/models", method="GET")
    found = json.loads(body)
    assert status == 200 and found["object"] == "list"
    assert [one["id"] for one in found["data"]][:3] == ["base", "travel", "tone"]
    status, body = send(served.port, None, path="/v1/models/tone", method="GET")
    assert json.loads(body) == found["data"][2]
    refused(send(served.port, None, path="/v1/models/no", method="GET"), 404)


@pytest.mark.parametrize("model", ["base", "travel", "tone"])
def test_an_answer_is_that_of_lab_05(served, model):
    adapter = None if model == "base" else serve.adapters_in(served.runs)[model]
    wanted, _, read = alone(served.runs / "onnx", served.questions[0], adapter, 24)
    answer = ask(served.port, served.questions[0], model)
    assert text_of(answer) == wanted == streamed(served.port, served.questions[0], model)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == read and 0 < usage["completion_tokens"] <= 24
    assert usage["total_tokens"] == read + usage["completion_tokens"]
    assert (answer["object"], answer["model"]) == ("chat.completion", model)


def test_ten_clients_that_mix_adapters_get_what_each_gets_alone(served):
    asked = list(zip(served.questions, MIX, strict=False))
    assert len(asked) == 10
    lone = [text_of(ask(served.port, *one)) for one in asked]
    with ThreadPoolExecutor(10) as clients:
        whole = list(clients.map(lambda one: text_of(ask(served.port, *one)), asked))
        pieces = list(clients.map(lambda one: streamed(served.port, *one), asked))
    assert whole == lone == pieces and len(set(lone)) > 5


def test_clients_are_told_of_each_answer_what_it_was(served):
    questions = served.questions[:3]
    bodies = [asking(question, "travel", max_tokens=12) for question in questions]
    heard, rate = ask_together(f"http://127.0.0.1:{served.port}/v1", bodies, lambda: "noted")
    alone = [ask(served.port, question, max_tokens=12) for question in questions]
    assert [one.text for one in heard] == [text_of(answer) for answer in alone]
    assert [one.tokens for one in heard] == [one["usage"]["completion_tokens"] for one in alone]
    assert all(one.first_ms > 0 and one.speed > 0 and one.noted == "noted" for one in heard)
    assert 0 < rate < sum(one.speed for one in heard)


def test_clients_hear_short_answers_and_what_went_wrong(served, monkeypatch):
    body = asking(served.questions[0], "travel", max_tokens=1)
    (heard,), _ = ask_together(f"http://127.0.0.1:{served.port}/v1", [body])
    assert heard.tokens == 1 and heard.first_ms > 0 and heard.speed == 0

    def fails(*_):
        yield ""
        raise RuntimeError("out of luck")

    monkeypatch.setattr(served.engine, "_write", fails)
    with pytest.raises(RuntimeError, match="the server says: "):
        ask_together(f"http://127.0.0.1:{served.port}/v1", [body])


def test_openais_own_client(served, monkeypatch):
    with contextlib.suppress(LabError):  # behind the labs' own, which have the same versions
        monkeypatch.setattr(sys, "path", [*sys.path, str(extra_packages("serve"))])
    openai = pytest.importorskip("openai", reason="run './lab setup --extra serve' first")
    address = f"http://127.0.0.1:{served.port}/v1"
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()][:3] == ["base", "travel", "tone"]

    def answer(one):
        text, model = one
        options = {"max_tokens": 24, "stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**asking(text, model), **options))
        assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])

    asked = list(zip(served.questions, MIX, strict=False))
    with ThreadPoolExecutor(10) as clients:
        together = list(clients.map(answer, asked))
    assert together == [text_of(ask(served.port, *one)) for one in asked]
    whole = client.chat.completions.create(**asking(*asked[0], max_completion_tokens=24))
    assert whole.choices[0].message.content == together[0]
    again = [{"role": "user", "content": "Hi"}, whole.choices[0].message.model_dump()]
    again += [{"role": "user", "content": [{"type": "text", "text": "And then?"}]}]
    assert client.chat.completions.create(model="base", messages=again, max_tokens=3).usage
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.chat.completions.create(**asking("Hi", "gpt-4"))
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**asking("Hi", temperature=7))

    from pydantic import BaseModel

    class Trip(BaseModel):
        city: str
        days: int

    parsed = client.chat.completions.parse(**asking("Two days in Rome"), response_format=Trip)
    assert isinstance(parsed.choices[0].message.parsed, Trip)


def test_a_client_that_hangs_up_frees_its_place(served, monkeypatch):
    monkeypatch.setattr(served.engine, "places", 1)
    with held_open(served.port, asking("Count", response_format=form(LONG))):
        error = refused(send(served.port, asking("Hi")), 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert soon(lambda: served.engine.inside == 0)
    started = time.monotonic()
    assert ask(served.port, "Hi", max_tokens=1)
    assert time.monotonic() - started < 5


def test_a_client_that_waits_and_hangs_up_is_never_answered(served, monkeypatch):
    monkeypatch.setattr(served.engine, "active", 1)
    begun, start = [], served.engine._start
    monkeypatch.setattr(
        served.engine, "_start", lambda *given: begun.append(given[0]) or start(*given)
    )
    with held_open(served.port, asking("Count", "base", response_format=form(LONG))):
        line = http.client.HTTPConnection("127.0.0.1", served.port)
        line.request("POST", CHAT, json.dumps(asking("Hi", "tone")))
        assert soon(lambda: served.engine.inside == 2)
        line.close()
        assert soon(lambda: served.engine.inside == 1)
    assert ask(served.port, "Hi", max_tokens=1) and begun == ["base", "travel"]


def test_a_client_that_hangs_up_on_a_whole_answer_frees_its_place(served):
    line = http.client.HTTPConnection("127.0.0.1", served.port)
    line.request("POST", CHAT, json.dumps(asking("Count", response_format=form(LONG))))
    assert soon(lambda: served.engine.inside == 1)
    line.close()
    assert soon(lambda: served.engine.inside == 0)


def test_the_queue_is_bounded(served, monkeypatch):
    monkeypatch.setattr(served.engine, "active", 1)
    monkeypatch.setattr(served.engine, "places", 3)
    with (
        held_open(served.port, asking("Count", response_format=form(LONG))),
        ThreadPoolExecutor(8) as clients,
    ):
        got = list(clients.map(lambda _: send(served.port, asking("Hi", max_tokens=2)), range(8)))
    statuses = sorted(status for status, _ in got)
    assert statuses == [200] * 2 + [429] * 6
    assert soon(lambda: served.engine.inside == 0)


def test_a_seed_makes_an_answer_reproducible(served):
    def draw(seed):
        return text_of(ask(served.port, "Rome?", temperature=1.2, top_p=0.95, seed=seed))

    assert draw(7) == draw(7) == draw(7 + 2**40 - 2**40)
    assert len({draw(seed) for seed in range(4)}) > 1
    greedy = text_of(ask(served.port, "Rome?"))
    assert greedy == text_of(ask(served.port, "Rome?", temperature=0))
    assert greedy == text_of(ask(served.port, "Rome?", temperature=1e-300, seed=3))


def test_an_answer_ends_before_a_stop_string(served):
    whole = text_of(ask(served.port, served.questions[0], "base"))
    word = whole.split()[4]  # it may begin in one token and end in the next
    for stop in (word, ["no such text", word], whole[10:16]):
        first = stop if isinstance(stop, str) else word
        answer = ask(served.port, served.questions[0], "base", stop=stop)
        assert text_of(answer) == whole[: whole.index(first)]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert streamed(served.port, served.questions[0], "base", stop=stop) == text_of(answer)
    held = whole[-1] + "#"  # begins as the answer ends
    assert text_of(ask(served.port, served.questions[0], "base", stop=held)) == whole


def test_showable_holds_back_what_may_become_a_stop_string():
    assert showable("one tw", ("two",)) == (4, False)
    assert showable("one two", ("two",)) == (4, True)
    assert showable("one two", ("two", "ne")) == (1, True)
    assert showable("aab", ("aabc", "bd")) == (0, False)
    assert showable("one", ()) == (3, False)


TRIP = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("model", ["base", "travel", "tone"])
def test_a_schema_gives_valid_json(served, model):
    options = {"response_format": form(TRIP), "max_tokens": 100}
    answer = ask(served.port, served.questions[1], model, **options)
    found = json.loads(text_of(answer))
    assert found.keys() == {"city", "days"} and found["days"] in (1, 2, 3)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert streamed(served.port, served.questions[1], model, **options) == text_of(answer)


HOSTILE = {
    # what would take all time and memory, end the process, or fail at a later token
    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "no end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "a pattern": {"type": "string", "pattern": "((("},
    "itself": {"$ref": "#"},
}
MORE_HOSTILE = {
    "within": {"type": "object", "properties": {"a": {"type": "array", "maxItems": 10**9}}},
    "too many": {"type": "object", "properties": {f"p{at}": {} for at in range(2200)}},
    "never": {"enum": []},
    "elsewhere": {"$ref": "http://lab.example/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "each other": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "any of itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "all of itself": {"allOf": [{"$ref": "#"}, {"type": "string"}]},
    "not itself": {"not": {"$ref": "#"}},
    "no such place": {"$ref": "#/$defs/none"},
    "no schema there": {"$ref": "#/type", "type": "object"},
    "crossed": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": {"type": "integer"}}} for j in range(6)]}
            for i in range(12)
        ]
    },
    "tiny steps": {"type": "number", "multipleOf": 1e-300},
}
# what refers to itself, or looks hostile, and has an answer
STRANGE = {
    "a list": {"type": "object", "properties": {"next": {"$ref": "#"}}},
    "a tree": {"type": "array", "items": {"$ref": "#"}},
    "a number, or more": {
        "oneOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]
    },
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "many values": {"enum": [f"{'x' * 50}{n}" for n in range(900)]},
}
# ends after 2**30 braces: the answer is cut
DOUBLING = {f"a{n}": {"$ref": f"#/$defs/a{n - 1}"} for n in range(1, 31)}
DOUBLING = {
    "$ref": "#/$defs/a30",
    "$defs": {"a0": {"type": "integer"}}
    | {
        name: {"type": "object", "properties": {"l": below, "r": below}, "required": ["l", "r"]}
        for name, below in DOUBLING.items()
    },
}


def hostile(schemas, *marks):
    return [pytest.param(schema, id=name, marks=marks) for name, schema in schemas.items()]


@pytest.mark.parametrize("schema", hostile(HOSTILE) + hostile(MORE_HOSTILE, pytest.mark.slow))
def test_a_hostile_schema_ends_in_one_error(served, schema):
    answer = send(served.port, asking("Hi", max_tokens=8, response_format=form(schema)))
    assert refused(answer, 400)["param"] == "response_format"
    assert ask(served.port, "Hi", max_tokens=1)


@pytest.mark.parametrize("schema", hostile(STRANGE, pytest.mark.slow))
def test_a_schema_that_refers_to_itself_is_answered(served, schema):
    answer = ask(served.port, "Hi", max_tokens=60, response_format=form(schema))
    assert answer["choices"][0]["finish_reason"] == "length" or json.loads(text_of(answer)) != ""


@pytest.mark.slow
def test_a_schema_of_a_billion_braces_ends_at_the_limit(served):
    answer = ask(served.port, "Hi", max_tokens=24, response_format=form(DOUBLING))
    assert answer["choices"][0]["finish_reason"] == "length" and text_of(answer).startswith("{")


def test_a_schema_that_no_trial_found_ends_the_answer_alone(served, monkeypatch):
    monkeypatch.setattr("labkit.serving.engine.fault_of_schema", lambda *_: "")
    question = asking("Hi", max_tokens=8, response_format=form(HOSTILE["no end"]))
    assert refused(send(served.port, question), 400)["param"] == "response_format"
    status, body = send(served.port, question | {"stream": True})
    assert status in (200, 400) and b"The JSON schema cannot be used" in body
    assert ask(served.port, "Hi", max_tokens=1) and served.engine.inside == 0


def test_it_is_asked_for_by_programs_of_this_machine_alone(served):
    assert send(served.port, asking("Hi", max_tokens=1), Host="localhost:1")[0] == 200
    assert send(served.port, asking("Hi", max_tokens=1), Host="evil.example")[0] == 404
    foreign = {"Origin": "http://evil.example"}
    assert send(served.port, asking("Hi", max_tokens=1), **foreign)[0] == 403
    assert send(served.port, asking("Hi", max_tokens=1), Sec_Fetch_Site="cross-site")[0] == 403


def test_a_token_is_asked_for_on_every_path(served):
    with serving(served.engine, token="schlüssel") as port:
        for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/", "GET")):
            for given in ({}, {"Authorization": "Bearer no"}, {"Authorization": "schlüsse"}):
                answer = send(port, asking("Hi"), path=path, method=method, **given)
                assert refused(answer, 401)["code"] == "invalid_api_key"
        right = {"Authorization": "Bearer schlüssel".encode(), "Host": "lab.example"}
        assert send(port, asking("Hi", max_tokens=1), **right)[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "lab.example", "", "127.0.0.x"])
def test_no_foreign_address_without_a_token(host, monkeypatch):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    with pytest.raises(LabError, match="there is no token"):
        serve.main(["--host", host])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_no_token_but_a_model(host, monkeypatch, runs):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    with pytest.raises(LabError, match="run lab 04 first: .*onnx is missing"):
        serve.main(["--host", host])


def test_a_damaged_adapter_is_named(served, tmp_path):
    wrong = tmp_path / "wrong.onnx_adapter"
    wrong.write_bytes(b"no adapter")
    with pytest.raises(LabError, match="adapters wrong: a file is missing or damaged"):
        Engine(served.runs / "onnx", {"wrong": wrong})


def test_the_command_serves_and_ends_at_one_interrupt(notebook_runs):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "labkit", "serve", "--port", str(port)]
    command += ["--run", str(notebook_runs)]
    env = os.environ | {"LAB_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    how = {"cwd": ROOT, "env": env, "text": True}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **how) as server:
        try:
            said = server.stdout.readline()
            assert said.startswith("serving base, travel, tone")
            assert f" on http://127.0.0.1:{port}/v1" in said
            assert ask(port, "Hi", max_tokens=2)["usage"]["completion_tokens"] == 2
            second = subprocess.run(command, **how)
            assert f"error: port {port} of 127.0.0.1 cannot be opened" in second.stdout
            with held_open(port, asking("Count", response_format=form(LONG))):
                server.send_signal(signal.SIGINT)
                rest = server.communicate(timeout=30)[0]
        finally:
            server.kill()
    assert server.returncode == 0 and "Traceback" not in rest and "+2 tokens" in rest


def bad_requests() -> list[tuple[str, bytes]]:
    """A hundred and more bodies that cannot be answered, each with a name."""
    good = asking("Hi", max_tokens=2)
    wrong = {
        "model": [None, 7, "", "gpt-4", ["base"], {}, "base\0", "../base", "x" * 5000],
        "messages": [
            None,
            [],
            {},
            "Hi",
            [None],
            ["Hi"],
            [{}],
            [[]],
            [{"role": "user"}],
            [{"content": "Hi"}],
            [{"role": "root", "content": "Hi"}],
            [{"role": 3, "content": "Hi"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": 5}],
            [{"role": "user", "content": {"text": "Hi"}}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "assistant", "content": "Hi"}],
            [{"role": "system", "content": "Hi"}],
            [{"role": "user", "content": "word " * 3000}],
            [{"role": "user", "content": "Hi"}] * 300,
        ],
        "max_tokens": [0, -1, 1.5, "9", True, [], 10**400, -(10**400), 1e300],
        "max_completion_tokens": [0, "many", {}, False],
        "temperature": [-1, 2.1, 1e308, "warm", [], True, 10**400],
        "top_p": [0, -0.1, 1.1, "all", {}, 10**400],
        "seed": ["x", 1.5, [], {}, True],
        "stop": [7, "", [""], ["a"] * 5, [["a"]], {}, "x" * 201, [None]],
        "n": [0, 2, -1, "1", 10**9],
        "stream": ["yes", 2, []],
        "stream_options": [[], "usage", {"include_usage": "yes"}],
        "logprobs": [True, 1],
        "tools": [[{"type": "function", "function": {"name": "f"}}], "x", 1],
        "logit_bias": [{"50256": -100}],
        "frequency_penalty": [1.0],
        "unheard_of": [1, {"a": 1}],
        "response_format": [
            [],
            "json",
            {},
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {}},
            {"type": "json_schema", "json_schema": {"schema": []}},
            {"type": "json_schema", "json_schema": {"schema": "{}"}},
        ],
    }
    bodies = {
        f"{name}={str(value)[:40]}": json.dumps(good | {name: value}).encode()
        for name, values in wrong.items()
        for value in values
    }
    text = json.dumps(good).encode()
    bodies |= {
        "nothing": b"",
        "no json": b"model=base&messages=Hi",
        "a list": b"[]",
        "null": b"null",
        "a number": b"1e999",
        "cut off": text[:-5],
        "two": text + text,
        "no utf-8": text.replace(b"Hi", b"\xff\xfe\xe9"),
        "utf-16": text.decode().encode("utf-16"),
        "half a character": text.replace(b"Hi", b"\\ud800"),
        "a bad escape": text.replace(b"Hi", b"\\x41"),
        "a control character": text.replace(b"Hi", b"\x01"),
        "NaN": text.replace(b": 2", b": NaN"),
        "Infinity": json.dumps(good | {"temperature": float("inf")}).encode(),
        "deep": b"[" * 20000,
        "deep objects": b'{"a":' * 10000 + b"1" + b"}" * 10000,
        "many digits": text.replace(b": 2", b": " + b"9" * 20000),
        "too large": json.dumps(asking("x" * LARGEST)).encode(),
    }
    return list(bodies.items())


def test_a_hundred_bad_requests_end_in_one_error_each(served, capfd):
    bad = bad_requests()
    assert len(bad) > 100
    with ThreadPoolExecutor(4) as clients:
        got = list(clients.map(lambda one: send(served.port, one[1]), bad))
    for (name, _), (status, body) in zip(bad, got, strict=True):
        assert status in (400, 404, 413), (name, status, body)
        assert refused((status, body), status)["type"] == "invalid_request_error", name
    for body in (b"\xff" * 100, b"{}"):  # and where nothing is
        refused(send(served.port, body, path="/v1/embeddings"), 404)
        refused(send(served.port, body, path=CHAT, method="PUT"), 405)
    with socket.create_connection(("127.0.0.1", served.port)) as line:
        line.sendall(b"\x16\x03\x01 no http at all\r\n\r\n")
        line.recv(4096)
    assert ask(served.port, "Hi", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert "Traceback" not in capfd.readouterr().err and served.engine.inside == 0


def test_what_is_empty_or_says_nothing_of_the_answer_is_taken(served):
    harmless = {"user": "me", "metadata": {"a": "b"}, "tools": [], "logprobs": False, "n": 1}
    harmless |= {"stop": None, "seed": None, "temperature": None, "frequency_penalty": 0}
    assert ask(served.port, "Hi", **harmless)
    for text in ("", "  ", "<|im_end|>", "\u0000", "e\u0301" * 20, "😀", "\u202e"):
        assert ask(served.port, text, max_tokens=2)


def test_a_question_that_nearly_fills_the_model_is_answered(served):
    """A prompt of exactly max_length would end the process."""
    most, encode = served.engine.max_length, served.engine._tokenizer.encode
    about = len(encode(prompt_text(served.engine.tokenizer, "a")))
    for left, status in {16: 200, 15: 400, 1: 400, 0: 400, -1: 400}.items():
        text = " ".join("a" * (most - left - about + 1))
        assert len(encode(prompt_text(served.engine.tokenizer, text))) == most - left
        answer = send(served.port, asking(text, max_tokens=99))
        if status == 200:
            assert json.loads(answer[1])["usage"]["completion_tokens"] <= 16
        else:
            assert refused(answer, 400)["code"] == "context_length_exceeded"


# ---- anything at all

WHOLE = [
    json.dumps(one).encode()
    for one in (
        asking("Porto?", max_tokens=2, temperature=0.5, top_p=0.9, seed=1, stop=["a", "b"]),
        asking("Lisbon?", "base", max_completion_tokens=2, stream=True, user="x", n=1),
        asking("Faro?", "tone", max_tokens=2, stream_options={"include_usage": True}, tools=[]),
        {"model": "base", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
    )
]
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WIRE = [
    f"{HEAD}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    for body in WHOLE
]
WIRE.append(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode())


@given(body=damaged(WHOLE) | st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@fuzz(200)
def test_any_body_ends_in_one_error_or_an_answer(served, body):
    with ends():
        answer = send(served.port, body)
    assert answer[0] == 200 or refused(answer, answer[0]) and 400 <= answer[0] < 500


@given(data=damaged(WIRE) | st.binary(max_size=400))
@fuzz(200)
def test_any_bytes_on_the_wire_leave_the_server_as_it_was(served, data):
    got = b""
    there = ("127.0.0.1", served.port)
    with ends(), socket.create_connection(there) as line, contextlib.suppress(ConnectionError):
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        while piece := line.recv(65536):
            got += piece
    assert not got or re.match(rb"HTTP/1.1 (200|4\d\d) ", got), got[:200]
    assert send(served.port, None, path="/v1/models", method="GET")[0] == 200
    assert soon(lambda: not served.engine.inside)

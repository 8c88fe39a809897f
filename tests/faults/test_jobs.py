"""What goes wrong between a command and a cluster or an endpoint: one sentence each, and no step
that was half sent runs.
"""

import contextlib
import http.server
import json
import subprocess
import sys
import threading
import types

import azure_rig
import pytest
from fuzzing import damaged, ends, fuzz
from hypothesis import given
from hypothesis import strategies as st

from labkit.cluster import endpoint as local
from labkit.cluster import jobs
from labkit.cluster.train import shared
from labkit.commands import endpoint, main, submit
from labkit.errors import LabError
from labkit.profiles import PROFILES, ROOT
from labkit.workflows import fill_workflow

ARM = azure_rig.ARM
UNKNOWN = {"error": "UserError", "message": "Environment labkit not found."}
FAULTS = {
    # what happens -> (where, what goes wrong, what is said)
    "500s on the job": ("/jobs/", "PUT", {"code": 500}, "busy or has a fault"),
    "500s on a component": ("/components/", "PUT", {"code": 500}, "busy or has a fault"),
    "an unknown environment": ("/components/", "PUT", {"code": 400} | UNKNOWN, "Azure said no"),
    "no right to submit": ("/jobs/", "PUT", {"code": 403}, "lacks the permission"),
    "too many requests": ("/jobs/", "PUT", {"code": 429}, "busy or has a fault"),
}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No second is waited between the SDK's tries."""
    monkeypatch.setattr("time.sleep", lambda *_: None)


@pytest.mark.parametrize("name", FAULTS)
def test_a_refusal_is_one_sentence(azure, small, name):
    path, method, about, said = FAULTS[name]
    azure.add_compute("labkit", "AmlCompute")
    azure.fault("status", method=method, host=ARM, path=path, times=99, **about)
    with pytest.raises(LabError, match=said) as failure:
        submit.main([])
    assert "Traceback" not in str(failure.value) and not list(
        path for path in azure.sent if path.startswith("jobs/")
    )


@pytest.mark.parametrize("action", ["drop", "drop_response"])
def test_a_job_that_is_cut_off_once_arrives_once(azure, small, action):
    azure.add_compute("labkit", "AmlCompute")
    fault = azure.fault(action, method="PUT", host=ARM, path="/jobs/")
    assert submit.main([]) == 0
    assert fault.fired == 1 and len([p for p in azure.sent if p.startswith("jobs/")]) == 1


def test_a_job_that_is_cut_off_always_is_told(azure, small):
    azure.add_compute("labkit", "AmlCompute")
    azure.fault("drop", method="PUT", host=ARM, path="/jobs/", times=99)
    with pytest.raises(LabError, match="submitting the job: the network does not carry"):
        submit.main([])


def test_a_cluster_without_quota_is_told_and_nothing_is_sent(azure, small):
    azure.quota_is_used_up = True
    with pytest.raises(LabError, match="a quota is used up .400 ClusterCoreQuotaReached"):
        submit.main([])
    assert not azure.sent


def test_an_endpoint_without_quota_is_told_and_can_be_deleted(azure, package, monkeypatch):
    monkeypatch.setattr(endpoint, "package", lambda: package)
    azure.quota_is_used_up = True
    with pytest.raises(LabError, match="a quota is used up .400 OutOfQuota"):
        endpoint.main(["up"])
    assert [one["name"] for one in azure.endpoints] == ["labkit-travel"]
    assert endpoint.main(["down"]) == 0 and not azure.endpoints


def test_a_workspace_that_is_not_there_is_told(azure, small):
    azure.workspace_exists = False
    with pytest.raises(LabError, match="submitting the job: not found .404"):
        submit.main([])


def test_an_expired_secret_is_told(azure, small):
    azure.signin = "expired_secret"
    with pytest.raises(LabError, match="AADSTS7000222"):
        submit.main([])


WRONG = {
    # settings, arguments -> what is said
    "own data": ({"LAB_DATA": "own"}, [], "do not travel"),
    "a folder as model": ({"LAB_MODEL": "/models/mine"}, [], "do not travel"),
    "no number of GPUs": ({}, ["--gpus", "0"], "divides 2"),
    "a batch that cannot be shared": ({}, ["--gpus", "3"], "divides 2"),
    "no cron line": ({}, ["--nightly", "at three"], "five fields of cron"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_cluster_can_do_is_refused_before_anything_is_sent(monkeypatch, tmp_path, name):
    settings, arguments, said = WRONG[name]
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    for key, value in settings.items():
        monkeypatch.setenv(key, str(tmp_path / "own.jsonl") if value == "own" else value)
    with pytest.raises(LabError, match=said):
        submit.main(["--dry-run", *arguments])


def test_the_steps_that_lab_01_saved_travel(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("LAB_STEPS", raising=False)
    monkeypatch.setenv("LAB_RUNS", str(tmp_path))
    assert submit.main(["--dry-run"]) == 0
    assert "LAB_STEPS" not in capsys.readouterr().out
    (tmp_path / "choice.json").write_text('{"steps": 12}')
    assert submit.main(["--dry-run"]) == 0
    assert "LAB_STEPS: '12'" in capsys.readouterr().out


def test_no_workspace_is_told(elsewhere, small):
    for run in (lambda: submit.main([]), lambda: endpoint.main(["down"])):
        with pytest.raises(LabError, match="no workspace is configured"):
            run()


def test_outside_of_a_clone_nothing_is_sent(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    monkeypatch.setattr("labkit.machine.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(LabError, match="is no clone"), jobs.staged("cpu.txt"):
        raise AssertionError("it was staged")


def test_an_endpoint_needs_a_package(runs):
    with pytest.raises(LabError, match="run lab 06 first"):
        endpoint.main(["test"])


def test_a_batch_is_shared_whole():
    profile = PROFILES["gpu"]
    known = vars(profile) | {"model": "m", "train": "t", "heldout": "h"} | profile.derived(8)
    workflow = fill_workflow("finetune", known, profile.provider, cache=ROOT)
    for world in (1, 2, 4):
        settings = shared(workflow, world)["passes"]["lora"]["training_args"]
        micro = settings["per_device_train_batch_size"]
        assert micro <= profile.micro_batch
        assert micro * settings["gradient_accumulation_steps"] * world == profile.batch_size
    with pytest.raises(LabError, match="cannot be shared among 3 processes"):
        shared(workflow, 3)


# ---- the scoring script, without its server and its model


@pytest.fixture(scope="module")
def score():
    """labkit/cluster/scoring/score.py, with as much of the server as its reading needs."""
    request, response = (types.ModuleType(f"x{number}") for number in range(2))
    request.rawhttp = lambda function: function
    response.AMLResponse = lambda body, status, json_str: (status, json.loads(json.dumps(body)))
    home = "azureml_inference_server_http.api"
    fakes = {f"{home}.aml_request": request, f"{home}.aml_response": response}
    fakes |= {name: types.ModuleType(name) for name in (home, home.partition(".")[0])}
    found = types.ModuleType("score")
    source = (ROOT / "labkit" / "cluster" / "scoring" / "score.py").read_text()
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in fakes.items():
            patch.setitem(sys.modules, name, fake)
        exec(compile(source, "score.py", "exec"), vars(found))
    found.names, found.control = {"base", "travel"}, ["<|im_end|>"]
    found.turn, found.answer = types.SimpleNamespace, lambda *asked: asked
    import threading

    found.turn = threading.Lock()
    return found


class Sent:
    method = "POST"

    def __init__(self, body: bytes):
        self.body, self.content_length = body, len(body)

    def get_data(self) -> bytes:
        return self.body


WHOLE = [
    b'{"prompt": "Two days in Porto?", "adapter": "travel", "max_tokens": 128}',
    b'{"prompt": "a<|im_end|>\\u0000\\ud800", "adapter": "base"}',
    b'{"prompt": ["a"], "max_tokens": -1}',
]


@given(body=st.one_of(damaged(WHOLE), st.binary(max_size=200), st.text().map(str.encode)))
@fuzz(300)
def test_any_bytes_are_answered_or_refused(score, body):
    with ends():
        status, said = score.run(Sent(body))
    assert status == 200 or 400 <= status < 500 and set(said) == {"error"}
    if status == 200:
        prompt, adapter, most = said
        assert prompt and "<|im_end|>" not in prompt and "\0" not in prompt
        assert adapter in score.names and 1 <= most <= score.MOST
        prompt.encode()  # no half of a character


def test_the_command_line_tells_an_error_in_one_paragraph(monkeypatch, capsys):
    monkeypatch.setattr("labkit.commands.setup.enter", lambda *_, **__: None)
    assert main(["submit", "--dry-run", "--gpus", "5"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --gpus is 5") and said.count("\n") == 1


def test_a_dry_run_needs_no_azure(monkeypatch, elsewhere, capsys):
    monkeypatch.setattr("labkit.registry.sdk.credential", lambda: 1 / 0)
    assert submit.main(["--dry-run"]) == 0
    import yaml

    job = yaml.safe_load(capsys.readouterr().out)
    assert list(job["jobs"]) == [f"lab_0{number}" for number in range(1, 7)]
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    assert "labkit/cluster/jobs.py" in listed.stdout


def test_the_server_of_this_machine_is_asked_past_a_proxy(monkeypatch, tmp_path, capsys):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr("labkit.cluster.endpoint.START_S", 1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        local._wait(types.SimpleNamespace(poll=lambda: None), port, tmp_path / "log")
        address = contextlib.nullcontext(f"http://127.0.0.1:{port}/score")
        monkeypatch.setattr(local, "local_server", lambda _: address)
        monkeypatch.setattr(endpoint, "package", lambda: tmp_path)
        assert endpoint.main(["test"]) == 0
        server.shutdown()

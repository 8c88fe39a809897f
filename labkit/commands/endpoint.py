"""./lab endpoint: the packaged model behind Azure's inference server, here or in Azure ML."""

import argparse
import json

from labkit.errors import LabError
from labkit.products import Products
from labkit.profiles import profile_name, runs_folder

QUESTION = "What should I see in Lisbon?"


def main(arguments: list[str]) -> int:
    """Tests, deploys or deletes."""
    parser = argparse.ArgumentParser(
        prog="./lab endpoint",
        description="Serves the package of lab 06 by Azure's inference server.",
    )
    parser.add_argument(
        "what",
        choices=["test", "up", "down"],
        help="answer a question here; deploy to Azure ML; delete that again",
    )
    parser.add_argument("--name", default="labkit-travel", help="of the endpoint")
    parser.add_argument(
        "--event", default="endpoint", help="the event that './lab room down' ends, and this too"
    )
    parser.add_argument("--size", default="Standard_DS3_v2", help="its virtual machine")
    parser.add_argument("--ask", default=QUESTION, metavar="TEXT", help="the question of a test")
    options = parser.parse_args(arguments)
    if options.what == "test":
        return test(options.ask)
    return deploy(options) if options.what == "up" else delete(options.name)


def package():
    """Path of the package of lab 06; LabError where it is not current."""
    products = Products(runs_folder() / profile_name())
    if fault := products.fault("package", hashed=True):
        raise LabError(
            f"run lab 06 first: its product {products.folder / 'package'} {fault}. An endpoint "
            "serves that folder."
        )
    return products.folder / "package"


def test(question: str) -> int:
    """Asks *question* with and without the adapter; 1 where no answer came."""
    from labkit.cluster.endpoint import direct, local_server

    refused, session = False, direct()
    with local_server(package()) as address:
        print(f"Azure's inference server answers on {address}")
        for adapter in "base", "travel":
            sent = {"prompt": question, "adapter": adapter}
            reply = session.post(address, json=sent, timeout=300)
            print(json.dumps(reply.json(), indent=1, ensure_ascii=False))
            refused |= not reply.ok
    return int(refused)


def deploy(options) -> int:
    """Makes the endpoint with its one deployment, and prints how it is asked."""
    from labkit.cluster.endpoint import DEPLOYMENT, entities
    from labkit.registry.azure_errors import azure_errors

    folder = package()
    client, workspace = connected()
    endpoint, deployment = entities(options, folder)
    with azure_errors(f"deploying {options.name}", workspace):
        client.online_endpoints.begin_create_or_update(endpoint).result(timeout=600)
        client.online_deployments.begin_create_or_update(deployment).result(timeout=1800)
        endpoint.traffic = {DEPLOYMENT: 100}
        client.online_endpoints.begin_create_or_update(endpoint).result(timeout=600)
        address = client.online_endpoints.get(options.name).scoring_uri
    print(f"{address}\nIt costs by the hour until './lab endpoint down' deletes it.")
    return 0


def delete(name: str) -> int:
    """Deletes the endpoint *name* with all that it serves."""
    from labkit.registry.azure_errors import azure_errors

    client, workspace = connected()
    with azure_errors(f"deleting {name}", workspace):
        client.online_endpoints.begin_delete(name).result(timeout=600)
    print(f"{name} is deleted")
    return 0


def connected() -> tuple:
    """(client, workspace) of the configured workspace; LabError where none is."""
    from labkit.registry import sdk

    workspace = sdk.require_workspace()
    return sdk.client(sdk.credential(), *workspace), workspace

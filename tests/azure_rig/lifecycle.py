"""The rig itself: how it is started, reset and ended, and what makes a process its client."""

import contextlib
import os
import re
import shlex
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from .computes import Computes
from .install import AZURITE, RigUnavailable, install
from .server import Door, Server
from .services import ACCOUNT, AZURE, BLOB, Cloud
from .traffic import Traffic

FULL = 64 * 2**20  # from this size on, Azurite adds nothing to a file of its store


class Rig(Computes, Cloud, Traffic):
    """Azure on loopback, for as long as the with block lasts.

    with Rig() as rig:
        subprocess.run(command, env=rig.process_env())
        print(rig.requests, rig.refused)
    """

    def __init__(self):
        Cloud.__init__(self)
        Traffic.__init__(self)

    def __enter__(self):
        try:
            import trustme
            from azure.storage.blob import BlobServiceClient
        except ImportError as error:
            raise RigUnavailable(f"the package {error.name} is not installed") from error
        node = install()
        with (
            contextlib.ExitStack() as stack
        ):  # whatever fails below, what was started before it is ended
            self.folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="azure-rig-", ignore_cleanup_errors=True)
                )
            )
            self.ca, key, chain = (
                str(self.folder / name) for name in ("ca.pem", "key.pem", "cert.pem")
            )
            authority = trustme.CA(organization_name="Azure rig of the labs' tests")
            certificate = authority.issue_cert(*AZURE, "localhost", "127.0.0.1")
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
                # past a proxy that the test's own process may be told to use
                use_env_settings=False,
            )
            stack.callback(self.blobs.close)
            self._make_containers()
            server = Server(("127.0.0.1", 0), Door)
            server.rig, server.tls = self, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.tls.load_cert_chain(chain, key)
            self.door = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
            ).start()
            stack.callback(lambda: (self.release(), server.shutdown(), server.server_close()))
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
        command = [
            node,
            "--require",
            str(hook),
            str(AZURITE),
            "--blobPort",
            "0",
            "--location",
            str(home),
            "--cert",
            chain,
        ]
        command += [
            "--key",
            key,
            "--oauth",
            "basic",
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]
        env = self.process_env({"AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.account_key}"})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        azurite = subprocess.Popen(command, cwd=home, env=env, text=True, **pipes)
        stack.callback(
            lambda: (azurite.kill(), azurite.wait(), azurite.stdin.close(), azurite.stdout.close())
        )
        told = ""
        for line in azurite.stdout:
            told += line
            if match := re.search(r"successfully listens on \S+:(\d+)", line):
                self.azurite_port = int(match[1])
                threading.Thread(
                    target=azurite.stdout.read, daemon=True
                ).start()  # a full pipe would stop it
                return
        raise RigUnavailable(f"Azurite did not start: {told.strip()[-600:]}")

    def _write_az(self):
        (self.folder / "bin").mkdir()
        (self.folder / "empty").mkdir()
        az, config = (
            self.folder / "bin" / "az",
            (self.door, self.identity_secret, self.subscription, self.tenant),
        )
        command = [sys.executable, "-IS", str(Path(__file__).with_name("az.py")), *config]
        az.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        az.chmod(0o755)

    def _make_containers(self):
        for container in self.containers.values():
            self.blobs.create_container(container)

    def reset(self):
        """As it was at first: no models, blobs, faults or records, all settings at their defaults.

        Tokens stay valid.
        """
        self.release()
        for container in self.containers.values():
            self.blobs.delete_container(container)
        for file in (self.folder / "blobs" / "__blobstorage__").iterdir():
            with contextlib.suppress(
                FileNotFoundError
            ):  # Azurite deletes it as well, but only every ten minutes
                if file.stat().st_size >= FULL:
                    os.truncate(file, 0)
        self._defaults()
        self._make_containers()
        self.requests.clear()
        self.refused.clear()

    # -- what a client gets

    def _shared(self) -> dict[str, str]:
        proxies = dict.fromkeys(
            ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), self.door
        )
        direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
        trust = dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), self.ca)
        homes = dict.fromkeys(
            ("AZURE_CONFIG_DIR", "AZD_CONFIG_DIR"), str(self.folder / "empty")
        )  # without anyone's sign-in
        quiet = {
            "AZURE_CORE_COLLECT_TELEMETRY": "0",
            "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
            "DO_NOT_TRACK": "1",
        }
        where = {"AZURE_RESOURCE_GROUP": self.group, "AZURE_ML_WORKSPACE": self.workspace}
        return (
            proxies
            | direct
            | trust
            | homes
            | quiet
            | where
            | {"AZURE_SUBSCRIPTION_ID": self.subscription}
        )

    @property
    def env(self) -> dict[str, str]:
        """Variables of a client that signs in as an application, with a secret."""
        account = {
            "AZURE_TENANT_ID": self.tenant,
            "AZURE_CLIENT_ID": self.client_id,
            "AZURE_CLIENT_SECRET": self.client_secret,
        }
        return self._shared() | account

    @property
    def identity_env(self) -> dict[str, str]:
        """Variables of a client on a compute instance, which signs in with its identity."""
        return self._shared() | {
            "MSI_ENDPOINT": f"{self.door}/msi/token",
            "MSI_SECRET": self.identity_secret,
        }

    @property
    def cli_env(self) -> dict[str, str]:
        """Variables of a client that signs in as whoever has signed in to az."""
        return self._shared() | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        }

    def process_env(self, env: dict[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a client process: this one's with *env* (rig.env).

        Its own ways to Azure are taken out, and what switches telemetry off: labs do that.
        """
        own = {
            name: value
            for name, value in os.environ.items()
            if not (_leads_elsewhere(name) or _switches_telemetry_off(name))
        }
        return own | (self.env if env is None else env)

    def apply(self, monkeypatch, env: dict[str, str] | None = None):
        """Makes the test's own process such a client, for clients that are made in it."""
        for name in filter(_leads_elsewhere, list(os.environ)):
            monkeypatch.delenv(name)
        for name, value in (self.env if env is None else env).items():
            if name.upper() == "NO_PROXY":  # where Olive's exporter calls, if a test has woken it
                value += ",mobile.events.data.microsoft.com"
            monkeypatch.setenv(name, value)

    # -- blobs

    @property
    def container(self):
        """ContainerClient of the workspace's blobs, straight to Azurite: no records, no faults."""
        return self.blobs.get_container_client(self.containers["blobstore"])

    def publish(self, folder: Path, name: str, version: str = "1"):
        """Puts *folder* into the catalog: *version* of the model *name* of `azureml`."""
        container, where = (
            self.blobs.get_container_client(self.containers["catalog"]),
            f"{name}/{version}/{folder.name}",
        )
        for file in filter(Path.is_file, sorted(folder.rglob("*"))):
            with file.open("rb") as data:
                container.upload_blob(
                    f"{where}/{file.relative_to(folder).as_posix()}", data, overwrite=True
                )
        properties = {"modelUri": f"https://{BLOB}/{container.container_name}/{where}"}
        body = self._version(
            "azureml://registries/azureml", name, version, properties, {"appid": "azureml"}
        )
        self.catalog.setdefault(name, {})[version] = body


def _switches_telemetry_off(name: str) -> bool:
    return name.endswith("_DISABLE_TELEMETRY") or name == "BUILDKITE"


def _leads_elsewhere(name: str) -> bool:
    """Whether a variable may lead a client past the rig, or Azurite to a database of its own."""
    name = name.upper()
    own = ("AZURE", "AZURITE", "MSI_", "IDENTITY_", "IMDS_", "ARM_")
    return (
        name.startswith(own)
        or name.endswith(("_PROXY", "_CA_BUNDLE"))
        or name in ("SSL_CERT_FILE", "SSL_CERT_DIR")
    )

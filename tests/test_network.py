"""What stands between a client and its server, named: servers on loopback fail as networks do."""

import http.server
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import trustme

from labkit.errors import LabError, network_reason
from labkit.profiles import ROOT
from labkit.registry.azure_errors import azure_errors

SAYS = {
    "certificate": r"certificate is not trusted here \(.*issuer certificate\)"
    ".*SSL_CERT_FILE and REQUESTS_CA_BUNDLE",
    "wrong host": r"certificate is not trusted here \(.*(not valid for|match).*\)",
    "sign-in": "the proxy asks for a sign-in: HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT",
    "proxy gone": "the proxy of HTTPS_PROXY cannot be reached"
    "|the proxy in HTTPS_PROXY, refuses the connection",
    "proxy forbids": "the proxy of HTTPS_PROXY cannot be reached, or refuses",
    "refused": "refuses the connection: its address is wrong",
    "no name": "the name of the server, or of the proxy in HTTPS_PROXY, is not found",
    "silent": "there was no answer in time",
    "cut off": "the connection broke off",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """A server that answers all with {}, and a proxy that asks for a sign-in, or forbids."""

    def do_GET(self):
        if self.server.cuts:
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_HEAD = do_POST = do_GET  # noqa: N815

    def do_CONNECT(self):
        self.send_response(*self.server.connect)
        self.send_header("Proxy-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Fault -> (address to ask, environment of the client); .ca makes the first one trusted."""
    authority, opened = trustme.CA(), []

    def serve(certificate=None, *, connect=(407, "Proxy Authentication Required"), cuts=False):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.connect, server.cuts = connect, cuts
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened.append(server)
        return server.server_port

    def port(*, listens):
        one = socket.create_server(("127.0.0.1", 0))
        number = one.getsockname()[1]
        opened.append(one) if listens else one.close()
        return number

    closed, there = port(listens=False), "https://hub.example"
    path = tmp_path_factory.mktemp("ca") / "company.pem"
    authority.cert_pem.write_to_path(path)
    ok = serve(authority.issue_cert("127.0.0.1"))
    yield SimpleNamespace(
        ca=path,
        ok=f"https://127.0.0.1:{ok}",
        faults={
            "certificate": (f"https://127.0.0.1:{ok}", {}),
            "wrong host": (
                f"https://127.0.0.1:{serve(authority.issue_cert('other.example'))}",
                trusts(path),
            ),
            "sign-in": (there, {"HTTPS_PROXY": f"http://127.0.0.1:{serve()}"}),
            "proxy gone": (there, {"HTTPS_PROXY": f"http://127.0.0.1:{closed}"}),
            "proxy forbids": (
                there,
                {"HTTPS_PROXY": f"http://127.0.0.1:{serve(connect=(403, 'Forbidden'))}"},
            ),
            "refused": (f"https://127.0.0.1:{closed}", {}),
            "no name": ("https://no-such-host.invalid", {}),
            "silent": (f"https://127.0.0.1:{port(listens=True)}", {}),
            "cut off": (
                f"https://127.0.0.1:{serve(authority.issue_cert('127.0.0.1'), cuts=True)}",
                trusts(path),
            ),
        },
    )
    for one in opened:
        one.shutdown() if hasattr(one, "shutdown") and isinstance(
            one, http.server.HTTPServer
        ) else one.close()


def trusts(path):
    return {"SSL_CERT_FILE": str(path), "REQUESTS_CA_BUNDLE": str(path)}


def ask_requests(url):
    import requests

    requests.get(url, timeout=2)


def ask_httpx(url):
    import httpx

    httpx.get(url, timeout=2)


def ask_azure(url):
    from azure.core import PipelineClient
    from azure.core.rest import HttpRequest

    client = PipelineClient(url, retry_total=0, connection_timeout=2, read_timeout=2)
    client.send_request(HttpRequest("GET", url))


def sign_in(url):
    from azure.identity import ClientSecretCredential

    patience = {"retry_total": 0, "connection_timeout": 2, "read_timeout": 2}
    tenant = "11111111-1111-1111-1111-111111111111"
    one = ClientSecretCredential(
        tenant, "x", "y", authority=url, disable_instance_discovery=True, **patience
    )
    one.get_token("https://management.azure.com/.default")


@pytest.fixture
def bare(monkeypatch):
    """No proxy and no certificates of the machine's own."""
    for name in (
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("fault", SAYS)
@pytest.mark.parametrize("ask", [ask_requests, ask_httpx, ask_azure, sign_in])
def test_each_client_and_each_fault_is_told(net, bare, ask, fault):
    url, environment = net.faults[fault]
    for name, value in environment.items():
        bare.setenv(name, value)
    with pytest.raises(Exception) as caught:
        ask(url)
    assert re.search(SAYS[fault], network_reason(caught.value)), (
        network_reason(caught.value),
        caught.value,
    )
    if ask in (ask_azure, sign_in):
        with (
            pytest.raises(
                LabError,
                match=f"opening it: the network does not carry the connection.*({SAYS[fault]})",
            ),
            azure_errors("opening it", ("s", "rg", "ws")),
        ):
            raise caught.value


@pytest.mark.parametrize("fault", ["certificate", "sign-in", "refused", "no name"])
def test_a_model_from_the_hub_says_what_is_in_the_way(net, bare, tmp_path, fault):
    url, environment = net.faults[fault]
    said = fetch(url, tmp_path, environment)
    assert said.startswith(
        "LabError: the model 'a/b' could not be fetched from the Hub ("
    ) and re.search(SAYS[fault], said), said


def test_the_advice_about_certificates_is_right(net, bare, tmp_path):
    for name, value in trusts(net.ca).items():
        bare.setenv(name, value)
    for ask in (ask_requests, ask_httpx, ask_azure):
        ask(net.ok)
    assert "certificate" not in fetch(net.ok, tmp_path, trusts(net.ca))


def fetch(url, home, environment) -> str:
    """What a process of its own says that asks the Hub at *url* for a model."""
    code = "from labkit.models import _from_hub\ntry: _from_hub('a/b')\n"
    code += "except Exception as e: print(f'{type(e).__name__}: {e}')"
    env = (
        os.environ
        | {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
        | environment
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no proxy-407-timeout.json"),
        KeyError("proxy"),
        OSError(28, "No space left on device"),
    ],
)
def test_another_error_has_no_such_reason(error):
    assert network_reason(error) == ""


def test_a_loop_of_causes_ends():
    first, second = OSError("first"), ConnectionRefusedError(111, "Connection refused")
    first.__cause__, second.__cause__ = second, first
    assert "refuses the connection" in network_reason(first)

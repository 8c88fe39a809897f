"""As much of Azure as registering a model needs, on loopback, for unchanged clients.

A client process gets `Rig.env`: a proxy, a certificate authority and a made-up account. Through
the proxy it reaches Azure's host names, and only those: Resource Manager, Entra and the model
catalog are emulated here; blobs are stored by Azurite, Microsoft's own emulator, behind a reverse
proxy. So every request can be looked at (`Rig.requests`), broken
(`Rig.fault`), and none leaves the machine (`Rig.refused`).

It was modelled on the SDK's sources, not on recordings: a change on Azure's side goes unseen.

    def test_it(rig, monkeypatch)        gets the rig as new; `rig.apply(monkeypatch)` makes the
                                         test's own process a client
    python tests/azure_rig COMMAND ...   runs a command that takes the rig for Azure, and tells
                                         what it asked for

fixtures.py   `rig` and `rig_session`, for tests
lifecycle.py  start, reset, a client's environment
install.py    node and Azurite (azurite/ has its lock)
services.py   what the emulated services know and answer
computes.py   instances that are made and deleted, the notebooks' file share
traffic.py    requests: records of them, faults to order
server.py     HTTP, TLS, the proxy; carries the faults out
az.py         what a client takes for the Azure command line
"""

from .fixtures import rig, rig_session
from .install import RigUnavailable
from .lifecycle import Rig
from .services import ACCOUNT, ARM, BLOB, CATALOG, ENTRA

FOREIGN_HOST = 97  # the command line's exit status where something else than Azure was asked for

__all__ = [
    "ACCOUNT",
    "ARM",
    "BLOB",
    "CATALOG",
    "ENTRA",
    "FOREIGN_HOST",
    "Rig",
    "RigUnavailable",
    "rig",
    "rig_session",
]

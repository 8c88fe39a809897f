"""A server whose certificate nobody here has signed is called that, and is not waited for."""

import time

import pytest

import labkit
from labkit.errors import LabError

CERTIFICATE = "the network does not carry the connection: the server's certificate is not trusted"
LONGEST_S = 40


@pytest.mark.parametrize("way", ["env", "identity_env", "cli_env"])
def test_an_unknown_authority_is_not_called_a_missing_sign_in(way, azure, lab, monkeypatch):
    """As an application, on a compute instance, and by 'az login'."""
    azure.apply(monkeypatch, getattr(azure, way))
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name)
    started = time.monotonic()
    with pytest.raises(LabError) as caught:
        labkit.open_registry(lab)
    said, seconds = str(caught.value), time.monotonic() - started
    print(f"{seconds:.1f} s: {said}")
    assert CERTIFICATE in said and "signed in" not in said and seconds < LONGEST_S

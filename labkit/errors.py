"""The one error that labkit raises for something its user can mend, and how a full disk and a
network are told from others.
"""

import errno
import re
import unicodedata

TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # Unicode's bidi classes
NETWORK = (
    # what the libraries say, the first that fits -> what it means and what mends it
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "the server's certificate is not trusted here{}. Where a proxy signs all traffic anew, "
        "name its certificate's file in SSL_CERT_FILE and REQUESTS_CA_BUNDLE",
    ),
    (
        r"Proxy Authentication Required",
        "the proxy asks for a sign-in: HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT",
    ),
    (
        r"ProxyError|nable to connect to proxy",
        "the proxy of HTTPS_PROXY cannot be reached, or refuses",
    ),
    (
        r"gaierror|Failed to resolve|Name or service not known|failure in name resolution",
        "the name of the server, or of the proxy in HTTPS_PROXY, is not found: there is no "
        "network, or a name is wrong",
    ),
    (
        r"Connection ?refused",
        "the server, or the proxy in HTTPS_PROXY, refuses the connection: its address is "
        "wrong, or a firewall stands between",
    ),
    (
        r"(Connect|Read|Pool)?Timeout(Error)?:|[Rr]ead timed out|\[Errno 110\]",
        "there was no answer in time: a firewall is silent, or the network slow",
    ),
    (
        r"Network is unreachable|No route to host",
        "there is no way to the server: this machine has no network",
    ),
    (
        r"Connection ?(reset|aborted)|RemoteDisconnected|RemoteProtocolError|IncompleteRead",
        "the connection broke off",
    ),
)


class LabError(RuntimeError):
    """Says in one paragraph what happened and what to do next.

    Control characters of a name, a record or a log are written as :func:`plain` does.
    """

    def __init__(self, text: str):
        super().__init__(plain(text))

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: an attendee needs the paragraph, not forty frames of ours.
        return [f"LabError: {self}"]


def plain(text: str) -> str:
    """*text* with what a terminal would obey, and what no encoding can write, as Python writes it.

    These are control characters but for line breaks and tabs, marks that turn the direction of
    writing, and halves of characters.
    """
    return "".join(
        letter
        if letter in "\n\t"
        or unicodedata.category(letter) not in ("Cc", "Cs")
        and unicodedata.bidirectional(letter) not in TURNS
        else ascii(letter)[1:-1]
        for letter in text
    )


def disk_is_full(error: Exception) -> bool:
    """Whether *error* says that no space is left; shutil.copytree hides that in the text of an
    error without a number.
    """
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT) or f"[Errno {errno.ENOSPC}]" in str(error)
    )


def network_reason(error: BaseException) -> str:
    """What kept *error* from its server, and what mends that; "" where it was no network.

    It comes without the last full stop.     Libraries wrap such errors two or three times, and
    their names do not tell a proxy from a certificate.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    said = "\n".join(f"{type(one).__name__}: {one}" for one in chain)
    for pattern, meaning in NETWORK:
        if re.search(pattern, said):
            detail = re.search(r"certificate verify failed: ([^(\n]+)", said)
            return meaning.format(f" ({detail[1].strip()})" if detail else "")
    return ""

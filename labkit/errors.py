"""The one error that labkit raises for something its user can mend, and how a full disk and a
network are told from others.
"""

import re
import shutil
import unicodedata
from pathlib import Path

DISK = (
    # what the system and the libraries say -> what it means and what mends it
    (
        r"No space left on device|Errno 28\b|os error 28\b|Not enough disk space",
        "is full. Free some space ('./lab reset' deletes all outputs of this folder), or set "
        "LAB_RUNS to a folder on a larger disk",
    ),
    (
        r"Disk quota exceeded|Errno 122\b|os error 122\b",
        "takes no more of your files: your quota is used up. Delete some ('./lab reset' deletes "
        "all outputs of this folder), or set LAB_RUNS to a folder on another disk",
    ),
    (
        r"Read-only file system|Errno 30\b|os error 30\b",
        "is read-only. Mount it for writing, or set LAB_RUNS to a folder that you may write to",
    ),
)

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


def disk_reason(error: BaseException, *, log: str = "", folder: Path | None = None) -> str:
    """What keeps the disk from taking a file, and what mends that; "" where it was no disk.

    It continues "the disk that holds ..." and comes without the last full stop. Looked for in
    *error* and its causes, and in the text of a *log*: libraries wrap such errors, and Olive only
    logs them. Some (torch.save) say nothing of the disk: then it counts whether the disk of
    *folder* has room for one more MB.
    """
    said = f"{_chain(error)}\n{log}"
    found = next((meaning for pattern, meaning in DISK if re.search(pattern, said)), "")
    if not found and folder and folder.exists() and shutil.disk_usage(folder).free < 10**6:
        found = DISK[0][1]
    return found


def file_problem(error: BaseException) -> str:
    """One paragraph on what a disk or a folder has refused to the program; "" for other errors."""
    where = getattr(error, "filename", None) or "this file"
    if reason := disk_reason(error):
        return f"the disk that holds {where} {reason}. Then run it again."
    if isinstance(error, PermissionError) and error.filename:
        return (
            f"{where} may not be read or written by you ({error.strerror}). Set LAB_RUNS to a "
            "folder that you may write to, or ask its owner."
        )
    return ""


def disk_is_full(error: BaseException) -> bool:
    """Whether *error*, or what caused it, says that no space is left on the disk."""
    return disk_reason(error) in (DISK[0][1], DISK[1][1])


def network_reason(error: BaseException) -> str:
    """What kept *error* from its server, and what mends that; "" where it was no network.

    It comes without the last full stop. Libraries wrap such errors two or three times, and their
    names do not tell a proxy from a certificate.
    """
    said = _chain(error)
    for pattern, meaning in NETWORK:
        if re.search(pattern, said):
            detail = re.search(r"certificate verify failed: ([^(\n]+)", said)
            return meaning.format(f" ({detail[1].strip()})" if detail else "")
    return ""


def _chain(error: BaseException | None) -> str:
    """*error* and what it was raised from or while handling, a line each."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return "\n".join(f"{type(one).__name__}: {one}" for one in chain)

"""HTTP: the proxy that clients use, and behind it Azure's hosts; faults are carried out here."""

import contextlib
import http.client
import json
import socket
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from .services import AZURE, BLOB, METADATA, Call, Fail
from .traffic import Record

PIECE = (
    256 * 1024
)  # bodies pass through in pieces of this size: models of gigabytes must not be held in memory
PER_CONNECTION = (
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "content-length",
)  # not passed on


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def handle_error(self, request, client_address):
        if not isinstance(
            sys.exception(), OSError
        ):  # a client that goes away is nothing to tell of
            super().handle_error(request, client_address)


class Broken(Exception):  # noqa: N818
    """The connection is to be closed as it is."""


class Service(BaseHTTPRequestHandler):
    """Azure's hosts, inside the encrypted connection.

    Records requests, breaks them as told, emulates or forwards them.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self):
        rig, (path, _, query) = self.server.rig, self.path.partition("?")
        host = self.headers.get("Host", "").partition(":")[0].lower()
        self.record, self.upstream = Record(self.command, host, unquote(path), query), None
        self.fault = rig.record(self.record, breakable=host in AZURE)
        action, args = (self.fault.action, self.fault.args) if self.fault else ("", {})
        try:
            if action == "stall":
                self.fault.over.wait(args.get("seconds", 3600))
            if action in ("stall", "drop"):
                raise Broken
            answer = (
                self.refuse(**args)
                if action == "status"
                else self.forward()
                if host == BLOB
                else self.emulate()
            )
            if action == "drop_response":
                raise Broken
            self.send(*answer)
        except (Broken, OSError):
            # a reset instead of an orderly end, as when a machine or a line between goes away
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.close_connection = True
        finally:
            if self.upstream:
                self.upstream.close()

    def do_GET(self):
        self.serve()

    do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def log_message(self, *_):
        """Requests are recorded, not printed."""

    # -- bodies

    @property
    def chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def body(self):
        """The request's body in pieces, as it comes in."""
        for piece in self.metered("request", self.incoming()):
            self.record.sent += len(piece)
            yield piece

    def incoming(self):
        sizes = [int(self.headers.get("Content-Length") or 0)]
        if self.chunked:
            sizes = iter(lambda: int(self.rfile.readline().partition(b";")[0], 16), 0)
        try:
            for size in sizes:
                while size:
                    if not (piece := self.rfile.read(min(size, PIECE))):
                        raise Broken  # the client went away
                    size -= len(piece)
                    yield piece
                if self.chunked:
                    self.rfile.readline()
            while self.chunked and self.rfile.readline().strip():  # what may follow the last chunk
                pass
        except (OSError, ValueError) as error:
            raise Broken from error

    def metered(self, side: str, pieces):
        """*pieces* of a request's or response's body, cut off or slowed down as a fault wants."""
        action, args = (self.fault.action, self.fault.args) if self.fault else ("", {})
        rate, left = args["rate"] if action == "slow" else None, None
        if action == "cut_body":
            has_body = self.chunked or int(self.headers.get("Content-Length") or 0)
            left = args["after"] if side == ("request" if has_body else "response") else None
        for piece in pieces:
            step = max(1, int(rate / 10)) if rate else len(piece)
            for part in (piece[start : start + step] for start in range(0, len(piece), step or 1)):
                if left is not None:
                    part = part[:left]
                    left -= len(part)
                if part:
                    yield part
                if left == 0:
                    raise Broken
                if rate:
                    self.fault.over.wait(len(part) / rate)

    def send(
        self, status: int, headers: dict, pieces, size: int | None, reason: str | None = None
    ):
        """Answers with *pieces* of *size* bytes together; in chunks where that is not known."""
        self.record.status = status
        bare = self.command == "HEAD" or status in (204, 304)
        chunked = size is None and not bare
        length = (
            {"Transfer-Encoding": "chunked"}
            if chunked
            else {"Content-Length": None if status == 204 else size}
        )
        self.send_response_only(status, reason)
        for name, value in (headers | length).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        for piece in () if bare else self.metered("response", pieces):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    # -- answers: (status, headers, pieces of the body, its size, reason)

    def emulate(self) -> tuple:
        body, record = b"".join(self.body()), self.record
        query = {key: values[-1] for key, values in parse_qs(record.query).items()}
        try:
            with self.server.rig.busy:  # one at a time: each request is a transaction
                answer = self.server.rig.answer(
                    Call(record.method, record.host, record.path, query, self.headers, body)
                )
        except Fail as failure:
            answer = failure.answer(record.host)
        except Exception as error:
            # a fault of the rig's own: the client must see it, or it looks like a network's
            answer = Fail(501, "RigFailed", f"{type(error).__name__}: {error}").answer(record.host)
        return self.encode(*answer)

    @staticmethod
    def encode(status: int, payload, headers: dict) -> tuple:
        body = (
            payload
            if isinstance(payload, bytes)
            else b""
            if payload is None
            else json.dumps(payload).encode()
        )
        return status, {"Content-Type": "application/json"} | headers, [body], len(body)

    def refuse(
        self, code: int = 500, error: str = "", message: str = "", headers: dict | None = None
    ) -> tuple:
        """What the fault `status` answers: an error as the host has it, unless told otherwise."""
        for _ in self.body():
            pass
        host = self.record.host
        names = {
            403: "AuthorizationPermissionMismatch" if host == BLOB else "AuthorizationFailed",
            429: "TooManyRequests",
        }
        error, message = (
            error or names.get(code, "InternalServerError"),
            message or f"The rig was told to answer {code}.",
        )
        return self.encode(*Fail(code, error, message, headers).answer(host))

    def forward(self) -> tuple:
        """Hands the request on to Azurite as it comes in, and the answer back as it goes out."""
        rig = self.server.rig
        self.upstream = up = http.client.HTTPSConnection(
            "127.0.0.1", rig.azurite_port, context=rig.trusting
        )
        up.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        kept = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in PER_CONNECTION
        }
        length = (
            {"Transfer-Encoding": "chunked"}
            if self.chunked
            else {"Content-Length": self.headers.get("Content-Length")}
        )
        for name, value in (kept | length | {"Connection": "close"}).items():
            if value is not None:
                up.putheader(name, value)
        up.endheaders()
        pieces = self.body()
        try:
            for piece in pieces:
                up.send(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)
            if self.chunked:
                up.send(b"0\r\n\r\n")
        except OSError:  # it has answered already, and does not want the rest
            for _ in pieces:
                pass
        try:
            reply = up.getresponse()
        except http.client.HTTPException as error:
            raise Broken from error
        if (
            reply.status == 403
            and reply.getheader("x-ms-error-code") == "AuthorizationFailure"
            and "sig=" in self.path
        ):
            # Azurite's name for a signature that expired or is wrong; in Azure it is this:
            message = "Server failed to authenticate the request. Signature not valid in the "
            message += "specified time frame, or wrong."
            return self.encode(*Fail(403, "AuthenticationFailed", message).answer(BLOB))
        headers = {
            name: value for name, value in reply.getheaders() if name.lower() not in PER_CONNECTION
        }
        size = reply.getheader("Content-Length")
        return (
            reply.status,
            headers,
            iter(lambda: reply.read(PIECE), b""),
            None if size is None else int(size),
            reply.reason,
        )


class Door(Service):
    """The proxy. It leads to Azure's hosts as the rig has them, and refuses all others.

    Asked without a proxy, it answers as a compute instance's identity service, and tells az what
    to answer.
    """

    def serve(self):
        if self.path.startswith("/"):
            super().serve()
        else:
            self.turn_away(urlsplit(self.path).hostname)

    def do_CONNECT(self):
        self.close_connection = True
        host, _, port = self.path.lower().rpartition(":")
        if host not in AZURE or port != "443":
            return self.turn_away(host)
        self.send_response_only(200, "Connection established")
        self.end_headers()
        with contextlib.suppress(
            OSError
        ):  # whatever ends a connection: both sides are in the records
            tunnel = self.server.tls.wrap_socket(self.connection, server_side=True)
            with contextlib.closing(tunnel):
                Service(tunnel, self.client_address, self.server)

    def turn_away(self, host: str):
        self.close_connection = True
        self.record, self.fault, rig = Record(self.command, host, self.path), None, self.server.rig
        why = "ForeignHost", f"the rig does not let anyone reach {host}"
        if host == METADATA:
            # every sign-in of a virtual machine's asks there: "unreachable" makes it go on at once
            rig.record(self.record, breakable=False)
            why = "unreachable", "the network is unreachable"
        else:
            rig.refused.append(host)
        self.send(*self.encode(*Fail(403, *why, {"Connection": "close"}).answer(host)))

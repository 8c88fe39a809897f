"""./lab page: the model as a folder of static files that a browser runs; --serve serves it."""

import argparse
import asyncio
import contextlib
import importlib
import io
import json
import re
import socket
import sys
from pathlib import Path

from labkit.commands.open import port_number
from labkit.commands.serve import adapters_in
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.folders import half_done_is_deleted
from labkit.weights import one_line, onnx_adapter_weights

# adapter -> product: where its example comes from, and the length of its answers
HELD_OUT = {
    "travel": "heldout.jsonl",
    "tone": "tone-heldout.jsonl",
    "form": "form-heldout.jsonl",
}
# what browsers ask for before they give a page several threads
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",  # asked for anew each time, and sent if it has changed
    "X-Content-Type-Options": "nosniff",
}


def main(arguments: list[str]) -> int:
    """Writes the page, and serves it where told to."""
    parser = argparse.ArgumentParser(
        prog="./lab page", description="Writes the model as a page that a browser runs by itself."
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve it afterwards, on this machine only"
    )
    parser.add_argument(
        "--lan", action="store_true", help="with --serve: for everybody in this network"
    )
    parser.add_argument(
        "--port", type=port_number, default=8765, help="the port, 8765 if none is given"
    )
    options = parser.parse_args(arguments)
    folder = write()
    mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"page {folder}, {mb:,.0f} MB")
    if options.serve or options.lan:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(folder, options.port, lan=options.lan))
    else:
        print(
            "Next: './lab page --serve', and open the address that it prints. Or put the folder "
            "on any host of static files."
        )
    return 0


def write() -> Path:
    """Writes the page of this run's model, anew; its folder."""
    from labkit import load_records
    from labkit.page import library, write_page
    from labkit.profiles import ROOT, resolve_profile
    from labkit.session import Lab

    lab = Lab("09", resolve_profile())
    adapters, records, schemas = adapters_of(lab), {}, {}
    for name, file in HELD_OUT.items():
        if name in adapters:
            records[name] = load_records(lab.path(file))
    if "form" in adapters:
        schemas["form"] = json.loads((ROOT / "data" / "forms.schema.json").read_text())
    out = lab.cleared("page")
    with half_done_is_deleted(out, inside=lab.folder):
        return write_page(
            out,
            onnx_dir=lab.path("onnx"),
            adapters=adapters,
            records=records,
            library=library.fetch(),
            name=lab.profile.model_name,
            schemas=schemas,
        )


def adapters_of(lab) -> dict[str, Path]:
    """Name -> file: the adapters of lab 04, and every other NAME.onnx_adapter of the run.

    Of the others, one that is not current, of another model, damaged, or without a name that an
    address may hold, is left out, which is said. LabError where one of lab 04's is missing.
    """
    found = {
        "travel": lab.path("onnx") / "adapter_weights.onnx_adapter",
        "tone": lab.path("tone.onnx_adapter"),
    }
    for name in adapters_in(lab.folder):
        if name in found:
            continue
        try:
            path = lab.path(f"{name}.onnx_adapter")
            if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == "none":
                raise ValueError("its name needs letters and digits, and is not none")
            if name in HELD_OUT:
                lab.path(HELD_OUT[name])
            onnx_adapter_weights(path)
        except Exception as error:  # ONNX Runtime's own are of no common kind
            print(f"{name}.onnx_adapter is left out: {one_line(error)}")
        else:
            found[name] = path
    return found


async def serve(folder: Path, port: int, *, lan: bool = False) -> None:
    """Serves *folder* until it is interrupted: on loopback, or with *lan* to the whole network."""
    server, port = listen(folder, port, lan=lan)
    host = _address() if lan else "localhost"
    address = f"http://{host}:{port}/"
    if lan:
        print(
            "Everybody in this network can now open the page. Over plain http a browser gives it "
            "one thread, no GPU and no cache, so phones need this server each time; a host with "
            "https has no such limits."
        )
    print(f"{qr_code(address)}\n{address}\nCtrl-C ends it.", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()


def listen(folder: Path, port: int, *, lan: bool = False):
    """(server, port) of *folder*, in the running event loop; 0 is any free port.

    Raises LabError where the port is in use.
    """
    from tornado.httpserver import HTTPServer
    from tornado.web import Application, StaticFileHandler

    class Files(StaticFileHandler):
        def set_extra_headers(self, path):
            for name, value in HEADERS.items():
                self.set_header(name, value)

        @classmethod
        def get_content_version(cls, path):  # else a hash, for which large files are read whole
            status = Path(path).stat()
            return f"{status.st_mtime_ns}-{status.st_size}"

        def prepare(self):
            # a page elsewhere that has its own name resolve to this machine is not answered
            name = self.request.host_name.strip("[]")
            if not lan and name not in ("localhost", "127.0.0.1", "::1"):
                self.send_error(421)

    routes = [("/(.*)", Files, {"path": str(folder), "default_filename": "index.html"})]
    server = HTTPServer(Application(routes, log_function=lambda handler: None))
    try:
        server.listen(port, "" if lan else "127.0.0.1")
    except OSError as error:
        raise LabError(
            f"port {port} cannot be used ({error.strerror}): './lab page --serve --port N' takes "
            "another."
        ) from None
    return server, next(iter(server._sockets.values())).getsockname()[1]


def qr_code(address: str) -> str:
    """The address as blocks of text, where segno is installed; else how to have it."""
    try:
        sys.path.append(str(extra_packages("page")))
    except LabError:
        return "('./lab setup --extra page' lets it show the address as a QR code.)"
    segno = importlib.import_module("segno")
    text = io.StringIO()
    segno.make(address, error="l").terminal(out=text, compact=True)
    return text.getvalue()


def _address() -> str:
    """The address that other machines in the network have for this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an example's address; of UDP, nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()

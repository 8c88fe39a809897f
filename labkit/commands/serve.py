"""./lab serve: the model of the labs behind OpenAI's interface, an adapter for each name."""

import argparse
import asyncio
import ipaddress
import os
import signal
from pathlib import Path

from labkit.commands.open import port_number
from labkit.course import maker
from labkit.errors import LabError


def main(arguments: list[str]) -> int:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="./lab serve", description="Serves the model and its adapters as OpenAI's interface."
    )
    parser.add_argument("--run", metavar="FOLDER", type=Path, help="a run folder, as runs/cpu")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on: this machine's own, if none"
    )
    parser.add_argument("--port", type=port_number, default=8000, help="8000, if none is given")
    parser.add_argument(
        "--token",
        default=os.environ.get("LAB_TOKEN", ""),
        help="what clients must send as their API key; LAB_TOKEN, which nobody else sees, if none",
    )
    options = parser.parse_args(arguments)
    if not options.token and not is_loopback(options.host):
        raise LabError(
            f"{options.host} can be reached by other machines, and there is no token. Set "
            "LAB_TOKEN to a long random text that clients send as their API key, or serve this "
            "machine alone: --host 127.0.0.1."
        )
    from labkit.profiles import profile_name, runs_folder
    from labkit.serving.engine import Engine

    folder = options.run or runs_folder() / profile_name()
    engine = Engine(folder / "onnx", adapters_in(folder))
    asyncio.run(serve(engine, options.host, options.port, options.token))
    return 0


async def serve(engine, host: str, port: int, token: str) -> None:
    """Serves *engine* until this process is interrupted or told to end, and closes it."""
    from labkit.serving.http import listen

    ended, shown = asyncio.Event(), f"[{host}]" if ":" in host else host
    for number in signal.SIGINT, signal.SIGTERM:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        listen(engine, host, port, token)
        print(
            f"serving {', '.join(engine.names)} on http://{shown}:{port}/v1 (Ctrl-C ends it)",
            flush=True,
        )
        await ended.wait()
    except OSError as error:
        raise LabError(
            f"port {port} of {host} cannot be opened ({error.strerror}). Choose another one: "
            "./lab serve --port N."
        ) from None
    finally:
        engine.close()  # while there is a loop that its thread can speak to


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach *host*; a name that is not localhost counts as
    another's.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def adapters_in(folder: Path) -> dict[str, Path]:
    """Name -> file of the adapters that labs made in the run *folder*: "travel", which lies beside
    its model, and NAME.onnx_adapter of all others.

    Those that are no longer current are left out, which is said. LabError without a model.
    """
    from labkit.products import Products

    products = Products(folder)
    if fault := products.fault("onnx", hashed=True):
        raise LabError(
            f"run lab {maker('onnx')} first: its product {folder / 'onnx'} {fault}. Or name "
            "another run folder: ./lab serve --run FOLDER."
        )
    found = {"travel": folder / "onnx" / "adapter_weights.onnx_adapter"}
    for stamp in products.stamps():
        name, dot, kind = stamp.name.rpartition(".")
        if dot and kind == "onnx_adapter":
            if fault := products.fault(stamp.name, hashed=True):
                print(f"{stamp.name} is left out: it {fault}")
            else:
                found[name] = folder / stamp.name
    return found

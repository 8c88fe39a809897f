"""./lab present: the labs for a projector, without prose, and speaker notes beside them."""

import argparse
import os
import sys

from labkit.commands.open import command, port_number
from labkit.course import EXTRAS, LABS, missing, notebook_path
from labkit.presenting import write_notes, write_slides
from labkit.products import Products
from labkit.profiles import ROOT, Profile, resolve_profile, runs_folder, saved_choice


def main(arguments: list[str]) -> int:
    """Becomes JupyterLab on the slides, which prints the addresses of slides and notes."""
    parser = argparse.ArgumentParser(
        prog="./lab present",
        description="Opens the notebooks for a projector: large, without prose; what './lab run' "
        "has made is not made again, but shown from a recording.",
    )
    parser.add_argument("number", metavar="NN", nargs="?", default="01", type=notebook_number)
    parser.add_argument("--blank", action="store_true", help="for typing: what is taught is empty")
    parser.add_argument(
        "--port", type=port_number, default=8888, help="first port to try, 8888 if none is given"
    )
    options = parser.parse_args(arguments)
    profile = resolve_profile(saved=saved_choice())
    products = Products(runs_folder() / profile.name)
    for aside in write_slides(ROOT, blank=options.blank):
        print(f"what you typed the last time is kept as {aside.relative_to(ROOT)}")
    write_notes(ROOT, products)
    print(prepared(products, profile))
    print(
        "JupyterLab starts. Open the addresses that it prints below. Ctrl-C ends it.", flush=True
    )
    os.environ["LAB_PRESENT"] = "1"
    os.chdir(ROOT)
    at = f"/doc/tree/{notebook_path(options.number).relative_to(ROOT)}"
    os.execv(sys.executable, command(ROOT, options.port, at=at))


def notebook_number(text: str) -> str:
    """argparse type: "4" or "04" -> "04", of a lab or an extra."""
    if text.zfill(2) not in LABS | EXTRAS:
        last = max(LABS | EXTRAS)
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no notebook: 01 to {last}")
    return text.zfill(2)


def prepared(products: Products, profile: Profile) -> str:
    """Which labs would make something on stage, in a sentence."""
    current = {stamp.name for stamp in products.stamps() if products.is_current(stamp.name)}
    absent = {lab: missing(lab, current, device=profile.device) for lab in LABS}
    if not any(absent.values()):
        return "Labs 01 to 06 are prepared: their slow steps are shown from recordings."
    named = "; ".join(f"{lab}: {', '.join(names)}" for lab, names in absent.items() if names)
    return f"NOT prepared, and made on stage ({named}). './lab run' prepares them."

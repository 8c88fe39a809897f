"""./lab bundle: a run's products in one file, for './lab catch-up'."""

import argparse
from pathlib import Path

from labkit.bundles import write_bundle
from labkit.course import LABS
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.folders import own
from labkit.products import Products, folder_lock
from labkit.profiles import resolve_profile, runs_folder
from labkit.progress import Progress
from labkit.signing import sign, signature_of


def main(arguments: list[str]) -> int:
    """Packs the labs that have run, and says how to use the file."""
    parser = argparse.ArgumentParser(
        prog="./lab bundle",
        description="Packs what the finished labs have made into one file, for './lab catch-up'.",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="instead of runs/.../bundle.tar")
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="sign it with this private key, into FILE.sig"
    )
    options = parser.parse_args(arguments)
    if options.key:
        extra_packages("sign")  # before minutes are spent
    profile = resolve_profile()
    folder = runs_folder() / profile.name
    own(folder)
    out = (options.out or folder / "bundle.tar").expanduser().absolute()
    ours = out.is_relative_to(folder) and out != folder / "bundle.tar"
    if ours or out.is_dir() or not out.parent.is_dir():
        raise LabError(
            f"{out} cannot be the bundle: it is a folder, lies in none, or among the outputs of "
            "the labs. Name a file of another folder, or leave --out away."
        )
    with folder_lock(folder), Progress() as progress:
        progress.show("pack")
        manifest, fingerprint = write_bundle(Products(folder), profile, out)
        labs = sorted({stamp.lab for stamp in manifest.stamps})
        if options.key:
            progress.show("sign")
            sign(out, options.key, signature_of(out))
        mb = out.stat().st_size / 1e6
        progress.line(
            f"{out}: labs {labs[0]} to {labs[-1]}, {mb:,.0f} MB, fingerprint {fingerprint}"
        )
    last = f"{min(int(labs[-1]) + 1, int(max(LABS))):02}"
    print(
        "Put it where others reach it by https, or on a stick, and tell them:\n"
        f"  ./lab catch-up NN --from FILE_OR_ADDRESS --fingerprint {fingerprint}\n"
        f"NN is the lab that they go on with, 02 to {last}."
    )
    if options.key:
        print(
            f"Put {signature_of(out).name} beside it, and give them the public key in another "
            "way: they add --key PUBLIC.pem."
        )
    return 0

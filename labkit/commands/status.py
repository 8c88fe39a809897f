"""./lab status: which labs are complete."""

import argparse
import re

from labkit import course
from labkit.commands import run
from labkit.products import Products
from labkit.profiles import Profile, resolve_profile, runs_folder
from labkit.summary import Records


def main(arguments: list[str]) -> int:
    """Prints a line per lab."""
    argparse.ArgumentParser(
        prog="./lab status", description="Says which labs are complete."
    ).parse_args(arguments)
    profile = resolve_profile()
    products = Products(runs_folder() / profile.name)
    print(f"outputs in {products.folder}\n\n{'lab':14}{'state':12}{'seconds':>8}")
    for number, lab in course.LABS.items():
        made = sum(stamp.seconds for stamp in products.stamps() if stamp.lab == number)
        executed = products.stamp(run.executed(number))
        seconds = executed.seconds if executed else made
        now = state(products, profile, number)
        print(
            f"{number + ' ' + lab.name:14}{now:12}"
            f"{f'{seconds:.1f}' if seconds and now != 'not run' else '':>8}"
        )
    return 0


def state(products: Products, profile: Profile, number: str) -> str:
    """complete: by `./lab run`, or with all checkpoints passed in a notebook; else one of three.

    stale: what it was made from has changed since; incomplete: begun; not run.
    """
    if run.unchanged(products, profile, number):
        return "complete"
    text = course.notebook_path(number).read_text(encoding="utf-8")
    wanted = set(re.findall(r'lab\.checkpoint\((?:\\n",\s*")?\s*\\"(\d\.\d)\\"', text))
    passed = Records(products).checkpoints(number)
    if wanted and wanted <= passed and run.is_made(products, profile, number):
        return "complete"
    if products.stamp(run.executed(number)):
        return "stale"
    begun = any(stamp.lab == number for stamp in products.stamps())
    failed = list((products.folder / "notebooks").glob(f"{number}_*.failed.ipynb"))
    return "incomplete" if begun or failed or passed else "not run"

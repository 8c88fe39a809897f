"""./lab room: a compute instance in Azure ML for each attendee: plan, up, status, down."""

import argparse
import re
from pathlib import Path

from labkit.commands import agreed, lab_number
from labkit.errors import LabError
from labkit.machine import git, git_commit
from labkit.progress import Progress
from labkit.room.attendees import check_event, read_attendees
from labkit.room.prices import EXAMPLE, read_prices
from labkit.room.script import Setup


def main(arguments: list[str]) -> int:
    """Does one of the four, and prints a row for each attendee; 1 where a row is not as it should
    be.
    """
    options = _options(arguments)
    if options.what == "plan":
        return _plan(options)
    from labkit.room.workspace import Room  # loads Azure's libraries

    if options.what == "down":
        check_event(options.event)
        prices = read_prices(options.prices)
        return _down(Room(options.event), prices, options.yes)
    attendees = read_attendees(options.csv, options.event)
    if options.what == "up":
        script = _setup(options).script()
        room = Room(options.event)
        with Progress() as progress:
            progress.show(f"make {len(attendees)} instances")
            rows = room.up(attendees, size=options.size, stop=options.stop, script=script)
    else:
        rows = Room(options.event).status(attendees)
    _show(rows)
    bad = [row for row in rows if not row.ok]
    print(f"{len(rows) - len(bad)} of {len(rows)} as they should be")
    return int(bool(bad))


def _plan(options) -> int:
    attendees = read_attendees(options.csv, options.event)
    prices, setup = read_prices(options.prices), _setup(options)
    price = prices.of(options.size)
    if price is None:
        raise LabError(
            f"{options.prices} has no price for {options.size}. Add it, or name another file with "
            "--prices or another machine with --size."
        )
    for attendee in attendees:
        print(f"{attendee.name:24.24} {attendee.compute:24} {options.size}")
    count, hours = len(attendees), options.hours
    print(f"repository {setup.repository}, {setup.ref}; each day {options.stop} UTC all stop")
    if setup.bundle:
        print(f"bundle {setup.bundle.partition('?')[0]}")
    total = count * hours * price
    print(f"{count} instances x {hours:g} h x {price} = {total:,.2f} {prices.currency}")
    print(f"prices: {prices}")
    print(
        "Disks, load balancers and storage come on top, until './lab room down'. Nothing was "
        "asked of Azure."
    )
    return 0


def _down(room, prices, yes: bool) -> int:
    things = room.things()
    for kind, name in things:
        print(f"of {room.event}: {kind} {name}")
    if things and not (yes or agreed("room down", f"delete these {len(things)}?")):
        print("nothing was deleted")
        return 1
    rows = room.down(things)
    _show(rows)
    costs = room.costs(prices)
    print("\nWhat costs money in this workspace now, whoever made it:")
    print("\n".join(costs or ["nothing by the hour"]))
    print(f"prices: {prices}")
    return int(any(not row.ok for row in rows))


def _show(rows) -> None:
    for row in rows:
        print(f"{row.who:24.24} {row.what:24} {row.state:12} {row.note}".rstrip())


def _setup(options) -> Setup:
    repository = options.repository or git("config", "--get", "remote.origin.url").stdout.strip()
    ref = options.ref
    if not ref:
        commit = git_commit()
        ref = "" if commit == "unknown" else commit.rstrip("+")
        if commit.endswith("+"):
            print("files of this clone were changed since its last commit: instances get that one")
        if not git("branch", "--remotes", "--contains", ref).stdout:
            print("no branch that was pushed has this clone's last commit: push it first")
    lab = options.catch_up or ""
    setup = Setup(repository, ref, options.bundle, options.fingerprint.lower(), lab)
    setup.check()
    return setup


def _options(arguments: list[str]):
    parser = argparse.ArgumentParser(
        prog="./lab room", description="A compute instance in Azure ML for each line of a CSV."
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="plan|up|status|down")
    texts = {
        "plan": "names and cost; asks nothing of Azure",
        "up": "make what is missing, start what is stopped, wait for all",
        "status": "how each attendee's instance is",
        "down": "delete all of the event, and list what still costs money",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        if name != "down":
            command.add_argument("csv", type=Path, help="name,object_id[,tenant_id]")
        command.add_argument("--event", required=True, help="names all that is made for it")
        if name in ("plan", "down"):
            command.add_argument("--prices", type=Path, default=EXAMPLE, metavar="FILE")
        if name == "down":
            command.add_argument("--yes", action="store_true", help="do not ask")
        if name == "plan":
            command.add_argument("--hours", type=_hours, default=8, help="that each runs")
        if name in ("plan", "up"):
            command.add_argument("--size", default="Standard_DS3_v2", help="virtual machine")
            command.add_argument("--stop", type=_time, required=True, metavar="HH:MM", help="UTC")
            command.add_argument("--repository", default="", help="https; this clone's origin")
            command.add_argument("--ref", default="", help="this clone's commit")
            command.add_argument("--bundle", default="", metavar="ADDRESS")
            command.add_argument("--fingerprint", default="", metavar="HEX")
            command.add_argument("--catch-up", type=lab_number, metavar="NN")
    return parser.parse_args(arguments)


def _time(text: str) -> str:
    if not re.fullmatch("([01][0-9]|2[0-3]):[0-5][0-9]", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no time such as 17:30")
    return text


def _hours(text: str) -> float:
    if not re.fullmatch(r"\d{1,4}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of hours")
    return float(text)

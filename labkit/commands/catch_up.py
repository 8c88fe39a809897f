"""./lab catch-up: what the labs before one have made, from a bundle of somebody else's run."""

import argparse
import contextlib
import hashlib
import shutil
from pathlib import Path

from labkit.bundles import BundleError, take_bundle
from labkit.commands import lab_number
from labkit.course import notebook_path
from labkit.errors import LabError, disk_is_full, network_reason, plain
from labkit.extras import extra_packages
from labkit.folders import own, remove
from labkit.products import Products, folder_lock
from labkit.profiles import ROOT, resolve_profile, runs_folder
from labkit.progress import Progress, report
from labkit.signing import check_signature

TRIES, QUIET = 5, 30  # how often a download goes on, and after how many seconds of silence
SIGNATURE = 2**20  # bytes at most; one has some thousand
CHUNK = 2**16  # bytes; what has come of the last one is lost where a download breaks off


def main(arguments: list[str]) -> int:
    """Takes the products of the labs before one from a bundle."""
    parser = argparse.ArgumentParser(
        prog="./lab catch-up",
        description="Takes all that the labs before lab NN make from a file of './lab bundle'.",
    )
    parser.add_argument("number", metavar="NN", type=lab_number, help="the lab to go on with")
    parser.add_argument(
        "--from", dest="source", metavar="FILE_OR_ADDRESS", required=True, help="the bundle"
    )
    parser.add_argument(
        "--fingerprint", default="", metavar="HEX", help="what './lab bundle' printed: is it that?"
    )
    parser.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        help="the public key that must have signed it; the signature lies beside it, with .sig",
    )
    parser.add_argument(
        "--replace", action="store_true", help="give up what was made here in another way"
    )
    options = parser.parse_args(arguments)
    if options.number == "01":
        raise LabError("there is nothing to catch up with before lab 01. Open it.")
    if options.key:
        extra_packages("sign")  # before a download
        if not options.key.is_file():
            raise LabError(
                f"there is no file {options.key}. Name the public key of the instructor."
            )
    profile = resolve_profile()
    folder = runs_folder() / profile.name
    own(folder)
    with folder_lock(folder), Progress() as progress:
        progress.show("fetch the bundle")
        bundle = _found(options.source, folder)
        progress.show("check and unpack")
        try:
            if options.key:
                _check_signature(bundle, options.source, options.key, folder)
            taken = take_bundle(
                bundle,
                options.number,
                Products(folder),
                profile,
                fingerprint=options.fingerprint,
                replace=options.replace,
            )
        except BundleError:
            _drop_download(bundle, folder)
            raise
        _drop_download(bundle, folder)
        progress.line("")
    mb = sum(stamp.mb for stamp in taken)
    print(
        f"all that the labs before {options.number} make is in {folder}: {len(taken)} products, "
        f"{mb:,.0f} MB. Go on with {notebook_path(options.number).relative_to(ROOT)}; in a "
        "notebook that is open, restart the kernel."
    )
    return 0


def _found(source: str, folder: Path, most: int | None = None) -> Path:
    """The file at *source*, fetched into *folder* where that is an address.

    LabError where its server announces more than *most* bytes.
    """
    if source.lower().startswith(("http://", "https://")):
        return _fetch(source, folder, most)
    with contextlib.suppress(RuntimeError):  # a home that nobody has
        source = str(Path(source).expanduser())
    if not Path(source).is_file():
        raise LabError(
            f"there is no file {source}. Name that of './lab bundle', or its https address."
        )
    return Path(source)


def _check_signature(bundle: Path, source: str, key: Path, folder: Path) -> None:
    """BundleError unless the file beside *source* is its signature, by the owner of *key*."""
    address, mark, query = source, "", ""
    if source.lower().startswith(("http://", "https://")):  # which may end in a SAS
        address, mark, query = source.partition("?")
    beside = _found(f"{address}.sig{mark}{query}", folder, SIGNATURE)
    try:
        check_signature(bundle, key, beside)
    except LabError as error:
        raise BundleError(str(error)) from error
    finally:
        _drop_download(beside, folder)


def _drop_download(bundle: Path, folder: Path) -> None:
    if bundle.parent == folder and bundle.suffix == ".part":
        remove(bundle, inside=folder)


def _fetch(address: str, folder: Path, most: int | None) -> Path:
    """The file of that *address*, in *folder*; a download that broke off goes on there."""
    import requests

    part = folder / f".catch-up-{hashlib.sha256(address.encode()).hexdigest()[:12]}.part"
    if part.is_symlink() or not part.is_file():  # nothing is written through a link
        remove(part, inside=folder)
    error = None
    for _ in range(TRIES):
        try:
            if _went_on(requests, address, part, most):
                return part
        except (ValueError, requests.TooManyRedirects) as one:  # requests' InvalidURL is the first
            raise LabError(
                f"the bundle could not be fetched: {address} is no address that leads to a file "
                f"({type(one).__name__}). Check it."
            ) from one
        except requests.RequestException as one:
            error = one
        except OSError as one:
            if disk_is_full(one):
                remove(part, inside=folder)  # else it keeps the disk full
            raise
    raise LabError(
        f"the bundle could not be fetched ({network_reason(error) or type(error).__name__}). Run "
        "this again: it goes on where it was. Or ask for the bundle on a stick."
    ) from error


def _went_on(requests, address: str, part: Path, most: int | None) -> bool:
    """Whether the rest of the file is there now."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(address, headers=headers, stream=True, timeout=QUIET) as answer:
        if answer.status_code == 416 and have:  # there is no rest
            return True
        if answer.status_code not in (200, 206):
            raise LabError(
                f"the bundle could not be fetched: the server answers {answer.status_code} "
                f"{plain(answer.reason or '')}. Check the address; a signed one may have expired."
            )
        if answer.status_code == 200:  # from its start
            have = 0
        length = answer.headers.get("Content-Length") or ""
        size = have + (int(length) if length.isdecimal() else 0)
        if size == have:
            raise LabError(
                "the bundle was not fetched: the server does not say how large it is. Ask for "
                "another address."
            )
        if most and size > most:
            raise LabError(
                f"the signature was not fetched: what lies beside the bundle has {size:,} bytes, "
                "and a signature some thousand. Ask for the right file, NAME.sig."
            )
        free = shutil.disk_usage(part.parent).free
        if 2 * size - have > free:  # once as a file, once unpacked
            raise LabError(
                f"the bundle was not fetched: it has {size / 1e6:,.0f} MB and needs twice that; "
                f"{part.parent} has {free / 1e6:,.0f} MB free. Set LAB_RUNS to a folder on a "
                "larger disk."
            )
        with open(part, "ab" if have else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                have += len(chunk)
                report("MB", have / 1e6, size / 1e6)
                if have > size:
                    break
    return have >= size

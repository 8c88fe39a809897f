"""A run's products in one file, for those who come late or whose kernel died.

A bundle is a tar archive, not compressed, for weights do not shrink. Its first member is
manifest.json: the stamps of the products and the records of the labs. The files follow, lab by
lab. Nothing in it is believed: all of it is checked before any of it is put in place, and of it
only files that the manifest names, whose products are those of the labs.
"""

import contextlib
import hashlib
import io
import json
import re
import shutil
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.course import LABS, maker, missing
from labkit.errors import LabError
from labkit.files import files_of, has_mark
from labkit.folders import half_done_is_deleted, remove
from labkit.machine import git_commit, versions
from labkit.passes import VERSION
from labkit.products import Products, Stamp, first_difference
from labkit.profiles import Profile
from labkit.progress import report
from labkit.state import STRICT, parse_state, write_state
from labkit.summary import Record, Records

FORMAT, MANIFEST = 1, "manifest.json"
SAFE = r"[\w+@-][\w.+@-]*(/[\w+@-][\w.+@-]*)*"  # of a file: nothing hidden, and no way out
MOST_FILES = 10_000
CHUNK = 2**20  # bytes that are read at once


class BundleError(LabError):
    """A bundle is not what it should be: to fetch the rest of it, or the same again, is no use."""


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds; *commit* is that of the clone which made it."""

    __pydantic_config__ = STRICT

    format: int
    commit: str
    profile: str
    stamps: tuple[Stamp, ...]
    records: dict[str, Record]


def write_bundle(products: Products, profile: Profile, out: Path) -> tuple[Manifest, str]:
    """Packs into the file *out* all that the finished labs have made.

    Returns the manifest and its fingerprint. Raises LabError where no lab has run.
    """
    stamps = _finished(products, profile)
    if not stamps:
        raise LabError("there is nothing to pack yet. Run './lab run', or lab 01, first.")
    records = {lab: Records(products).of(lab) for lab in sorted({one.lab for one in stamps})}
    manifest = Manifest(FORMAT, git_commit(), profile.name, tuple(stamps), records)
    text = json.dumps(asdict(manifest)).encode()
    aside = out.with_name(f".{out.name}.new")
    done, total = 0.0, sum(stamp.mb for stamp in stamps)
    try:
        with tarfile.open(aside, "w", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(_header(MANIFEST, len(text)), io.BytesIO(text))
            for stamp in stamps:
                for part, path in files_of(products.folder / stamp.name).items():
                    with open(path, "rb") as file:
                        size = stamp.files[part].bytes
                        tar.addfile(_header(_name(stamp, part), size), file)
                report("MB", done := done + stamp.mb, total)
        aside.replace(out)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return manifest, _fingerprint(text)


def take_bundle(
    bundle: Path,
    number: str,
    products: Products,
    profile: Profile,
    *,
    fingerprint: str = "",
    replace: bool = False,
) -> list[Stamp]:
    """Puts the products of the labs before lab *number* from the file *bundle* into their place.

    The caller holds the folder. They must serve the model and the data of *profile*;
    *fingerprint* is that of the manifest, where it is known. Returns the stamps. Raises LabError,
    before anything is changed, for a bundle that is damaged, hostile, of other versions or other
    settings, or without that lab; and where a product that is there was made in another way or
    edited, unless *replace*. Products are put in place one by one, in their order: a call that is
    cut off then is completed by another.
    """
    aside = products.folder / ".catch-up"
    remove(aside, inside=products.folder)
    with half_done_is_deleted(aside, inside=products.folder), _open(bundle) as tar:
        manifest = _manifest(tar, fingerprint)
        wanted = _checked(manifest, number, profile)
        if not replace:
            _refuse_to_replace(products, wanted)
        _extract(tar, manifest, wanted, aside)
    records = products.folder / "records"
    if records.is_symlink():  # nothing is written through a link
        remove(records, inside=products.folder)
    for stamp in wanted:
        products.take(stamp, aside / stamp.name)
    for lab in LABS.keys() & manifest.records.keys():
        if lab < number:
            write_state(records / f"{lab}.json", manifest.records[lab])
    remove(aside, inside=products.folder)
    return wanted


def _finished(products: Products, profile: Profile) -> list[Stamp]:
    """The stamps of what the labs have made, up to the first that has not run, in their order."""
    found: list[Stamp] = []
    for number in LABS:
        made = missing(number, (), device=profile.device)
        faults = {name: products.fault(name, hashed=True) for name in made}
        if not any(faults.values()):
            found += map(products.stamp, made)
            continue
        for name, fault in faults.items():
            if fault and products.stamp(name):
                raise LabError(
                    f"lab {number} is not finished: {name} {fault}. Run it again, then this."
                )
        break
    return sorted(found, key=lambda stamp: (stamp.lab, stamp.finished))


def _name(stamp: Stamp, part: str) -> str:
    """The archive's name of the file *part* of a product, which is a folder or that one file."""
    return stamp.name if part == stamp.name else f"{stamp.name}/{part}"


def _header(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _fingerprint(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:16]


# ---- reading


class _Member(tarfile.TarInfo):
    """A member that 'bundle' writes: tarfile takes long for other kinds of headers, which may have
    any size.
    """

    def _proc_member(self, tar):
        long_name = self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.type in (*extended, tarfile.GNUTYPE_SPARSE) or long_name and self.size > 1024:
            raise tarfile.ReadError("a header of another kind")
        return super()._proc_member(tar)


@contextlib.contextmanager
def _open(bundle: Path):
    """The archive; whatever tarfile finds wrong with it within the block is a BundleError."""
    try:
        with tarfile.open(bundle, mode="r:", tarinfo=_Member) as tar:
            yield tar
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise _refusal(f"it cannot be read ({error})") from error


def _refusal(why: str) -> BundleError:
    return BundleError(
        f"the bundle was refused, and nothing of it was kept: {why}. Fetch it again, or ask for "
        "one that './lab bundle' has made on your version of the labs."
    )


def _manifest(tar: tarfile.TarFile, fingerprint: str) -> Manifest:
    first = tar.next()
    if first is None or first.name != MANIFEST or not _is_plain(first) or first.size > 16 * CHUNK:
        raise _refusal("it does not begin with a manifest")
    text = tar.extractfile(first).read(first.size)
    if fingerprint and _fingerprint(text) != fingerprint.strip().lower():
        raise _refusal(f"its fingerprint is {_fingerprint(text)}, not {fingerprint}")
    try:
        return parse_state(text, Manifest)
    except (ValueError, LabError) as error:
        raise _refusal("its manifest is not one of these labs") from error


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def _checked(manifest: Manifest, number: str, profile: Profile) -> list[Stamp]:
    """The stamps of the labs before lab *number*, when all that the manifest says of them holds
    together.
    """
    if manifest.format != FORMAT or manifest.profile != profile.name:
        raise _refusal(
            f"it is of format {manifest.format} and of the profile {manifest.profile}, and here "
            f"are {FORMAT} and {profile.name}"
        )
    origin = profile.origin()
    here = {"versions": _comparable(versions()), "labkit": VERSION}
    wanted = [stamp for stamp in manifest.stamps if stamp.lab < number]
    ids = {stamp.name: stamp.id for stamp in wanted}
    if len(ids) < len(wanted) or sum(len(one.files) for one in wanted) > MOST_FILES:
        raise _refusal("it names a product twice, or too many files")
    for stamp in wanted:
        if maker(stamp.name) != stamp.lab or stamp.lab not in LABS:
            raise _refusal(f"lab {stamp.lab} makes no {stamp.name}")
        inside = {str(above) for part in stamp.files for above in Path(part).parents}
        safe = all(re.fullmatch(SAFE, part) for part in stamp.files)
        if not stamp.files or not safe or inside & stamp.files.keys():
            raise _refusal(f"{stamp.name} has no files, or one with a name that leads elsewhere")
        there = {
            "versions": _comparable(stamp.decided_by.versions),
            "labkit": stamp.decided_by.labkit,
        }
        if changed := first_difference(there, here):
            raise _refusal(f"it was made with other versions ({changed})")
        if stamp.origin != origin:
            raise LabError(
                f"the bundle was made from the model {stamp.origin[:1]} and other data than this "
                f"folder is set to ({profile.model} and {profile.data}). Set LAB_RUNS to another "
                "folder, and LAB_MODEL and LAB_DATA as they were in the run of the bundle."
            )
        for need, made in stamp.decided_by.needs.items():
            if ids.get(need) != made:
                raise _refusal(f"{stamp.name} was made from another {need} than it holds")
    before = [lab for lab in LABS if lab < number]
    if absent := [one for lab in before for one in missing(lab, ids, device=profile.device)]:
        raise LabError(
            f"the bundle has no {absent[0]} of lab {maker(absent[0])}: it was made before that "
            "lab had run. Ask for a later one, or catch up with an earlier lab."
        )
    return wanted


def _comparable(found: dict[str, str]) -> dict[str, str]:
    """Versions without what makes no other product: Python's third number, a build of torch."""
    short = {name: version.partition("+")[0] for name, version in found.items()}
    return short | {"python": ".".join(found.get("python", "").split(".")[:2])}


def _refuse_to_replace(products: Products, wanted: list[Stamp]) -> None:
    for stamp in wanted:
        old = products.stamp(stamp.name)
        if old and "was altered" in products.fault(stamp.name, hashed=True):
            raise LabError(
                f"{stamp.name} in {products.folder} was edited after it was made. Add --replace "
                "to give that up, or keep a copy of it elsewhere first."
            )
        if not old or old.id == stamp.id:
            continue
        own = first_difference(old.decided_by.recipe, stamp.decided_by.recipe)
        is_text = old.decided_by.recipe == {"written in": old.lab}  # whose id is its content's
        if own or is_text:
            raise LabError(
                f"{stamp.name} in {products.folder} was made in another way than the bundle's "
                f"({own or 'its text is another'}). Add --replace to give it up, with all that "
                "was made from it, or set LAB_RUNS to another folder."
            )


def _extract(tar: tarfile.TarFile, manifest: Manifest, wanted: list[Stamp], aside: Path) -> None:
    """Writes the files of *wanted* to *aside*, each of the size and the mark of its stamp."""
    marks = {
        _name(stamp, part): mark for stamp in manifest.stamps for part, mark in stamp.files.items()
    }
    left = {_name(stamp, part) for stamp in wanted for part in stamp.files}
    done, total = 0.0, sum(stamp.mb for stamp in wanted)
    while left:  # what follows is of later labs
        member = tar.next()
        if member is None:
            raise _refusal(f"it ends before {min(left)}")
        mark = marks.pop(member.name, None)
        if not mark or not _is_plain(member) or member.size != mark.bytes:
            raise _refusal(f"{member.name} is not what its manifest says, or is there twice")
        if member.name not in left:
            continue
        left.discard(member.name)
        path = aside / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            shutil.copyfileobj(tar.extractfile(member), file, CHUNK)
        if not has_mark(path, mark.sha256):
            raise _refusal(f"the content of {member.name} is not what its manifest says")
        report("MB", done := done + mark.bytes / 1e6, total)

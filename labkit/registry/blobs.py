"""Files in blob storage: listed, and downloaded in little memory, on from where a call ended."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from azure.core import MatchConditions

from labkit.errors import LabError
from labkit.progress import report

# bytes that are asked for at once, held in memory, and lost with a dropped connection
RANGE = 32 * 2**20


def blobs(container, prefix: str) -> dict:
    """Path below *prefix* -> properties (name, size in bytes, etag) of the files; no folders."""
    listed = container.list_blobs(name_starts_with=prefix, include=["metadata"])
    return {b.name[len(prefix) :]: b for b in listed if not (b.metadata or {}).get("hdi_isfolder")}


def download(container, prefix: str, out: Path) -> None:
    """Writes all files below *prefix* to the folder *out*, of which an earlier call may have some.

    Raises LabError for a name that leads out of *out*, and for a disk that is too small;
    AzureError where the connection does not come back.
    """
    todo = {}
    for path, blob in blobs(container, prefix).items():
        target = out / path
        # another spelling of a path would be written to the same file
        if os.path.normpath(path) != path or out.resolve() not in target.resolve().parents:
            raise LabError(
                f"the model's file {path} would lie outside {out}: it is not downloaded. "
                "Choose another model."
            )
        if not target.exists() or target.stat().st_size != blob.size:
            todo[target] = blob
    out.mkdir(parents=True, exist_ok=True)
    begun = sum(part.stat().st_size for part in out.rglob("*.part"))
    missing, free = sum(b.size for b in todo.values()) - begun, shutil.disk_usage(out).free
    if free < missing:
        raise LabError(
            f"the model needs {missing / 1e9:.1f} GB, and the disk of {out} has {free / 1e9:.1f} "
            "GB free. Free some space, or set LAB_RUNS to a folder on a larger disk."
        )
    total, done = sum(blob.size for blob in todo.values()), 0
    for target, blob in todo.items():
        for size in _download_file(container, blob, target):
            report("MB", (done + size) / 1e6, total / 1e6)
        done += blob.size


def _download_file(container, blob, target: Path) -> Iterator[int]:
    """Writes *blob* to *target*, through FILE.ETAG.part: other content has another etag.

    Yields how many bytes are there, before each range.
    """
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{re.sub('[^0-9A-Za-z]', '', blob.etag)}.part")
    for other in {*target.parent.glob(f"{target.name}.*.part")} - {part}:
        other.unlink()
    options = {"etag": blob.etag, "match_condition": MatchConditions.IfNotModified}
    options["max_concurrency"] = 4
    # only ever appended to: a process that is killed leaves no hole, whatever it was doing
    with open(part, "ab") as file:
        while (start := file.tell()) < blob.size:
            yield start
            length = min(RANGE, blob.size - start)
            file.write(container.download_blob(blob.name, start, length, **options).readall())
    part.rename(target)
    if blob.size > RANGE:
        seconds = time.monotonic() - started
        print(f"{target.name}: {blob.size / 1e6:,.0f} MB, {seconds:.0f} s")

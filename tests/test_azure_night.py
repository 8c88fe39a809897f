"""What the scheduled job of a night leaves behind, also of a night that has failed."""

import os
import subprocess

import pytest

from labkit.cluster.jobs import NIGHT

LAB = """
echo "$*" > asked
mkdir -p $LAB_RUNS/night/logs
echo page | tee $LAB_RUNS/night/night.html > $LAB_RUNS/night/night.md
exit {}
"""


@pytest.mark.parametrize("ended", [0, 1])
def test_the_page_is_kept_and_the_job_ends_as_the_night_did(ended, tmp_path):
    code, after = tmp_path / "code", tmp_path / "after"
    code.mkdir(), after.mkdir()
    (code / "lab").write_text(LAB.format(ended))
    command = NIGHT.replace("${{outputs.after}}", str(after))
    env = os.environ | {"LAB_RUNS": str(tmp_path / "runs")}
    assert subprocess.run(["bash", "-c", command], cwd=code, env=env).returncode == ended
    assert (code / "asked").read_text() == "nightly --only labs\n"
    kept = {path.name for path in (code / "outputs").iterdir()}
    assert kept == {"night.html", "night.md", "logs"}
    assert (after / "night" / "night.html").read_text() == "page\n"

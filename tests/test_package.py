"""What a notebook gets by `import labkit`."""

import subprocess
import sys

import labkit
from labkit.profiles import ROOT


def test_public_names_are_all_there():
    assert labkit.__all__ and all(getattr(labkit, name) for name in labkit.__all__)


def test_importing_labkit_needs_the_standard_library_only():
    code = (
        "import sys, labkit, labkit.commands\nsys.exit(any(m in sys.modules for m in ('torch', "
        "'numpy', 'psutil', 'filelock', 'olive')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

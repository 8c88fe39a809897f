"""python tests/azure_rig COMMAND ...: runs the command in the rig, tells what it asked for."""

import subprocess
import sys
from pathlib import Path

if not __package__:  # started as a folder: Python looks for modules in it, instead of beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import azure_rig


def main(command: list[str]) -> int:
    if not command:
        print(azure_rig.__doc__, file=sys.stderr)
        return 2
    try:
        with azure_rig.Rig() as rig:
            status = subprocess.run(command, env=rig.process_env()).returncode
            print(rig.summary(), file=sys.stderr)
            return azure_rig.FOREIGN_HOST if rig.refused else status
    except azure_rig.RigUnavailable as reason:
        print(f"no Azure rig: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

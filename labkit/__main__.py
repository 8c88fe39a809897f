"""``python -m labkit``: the command line behind ./lab."""

import sys

from labkit.commands import main

sys.exit(main(sys.argv[1:]))

"""What ./lab open adds to JupyterLab: settings (overrides.json), a style sheet, working copies.

jupyter_server loads this package as an extension. On stage (./lab present) the style sheet is that
of the folder stage, with letters for a projector, and the address of the speaker notes is printed.
"""

import re
from pathlib import Path

from labkit.screen import presenting

FOLDER = Path(__file__).parent


def _load_jupyter_server_extension(server) -> None:
    """Lets JupyterLab find custom.css here, and no longer in the folder of the user's settings."""
    folder = FOLDER / "stage" if presenting() else FOLDER
    server.web_app.settings["static_custom_path"].insert(0, str(folder))
    if presenting():
        server.io_loop.add_callback(lambda: print(_addresses(server.display_url), flush=True))


def _addresses(shown: str) -> str:
    """Where slides and notes are, from the addresses that JupyterLab has *shown*, with its port
    and token.
    """
    slides = re.findall(r"http\S+", shown)[-1]
    notes = re.sub(r"/notebooks/(?:extras/)?(\w+)\.ipynb", r"/runs/presenting/\1.md", slides)
    return f"on the projector: {slides}\nnotes, on your own screen: {notes}"

"""What ./lab open adds to JupyterLab: settings (overrides.json), a style sheet, working copies.

jupyter_server loads this package as an extension.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def _load_jupyter_server_extension(server) -> None:
    """Lets JupyterLab find custom.css here, and no longer in the folder of the user's settings."""
    server.web_app.settings["static_custom_path"].insert(0, str(FOLDER))

"""config.json and generation_config.json on their way through the labs: what the source says
stays.
"""

import json
import shutil
from pathlib import Path

CONFIG, GENERATION = "config.json", "generation_config.json"


def carry_settings(source: Path, out: Path, **changed) -> None:
    """Gives the checkpoint *out* both files of *source*.

    Of config.json the *changed* keys are set, or left out if None. Libraries write their own:
    AutoAWQ switches the cache off, and drops the list of tokens that end an answer.
    """
    config = json.loads((source / CONFIG).read_text()) | changed
    for key in [
        key for key, value in changed.items() if value is None
    ]:  # a null of the source says something, and stays
        del config[key]
    (out / CONFIG).write_text(json.dumps(config, indent=2))
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, out / GENERATION)


def stop_ids(folder: Path) -> list[int]:
    """The ids of the tokens that end an answer: those of generation_config.json, else those of
    config.json.
    """
    for name in (GENERATION, CONFIG):
        found = (
            json.loads((folder / name).read_text()).get("eos_token_id")
            if (folder / name).is_file()
            else None
        )
        if found is not None:
            return found if isinstance(found, list) else [found]
    return []


def add_stop_id(folder: Path, number: int) -> None:
    """Adds *number* to the tokens that end an answer, where generation_config.json does not name
    it yet.
    """
    path, known = folder / GENERATION, stop_ids(folder)
    settings = json.loads(path.read_text()) if path.is_file() else {}
    if number not in known or settings.get("eos_token_id") is None:
        path.write_text(
            json.dumps(
                settings | {"eos_token_id": list(dict.fromkeys([*known, number]))}, indent=2
            )
        )

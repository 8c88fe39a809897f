"""Which settings of a product are not those of the model that it was made from."""

import json
from pathlib import Path

MAY_DIFFER = {
    "torch_dtype": "the labs compute from float16",
    "dtype": "the same, by its newer name",
    "auto_map": "no code that comes with a model is run",
    "quantization_config": "what AWQ has done",
}


def damaged(source: Path, product: Path) -> dict:
    """Keys of config.json and generation_config.json that differ from the *source*'s, but for
    those that must.
    """
    found = {}
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (source, product))
        keys = (before.keys() | after.keys()) - MAY_DIFFER.keys()
        found |= {
            f"{name} {key}": (before.get(key), after.get(key))
            for key in keys
            if before.get(key) != after.get(key)
        }
    return found

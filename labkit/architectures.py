"""Which architectures the labs carry, and why others are refused in lab 01.

An architecture is carried if AutoAWQ 0.2.9 (or a class of it for the same layers), PEFT and the
ONNX model builder of onnxruntime-genai 0.14.1 know it, and tests/test_architectures.py takes a
tiny model of it through labs 01 to 05.
"""

from pathlib import Path

from labkit.errors import LabError

CARRIED = {  # model_type in config.json -> models that have it
    "llama": "Llama 2 and 3, SmolLM2, TinyLlama",
    "phi3": "Phi-3-mini, Phi-3.5-mini, Phi-4-mini",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "mistral": "Mistral 7B, Mistral Nemo",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 of 270M and 1B",
    "smollm3": "SmolLM3",
    "granite": "Granite 3",
}
_NO_BUILDER = "the ONNX model builder of onnxruntime-genai 0.14.1 does not know it"
_NO_AWQ = "AutoAWQ 0.2.9 has no search for its layers"
REFUSED = {  # model_type -> why not
    "olmo2": _NO_BUILDER,
    "olmo3": _NO_BUILDER,
    "cohere2": _NO_BUILDER,
    "exaone4": _NO_BUILDER,
    "falcon": _NO_BUILDER,
    "gpt2": _NO_BUILDER,
    "lfm2": _NO_AWQ,
    "nemotron": _NO_AWQ,
    "phi": _NO_AWQ,
    "gemma": "no test covers it; Gemma 2 and 3 are carried",
    "gemma3": "it reads images; the smaller Gemma 3 models, of 270M and 1B, read text only and "
    "are carried",
    "granitemoehybrid": "some of its layers have no attention; Granite 3 is carried",
}
READERS = ("vision_config", "audio_config", "img_processor", "audio_processor")
IMAGES = "it reads images or sound, and the labs carry models of text only"
EXPERTS = (
    "it is a mixture of experts, and AWQ's search here is for layers that every token goes through"
)
OTHER = "no test covers it"
# the rotary embeddings that the builder computes as transformers does
ROPE = {"default", "linear", "llama3", "longrope"}


def why_refused(config: dict) -> str:
    """Why the labs do not carry the model with this config.json; "" if they do."""
    kind = str(config.get("model_type"))
    if kind in CARRIED:
        return ""
    if kind in REFUSED:
        return REFUSED[kind]
    if any(key in config for key in READERS):
        return IMAGES
    if any("experts" in key for key in (config.get("text_config") or {}) | config):
        return EXPERTS
    return OTHER


def require_carried(folder: Path, config: dict, *, device: str) -> None:
    """Raises LabError if the labs do not carry the architecture that *config*, the config.json in
    *folder*, names.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, classes = str(config.get("model_type")), config.get("architectures")
    own = " Python code that comes with a model is never run." if "auto_map" in config else ""
    if reason := why_refused(config):
        raise LabError(
            f"the model in {folder} has the architecture '{kind}', which these labs do not "
            f"carry: {reason}. Set LAB_MODEL to one of these: "
            f"{', '.join(CARRIED.values())}.{own}"
        )
    if classes and classes != [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]:
        raise LabError(
            f"the model in {folder} is not one that writes text: its config.json names the "
            f"class {classes}, and not {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]}. Set LAB_MODEL "
            f"to another model.{own}"
        )
    if kind.startswith("gemma") and device == "cuda":
        raise LabError(
            f"the model in {folder} is a Gemma, whose activations are too large for the 16-bit "
            "floats of the gpu profile. Use the cpu profile, which computes in 32 bits, or "
            "another model."
        )


def require_fitting_sizes(folder: Path, *, group_size: int) -> None:
    """Raises LabError if layers of the model in *folder* do not divide into groups, or the builder
    computes other positions.
    """
    from transformers import AutoConfig

    # with the defaults of what config.json leaves out
    full = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    head = getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads
    sizes = {
        "hidden_size": full.hidden_size,
        "intermediate_size": full.intermediate_size,
        "num_attention_heads x head_dim": full.num_attention_heads * head,
    }
    for name, size in sizes.items():
        if size % group_size:
            raise LabError(
                f"the model's {name} {size} is not divisible by the group size {group_size}. "
                "Choose another model, or another group_size for your profile in "
                "labkit/profiles.py."
            )
    rope = full.rope_parameters or {}
    kinds = {
        part["rope_type"]
        for part in (rope.values() if "full_attention" in rope else [rope])
        if part
    }
    allowed = {"phi3": {"default", "longrope"}, "gemma3_text": {"default"}}.get(
        full.model_type, ROPE - {"longrope"}
    )
    if kinds - allowed:
        raise LabError(
            f"the model in {folder} has the rotary embedding '{min(kinds - allowed)}', which "
            "the ONNX model builder computes otherwise than transformers. Remove rope_scaling "
            "from its config.json: the model is then good for texts of its original length."
        )

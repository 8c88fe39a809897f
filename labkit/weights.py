"""The weights of a model folder, in safetensors files and no others."""

import json
from pathlib import Path

from labkit.errors import LabError

# what a folder may hold where model.safetensors should be -> what that is, and what to do about it
OTHER_WEIGHTS = {
    "adapter_config.json": "an adapter without its model: merge it with PEFT "
    "(merge_and_unload, then save_pretrained) and set LAB_MODEL to the result, or to the model "
    "that it was trained on",
    "*.gguf": "GGUF weights, which are quantized: set LAB_MODEL to the 16-bit model that they "
    "were made from",
    "*.onnx": "an exported ONNX model: set LAB_MODEL to the model that it was exported from",
    "*/*.onnx": "an exported ONNX model: set LAB_MODEL to the model that it was exported from",
    "*.npz": "MLX weights: set LAB_MODEL to the model that they were made from",
    "*.safetensors": "which is neither model.safetensors nor listed in a "
    "model.safetensors.index.json: fetch the model again",
} | {
    pattern: "pickled weights, which can run code when they are read, so the labs never read "
    "them: where you trust their author, "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) writes safetensors; add "
    "the tokenizer's files"
    for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
}
# of unquantized weights and of the buffers that lie beside old ones
FLOATS = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}


def read_object(path: Path) -> dict:
    """The JSON object in the file *path*. Raises LabError where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # 100,000 brackets are a RecursionError
        raise LabError(
            f"{path} is damaged: no JSON object ({error}). Fetch the model again."
        ) from error
    if not isinstance(found, dict):
        raise LabError(
            f"{path} is damaged: a {type(found).__name__}, no JSON object. Fetch the model again."
        )
    return found


def read_model(folder: Path):
    """The model in *folder*, in float16, with transformers' own class.

    Every tensor comes from the safetensors files, none is made up. Raises LabError for weights
    that are in no safetensors files, quantized, damaged, not those of config.json, or not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoModelForCausalLM

    try:
        for path in _weight_files(folder):
            with safe_open(path, "pt") as file:
                names = file.keys()  # safe_open is no dict
                kinds = {file.get_slice(name).get_dtype() for name in names}
            if kinds - FLOATS:
                raise quantized(folder, f"{path.name} holds {few(kinds - FLOATS)}")
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float16,
            trust_remote_code=False,
            # config.json may name code on the Hub, or a package that is not installed
            attn_implementation="eager",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise LabError(
            f"the weights in {folder} are truncated or damaged ({one_line(error)}). Fetch the "
            "model again."
        ) from error
    kinds = {
        "missing": "missing_keys",
        "of another shape": "mismatched_keys",
        "unknown": "unexpected_keys",
    }
    wrong = {
        kind: [key if isinstance(key, str) else key[0] for key in found[name]]
        for kind, name in kinds.items()
        if found[name]
    }
    if wrong:
        told = "; ".join(f"{kind}: {few(names)}" for kind, names in wrong.items())
        raise LabError(
            f"the weights in {folder} are not those of its config.json ({told}): transformers "
            "would make up random ones. Fetch the model again, or correct config.json."
        )
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise LabError(
            f"the weights in {folder} hold NaN, or numbers too large for float16 "
            f"({few(broken)}). Fetch the model again, or choose another one."
        )
    for key in ("auto_map", "attn_implementation"):  # name code that does not come along
        vars(model.config).pop(key, None)
    # a head that differs from the embedding is kept apart by transformers, whatever config.json
    # says
    model.config.tie_word_embeddings = (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    return model


def load_adapter(model, folder: Path, name: str = "default"):
    """*model* with the LoRA adapter in *folder*, by the *name* it gets; PEFT's own class.

    Raises LabError where a tensor of the adapter is missing, surplus or of another shape: PEFT
    would go on with one that changes nothing.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            names = set(file.keys())
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
    # the last two are of an adapter_config.json without, or with other, values
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        raise LabError(
            f"the adapter in {folder} is damaged or of another model ({one_line(error)}). Run lab "
            "03 again."
        ) from error
    if wrong := names ^ set(get_peft_model_state_dict(model, adapter_name=name)):
        raise LabError(
            f"the adapter in {folder} is not whole: missing or unknown is {few(wrong)}. Run lab "
            "03 again."
        )
    return model


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        refuse_other_weights(folder)
        raise LabError(
            f"{folder} holds no weights in safetensors files, and no other kind is fetched or "
            "read (pickled ones can run code). Fetch the model again, or choose another one."
        )
    places = read_object(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    lost = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if lost or not names:
        raise LabError(
            f"{index} names weights that are not in the folder "
            f"({few(lost) if lost else 'it has no weight_map'}). Fetch the model again."
        )
    return [folder / name for name in names]


def refuse_other_weights(folder: Path) -> None:
    for pattern, what in OTHER_WEIGHTS.items():
        if found := sorted(folder.glob(pattern)):
            raise LabError(
                f"{folder} holds no model in safetensors files, but {found[0].name}: {what}."
            )


def quantized(folder: Path, how: str) -> LabError:
    return LabError(
        f"the model in {folder} is already quantized ({how}), and lab 02 starts from 16-bit "
        "weights. Set LAB_MODEL to the model that it was made from."
    )


def few(names) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def one_line(error: Exception) -> str:
    """Kind and text of *error* on one line, 300 characters at most."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def onnx_adapter_weights(path: Path) -> dict:
    """Name -> array, of the .onnx_adapter file *path*; ONNX Runtime's errors for one it cannot
    read.
    """
    import onnxruntime as ort

    file = ort.AdapterFormat.read_adapter(str(path))
    # copies: the memory is that of *file*
    return {name: one.numpy().copy() for name, one in file.get_parameters().items()}

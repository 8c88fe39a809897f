"""A model folder as somebody brings it: what it holds is checked by name and header first, and
nothing in it is ever run.
"""

import json
from pathlib import Path

from labkit.errors import LabError
from labkit.prompts import load_tokenizer

# what a folder may hold where model.safetensors should be -> what that is, and what to do about it
OTHER_WEIGHTS = {
    "adapter_config.json": "an adapter without its model: merge it with PEFT (merge_and_unload, then save_pretrained) and set "
    "LAB_MODEL to the result, or to the model that it was trained on",
    "*.gguf": "GGUF weights, which are quantized: set LAB_MODEL to the 16-bit model that they were made from",
    "*.onnx": "an exported ONNX model: set LAB_MODEL to the model that it was exported from",
    "*/*.onnx": "an exported ONNX model: set LAB_MODEL to the model that it was exported from",
    "*.npz": "MLX weights: set LAB_MODEL to the model that they were made from",
    "*.safetensors": "which is neither model.safetensors nor listed in a model.safetensors.index.json: fetch the model again",
} | {
    pattern: "pickled weights, which can run code when they are read, so the labs never read them: where you trust their "
    "author, AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) writes "
    "safetensors; add the tokenizer's files"
    for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
}
FLOATS = {
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "BOOL",
}  # of unquantized weights and of the buffers that lie beside old ones
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)


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


def read_config(folder: Path) -> dict:
    """config.json of the model in *folder*, a folder of float weights and nothing else that would change what is loaded.

    Raises LabError for a folder that cannot be read or holds another kind of model (an adapter,
    GGUF, ONNX, pickled or quantized weights), and for sizes that are missing.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        raise LabError(
            f"the model folder {folder} is missing. Set LAB_MODEL to a Hugging Face folder or a "
            "Hub id."
        ) from None
    except NotADirectoryError:
        raise LabError(
            f"{folder} is a file. Set LAB_MODEL to the folder of a Hugging Face model, with its "
            "config.json."
        ) from None
    except OSError as error:
        raise LabError(
            f"{folder} cannot be read ({error.strerror}). Give yourself the right, or copy the "
            "model."
        ) from error
    if "config.json" not in names:
        _refuse_other_weights(folder)
        raise LabError(
            f"{folder} holds no config.json: it is not a Hugging Face model folder. Set "
            "LAB_MODEL to one."
        )
    if (
        "adapter_config.json" in names
    ):  # transformers would load the adapter, and the model that it names, unasked
        raise LabError(
            f"{folder} holds an adapter beside the model (adapter_config.json). Merge it with "
            "PEFT (merge_and_unload, then save_pretrained), or move the adapter's files away "
            "to take the model without it."
        )
    config = read_object(folder / "config.json")
    if config.get("transformers_weights"):  # other weights than those that are looked at here
        raise LabError(
            f"{folder}/config.json names its weights by transformers_weights. Rename that file "
            "to model.safetensors, and remove the key."
        )
    for key in (
        "quantization_config",
        "compression_config",
        "quantization",
    ):  # the last one is MLX's
        if config.get(key):
            method = config[key].get("quant_method", key) if isinstance(config[key], dict) else key
            raise _quantized(folder, method)
    return config


def check_config(folder: Path, config: dict) -> None:
    """Raises LabError where a size that decides the model's shape is not in *config*, or where transformers refuses a value.

    Where a size is missing, transformers takes that of another model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in SIZES:
        if type(config.get(name)) is not int or not 1 <= config[name] <= (
            1000 if "layers" in name else 10**7
        ):
            raise LabError(
                f"{folder}/config.json has no usable {name} ({config.get(name)!r}, and a whole "
                "number is needed). Fetch the model again."
            )
    try:
        whole = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, attn_implementation="eager"
        )
        with torch.device("meta"):  # no memory for weights
            AutoModelForCausalLM.from_config(whole, trust_remote_code=False)
    except Exception as error:  # whatever transformers' checks and the model's own code raise
        raise LabError(
            f"{folder}/config.json has a value that transformers refuses ({_line(error)}). "
            "Fetch the model again."
        ) from error


def check_generation(folder: Path, *, rows: int) -> None:
    """Raises LabError for a generation_config.json that transformers does not load, or whose stop tokens the model has not.

    *rows*: how many tokens the model's embedding has.
    """
    from transformers import GenerationConfig

    if not (path := folder / "generation_config.json").is_file():
        return
    stop = read_object(path).get("eos_token_id")
    try:
        numbers = stop if isinstance(stop, list) else [0 if stop is None else stop]
        if not all(type(number) is int and 0 <= number < rows for number in numbers):
            raise TypeError(f"eos_token_id is {stop!r}")
        GenerationConfig.from_pretrained(folder)
    except Exception as error:
        raise LabError(
            f"{path} holds settings that transformers refuses ({_line(error)}). Correct them, "
            "or delete that file."
        ) from error


def read_tokenizer(folder: Path, *, rows: int):
    """The tokenizer in *folder*, with one chat template. *rows*: how many tokens the model's embedding has.

    Raises LabError where it is missing or damaged, has no chat template, or has tokens that the
    model does not.
    """
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        raise LabError(
            f"the tokenizer in {folder} is SentencePiece's tokenizer.model alone, and GenAI "
            "needs a tokenizer.json. Make one where the package sentencepiece is installed: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    tokenizer = load_tokenizer(folder)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    if not template and (folder / "chat_template.json").is_file():  # as processors keep it
        template = read_object(folder / "chat_template.json").get("chat_template")
    if not template or not isinstance(template, str):
        raise LabError(
            f"the tokenizer in {folder} has no chat template. Set LAB_MODEL to an instruct "
            "(chat) model."
        )
    tokenizer.chat_template = template
    tokenizer.init_kwargs.pop("auto_map", None)  # names Python code, which does not come along
    # a special token that the template does not write never occurs: Gemma 3 has one for images
    # beyond its rows
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    idle = special - {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    vocabulary = tokenizer.get_vocab().items()
    beyond = [
        token
        for token, number in vocabulary
        if number >= rows and (token in template or token not in idle)
    ]
    if beyond:
        raise LabError(
            f"the tokenizer in {folder} has tokens that the model's {rows} embedding rows do "
            f"not hold ({_few(beyond)}): tokens were added and the model was not resized, or "
            "the two are of different models. Fetch both again."
        )
    return tokenizer


def read_model(folder: Path):
    """The model in *folder*, in float16, with transformers' own class: every tensor from the safetensors files, none made up.

    Raises LabError for weights that are in no safetensors files, quantized, damaged, not those of
    config.json, or not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoModelForCausalLM

    try:
        for path in _weight_files(folder):
            with safe_open(path, "pt") as file:
                kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 safe_open is no dict
            if kinds - FLOATS:
                raise _quantized(folder, f"{path.name} holds {_few(kinds - FLOATS)}")
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float16,
            trust_remote_code=False,
            attn_implementation="eager",  # config.json may name code on the Hub, or a package that is not installed
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise LabError(
            f"the weights in {folder} are truncated or damaged ({_line(error)}). Fetch the "
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
        told = "; ".join(f"{kind}: {_few(names)}" for kind, names in wrong.items())
        raise LabError(
            f"the weights in {folder} are not those of its config.json ({told}): transformers "
            "would make up random ones. Fetch the model again, or correct config.json."
        )
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise LabError(
            f"the weights in {folder} hold NaN, or numbers too large for float16 "
            f"({_few(broken)}). Fetch the model again, or choose another one."
        )
    for key in ("auto_map", "attn_implementation"):  # name code that does not come along
        vars(model.config).pop(key, None)
    # a head that differs from the embedding is kept apart by transformers, whatever config.json
    # says
    model.config.tie_word_embeddings = (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    return model


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        _refuse_other_weights(folder)
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
            f"({_few(lost) if lost else 'it has no weight_map'}). Fetch the model again."
        )
    return [folder / name for name in names]


def _refuse_other_weights(folder: Path) -> None:
    for pattern, what in OTHER_WEIGHTS.items():
        if found := sorted(folder.glob(pattern)):
            raise LabError(
                f"{folder} holds no model in safetensors files, but {found[0].name}: {what}."
            )


def _quantized(folder: Path, how: str) -> LabError:
    return LabError(
        f"the model in {folder} is already quantized ({how}), and lab 02 starts from 16-bit "
        "weights. Set LAB_MODEL to the model that it was made from."
    )


def _few(names) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: Exception) -> str:
    """Kind and text of *error* on one line, 300 characters at most."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

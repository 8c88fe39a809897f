"""A model folder as somebody brings it: checked by name and header first, and never run."""

from pathlib import Path

from labkit.errors import LabError
from labkit.tokenizer import load_tokenizer, require_modest
from labkit.weights import few, one_line, quantized, read_object, refuse_other_weights

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)


def read_config(folder: Path) -> dict:
    """config.json of the model in *folder*, a folder of float weights.

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
        refuse_other_weights(folder)
        raise LabError(
            f"{folder} holds no config.json: it is not a Hugging Face model folder. Set "
            "LAB_MODEL to one."
        )
    # transformers would load the adapter, and the model that it names, unasked
    if "adapter_config.json" in names:
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
    for key in ("quantization_config", "compression_config", "quantization"):  # the last is MLX's
        if config.get(key):
            method = config[key].get("quant_method", key) if isinstance(config[key], dict) else key
            raise quantized(folder, method)
    return config


def check_config(folder: Path, config: dict) -> None:
    """Raises LabError where *config* lacks a size or transformers refuses a value.

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
            f"{folder}/config.json has a value that transformers refuses ({one_line(error)}). "
            "Fetch the model again."
        ) from error


def check_generation(folder: Path, *, rows: int) -> None:
    """Raises LabError for a generation_config.json that transformers does not load.

    Also where its stop tokens are none of the model. *rows*: how many tokens the embedding has.
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
            f"{path} holds settings that transformers refuses ({one_line(error)}). Correct them, "
            "or delete that file."
        ) from error


def read_tokenizer(folder: Path, *, rows: int):
    """The tokenizer in *folder*, with one chat template.

    *rows*: how many tokens the embedding of the model has. Raises LabError where it is missing or
    damaged, has no chat template, or has tokens that the model does not.
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
    require_modest(template, tokenizer.special_tokens_map)
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
            f"not hold ({few(beyond)}): tokens were added and the model was not resized, or "
            "the two are of different models. Fetch both again."
        )
    return tokenizer

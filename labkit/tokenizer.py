"""A checkpoint's tokenizer: read as ONNX Runtime GenAI reads it, and saved so that it stays the
same.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from labkit.errors import LabError


def load_tokenizer(folder: Path):
    """The tokenizer of a checkpoint as its tokenizer.json has it, which is what GenAI reads.

    The classes of transformers 5 build some tokenizers anew from their vocabulary: Phi-3's then
    gives other ids than GenAI for each word that follows a control token. Raises LabError where
    the files are missing or damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(folder, trust_remote_code=False)
        tokenizer.model_max_length = int(tokenizer.model_max_length)
        if getattr(
            tokenizer.backend_tokenizer.model, "dropout", None
        ):  # other ids for the same text at each call
            tokenizer.backend_tokenizer.model.dropout = None
        return tokenizer
    except Exception as error:  # the reader of tokenizer.json raises plain Exception
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise LabError(
            f"the tokenizer in {folder} is missing or cannot be read ({why}). Fetch the model "
            "again; a tokenizer that needs Python code of its own is not run here "
            "(docs/SECURITY.md has the way around)."
        ) from error


def save_tokenizer(tokenizer, out: Path) -> None:
    """Writes *tokenizer* to the folder *out*: its template frozen, with a token to pad with."""
    if tokenizer.chat_template:
        tokenizer.chat_template = freeze_template(tokenizer.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(out)


TRIAL = """
import contextlib, json, resource, sys
from transformers.utils.chat_template_utils import render_jinja_template
given = json.load(sys.stdin)
for kind, most in (resource.RLIMIT_CPU, "seconds"), (resource.RLIMIT_AS, "bytes"):
    with contextlib.suppress(ValueError, OSError):  # a lower one holds, or the system has none
        resource.setrlimit(kind, (given[most], given[most]))
turns = [{"role": "user", "content": "Hi"}]
for opened in True, False:
    try:
        options = {"add_generation_prompt": opened, **given["tokens"]}
        shown = render_jinja_template([turns], chat_template=given["template"], **options)[0][0]
    except MemoryError:
        sys.exit("memory")
    except Exception:
        continue  # said where the template is used
    if len(shown) > given["letters"]:
        sys.exit("letters")
"""


def require_modest(template: str, tokens: dict[str, str]) -> None:
    """Raises LabError for a chat *template* that takes too long, or too much, to write "Hi".

    A template is a program: its sandbox keeps it from files and from Python, not from a loop
    without an end. It is tried in a process of its own; *tokens* are the tokenizer's special ones.
    """
    limits = {"seconds": 5, "bytes": 2**33, "letters": 10**5}
    if not _passes(json.dumps({"template": template, "tokens": tokens} | limits)):
        raise LabError(
            "the chat template takes more than 5 seconds, 8 GB or 100,000 letters to write a "
            "question of two letters. Choose another model."
        )


@cache
def _passes(trial: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", TRIAL], input=trial, capture_output=True, text=True
    )
    return not done.returncode


def freeze_template(template: str) -> str:
    """A chat *template* that renders the same on every day and without options.

    Today's date is written in, and thinking is off. Training, measuring and every later program
    must see one and the same prompt.
    """
    today = time.localtime()
    template = re.sub(r"strftime_now\s+is\s+defined", "true", template)
    call = r"strftime_now\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)"
    template = re.sub(call, lambda found: json.dumps(time.strftime(found[2], today)), template)
    if "enable_thinking" not in template:
        return template
    template = re.sub(
        r"enable_thinking\s+is\s+not\s+false", "enable_thinking", template
    )  # GenAI knows no test named false
    template = re.sub(r"enable_thinking\s+is\s+false", "not enable_thinking", template)
    return "{%- set enable_thinking = false -%}" + re.sub(
        r"enable_thinking\s+is\s+true", "enable_thinking", template
    )


def genai_tokenizer(folder: Path):
    """ONNX Runtime GenAI's tokenizer of a checkpoint that has no ONNX model yet."""
    import onnx
    import onnxruntime_genai as og
    from onnx import TensorProto, helper

    with tempfile.TemporaryDirectory() as place:
        for path in [
            *folder.glob("*token*"),
            *folder.glob("*.jinja"),
            *folder.glob("vocab*"),
            *folder.glob("merges*"),
        ]:
            shutil.copy(path, place)
        # GenAI makes a tokenizer for a model only; the least that it takes for one
        cast = helper.make_node("Cast", ["ids"], ["logits"], to=TensorProto.FLOAT)
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens"])
        graph = helper.make_graph([cast], "least", [ids], [logits])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            f"{place}/model.onnx",
        )
        sizes = dict.fromkeys(
            ("head_size", "hidden_size", "num_attention_heads", "num_key_value_heads"), 1
        )
        decoder = sizes | {
            "filename": "model.onnx",
            "inputs": {"input_ids": "ids"},
            "outputs": {"logits": "logits"},
        }
        model = {
            "type": "llama",
            "vocab_size": 1,
            "context_length": 1,
            "decoder": decoder | {"num_hidden_layers": 0},
        }
        model |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        Path(place, "genai_config.json").write_text(
            json.dumps({"model": model, "search": {"max_length": 1}})
        )
        return og.Tokenizer(og.Model(place))

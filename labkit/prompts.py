"""Between a conversation and the ids that a model reads: tokenizers, chat templates, and where an
answer begins and ends.
"""

import json
import re
import shutil
import tempfile
import time
import unicodedata
from functools import lru_cache
from pathlib import Path

from labkit.errors import LabError

SAMPLE = {
    "prompt": "Where is the best view of Prague?",
    "response": "São Jorge Castle, 2 trams, naïve façade.",
}


def load_tokenizer(folder: Path):
    """The tokenizer of a checkpoint as its tokenizer.json has it, which is what ONNX Runtime GenAI reads.

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
            "again; a tokenizer that needs Python code of its own is not run here."
        ) from error


def save_tokenizer(tokenizer, out: Path) -> None:
    """Writes *tokenizer* to the folder *out*: its template frozen, and with a token to pad with."""
    if tokenizer.chat_template:
        tokenizer.chat_template = freeze_template(tokenizer.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(out)


def freeze_template(template: str) -> str:
    """A chat *template* that renders the same on every day and without options: today's date written in, thinking off.

    Training, measuring and every later program must see one and the same prompt.
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


def turns(tokenizer, record: dict) -> list[dict[str, str]]:
    """The conversation up to the answer: the record's "history", if it has one, and its prompt, as messages.

    Control tokens that stand in the texts are broken by a space, so that data cannot end a turn or
    begin another.
    """
    messages = [*record.get("history", ()), {"role": "user", "content": record["prompt"]}]
    return [
        {"role": turn["role"], "content": harmless(tokenizer, turn["content"].strip())}
        for turn in messages
    ]


def harmless(tokenizer, text: str) -> str:
    """*text* with a space in each control token: "<|im_end|>" becomes "< |im_end|>", which is read as plain characters.

    Letters with accents are one character each (Unicode's form NFC), which some tokenizers do, and
    GenAI does not. Raises LabError where the tokenizer still reads a control token.
    """
    text = unicodedata.normalize("NFC", text)
    marks, pattern = _control_tokens(tokenizer)
    broken = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    if left := set(marks.values()).intersection(
        tokenizer(broken, add_special_tokens=False)["input_ids"]
    ):
        raise LabError(
            f"the text '{text[:60]}' is read as the control token "
            f"{tokenizer.convert_ids_to_tokens(min(left))}. Write it in other characters, or "
            "leave the record out."
        )
    return broken


def control_tokens(tokenizer) -> dict[str, int]:
    """Text -> id of the tokens that can mean something to a chat format: the special ones, and all added ones with a mark.

    Not all are said to be special: Phi-4's role tokens are not, nor are <think> and <tool_call>.
    """
    return _control_tokens(tokenizer)[0]


def _control_tokens(tokenizer) -> tuple[dict[str, int], re.Pattern]:
    known = tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template or ""
    return _marks(tokenizer, len(tokenizer), tokenizer.unk_token, known)


@lru_cache(maxsize=4)  # Gemma has 6,000 added tokens, and each text of each record asks
def _marks(
    tokenizer, size: int, unknown: str | None, known: tuple
) -> tuple[dict[str, int], re.Pattern]:
    """Text -> id, and the pattern of all these texts, of which the longest is found where several
    begin.
    """
    added = {
        token.content: (number, token.special)
        for number, token in tokenizer.added_tokens_decoder.items()
    }
    meant = {
        text for text, (_, special) in added.items() if special or re.search(r"[^\w\s▁]", text)
    }
    if unknown not in known[:2] and str(unknown) not in known[2]:
        meant.discard(unknown)  # an unknown character is no attack
    marks = {text: added[text][0] for text in meant if len(text) > 1}
    any_of_them = "|".join(map(re.escape, sorted(marks, key=len, reverse=True)))
    return marks, re.compile(any_of_them or r"(?!)")


def prompt_text(tokenizer, record: dict | str) -> str:
    """What the model reads before it answers: the chat template around a question, or around a
    record's turns.
    """
    messages = turns(tokenizer, {"prompt": record} if isinstance(record, str) else record)
    return _rendered(tokenizer, messages, add_generation_prompt=True)


def chat_ids(tokenizer, record: dict) -> tuple[list[int], int]:
    """(token ids of prompt and response in the model's chat format, number of ids before the response).

    The ids end with the token that ends a turn: what the model must say, and nothing after it.
    Raises LabError where the template leaves something out, or where its prompt is not the
    beginning of its conversation: what is trained would not be what is asked.
    """
    messages, response = turns(tokenizer, record), harmless(tokenizer, record["response"].strip())
    prompt = _rendered(tokenizer, messages, add_generation_prompt=True)
    whole = _rendered(tokenizer, [*messages, {"role": "assistant", "content": response}])
    if not whole.startswith(prompt):
        raise LabError(
            f"the chat template asks with '...{prompt[-40:]}', but writes the same conversation "
            "otherwise: an answer would be trained after another text than it is asked with. "
            "Choose a model whose template does not begin the answer itself."
        )
    lost, at = [], 0
    for turn in messages:
        found = prompt.find(turn["content"].strip(), at)
        lost += [turn["content"]] * (found < 0)
        at = max(at, found + len(turn["content"].strip()))
    begin = len(whole) - len(whole[len(prompt) :].lstrip())
    if lost or not whole.startswith(response, begin):
        raise LabError(
            f"the chat template leaves out '{(lost or [response])[0][:60]}'. Choose a model "
            "whose template has a place for every turn of your data (some have none for a "
            "system turn), or leave these turns out of the data."
        )
    begin += len(response)
    marks, pattern = _control_tokens(tokenizer)
    end = pattern.search(whole, begin)
    stop = end.end() if end else begin
    head, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole[:stop])
    )
    if (
        ids[: len(head)] != head
    ):  # a token reaches over the end of the prompt; a model that is asked gets the prompt alone
        ids = head + tokenizer(whole[len(prompt) : stop], add_special_tokens=False)["input_ids"]
    if not end or ids[-1] != marks[end[0]]:
        raise LabError(
            "the chat template ends an answer without a token that the tokenizer knows as "
            "special: the model could not learn to stop. Choose a model whose template ends a "
            "turn with such a token."
        )
    return ids, len(head)


def _rendered(tokenizer, messages: list[dict[str, str]], **options) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # a template is a program
        roles, why = (
            ", ".join(turn["role"] for turn in messages),
            " ".join(str(error).split())[:200],
        )
        asked = next(
            (turn["content"] for turn in reversed(messages) if turn["role"] == "user"), ""
        )[:60]
        raise LabError(
            f"the model's chat template cannot write a conversation of the turns {roles} (the "
            f"question '{asked}'): {why}. Some templates take no system turn, and some demand "
            "one: change the turns of your records, or choose another model."
        ) from error

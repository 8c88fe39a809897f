"""What an Azure ML endpoint runs: init() once, run() for each request.

It needs ONNX Runtime GenAI and the package of lab 06, and nothing of labkit. A request is JSON,
{"prompt": "...", "adapter": "travel", "max_tokens": 128}; the last two may be left out, and the
adapter "base" is the model without one. What cannot be answered gets a 4xx and one sentence.
"""

import json
import os
import threading
import unicodedata
from pathlib import Path

from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

LARGEST = 16 * 1024  # bytes of a request; no question that the model can read is as long
LEAST, MOST = 16, 256  # tokens that must be left for an answer, and that it may have
BASE = "base"


class RefusedError(Exception):
    """A request that is not answered: its HTTP *status*, and why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


def init():
    """Loads the model in AZUREML_MODEL_DIR, and every adapter beside it, by its file's name."""
    import onnxruntime_genai as og

    global model, tokenizer, adapters, names, control, longest, stops, turn
    folder = next(Path(os.environ["AZUREML_MODEL_DIR"]).rglob("genai_config.json")).parent
    model = og.Model(str(folder))
    tokenizer, adapters = og.Tokenizer(model), og.Adapters(model)
    names = {BASE}
    for path in sorted(folder.glob("*.onnx_adapter")):
        name = "travel" if path.stem == "adapter_weights" else path.stem
        adapters.load(str(path), name)
        names.add(name)
    listed = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    control = [one["content"] for one in listed if one["special"]]
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    longest = config["search"]["max_length"]
    stops = set(map(int, tokenizer.eos_token_ids))
    turn = threading.Lock()  # GenAI's adapters bear no second thread


@rawhttp
def run(request):
    """The answer to one HTTP *request*."""
    try:
        if request.method != "POST":
            raise RefusedError(405, "Send a POST request with JSON.")
        asked = read(request)
        with turn:
            return AMLResponse(answer(*asked), 200, json_str=True)
    except RefusedError as refused:
        return AMLResponse({"error": str(refused)}, refused.status, json_str=True)


def read(request) -> tuple[str, str, int]:
    """(prompt, adapter, most tokens) of the *request*, checked; raises RefusedError."""
    if (request.content_length or LARGEST + 1) > LARGEST:
        raise RefusedError(413, f"A request has a length, and {LARGEST:,} bytes at most.")
    try:
        given = json.loads(request.get_data().decode("utf-8"))
    except (ValueError, RecursionError):
        raise RefusedError(400, "The body is not JSON in UTF-8.") from None
    if not isinstance(given, dict) or not {"prompt"} <= given.keys():
        raise RefusedError(400, 'The body must be an object with a "prompt".')
    if unknown := given.keys() - {"prompt", "adapter", "max_tokens"}:
        raise RefusedError(400, f"There is no field {min(unknown)[:40]!a}.")
    prompt, adapter = given["prompt"], given.get("adapter", "travel")
    most = given.get("max_tokens", MOST)
    if not isinstance(prompt, str) or not prompt.strip():
        raise RefusedError(400, '"prompt" must be a text that is not empty.')
    if not isinstance(adapter, str) or adapter not in names:
        raise RefusedError(400, f'"adapter" must be one of: {", ".join(sorted(names))}.')
    if type(most) is not int or not 1 <= most <= MOST:
        raise RefusedError(400, f'"max_tokens" must be a whole number from 1 to {MOST}.')
    if any(unicodedata.category(one) in ("Cs", "Cc") and one not in "\n\r\t" for one in prompt):
        raise RefusedError(400, "The prompt holds a control character, or half of a character.")
    prompt = unicodedata.normalize("NFC", prompt.strip())  # as the model was trained
    if any(token in prompt for token in control):
        raise RefusedError(400, "The prompt holds a control token of the model.")
    return prompt, adapter, most


def answer(prompt: str, adapter: str, most: int) -> dict:
    """The greedy answer to *prompt*; RefusedError where the prompt leaves no room for it."""
    import onnxruntime_genai as og

    turns = json.dumps([{"role": "user", "content": prompt}])
    ids = tokenizer.encode(tokenizer.apply_chat_template(turns, add_generation_prompt=True))
    if len(ids) > longest - LEAST:  # with no room, GenAI ends the process
        raise RefusedError(
            400, f"The prompt takes {len(ids)} tokens; {longest - LEAST} are the most."
        )
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=min(longest, len(ids) + most))
    generator = og.Generator(model, settings)
    if adapter != BASE:
        generator.set_active_adapter(adapters, adapter)
    generator.append_tokens(ids)
    written, ended = [], False
    while not generator.is_done() and not ended:
        generator.generate_next_token()
        written.append(int(generator.get_next_tokens()[0]))
        ended = written[-1] in stops
    kept = written[:-1] if ended else written
    text = tokenizer.decode(kept).strip() if kept else ""
    return {"answer": text, "adapter": adapter, "tokens": len(written), "ended": ended}

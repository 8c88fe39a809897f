"""The page: a folder of static files that runs the model of lab 04 in a browser, and asks no other
host for anything.
"""

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from labkit.answers import LEAST
from labkit.errors import LabError
from labkit.files import sha256, write_json
from labkit.page.graphs import write_graphs
from labkit.prompts import chat_ids, control_tokens, prompt_text
from labkit.settings import stop_ids
from labkit.tokenizer import load_tokenizer
from labkit.weights import one_line, onnx_adapter_weights

HERE = Path(__file__).parent
PROGRAM = (
    "index.html",
    "style.css",
    "app.js",
    "form.js",
    "worker.js",
    "model.js",
    "files.js",
    "sw.js",
)
ENGINES = {
    # the browser's processor or GPU -> ONNX Runtime's module, and what that loads itself
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify"),
}
FORM_PENALTY = 1.0  # none, as extra 07 has it: a form repeats itself
PLACE = "5f0d1c"  # where the question stands, in a chat format that is taken apart there


def write_page(
    out: Path,
    *,
    onnx_dir: Path,
    adapters: dict[str, Path],
    records: dict[str, list[dict]],
    library: Path,
    name: str,
    schemas: dict[str, dict] | None = None,
) -> Path:
    """Writes the page to the empty folder *out*, and returns that.

    *adapters* maps names to .onnx_adapter files, *records* names of them to held-out records: the
    first one's question is the example, and the longest answer sets the limit, a fifth above it.
    *library* is the folder that :func:`labkit.page.library.fetch` fills; *name* is the model's.
    *schemas* maps adapters that fill a form to its JSON schema, whose description is the system
    turn before each question. Raises LabError where the model, an adapter or the tokenizer is
    missing or damaged, and where the chat format has no one place for a question.
    """
    for folder in ("model", "adapters", "lib"):
        (out / folder).mkdir(parents=True)
    for part in PROGRAM:
        shutil.copyfile(HERE / part, out / part)
    for part in library.iterdir():
        shutil.copyfile(part, out / "lib" / part.name)
    for part in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(onnx_dir / part, out / "model" / part)
    graph = write_graphs(onnx_dir, out / "model")
    for adapter, path in adapters.items():
        write_weights(path, out / "adapters" / f"{adapter}.safetensors", graph["adapter_inputs"])

    def file(path: str) -> dict:
        at = out / path
        return {"path": path, "bytes": at.stat().st_size, "sha256": sha256(at)}

    tokenizer = load_tokenizer(onnx_dir)
    search = json.loads((onnx_dir / "genai_config.json").read_text())["search"]
    lengths = [chat_ids(tokenizer, one) for some in records.values() for one in some]
    examples = {adapter: some[0]["prompt"] for adapter, some in records.items()}
    first = next(iter(examples.values()))
    engines = {
        engine: {
            "module": f"./lib/{module}",
            "glue": f"./lib/{runtime}.mjs",
            "files": {
                "graph": file(f"model/{engine}.onnx"),
                "weights": file(f"model/{engine}.bin"),
                "runtime": file(f"lib/{runtime}.wasm"),
            },
        }
        for engine, (module, runtime) in ENGINES.items()
    }
    modules = sorted(f"lib/{part.name}" for part in library.glob("*.mjs"))
    write_json(
        out / "page.json",
        graph
        | {
            "name": name,
            "prompt": prompt_pieces(tokenizer),
            # what an adapter has in the place of the above and of the penalty
            "asked": {
                adapter: prompt_pieces(tokenizer, schema["description"])
                | {"repetition_penalty": FORM_PENALTY, "schema": schema}
                for adapter, schema in (schemas or {}).items()
            },
            "stop_ids": stop_ids(onnx_dir),
            "repetition_penalty": search.get("repetition_penalty", 1.0),
            "max_length": search["max_length"],
            "limit": int(1.2 * max(len(ids) - start for ids, start in lengths)),
            "least": LEAST,
            "examples": dict.fromkeys(["none", *adapters], first) | examples,
            "memory_mb": memory_mb([out / "model" / "wasm.bin", *(out / "adapters").iterdir()]),
            "files": {
                "tokenizer": file("model/tokenizer.json"),
                "tokenizerConfig": file("model/tokenizer_config.json"),
            },
            "engines": engines,
            "adapters": {one: file(f"adapters/{one}.safetensors") for one in adapters},
            "shell": ["./", *(one for one in PROGRAM if one != "sw.js"), "page.json", *modules],
        },
    )
    return out


def memory_mb(files: Iterable[Path]) -> int:
    """What a browser needs about, in MB: the *files* twice, as they come and as they are used, and
    what it needs itself.
    """
    return 100 * math.ceil((2 * sum(file.stat().st_size for file in files) / 1e6 + 600) / 100)


def write_weights(adapter: Path, out: Path, inputs: dict[str, list[int]]) -> None:
    """Writes the .onnx_adapter file *adapter* as safetensors, which a page can read.

    *inputs* are the names and shapes (0: the rank) that the graph takes. Raises LabError for a
    file that is missing or damaged, or of another model.
    """
    from safetensors.numpy import save_file

    try:
        weights = onnx_adapter_weights(adapter)
    except Exception as error:  # ONNX Runtime's own are of no common kind
        raise LabError(
            f"the adapter {adapter} cannot be read for the page ({one_line(error)}). Make it "
            "again: run lab 04."
        ) from error
    fits = weights.keys() == inputs.keys() and all(
        there in (0, here)
        for name, shape in inputs.items()
        for there, here in zip(shape, weights[name].shape, strict=True)
    )
    if not fits:
        raise LabError(
            f"the adapter {adapter} does not fit the model of the page: it is of another graph. "
            "Make both again: run lab 04."
        )
    save_file({name: weights[name] for name in inputs}, out)
    out.chmod(0o644)  # safetensors writes for its owner alone, and a server is another user


def prompt_pieces(tokenizer, system: str = "") -> dict[str, str | list[str]]:
    """{"before", "after", "marks"}: what stands around a question after the turn *system*, if one
    is given, and the control tokens' texts, longest first.

    Raises LabError where the chat format changes with the question, or has several places for it.
    """
    history = [{"role": "system", "content": system}] if system else []

    def rendered(question):
        return prompt_text(tokenizer, {"prompt": question, "history": history})

    pieces = rendered(PLACE).split(PLACE)
    if len(pieces) != 2 or rendered(f"{PLACE} {PLACE}") != (
        f"{pieces[0]}{PLACE} {PLACE}{pieces[1]}"
    ):
        raise LabError(
            "the model's chat template has no one fixed place for a question, so that the page "
            "cannot write prompts. Choose a model with a plain chat format."
        )
    marks = sorted(control_tokens(tokenizer), key=len, reverse=True)
    return {"before": pieces[0], "after": pieces[1], "marks": marks}

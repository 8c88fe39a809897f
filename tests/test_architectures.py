"""Each architecture that the labs carry, tiny and with random weights, through labs 01 to 05.

docs/MODELS.md holds what is found here: LAB_WRITE=1 python -m pytest tests/test_architectures.py
writes it.
"""

import ast
import json
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import assert_valid, weights_in

import labkit
from labkit.architectures import CARRIED, EXPERTS, IMAGES, OTHER, REFUSED, why_refused
from labkit.course import notebook_path
from labkit.errors import LabError
from labkit.models import fetch_model
from labkit.profiles import PROFILES, ROOT
from labkit.session import Lab

CPU = PROFILES["cpu"]
PAGE = ROOT / "docs" / "MODELS.md"
LINEARS = {
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LONG = {
    "rope_type": "longrope",
    "long_factor": [2.0 + i for i in range(24)],
    "short_factor": [1 + i / 8 for i in range(24)],
}
TWO_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
# settings of real models, made so small that a record of some hundred tokens goes beyond each
# window and original length
CASES = {
    "llama": {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}},
    "phi3": {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "rope_scaling": LONG,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "initializer_range": 0.1,
    },
    "qwen2": {"use_sliding_window": False, "sliding_window": 32},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": False},
    "mistral": {"head_dim": 32, "sliding_window": 32, "tie_word_embeddings": False},
    "gemma2": {
        "head_dim": 32,
        "sliding_window": 32,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 32,
        "sliding_window": 32,
        "query_pre_attn_scalar": 24,
        "num_hidden_layers": 3,
        "rope_parameters": TWO_ROPES,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "smollm3": {"num_hidden_layers": 4},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
    },
}
SPECIAL = {
    "llama": "rope scaling of Llama 3",
    "phi3": "joined layers, partial rotary embedding, LongRoPE",
    "qwen2": "biases of q, k and v",
    "qwen3": "norms of q and k, heads of their own size",
    "mistral": "sliding window, heads of their own size",
    "gemma2": (
        "norms of 1 + weight, norms behind the layers, soft caps, a window in every second layer"
    ),
    "gemma3_text": "as Gemma 2 but for the caps; norms of q and k, two rotary embeddings",
    "smollm3": "every fourth layer without rotary embedding",
    "granite": "multipliers of embedding, attention, residual and logits",
}
RECORDS = [
    {
        "prompt": "Where is the best view of Prague, and how do I get up there on foot?",
        "response": "From Petrin: take the stairs.",
    },
    {
        "prompt": "Hi?",
        "response": (
            "Hello, and welcome to a long answer that says little, so that it has more tokens "
            "than a window."
        ),
    },
]


def make(kind: str, folder: Path, tokenizer, **settings) -> Path:
    """A model whose norms and biases are no ones and zeros, and of which a few channels carry more
    than the rest.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    same = {
        "vocab_size": 257,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "bos_token_id": 256,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "tie_word_embeddings": True,
    }
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **same | CASES[kind] | settings)
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
            if "input_" in name or "pre_" in name:
                parameter.data[::16] += 4
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def olive_run(workflow: dict, out: Path) -> Path:
    import olive

    places = {"output_dir": str(out), "cache_dir": str(out.with_name("cache"))}
    olive.run(workflow | places, package_config=labkit.olive_passes())
    return out / "model" if (out / "model").exists() else out


def apart(found, wanted) -> float:
    """How far *found* is from *wanted*, in spreads of *wanted*."""
    found, wanted = (
        np.concatenate([np.ravel(part) for part in parts]) for parts in (found, wanted)
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean()))


@dataclass
class Route:
    """What came of one architecture; the differences are of the losses of all tokens, in their own
    spreads.
    """

    values: int  # in a group of the AWQ grid, at most
    plain_rounding: float  # difference of the model of rounded weights from the one in 16 bits
    awq: float  # the same, of the AWQ model
    trained: set[str]  # layers that have an adapter
    linears: set[str]
    effect: float  # of the adapter
    joined: int  # matrices in the adapter's file
    parity: dict
    off: float  # ONNX against torch
    on: float
    # how much worse, in transformers' logits, GenAI's tokens are than the best, in their spreads
    worse: list[float]
    same_file: bool  # the adapter written beside the graph, and the one that Olive takes out of it


def rounded_to_nearest(folder: Path):
    from labkit.grid import round_to_grid

    model = load(folder)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = round_to_grid(module.weight.data, 32).values()
    return model


def take(kind: str, folder: Path, tokenizer) -> Route:
    """Labs 01 to 05, as far as plumbing goes."""
    from peft import LoraConfig, get_peft_model

    def losses(model, adapter=None):
        is_onnx = isinstance(model, Path)
        logits = (
            labkit.OnnxLogits(model, adapter=adapter) if is_onnx else labkit.torch_logits(model)
        )
        return labkit.record_losses(logits, tokenizer, RECORDS)

    # lab 01
    fetch_model(folder / "base", replace(CPU, model=str(make(kind, folder / "source", tokenizer))))
    # lab 02
    rows = [
        {"token_ids": labkit.chat_ids(tokenizer, record)[0]}
        for record in labkit.load_records(CPU.data)[:4]
    ]
    (folder / "calibration.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workflow = Lab("02", CPU).workflow(
        "quantize",
        model=folder / "base",
        calibration=folder / "calibration.jsonl",
        quantize_dtype="float32",
    )
    packed = olive_run(workflow, folder / "awq")
    labkit.unpack_awq(packed, folder / "dense")
    base, model = losses(load(folder / "base")), load(folder / "dense")
    linears = {
        n: m for n, m in model.model.layers.named_modules() if isinstance(m, torch.nn.Linear)
    }
    groups = torch.cat([layer.weight.detach().reshape(-1, 32) for layer in linears.values()])
    values = max(len(group.unique()) for group in groups)
    plain = losses(model)
    # lab 03
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(CPU.lora_targets), init_lora_weights=False
    )
    torch.manual_seed(1)
    model = get_peft_model(model, lora).eval()
    model.save_pretrained(folder / "adapter")
    tuned = losses(model)
    trained = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
    # lab 04
    tied = model.config.tie_word_embeddings
    workflow = Lab("04", CPU).workflow(
        "optimize", model=folder / "dense", adapter=folder / "adapter", tied=tied
    )
    onnx_dir = olive_run(workflow, folder / "onnx")
    assert_valid(onnx_dir / "model.onnx")
    adapter = onnx_dir / "adapter_weights.onnx_adapter"
    labkit.write_adapter(
        folder / "again.onnx_adapter",
        folder / "adapter",
        graph=onnx_dir / "model.onnx",
        model_dir=folder / "dense",
    )
    return Route(
        values=values,
        plain_rounding=apart(losses(rounded_to_nearest(folder / "base")), base),
        awq=apart(plain, base),
        trained=trained,
        linears={name.split(".")[-1] for name in linears},
        effect=apart(tuned, plain),
        joined=len(weights_in(adapter)),
        parity=labkit.compare_weights(onnx_dir, packed),
        off=apart(losses(onnx_dir), plain),
        on=apart(losses(onnx_dir, adapter=adapter), tuned),
        worse=worse(model, onnx_dir, adapter, tokenizer),
        same_file=bits_in(folder / "again.onnx_adapter") == bits_in(adapter),
    )


def bits_in(adapter: Path) -> dict[str, tuple]:
    """Name -> type, shape and bytes of each weight."""
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in weights_in(adapter).items()}


def worse(model, onnx_dir: Path, adapter: Path, tokenizer) -> list[float]:
    """Lab 05: 24 greedy tokens of GenAI without and with the adapter; transformers reads them and
    says how good each was.
    """
    import onnxruntime_genai as og

    engine = og.Model(str(onnx_dir))
    adapters = og.Adapters(engine)
    adapters.load(str(adapter), "travel")
    turn = [{"role": "user", "content": RECORDS[0]["prompt"]}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    ids, found = og.Tokenizer(engine).encode(text), []
    assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    for name in (None, "travel"):
        settings = og.GeneratorParams(engine)
        settings.set_search_options(
            max_length=len(ids) + 24,
            min_length=len(ids) + 24,
            do_sample=False,
            repetition_penalty=1.0,
        )
        generator = og.Generator(engine, settings)
        if name:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        written = torch.tensor(generator.get_sequence(0).tolist())
        with nullcontext() if name else model.disable_adapter(), torch.inference_mode():
            logits = model(written[None]).logits[
                0, len(ids) - 1 : -1, :256
            ]  # a turn's end is not allowed before min_length
        missing = logits.amax(-1) - logits.gather(-1, written[len(ids) :, None])[:, 0]
        found.append((missing / logits.std(-1)).max().item())
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products of 64 channels are done before a second thread has started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def route(tmp_path_factory, byte_tokenizer):
    """kind -> its Route, which is taken once."""
    taken: dict[str, Route] = {}

    def of(kind: str) -> Route:
        if kind not in taken:
            taken[kind] = take(kind, tmp_path_factory.mktemp(kind), byte_tokenizer)
        return taken[kind]

    return of


# ---- carried


def same_logits(
    folder: Path, tmp_path: Path, *, provider: str = CPU.provider, precision: str = "fp32"
) -> dict[int, float]:
    """Tokens -> relative difference of the logits, between transformers and the graph for
    *provider*, run on the CPU.
    """
    workflow = Lab("04", CPU).workflow(
        "optimize", provider=provider, model=folder, adapter=None, tied=True
    )
    del workflow["input_model"]["adapter_path"]
    capture = {
        "type": "LoraModelBuilder",
        "precision": precision,
        "extra_options": {"hf_remote": False},
    }
    logits = labkit.OnnxLogits(
        olive_run(workflow | {"passes": {"capture": capture}}, tmp_path / "onnx")
    )
    model, found = load(folder), {}
    ids = torch.randint(0, 256, (200,), generator=torch.Generator().manual_seed(5)).tolist()
    for count in (8, 32, 33, 64, 65, 200):  # below and beyond each window and original length
        with torch.inference_mode():
            wanted = model(torch.tensor([ids[:count]])).logits[0]
        found[count] = ((logits([ids[:count]])[0].float() - wanted).norm() / wanted.norm()).item()
    return found


@pytest.mark.parametrize("kind", CARRIED)
def test_the_graph_computes_what_transformers_computes(kind, tmp_path, byte_tokenizer):
    found = same_logits(make(kind, tmp_path / "model", byte_tokenizer), tmp_path)
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("kind", [kind for kind in CARRIED if not kind.startswith("gemma")])
def test_the_graph_for_a_gpu_computes_the_same_in_16_bits(kind, tmp_path, byte_tokenizer):
    folder = make(kind, tmp_path / "model", byte_tokenizer)
    found = same_logits(folder, tmp_path, provider="CUDAExecutionProvider", precision="fp16")
    assert max(found.values()) < 0.01, found


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_positions_that_are_scaled_evenly(kind, tmp_path, byte_tokenizer):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    found = same_logits(
        make(kind, tmp_path / "model", byte_tokenizer, rope_parameters=rope), tmp_path
    )
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_windows_of_some_layers_only(kind, tmp_path, byte_tokenizer):
    windows = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    found = same_logits(make(kind, tmp_path / "model", byte_tokenizer, **windows), tmp_path)
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("kind", CARRIED)
def test_the_route(kind, route):
    assert all(checks(kind, route(kind)).values()), route(kind)
    assert route(kind).same_file


def checks(kind: str, found: Route) -> dict[str, bool]:
    """Column of the page -> whether it holds."""
    layers = CASES[kind].get("num_hidden_layers", 2)
    return {
        "AWQ": found.values <= 16 and found.awq < 1.2 * found.plain_rounding,
        "LoRA": found.trained == found.linears <= LINEARS
        and found.effect > 0.5
        and found.joined == 2 * 4 * layers,
        "integers": found.parity["share_of_weights"] == 1 and found.parity["same_groups"] >= 0.99,
        "loss": found.off < 0.2,
        "loss with adapter": found.on < 0.2,
        "answers": max(found.worse) < 1,
    }


@pytest.mark.parametrize("kind", CARRIED)
def test_the_search_runs_each_block_as_the_model_does_and_its_scales_cancel(
    kind, tmp_path, byte_tokenizer, monkeypatch
):
    """Without rounding, and with whatever scales, the model stays the same; masks and rotary
    embeddings differ by block.
    """
    from labkit.passes.awq import awq_quantize
    from labkit.passes.awq_blocks import DeviceQuantizer

    folder, found, quantize = (
        make(kind, tmp_path / "model", byte_tokenizer),
        [],
        DeviceQuantizer._quantize,
    )
    ids = torch.randint(0, 256, (2, 128), generator=torch.Generator().manual_seed(5))

    def noted(self):
        quantize(self)
        found.extend([self.inps, self.model(ids).logits])

    monkeypatch.setattr(DeviceQuantizer, "_quantize", noted)
    monkeypatch.setattr(
        DeviceQuantizer,
        "_best_scales",
        lambda self, *_, inp, **__: 0.5 + torch.rand(inp.shape[-1]),
    )
    monkeypatch.setattr(DeviceQuantizer, "_clipped", lambda self, weight, inputs: weight)
    monkeypatch.setattr(DeviceQuantizer, "_packed", lambda self, linear, weight: linear)
    awq_quantize(
        folder,
        tmp_path / "awq",
        calibration=ids.tolist(),
        group_size=32,
        dtype="float32",
        device="cpu",
    )
    model = load(folder)
    model.model.layers[-1].register_forward_hook(lambda *given: found.append(given[2]))
    with torch.inference_mode():
        logits = model(ids).logits
    for mine, wanted in zip(found[:2], (found[2], logits), strict=True):
        assert (mine - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_olive_trains_an_adapter(kind, tmp_path, byte_tokenizer):
    """Two steps: every linear layer gets an adapter, by the names that lab 03 gives."""
    from safetensors.torch import load_file

    folder = make(kind, tmp_path / "model", byte_tokenizer)
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in RECORDS * 4))
    workflow = Lab("03", CPU).workflow(
        "finetune", model=folder, train=records, heldout=records, steps=2, dtype="float32"
    )
    workflow["passes"]["lora"]["training_args"]["output_dir"] = str(tmp_path / "trainer")
    olive_run(workflow, tmp_path / "lora")
    adapter = load_file(next((tmp_path / "lora").rglob("adapter_model.safetensors")))
    linears = [
        name
        for name, module in load(folder).model.layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    assert len(adapter) == 2 * len(linears)
    assert all(tensor.abs().sum() > 0 for tensor in adapter.values())  # B starts as zeros


# ---- what the notebooks look at


def function_of(number: str, name: str, **known):
    """The function *name* that a cell of a lab defines, beside what is *known* there."""
    for cell in json.loads(notebook_path(number).read_text())["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    scope = {"torch": torch} | known
                    exec(ast.unparse(node), scope)
                    return scope[name]
    raise AssertionError(f"lab {number} defines no function {name}")


@pytest.mark.parametrize("kind", CARRIED)
def test_lab_02_reads_the_scale_off_the_normalisation(kind, tmp_path, byte_tokenizer):
    from labkit.passes.awq_blocks import DeviceQuantizer

    block = load(make(kind, tmp_path / "model", byte_tokenizer)).model.layers[1]
    search, scales = (
        object.__new__(DeviceQuantizer),
        0.5 + torch.rand(CASES[kind].get("hidden_size", 64)),
    )
    search.apply_clip = False
    gain_of = function_of("02", "gain_of")
    before = gain_of(block)
    search._scale({"prev_op": block.input_layernorm, "layers": []}, scales)
    torch.testing.assert_close(before / gain_of(block), scales, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", CARRIED)
def test_lab_03_answers_in_a_batch_what_it_answers_alone(kind, tmp_path, byte_tokenizer):
    # as long as an answer is within a window and an original length, as in the labs: beyond it,
    # transformers chooses LongRoPE's table by the longest prompt of a batch, for all
    long = {"sliding_window": 512, "original_max_position_embeddings": 512}
    changes = {name: long[name] for name in long.keys() & CASES[kind].keys()}
    folder = make(kind, tmp_path / "model", byte_tokenizer, **changes)
    answers = function_of(
        "03", "answers", labkit=labkit, tokenizer=byte_tokenizer, stop_ids=labkit.stop_ids(folder)
    )
    model, questions = load(folder), ["a", "some more words than in the others", "bc", "def"]
    alone = [answers(model, [question], limit=24)[0] for question in questions]
    assert answers(model, questions, limit=24) == alone
    assert len(set(alone)) > 1 or kind == "gemma3_text"  # which says the same to all


# ---- refused


def refusal(folder: Path, out: Path, tokenizer, *, profile=CPU, **changes) -> str:
    """What lab 01 says about a model whose config.json has these *changes*."""
    make(changes.pop("like", "llama"), folder, tokenizer)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(LabError) as error:
        fetch_model(out, replace(profile, model=str(folder)))
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            {"model_type": "olmo2"},
            "the ONNX model builder of onnxruntime-genai 0.14.1 does not know it",
        ),
        ({"model_type": "phi"}, "AutoAWQ 0.2.9 has no search"),
        (
            {"model_type": "gemma3", "vision_config": {}},
            "it reads images; the smaller Gemma 3 models",
        ),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, IMAGES),
        ({"model_type": "phi3_v", "img_processor": {}}, IMAGES),
        (
            {
                "model_type": "llama4",
                "vision_config": {},
                "text_config": {"num_local_experts": 16},
            },
            IMAGES,
        ),
        ({"model_type": "mixtral", "num_local_experts": 8}, EXPERTS),
        ({"model_type": "qwen3_moe", "num_experts": 128}, EXPERTS),
        ({"model_type": "my-own"}, OTHER),
    ],
)
def test_other_architectures_are_refused_with_the_reason(config, why, tmp_path, byte_tokenizer):
    said = refusal(tmp_path / "model", tmp_path / "out", byte_tokenizer, **config)
    assert (
        f"'{config['model_type']}', which these labs do not carry: {why}" in said
        and "Qwen3" in said
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 80}, "hidden_size 80"),
        ({"intermediate_size": 80}, "intermediate_size 80"),
        ({"like": "qwen3", "head_dim": 20}, "num_attention_heads x head_dim 80"),
        ({"like": "mistral", "head_dim": 12}, "num_attention_heads x head_dim 48"),
    ],
)
def test_layers_that_do_not_divide_into_groups(changes, said, tmp_path, byte_tokenizer):
    assert f"{said} is not divisible by the group size 32" in refusal(
        tmp_path / "m", tmp_path / "out", byte_tokenizer, **changes
    )


YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 1e4,
}


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        ("qwen2", YARN),
        ("llama", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        (
            "gemma3_text",
            TWO_ROPES
            | {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}},
        ),
    ],
)
def test_positions_that_the_builder_computes_otherwise(kind, rope, tmp_path, byte_tokenizer):
    said = refusal(
        tmp_path / "model", tmp_path / "out", byte_tokenizer, like=kind, rope_parameters=rope
    )
    assert f"rotary embedding '{rope.get('full_attention', rope)['rope_type']}'" in said


def test_gemma_needs_32_bits(tmp_path, byte_tokenizer):
    said = refusal(
        tmp_path / "model",
        tmp_path / "out",
        byte_tokenizer,
        like="gemma2",
        profile=PROFILES["gpu"],
    )
    assert "Use the cpu profile" in said


# ---- the page


def tables(route) -> list[str]:
    """The two tables of docs/MODELS.md, of what this run has found."""
    rows = {kind: checks(kind, route(kind)) for kind in CARRIED}
    columns = ["models", "`model_type`", "what is special", *rows["llama"]]
    carried = [columns, ["---"] * len(columns)]
    for kind, models in CARRIED.items():
        carried.append(
            [
                models,
                f"`{kind}`",
                SPECIAL[kind],
                *("yes" if holds else "no" for holds in rows[kind].values()),
            ]
        )
    refused = [
        ["`model_type`", "why"],
        ["---"] * 2,
        *([f"`{kind}`", why] for kind, why in REFUSED.items()),
    ]
    refused += [
        ["models that read images or sound", IMAGES],
        ["mixtures of experts", EXPERTS],
        ["any other", OTHER],
    ]
    return ["".join(f"| {' | '.join(row)} |\n" for row in table) for table in (carried, refused)]


def test_the_page_is_what_was_found(route):
    found = tables(route)
    parts = re.split(r"((?:^\|.*\n)+)", PAGE.read_text(), flags=re.MULTILINE)
    if os.environ.get("LAB_WRITE"):
        parts[1::2] = found
        PAGE.write_text("".join(parts))
    assert parts[1::2] == found, (
        "LAB_WRITE=1 python -m pytest tests/test_architectures.py writes the tables of "
        "docs/MODELS.md"
    )


def test_every_refused_architecture_has_its_reason():
    assert not set(CARRIED) & set(REFUSED) and set(CARRIED) == set(CASES) == set(SPECIAL)
    assert all(why_refused({"model_type": kind}) == why for kind, why in REFUSED.items())

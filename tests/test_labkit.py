"""labkit, piece by piece; no model is downloaded."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import labkit
from labkit import workspace
from labkit.errors import LabError
from labkit.machine import Check, preflight, require
from labkit.profiles import PROFILES, ROOT, resolve_profile
from labkit.workspace import Lab

CPU = PROFILES["cpu"]


def lines(path: Path, *rows) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    )
    return path


def qa(n: int) -> dict:
    return {"prompt": f"Question {n}?", "response": f"Answer {n}."}


# ---- what notebooks import


def test_public_names_are_all_there():
    assert all(getattr(labkit, name) for name in labkit.__all__)


def test_importing_labkit_needs_the_standard_library_only():
    code = "import sys, labkit, labkit.commands; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'psutil', 'olive')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- profiles


def test_overrides(runs, monkeypatch, tmp_path):
    data = lines(tmp_path / "d.jsonl", qa(1))
    monkeypatch.setenv("LAB_MODEL", "me/my-model")
    monkeypatch.setenv("LAB_DATA", str(data))
    monkeypatch.setenv("LAB_STEPS", "12")
    profile = resolve_profile()
    assert (profile.name, profile.model, profile.data, profile.steps) == (
        "cpu",
        "me/my-model",
        str(data),
        12,
    )
    assert resolve_profile(model="other/one").model == "other/one"


@pytest.mark.parametrize("steps", ["0", "-3", "many", "2.5", 0, -1])
def test_steps_must_be_a_positive_number(runs, monkeypatch, steps):
    monkeypatch.delenv("LAB_STEPS")
    with pytest.raises(LabError, match="not a positive whole number"):
        resolve_profile(steps=steps)


def test_unknown_profile_names_the_known(runs, monkeypatch):
    monkeypatch.setenv("LAB_PROFILE", "tpu")
    with pytest.raises(LabError, match="unknown profile 'tpu'.*cpu, gpu"):
        resolve_profile()


def test_missing_data_file(runs, monkeypatch):
    monkeypatch.setenv("LAB_DATA", "/nowhere/d.jsonl")
    with pytest.raises(LabError, match="/nowhere/d.jsonl is missing"):
        resolve_profile()


def test_lab_01_saves_the_choice_and_the_others_follow(runs, capsys, tmp_path):
    data = str(lines(tmp_path / "d.jsonl", qa(1)))
    workspace.start("01", data=data)
    assert resolve_profile().data == data
    workspace.start("01")
    assert resolve_profile().data == CPU.data
    assert "profile cpu" in capsys.readouterr().out


# ---- steps


def test_a_step_is_kept_until_its_inputs_change(runs):
    lab, calls = Lab("01", CPU), itertools.count()
    content = "one"

    def build(out):
        next(calls)
        out.write_text(content)

    path = lab.step("train.jsonl", build)
    lab.step("train.jsonl", build)
    assert next(calls) == 1 and path.read_text() == "one"
    content = "two"
    lab.step("train.jsonl", build)
    assert path.read_text() == "two"


def test_a_remade_input_makes_what_came_after_stale(runs):
    lab = Lab("01", CPU)
    lab.step("base", lambda out: out.write_text("a"))
    lab.step("awq", lambda out: out.write_text("b"), needs=("base",))
    assert workspace.is_current(lab.folder, "awq")
    lab.step("base", lambda out: out.write_text("other"))
    assert not workspace.is_current(lab.folder, "awq")


def test_a_cut_file_is_not_taken_for_finished(runs):
    lab = Lab("01", CPU)
    lab.step("base", lambda out: out.write_text("whole"))
    (lab.folder / "base").write_text("who")
    with pytest.raises(LabError, match="run lab 01 first.*is not from a finished run"):
        lab.path("base")


def test_a_missing_lab_is_named(runs):
    with pytest.raises(LabError, match="run lab 02 first: .*awq-dense is missing"):
        Lab("03", CPU).path("awq-dense")


def test_a_failed_step_leaves_the_old_product_and_shows_the_log(runs):
    lab = Lab("01", CPU)
    lab.step("base", lambda out: out.write_text("good"))

    def broken(out):
        out.write_text("half")
        print("the reason")
        raise LabError("it went wrong.")

    with pytest.raises(LabError, match="it went wrong.*\n.*the reason"):
        lab.step("base", broken)
    assert (lab.folder / "base").read_text() == "good"


def test_olive_without_a_model_is_an_error(runs):
    class Output:
        def has_output_model(self):
            return False

    def build(out):
        out.mkdir()
        (out / "log").touch()
        return Output()

    with pytest.raises(LabError, match="Olive produced no model"):
        Lab("02", CPU).step("awq", build)


def test_a_step_may_keep_one_file_of_a_folder(runs):
    """The folder that *build* gets has no suffix, even for a product that has one: Olive would write beside it."""

    def build(out):
        assert not out.suffix
        out.mkdir()
        (out / "weights").write_text("whole")
        (out / "other").write_text("not wanted")

    product = Lab("04", CPU).step("tone.onnx_adapter", build, keep="weights")
    assert product.name == "tone.onnx_adapter" and product.read_text() == "whole"
    assert not [
        path for path in product.parent.iterdir() if path.name.startswith((".partial", "other"))
    ]


def test_a_step_that_writes_nothing_is_an_error(runs):
    with pytest.raises(LabError, match="wrote nothing"):
        Lab("02", CPU).step("awq", lambda out: None)


def test_a_full_disk_is_said(runs):
    def build(out):
        raise OSError(28, "No space left on device")

    with pytest.raises(LabError, match="the disk that holds .* is full"):
        Lab("02", CPU).step("awq", build)


def test_a_figure_that_is_no_number_is_an_error(runs):
    with pytest.raises(LabError, match="eval_loss.base is not a finite number"):
        Lab("01", CPU).measure("baseline", lambda: {"eval_loss": {"base": float("nan")}})


def test_a_kernel_killed_in_a_step_leaves_nothing_finished(runs):
    code = (
        "import time; from labkit.workspace import Lab; from labkit.profiles import PROFILES\n"
        "def build(out):\n    out.mkdir(); (out / 'half').write_text('x'); time.sleep(60)\n"
        "Lab('01', PROFILES['cpu']).step('base', build)"
    )
    script = runs.with_name("killed.py")
    script.write_text(code)
    child = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    partial = runs / "cpu" / ".partial-base" / "half"
    deadline = time.monotonic() + 30
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert partial.exists()
    lab = Lab("01", CPU)
    assert not workspace.is_current(lab.folder, "base")
    lab.step("base", lambda out: out.write_text("whole"))
    assert (runs / "cpu" / "base").read_text() == "whole" and not partial.exists()


def test_a_killed_or_failed_rebuild_does_not_leave_the_old_product_as_finished(runs):
    lab = Lab("03", CPU)
    lab.step("lora", lambda out: out.write_text("60 steps"))

    def rebuild(out):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.step("lora", rebuild)
    with pytest.raises(LabError, match="run lab 03 first"):
        lab.path("lora")


def test_a_product_of_another_model_or_other_data_is_refused(runs, tmp_path):
    Lab("01", CPU).step("base", lambda out: out.write_text("x"))
    other = replace(CPU, data=str(lines(tmp_path / "d.jsonl", qa(1))))
    with pytest.raises(LabError, match="another model or other data"):
        Lab("02", other).path("base")


def test_any_error_in_a_step_is_one_paragraph_with_the_log(runs):
    def build(out):
        print("last words")
        raise RuntimeError("boom")

    with pytest.raises(LabError, match="awq failed with RuntimeError: boom(.|\n)*last words"):
        Lab("02", CPU).step("awq", build)


def test_two_runs_in_one_folder(runs, tmp_path):
    with workspace.folder_lock(tmp_path):
        code = "import pathlib, sys; from labkit.workspace import folder_lock\nwith folder_lock(pathlib.Path(sys.argv[1])): pass"
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
        )
    assert second.returncode and "another run is writing to" in second.stderr


def test_chatter_goes_to_the_log(runs, capfd):
    def build(out):
        out.write_text("x")
        print("from python")
        os.write(1, b"from C\n")

    lab = Lab("01", CPU)
    lab.step("base", build)
    printed = capfd.readouterr().out
    assert "from python" not in printed and "from C" not in printed and "base:" in printed
    log = (lab.logs / "01-base.log").read_text()
    assert "from python" in log and "from C" in log


def test_summary_merges_the_figures(runs):
    lab = Lab("01", CPU)
    lab.measure("a", lambda: {"eval_loss": {"base": 3.0}})
    lab.measure("b", lambda: {"eval_loss": {"awq_int4": 3.1}, "ttft_ms": 5.0})
    summary = lab.summary()
    assert summary["eval_loss"] == {"base": 3.0, "awq_int4": 3.1} and summary["ttft_ms"] == 5.0
    assert summary == json.loads((lab.folder / "summary.json").read_text())
    assert summary["peak_rss_mb"] > 0 and summary["machine"]["threads"] >= 1
    assert len((lab.folder / "ledger.jsonl").read_text().splitlines()) == 2


def test_checkpoints(runs, capsys):
    lab = Lab("03", CPU)
    lab.checkpoint("3.3", fine=True)
    lab.checkpoint("3.3", judged=False, loss_improved=False)
    assert "fine: yes" in (out := capsys.readouterr().out) and "loss improved: not judged" in out
    with pytest.raises(LabError, match="checkpoint 3.3 failed: loss improved: no"):
        lab.checkpoint("3.3", loss_improved=False)


def test_start_switches_telemetry_off(runs, monkeypatch):
    for name in workspace.TELEMETRY_OFF:
        monkeypatch.delenv(name, raising=False)
    workspace.start("01")
    assert os.environ["OLIVE_DISABLE_TELEMETRY"] == os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_no_telemetry_of_olive_and_onnx_runtime_is_prepared(runs, tmp_path):
    """Both keep a device id and a queue under the home folder where they report; Olive does so before it reads its switch."""
    code = (
        "import labkit, time; labkit.start('01'); import olive, onnxruntime, onnxruntime_genai\n"
    )
    code += "from olive.telemetry.telemetry import Telemetry\nTelemetry(); time.sleep(1)"
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {*workspace.TELEMETRY_OFF, "CI", "GITHUB_ACTIONS"}
    }
    env = kept | {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / ".cache"),
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.name in ("deviceid", "olive.json", "onnxruntime.db")
    ]


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "file" / "runs"))
    with pytest.raises(LabError, match="outputs cannot be written to .* Set LAB_RUNS"):
        workspace.start("01")


def test_the_gpu_profile_without_a_gpu(runs):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LabError, match="needs an NVIDIA GPU"):
        workspace.start("01", profile="gpu")


# ---- preflight


def test_preflight_says_what_to_do(runs, capsys):
    greedy = replace(CPU, ram_gb=10**6, disk_gb=10**6)
    checks = preflight(greedy)
    assert {c.name for c in checks if not c.ok} >= {"memory", "free disk"}
    with pytest.raises(LabError, match="memory: .*needed.*free disk: .*LAB_RUNS"):
        require(greedy)
    assert "FAIL memory" in capsys.readouterr().out


def test_preflight_passes_where_all_is_well(monkeypatch, capsys):
    monkeypatch.setattr("labkit.machine.preflight", lambda profile: [Check("x", True, "y", "z")])
    require(CPU)
    assert "ok   x" in capsys.readouterr().out


def test_preflight_of_the_gpu_profile_asks_for_a_gpu(runs, monkeypatch):
    def advice(found):
        monkeypatch.setattr("labkit.machine._first_gpu", lambda: found)
        return [c.advice for c in preflight(PROFILES["gpu"]) if c.name == "GPU" and not c.ok]

    assert "nvidia-smi" in advice(None)[0]
    assert "driver of version" in advice(["NVIDIA A10", "470.57.02", "23028"])[0]
    assert "more memory" in advice(["Tesla T4", "535.57.02", "15360"])[0]
    assert not advice(["NVIDIA A10", "535.57.02", "23028"])
    assert not advice(["NVIDIA GB10", "580.95.05", "[N/A]"])


def test_training_in_bfloat16_only_where_the_processor_has_it(monkeypatch):
    from labkit import profiles

    x86, arm = "flags : sse2 avx2 fma", "Features : fp asimd"
    rows = (
        (x86, "float32"),
        (f"{x86} avx512bw", "bfloat16"),
        (arm, "float32"),
        (f"{arm} bf16", "bfloat16"),
        ("", "float32"),
    )
    for flags, dtype in rows:
        monkeypatch.setattr(profiles.Path, "read_text", lambda _, flags=flags: flags)
        assert profiles._cpu_dtype() == dtype


def test_a_lab_says_who_holds_the_gpu(runs, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 10**9, 24 * 10**9))
    with pytest.raises(
        LabError, match=r"5\.0 GB of the GPU's memory are free.*Restart this kernel.*Shut Down All"
    ):
        workspace.start("01", profile="gpu")


def test_a_step_on_a_gpu_starts_with_torch_s_cache_empty(runs, monkeypatch):
    """ONNX Runtime allocates on its own: what torch holds for later is lost to it."""
    import torch

    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 10**9, 24 * 10**9))
    Lab("05", PROFILES["gpu"]).measure("speed", lambda: {"x": {"freed": len(freed)}})
    Lab("05", CPU).measure("speed", lambda: {"x": {"y": 1}})
    assert len(freed) == 1
    assert Lab("05", PROFILES["gpu"]).figures("x") == {"freed": 1}


# ---- quantization


def test_awq_is_correct_on_the_cpu_and_better_than_rounding(tiny, tmp_path):
    """The output of the quantized model is nearer to the original than that of plain rounding (AutoAWQ's own search is not)."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from labkit.passes.awq import awq_quantize
    from labkit.quantize import unpack_awq

    torch.manual_seed(1)
    calibration = torch.randint(0, 256, (8, 128)).tolist()
    awq_quantize(
        tiny,
        tmp_path / "awq",
        calibration=calibration,
        group_size=32,
        dtype="float32",
        device="cpu",
    )
    packed = load_file(next((tmp_path / "awq").glob("*.safetensors")))
    assert {tensor.dtype for tensor in packed.values()} == {
        torch.int32,
        torch.float16,
    }  # whatever the search computed in
    unpack_awq(tmp_path / "awq", tmp_path / "dense")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    awq = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    rounded = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for module in rounded.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            groups = module.weight.data.reshape(-1, 32)
            low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
            scale = (high - low) / 15
            zero = (-low / scale).round()
            module.weight.data = (
                (((groups / scale).round() + zero).clamp(0, 15) - zero) * scale
            ).reshape(module.weight.shape)
    group = awq.model.layers[0].mlp.down_proj.weight[0, :32]
    assert group.unique().numel() <= 16
    ids = torch.randint(0, 256, (8, 64))
    with torch.no_grad():
        wanted, from_awq, from_rounding = (m(ids).logits for m in (base, awq, rounded))
    assert (from_awq - wanted).norm() < (from_rounding - wanted).norm()


def test_too_little_calibration_text(tiny, tmp_path):
    from labkit.passes.awq import awq_quantize

    with pytest.raises(LabError, match="fewer than 128 tokens"):
        awq_quantize(
            tiny,
            tmp_path / "awq",
            calibration=[[1, 2, 3]],
            group_size=32,
            dtype="float32",
            device="cpu",
        )


def test_olive_knows_our_passes():
    from olive.package_config import OlivePackageConfig

    from labkit.passes import olive_passes
    from labkit.passes.awq import AwqQuantizer
    from labkit.passes.builder import LoraModelBuilder

    package = OlivePackageConfig.parse_file_or_obj(olive_passes())
    assert package.import_pass_module("AwqQuantizer") is AwqQuantizer
    assert package.import_pass_module("LoraModelBuilder") is LoraModelBuilder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def untied(architecture: str, folder: Path) -> Path:
    """A tiny model, embedding and head not tied: a Phi-3, whose q, k, v and gate, up are fused, or a Llama with biases."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    same = {
        "vocab_size": 257, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "tie_word_embeddings": False, "eos_token_id": 256, "pad_token_id": 256, "bos_token_id": 256,
        "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip
    if architecture == "phi3":
        model = Phi3ForCausalLM(
            Phi3Config(num_key_value_heads=4, original_max_position_embeddings=256, **same)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(num_key_value_heads=2, attention_bias=True, mlp_bias=True, **same)
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("architecture", "targets", "joined"),
    [("phi3", CPU.lora_targets, 4), ("llama", ("q_proj", "up_proj", "down_proj"), 3)],
)
def test_the_route_of_an_untied_model(architecture, targets, joined, tiny, tmp_path, runs):
    """Lab 04's workflow: every adapter is extracted, and the graph has the model's loss with and without them."""
    import numpy as np
    import olive
    import onnxruntime as ort
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = untied(architecture, tmp_path / architecture)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=200, target_modules=list(targets), init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    workflow = Lab("04", CPU).workflow(
        "optimize", model_path=folder, adapter_path=tmp_path / "adapter"
    )
    passes = workflow["passes"]
    passes["capture"]["extra_options"]["shared_embeddings"] = False
    surgery = {
        "type": "GraphSurgeries",
        "surgeries": [{"surgeon": "QuantizeEmbeddingInt8"}],
        "remove_duplicate_initializers": False,
    }
    workflow["passes"] = {
        "capture": passes["capture"],
        "embedding": surgery,
        "extract": passes["extract"],
    }
    onnx_dir = Lab("04", CPU).step(
        "onnx",
        lambda out: olive.run(
            workflow | {"output_dir": str(out)}, package_config=labkit.olive_passes()
        ),
    )
    genai = json.loads((onnx_dir / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 0  # all cores
    adapter = ort.AdapterFormat.read_adapter(
        str(onnx_dir / "adapter_weights.onnx_adapter")
    ).get_parameters()
    assert len(adapter) == 2 * joined * 2  # layers, linears (q, k, v and gate, up joined), A and B
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [
        np.array(labkit.record_losses(onnx_dir, tokenizer, [qa(1)], adapter=file)[0])
        for file in (None, onnx_dir / "adapter_weights.onnx_adapter")
    ]
    tuned = np.array(labkit.record_losses(model.eval(), tokenizer, [qa(1)])[0])
    with model.disable_adapter():
        plain = np.array(labkit.record_losses(model, tokenizer, [qa(1)])[0])
    step = np.linalg.norm(tuned - plain)
    for onnx, torch in zip(
        found, (plain, tuned), strict=True
    ):  # 4 bits are coarse for random weights
        assert step > 1 and np.linalg.norm(onnx - torch) < 0.35 * step


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_longrope_takes_its_table_by_length(provider, tiny, tmp_path, runs):
    """The graph for CUDA, which has no If that a CUDA graph could not hold, computes the same (here on the CPU)."""
    import olive
    import onnx
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

    from labkit.evaluate import _onnx_logits

    torch.manual_seed(0)
    factors = {
        "long_factor": [float(8 + i) for i in range(8)],
        "short_factor": [1 + i / 8 for i in range(8)],
    }
    config = Phi3Config(
        vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, original_max_position_embeddings=16, max_position_embeddings=64, pad_token_id=256,
        eos_token_id=256, bos_token_id=256, initializer_range=0.2, rope_scaling={"type": "longrope", **factors},
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "phi3")
    edit_config(
        tmp_path / "phi3",
        rope_scaling={"type": "longrope", **factors},
        rope_theta=10000.0,
        rope_parameters=None,
    )
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "phi3")
    workflow = Lab("04", CPU).workflow("optimize", provider=provider, model_path=tmp_path / "phi3")
    del workflow["input_model"]["adapter_path"]
    precision = "fp16" if provider.startswith("CUDA") else "fp32"
    extra = {"hf_remote": False} | ({"enable_cuda_graph": True} if precision == "fp16" else {})
    capture = {"type": "LoraModelBuilder", "precision": precision, "extra_options": extra}
    out = tmp_path / "onnx"
    olive.run(
        workflow | {"passes": {"capture": capture}, "output_dir": str(out)},
        package_config=labkit.olive_passes(),
    )
    kinds = {
        node.op_type for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node
    }
    assert ("If" in kinds, "Where" in kinds) == (
        (False, True) if precision == "fp16" else (True, False)
    )
    assert ('"enable_cuda_graph": "1"' in (out / "genai_config.json").read_text()) == (
        precision == "fp16"
    )
    logits, model = (
        _onnx_logits(out, "CPUExecutionProvider", None),
        AutoModelForCausalLM.from_pretrained(tmp_path / "phi3"),
    )
    ids = torch.randint(0, 256, (40,)).tolist()
    for count in (10, 16, 17, 40):
        with torch.inference_mode():
            wanted = model(torch.tensor([ids[:count]])).logits[0]
        assert (logits(ids[:count]).float() - wanted).norm() < 0.01 * wanted.norm(), count


# ---- evaluation


def test_the_loss_weighs_tokens_and_its_interval_records(monkeypatch):
    monkeypatch.setattr("labkit.evaluate.record_losses", lambda *_, **__: [[1.0, 3.0], [5.0]])
    found = labkit.eval_loss(None, None, [], name="x")
    assert found["eval_loss"] == {"x": 3.0}
    assert found["eval_loss_low"]["x"] == 2.0 and found["eval_loss_high"]["x"] == 5.0


def test_the_bootstrap_interval_is_that_of_the_mean():
    low, high = labkit.interval([0.0, 1.0] * 200)
    assert low == pytest.approx(0.45, abs=0.01) and high == pytest.approx(
        0.55, abs=0.01
    )  # 1.96 standard errors of 0.025
    assert labkit.interval([2.0, 2.0]) == (2.0, 2.0)


def test_an_exercise_says_so_and_stops_nothing(runs, capsys):
    lab = Lab("02", CPU)
    lab.exercise("2.1", is_small=True, is_right=False)
    assert "exercise 2.1: not yet" in capsys.readouterr().out
    lab.exercise("2.1", is_small=True, is_right=True)
    assert "exercise 2.1: solved" in capsys.readouterr().out


def test_an_experiment_is_measured_only_where_it_is_switched_on(runs, capsys):
    def take():
        return {"found": {"x": 1.0}}

    assert Lab("02", CPU).experiment("never stored", take) == ({}, "not measured")
    assert "LAB_EXPERIMENTS=1" in capsys.readouterr().out
    on = Lab("02", CPU, experiments=True)
    assert on.experiment("e", take) == ({"found": {"x": 1.0}}, "measured in this run")
    assert json.loads((on.folder / "experiments.json").read_text())["e"]["values"] == {
        "found": {"x": 1.0}
    }


def test_chat_ids_end_with_the_turn(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids, start = labkit.chat_ids(tokenizer, qa(1))
    assert tokenizer.decode(ids[start:]) == "Answer 1.<end>" and tokenizer.decode(
        ids[:start]
    ).endswith("assistant:")


def test_decode_speed_leaves_the_warm_up_out():
    def stream(delays=[0.5, 0.0, 0.0, 0.0]):  # noqa: B006 the list is the memory between calls
        time.sleep(delays.pop(0))
        for _ in range(5):
            time.sleep(0.01)
            yield 1

    found = labkit.decode_speed(stream, name="x", repeats=3)
    assert found["first_token_ms"]["x"] < 300 and found["tokens_per_s"]["x"] > 10

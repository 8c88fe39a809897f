"""The gpu profile at Phi-3.5-mini's size: its exact architecture with seeded random weights,
through the notebooks.

    phi.py make WORK                  # model and data
    phi.py labs WORK 01 02 03 04      # notebooks, as they are
    phi.py route WORK                 # the steps alone, with an untrained adapter
    phi.py check WORK                 # logits of the products against transformers
    phi.py decode WORK                # tokens per second against transformers
    phi.py table WORK                 # what the labs took

Each command ends within ten minutes on an H100. Where the GPU environment is not the locked one
(README of this folder), only the package check of lab 01 is left out. Random weights answer
nothing: checkpoints that judge an answer are reported, not raised.
"""

import argparse
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def make(work: Path, options) -> None:
    """WORK/model (tests/phi_model.py) and WORK/data.jsonl (long records; none: the labs' own)."""
    from phi_model import write_phi

    from labkit import chat_ids, load_records, load_tokenizer

    write_phi(
        work / "model",
        tokenizer=options.tokenizer,
        layers=options.layers,
        hidden=options.hidden,
        mlp=options.mlp,
    )
    tokenizer, records = (
        load_tokenizer(work / "model"),
        load_records(ROOT / "data" / "travel.jsonl"),
    )
    rng, rows = random.Random(7), []
    while len(rows) < options.records:
        some = rng.sample(records, 8)
        row = {"prompt": " ".join(r["prompt"] for r in some[:2]), "response": ""}
        while (
            len(chat_ids(tokenizer, row | {"response": row["response"] + "x"})[0]) < options.length
            and some
        ):
            row["response"] += some.pop()["response"] + " "
        rows.append(row)
    (work / "data.jsonl").unlink(missing_ok=True)
    if rows:
        (work / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = sum(math.prod(shape) for shape in shapes(work / "model"))
    print(f"{parameters:,} parameters, {len(rows)} records of some {options.length} tokens")


def shapes(folder: Path) -> list[list[int]]:
    """Shapes of all tensors of a checkpoint."""
    from safetensors import safe_open

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  no dictionary
    return found


def environment(work: Path, options) -> dict[str, str]:
    """What an attendee sets, for the labs on *work*."""
    paths = {"LAB_MODEL": work / "model", "LAB_RUNS": work / "runs"}
    if (work / "data.jsonl").exists():
        paths["LAB_DATA"] = work / "data.jsonl"
    return {"LAB_PROFILE": options.profile} | {name: str(path) for name, path in paths.items()}


def labs(work: Path, options) -> None:
    """Executes the notebooks of some labs, each in a kernel of its own, and prints seconds and
    what a checkpoint found wrong.
    """
    from labs import UNLOCKED, run_lab

    ballast = hold(options.gpu_gb) if options.gpu_gb else None
    try:
        for number in options.numbers:
            started = time.perf_counter()
            wrong = run_lab(
                number, environment(work, options) | {"LAB_REHEARSE": "1"}, work, first=[UNLOCKED]
            )
            print(
                f"lab {number}: {time.perf_counter() - started:.1f} s; checkpoints not passed: "
                f"{wrong or 'none'}",
                flush=True,
            )
    finally:
        if ballast:
            ballast.kill()


def hold(leave_gb: float) -> subprocess.Popen:
    """A process that takes the GPU's memory but *leave_gb* (10**9 bytes), so that a larger GPU is
    as tight as a smaller.
    """
    code = (
        "import sys, torch; free, total = torch.cuda.mem_get_info(); "
        "x = torch.empty(int(free - float(sys.argv[1]) * 1e9), dtype=torch.uint8, device='cuda'); "
        "print(torch.cuda.mem_get_info()[0] / 1e9, 'GB left', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(leave_gb)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    if not (left := process.stdout.readline().decode().strip()):
        raise SystemExit(f"the GPU has no {leave_gb:g} GB to leave free")
    print(left, flush=True)
    return process


def table(work: Path, options) -> None:
    """Prints seconds, host memory and GPU memory of every step, and sizes."""
    from labkit.products import Products
    from labkit.profiles import resolve_profile
    from labkit.summary import write_summary

    os.environ |= environment(work, options)
    summary = write_summary(Products(work / "runs" / options.profile), resolve_profile())
    steps = summary["seconds"]["steps"]
    print("| step | seconds | host memory, GB | GPU memory, GB |\n|---|---|---|---|")
    for name, seconds in steps.items():
        host, gpu = (
            summary[f"peak_{kind}_mb_by_step"].get(name, 0) / 1000 for kind in ("rss", "gpu")
        )
        print(f"| {name} | {seconds:.1f} | {host:.1f} | {gpu:.1f} |")
    route = [name for name in ("awq", "awq-dense", "lora", "onnx") if name in steps]
    print(
        "route:",
        " + ".join(f"{name} {steps[name]:.1f}" for name in route),
        f"= {sum(steps[n] for n in route):.1f} s",
    )
    print("sizes_mb:", summary.get("sizes_mb"), "eval_loss:", summary.get("eval_loss"))
    for folder in sorted((work / "runs" / options.profile).glob("onnx*")):
        size = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".onnx_adapter") / 1e6
        print(f"{folder.name}: {size:,.0f} MB without adapter")


def route(work: Path, options) -> None:
    """AWQ, its weights unpacked, a random adapter in place of lab 03's, and lab 04's workflow;
    prints seconds of each.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from labkit import chat_ids, load_records, load_tokenizer, unpack_awq
    from labkit.passes.awq import awq_quantize
    from labkit.profiles import PROFILES
    from labkit.session import Lab

    os.environ["LAB_RUNS"] = str(work / "runs")
    profile, out = PROFILES[options.profile], work / "runs" / options.profile
    if out.exists():
        raise SystemExit(f"{out} holds a run already: delete it, or make another WORK.")
    out.mkdir(parents=True)
    (out / "base").symlink_to(work / "model")

    def timed(name, action):
        started = time.perf_counter()
        action()
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)

    tokenizer = load_tokenizer(work / "model")
    records = load_records(work / "data.jsonl")[: options.calibration]
    data = {
        "calibration": [chat_ids(tokenizer, record)[0] for record in records],
        "group_size": profile.group_size,
    }
    data |= {"dtype": profile.quantize_dtype, "device": profile.device}
    timed("awq", lambda: awq_quantize(work / "model", out / "awq", **data))
    timed("awq-dense", lambda: unpack_awq(out / "awq", out / "awq-dense"))
    model = AutoModelForCausalLM.from_pretrained(out / "awq-dense", dtype=torch.float16)
    torch.manual_seed(7)
    lora = LoraConfig(
        r=profile.lora_rank,
        lora_alpha=profile.lora_alpha,
        target_modules=list(profile.lora_targets),
    )
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2e-3)
    model.save_pretrained(out / "lora" / "adapter")
    del model

    def optimize(folder, provider):
        config = Lab("04", profile).workflow(
            "optimize",
            provider=provider,
            model=out / "awq-dense",
            adapter=out / "lora" / "adapter",
            tied=False,
        )
        olive_run(config | {"output_dir": str(folder)})

    timed("onnx", lambda: optimize(out / "onnx", profile.provider))
    if profile.device == "cuda":
        timed("onnx-cpu", lambda: optimize(out / "onnx-cpu", "CPUExecutionProvider"))


def relative(found, wanted) -> str:
    """Error of logits [tokens, vocabulary] as text: relative (Frobenius), of the last token, and
    how often the argmax agrees.
    """
    found, wanted = found.float(), wanted.float()
    both = [
        ((f - w).norm() / w.norm()).item() for f, w in ((found, wanted), (found[-1], wanted[-1]))
    ]
    same = (found.argmax(-1) == wanted.argmax(-1)).float().mean().item()
    return f"{both[0]:.4f} | {both[1]:.4f} | {same:.1%}"


def check(work: Path, options) -> None:
    """Logits of the unquantized and the int4 graph, without and with adapter, below and beyond
    4,096 tokens, against torch.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from labkit.evaluate import OnnxLogits

    run = work / "runs" / options.profile
    dense, adapter, device = (
        run / "awq-dense",
        run / "lora" / "adapter",
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    draw = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 31000, (max(options.tokens),), generator=draw).tolist()
    prompts = [ids[:count] for count in options.tokens]
    wanted = {}
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).to(device).eval()
    for on in (False, True):
        model = PeftModel.from_pretrained(model, adapter).eval() if on else model
        with torch.inference_mode():
            for (
                prompt
            ) in prompts:  # the last 64 positions are enough, and keep 32,064 logits a token small
                wanted[on, len(prompt)] = (
                    model(torch.tensor([prompt], device=device), logits_to_keep=64).logits[0].cpu()
                )
    print(
        "| graph | adapter | tokens | error of the logits | last token | argmax agrees "
        "|\n|---|---|---|---|---|---|"
    )
    half = torch.float16 if device == "cuda" else torch.bfloat16
    model = model.to(half)  # what rounding of the activations alone does to these weights
    for prompt in prompts:
        with torch.inference_mode():
            x = torch.tensor([prompt], device=device)
            on = relative(model(x, logits_to_keep=64).logits[0].cpu(), wanted[True, len(prompt)])
            with model.disable_adapter():
                off = relative(
                    model(x, logits_to_keep=64).logits[0].cpu(), wanted[False, len(prompt)]
                )
        print(
            f"| {half} | off | {len(prompt)} | {off} |\n| {half} | on | {len(prompt)} | {on} |",
            flush=True,
        )
    del model
    gc.collect()
    torch.cuda.empty_cache()
    graphs = [("int4", run / "onnx", provider)]
    if (run / "onnx-cpu").exists():
        graphs.append(("int4, CPU", run / "onnx-cpu", "CPUExecutionProvider"))
    for on in (False, True):
        folder = work / f"float-{on}"
        if not options.no_float:
            if not (folder / "model.onnx").exists():
                build_float(dense, adapter if on else None, folder, provider)
            graphs.append(("float", folder, provider))
    for name, folder, where in graphs:
        for on in (False, True):
            if name == "float" and not folder.name.endswith(str(on)):
                continue
            weights = (
                run / folder.name / "adapter_weights.onnx_adapter"
                if on and name != "float"
                else None
            )
            logits = OnnxLogits(folder, provider=where, adapter=weights)
            for prompt in prompts:
                if where == "CPUExecutionProvider" and device == "cuda" and len(prompt) > 4200:
                    continue  # minutes
                found = logits([prompt])[0, -64:]
                print(
                    f"| {name} | {'on' if on else 'off'} | {len(prompt)} | "
                    f"{relative(found, wanted[on, len(prompt)])} |",
                    flush=True,
                )
            del logits
            gc.collect()


def build_float(dense: Path, adapter: Path | None, out: Path, provider: str) -> None:
    """The same graph without quantization (float16 on a GPU), its adapter's weights as constants."""
    import torch

    capture = {
        "type": "LoraModelBuilder",
        "precision": "fp16" if provider.startswith("CUDA") else "fp32",
    }
    capture["extra_options"] = {"hf_remote": False}
    accelerator = {
        "device": "gpu" if torch.cuda.is_available() else "cpu",
        "execution_providers": [provider],
    }
    config = {
        "input_model": {"type": "HfModel", "model_path": str(dense)} | ({"adapter_path": str(adapter)} if adapter else {}),
        "systems": {"local_system": {"type": "LocalSystem", "accelerators": [accelerator]}}, "target": "local_system",
        "passes": {"capture": capture}, "output_dir": str(out), "cache_dir": str(out) + "-cache", "clean_cache": True,
    }  # fmt: skip
    olive_run(config)


def olive_run(config: dict) -> None:
    """Runs a workflow; Olive itself raises nothing where a pass fails."""
    from olive import run

    from labkit import olive_passes

    if not run(config, package_config=olive_passes()).has_output_model():
        raise SystemExit(f"Olive produced no model in {config['output_dir']}: its log is above.")


def decode(work: Path, options) -> None:
    """Tokens per second and time to the first token: int4 in ONNX Runtime GenAI, and bfloat16 in
    transformers.
    """
    import torch  # first: ONNX Runtime takes the CUDA libraries that torch has loaded

    run = work / "runs" / options.profile
    draw = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 31000, (2048,), generator=draw).tolist()
    on_gpu = torch.cuda.is_available()
    plain, graph = (
        {"provider_options": [{"cuda": {"enable_cuda_graph": value}}]} if on_gpu else None
        for value in "01"
    )
    variants = {"int4 + adapter": (True, plain), "int4": (False, plain)}
    if on_gpu:
        variants |= {
            "int4 + adapter, CUDA graph": (True, graph),
            "int4, CUDA graph": (False, graph),
        }
    engines = []  # name, tokens of the prompt, a function that returns speeds
    for name, (adapter, overlay) in variants.items():
        for count in (128, 2048):
            measure = partial(
                genai_speed, run / "onnx", adapter, ids[:count], 128, options.repeats, overlay
            )
            engines.append((name, count, measure))
    if (run / "onnx-cpu").exists():
        for name, adapter in (("int4 + adapter, CPU", True), ("int4, CPU", False)):
            measure = partial(
                genai_speed, run / "onnx-cpu", adapter, ids[:128], 32, options.repeats
            )
            engines.append((name, 128, measure))
    engines += transformers_engines(run, ids, options.repeats)
    chosen = [engine for engine in engines if options.only in engine[0]]
    if not chosen:
        names = dict.fromkeys(name for name, *_ in engines)
        sys.exit(f"error: no engine has '{options.only}' in its name: {'; '.join(names)}")
    print(torch.cuda.get_device_name() if on_gpu else "cpu")
    print("| engine | prompt tokens | first token, ms | tokens/s |\n|---|---|---|---|")
    for name, count, measure in chosen:
        try:
            runs = measure()
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"| {name} | {count} | {why} | |", flush=True)
            continue
        first, speed = (sorted(values) for values in zip(*runs, strict=True))
        print(
            f"| {name} | {count} | {1000 * statistics.median(first):.1f} ({1000 * first[0]:.1f} "
            f"to {1000 * first[-1]:.1f}) | {statistics.median(speed):.1f} ({speed[0]:.1f} to "
            f"{speed[-1]:.1f}) |",
            flush=True,
        )
    if on_gpu and not options.only:
        for name, adapter in (("int4 + adapter", True), ("int4", False)):
            without, recorded = (
                forced_logits(run / "onnx", adapter, ids, overlay) for overlay in (plain, graph)
            )
            print(
                f"logits with a CUDA graph against without, {name}: {relative(recorded, without)}",
                flush=True,
            )


def generator_on(folder: Path, adapter: bool, overlay: dict | None):
    """A function (prompt, length) -> a GenAI generator that has read it, of one loaded model."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    if overlay:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": overlay}}}))
    model = og.Model(config)
    adapters = og.Adapters(model)
    if adapter:
        adapters.load(str(folder / "adapter_weights.onnx_adapter"), "travel")

    def started(prompt, length):
        settings = og.GeneratorParams(model)
        settings.set_search_options(max_length=length, min_length=length, repetition_penalty=1.0)
        generator = og.Generator(model, settings)
        if adapter:
            generator.set_active_adapter(adapters, "travel")
        generator.append_tokens(prompt)
        return generator

    return started


def genai_speed(folder, adapter, prompt, new, repeats, overlay=None) -> list[tuple[float, float]]:
    """(seconds to the first token, tokens per second after it) of each run but the first."""
    started_on = generator_on(folder, adapter, overlay)

    def once():
        started = time.perf_counter()
        generator = started_on(prompt, len(prompt) + new)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new - 1):
            generator.generate_next_token()
        return first - started, (new - 1) / (time.perf_counter() - first)

    return [once() for _ in range(repeats + 1)][1:]


def forced_logits(folder, adapter, ids, overlay):
    """Logits [64, vocabulary] of single tokens after a prompt of 128, the tokens given."""
    import torch

    generator = generator_on(folder, adapter, overlay)(ids[:128], 256)
    rows = []
    for token in ids[128:192]:
        generator.append_tokens([token])
        rows.append(torch.tensor(generator.get_logits()).reshape(-1))
    return torch.stack(rows)


def transformers_engines(run: Path, ids: list[int], repeats: int) -> list[tuple]:
    """As in decode, of bfloat16: one forward call a token (eager), and with a static cache and
    torch.compile.
    """
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    device = "cuda" if torch.cuda.is_available() else "cpu"

    @cache
    def model():
        loaded = AutoModelForCausalLM.from_pretrained(run / "base", dtype=torch.bfloat16)
        return loaded.to(device).eval()

    @cache
    def compiled():
        """And its cache: one for all runs, because CUDA graphs hold addresses."""
        step = torch.compile(model(), mode="reduce-overhead")
        return step, StaticCache(config=model().config, max_cache_len=2304)

    @torch.inference_mode()
    def once(step, past, count, new=64):
        x = torch.tensor([ids[:count]], device=device)
        position = torch.arange(count, device=device)
        started = time.perf_counter()
        output = model()(
            x, past_key_values=past, use_cache=True, logits_to_keep=1, cache_position=position
        )
        past, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        token.item()
        first = time.perf_counter()
        for i in range(count, count + new - 1):
            position = torch.tensor([i], device=device)
            output = step(
                token.clone(), past_key_values=past, use_cache=True, cache_position=position
            )
            token = output.logits[:, -1:].argmax(-1)
            token.item()
        return first - started, (new - 1) / (time.perf_counter() - first)

    def eager(count):
        return [once(model(), None, count) for _ in range(repeats + 1)][1:]

    @torch.inference_mode()  # in which the cache was filled
    def static(count):
        step, past = compiled()
        runs = []
        for _ in range(repeats + 2):
            past.reset()
            runs.append(once(step, past, count))
        return runs[2:]

    kinds = {"transformers bf16, eager": eager}
    if device == "cuda":
        kinds["transformers bf16, static cache, compiled"] = static
    return [
        (name, count, partial(measure, count))
        for name, measure in kinds.items()
        for count in (128, 2048)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["make", "labs", "table", "route", "check", "decode"])
    parser.add_argument("work", type=Path)
    parser.add_argument("numbers", nargs="*", default=[], help="labs to run")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--mlp", type=int, default=8192)
    parser.add_argument(
        "--tokenizer", type=Path, help="make: a folder with the tokenizer of the published model"
    )
    parser.add_argument("--records", type=int, default=320)
    parser.add_argument("--length", type=int, default=512, help="tokens of a record")
    parser.add_argument("--profile", default="gpu")
    parser.add_argument(
        "--gpu-gb",
        type=float,
        help="leave so much of the GPU's memory, as on a smaller one (10**9 bytes)",
    )
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 512, 4090, 4200, 6000])
    parser.add_argument(
        "--no-float", action="store_true", help="do not build and check the unquantized graph"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=128, help="records for AWQ in route")
    parser.add_argument(
        "--only", default="", help="decode: only the engines whose name holds this"
    )
    options = parser.parse_args()
    globals()[options.command](options.work.resolve(), options)


if __name__ == "__main__":
    main()

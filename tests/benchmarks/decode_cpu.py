"""Decoding on the CPU: our ONNX model in ONNX Runtime GenAI against llama.cpp, on the same 4-bit weights, in one process.

    pip install --no-deps --target /tmp/llama llama-cpp-python diskcache   # with
    CMAKE_ARGS=-DGGML_NATIVE=ON PYTHONPATH=/tmp/llama python tests/benchmarks/decode_cpu.py --run
    runs/cpu --out /tmp/decode.json

AWQ's asymmetric 4-bit grid with groups of 32 is what GGUF's Q4_1 holds; the tied head is in 8 bits
on both sides. Each engine runs without and with the same LoRA adapter,
beside the weights and in 32 bits. Held-out losses come first, and have to agree: speeds of
different models would say nothing. Then the four take turns, in rotating order.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime_genai as og
import torch
from gguf import GGUFReader
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import labkit
from labkit.machine import machine, threads, versions

try:
    import llama_cpp.llama_cpp as ll
    from llama_cpp import __version__ as llama_version
except ModuleNotFoundError as error:
    sys.exit(
        f"error: no module {error.name}. Run 'CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-deps "
        "--target /tmp/llama llama-cpp-python diskcache' (needs cmake and a C++ compiler), "
        "then set PYTHONPATH=/tmp/llama."
    )

CONTEXT = 512
AGREE = 0.02  # nats a token between the losses of the engines: both round activations to 8 bits, each in its own way
ENDS = ("_low", "", "_high")


class Llama:
    """A context of llama.cpp through its C interface, which costs a token two calls from Python;
    for torch_logits a model.
    """

    device = "cpu"

    def __init__(self, model, flash: int, adapter=None):
        params = ll.llama_context_default_params()
        params.n_ctx, params.flash_attn_type = CONTEXT, flash
        params.n_threads = params.n_threads_batch = threads()
        self.context, self.greedy = (
            ll.llama_init_from_model(model, params),
            ll.llama_sampler_init_greedy(),
        )
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
        if adapter:
            ll.llama_set_adapters_lora(
                self.context,
                (ll.llama_adapter_lora_p_ctypes * 1)(adapter),
                1,
                (ll.ctypes.c_float * 1)(1),
            )

    def decode(self, batch) -> None:
        if code := ll.llama_decode(self.context, batch):
            sys.exit(f"error: llama_decode returned {code}")

    def stream(self, ids: list[int], count: int):
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        prompt, one = (
            (ll.llama_token * len(ids))(*ids),
            (ll.llama_token * 1)(),
        )  # a batch does not keep them alive
        batch = ll.llama_batch_get_one(prompt, len(ids))
        for _ in range(count):
            self.decode(batch)
            one[0] = ll.llama_sampler_sample(self.greedy, self.context, -1)
            yield one[0]
            batch = ll.llama_batch_get_one(one, 1)

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor) -> SimpleNamespace:
        rows = [self.logits(ids.tolist())[logits_to_keep] for ids in input_ids]
        return SimpleNamespace(logits=torch.stack(rows))

    def logits(self, ids: list[int]) -> torch.Tensor:
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        batch = ll.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            (
                batch.token[i],
                batch.pos[i],
                batch.n_seq_id[i],
                batch.seq_id[i][0],
                batch.logits[i],
            ) = token, i, 1, 0, 1
        self.decode(batch)
        ll.llama_batch_free(batch)
        found = np.ctypeslib.as_array(
            ll.llama_get_logits(self.context), (len(ids), self.vocabulary)
        )
        return torch.from_numpy(found.copy())


class GenAI:
    """The ONNX model in ONNX Runtime GenAI, with as many threads as llama.cpp; a generator is made
    anew for each answer.
    """

    def __init__(self, folder: Path):
        session = {"intra_op_num_threads": threads(), "log_severity_level": 3}
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.adapters = og.Adapters(self.model)
        self.adapters.load(str(folder / "adapter_weights.onnx_adapter"), "lora")

    def stream(self, ids: list[int], count: int, adapter: str | None = None):
        settings = og.GeneratorParams(self.model)
        settings.set_search_options(
            max_length=CONTEXT, min_length=CONTEXT, do_sample=False, repetition_penalty=1.0
        )
        generator = og.Generator(self.model, settings)
        if adapter:
            generator.set_active_adapter(self.adapters, adapter)
        generator.append_tokens(ids)
        for _ in range(count):
            generator.generate_next_token()
            yield generator.get_next_tokens()[0]


def bandwidth() -> float:
    """GB/s that summing an array far larger than the caches reads, as in lab 05: median of six."""
    torch.set_num_threads(threads())
    block, times = torch.ones(100_000_000), []
    for _ in range(7):
        started = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - started)
    return 0.4 / statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/cpu"),
        help="folder of a run with labs 01 to 04 complete",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--tokens", type=int, default=64, help="of an answer; the end of the turn does not end it"
    )
    parser.add_argument(
        "--records", type=int, help="so many held-out records for the loss; else all"
    )
    parser.add_argument(
        "--flash-attention", choices=("auto", "off", "on"), default="auto", help="of llama.cpp"
    )
    parser.add_argument("--out", type=Path, help="file for the figures, in JSON")
    options = parser.parse_args()
    awq, onnx, load = options.run / "awq", options.run / "onnx", os.getloadavg()[0]
    tokenizer = AutoTokenizer.from_pretrained(awq)
    records = labkit.load_records(options.run / "heldout.jsonl")
    quiet = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(quiet, None)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "model.gguf", Path(folder) / "adapter.gguf"
        labkit.write_gguf(files[0], awq)
        labkit.write_gguf_adapter(files[1], options.run / "lora" / "adapter", awq_dir=awq)
        weights_mb = [
            sum(tensor.n_bytes for tensor in GGUFReader(file).tensors) / 1e6 for file in files
        ]
        found = labkit.compare_gguf(files[0], awq)
        llama = ll.llama_model_load_from_file(bytes(files[0]), ll.llama_model_default_params())
        lora = llama and ll.llama_adapter_lora_init(llama, bytes(files[1]))
    if not lora:
        sys.exit("error: llama.cpp refused the GGUF files")
    flash = {"auto": -1, "off": 0, "on": 1}[options.flash_attention]
    contexts = {"llama.cpp": Llama(llama, flash), "llama.cpp + adapter": Llama(llama, flash, lora)}
    print(
        *(f"4-bit layers in GGUF, {name}: {value:.4f}" for name, value in found.items()), sep="\n"
    )

    adapter, some, loss = onnx / "adapter_weights.onnx_adapter", records[: options.records], {}
    models = {"onnx": (onnx, None), "onnx + adapter": (onnx, adapter)} | {
        name: (c, None) for name, c in contexts.items()
    }
    for name, (model, weights) in models.items():
        is_onnx = isinstance(model, Path)
        logits = (
            labkit.OnnxLogits(model, adapter=weights) if is_onnx else labkit.torch_logits(model)
        )
        loss[name] = labkit.mean_loss(labkit.record_losses(logits, tokenizer, some)).mean
    for suffix in ("", " + adapter"):
        ours, theirs = loss[f"onnx{suffix}"], loss[f"llama.cpp{suffix}"]
        print(
            f"held-out loss{suffix}: onnx {ours:.4f}, llama.cpp {theirs:.4f} "
            f"({theirs - ours:+.4f})",
            flush=True,
        )
        if abs(theirs - ours) > AGREE:
            sys.exit(
                f"error: the losses are more than {AGREE} apart: these are not the same "
                "weights, and speeds say nothing."
            )

    record, genai = records[0], GenAI(onnx)
    ids, start = labkit.chat_ids(tokenizer, record)
    variants = {
        "onnx": lambda: genai.stream(ids[:start], options.tokens),
        "onnx + adapter": lambda: genai.stream(ids[:start], options.tokens, "lora"),
    } | {name: lambda c=c: c.stream(ids[:start], options.tokens) for name, c in contexts.items()}
    gb_per_s, names, runs = bandwidth(), list(variants), {name: [] for name in variants}
    for turn in range(-1, options.rounds):  # the first is to warm up
        for name in names[turn % 4 :] + names[: turn % 4]:
            speed, first = labkit.token_speed(variants[name], repeats=1, warmup=0)
            if turn >= 0:
                runs[name].append((speed.mean, first.mean))

    mb = {
        "onnx": sum(p.stat().st_size for p in onnx.glob("model.onnx*")) / 1e6,
        "llama.cpp": weights_mb[0],
    }
    mb |= {"onnx + adapter": mb["onnx"] + adapter.stat().st_size / 1e6}
    mb |= {"llama.cpp + adapter": mb["llama.cpp"] + weights_mb[1]}
    figures = {}
    for name in names:
        speed, first = (
            np.percentile(column, [25, 50, 75]).tolist()
            for column in zip(*runs[name], strict=True)
        )
        row = {f"tokens_per_s{end}": value for end, value in zip(ENDS, speed, strict=True)}
        row |= {f"first_token_ms{end}": value for end, value in zip(ENDS, first, strict=True)}
        row |= {
            "ms_per_token": 1000 / speed[1],
            "floor_ms": mb[name] / gb_per_s,
            "weights_mb": mb[name],
            "eval_loss": loss[name],
        }
        figures[name] = row | {"runs": runs[name]}
    about = (
        machine()
        | versions()
        | {
            "gguf_weights": found,
            "gb_per_s": gb_per_s,
            "prompt_tokens": start,
            "load_average": load,
        }
    )
    about |= {
        "llama_cpp_python": llama_version,
        "llama_cpp": ll.llama_print_system_info().decode(),
    }
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")
    print(
        f"\n{'':20} tokens/s (quartiles)     ms/token  floor  first token, ms (quartiles)   loss"
    )
    for name, row in figures.items():
        speed = f"{row['tokens_per_s']:6.1f} ({row['tokens_per_s_low']:.1f} to {row['tokens_per_s_high']:.1f})"
        first = f"{row['first_token_ms']:6.1f} ({row['first_token_ms_low']:.1f} to {row['first_token_ms_high']:.1f})"
        print(
            f"{name:20} {speed:25}{row['ms_per_token']:8.2f} {row['floor_ms']:6.2f}  {first:28} "
            f"{row['eval_loss']:7.4f}"
        )
    for suffix in ("", " + adapter"):
        pairs = zip(runs[f"onnx{suffix}"], runs[f"llama.cpp{suffix}"], strict=True)
        low, middle, high = np.percentile(
            [ours[0] / theirs[0] for ours, theirs in pairs], [25, 50, 75]
        )
        print(f"onnx / llama.cpp{suffix}, of one round: {middle:.2f} ({low:.2f} to {high:.2f})")
    if options.out:
        options.out.write_text(json.dumps({"variants": figures, "about": about}, indent=1))


if __name__ == "__main__":
    main()

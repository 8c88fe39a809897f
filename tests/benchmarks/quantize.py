"""AWQ: AutoAWQ's own quantizer (with its copy fixed) against labkit's, on the same model and the same calibration data.

    python tests/benchmarks/quantize.py --model runs/cpu/base --calibration
    runs/cpu/calibration.jsonl --group-size 32 python tests/benchmarks/quantize.py --phi-layers 8
    --records 128 --length 512 --device cuda --group-size 128

The second makes a model of Phi-3.5-mini's shape with random weights and planted outlier channels.
For each engine it prints seconds (search, quantize and pack; loading and saving not counted), peak
memory of the GPU, and the error of each block: |quantized block(x) - block(x)|^2 / |block(x) -
x|^2 in float32, on the inputs that the unquantized model has.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.packing_utils import dequantize_gemm
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from labkit.passes.awq_blocks import quantizer_on


class CopyingQuantizer(AwqQuantizer):
    """AutoAWQ's search as it is, made correct on the CPU.

    There, state_dict().cpu() is the weights themselves and no copy: each of the 20 grid points
    would scale weights that the one before had scaled.
    """

    def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, *rest):
        original = module2inspect.state_dict
        module2inspect.state_dict = lambda: {
            name: weight.clone() for name, weight in original().items()
        }
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *rest)
        finally:
            del module2inspect.state_dict


ENGINES = {"autoawq": lambda device: CopyingQuantizer, "labkit": quantizer_on}


def phi_shaped(folder: Path, layers: int) -> None:
    """Phi-3.5-mini's shape, with seeded random weights; one channel in 64 of each norm is 20 times
    the rest.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

    config = Phi3Config(
        vocab_size=32064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, tie_word_embeddings=False, max_position_embeddings=4096, original_max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(7)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.float16)
        model = Phi3ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    for block in model.model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data[::64] *= 20
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        tokenizer_models.BPE(
            vocab={token: i for i, token in enumerate([*alphabet, "<end>"])}, merges=[]
        )
    )
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)


def load(folder: Path, dtype: str, device: str):
    return AutoAWQForCausalLM.from_pretrained(
        str(folder), torch_dtype=getattr(torch, dtype), device_map=device, trust_remote_code=False
    )


def block_errors(
    folder: Path, quantized, records: torch.Tensor, group_size: int, device: str
) -> list[float]:
    """Relative squared error of each quantized block on the inputs that it has in the unquantized
    model.
    """
    original = load(folder, "float32", "cpu").model.model
    rotary, x = original.rotary_emb.to(device), original.embed_tokens(records).to(device)
    position = rotary(x[:1], torch.arange(x.shape[1], device=device)[None])
    errors = []
    for block, packed in zip(original.layers, quantized.model.model.layers, strict=True):
        block.to(device)
        changed = copy.deepcopy(block)
        for name, module in packed.named_modules():
            if hasattr(module, "qweight"):
                buffers = (
                    getattr(module, part).to(device) for part in ("qweight", "qzeros", "scales")
                )
                changed.get_submodule(name).weight.data = dequantize_gemm(
                    *buffers, 4, group_size
                ).T.float()
            elif hasattr(module, "weight"):
                changed.get_submodule(name).weight.data = module.weight.data.to(device).float()
        with torch.no_grad():
            wanted, found = (
                one(x, position_embeddings=position, attention_mask=None)
                for one in (block, changed)
            )
            wanted, found = (out[0] if isinstance(out, tuple) else out for out in (wanted, found))
        errors.append(((found - wanted).pow(2).sum() / (wanted - x).pow(2).sum()).item())
        x = wanted
        block.cpu()
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face model")
    parser.add_argument(
        "--phi-layers", type=int, help="make a model of Phi-3.5-mini's shape with so many layers"
    )
    parser.add_argument(
        "--calibration", type=Path, help='JSON lines of {"token_ids": [...]}; else random tokens'
    )
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--clip", action="store_true")
    parser.add_argument(
        "--save", type=Path, help="folder for the quantized models, one sub-folder an engine"
    )
    parser.add_argument("--out", type=Path, help="file for the figures, in JSON")
    options = parser.parse_args()
    if options.phi_layers:
        options.model = options.model or Path(f"/tmp/phi-{options.phi_layers}")
        phi_shaped(options.model, options.phi_layers)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.calibration:
        rows = [
            json.loads(line)["token_ids"] for line in options.calibration.read_text().splitlines()
        ]
        data = [
            row[i : i + options.length] for row in rows for i in range(0, len(row), options.length)
        ]
    else:
        draw = torch.Generator().manual_seed(7)
        data = torch.randint(0, 32000, (options.records, options.length), generator=draw).tolist()
    probe = torch.tensor([row for row in data if len(row) == options.length][:8])
    figures = {}
    for engine in options.engines.split(","):
        seconds = []
        for _ in range(options.repeats):
            model = load(options.model, options.dtype, "cpu")
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            model.quantize(
                tokenizer,
                quant_config={
                    "w_bit": 4,
                    "q_group_size": options.group_size,
                    "zero_point": True,
                    "version": "GEMM",
                },
                calib_data=data,
                max_calib_samples=10**6,
                max_calib_seq_len=options.length,
                apply_clip=options.clip,
                quantizer_cls=ENGINES[engine](options.device),
            )
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() / 1e9 if options.device == "cuda" else None
        errors = block_errors(options.model, model, probe, options.group_size, options.device)
        if options.save:
            model.save_quantized(str(options.save / engine))
            tokenizer.save_pretrained(options.save / engine)
        figures[engine] = {"seconds": seconds, "gpu_peak_gb": peak, "block_errors": errors}
        print(
            f"{engine}: {statistics.median(seconds):.1f} s (of "
            f"{[round(s, 1) for s in seconds]}), peak {peak} GB, error "
            f"{statistics.mean(errors):.6f}: {[round(e, 6) for e in errors[:8]]}",
            flush=True,
        )
    if options.out:
        options.out.write_text(
            json.dumps(
                figures | {"options": {k: str(v) for k, v in vars(options).items()}}, indent=1
            )
        )


if __name__ == "__main__":
    main()

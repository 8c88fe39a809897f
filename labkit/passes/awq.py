"""AWQ through AutoAWQ, as a function and as an Olive pass; and the way back to a plain checkpoint.

AutoAWQ is archived upstream. Only this module and awq_blocks.py use it: another engine would be
put in here.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam
from olive.search.search_parameter import Categorical

from labkit.errors import LabError
from labkit.grid import BITS, tensors_of
from labkit.packed import not_whole, write_dense
from labkit.settings import CONFIG, carry_settings
from labkit.tokenizer import load_tokenizer

GROUP_SIZE = "group_size"  # among a model's attributes: what a grid asks of the builder

# architectures that AutoAWQ does not know, and a known one whose blocks have the same layers
LIKE = {"granite": "llama", "smollm3": "llama", "gemma3_text": "gemma2"}


def awq_quantize(
    model_dir: Path,
    out: Path,
    *,
    calibration: list[list[int]],
    group_size: int,
    dtype: str,
    device: str,
) -> None:
    """Writes the checkpoint *model_dir* to *out* with its layers in 4-bit AWQ (AutoAWQ's GEMM).

    *calibration* is token ids, one list a record. The search is that of awq_search.py, clipping
    included; the model waits in the host's memory, and one block after the other goes to the
    *device*. Raises LabError if there is too little calibration text.
    Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978
    """
    import torch
    from awq import AutoAWQForCausalLM
    from awq.models import auto, base

    from labkit.passes.awq_blocks import quantizer_on

    for new, known in LIKE.items():
        auto.AWQ_CAUSAL_LM_MODEL_MAP[new] = auto.AWQ_CAUSAL_LM_MODEL_MAP[known]
        base.TRANSFORMERS_AUTO_MAPPING_DICT[new] = "AutoModelForCausalLM"
    length = 128
    if sum(map(len, calibration)) < length:
        raise LabError(
            f"the calibration data has fewer than {length} tokens: add records, or unset LAB_DATA."
        )
    tokenizer = load_tokenizer(model_dir)
    model = AutoAWQForCausalLM.from_pretrained(
        str(model_dir),
        torch_dtype=getattr(torch, dtype),
        device_map="cpu",
        trust_remote_code=False,
    )
    model.quantize(
        tokenizer,
        quant_config={
            "w_bit": BITS,
            "q_group_size": group_size,
            "zero_point": True,
            "version": "GEMM",
        },
        calib_data=[
            ids[i : i + length] for ids in calibration for i in range(0, len(ids), length)
        ],
        max_calib_samples=len(calibration) * 64,
        max_calib_seq_len=length,
        quantizer_cls=quantizer_on(device),
    )
    model.model.half()  # the embedding and the norms, which are not quantized
    model.save_quantized(str(out))
    written = json.loads((out / CONFIG).read_text())
    carry_settings(model_dir, out, quantization_config=written["quantization_config"])
    tokenizer.save_pretrained(out)


def unpack_awq(awq_dir: Path, out: Path) -> None:
    """Writes the packed AWQ checkpoint as a plain one in float16, with weights on the 4-bit grid.

    PEFT trains on it, and the ONNX model builder rounds it back to the same integers.
    Raises LabError if *awq_dir* lacks a part of the model.
    """
    import torch
    from awq.utils.packing_utils import dequantize_gemm
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(awq_dir, trust_remote_code=False)
    group_size = config.quantization_config["group_size"]
    del config.quantization_config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = tensors_of(awq_dir)
    layers = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    dense = {}
    for layer in layers:
        names = [f"{layer}.{part}" for part in ("qweight", "qzeros", "scales")]
        if lost := [name for name in names if name not in tensors]:
            raise not_whole(awq_dir, lost, [])
        parts = [tensors.pop(name) for name in names]
        weight = dequantize_gemm(*(part.to(device) for part in parts), BITS, group_size)
        dense[f"{layer}.weight"] = weight.t().contiguous().cpu()
    dense |= {name: tensor.half() for name, tensor in tensors.items()}
    write_dense(dense, config, awq_dir, out)


class AwqQuantizer(Pass):
    """4-bit AWQ through AutoAWQ, on CPU and GPU, calibrated on a JSON-lines file of token ids."""

    @classmethod
    def _default_config(cls, accelerator_spec) -> dict[str, PassConfigParam]:
        return {
            "calibration_file": PassConfigParam(
                type_=str, required=True, description='JSON lines of {"token_ids": [int, ...]}.'
            ),
            "group_size": PassConfigParam(
                type_=int, default_value=128, description="Weights that share one scale."
            ),
            "dtype": PassConfigParam(
                type_=str, default_value="bfloat16", description="torch dtype of the search."
            ),
        }

    def _run_for_config(
        self, model: HfModelHandler, config: Any, output_model_path: str
    ) -> HfModelHandler:
        lines = Path(config.calibration_file).read_text().splitlines()
        awq_quantize(
            Path(model.model_name_or_path),
            Path(output_model_path),
            calibration=[json.loads(line)["token_ids"] for line in lines],
            group_size=config.group_size,
            dtype=config.dtype,
            device="cuda" if self.accelerator_spec.accelerator_type == "gpu" else "cpu",
        )
        return HfModelHandler(model_path=output_model_path)


class GridQuantizer(AwqQuantizer):
    """Weights for a 4-bit grid, as plain numbers, and a note for the builder that rounds them: the
    size of a group.

    AWQ's search moves and rounds them; for "nearest" they stay as they are. What a search of Olive
    may try is declared here, and a workflow lists what it shall try.
    """

    @classmethod
    def _default_config(cls, accelerator_spec) -> dict[str, PassConfigParam]:
        return super()._default_config(accelerator_spec) | {
            "algorithm": PassConfigParam(
                type_=str,
                default_value="awq",
                search_defaults=Categorical(["nearest", "awq"]),
                description='"awq", or "nearest": left to the builder.',
            ),
            "group_size": PassConfigParam(
                type_=int,
                default_value=32,
                search_defaults=Categorical([16, 32, 64]),
                description="Weights that share one scale.",
            ),
        }

    def _run_for_config(
        self, model: HfModelHandler, config: Any, output_model_path: str
    ) -> HfModelHandler:
        source, out = Path(model.model_name_or_path), Path(output_model_path)
        if config.algorithm not in ("nearest", "awq"):
            raise ValueError(f"algorithm is {config.algorithm!r}: choose nearest or awq")
        if config.algorithm == "awq":
            with tempfile.TemporaryDirectory(dir=out.parent) as packed:
                super()._run_for_config(model, config, packed)
                unpack_awq(Path(packed), out)
            source = out
        return HfModelHandler(source, model_attributes={GROUP_SIZE: config.group_size})

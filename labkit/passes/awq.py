"""AWQ through AutoAWQ, as a function and as an Olive pass.

The only module that runs AutoAWQ, which is archived upstream: another engine would be put in here.
"""

import json
from pathlib import Path
from typing import Any

from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from labkit.errors import LabError
from labkit.quantize import BITS
from labkit.settings import CONFIG, carry_settings
from labkit.tokenizer import load_tokenizer

# architectures that AutoAWQ does not know, and the one whose blocks have the same layers by the same names
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
    """Writes the checkpoint in *model_dir* to *out* with its layers in packed 4-bit AWQ (the GEMM format of AutoAWQ).

    *calibration* is token ids, one list a record. The search is that of labkit/passes/awq_search.py, clipping included; the
    model waits in the host's memory, and one block after the other goes to the *device*. Raises LabError where there is too
    little calibration text. Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978
    """
    import torch
    from awq import AutoAWQForCausalLM
    from awq.models import auto, base

    from labkit.passes.awq_search import quantizer_on

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


class AwqQuantizer(Pass):
    """4-bit AWQ through AutoAWQ, on CPU and GPU, calibrated on a JSON-lines file of {"token_ids": [...]}."""

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

"""Two passes that Olive does not have, and the package configuration that makes them known to it."""

import json
from pathlib import Path
from typing import Any

from olive.model import HfModelHandler
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.onnx.model_builder import ModelBuilder
from olive.passes.pass_config import PassConfigParam

from labkit.quantize import awq_quantize


class AwqQuantizer(Pass):
    """4-bit AWQ through AutoAWQ, on CPU and GPU, calibrated on a JSON-lines file of {"token_ids": [...]}."""

    @classmethod
    def _default_config(cls, accelerator_spec) -> dict[str, PassConfigParam]:
        return {
            "calibration_file": PassConfigParam(type_=str, required=True, description='JSON lines of {"token_ids": [int, ...]}.'),
            "group_size": PassConfigParam(type_=int, default_value=128, description="Weights that share one scale."),
            "dtype": PassConfigParam(type_=str, default_value="bfloat16", description="torch dtype of the search."),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
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


class LoraModelBuilder(ModelBuilder):
    """Olive's ModelBuilder with two things put right for a model with a LoRA adapter.

    The adapter's MatMuls stay in float: rounded to int4 they lose precision, and the graph does not run without them.
    `shared_embeddings` works: Olive replaces the builder's make_embedding by one that ignores the option, which only
    checkpoints quantized by Olive itself need.
    """

    @staticmethod
    def maybe_patch_quant() -> None:
        pass

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str):
        if model.adapter_path:
            layers = model.get_hf_model_config().num_hidden_layers
            linears = [f"attn/{p}_proj" for p in "qkvo"] + [f"mlp/{p}_proj" for p in ("gate", "up", "down")]
            config.int4_nodes_to_exclude = [
                f"/model/layers.{layer}/{linear}/lora_{side}/MatMul" for layer in range(layers) for linear in linears for side in "AB"
            ]
        return super()._run_for_config(model, config, output_model_path)


def olive_passes() -> dict[str, Any]:
    """Olive's package configuration with AwqQuantizer and LoraModelBuilder added: `olive.run(..., package_config=...)`."""
    package = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    for name in ("AwqQuantizer", "LoraModelBuilder"):
        package["passes"][name] = {
            "module_path": f"labkit.passes.{name}",
            **{f"supported_{what}": ["*"] for what in ("providers", "accelerators", "precisions")},
        }
    return package

"""Olive's pass around the ONNX model builder, put right for a model with a LoRA adapter."""

from typing import Any

from olive.model import HfModelHandler
from olive.passes.onnx.model_builder import ModelBuilder


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
                f"/model/layers.{layer}/{linear}/lora_{side}/MatMul"
                for layer in range(layers)
                for linear in linears
                for side in "AB"
            ]
        return super()._run_for_config(model, config, output_model_path)

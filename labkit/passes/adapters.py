"""The adapter beside its graph, and in it: Olive's pass that takes one out, put right, a file for
another one, and a graph that has one for good.
"""

import re
import shutil
from copy import deepcopy
from pathlib import Path

from olive.common.utils import save_weights
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes.onnx.extract_adapters import ExtractAdapters

from labkit.errors import LabError
from labkit.passes.builder import joined
from labkit.passes.surgeries import save_graph
from labkit.weights import few, load_adapter, one_line, onnx_adapter_weights

# what the graph has inputs for, of the names in the adapter's file
LORA = re.compile(r"\.layers\.\d+\.(self_attn|mlp)\.\w+\.lora_[AB]\.weight$")


class LoraExtractor(ExtractAdapters):
    """Olive's ExtractAdapters, for LoRA in a graph of the builder, with two things put right.

    Each weight of the adapter is an input of the graph once. Olive 0.13 lists an optional input
    twice: as it makes the input, and again as it gives it the empty default. ONNX Runtime accepts
    that; onnx.checker and other readers refuse it.

    The weights of a large model go from file to file, and not through memory and protobuf.
    """

    def _run_for_config(self, model, config, output_model_path: str) -> ONNXModelHandler:
        if not (config.make_inputs and config.optional_inputs and config.adapter_type == "lora"):
            raise ValueError("only LoRA adapters are extracted, as optional inputs")
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        graph = model.load_ir_model()
        weights = self._extract_adapter_from_dynamo(graph)  # which goes by names
        if not weights:
            return model
        inputs = graph.graph.inputs
        for name in weights:
            self._convert_initializer_to_input(graph, name)
            once = len(inputs)
            self._make_dynamic_optional(graph, weights, name, config)
            while len(inputs) > once:
                inputs.pop()
        file = save_weights(weights, path.parent / "adapter_weights", config.save_format)
        save_graph(graph, path, config)
        attributes = deepcopy(model.model_attributes) or {}
        attributes.setdefault("additional_files", []).append(str(file))
        return ONNXModelHandler(
            path.parent,
            onnx_file_name=path.name,
            constant_inputs_file_name=file.name,
            model_attributes=attributes,
        )


def write_adapter(out: Path, adapter_dir: Path, *, graph: Path, model_dir: Path) -> None:
    """Writes the LoRA adapter in *adapter_dir* to *out*, an .onnx_adapter file for *graph*.

    The file holds what LoraExtractor would take out of a graph that is built with this adapter.
    *model_dir* is the checkpoint that both were made from; only its configuration is read. Raises
    LabError if a file is missing or damaged, if the adapter does not fit the graph, or if it
    changes more than the graph has inputs for (DoRA, biases, embedding, head).
    """
    import numpy as np
    import onnx
    import onnxruntime as ort

    inputs = _inputs_of_adapters(_load_graph(graph).graph)
    weights = _weights(adapter_dir, model_dir)
    shapes = {name: [dim.dim_value for dim in one.shape.dim] for name, one in inputs.items()}
    wrong = [
        name
        for name in shapes.keys() | weights.keys()
        if name not in weights
        or name not in shapes
        # the rank has no number in the graph
        or any(
            there not in (0, here)
            for there, here in zip(shapes[name], weights[name].shape, strict=True)
        )
    ]
    if wrong:
        raise LabError(
            f"the adapter in {adapter_dir} does not fit the inputs of {graph} ({few(wrong)}): it "
            "has other target layers, or is of another model. Train it with the same "
            "target_modules, or build a graph for it with the workflow of step 1."
        )
    parameters = {}
    for name, one in inputs.items():
        kind = onnx.helper.tensor_dtype_to_np_dtype(one.elem_type)
        with np.errstate(over="ignore"):  # what float16 cannot hold is refused here
            value = weights[name].numpy().astype(kind)
        if not np.isfinite(value).all():
            raise LabError(
                f"the adapter in {adapter_dir} holds values that are no numbers, or too large for "
                f"{graph} ({name}). Train it again."
            )
        parameters[name] = ort.OrtValue.ortvalue_from_numpy(value)
    file = ort.AdapterFormat()
    file.set_parameters(parameters)
    file.export_adapter(str(out))


def bake_adapter(out: Path, adapter: Path, *, model: Path) -> None:
    """Writes to the folder *out* the ONNX *model*, a folder, with *adapter* in it for good.

    The weights of the .onnx_adapter file become constants of the graph; all others stay as they
    are, to the bit. Any runtime that knows no adapters runs it. Raises LabError if a file is
    missing or damaged, or if the adapter does not fit the graph.
    """
    from onnx import numpy_helper

    whole = _load_graph(model / "model.onnx")
    graph = whole.graph
    inputs = _inputs_of_adapters(graph)
    try:
        weights = onnx_adapter_weights(adapter)
    except Exception as error:  # ONNX Runtime's own kinds, and flatbuffers'
        raise LabError(
            f"the adapter {adapter} is missing or damaged ({one_line(error)}). Make it again: run "
            "lab 04."
        ) from error
    empty = {one.name: one for one in graph.initializer if one.name in inputs}
    wrong = [
        name
        for name in inputs.keys() | weights.keys()
        if name not in empty or name not in weights or not _fits(weights[name], empty[name])
    ]
    if wrong:
        raise LabError(
            f"the adapter {adapter} does not fit the graph in {model} ({few(wrong)}): it is of "
            "another model, or holds values that are no numbers. Write it for this graph with "
            "labkit.write_adapter."
        )
    for one in graph.initializer:
        if one.name in weights:
            one.CopyFrom(numpy_helper.from_array(weights[one.name], one.name))
    for entries in (graph.input, graph.value_info):
        kept = [one for one in entries if one.name not in inputs and not _has_rank(one)]
        del entries[:]
        entries.extend(kept)
    beside = shutil.ignore_patterns("*.onnx_adapter", "model.onnx")
    shutil.copytree(model, out, ignore=beside, dirs_exist_ok=True)
    (out / "model.onnx").write_bytes(whole.SerializeToString())


def _load_graph(path: Path):
    """The model at *path*; what stands in a file of weights beside it is not read."""
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own is of no common kind
        raise LabError(
            f"the graph {path} is missing or damaged ({one_line(error)}). Make it again: run lab "
            "04."
        ) from error


def _inputs_of_adapters(graph) -> dict:
    """Name -> type of each input of *graph* that is a weight of an adapter."""
    return {one.name: one.type.tensor_type for one in graph.input if ".lora_" in one.name}


def _fits(weight, empty) -> bool:
    """Whether *weight* can take the place of the *empty* tensor, whose rank is 0."""
    import numpy as np
    from onnx.helper import tensor_dtype_to_np_dtype

    return (
        weight.dtype == tensor_dtype_to_np_dtype(empty.data_type)
        and weight.ndim == len(empty.dims)
        and all(of in (0, size) for of, size in zip(empty.dims, weight.shape, strict=True))
        and bool(np.isfinite(weight).all())
    )


def _has_rank(value) -> bool:
    """Whether the shape of *value* names the rank, which is a number once an adapter is baked."""
    return any("lora" in dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _weights(adapter_dir: Path, model_dir: Path) -> dict:
    """Name of an input of the graph -> the tensor for it, [in, rank] or [rank, out]."""
    import torch
    from peft import load_peft_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LabError(
            f"{model_dir} has no configuration of a model ({one_line(error)}). Make it again: run "
            "lab 02."
        ) from error
    with torch.device("meta"):  # the layers have a shape, and no weights
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model = load_adapter(model, adapter_dir)
    # PEFT has put the adapter on meta, too
    found = load_peft_weights(str(adapter_dir), device="cpu")
    if other := [name for name in found if not LORA.search(name)]:
        raise LabError(
            f"the adapter in {adapter_dir} changes more than the inputs of a graph can carry "
            f"({few(other)}). Train it as plain LoRA on the layers of attention and MLP: without "
            "DoRA, biases, modules_to_save, embedding and head."
        )
    named = {name.replace(".weight", ".default.weight"): found[name] for name in found}
    model.load_state_dict(named, strict=False, assign=True)
    weights = {}
    for number, layer in enumerate(model.get_base_model().model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        parts = {
            "attn.qkv_proj": _apart_or_fused(
                attention, ("q_proj", "k_proj", "v_proj"), "qkv_proj"
            ),
            "attn.o_proj": [attention.o_proj],
            "mlp.gate_up_proj": _apart_or_fused(mlp, ("gate_proj", "up_proj"), "gate_up_proj"),
            "mlp.down_proj": [mlp.down_proj],
        }
        for name, linears in parts.items():
            one = joined(*linears)
            if hasattr(one, "base_layer"):
                base = f"model.layers.{number}.{name}"
                for side, weight in (("A", one.lora_A), ("B", one.lora_B)):
                    value = weight.default.weight.detach().float().T.contiguous()
                    weights[f"{base}.lora_{side}.MatMul.weight"] = value
    return weights


def _apart_or_fused(module, apart: tuple[str, ...], fused: str) -> list:
    names = (fused,) if hasattr(module, fused) else apart
    return [getattr(module, name) for name in names]

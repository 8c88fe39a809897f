"""Olive's pass around the ONNX model builder, put right for 4-bit weights with a LoRA adapter."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from olive.model import HfModelHandler
from olive.passes.onnx.model_builder import ModelBuilder
from olive.passes.pass_config import PassConfigParam
from olive.search.search_parameter import Categorical
from onnx import TensorProto
from onnxruntime_genai.models.builder import Model

from labkit.errors import LabError
from labkit.grid import BITS, Grid, pack_onnx, round_to_grid
from labkit.packed import PackedLayers
from labkit.passes.awq import GROUP_SIZE
from labkit.progress import report
from labkit.settings import carry_settings

# as the graph names them: q, k and v are one where the provider takes them so
LORA_LINEARS = ("attn/qkv_proj", "attn/q_proj", "attn/k_proj", "attn/v_proj", "attn/o_proj")
LORA_LINEARS += ("mlp/gate_up_proj", "mlp/down_proj")


class LoraModelBuilder(ModelBuilder):
    """Olive's ModelBuilder, for int4 with asymmetric groups, with nine things put right.

    A layer is rounded when the builder reads it, on the grid that AWQ has, or on a symmetric one;
    in groups of the size that the model says, if `int4_block_size` is not given. Or it keeps the
    `integers` of a packed checkpoint, of 4 or 8 bits, whose weights the model holds. The builder
    itself writes every weight in float first (for Phi-3.5-mini on a CPU 14 GB) and rounds them at
    the end, one by one in numpy.

    q, k and v are one matrix product, and gate and up are one, each with one adapter of the
    summed rank: the builder does the first only without an adapter, and a token costs as many
    small products as there are nodes. Where a provider rotates q and k before its attention
    (DirectML) or has none of grouped queries, q, k and v stay apart.

    The adapter's MatMuls stay in float: rounded to int4 they lose precision, and the graph does
    not run without them.

    On CUDA, LongRoPE's choice between its two tables is a Where: ONNX Runtime records no CUDA
    graph of a model with an If.

    A configuration as transformers 5 writes it is read: Gemma 3 has its two rotary embeddings in
    one table there.

    Each layer has the window of attention and the rotary embedding that the model gives it, or
    none: the builder gives Gemma 2's windows to the other half of its layers, and fails where
    SmolLM3 has no rotary embedding.

    `shared_embeddings` works: Olive replaces the builder's make_embedding by one that ignores
    the option, which only checkpoints quantized by Olive itself need.

    Constants have their own shape: the builder gives all of them that of a single number, which
    onnx.checker refuses.

    The exported model asks for all cores: where its configuration names no number, GenAI takes
    half of them.
    """

    @staticmethod
    def maybe_patch_quant() -> None:
        pass

    @classmethod
    def _default_config(cls, accelerator_spec) -> dict[str, PassConfigParam]:
        config = super()._default_config(accelerator_spec)
        config["int4_accuracy_level"].search_defaults = Categorical([1, 4])
        config["int4_block_size"].search_defaults = None  # the model says it, or the workflow
        config["integers"] = PassConfigParam(
            type_=str, description="Folder of the packed checkpoint that the model was made from."
        )
        return config

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str):
        config.int4_block_size = config.int4_block_size or (model.model_attributes or {}).get(
            GROUP_SIZE
        )
        if model.adapter_path:
            config.int4_nodes_to_exclude = [
                f"/model/layers.{layer}/{linear}/lora_{side}/MatMul"
                for layer in range(model.get_hf_model_config().num_hidden_layers)
                for linear in LORA_LINEARS
                for side in "AB"
            ]
        # the builder cuts fused layers into new ones, whose random first weights nobody reads
        # (8 s for each 10**9 on a CPU)
        no_start = mock.patch.object(torch.nn.Linear, "reset_parameters", lambda self: None)
        packed = PackedLayers(Path(config.integers)) if config.integers else None
        with mock.patch.multiple(Model, packed=packed, create=True, **HOOKS), no_start:
            built = super()._run_for_config(model, config, output_model_path)
        carry_settings(Path(model.model_name_or_path), Path(built.model_path).parent)
        return built


def joined(*linears) -> SimpleNamespace:
    """One linear layer with the outputs of *linears*, which share their input, one after another.

    Their adapters become one, too. If they have different A [rank, in], these are stacked, and
    B [out, rank] has blocks along its diagonal.
    """
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    one = SimpleNamespace(weight=torch.cat([linear.weight for linear in linears]), bias=bias)
    if not any(hasattr(linear, "base_layer") for linear in linears):
        return one
    downs, ups = [], []
    for linear in linears:
        if hasattr(linear, "base_layer"):
            downs.append(linear.lora_A.default.weight)
            ups.append(linear.lora_B.default.weight.detach() * linear.scaling["default"])
        else:
            # on the CPU, as an adapter is read: the layer may be on meta
            downs.append(torch.zeros(0, one.weight.shape[1]))
            ups.append(torch.zeros(len(linear.weight), 0))
    # as in a layer that was one in the checkpoint, before the builder cut it
    fused = all(down is downs[0] for down in downs)
    one.base_layer = SimpleNamespace(weight=one.weight)
    one.lora_A = _default(downs[0] if fused else torch.cat(downs))
    one.lora_B = _default(torch.cat(ups) if fused else torch.block_diag(*ups))
    one.scaling = {"default": 1.0}
    return one


def _default(weight: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(default=SimpleNamespace(weight=weight))


def _packed(grid: Grid, bits: int = BITS, *, symmetric: bool = False) -> SimpleNamespace:
    """*grid* as the builder takes a layer that is quantized already."""
    pack = pack_onnx if bits == BITS else _bytes
    rows, groups, size = grid.integers.shape
    return SimpleNamespace(
        qweight=pack(grid.integers).cpu(),
        scales=grid.scales.squeeze(-1).cpu(),
        # without, ONNX Runtime takes the middle one, the symmetric one's
        qzeros=None if symmetric else pack(grid.zeros.squeeze(-1)).cpu(),
        g_idx=None,
        bits=bits,
        group_size=size,
        in_features=groups * size,
        out_features=rows,
    )


def _bytes(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.to(torch.uint8)


def _kept(packed: PackedLayers, node: str, weight: torch.Tensor) -> SimpleNamespace:
    """The integers behind *node*, which stand for *weight*; LabError where they do not."""
    grid, bits = packed.behind(node)
    difference = (grid.values() - weight.detach().float().cpu()).norm() / weight.float().norm()
    if not difference < 0.01:  # float16 rounds by less
        raise LabError(
            f"the integers in {packed.folder} are not those of the model: the weights of {node} "
            f"differ by {difference:.0%}. Build from the checkpoint that was unpacked from them."
        )
    return _packed(grid, bits)


def _init(self, config, *args, make=Model.__init__):
    """The builder reads names of transformers 4, which a configuration of transformers 5 lacks."""
    rope = config.rope_parameters
    if "full_attention" in rope:  # Gemma 3, whose layers of two kinds have two rotary embeddings
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope = rope["full_attention"]
    rope.setdefault("type", rope["rope_type"])  # which it asks for where Phi has LongRoPE
    make(self, config, *args)


def _make_constant(self, name, make=Model.make_constant):
    """With its shape; the builder gives every constant that of a single number."""
    make(self, name)
    value = self.values[name]
    value.shape = value.producer().attributes["value"].value.shape


def _make_attention(self, layer_id, attention, root_input, make=Model.make_attention, **kwargs):
    """With the layer's own window, which the builder guesses from its number.

    And without rotation if the layer has none.
    """
    window = self.window_size
    self.window_size = getattr(attention, "sliding_window", window) or -1
    grouped_query = self.attention_attrs["op_type"] == "GroupQueryAttention"
    if grouped_query and self.is_fused_rope_supported():
        self.attention_attrs["rope"] = self.attention_attrs["use_rope_in_attn"]
    make(self, layer_id, attention, root_input, **kwargs)
    self.window_size = window
    report("layers", layer_id + 1, self.num_layers)  # most of one: its MLP follows


def _make_attention_init(self, make=Model.make_attention_init):
    make(self)
    grouped_query = self.attention_attrs["op_type"] == "GroupQueryAttention"
    # DirectML's attention takes q and k rotated, so they are no one product
    self.attention_attrs["use_packed_matmul"] = grouped_query and self.is_fused_rope_supported()


def _make_packed_matmul_float_class(self, q, k, v):
    return joined(q, k, v)


def _make_matmul_int4(self, matmul, basename, root_input, make=Model.make_matmul_int4, **kwargs):
    if "/layers." in basename and "/lora_" not in basename:
        if self.packed:
            matmul = _kept(self.packed, basename, matmul.weight)
        else:
            symmetric = self.quant_attrs["int4"]["is_symmetric"]
            weight = matmul.weight.detach().to("cuda" if torch.cuda.is_available() else "cpu")
            grid = round_to_grid(weight, self.int4_block_size, symmetric=symmetric)
            matmul = _packed(grid, symmetric=symmetric)
    return make(self, matmul, basename, root_input, **kwargs)


def _make_linear(self, linear, name, root_input) -> str:
    """Nodes of *linear*, its bias included; returns the output's name."""
    output = f"{self.make_matmul(linear, f'{name}/MatMul', root_input)}/output_0"
    if linear.bias is None:
        return output
    self.make_add_bias(linear.bias, f"{name}/Add", root_input=output)
    return f"{name}/Add/output_0"


def _make_mlp_proj(self, layer_id, mlp, root_input):
    base = f"/model/layers.{layer_id}/mlp"
    shape = ["batch_size", "sequence_length", self.intermediate_size]
    gate_up = joined(mlp.gate_proj, mlp.up_proj)
    both = _make_linear(self, gate_up, f"{base}/gate_up_proj", root_input)
    halves = [f"{base}/gate_up_proj/Split/output_{i}" for i in range(2)]
    sizes = f"/model/constants/INT64/[{self.intermediate_size}, {self.intermediate_size}]"
    dtypes = [self.io_dtype] * 2
    self.make_split(f"{base}/gate_up_proj/Split", [both, sizes], halves, dtypes, [shape] * 2)
    active = self.make_activation(layer_id, root_input=halves[0])
    factors = [f"{active}/output_0", halves[1]]
    self.make_mul(f"{base}/Mul", factors, dtype=self.io_dtype, shape=shape)
    output = _make_linear(self, mlp.down_proj, f"{base}/down_proj", f"{base}/Mul/output_0")
    self.layernorm_attrs["skip_input"] = output


def _make_rotary_embedding_multi_cache(
    self, make=Model.make_rotary_embedding_multi_cache, **names
):
    if self.ep != "cuda" or self.attention_attrs["op_type"] != "GroupQueryAttention":
        return make(self, **names)
    tables, short = {}, self.original_context_length

    def keep(table, name):
        tables[name] = table

    with mock.patch.multiple(self, make_initializer=keep, ep="dml"):
        make(self, **names)  # for an engine without If: the short table, and the long one below it
    base = "/model/rotemb_caches_subgraph"
    total = "/model/attn_mask_reformat/attn_mask_subgraph/ReduceSum/output_0"
    self.make_reduce_max(f"{base}/ReduceMax", [total], dtype=TensorProto.INT64, shape=[])
    compared = [f"{base}/ReduceMax/output_0", f"/model/constants/INT64/{short}"]
    self.make_greater(f"{base}/Greater", compared, shape=[])
    for name, table in tables.items():
        long_table = table[short:].contiguous()
        short_table = torch.cat([table[:short], table[2 * short :]])  # both of one length
        self.make_initializer(long_table, f"{name}_long")
        self.make_initializer(short_table, f"{name}_short")
        choice = [f"{base}/Greater/output_0", f"{name}_long", f"{name}_short"]
        self.make_node("Where", choice, [name], name=f"{base}/{name}/Where")
        self.make_value(name, self.io_dtype, shape=[len(table) - short, table.shape[1]])


def _update_genai_config(self, genai_config):
    genai_config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 0


HOOKS = {
    "__init__": _init,
    "make_constant": _make_constant,
    "make_attention": _make_attention,
    "update_genai_config": _update_genai_config,
    "make_attention_init": _make_attention_init,
    "make_packed_matmul_float_class": _make_packed_matmul_float_class,
    "make_matmul_int4": _make_matmul_int4,
    "make_mlp_proj": _make_mlp_proj,
    "make_rotary_embedding_multi_cache": _make_rotary_embedding_multi_cache,
}

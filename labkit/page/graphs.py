"""The graph of lab 04 as a browser can run it: two graphs beside one file of weights."""

from pathlib import Path

from labkit.errors import LabError
from labkit.weights import one_line

WEIGHTS = "weights.bin"
GRAPHS = {"wasm": "wasm.onnx", "webgpu": "webgpu.onnx"}
LARGE = 1024  # bytes; what is smaller stays in the graph


def write_graphs(onnx_dir: Path, out: Path, *, every_position: bool = False) -> dict:
    """Writes both graphs of the model in *onnx_dir*, and their weights, to the folder *out*.

    Their weights are the bytes that lab 04 wrote. LoRA weights are inputs that must be given: the
    browser's runtime refuses a feed for an input that has a default. Only the last position gets
    logits, unless *every_position* does, for a loss. The graph for WASM has the 4-bit products
    taken apart: see :func:`_unpack_once`. Returns what whoever runs them must know: layers,
    kv_heads, head_size, adapter_inputs (name -> shape, 0 for the rank).

    Raises LabError for a graph that is missing, damaged, or not made for a processor.
    """
    import onnx

    path = onnx_dir / "model.onnx"
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own is of no common kind
        raise LabError(
            f"the model {path} for the page is missing or damaged ({one_line(error)}). Make it "
            "again: run lab 04."
        ) from error
    graph = model.graph
    caches = [one.type.tensor_type for one in graph.input if one.name.startswith("past_key_")]
    if not caches or any(one.elem_type != onnx.TensorProto.FLOAT for one in caches):
        raise LabError(
            f"the model {path} computes in 16 bits, for a GPU, and a browser's processor cannot "
            "run it. Write the page from the cpu profile: LAB_PROFILE=cpu."
        )
    required = {one.name: one for one in graph.input if ".lora_" in one.name}
    kept = [one for one in graph.initializer if one.name not in required]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if not every_position:
        _last_position(model)
    _weights_aside(model, out / WEIGHTS)
    (out / GRAPHS["webgpu"]).write_bytes(model.SerializeToString())
    _unpack_once(model)
    (out / GRAPHS["wasm"]).write_bytes(model.SerializeToString())
    heads, _, size = (dim.dim_value for dim in caches[0].shape.dim[1:])
    return {
        "layers": len(caches) // 2,
        "kv_heads": heads,
        "head_size": size,
        "adapter_inputs": {
            name: [dim.dim_value for dim in one.type.tensor_type.shape.dim]
            for name, one in required.items()
        },
    }


def _last_position(model) -> None:
    """Before the head, of which each position would cost a fifth of the model."""
    from onnx import helper

    graph = model.graph
    head = next(node for node in graph.node if "logits" in node.output)
    last = helper.make_tensor("last_position", 7, [1], [-1])
    gather = helper.make_node("Gather", [head.input[0], last.name], ["last_hidden"], axis=1)
    head.input[0] = "last_hidden"
    graph.initializer.append(last)
    graph.node.insert(list(graph.node).index(head), gather)


def _weights_aside(model, path: Path) -> None:
    """Moves the large initializers into one file, to which the graph then refers."""
    from onnx.external_data_helper import set_external_data

    with open(path, "wb") as file:
        for one in model.graph.initializer:
            if len(one.raw_data) >= LARGE:
                file.write(bytes(-file.tell() % 64))
                at = file.tell()
                file.write(one.raw_data)
                set_external_data(one, path.name, offset=at, length=len(one.raw_data))
                one.ClearField("raw_data")
                one.data_location = one.EXTERNAL


def _unpack_once(model) -> None:
    """Each MatMulNBits becomes DequantizeLinear and a product of floats.

    MatMulNBits unpacks its integers at every token, which takes WASM many times as long as the
    product itself. DequantizeLinear is constant here: ONNX Runtime computes it when it loads the
    graph (with session.disable_quant_qdq), and packs each result for the product in its place.
    Integers, scales and zero points stay as they are in the file: two in a byte, the first one
    low. (Rows that end within a byte or a group are padded, for MatMulNBits alone, and left to
    it.)
    """
    from onnx import TensorProto, helper

    graph, nodes = model.graph, []
    weights = {one.name: one for one in graph.initializer}
    for node in graph.node:
        told = {one.name: one.i for one in node.attribute}
        if node.op_type != "MatMulNBits" or told["K"] % (2 * told["block_size"]):
            nodes.append(node)
            continue
        rows, columns, group, bits = (told[key] for key in ("N", "K", "block_size", "bits"))
        values, integers, scales, zeros = node.input[:4]
        if bits == 4:
            for name, width in ((integers, columns), (zeros, columns // group)):
                weights[name].data_type = TensorProto.UINT4
                weights[name].dims[:] = [rows, width]
        else:  # the head; the embedding reads the same bytes in their own shape
            shape = helper.make_tensor(f"{node.name}/shape", 7, [2], [rows, columns])
            graph.initializer.append(shape)
            flat = f"{node.name}/flat"
            nodes.append(helper.make_node("Reshape", [integers, shape.name], [flat]))
            integers = flat
        floats = f"{node.name}/floats"
        nodes += [
            helper.make_node(
                "DequantizeLinear", [integers, scales, zeros], [floats], axis=1, block_size=group
            ),
            helper.make_node(
                "FusedMatMul",
                [values, floats],
                node.output,
                name=node.name,
                domain="com.microsoft",
                transB=1,
            ),
        ]
    del graph.node[:]
    graph.node.extend(nodes)

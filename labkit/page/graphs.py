"""The graph of lab 04 as a browser can run it: one for its processor, one for its GPU."""

from pathlib import Path

from labkit.errors import LabError
from labkit.weights import one_line

ENGINES = ("wasm", "webgpu")
LARGE = 1024  # bytes; what is smaller stays in the graph


def write_graphs(onnx_dir: Path, out: Path) -> dict:
    """Writes the model in *onnx_dir* to the folder *out*, as wasm.onnx with wasm.bin and as
    webgpu.onnx with webgpu.bin.

    LoRA weights are inputs that must be given: the browser's runtime refuses a feed for an input
    that has a default. Only the last position gets logits. The GPU has a kernel for 4-bit
    integers, and gets those of lab 04; for the processor see :func:`_eight_bits`. Returns what
    whoever runs them must know: layers, kv_heads, head_size, adapter_inputs (name -> shape, 0 for
    the rank).

    Raises LabError for a graph that is missing, damaged, or not made for a processor.
    """
    import onnx

    path = onnx_dir / "model.onnx"
    model = _loaded(path)
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
    _last_position(model)
    on_processor = onnx.ModelProto()
    on_processor.CopyFrom(model)
    _eight_bits(on_processor)
    for engine, one in zip(ENGINES, (on_processor, model), strict=True):
        _weights_aside(one, out / f"{engine}.bin")
        (out / f"{engine}.onnx").write_bytes(one.SerializeToString())
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


def write_for_loss(onnx_dir: Path, out: Path, *, each_row: bool = True) -> Path:
    """Writes to the empty folder *out* what WASM computes, as :class:`labkit.OnnxLogits` reads it,
    and returns that: with logits of every position, and an adapter or none.

    Each row (token) has its own scale, or one is for all where not *each_row*. Raises LabError for
    a graph that is missing or damaged.
    """
    model = _loaded(onnx_dir / "model.onnx")
    _eight_bits(model, each_row=each_row)
    _weights_aside(model, out / "wasm.bin")
    (out / "model.onnx").write_bytes(model.SerializeToString())
    return out


def _loaded(path: Path):
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own is of no common kind
        raise LabError(
            f"the model {path} for the page is missing or damaged ({one_line(error)}). Make it "
            "again: run lab 04."
        ) from error


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


def _eight_bits(model, *, each_row: bool = True) -> None:
    """Each MatMulNBits becomes a product of 8-bit integers, which WASM has a fast kernel for.

    MatMulNBits unpacks its integers at every token, which takes WASM many times as long as the
    product itself. Here the 4-bit values are written as 8 bits with one scale a column. The
    operator gives all rows that it gets one scale; so *each_row* is divided by its largest value
    first, and its product multiplied by that again: a token with large values takes nothing from
    the others. A head that is tied to the embedding stays so.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph, nodes = model.graph, []
    weights = {one.name: one for one in graph.initializer}
    tied = _tied_embedding(graph)
    least = helper.make_tensor("least", 1, [], [1e-20])  # a row may be all zeros
    columns = helper.make_tensor("columns", 7, [1], [-1])
    graph.initializer.extend([least, columns])
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            nodes.append(node)
            continue
        name, values = node.name, node.input[0]
        wide = _floats(node, weights)  # [out, in]
        scale = np.maximum(np.abs(wide).max(axis=1), np.float32(1e-20)) / 127
        integers = np.round(wide / scale[:, None]).astype(np.int8).T
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.ascontiguousarray(integers), f"{name}/integers"),
                numpy_helper.from_array(scale, f"{name}/scales"),
            ]
        )
        product = f"{name}/integers", f"{name}/scales"
        if not each_row:
            nodes.append(
                helper.make_node(
                    "DynamicQuantizeMatMul",
                    [values, *product],
                    node.output,
                    domain="com.microsoft",
                )
            )
            continue
        steps = (
            ("Abs", [values], "sizes", {}),
            ("ReduceMax", [f"{name}/sizes", "columns"], "largest", {}),
            ("Max", [f"{name}/largest", "least"], "unit", {}),
            ("Div", [values, f"{name}/unit"], "rows", {}),
            (
                "DynamicQuantizeMatMul",
                [f"{name}/rows", *product],
                "product",
                {"domain": "com.microsoft"},
            ),
        )
        nodes += [
            helper.make_node(kind, inputs, [f"{name}/{output}"], **more)
            for kind, inputs, output, more in steps
        ]
        nodes.append(helper.make_node("Mul", [f"{name}/product", f"{name}/unit"], node.output))
    if tied:
        embedding, head = tied
        at = next(i for i, node in enumerate(nodes) if node.name == embedding.name)
        ids, found = embedding.input[1], f"{embedding.name}/columns"
        nodes[at : at + 1] = [
            helper.make_node("Gather", [f"{head}/integers", ids], [found], axis=1),
            helper.make_node("Transpose", [found], [f"{found}/turned"], perm=[1, 2, 0]),
            helper.make_node("Cast", [f"{found}/turned"], [f"{found}/floats"], to=1),
            helper.make_node("Gather", [f"{head}/scales", ids], [f"{found}/scale"]),
            helper.make_node("Unsqueeze", [f"{found}/scale", "columns"], [f"{found}/unit"]),
            helper.make_node("Mul", [f"{found}/floats", f"{found}/unit"], embedding.output),
        ]
    _keep_what_is_used(graph, nodes)


def _floats(node, weights: dict):
    """The weights [out, in] of a MatMulNBits in float32; *weights* maps names to initializers."""
    import numpy as np
    from onnx import numpy_helper

    told = {one.name: one.i for one in node.attribute}
    rows, columns, bits = told["N"], told["K"], told["bits"]
    groups = -(-columns // told["block_size"])

    def unpacked(name, width):
        packed = numpy_helper.to_array(weights[name]).reshape(rows, -1)
        if bits == 4:  # two in a byte, the first one low
            packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1)
        return packed.reshape(rows, groups, -1) if width > groups else packed[:, :groups, None]

    scales = numpy_helper.to_array(weights[node.input[2]]).reshape(rows, groups, 1)
    integers = unpacked(node.input[1], columns).astype(np.float32)
    zeros = unpacked(node.input[3], groups) if len(node.input) > 3 else 1 << (bits - 1)
    return ((integers - zeros) * scales).reshape(rows, -1)[:, :columns]


def _tied_embedding(graph):
    """(the node of the embedding, the name of the head), if both read the same integers."""
    made_by = {name: node for node in graph.node for name in node.output}
    head = made_by["logits"]
    for node in graph.node:
        if node.op_type == "GatherBlockQuantized":
            behind = made_by.get(node.input[0])
            source = behind.input[0] if behind else node.input[0]
            return (node, head.name) if source == head.input[1] else None
    return None


def _keep_what_is_used(graph, nodes: list) -> None:
    """Puts *nodes* into *graph*, without those, and the initializers, that nothing reads."""
    results = {one.name for one in graph.output}
    while True:
        read = {name for node in nodes for name in node.input} | results
        used = [node for node in nodes if read.intersection(node.output)]
        if len(used) == len(nodes):
            break
        nodes = used
    kept = [one for one in graph.initializer if one.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)

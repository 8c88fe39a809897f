"""What must hold for every ONNX graph that the labs write, and what an adapter's file holds."""

from pathlib import Path

import numpy as np
import onnx
from onnx.defs import OpSchema

Parameter = OpSchema.FormalParameter


def weights_in(adapter: Path) -> dict[str, np.ndarray]:
    """Name -> each weight of an .onnx_adapter file, which has them in no fixed order."""
    import onnxruntime as ort

    parameters = ort.AdapterFormat.read_adapter(str(adapter)).get_parameters()
    # a copy: the memory is that of *parameters*
    return {name: value.numpy().copy() for name, value in parameters.items()}


def assert_valid(path: Path) -> None:
    """No name is listed twice, and onnx.checker finds nothing, wrong shapes included.

    The checker gets a path: so it reads a model of more than 2 GB, and the files of weights
    beside it. It asks nothing of operators of other domains than ONNX's own.
    """
    graph = onnx.load(path, load_external_data=False).graph
    for listed in (graph.input, graph.output, graph.initializer, graph.node):
        names = [one.name for one in listed]
        assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})[:5]
    _know_the_operator_of_onnx_runtime()
    onnx.checker.check_model(path, full_check=True)


def _know_the_operator_of_onnx_runtime() -> None:
    """ONNX Runtime has an operator in ONNX's domain that ONNX does not have."""
    name = "SimplifiedLayerNormalization"
    if onnx.defs.has(name):
        return
    kinds = {"axis": "INT", "stash_type": "INT", "epsilon": "FLOAT"}
    attributes = [
        OpSchema.Attribute(key, getattr(OpSchema.AttrType, kind), required=False)
        for key, kind in kinds.items()
    ]
    schema = OpSchema(
        name,
        "",
        1,
        inputs=[Parameter("X", "T"), Parameter("scale", "T")],
        outputs=[Parameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
        attributes=attributes,
    )
    onnx.defs.register_schema(schema)

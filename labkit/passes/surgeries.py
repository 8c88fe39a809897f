"""Olive's passes that change a graph, without its weights in memory: they stay in their file until
they are written to the next one. Through protobuf, 2 GB take some 13 s in each pass.
"""

import contextlib
from pathlib import Path

import onnx
import onnx_ir as ir
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes.onnx.common import ir_model_to_olive_model
from olive.passes.onnx.graph_surgeries import GraphSurgeries

ONE_FILE = 1.5e9  # bytes of weights that still stand in the graph's own file


def save_graph(model: ir.Model, path: Path, config) -> ONNXModelHandler:
    """Writes *model* to *path*, in one file if it is small, else with its weights beside it."""
    options = config.model_dump()
    weights = (one.const_value for one in model.graph.initializers.values())
    if sum(weight.nbytes for weight in weights) > ONE_FILE:
        options["save_as_external_data"] = True
    else:
        ir.external_data.load_to_model(model)
    return ir_model_to_olive_model(model, path, options)


class Surgeries(GraphSurgeries):
    """Olive's GraphSurgeries; of the weights, a surgery reads those that it asks for.

    As Olive has it where duplicates shall be removed, which reads them all.
    """

    def _run_for_config(self, model, config, output_model_path: str) -> ONNXModelHandler:
        if config.remove_duplicate_initializers:
            return super()._run_for_config(model, config, output_model_path)
        folder, name = Path(model.model_path).parent, Path(model.model_path).name
        graph = onnx.load(model.model_path, load_external_data=False)
        with contextlib.chdir(folder):  # where onnx looks for weights that a graph only names
            for surgery in config.surgeries:
                graph = self.init_surgeon_instance(surgery)(graph)
        changed = ir.from_proto(graph)
        ir.external_data.set_base_dir(changed.graph, folder)
        return save_graph(changed, Path(resolve_onnx_path(output_model_path, name)), config)

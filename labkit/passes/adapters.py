"""Olive's pass that takes the adapter out of the graph, put right: the graph is valid ONNX."""

from olive.passes.onnx.extract_adapters import ExtractAdapters


class LoraExtractor(ExtractAdapters):
    """Olive's ExtractAdapters, but each weight of the adapter is an input of the graph once.

    Olive 0.13 lists an optional input twice: as it makes the input, and again as it gives it the
    empty default. ONNX Runtime accepts that; onnx.checker and other readers refuse it.
    """

    def _make_dynamic_optional(self, model, weights, name, config) -> None:
        inputs = model.graph.inputs
        count = len(inputs)
        super()._make_dynamic_optional(model, weights, name, config)
        while len(inputs) > count:
            inputs.pop()

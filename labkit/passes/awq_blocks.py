"""AutoAWQ's way through a model, block by block, with its work where the weights are.

AutoAWQ copies every weight to the host and back and collects garbage at each of the 20 steps of
a search. Here a block of the model goes to the device once.
"""

from unittest import mock

import torch
from awq.modules.linear import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer
from awq.quantize.scale import scale_fc_fc, scale_fc_fcs
from awq.utils.calib_data import get_calib_dataset
from awq.utils.module import exclude_layers_to_not_quantize, get_named_linears, set_op_by_name

from labkit.grid import pack_awq, round_to_grid
from labkit.passes.awq_search import batches, best_scales, clipped
from labkit.progress import track


def quantizer_on(device: str) -> type[AwqQuantizer]:
    """DeviceQuantizer on a torch *device*; AutoAWQ's parameter quantizer_cls takes a class."""
    return type("DeviceQuantizer", (DeviceQuantizer,), {"device": device})


class DeviceQuantizer(AwqQuantizer):
    """AwqQuantizer on one device: a block goes there once, and comes back packed."""

    device = "cpu"

    @torch.no_grad()
    def quantize(self):
        before = torch.get_float32_matmul_precision()
        if self.device != "cpu":
            # sums over thousands of tokens are compared: ten bits of each factor are enough
            torch.set_float32_matmul_precision("high")
        try:
            self._quantize()
        finally:
            torch.set_float32_matmul_precision(before)

    @torch.no_grad()
    def init_quant(self, n_samples: int, max_seq_len: int) -> tuple:
        """(blocks, keyword arguments of each, the first one's inputs [records, tokens, channels]).

        From a pass through the model in which no block computes. AutoAWQ notes the arguments of
        the first block only, and in Gemma's blocks the mask and the rotary embedding differ.
        """
        blocks = self.awq_model.get_model_layers(self.model)
        records = torch.cat(
            get_calib_dataset(self.calib_data, self.tokenizer, n_samples, max_seq_len)
        ).to(self.model.device)
        calls = []

        def note(block, hidden_states, **kwargs):
            calls.append((hidden_states, kwargs | {"use_cache": False, "past_key_values": None}))
            return hidden_states

        with mock.patch.object(type(blocks[0]), "forward", note):
            self.model.base_model(records, use_cache=False)
            inputs = calls[0][0]
            calls.clear()
            self.model.base_model(records[:1], use_cache=False)  # masks of one record serve all
        return blocks, [kwargs for _, kwargs in calls], inputs

    def _quantize(self) -> None:
        self.inps = self.inps.to(self.device)
        calls = list(zip(self.modules, self.module_kwargs, strict=True))
        for block, kwargs in track(calls, "blocks"):
            kwargs = self._moved(kwargs)
            block.to(self.device)
            linears = exclude_layers_to_not_quantize(
                get_named_linears(block), self.modules_to_not_convert
            )
            inputs = self._inputs(block, linears, kwargs)
            for group in self.awq_model.get_layers_for_scaling(block, inputs, kwargs):
                self._scale(group, self._best_scales(**group))
            for name, linear in linears.items():
                weight = linear.weight.float()
                # as in AutoAWQ, queries and keys are not clipped: they meet in a product
                if self.apply_clip and "q_" not in name and "k_" not in name:
                    weight = self._clipped(weight, inputs[name])
                set_op_by_name(block, name, self._packed(linear, weight))
            block.cpu()

    def _moved(self, kwargs: dict) -> dict:
        def move(value):
            if isinstance(value, tuple):
                return tuple(map(move, value))
            return value.to(self.device) if isinstance(value, torch.Tensor) else value

        return {name: move(value) for name, value in kwargs.items()}

    def _inputs(self, block, linears: dict, kwargs: dict) -> dict[str, torch.Tensor]:
        """Linear's name -> what goes into it, [records, tokens, channels].

        What leaves the block goes into the next one.
        """
        seen: dict[str, list] = {name: [] for name in linears}
        hooks = [
            linear.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
            for name, linear in linears.items()
        ]
        known = self._sanitize_kwargs(kwargs, block)
        outputs = [self._module_forward(x, block, known) for x in batches(self.inps)]
        self.inps = torch.cat(outputs)
        for hook in hooks:
            hook.remove()
        whole: dict[tuple, torch.Tensor] = {}  # q, k and v have the same input: once in memory
        for pieces in seen.values():
            key = tuple(map(id, pieces))
            if key not in whole:
                whole[key] = torch.cat(pieces)
        return {name: whole[tuple(map(id, pieces))] for name, pieces in seen.items()}

    def _best_scales(self, prev_op, layers, inp, module2inspect=None, kwargs=None) -> torch.Tensor:
        if module2inspect is None or module2inspect is layers[0]:
            return best_scales(layers, inp, self.group_size)
        known = self._sanitize_kwargs(kwargs or {}, module2inspect)

        def forward(x):
            return self._module_forward(x, module2inspect, known)

        return best_scales(layers, inp, self.group_size, forward)

    def _clipped(self, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return clipped(weight, inputs, self.group_size)

    def _scale(self, group: dict, scales: torch.Tensor) -> None:
        prev_op, layers = group["prev_op"], group["layers"]
        # from here on in float32: the block is not called any more
        for module in (prev_op, *layers):
            module.weight.data = module.weight.data.float()
        if not isinstance(prev_op, torch.nn.Linear):
            offset = (
                1 if "Gemma" in type(prev_op).__name__ else 0
            )  # its norms multiply by 1 + weight
            prev_op.weight.data = (prev_op.weight.data + offset) / scales - offset
            for layer in layers:
                layer.weight.data *= scales
        elif len(layers) == 1:
            scale_fc_fc(prev_op, layers[0], scales)
        else:
            scale_fc_fcs(prev_op, layers, scales)
        if self.apply_clip:
            group["inp"].div_(scales.to(group["inp"].dtype))

    def _packed(self, linear: torch.nn.Linear, weight: torch.Tensor) -> WQLinear_GEMM:
        """AutoAWQ's layer with the integers of *weight* [out, in]."""
        grid = round_to_grid(weight, self.group_size)
        packed = WQLinear_GEMM(
            self.w_bit,
            self.group_size,
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            "cpu",
        )
        packed.qweight = pack_awq(grid.integers.flatten(-2)).cpu()
        packed.qzeros = pack_awq(grid.zeros.squeeze(-1)).cpu()
        packed.scales = grid.scales.squeeze(-1).T.half().contiguous().cpu()
        if linear.bias is not None:
            packed.bias = linear.bias.half().cpu()
        return packed

"""AutoAWQ's search for scales and clipping, run where the weights are; its grid and its file format.

AutoAWQ copies every weight to the host and back and collects garbage at each of the 20 grid points. Here a block of the
model goes to the device once, grid points share what they have in common, and nothing is read back before a search is over.
"""

from unittest import mock

import torch
from awq.modules.linear import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer
from awq.quantize.scale import scale_fc_fc, scale_fc_fcs
from awq.utils.calib_data import get_calib_dataset
from awq.utils.module import exclude_layers_to_not_quantize, get_named_linears, set_op_by_name

from labkit.errors import LabError

GRID = 20
SCREEN, FINALISTS = (
    4,
    4,
)  # every fourth record chooses the four grid points that all records decide between
TOKENS = 16384  # at most so many go through a module at once: it bounds the memory of a search
# Cut evenly on both sides, a group would have its zero point half way between two integers, use 15 of the 16 values, and
# not come back as the same integers from the ONNX model builder.
BELOW = 1 - 2**-8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the eight 4-bit numbers in a 32-bit word


def grouped(
    weight: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(integers, scales, zero points) of *weight* [out, in]: asymmetric 4 bits, one scale in float16 a group; in float32."""
    groups = weight.float().unflatten(-1, (-1, group_size))
    low, high = (
        groups.amin(-1, keepdim=True),
        groups.amax(-1, keepdim=True),
    )  # aminmax is five times slower on a CPU
    scales = ((high - low).clamp_(min=1e-5) / 15).half().float()
    zeros = (-low / scales).round_().clamp_(0, 15)
    return (groups / scales).round_().add_(zeros).clamp_(0, 15), scales, zeros


def rounded(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """The values that *weight* [out, in] has after rounding to 4 bits, in float32."""
    integers, scales, zeros = grouped(weight, group_size)
    return integers.sub_(zeros).mul_(scales).flatten(-2)


def _finite(losses: list[torch.Tensor]) -> torch.Tensor:
    """The losses as one tensor; argmin takes NaN for the least, and an overflow must not win."""
    return torch.stack(losses).nan_to_num(nan=torch.inf, posinf=torch.inf)


def quantizer_on(device: str) -> type[AwqQuantizer]:
    """DeviceQuantizer on a torch *device*, for AutoAWQ's parameter quantizer_cls, which takes a class."""
    return type("DeviceQuantizer", (DeviceQuantizer,), {"device": device})


class DeviceQuantizer(AwqQuantizer):
    """AwqQuantizer whose work stays on one device: a block goes there once, and comes back packed."""

    device = "cpu"

    @torch.no_grad()
    def quantize(self):
        before = torch.get_float32_matmul_precision()
        if (
            self.device != "cpu"
        ):  # sums over thousands of tokens are compared: ten bits of each factor are enough
            torch.set_float32_matmul_precision("high")
        try:
            self._quantize()
        finally:
            torch.set_float32_matmul_precision(before)

    @torch.no_grad()
    def init_quant(self, n_samples: int, max_seq_len: int) -> tuple:
        """(blocks, what each of them is called with besides its input, the input of the first one [records, tokens, channels]).

        From a pass through the model in which no block computes. AutoAWQ notes the arguments of the first block only, and in
        Gemma's blocks the mask and the rotary embedding differ.
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
            (inputs, _), calls[:] = calls[0], []
            self.model.base_model(records[:1], use_cache=False)  # masks of one record serve all
        return blocks, [kwargs for _, kwargs in calls], inputs

    def _quantize(self) -> None:
        self.inps = self.inps.to(self.device)
        for block, kwargs in zip(self.modules, self.module_kwargs, strict=True):
            kwargs = self._moved(kwargs)
            block.to(self.device)
            linears = exclude_layers_to_not_quantize(
                get_named_linears(block), self.modules_to_not_convert
            )
            inputs = self._inputs(block, linears, kwargs)
            for group in self.awq_model.get_layers_for_scaling(block, inputs, kwargs):
                self._scale(group, self._best_scales(**group), inputs)
            for name, linear in linears.items():
                weight = linear.weight.float()
                if self.apply_clip and not any(
                    part in name for part in ("q_", "k_")
                ):  # as AutoAWQ: they meet in a product
                    weight = self._clipped(weight, inputs[name])
                set_op_by_name(block, name, self._packed(linear, weight))
            block.cpu()

    def _moved(self, kwargs: dict) -> dict:
        def move(value):
            return value.to(self.device) if isinstance(value, torch.Tensor) else value

        return {
            k: tuple(map(move, v)) if isinstance(v, tuple) else move(v) for k, v in kwargs.items()
        }

    def _batches(self, x: torch.Tensor):
        return x.split(max(1, TOKENS // x.shape[1]))

    def _inputs(self, block, linears: dict, kwargs: dict) -> dict[str, torch.Tensor]:
        """Linear's name -> what goes into it, [records, tokens, channels]; what leaves the block goes into the next one."""
        seen: dict[str, list] = {name: [] for name in linears}
        hooks = [
            linear.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
            for name, linear in linears.items()
        ]
        known = self._sanitize_kwargs(kwargs, block)
        self.inps = torch.cat(
            [self._module_forward(x, block, known) for x in self._batches(self.inps)]
        )
        for hook in hooks:
            hook.remove()
        joined: dict[tuple, torch.Tensor] = {}  # q, k and v have the same input: once in memory
        for pieces in seen.values():
            key = tuple(map(id, pieces))
            if key not in joined:
                joined[key] = torch.cat(pieces)
        return {name: joined[tuple(map(id, pieces))] for name, pieces in seen.items()}

    def _best_scales(self, prev_op, layers, inp, module2inspect=None, kwargs=None) -> torch.Tensor:
        """The scales [in] of AutoAWQ's grid whose rounded weights change the module's output least."""
        weights = [
            layer.weight.data.float() for layer in layers
        ]  # of .data: in float32, float() returns the parameter itself
        groups = torch.cat(weights).unflatten(-1, (-1, self.group_size)).abs()
        w_mean = (groups / (groups.amax(-1, keepdim=True) + 1e-6)).flatten(-2).mean(0)
        flat = inp.flatten(0, -2)
        x_mean = torch.stack([x.float().abs().sum(0) for x in flat.split(TOKENS)]).sum(0) / len(
            flat
        )

        def scales_of(ratios):
            ratios = ratios.unsqueeze(1)
            scales = x_mean.pow(ratios)
            if self.duo_scaling:
                scales = scales / (w_mean.pow(1 - ratios) + 1e-4)
            scales = scales.clamp(min=1e-4)
            scales = scales / (scales.amax(1, keepdim=True) * scales.amin(1, keepdim=True)).sqrt()
            return torch.where(scales.isfinite(), scales, 1.0)

        alone = module2inspect is None or module2inspect is layers[0]

        def judge(x):
            if alone:
                return self._linear_judge(weights[0], x.flatten(0, -2))
            return self._module_judge(weights, layers, module2inspect, x, kwargs or {})

        ratios = torch.arange(GRID, device=self.device) / GRID
        # a part of the records tells the few that are worth all of them; where X'X serves all, each is cheap
        if len(inp) >= 2 * SCREEN and not (alone and self._many(flat)):
            ratios = ratios[
                judge(inp[::SCREEN])(scales_of(ratios)).topk(FINALISTS, largest=False).indices
            ]
        judged = judge(inp)
        losses = judged(scales_of(ratios))
        if not losses.isfinite().any():
            raise LabError(
                "AWQ finds no scale with a finite error: the model's weights or activations overflow the type of the search. "
                "Set quantize_dtype to bfloat16 in labkit/profiles.py."
            )
        between = (
            ratios[losses.argmin()] + torch.tensor([-0.5, 0.5], device=self.device) / GRID
        ).clamp(0, 1)
        ratios, losses = (
            torch.cat([ratios, between]),
            torch.cat([losses, judged(scales_of(between))]),
        )
        return scales_of(ratios[losses.argmin()].unsqueeze(0))[0]

    @staticmethod
    def _many(flat) -> bool:
        return len(flat) >= flat.shape[1]

    def _linear_judge(self, weight, flat):
        # |X d'|^2 = d X'X d' for the change d of the weights: with many tokens, X'X serves all grid points
        gram = (
            sum(x.float().T @ x.float() for x in flat.split(TOKENS)) if self._many(flat) else None
        )

        def judge(scales):
            losses = []
            for s in scales:
                change = rounded(weight * s, self.group_size) / s - weight
                if gram is None:
                    losses.append((flat @ change.to(flat.dtype).T).float().pow(2).sum())
                else:
                    losses.append((change @ gram).mul_(change).sum())
            return _finite(losses)

        return judge

    def _module_judge(self, weights, layers, module, inp, kwargs):
        known = self._sanitize_kwargs(kwargs, module)
        batches = self._batches(inp)
        wanted = [self._module_forward(x, module, known) for x in batches]
        kept = [layer.weight.data for layer in layers]

        def judge(scales):
            losses = []
            for s in scales:
                for layer, weight in zip(layers, weights, strict=True):
                    layer.weight.data = (rounded(weight * s, self.group_size) / s).to(
                        kept[0].dtype
                    )
                pairs = zip(batches, wanted, strict=True)
                losses.append(
                    sum(
                        (self._module_forward(x, module, known) - y).float().pow(2).sum()
                        for x, y in pairs
                    )
                )
            for layer, weight in zip(layers, kept, strict=True):
                layer.weight.data = weight
            return _finite(losses)

        return judge

    def _scale(self, group: dict, scales: torch.Tensor, inputs: dict) -> None:
        prev_op, layers = group["prev_op"], group["layers"]
        for layer in layers:  # from here on in float32: the block is not called any more
            layer.weight.data = layer.weight.data.float()
        prev_op.weight.data = prev_op.weight.data.float()
        if isinstance(prev_op, torch.nn.Linear):
            (scale_fc_fc if len(layers) == 1 else scale_fc_fcs)(
                prev_op, *(layers if len(layers) == 1 else [layers]), scales
            )
        else:
            offset = (
                1 if "Gemma" in type(prev_op).__name__ else 0
            )  # Gemma's norms multiply by 1 + weight
            prev_op.weight.data = (prev_op.weight.data + offset) / scales - offset
            for layer in layers:
                layer.weight.data *= scales
        if self.apply_clip:
            group["inp"].div_(scales.to(group["inp"].dtype))

    def _clipped(self, weight, x) -> torch.Tensor:
        """*weight* with each group's largest magnitudes cut to the one of ten limits that changes the outputs least."""
        groups = weight.unflatten(-1, (-1, self.group_size))
        x = x.flatten(0, -2)
        x = (
            x[:: max(1, len(x) // 512)]
            .float()
            .unflatten(-1, (-1, self.group_size))
            .transpose(0, 1)
        )  # [groups, tokens, size]
        gram = x.transpose(1, 2) @ x
        limit = groups.abs().amax(-1, keepdim=True)
        best, least = limit.clone(), torch.full_like(limit, torch.inf)
        for step in range(10):
            cut = limit * (1 - step / GRID)
            clipped = groups.clamp(-cut, cut * BELOW)
            change = (
                rounded(clipped.flatten(-2), self.group_size).view_as(groups) - groups
            ).transpose(0, 1)
            loss = (change @ gram).mul_(change).sum(-1).T.unsqueeze(-1)
            best, least = torch.where(loss < least, cut, best), torch.minimum(loss, least)
        return groups.clamp(-best, best * BELOW).flatten(-2)

    def _packed(self, linear, weight) -> WQLinear_GEMM:
        """AutoAWQ's layer with the integers of *weight*, eight in a word, inputs first."""
        integers, scales, zeros = grouped(weight, self.group_size)
        out = WQLinear_GEMM(
            self.w_bit,
            self.group_size,
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            "cpu",
        )

        def words(numbers):  # [out, n] -> [n, out / 8]
            shifts = torch.arange(0, 32, 4, device=numbers.device, dtype=torch.int32)
            eight = numbers.T.to(torch.int32).unflatten(-1, (-1, 8))[..., ORDER]
            return (eight << shifts).sum(-1, dtype=torch.int32).cpu()

        out.qweight, out.qzeros = words(integers.flatten(-2)), words(zeros.squeeze(-1))
        out.scales = scales.squeeze(-1).T.half().contiguous().cpu()
        if linear.bias is not None:
            out.bias = linear.bias.half().cpu()
        return out

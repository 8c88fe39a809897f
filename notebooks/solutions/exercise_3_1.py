# Exercise 3.1
from labkit.grid import round_to_grid

expected_percent = 50  # your number

layer = copy.deepcopy(tuned.base_model.model.model.layers[0].mlp.down_proj).float()
W, A, B = (
    layer.base_layer.weight,
    layer.lora_A["travel"].weight,
    layer.lora_B["travel"].weight,
)
with torch.inference_mode():
    added = layer.scaling["travel"] * B @ A
    x = torch.randn(4, W.shape[1], device=W.device)
    difference = (layer(x) - x @ (W + added).T).abs().max().item()
    old, new = (round_to_grid(M, profile.group_size) for M in (W, W + added))
    same = (old.integers == new.integers).float().mean().item()
    moved = (added.view_as(old.integers).abs() / old.scales).median().item()
print(f"largest difference from PEFT's layer: {difference:.2g}")
print(f"the same integer: {same:.2%} of the weights (you expected {expected_percent} %)")
print(
    f"half of the weights move by less than {moved:.1%} of the way to the next grid point"
)
lab.exercise("3.1", same_as_the_layer_with_its_adapter=difference < 1e-3)

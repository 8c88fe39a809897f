# Exercise 3.1
layer = deepcopy(
    model.base_model.model.model.layers[0].mlp.down_proj
).float()  # whatever type the model has here
W, A, B = (
    layer.base_layer.weight,
    layer.lora_A["default"].weight,
    layer.lora_B["default"].weight,
)
added = layer.scaling["default"] * B @ A
inputs = torch.randn(4, W.shape[1], device=W.device)
with torch.inference_mode():
    difference = (layer(inputs) - inputs @ (W + added).T).abs().max().item()
print(f"largest difference from PEFT's layer: {difference:.2g}")
lab.exercise("3.1", same_as_the_layer_with_its_adapter=difference < 1e-3)

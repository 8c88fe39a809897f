# Exercise 4.2
import onnxruntime as ort

factor = 0.0
edited = ort.AdapterFormat.read_adapter(str(adapter))
weights = edited.get_parameters()
for name, value in weights.items():
    if "lora_B" in name:
        weights[name] = ort.OrtValue.ortvalue_from_numpy(factor * value.numpy())
edited.set_parameters(weights)
edited.export_adapter(str(lab.folder / "logs" / "edited.onnx_adapter"))
some = {
    "provider": lab.profile.provider,
    "adapter": lab.folder / "logs" / "edited.onnx_adapter",
}
mine = labkit.record_losses(onnx_dir, tokenizer, heldout[:2], **some)
without = labkit.record_losses(
    onnx_dir, tokenizer, heldout[:2], provider=lab.profile.provider
)
difference = abs(sum(map(sum, mine)) - sum(map(sum, without)))
print(f"summed loss of two answers differs by {difference:.4f}")
lab.exercise("4.2", as_if_no_adapter_were_there=difference < 1e-3)

# Exercise 4.2
import hashlib
from functools import cache

import onnxruntime as ort

without = plain_losses[:10]


@cache
def losses_with(file):
    return onnx_losses(shipped.using(file), heldout[:10])


def accepts(file):
    return labkit.loss_difference(losses_with(file), without).high < 0


def exported(name, factor, version):
    copied = ort.AdapterFormat.read_adapter(str(adapter))
    weights = copied.get_parameters()
    for key, value in weights.items():
        if "lora_B" in key:
            weights[key] = ort.OrtValue.ortvalue_from_numpy(factor * value.numpy())
    copied.set_parameters(weights)
    copied.set_adapter_version(version)
    copied.export_adapter(str(lab.logs / name))
    return lab.logs / name


again, empty = exported("again", 1, version=2), exported("empty", 0, version=1)
files = {"of step 2": adapter, "again": again, "tone": tone_adapter, "empty": empty}
accepted = {name: accepts(file) for name, file in files.items()}
rows = [
    {
        "file": name,
        "MB": f"{labkit.dir_mb(file):.2f}",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest()[:8],
        "loss": f"{labkit.mean_loss(losses_with(file)).mean:.3f}",
        "accepted": "yes" if accepted[name] else "no",
    }
    for name, file in files.items()
]
lab.exercise(
    "4.2",
    accepts_both_good_files=accepted["of step 2"] and accepted["again"],
    refuses_the_tone_adapter=not accepted["tone"],
    refuses_the_empty_adapter=not accepted["empty"],
)
labkit.table(rows)

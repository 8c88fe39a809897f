# Exercise 6.1
ADAPTER = "adapter_weights.onnx_adapter"


def is_the_listed_file(path, listed):
    return hashlib.sha256(path.read_bytes()).hexdigest() == listed["sha256"]


listed = manifest["files"][ADAPTER]
takes_travel = is_the_listed_file(package / ADAPTER, listed)
takes_tone = is_the_listed_file(lab.path("tone.onnx_adapter"), listed)
print(f"takes the travel adapter: {takes_travel}; takes the tone adapter: {takes_tone}")
lab.exercise("6.1", takes_the_true_one=takes_travel, refuses_the_other=not takes_tone)

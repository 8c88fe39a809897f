# Exercise 6.1
import hashlib

digest = hashlib.sha256((package / "model.onnx").read_bytes()).hexdigest()
print(digest)
lab.exercise("6.1", as_in_the_manifest=digest == manifest["files"]["model.onnx"]["sha256"])

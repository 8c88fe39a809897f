"""One run folder for all notebooks of a test run."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from samples import tiny_config
from side_by_side import is_extra

from labkit.course import entry
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.machine import TELEMETRY_OFF
from labkit.products import Products
from labkit.profiles import ROOT
from labkit.registry import VARIABLES

pytest_plugins = [
    "azure_rig.fixtures",
    "quick",
    "registry_fixtures",
    "side_by_side",
    "tiny_course",
]


def pytest_configure(config):
    # a test run neither reads nor writes the user's own runs and settings
    for name in ("LAB_PROFILE", "LAB_MODEL", "LAB_DATA", "LAB_LOCK_HELD", *VARIABLES):
        os.environ.pop(name, None)
    os.environ["LAB_REHEARSE"] = (
        "1"  # a config.json above the repository must not make tests upload
    )
    os.environ.setdefault("LAB_STEPS", "8")
    os.environ.update(TELEMETRY_OFF)  # Olive and ONNX Runtime also run in the tests' own process
    if hasattr(config, "workerinput"):
        pass  # a worker of pytest-xdist has the folder of the test run
    elif os.environ.get("CI"):  # kept for whoever reads a failure
        shutil.rmtree(ROOT / "runs" / "test", ignore_errors=True)
        os.environ["LAB_RUNS"] = str(ROOT / "runs" / "test")
    else:
        runs = tempfile.TemporaryDirectory(prefix="lab-test-")
        os.environ["LAB_RUNS"] = runs.name
        config.add_cleanup(runs.cleanup)
    config.pluginmanager.register(NotRun(), "labs-not-run")


class NotRun:
    """A notebook that misses a product because an earlier one failed is not run, and has not
    failed.
    """

    def __init__(self):
        self.failed = False

    # after side_by_side.Turns, which waits until the labs have run
    def pytest_runtest_setup(self, item):
        if item.path.suffix != ".ipynb":
            return
        if packages := entry(item.path.name[:2]).packages:
            try:
                extra_packages(packages)
            except LabError as error:
                pytest.skip(str(error))
        # an extra may be on another worker than the lab that failed
        if self.failed or is_extra(item.path):
            products = Products(Path(os.environ["LAB_RUNS"]) / "cpu")
            needs = entry(item.path.name[:2]).needs
            if missing := [need for need in needs if not products.is_current(need)]:
                pytest.skip(f"not run: an earlier lab failed, and {', '.join(missing)} is missing")

    def pytest_runtest_logreport(self, report):
        self.failed |= report.failed and report.nodeid.split("::")[0].endswith(".ipynb")


@pytest.fixture(autouse=True)
def nothing_told():
    """Files that a test before this one found damaged are told again."""
    from labkit import state

    state._told.clear()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty run folder of the test's own."""
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def notebook_runs() -> Path:
    """Folder of the cpu profile that the notebooks of this test run wrote."""
    folder = Path(os.environ["LAB_RUNS"]) / "cpu"
    if not (folder / "summary.json").exists():
        pytest.skip("the notebooks were not run, or lab 06 did not finish")
    return folder


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer of bytes, with a chat template."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        tokenizer_models.BPE(
            vocab={token: i for i, token in enumerate([*alphabet, "<end>"])}, merges=[]
        )
    )
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<end>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>", chat_template=template
    )


@pytest.fixture
def tiny(tmp_path, byte_tokenizer):
    """Folder of a real, tiny Llama with random weights and a byte-level tokenizer with a chat
    template.
    """
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config())
    # a few channels carry far more than the rest, as in a trained model
    for layer in model.model.layers:
        layer.input_layernorm.weight.data[::16] *= 20
        layer.post_attention_layernorm.weight.data[::16] *= 20
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder

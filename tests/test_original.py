"""docs/ORIGINAL.md: what it says that Olive prints."""

import re
import shlex

import pytest
from forked import run_forked
from samples import tiny_config

from labkit.machine import TELEMETRY_OFF
from labkit.profiles import ROOT

# a block of commands and what they print; "once" behind "console" is for what takes longer
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OLIVE = "import sys\nfrom olive.cli.launcher import main\nmain(sys.argv[1:])\n"
QUICK = [
    block.splitlines() for block in BLOCK.findall((ROOT / "docs" / "ORIGINAL.md").read_text())
]


def test_some_commands_are_run():
    assert len(QUICK) >= 2


@pytest.mark.parametrize("lines", QUICK, ids=lambda lines: lines[0][2:40])
def test_olive_says_what_the_page_says(lines, tmp_path, byte_tokenizer):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(tiny_config()).save_pretrained(tmp_path / "runs" / "cpu" / "base")
    byte_tokenizer.save_pretrained(tmp_path / "runs" / "cpu" / "base")
    command, *said = lines
    dollar, program, *arguments = shlex.split(command)
    assert (dollar, program) == ("$", "olive")
    status, printed, error = run_forked(OLIVE, tmp_path, *arguments, env=TELEMETRY_OFF)
    assert status and said
    for line in said:
        # a fork has no name of its own
        assert line == "..." or line.removeprefix("olive: ") in printed + error, printed + error

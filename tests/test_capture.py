"""What a block prints goes to a log, and its memory is measured."""

import logging
import os
import sys
import time

import pytest

from labkit.capture import PeakMemory, last_lines, redirect_output


def test_all_that_a_block_prints_goes_to_the_log(tmp_path, capfd):
    logger = logging.getLogger("some.library")
    handler = logging.StreamHandler(sys.stderr)  # made before the block, as libraries do
    logger.addHandler(handler)
    log = tmp_path / "logs" / "a.log"
    try:
        with redirect_output(log):
            print("from python")
            print("to stderr", file=sys.stderr)
            os.write(1, b"from C\n")
            logger.warning("from a logger")
        print("after")
        logger.warning("a logger after")
    finally:
        logger.removeHandler(handler)
    out, err = capfd.readouterr()
    assert (out, err) == ("after\n", "a logger after\n")
    assert set(log.read_text().splitlines()) == {
        "from python",
        "to stderr",
        "from C",
        "from a logger",
    }


def test_output_comes_back_after_an_error(tmp_path, capfd):
    with pytest.raises(ValueError), redirect_output(tmp_path / "a.log"):
        raise ValueError
    print("seen")
    os.write(1, b"too\n")
    assert capfd.readouterr().out == "seen\ntoo\n"


def test_the_end_of_a_log(tmp_path):
    log = tmp_path / "a.log"
    assert last_lines(log) == ""
    log.write_bytes(b"one\ntwo \xff\nthree\n\n\n")
    assert last_lines(log, 2) == "two �\nthree"


def test_memory_that_was_held_in_the_block_counts():
    with PeakMemory() as peak:
        held = b"x" * 100_000_000
        time.sleep(0.2)  # it looks 20 times a second
        del held
    assert 95 < peak.added_mb < 150 and peak.mb > peak.added_mb and peak.gpu_mb == 0
    with PeakMemory() as nothing:
        pass
    assert nothing.added_mb < 20

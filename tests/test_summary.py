"""The figures of a run: which count, and the form of summary.json."""

import json

import pytest
from samples import CPU, writes

from labkit.figures import Estimate
from labkit.session import Lab
from labkit.summary import Records

LOSS = Estimate(3.0, 2.5, 3.5, "nats per token")


@pytest.fixture
def lab(runs):
    made = Lab("02", CPU)
    made.keep("awq", writes("x"))
    return made


@pytest.fixture
def records(lab):
    return Records(lab.products)


def of(lab) -> dict[str, str]:
    return {"awq": lab.products.stamp("awq").id}


def test_figures_of_all_labs_are_found_by_section_and_name(records):
    records.add("02", {}, "eval_loss", {"awq_int4": LOSS, "rtn_int4": Estimate(4.0)})
    records.add("03", {}, "eval_loss", {"awq_lora": Estimate(2.0)})
    records.add("02", {}, "sizes_mb", {"awq_int4": Estimate(85.0, unit="MB")})
    found = records.sections()
    assert found["eval_loss"].keys() == {"awq_int4", "rtn_int4", "awq_lora"}
    assert found["eval_loss"]["awq_int4"] == LOSS
    assert found["sizes_mb"] == {"awq_int4": Estimate(85.0, 85.0, 85.0, "MB")}


def test_the_later_lab_s_figure_counts_and_a_new_one_replaces_the_old(records):
    records.add("05", {}, "sizes_mb", {"onnx": Estimate(5.0)})
    records.add("04", {}, "sizes_mb", {"onnx": Estimate(4.0)})
    assert records.sections()["sizes_mb"]["onnx"].mean == 5.0
    records.add("05", {}, "sizes_mb", {"onnx": Estimate(6.0)})
    assert records.sections()["sizes_mb"]["onnx"].mean == 6.0


def test_a_figure_counts_no_more_once_its_product_is_made_anew(records, lab):
    records.add("02", of(lab), "eval_loss", {"awq_int4": LOSS})
    records.add("02", {}, "eval_loss", {"other": LOSS})
    records.pass_checkpoint("02", of(lab), "2.5")
    records.pass_checkpoint("02", {}, "2.4")
    assert records.sections()["eval_loss"].keys() == {"awq_int4", "other"}
    assert records.checkpoints("02") == {"2.4", "2.5"} and records.checkpoints("03") == set()
    lab.keep("awq", writes("x"), anew=True)
    assert records.sections()["eval_loss"].keys() == {"other"}
    assert records.checkpoints("02") == {"2.4"}


def test_the_summary_has_one_form_for_all_figures(lab):
    lab.record("eval_loss", awq_int4=LOSS)
    lab.record("sizes_mb", awq_int4=Estimate(85, unit="MB"))
    summary = lab.summary()
    written = (lab.folder / "summary.json").read_text()
    assert json.loads(json.dumps(summary)) == json.loads(written)
    assert summary["eval_loss"] == {
        "awq_int4": {"mean": 3.0, "low": 2.5, "high": 3.5, "unit": "nats per token"}
    }
    exact = {"mean": 85, "low": 85, "high": 85, "unit": "MB"}
    assert summary["sizes_mb"] == {"awq_int4": exact}


def test_the_summary_says_where_and_how_it_was_measured(lab):
    lab.record("eval_loss", awq_int4=LOSS)
    summary = lab.summary()
    seconds = lab.products.stamp("awq").seconds
    assert summary["seconds"]["steps"] == {"awq": seconds}
    assert summary["seconds"]["labs"]["02"] == seconds and "03" not in summary["seconds"]["labs"]
    assert summary["peak_rss_mb"] == max(
        *summary["peak_rss_mb_by_lab"].values(), summary["peak_rss_mb_by_step"]["awq"]
    )
    assert summary["machine"]["threads"] >= 1 and summary["versions"]["torch"]
    assert summary["profile"]["name"] == "cpu" and len(summary["data_sha256"]) == 64
    assert summary["seed"] == 7 and summary["git_commit"]


def test_what_is_not_current_is_in_no_summary(lab):
    (lab.folder / "awq").unlink()
    assert lab.summary()["seconds"]["steps"] == {}

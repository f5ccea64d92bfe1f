"""Where and how models are measured: the device, the numbers, the engine's settings."""

from pathlib import Path

import pytest
import torch

from loragate.adapters.settings import engine_settings
from loragate.trainer.evaluation.served import Serving, _environment
from loragate.trainer.training import models
from loragate.trainer.training.models import exact_device, load_to_measure, place_to_measure


def test_a_model_is_measured_in_float32_where_memory_holds_it(
    base, monkeypatch: pytest.MonkeyPatch
):
    assert place_to_measure(base.path, "cpu") == ("cpu", torch.float32)
    monkeypatch.setattr(models, "free_host_bytes", lambda: 10)
    assert place_to_measure(base.path, "cpu") == ("cpu", "auto")
    assert next(load_to_measure(base.path, "cpu").parameters()).dtype == torch.float32


def test_a_gpu_is_taken_where_the_model_fits_and_the_cpu_where_it_must_be_exact(
    base, monkeypatch: pytest.MonkeyPatch
):
    kept = sum(file.stat().st_size for file in base.path.glob("*.safetensors"))
    monkeypatch.setattr(models, "_bytes_of_number", lambda _folder: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, place, exact in (
        (4 * kept, ("cuda", torch.float32), "cuda"),
        (1.5 * kept, ("cuda", "auto"), "cpu"),
        (kept, ("cpu", torch.float32), "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, free))
        assert place_to_measure(base.path, "cuda") == place
        assert exact_device(base.path) == exact


def test_the_evaluation_s_server_has_the_engine_s_settings_but_its_own_where_it_needs_them(
    tmp_path: Path,
):
    file = tmp_path / "loragate.toml"
    file.write_text(
        '[engine]\ngpu_memory_utilization = 0.5\nenforce_eager = true\nmodel = "other"\n'
        "max_loras = 9\n"
    )
    variables = {"LORAGATE_CONFIG": str(file), "LORAGATE_ENGINE_KV_CACHE_GIB": "3"}
    engine = engine_settings(variables)

    found = _environment(Serving("mine", tmp_path, 512, engine=engine), {})

    assert found["LORAGATE_ENGINE_GPU_MEMORY_UTILIZATION"] == "0.5"
    assert found["LORAGATE_ENGINE_ENFORCE_EAGER"] == "true"
    assert found["LORAGATE_ENGINE_KV_CACHE_GIB"] == "3"
    assert found["LORAGATE_ENGINE_MODEL"] == "mine"
    assert found["LORAGATE_ENGINE_MAX_LORAS"] == "1"
    assert _environment(Serving("m", tmp_path, 9), {})["LORAGATE_ENGINE_KV_CACHE_GIB"] == "1"

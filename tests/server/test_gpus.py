"""Which GPU's memory is measured: always that which CUDA would use."""

import sys
from pathlib import Path

import pytest

from loragate.adapters.base_models.preparation import BaseModel
from loragate.server.config import Config, ConfigError, EngineConfig
from loragate.server.engine.gpus import GpuMemory, Gpus, GpusUnknown
from loragate.server.engine.memory import GPU_PROCESS_BYTES, PROCESS_BYTES
from loragate.server.merged import vllm_backend
from support.engines.nvml import Gpu, Instance, Nvml, Process

SMALL = Gpu("GPU-aaaa1111", free=10, total=20)
LARGE = Gpu("GPU-bbbb2222", free=70, total=80, instances=(), processes=(Process(7, 5),))
HALF = Instance("MIG-cccc3333", free=30, total=40, ids=(1, 0), processes=(Process(8, 6),))
OTHER_HALF = Instance("MIG-dddd4444", free=35, total=40, ids=(2, 0))
DIVIDED = Gpu("GPU-eeee5555", free=65, total=80, instances=(None, HALF, OTHER_HALF))


def gpus(*devices: Gpu, visible: str | None = None) -> Gpus:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return Gpus(Nvml(devices), environment)


@pytest.mark.parametrize(
    ("visible", "measured"),
    [
        (None, SMALL),
        ("0", SMALL),
        ("1", LARGE),
        ("1,0", LARGE),
        (" 1 , 0", LARGE),
        ("GPU-bbbb2222", LARGE),
        ("GPU-b", LARGE),
        ("2", HALF),
        ("GPU-eeee5555", HALF),
        ("MIG-dddd4444", OTHER_HALF),
        ("MIG-d", OTHER_HALF),
        ("MIG-GPU-eeee5555/2/0", OTHER_HALF),
        ("MIG-GPU-eeee5555/1/0", HALF),
    ],
)
def test_memory_is_that_of_the_device_that_cuda_would_use(
    visible: str | None, measured: Gpu | Instance
) -> None:
    found = gpus(SMALL, LARGE, DIVIDED, visible=visible).memory()
    assert found == GpuMemory(measured.free, measured.total)


@pytest.mark.parametrize(
    "visible",
    [
        "",
        "-1",
        "3",
        "-1,0",
        "7,0",
        "GPU-x",
        "GPU-",
        "MIG-GPU-eeee5555/9/0",
        "MIG-",
        "all",
        "NoDevFiles",
    ],
)
def test_entry_that_names_no_device_hides_all_behind_it_as_in_cuda(visible: str) -> None:
    with pytest.raises(GpusUnknown, match="No GPU is named by CUDA_VISIBLE_DEVICES="):
        gpus(SMALL, LARGE, DIVIDED, visible=visible).memory()


def test_of_several_devices_the_one_with_the_least_memory_counts_for_all() -> None:
    assert gpus(SMALL, LARGE).memory(2) == GpuMemory(2 * 10, 2 * 20)
    assert gpus(SMALL, LARGE, LARGE, visible="1,2").memory(2) == GpuMemory(2 * 70, 2 * 80)


def test_more_devices_than_there_are_is_told_with_the_setting() -> None:
    with pytest.raises(
        GpusUnknown, match=r"2 GPUs are there, and engine\.tensor_parallel_size is 4"
    ):
        gpus(SMALL, LARGE).memory(4)


def test_what_processes_hold_is_summed_over_their_devices() -> None:
    both = gpus(LARGE, DIVIDED)
    assert both.used_by({7, 8}) == 11
    assert both.used_by({8}) == 6
    assert both.used_by({1}) == 0
    untold = Gpu("GPU-f", 1, 2, processes=(Process(7, None),))
    assert gpus(untold).used_by({7}) == 0


def test_a_machine_without_a_driver_is_told_in_a_sentence() -> None:
    with pytest.raises(GpusUnknown, match="NVML says Driver Not Loaded"):
        Gpus(Nvml(has_driver=False), {}).memory()


def test_a_missing_library_is_told_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(GpusUnknown, match="install the package nvidia-ml-py"):
        Gpus.from_driver()


def test_nvml_is_left_as_it_was_found_also_after_an_error() -> None:
    nvml = Nvml([SMALL])
    Gpus(nvml, {}).memory()
    with pytest.raises(GpusUnknown):
        Gpus(nvml, {"CUDA_VISIBLE_DEVICES": ""}).memory()
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("is_cpu", "allowance"), [(True, PROCESS_BYTES), (False, 3 * GPU_PROCESS_BYTES)]
)
def test_merged_model_is_allowed_a_process_on_each_of_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cpu: bool, allowance: int
) -> None:
    monkeypatch.setattr(vllm_backend, "is_cpu_build", lambda: is_cpu)
    config = Config(engine=EngineConfig(tensor_parallel_size=3))
    budget = vllm_backend.merged_budget(config, BaseModel("base", tmp_path, "sha256:0"))
    assert budget.process_bytes == allowance


@pytest.mark.parametrize(
    ("is_cpu", "engine", "wrong"),
    [
        (True, EngineConfig(tensor_parallel_size=2), "tensor_parallel_size is 2"),
        (False, EngineConfig(dtype="float32"), "dtype is 'float32'"),
        (False, EngineConfig(weights="int8"), "weights is 'int8'"),
    ],
)
def test_setting_that_the_installed_vllm_has_not_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, is_cpu: bool, engine: EngineConfig, wrong: str
) -> None:
    monkeypatch.setattr(vllm_backend, "is_cpu_build", lambda: is_cpu)
    with pytest.raises(ConfigError, match=wrong):
        vllm_backend.require_fitting(engine)
    monkeypatch.setattr(vllm_backend, "is_cpu_build", lambda: not is_cpu)
    vllm_backend.require_fitting(engine)

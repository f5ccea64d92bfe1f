"""Slots of vLLM's own manager while adapters are placed in parts: whose weights lie where.

The manager, its caches and the layers' `set_lora` are vLLM's; the layers have no base model below
them. Each adapter's weights are its own id, so a look at a slot says whose they are.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import nn
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.models.utils import WeightsMapper

from loragate.adapters.format.ready_file import ReadyForm, write_ready
from loragate.server.engine.vllm import lora_staging
from loragate.server.engine.vllm.lora_staging import AdapterStaging
from loragate.server.engine.vllm.workers import WorkerFault, Workers

SLOTS, RESIDENTS, LAYERS = 3, 6, 20
PLACED = 90  # ids of what is placed while the residents run
NAMES = [f"model.layers.{number:02}.q_proj" for number in range(LAYERS)]


class Layer(BaseLinearLayerWithLoRA):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.tp_size, self.n_slices = 1, 1
        self.lora_a_stacked = (torch.zeros(SLOTS, 1, 2, 4),)
        self.lora_b_stacked = (torch.zeros(SLOTS, 1, 4, 2),)


def worker_manager() -> LRUCacheWorkerLoRAManager:
    """vLLM's, as its worker has it, but for the model."""
    config = SimpleNamespace(
        max_loras=SLOTS,
        max_cpu_loras=16,
        max_lora_rank=2,
        lora_dtype=torch.float32,
        bias_enabled=False,
    )
    manager: Any = LRUCacheLoRAModelManager.__new__(LRUCacheLoRAModelManager)
    manager.lora_config, manager.model = config, SimpleNamespace()
    manager._registered_adapters = AdapterLRUCache(16, manager.deactivate_adapter)
    manager._active_adapters = AdapterLRUCache(SLOTS, manager._deactivate_adapter)
    manager.lora_index_to_id = [None] * SLOTS
    manager.modules = {name: Layer() for name in NAMES}
    manager.packed_modules = {}
    manager.is_pooling_model = manager._enable_mixed_moe_lora_format = False
    manager._last_mapping = manager._last_slot_layout = None
    manager._classification_head = None
    workers: Any = LRUCacheWorkerLoRAManager.__new__(LRUCacheWorkerLoRAManager)
    workers._adapter_manager, workers.lora_config = manager, config
    workers.max_position_embeddings, workers.vocab_size = None, 8
    return workers


def write(folder: Path, lora_id: int, layers: int = LAYERS) -> str:
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name in NAMES[:layers]:
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.full((2, 4), lora_id, np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.full((4, 2), lora_id, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return make_ready(folder)


def make_ready(folder: Path) -> str:
    path = folder / "ready"
    path.unlink(missing_ok=True)
    write_ready(folder, path, ReadyForm("F32", transposes_b=True))
    return str(path)


class Worker(AdapterStaging):
    """vLLM's worker as far as adapters are concerned: it steps, and it is called between steps."""

    def __init__(self) -> None:
        self.workers: Any = worker_manager()
        self.model_runner: Any = SimpleNamespace(lora_manager=self.workers)
        self.manager: Any = self.workers._adapter_manager
        self.guard_slots("step")

    def step(self, *lora_ids: int) -> None:
        requests = {LoRARequest(f"adapter-{i}", i, "/is/loaded") for i in lora_ids}
        self.workers.set_active_adapters(requests, None)
        for lora_id in lora_ids:
            assert self.weights(lora_id) == {float(lora_id)}

    def weights(self, lora_id: int) -> set[float]:
        """All numbers in the slot that the table says is the adapter's."""
        slot = self.manager.lora_index_to_id.index(lora_id)
        return {
            number
            for layer in self.manager.modules.values()
            for stack in (*layer.lora_a_stacked, *layer.lora_b_stacked)
            for number in stack[slot].flatten().tolist()
        }

    def place(self, lora_id: int, folder: str) -> None:
        assert self.stage_adapter(lora_id, folder) is None
        self.go_on_until(lora_id, lambda is_done: is_done is True)

    def go_on_until(self, lora_id: int, holds: Callable[[bool | str | None], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds(answer := self.add_staged_adapter(lora_id)):
            assert not isinstance(answer, str), answer
            assert time.monotonic() < deadline, "the placement does not end"
            if answer is None:
                time.sleep(0.001)  # the thread that reads wants Python's lock as well


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    ids = (*range(1, RESIDENTS + 1), *range(PLACED, PLACED + 3))
    return {i: write(tmp_path_factory.mktemp(f"adapter-{i}"), i) for i in ids}


@pytest.fixture
def worker(folders: dict[int, str]) -> Worker:
    return furnished(folders)


def furnished(folders: dict[int, str]) -> Worker:
    worker = Worker()
    for lora_id in range(1, RESIDENTS + 1):
        worker.place(lora_id, folders[lora_id])
    return worker


def test_adapter_that_is_activated_beside_a_placement_gets_another_slot(
    worker: Worker, folders: dict[int, str]
) -> None:
    worker.step(1, 2)
    worker.stage_adapter(PLACED, folders[PLACED])
    worker.go_on_until(PLACED, lambda is_done: is_done is False)
    worker.step(1, 2)
    worker.step(1, 3)  # takes the slot of 2, not the one that is being written
    worker.go_on_until(PLACED, lambda is_done: is_done is True)
    worker.step(1, 3)
    worker.step(1, PLACED)


def test_half_written_adapter_has_no_slot_that_a_request_could_use(
    worker: Worker, folders: dict[int, str]
) -> None:
    worker.stage_adapter(PLACED, folders[PLACED])
    worker.go_on_until(PLACED, lambda is_done: is_done is False)
    assert PLACED not in worker.manager.lora_index_to_id
    assert PLACED not in worker.manager._active_adapters
    assert PLACED not in worker.manager.list_adapters()


def test_placement_begins_again_where_a_step_needs_every_slot(
    worker: Worker, folders: dict[int, str]
) -> None:
    worker.stage_adapter(PLACED, folders[PLACED])
    worker.go_on_until(PLACED, lambda is_done: is_done is False)
    worker.step(1, 2, 3)
    worker.go_on_until(PLACED, lambda is_done: is_done is True)
    worker.step(2, PLACED)


def test_placement_that_is_given_up_leaves_its_slot_to_others(
    worker: Worker, folders: dict[int, str]
) -> None:
    worker.stage_adapter(PLACED, folders[PLACED])
    worker.go_on_until(PLACED, lambda is_done: is_done is False)
    worker.give_up_staged_adapter(PLACED)
    assert not worker.manager._active_adapters.pinned_items
    assert f"adapter {PLACED} is not the one" in str(worker.add_staged_adapter(PLACED))
    worker.step(1, 2, 3)


def test_placement_that_nobody_ended_ends_with_the_next_one(
    worker: Worker, folders: dict[int, str]
) -> None:
    worker.stage_adapter(PLACED, folders[PLACED])
    worker.go_on_until(PLACED, lambda is_done: is_done is False)
    worker.place(PLACED + 1, folders[PLACED + 1])
    worker.step(PLACED + 1, 1, 2)
    assert not worker.manager._active_adapters.pinned_items


def test_placement_that_fails_half_way_leaves_nothing(worker: Worker, tmp_path: Path) -> None:
    folder = write(tmp_path, PLACED)
    del worker.manager.modules[NAMES[-1]]  # the model has no such layer
    worker.stage_adapter(PLACED, folder)
    fault = f"ValueError: the model has no module {NAMES[-1]} that could take it"
    worker.go_on_until(PLACED, lambda answer: answer == fault)
    assert not worker.manager._active_adapters.pinned_items
    assert all(i is None or i > 0 for i in worker.manager.lora_index_to_id)
    worker.step(1, 2, 3)


def test_part_that_lies_in_another_module_is_left_alone(worker: Worker, tmp_path: Path) -> None:
    write(tmp_path, PLACED)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for letter in "AB":
        name = f"base_model.model.{NAMES[0]}{{}}.lora_{letter}.weight"
        tensors[name.format(".base_layer")] = tensors[name.format("")]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    worker.place(PLACED, make_ready(tmp_path))
    worker.step(PLACED)


class MapperOf026:
    """vLLM's mapper of names with the one method that its 0.26 has."""

    def __init__(self, mapper: WeightsMapper) -> None:
        self.get_unstacked_mapper = mapper.get_rename_mapper


@pytest.mark.parametrize("made", [lambda mapper: mapper, MapperOf026], ids=["0.32", "0.26"])
def test_modules_that_the_model_calls_otherwise_are_found(
    worker: Worker, tmp_path: Path, made: Callable[[WeightsMapper], object]
) -> None:
    folder = write(tmp_path, PLACED)
    mapper = WeightsMapper(
        orig_to_new_prefix={"model.": "language_model."},
        orig_to_new_stacked={".q_proj": (".qkv_proj", "q")},
    )
    modules = worker.manager.modules
    worker.manager.modules = {f"language_{name}": layer for name, layer in modules.items()}
    worker.manager.model.hf_to_vllm_mapper = made(mapper)
    worker.place(PLACED, folder)
    assert worker.weights(PLACED) == {float(PLACED)}


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_ranks_of_single_modules_are_refused_where_vllm_would_not_scale_by_them(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    write(tmp_path, PLACED)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, field: {"q_proj": 1}}))
    ready = make_ready(tmp_path)
    worker.place(PLACED, ready)
    of_026 = SimpleNamespace(r=2, validate_legal=lambda config: None)
    monkeypatch.setattr(lora_staging.PEFTHelper, "from_dict", lambda *given: of_026)
    assert worker.stage_adapter(PLACED + 1, ready) is None
    worker.go_on_until(PLACED + 1, lambda answer: f"does not know {field}" in str(answer))


def test_slots_that_move_end_what_vllm_remembers_of_the_batch(
    worker: Worker, folders: dict[int, str]
) -> None:
    worker.manager._last_mapping = "the same batch"
    worker.stage_adapter(PLACED, folders[PLACED])
    worker.go_on_until(PLACED, lambda is_done: is_done is False)
    assert worker.manager._last_mapping is None


def test_layers_that_an_adapter_leaves_alone_are_cleared(worker: Worker, tmp_path: Path) -> None:
    worker.place(PLACED, write(tmp_path, PLACED, layers=12))
    assert worker.weights(PLACED) == {float(PLACED), 0.0}
    assert all(not worker.check_slot() for _ in range(SLOTS))


def test_layer_that_no_adapter_ever_had_is_not_written_to(tmp_path: Path) -> None:
    worker = Worker()
    untouched = worker.manager.modules[NAMES[-1]]
    worker.place(1, write(tmp_path / "first", 1, layers=LAYERS - 1))
    assert untouched.lora_a_stacked[0]._version == untouched.lora_b_stacked[0]._version == 0
    worker.place(2, write(tmp_path / "all", 2))
    worker.place(3, write(tmp_path / "most", 3, layers=LAYERS - 1))
    for lora_id in (4, 5, 1):
        worker.place(lora_id, write(tmp_path / f"{lora_id}", lora_id, layers=LAYERS - 1))
    assert not untouched.lora_a_stacked[0].any()


def test_file_that_changed_since_the_server_read_it_is_not_placed(
    worker: Worker, tmp_path: Path
) -> None:
    ready = Path(write(tmp_path, PLACED))
    content = bytearray(ready.read_bytes())
    content[-5] ^= 1
    ready.write_bytes(content)
    worker.stage_adapter(PLACED, str(ready))
    fault = f"OSError: [Errno 5] {ready}: its checksum is not that of its content"
    worker.go_on_until(PLACED, lambda answer: answer == fault)
    assert not worker.manager._active_adapters.pinned_items


@pytest.mark.parametrize("row", [0, 1])
def test_weight_that_was_overwritten_is_found_and_the_adapter_placed_anew(
    worker: Worker, row: int
) -> None:
    worker.step(1, 2, 3)
    slot = worker.manager.lora_index_to_id.index(2)
    worker.manager.modules[NAMES[7]].lora_b_stacked[0][slot, 0, 3, row] = 5.0
    found = [fault for _ in range(SLOTS) for fault in worker.check_slot()]
    assert found == [f"slot {slot} does not hold adapter 2 in {NAMES[7]}"]
    worker.step(2)
    assert all(not worker.check_slot() for _ in range(SLOTS))


def test_step_on_a_slot_with_other_weights_ends_the_engine_where_each_step_is_checked(
    worker: Worker,
) -> None:
    worker.step(1)
    slot = worker.manager.lora_index_to_id.index(1)
    worker.manager.modules[NAMES[0]].lora_a_stacked[0][slot] = 5.0
    with pytest.raises(RuntimeError, match=f"slot {slot} does not hold adapter 1"):
        worker.step(1)


steps = st.lists(st.integers(1, RESIDENTS), min_size=1, max_size=SLOTS - 1, unique=True)


@settings(max_examples=25, deadline=None)
@given(between=st.lists(st.one_of(steps, st.none()), max_size=30))
def test_slots_hold_what_the_table_says_in_any_order_of_steps_and_parts(
    folders: dict[int, str], between: list[list[int] | None]
) -> None:
    worker = furnished(folders)
    placed, waits = iter((PLACED, PLACED + 1, PLACED + 2)), None
    for ids in between:  # a step of these, or a part of a placement
        if ids is not None:
            worker.step(*ids)
        elif waits is None:
            if (waits := next(placed, None)) is not None:
                worker.stage_adapter(waits, folders[waits])
        elif worker.add_staged_adapter(waits) is True:
            worker.step(waits)
            waits = None
        faults = worker._slots.faults(SLOTS)
        assert not faults


class Reading(Worker):
    """A worker whose disk takes some calls longer."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def add_staged_adapter(self, lora_id: int) -> bool | str | None:
        self.calls -= 1
        return super().add_staged_adapter(lora_id) if self.calls < 0 else None


class MultiprocExecutor:
    """Of vLLM, as it is for several GPUs: all workers are called, and their answers wait in queues.
    At the first failure it raises, and what is in the other queues is left for the next call.
    """

    def __init__(self, *workers: Worker) -> None:
        self.workers = workers
        self.queues: list[list[tuple[bool, Any]]] = [[] for _ in workers]

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        for worker, queue in zip(self.workers, self.queues, strict=True):
            try:
                queue.append((True, getattr(worker, method)(*args)))
            except Exception as error:  # noqa: BLE001 - as vLLM does
                queue.append((False, error))
        answers = []
        for queue in self.queues:
            is_good, answer = queue.pop(0)
            if not is_good:
                raise RuntimeError(f"Worker failed with error '{answer}'")
            answers.append(answer)
        return answers


@pytest.mark.parametrize("calls", [(0, 5), (5, 0)], ids=["second is slow", "first is slow"])
async def test_adapter_is_placed_in_all_workers_however_long_each_reads(
    folders: dict[int, str], calls: tuple[int, int]
) -> None:
    executor = MultiprocExecutor(*map(Reading, calls))
    await Workers(executor.collective_rpc).place(PLACED, Path(folders[PLACED]))
    for worker in executor.workers:
        worker.step(PLACED)
        assert not worker.manager._active_adapters.pinned_items


async def test_adapter_that_all_workers_refuse_hurts_no_other(
    folders: dict[int, str], tmp_path: Path
) -> None:
    executor = MultiprocExecutor(Worker(), Worker())
    workers = Workers(executor.collective_rpc)
    write(tmp_path, PLACED)
    written = '{"r": 64, "lora_alpha": 2, "target_modules": []}'
    (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(WorkerFault, match="LoRA rank 64 is greater than max_lora_rank"):
        await workers.place(PLACED, Path(make_ready(tmp_path)))
    await workers.place(PLACED + 1, Path(folders[PLACED + 1]))
    assert await workers.check_slot() == []


async def test_adapter_that_one_worker_cannot_place_is_given_up_by_the_others(
    folders: dict[int, str], tmp_path: Path
) -> None:
    executor = MultiprocExecutor(Worker(), Worker())
    workers = Workers(executor.collective_rpc)
    folder = Path(write(tmp_path, PLACED))
    del executor.workers[1].manager.modules[NAMES[0]]
    with pytest.raises(WorkerFault, match="the model has no module"):
        await workers.place(PLACED, folder)
    for worker in executor.workers:
        assert worker._staged is None
        assert not worker.manager._active_adapters.pinned_items


async def test_wrong_slot_of_any_worker_is_told(folders: dict[int, str]) -> None:
    executor = MultiprocExecutor(furnished(folders), furnished(folders))
    worker = executor.workers[1]
    worker.step(2)
    slot = worker.manager.lora_index_to_id.index(2)
    worker.manager.modules[NAMES[0]].lora_a_stacked[0][slot] = 5.0
    workers = Workers(executor.collective_rpc)
    found = [fault for _ in range(SLOTS) for fault in await workers.check_slot()]
    assert found == [f"slot {slot} does not hold adapter 2 in {NAMES[0]}"]

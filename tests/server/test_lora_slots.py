"""Slots of vLLM's own manager while adapters are placed in parts: whose weights lie where.

The manager, its caches and the layers' `set_lora` are vLLM's; the layers have no base model below
them. Each adapter's weights are its own id, so a look at a slot says whose they are.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from loragate.server.engine.vllm.lora_staging import AdapterStaging

SLOTS, RESIDENTS, LAYERS, PARTS = 3, 6, 20, 3
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
    tensors = {}
    for name in NAMES[:layers]:
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.full((2, 4), lora_id, np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.full((4, 2), lora_id, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


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
        self.stage_adapter(lora_id, folder)
        self.go_on_until(lora_id, lambda is_done: is_done is True)

    def go_on_until(self, lora_id: int, holds: Callable[[bool | None], bool]) -> None:
        for _ in range(100_000):
            if holds(self.add_staged_adapter(lora_id)):
                return
        raise AssertionError("the placement does not end")


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
    with pytest.raises(RuntimeError, match=f"adapter {PLACED} is not the one"):
        worker.add_staged_adapter(PLACED)
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
    with pytest.raises(KeyError):
        worker.go_on_until(PLACED, lambda is_done: is_done is True)
    assert not worker.manager._active_adapters.pinned_items
    assert all(i is None or i > 0 for i in worker.manager.lora_index_to_id)
    worker.step(1, 2, 3)


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
        elif worker.add_staged_adapter(waits):
            worker.step(waits)
            waits = None
        faults = worker._slots.faults(SLOTS)
        assert not faults

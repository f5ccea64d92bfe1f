"""vLLM's LoRA slots, with one that is being written kept apart from all that may be used.

A slot is a row in each layer's stacks of LoRA weights. vLLM's manager gives slots to adapters as
steps ask for them and takes them from whoever ran longest ago (`model_manager.py`, 0.32), which was
never meant for a slot that is written in parts while steps run. So a slot that is being written
belongs to a reservation, under an id that no request can have; only once its last layer is written
does it become the adapter's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights

if TYPE_CHECKING:
    from vllm.lora.model_manager import LRUCacheLoRAModelManager

Matrices = Sequence[torch.Tensor | None]


class SlotTaken(Exception):
    """The reservation has lost its slot to steps, so whatever was written there is gone."""


@dataclass(frozen=True, slots=True)
class SlotReservation:
    """A slot that is being written. `owner` stands for it in vLLM's tables: a negative id."""

    slot: int
    owner: int


class WorkerLoraSlots:
    """Belongs to the worker's one thread, which also runs the steps."""

    def __init__(self, manager: "LRUCacheLoRAModelManager") -> None:
        self._manager = manager
        self._owners = count(-1, -1)
        self._reserved: SlotReservation | None = None
        # By name, the layers in which any slot may hold more than zeros. Adapters hardly ever have
        # embeddings or a head, whose slots are megabytes each and need not be cleared, nor ever be
        # given memory.
        self._ever_set = {name for name, layer in manager.modules.items() if not _is_clear(layer)}
        for name, layer in manager.modules.items():
            layer.set_lora = self._noting(name, layer.set_lora)  # vLLM calls it too

    def reserve(self) -> SlotReservation:
        """Takes a free slot, or that of the adapter that ran longest ago. One at a time; an earlier
        reservation ends.
        """
        if self._reserved is not None:
            self.release(self._reserved)
        active = self._manager._active_adapters
        if len(active) >= self._manager.lora_slots:
            active.remove_oldest()
        reserved = SlotReservation(self._manager.lora_index_to_id.index(None), next(self._owners))
        # In vLLM's table of active adapters too, or a step would find the slot free; pinned, or a
        # step that needs one would take it as the one that ran longest ago.
        active[reserved.owner] = None
        active.pin(reserved.owner)
        self._set_owner(reserved.slot, reserved.owner)
        self._reserved = reserved
        return reserved

    def _noting(self, name: str, set_lora: Callable[..., None]) -> Callable[..., None]:
        def set_and_note(*arguments: Any, **options: Any) -> None:
            self._ever_set.add(name)
            set_lora(*arguments, **options)

        return set_and_note

    def require(self, reserved: SlotReservation) -> None:
        """Raises SlotTaken unless the slot is still the reservation's. Ask before each write."""
        is_held = (
            self._reserved == reserved
            and self._manager.lora_index_to_id[reserved.slot] == reserved.owner
            and reserved.owner in self._manager._active_adapters
        )
        if not is_held:
            raise SlotTaken(f"slot {reserved.slot} went to {self._manager.lora_index_to_id}")

    def write(self, reserved: SlotReservation, part: LoRAModel) -> None:
        """Writes some layers of an adapter. Raises SlotTaken, and ValueError for what the model has
        no place for.
        """
        self.require(reserved)
        for name, weights in part.loras.items():
            module = self._manager.modules.get(name)
            if module is not None:
                module.set_lora(reserved.slot, weights.lora_a, weights.lora_b)
            # Of experts that are one tensor vLLM leaves a part here, which it has put into theirs.
            elif name.removesuffix(".base_layer") not in self._manager.modules:
                raise ValueError(f"the model has no module {name} that could take it")

    def clear(self, reserved: SlotReservation, names: Iterable[str]) -> None:
        """Clears the layers that an adapter has not. Raises SlotTaken."""
        self.require(reserved)
        for name in self._ever_set.intersection(names):
            self._manager.modules[name].reset_lora(reserved.slot)

    def hand_over(self, reserved: SlotReservation, adapter: LoRAModel) -> None:
        """Makes the slot, whose layers are all written or cleared, the adapter's, in one step.
        Raises SlotTaken.
        """
        self.require(reserved)
        if len(self._manager) + 1 > self._manager.capacity:
            self._manager.remove_oldest_adapter()
        self._manager.add_adapter(adapter)
        self.release(reserved)
        self._manager._active_adapters[adapter.id] = None
        self._set_owner(reserved.slot, adapter.id)

    def release(self, reserved: SlotReservation) -> None:
        """Gives the slot back, if it is still the reservation's. What was written there is nobody's
        and is written over by whoever gets the slot.
        """
        if self._reserved == reserved:
            self._reserved = None
        # Frees the slot as well, unless it has gone to somebody else.
        self._manager._active_adapters.pop(reserved.owner, None)
        self._forget_mapping()

    def make_way(self, adapters: int) -> None:
        """Before a step with so many adapters: ends the reservation where they need every slot.

        Whoever loads is counted among those that may hold slots, so this does not happen; were it
        to, vLLM would find all of its slots pinned, and the engine would die.
        """
        if self._reserved is not None and adapters >= self._manager.lora_slots:
            self.release(self._reserved)

    def faults(self, slots: int, first: int = 0) -> tuple[str, ...]:
        """What is wrong in so many slots from `first` on: one sentence for each layer whose weights
        in a slot are not those of the adapter that the table names. Reads all of their weights.

        Only linear layers that are whole on this device are looked at.
        """
        table = self._manager.lora_index_to_id
        return tuple(
            fault
            for slot in range(first, min(first + slots, len(table)))
            if (lora_id := table[slot]) is not None and lora_id > 0
            for fault in self._faults_of(slot, lora_id)
        )

    def _faults_of(self, slot: int, lora_id: int) -> Iterator[str]:
        adapter = self._manager.get_adapter(lora_id)
        if adapter is None:
            yield f"slot {slot} is of adapter {lora_id}, which is not loaded"
            return
        for name, module in self._manager.modules.items():
            if isinstance(module, BaseLinearLayerWithLoRA) and module.tp_size == 1:
                weights = self._manager._get_lora_layer_weights(adapter, name)
                if not _holds(module, slot, weights):
                    yield f"slot {slot} does not hold adapter {lora_id} in {name}"

    def drop(self, slot: int) -> None:
        """Takes the slot from its adapter, which gets another, written anew, when it runs again."""
        lora_id = self._manager.lora_index_to_id[slot]
        if lora_id is not None:
            self._manager.deactivate_adapter(lora_id)
            self._forget_mapping()

    def _set_owner(self, slot: int, owner: int) -> None:
        self._manager.lora_index_to_id[slot] = owner
        self._forget_mapping()

    def _forget_mapping(self) -> None:
        # vLLM keeps which rows use which slot from one step to the next while the batch and the
        # slots look the same; they have moved.
        self._manager._last_mapping = None


def _is_clear(layer: torch.nn.Module) -> bool:
    """False where it is not known, too."""
    stacks: list[torch.Tensor] = []
    for name in ("lora_a_stacked", "lora_b_stacked"):
        stack = getattr(layer, name, None)
        stacks += [stack] if isinstance(stack, torch.Tensor) else stack or ()
    return bool(stacks) and not any(stack.any() for stack in stacks)


def _holds(module: BaseLinearLayerWithLoRA, slot: int, weights: LoRALayerWeights | None) -> bool:
    a, b = (None, None) if weights is None else (weights.lora_a, weights.lora_b)
    return _equal(module.lora_a_stacked, slot, a) and _equal(module.lora_b_stacked, slot, b)


def _equal(
    stacks: tuple[torch.Tensor, ...], slot: int, matrices: torch.Tensor | Matrices | None
) -> bool:
    """Whether each stack holds its matrix in the slot, in its upper left, and zeros elsewhere."""
    if matrices is None:
        matrices = [None] * len(stacks)
    elif isinstance(matrices, torch.Tensor):
        matrices = [matrices]
    if len(matrices) != len(stacks):
        return True  # packed otherwise than it is stacked, which only vLLM can tell apart
    for stack, matrix in zip(stacks, cast(Matrices, matrices), strict=True):
        held = stack[slot, 0]
        rows, columns = (0, 0) if matrix is None else matrix.shape
        if matrix is not None and not torch.equal(
            held[:rows, :columns], matrix.to(held.device, held.dtype)
        ):
            return False
        if held[rows:].any() or held[:, columns:].any():
            return False
    return True

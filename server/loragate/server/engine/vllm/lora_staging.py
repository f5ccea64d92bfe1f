"""Loads adapters inside vLLM's worker, beside its steps instead of between them.

vLLM's own `add_lora` reads, converts and places an adapter in the engine's loop, at once: every
stream of every tenant waits meanwhile, for some fifty milliseconds. Here a thread reads the
adapter's ready file, and the loop places some layers of it after each step. vLLM mixes
`AdapterStaging` into its worker (`worker_extension_cls`).
"""

import errno
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import wraps
from itertools import chain, groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

import msgspec
import numpy as np
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from loragate.adapters.format.ready_file import (
    ReadyAdapter,
    ReadyFileDamaged,
    ReadyTensor,
    layer_of,
    require_sound,
)
from loragate.server.engine.vllm.lora_slots import SlotReservation, SlotTaken, WorkerLoraSlots

if TYPE_CHECKING:
    from vllm.lora.model_manager import LRUCacheLoRAModelManager
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

# Placed after one step: a millisecond, with 14 matrices of rank 16 a layer.
_LAYERS_AT_ONCE = 4
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

SlotCheck = Literal["idle", "step"]
logger = logging.getLogger(__name__)
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


def _answered(method: Callable[_Given, _Answer]) -> Callable[_Given, _Answer | str]:
    """The method, with what it raises as its answer: the error's name and text.

    Where there are several workers vLLM stops at the first that raises and leaves the answers of
    the others in their queues, where the next call would take them for its own.
    """

    @wraps(method)
    def call(*arguments: _Given.args, **options: _Given.kwargs) -> _Answer | str:
        try:
            return method(*arguments, **options)
        except Exception as error:  # whatever it is, `Workers` raises it again
            logger.warning("%s failed", method.__name__, exc_info=True)
            return f"{type(error).__name__}: {error}"

    return call


class AdapterStaging:
    """What the worker can do besides; each method is called through `collective_rpc`."""

    if TYPE_CHECKING:
        model_runner: GPUModelRunner

    def guard_slots(self, check: SlotCheck) -> None:
        """Makes steps and placements keep out of each other's slots. Once, before the first load.

        With the check "step" all slots are compared with what was placed before each step, which
        takes tens of milliseconds; what is wrong ends the engine. For tests.
        """
        workers = self.model_runner.lora_manager
        self._slots = WorkerLoraSlots(cast("LRUCacheLoRAModelManager", workers._adapter_manager))
        self._staged: _Placement | None = None
        self._added: int | None = None  # what was placed last
        self._next_checked = 0
        set_active_adapters = workers.set_active_adapters

        def set_active(requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
            self._slots.make_way(len({request.lora_int_id for request in requests}))
            set_active_adapters(requests, mapping)
            if check == "step" and (faults := self._slots.faults(workers.lora_config.max_loras)):
                raise RuntimeError("; ".join(faults[:4]))

        workers.set_active_adapters = set_active

    @_answered
    def stage_adapter(self, lora_id: int, path: str) -> None:
        """Begins to read the adapter's ready file; returns at once. One at a time: another that
        was begun and not finished is given up.
        """
        if self._staged is not None:
            self._staged.give_up()
        self._staged = self._added = None
        self._staged = _Placement(self.model_runner.lora_manager, self._slots, lora_id, Path(path))

    @_answered
    def add_staged_adapter(self, lora_id: int) -> bool | None:
        """Puts some layers of it into its slot; False says to ask again, for the next ones, None
        that it is still being read. Only the last call makes the adapter known to requests; one
        that comes after it, since another worker is not done, does nothing and is True as well.

        Raises what was met on the way: the adapter cannot be read, or does not fit; RuntimeError
        where another one has been staged since.
        """
        if lora_id == self._added:
            return True
        staged = self._staged
        if staged is None or staged.lora_id != lora_id:
            raise RuntimeError(f"adapter {lora_id} is not the one that is being placed")
        try:
            is_done = staged.go_on()
        except BaseException:
            self._staged = None
            raise
        if is_done:
            self._staged = None  # with the file's content, which may outlive the adapter otherwise
            self._added = lora_id
        return is_done

    @_answered
    def give_up_staged_adapter(self, lora_id: int) -> None:
        """Ends a placement that nobody waits for any more. Does nothing where there is none."""
        if self._staged is not None and self._staged.lora_id == lora_id:
            self._staged.give_up()
            self._staged = None

    @_answered
    def check_slot(self) -> tuple[str, ...]:
        """Compares the next slot with what was placed there, a slot a call; what is wrong.

        A slot that is wrong is taken from its adapter, which is placed anew when it runs again.
        """
        slot = self._next_checked
        self._next_checked = (slot + 1) % self.model_runner.lora_manager.lora_config.max_loras
        faults = self._slots.faults(1, slot)
        if faults:
            self._slots.drop(slot)
        return faults


class _Placement:
    """One adapter's way into a slot."""

    def __init__(
        self,
        worker_manager: "LRUCacheWorkerLoRAManager",
        slots: WorkerLoraSlots,
        lora_id: int,
        path: Path,
    ) -> None:
        self._worker_manager = worker_manager
        self._manager = cast("LRUCacheLoRAModelManager", worker_manager._adapter_manager)
        self._slots = slots
        self._reserved: SlotReservation | None = None
        self.lora_id = lora_id
        self._content: Future[np.ndarray] = Future()
        threading.Thread(target=self._read, args=(path,), name="read", daemon=True).start()
        self._parts = self._place()

    def go_on(self) -> bool | None:
        """Does a part of the work; whether it was the last, None where there is none to do yet."""
        try:
            return next(self._parts, True)
        except SlotTaken:
            self._parts = self._place()  # from the first layer on, in another slot
            return False
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Gives the slot back; requests never knew of the adapter."""
        if self._reserved is not None:
            self._slots.release(self._reserved)
            self._reserved = None

    def _read(self, path: Path) -> None:
        # Only what gives up Python's lock: it would take it from the engine's loop.
        try:
            content = np.fromfile(path, np.uint8)
            # Of the bytes that are placed: those that the server has read may have been others.
            require_sound(content.data)
            self._content.set_result(content)
        except ReadyFileDamaged as error:
            self._content.set_exception(OSError(errno.EIO, f"{path}: {error}"))
        except BaseException as error:  # noqa: BLE001 - for whoever asks for the result
            self._content.set_exception(error)

    def _place(self) -> Iterator[bool | None]:
        """Yields False after each part, None while there is nothing to place.

        Steps run between two parts, so nothing that vLLM's tables said before a `yield` holds after
        it; `WorkerLoraSlots.write` looks again.
        """
        while not self._content.done():
            yield None
        content = self._content.result()
        ready = _ReadyContent(content)
        written = msgspec.json.decode(ready.adapter.config, type=dict[str, Any])
        longest = {"vllm_max_position_embeddings": self._worker_manager.max_position_embeddings}
        self._helper = PEFTHelper.from_dict(written | longest)
        self._helper.validate_legal(self._worker_manager.lora_config)
        _require_patterns(self._helper, written)
        yield None  # what came before takes as long as a part of the layers
        reserved = self._reserved = self._slots.reserve()
        adapter = LoRAModel(self.lora_id, self._helper.r, {})
        for tensors in ready.by_layers(_LAYERS_AT_ONCE):
            part = self._parse(tensors)
            self._slots.write(reserved, part)
            adapter.loras.update(part.loras)
            yield False
        self._slots.clear(reserved, self._manager.modules.keys() - adapter.loras.keys())
        self._slots.hand_over(reserved, adapter)
        self._reserved = None

    def _parse(self, tensors: dict[str, torch.Tensor]) -> LoRAModel:
        """As vLLM's worker does with a whole adapter; whole layers can be parsed alone."""
        model = self._manager.model
        part = LoRAModel.from_lora_tensors(
            self.lora_id,
            tensors,
            self._helper,
            device="cpu",
            dtype=cast(torch.dtype, self._worker_manager.lora_config.lora_dtype),
            model_vocab_size=self._worker_manager.vocab_size,
            weights_mapper=_renames(getattr(model, "hf_to_vllm_mapper", None)),
            skip_prefixes=getattr(model, "lora_skip_prefixes", None),
        )
        self._manager._create_merged_loras_inplace(part)
        return part


class _ReadyContent:
    """A ready file in memory: its tensors are views of that."""

    def __init__(self, content: np.ndarray) -> None:
        self.adapter = ReadyAdapter.read_head(content.data)
        self._dtype = _DTYPES[self.adapter.form.dtype]
        self._data = torch.from_numpy(content[self.adapter.data_start :]).view(self._dtype)
        self._layers = [
            list(each)
            for _, each in groupby(self.adapter.tensors, lambda tensor: layer_of(tensor.name))
        ]

    def by_layers(self, count: int) -> Iterator[dict[str, torch.Tensor]]:
        """By their names in the adapter, of so many layers of the model at once."""
        begin = 0
        for first in range(0, len(self._layers), count):
            tensors = dict[str, torch.Tensor]()
            for tensor in chain.from_iterable(self._layers[first : first + count]):
                end = begin + prod(tensor.shape)
                tensors[tensor.name] = self._view(tensor, begin, end)
                begin = end
            yield tensors

    def _view(self, tensor: ReadyTensor, begin: int, end: int) -> torch.Tensor:
        view = self._data[begin:end]
        if self.adapter.is_transposed(tensor):
            return view.view(tensor.shape[::-1]).T
        return view.view(tensor.shape)


def _renames(mapper: Any) -> Any:
    """What a model calls its modules besides the names in the file; vLLM merges q, k and v later.

    `mapper` is a `WeightsMapper`, or None. 0.26 has the method under another name.
    """
    if mapper is None:
        return None
    if hasattr(mapper, "get_rename_mapper"):
        return mapper.get_rename_mapper()
    return mapper.get_unstacked_mapper()


def _require_patterns(helper: PEFTHelper, written: Mapping[str, Any]) -> None:
    """Raises ValueError for ranks or alphas of single modules where this vLLM would scale all of
    them alike, as 0.26 does.
    """
    for field in ("rank_pattern", "alpha_pattern"):
        if written.get(field) and not hasattr(helper, field):
            raise ValueError(f"this version of vLLM does not know {field}; install a newer one")

"""LoRA on CPU inside vLLM's worker, in place of vLLM's own wrapper.

Two reasons. vLLM's (0.32) gathers a copy of the weights for every single token. And it marks tokens
of the base model with slot -1, by which PyTorch reads the *last* slot: as soon as an adapter lies
there, requests to the base model are answered with it, whoever's it is. Here tokens of the base
model are in no group, so nothing is added.

Linear layers go through the compiled kernel; where there is none, and for embeddings and the head,
each adapter's tokens go through two plain matrix products.
"""

from collections.abc import Callable, Iterator

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from loragate.server.engine.cpu.huge_pages import HugePages
from loragate.server.engine.cpu.lora_kernel import Layer, LoraKernel, Stack

Rows = torch.Tensor | slice
Stacks = tuple[torch.Tensor, ...]


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """vLLM's wrapper with its per-token gathers replaced.

    Shapes: x is [tokens, in], a stack of A is [slots, 1, rank, in], of B [slots, 1, out, rank] with
    the memory of [slots, 1, rank, out] (see `lay_out_for_reading`).
    """

    # Both are set once, before vLLM makes wrappers.
    kernel: LoraKernel | None = None
    rank_of: Callable[[int], int]  # of a loaded adapter, by its id

    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        **kwargs: object,
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._tokens_by_slot: tuple[tuple[int, Rows], ...] = ()
        self._samples_by_slot: tuple[tuple[int, Rows], ...] = ()
        self._kept: tuple[torch.Tensor, ...] = ()
        self._layers: dict[int, Layer | None] = {}  # by the address of their first stack

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: object,
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._tokens_by_slot = tuple(_group(self.token_lora_indices))
        self._samples_by_slot = tuple(_group(self.sampler_indices))
        if self.kernel is not None:
            self._set_rows(self.kernel, lora_index_to_id)

    def _set_rows(self, kernel: LoraKernel, id_by_slot: list[int | None]) -> None:
        slots, rows = torch.sort(self.token_lora_indices, stable=True)
        adapted = slots >= 0
        rows, slots = rows[adapted], slots[adapted]
        ranks = torch.tensor([0 if i is None else type(self).rank_of(i) for i in id_by_slot])
        self._kept = rows, slots, ranks  # the kernel has their addresses only
        kernel.set_rows(len(rows), rows.data_ptr(), slots.data_ptr(), ranks.data_ptr())

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacks,
        lora_b_stacked: Stacks,
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: object,
    ) -> None:
        if not self._tokens_by_slot:
            return
        layer = self.layer(lora_a_stacked, lora_b_stacked)
        if layer is None or scale != 1.0 or x.dtype is not y.dtype:
            self._add_products(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)
        else:
            layer.add(y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0))

    def layer(self, a: Stacks, b: Stacks) -> Layer | None:
        """What the kernel has of the layer with these weights, unless it does not cover it."""
        address = a[0].data_ptr()
        if address not in self._layers:
            self._layers[address] = self._describe(a, b)
        return self._layers[address]

    def _describe(self, a: Stacks, b: Stacks) -> Layer | None:
        _, _, rank, in_features = a[0].shape
        dtype = str(a[0].dtype).removeprefix("torch.")
        is_laid_out = all(each.transpose(2, 3).is_contiguous() for each in b)
        if self.kernel is None or not is_laid_out or not self.kernel.takes(dtype, len(a), rank):
            return None
        stacks = [
            Stack(each_a.data_ptr(), each_b.data_ptr(), each_b.shape[2])
            for each_a, each_b in zip(a, b, strict=True)
        ]
        return self.kernel.layer(dtype, in_features, rank, stacks)

    def _add_products(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a: Stacks,
        b: Stacks,
        scale: float,
        output_slices: tuple[int, ...],
    ) -> None:
        for slot, rows in self._tokens_by_slot:
            picked = x[rows]
            offset = 0
            for each_a, each_b, width in zip(a, b, output_slices, strict=True):
                product = scale * (picked.to(each_a.dtype) @ each_a[slot, 0].T)
                _add_product(y[:, offset : offset + width], product, each_b[slot, 0], rows)
                offset += width

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: object,
    ) -> None:
        for slot, rows in self._tokens_by_slot:
            picked = x[rows]
            if picked.any():  # hardly any adapter touches the embeddings
                _add_product(y, picked, lora_b_stacked[slot, 0], rows)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: object,
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._samples_by_slot:
            a = lora_a_stacked[slot, 0]
            if a.any():  # hardly any touches the head either, whose B is as large as the vocabulary
                _add_product(y, scale * (x[rows] @ a.T), lora_b_stacked[slot, 0], rows)


def lay_out_for_reading(stack: torch.Tensor, memory: HugePages) -> torch.Tensor:
    """The same B, [slots, 1, out, rank], with the memory of [slots, 1, rank, out], in `memory`.

    An output row is then a sum of whole rows of B, which a processor reads in order.
    """
    return memory.copy(stack.transpose(2, 3)).transpose(2, 3)


def _group(slots: torch.Tensor) -> Iterator[tuple[int, Rows]]:
    """The rows of each slot that is in use; rows of the base model (slot -1) are in none."""
    for slot in torch.unique(slots).tolist():
        if slot >= 0:
            rows = (slots == slot).nonzero().squeeze(1)
            yield slot, slice(None) if len(rows) == len(slots) else rows


def _add_product(y: torch.Tensor, picked: torch.Tensor, weight: torch.Tensor, rows: Rows) -> None:
    """Adds `picked @ weight.T` to the rows of y that `picked` was taken from."""
    product = picked.to(weight.dtype) @ weight.T
    width = min(product.shape[1], y.shape[1])  # the model may pad its output, and so the adapter
    y[rows, :width] += product[:, :width].to(y.dtype)

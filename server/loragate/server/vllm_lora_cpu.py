"""LoRA on CPU inside vLLM's worker: each adapter's tokens by two plain matrix products.

It takes the place of vLLM's own wrapper for two reasons. vLLM's (0.32) gathers a copy of the
weights for every single token. And it marks tokens of the base model with slot -1, by which PyTorch
reads the *last* slot: as soon as an adapter lies there, requests to the base model are answered
with it, whoever's it is. Here tokens of the base model are in no group, so nothing is added.
"""

from collections.abc import Iterator

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows = torch.Tensor | slice


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """vLLM's wrapper with its per-token gathers replaced by one product per adapter in the batch.

    Shapes: x is [tokens, in], a stack of A is [slots, 1, rank, in], of B [slots, 1, out, rank].
    """

    _tokens_by_slot: tuple[tuple[int, Rows], ...] = ()
    _samples_by_slot: tuple[tuple[int, Rows], ...] = ()

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

    def _shrink(self, y: torch.Tensor, x: torch.Tensor, stack: torch.Tensor, scale: float) -> None:
        for slot, rows in self._tokens_by_slot:
            _set_product(y, x, stack[slot, 0], rows, scale)

    def _expand(
        self, y: torch.Tensor, x: torch.Tensor, stack: torch.Tensor, offset: int, width: int
    ) -> None:
        for slot, rows in self._tokens_by_slot:
            _add_product(y[:, offset : offset + width], x, stack[slot, 0], rows)

    # The names below are those that vLLM's wrapper calls; prefill and decode need no difference.

    def _shrink_prefill(
        self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float
    ) -> None:
        self._shrink(y, x, w_t_all, scale)

    def _shrink_decode(
        self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float
    ) -> None:
        self._shrink(y, x, w_t_all, scale)

    def _expand_prefill(
        self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, add_inputs: bool
    ) -> None:
        self._expand(y, x, w_t_all, 0, y.shape[1])

    def _expand_decode(
        self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, add_inputs: bool
    ) -> None:
        self._expand(y, x, w_t_all, 0, y.shape[1])

    def _expand_slice_prefill(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool,
    ) -> None:
        self._expand(y, x, w_t_all, y_offset, y_slice_size)

    def _expand_slice_decode(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool,
    ) -> None:
        self._expand(y, x, w_t_all, y_offset, y_slice_size)

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
            a, b = lora_a_stacked[slot, 0], lora_b_stacked[slot, 0]
            if (
                a.any()
            ):  # hardly any adapter touches the head, whose B is as large as the vocabulary
                _add_product(y, scale * (x @ a.T), b, rows)


def _group(slots: torch.Tensor) -> Iterator[tuple[int, Rows]]:
    """The rows of each slot that is in use; rows of the base model (slot -1) are in none."""
    for slot in torch.unique(slots).tolist():
        if slot >= 0:
            rows = (slots == slot).nonzero().squeeze(1)
            yield slot, slice(None) if len(rows) == len(slots) else rows


def _set_product(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rows: Rows, scale: float
) -> None:
    product = x[rows].to(weight.dtype) @ weight.T
    y[rows, : weight.shape[0]] = (scale * product).to(y.dtype)


def _add_product(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rows: Rows) -> None:
    product = x[rows].to(weight.dtype) @ weight.T
    width = min(product.shape[1], y.shape[1])  # the model may pad its output, and so the adapter
    y[rows, :width] += product[:, :width].to(y.dtype)

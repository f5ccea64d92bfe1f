"""The loss on a CPU: the vocabulary's layer only where there is something to learn.

For a small model that layer is the widest by far. TRL computes it in tiles that save a GPU's
memory, for every position on a CPU, and once more in the backward pass; here it is one product for
the supervised positions alone.
"""

import types
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from loragate.trainer.training.rows import IGNORED

# What some families do to their logits; for them TRL's own loss is used.
_SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "logits_scaling")


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the last layer's product and nothing else."""
    config = model.config.get_text_config()
    return not any(getattr(config, scale, None) is not None for scale in _SCALES)


def add_supervised_head(model: PreTrainedModel) -> None:
    """Have `model(input_ids=…, labels=…, summed_loss=True)` return the loss of all labels, summed.

    Both are int64 of (rows, length), a row's padding comes last, and labels that are not learnt are
    `IGNORED`. The sum is a float32 scalar, in nats. It goes through `forward`, so that wrappers
    which synchronise gradients see it.
    """
    original = model.forward

    def forward(
        self: PreTrainedModel, *args: object, summed_loss: bool = False, **kwargs: Any
    ) -> object:
        if not summed_loss:
            return original(*args, **kwargs)
        return _summed_loss(self, kwargs["input_ids"], kwargs["labels"])

    model.forward = types.MethodType(forward, model)


def _summed_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    # No attention mask: padding comes last, so under causal attention no token sees any of it.
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    targets = labels[:, 1:].flatten()
    learnt = (targets != IGNORED).nonzero().flatten()
    states = hidden[:, :-1].reshape(-1, hidden.size(-1)).index_select(0, learnt)
    logits = cast(nn.Module, model.get_output_embeddings())(states)
    return cross_entropy(logits.float(), targets[learnt], reduction="sum")

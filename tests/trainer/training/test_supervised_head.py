"""What is computed otherwise on a CPU comes to the same numbers."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from loragate.adapters.rendering.renderer import IGNORED
from loragate.trainer.training.adapter_trainer import add_supervised_head, has_plain_head
from loragate.trainer.training.models import add_adapter, load_base
from support.training.tiny_runs import TinyRuns


@pytest.fixture
def model(runs: TinyRuns) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(runs.model, dtype=torch.float32)


def test_the_summed_loss_is_that_of_full_logits_and_a_mask(model: PreTrainedModel) -> None:
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :7] = IGNORED
    mask = torch.ones_like(ids)
    ids[0, 15:], labels[0, 15:], mask[0, 15:] = 256, IGNORED, 0
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    add_supervised_head(model)
    assert torch.isclose(model(input_ids=ids, labels=labels, summed_loss=True), expected)
    assert model(input_ids=ids).logits.shape == (3, 20, 320), "without asking, it is as it was"


def test_a_model_that_scales_its_logits_is_left_to_trl(model: PreTrainedModel) -> None:
    assert has_plain_head(model)
    model.config.final_logit_softcapping = 30.0
    assert not has_plain_head(model)


def test_attention_in_float32_is_attention(runs: TinyRuns) -> None:
    plan = runs.plan(runs.run_file())
    ids = torch.arange(40).reshape(2, 20)
    logits: list[torch.Tensor] = []
    for precision in ("bf16", "fp32"):
        base = load_base(runs.model, plan.settings.method, precision, "cpu")
        model = add_adapter(base, plan.settings.method, seed=0).float()
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert torch.allclose(logits[0], logits[1], atol=0.05)

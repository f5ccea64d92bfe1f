"""What is computed otherwise on a CPU comes to the same numbers."""

from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from loragate.adapters.rendering.renderer import IGNORED
from loragate.trainer.settings import MethodSettings
from loragate.trainer.training.adapter_trainer import add_supervised_head, has_plain_head
from loragate.trainer.training.models import add_adapter, load_base, trained_parameters
from support.models.architectures import ARCHITECTURES, SCALED, targets_of, tiny_model
from support.training.tiny_runs import TinyRuns


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several only wait for each other where there is so little to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_every_architecture_the_loss_is_what_transformers_computes(name: str) -> None:
    model = tiny_model(name)
    ids = torch.randint(3, 100, (2, 14), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :5], labels[1, :9] = IGNORED, IGNORED
    # Right before the end, so that both rows have the same number of labels to average over.
    expected = model(input_ids=ids, labels=labels).loss * (labels[:, 1:] != IGNORED).sum()
    logits = model(input_ids=ids).logits
    assert has_plain_head(model) == (name not in SCALED)
    add_supervised_head(model)
    summed = model(input_ids=ids, labels=labels, summed_loss=True)
    assert torch.isclose(summed, expected, rtol=1e-4)
    assert torch.equal(model(input_ids=ids).logits, logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_every_architecture_an_adapter_learns(name: str) -> None:
    method = MethodSettings(rank=8, alpha=16.0, target_modules=targets_of(name))
    adapted = add_adapter(tiny_model(name), method, seed=0)
    add_supervised_head(cast(PreTrainedModel, adapted.get_base_model()))
    ids = torch.randint(3, 100, (2, 14), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(trained_parameters(adapted), lr=0.05)
    losses: list[float] = []
    for _ in range(3):
        loss = adapted(input_ids=ids, labels=ids, summed_loss=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


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

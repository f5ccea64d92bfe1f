"""Train one example adapter: a LoRA on the base model, from chats, on a CPU in minutes.

    .venv/bin/loragate model prepare
    .venv/bin/python examples/adapters/train.py examples/adapters/acme-support

It reads data.jsonl in the given folder (one `{"messages": [...]}` a line) and writes
adapter_config.json and adapter_model.safetensors beside it. Only what the assistant says is
learnt, and that it ends its turn: the loss covers each answer and its end-of-turn token.
The same data, seed, thread count and library versions give the same adapter.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

BASE_MODEL = "smollm2-135m-instruct"
HOME = Path("~/.loragate").expanduser()
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100  # the label of a token that is not learnt


@dataclass(frozen=True, slots=True)
class Example:
    """One chat as token ids; `labels` are the same ids, or `IGNORED`."""

    ids: list[int]
    labels: list[int]


def encode(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Render a chat with the tokenizer's template and mark the assistant's turns as the target.

    A turn's target starts after the generation prompt, which the server renders too, and ends
    with the end-of-turn token. Raises ValueError if the template does not render turn by turn.
    """
    end_of_turn = tokenizer.encode(str(tokenizer.eos_token), add_special_tokens=False)[0]
    ids = render(messages, tokenizer, prompt=False)
    labels = [IGNORED] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:index], tokenizer, prompt=True)
        through = render(messages[: index + 1], tokenizer, prompt=False)
        if ids[: len(through)] != through or through[: len(before)] != before:
            raise ValueError("the chat template changes a chat's start when the chat goes on")
        end = through.index(end_of_turn, len(before)) + 1
        labels[len(before) : end] = ids[len(before) : end]
    return Example(ids, labels)


def render(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, prompt: bool
) -> list[int]:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    # The template has written every special token that there is to be.
    return tokenizer.encode(str(text), add_special_tokens=False)


def collate(examples: list[Example], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels, each padded on the right to the longest chat."""
    length = max(len(example.ids) for example in examples)

    def stack(rows: list[list[int]], filler: int) -> Tensor:
        return torch.stack([pad(torch.tensor(r), (0, length - len(r)), value=filler) for r in rows])

    ids = stack([example.ids for example in examples], pad_id)
    mask = stack([[1] * len(example.ids) for example in examples], 0)
    labels = stack([example.labels for example in examples], IGNORED)
    return ids, mask, labels


def batches(examples: list[Example], size: int, steps: int, seed: int) -> list[list[Example]]:
    """Return `steps` batches: every chat once in random order, then all again in another."""
    rng = random.Random(seed)
    order: list[Example] = []
    while len(order) < size * steps:
        order += rng.sample(examples, len(examples))
    return [order[step * size : (step + 1) * size] for step in range(steps)]


def train(folder: Path, base: Path, arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    examples = [encode(row["messages"], tokenizer) for row in rows]
    config = LoraConfig(
        r=arguments.rank,
        lora_alpha=2 * arguments.rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",
    )
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(base_model, config)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=arguments.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=arguments.steps, pct_start=0.05
    )
    start, seen_tokens = time.monotonic(), 0
    for step, batch in enumerate(
        batches(examples, arguments.batch_size, arguments.steps, arguments.seed), start=1
    ):
        ids, mask, labels = collate(batch, tokenizer.pad_token_id)
        # The vocabulary is the widest layer by far: apply it only where there is a target.
        hidden = base_model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        target = labels[:, 1:]
        is_learnt = target != IGNORED
        loss = cross_entropy(base_model.lm_head(hidden[is_learnt]), target[is_learnt])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        seen_tokens += int(mask.sum())
        if step % 10 == 0 or step == arguments.steps:
            rate = seen_tokens / (time.monotonic() - start)
            print(f"step {step:4d}  loss {loss.item():.4f}  {rate:.0f} tokens/s", flush=True)
    save(model, config, folder)


def save(model: torch.nn.Module, config: LoraConfig, folder: Path) -> None:
    """Write the adapter in bf16, half the size of float32; it names the base model, no path."""
    tensors = get_peft_model_state_dict(model)
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config.base_model_name_or_path = BASE_MODEL
    config.inference_mode = True
    config.target_modules = sorted(PROJECTIONS)
    config.save_pretrained(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the adapter's folder, with data.jsonl")
    parser.add_argument("--base", type=Path, default=HOME / "models" / BASE_MODEL)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=6, help="chats a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak (%(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="alpha is twice this (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    arguments = parser.parse_args()
    train(arguments.folder, arguments.base, arguments)


if __name__ == "__main__":
    main()

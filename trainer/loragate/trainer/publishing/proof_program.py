"""The program that has PEFT load one adapter and score prompts with it: see `child_process.loop`.

It opens what others have written, with limits of time and memory, and reaches no network: whatever
asks for one is refused. What is computed here is the truth that a server is held against, so it is
float32 throughout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from loragate.adapters.child_process.loop import Job, Refused, serve

# The last tokens of a prompt, as in `reference`: an answer's, where an adapter changes most.
_PROMPT_TOKENS: Final = 24
_HALF, _DOUBLE = 0.5, 2.0
# On a machine that is busy, threads of a small model wait for each other most of the time: 140 s
# in place of 5 beside two servers.
_LARGE_BYTES: Final = 2 << 30


def main() -> NoReturn:
    os.environ["HF_HUB_OFFLINE"] = "1"
    serve(_prepare)


def _prepare(_preparation: object) -> Job:
    from loragate.trainer.publishing import reference  # noqa: F401 - imported before the limits

    # From here on, and for all that runs in this process: a hook cannot be taken out again.
    sys.addaudithook(_refuse_network)
    return prove


def _refuse_network(event: str, _arguments: object) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise PermissionError("no network is used to prove an adapter")


def prove(job: dict[str, Any]) -> dict[str, Any]:
    """Scores of the job's prompts in nats: of the base model, of the `published` folder at its
    scale, at half and at twice of it, and of the `source` folder where PEFT loads it; or `reason`.

    Raises Refused where the base model or the published folder cannot be scored.
    """
    import torch

    from loragate.trainer.data.example import DataError
    from loragate.trainer.training.models import load_float32, place_to_measure

    base = Path(job["base"])
    if sum(file.stat().st_size for file in base.glob("*.safetensors")) > _LARGE_BYTES:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    if place_to_measure(base, "cpu")[1] != torch.float32:
        raise Refused("the base model does not fit into this machine's free memory in float32")
    try:
        given, fixed = _prompts(job)
    except DataError as error:
        return {"bad_chats": str(error)}
    prompts = [*given, *fixed]
    model = load_float32(base)
    answer: dict[str, Any] = {
        "libraries": _libraries(),
        "given": len(given),
        "prompts": prompts,
        "base": _scores(model, prompts),
    }
    answer |= _published(model, Path(job["published"]), prompts)
    if job.get("source"):
        try:
            # A fresh base model: some methods change it when they are loaded.
            del model
            answer["source"] = _source(load_float32(base), Path(job["source"]), prompts)
        except Exception as error:  # noqa: BLE001 - whatever PEFT raises is why it cannot load it
            answer["source_reason"] = _first_line(error)
    return answer


def _published(model: Any, folder: Path, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    from loragate.trainer.training.models import load_adapter

    try:
        adapted = load_adapter(model, folder)
    except Exception as error:
        raise Refused(f"PEFT does not load it ({_first_line(error)})") from error
    answer: dict[str, Any] = {"published": _scores(adapted, prompts)}
    for name, factor in (("half", _HALF), ("double", _DOUBLE)):
        _scale(adapted, factor)
        answer[name] = _scores(adapted, prompts)
        _scale(adapted, 1 / factor)
    adapted.unload()
    return answer


def _source(model: Any, folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Raises whatever PEFT does, and AdapterNotApplied where it passes over a tensor."""
    from peft import PeftModel
    from peft.utils.save_and_load import load_peft_weights

    from loragate.trainer.training.models import require_tensors_applied

    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    given = load_peft_weights(str(folder), device="cpu")
    require_tensors_applied(adapted, given, "the adapter as it was written")
    return _scores(adapted, prompts)


def _scale(adapted: Any, factor: float) -> None:
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(factor)


def _scores(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Of each prompt's tokens but the first; all prompts in one pass."""
    import torch

    longest = max(map(len, prompts))
    # What fills up a row comes after its tokens, so none of them attends to it.
    tokens = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prompts])
    with torch.inference_mode():
        logits = model(input_ids=tokens.to(model.device)).logits[:, :-1].float()
        scores = logits.log_softmax(-1).gather(2, tokens[:, 1:, None].to(logits.device))[..., 0]
    # Five places are finer than any engine computes, and the same on every run.
    return [
        [round(score, 5) for score in row[: len(ids) - 1].tolist()]
        for row, ids in zip(scores, prompts, strict=True)
    ]


def _prompts(job: dict[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the chats that were given, and of the fixed ones."""
    from loragate.adapters.rendering.renderer import Renderer
    from loragate.trainer.data.example import read_examples
    from loragate.trainer.publishing.proof_prompts import proof_chats

    renderer = Renderer.load(
        Path(job["base"]),
        job.get("template"),
        job["special_tokens_in_text"],
        variables=job.get("variables") or {},
    )
    chats = list(read_examples(Path(job["chats"])))[: job["most_given"]] if job["chats"] else []
    return (
        [_rendered(renderer, chat, None) for chat in chats],
        [_rendered(renderer, chat, job.get("system_prompt")) for chat in proof_chats()],
    )


def _rendered(renderer: Any, chat: Any, system_prompt: str | None) -> list[int]:
    from loragate.adapters.rendering.renderer import RenderingError
    from loragate.trainer.data.example import Message
    from loragate.trainer.training.encoding import supervised

    if system_prompt:
        chat = replace(chat, messages=(Message("system", system_prompt), *chat.messages))
    try:
        ids = supervised(renderer, chat)[-1].input_ids
    except RenderingError:  # a base model without a template, or one that wants other roles
        text = "\n".join(turn.content for turn in chat.messages)
        ids = renderer.encode(text, add_special_tokens=False)
    return list(ids[-_PROMPT_TOKENS:])


def _libraries() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("peft", "transformers", "torch"))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


if __name__ == "__main__":
    main()

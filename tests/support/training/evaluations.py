"""An evaluation made by the real evaluator from canned answers, without a server."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.example import Example
from loragate.trainer.evaluation.comparison import Comparison, System
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.evaluator import evaluate
from loragate.trainer.evaluation.served import ServedModels
from loragate.trainer.settings import EvaluationSettings

Speak = Callable[[str, str], str]
"""From a model's name and the question to the answer."""


def transport(speak: Speak) -> httpx.MockTransport:
    """A server in OpenAI's shape whose models answer as `speak` does."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body["temperature"] == 0
        text = speak(body["model"], body["messages"][-1]["content"])
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        usage = {"completion_tokens": len(text.split())}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    return httpx.MockTransport(answer)


async def evaluation_of(
    base: BaseModel,
    adapter: Path,
    rows: Sequence[Example],
    speak: Speak,
    settings: EvaluationSettings,
    champion: Path | None = None,
    train: Sequence[Example] = (),
    prompted: Sequence[System] = (),
    **more: Any,
) -> Evaluation:
    @asynccontextmanager
    async def open_models(_systems: Sequence[System]) -> AsyncIterator[ServedModels]:
        async with httpx.AsyncClient(transport=transport(speak), base_url="http://tiny") as client:
            yield ServedModels(client, 4)

    systems = [System("base", "tiny", base.path, None, "base"), *prompted]
    if champion is not None:
        systems.append(System("champion", "acme/tiny@v1", base.path, champion, "champion"))
    systems.append(System("new", "this run", base.path, adapter, "new"))
    comparison = Comparison(
        "acme/tiny", base, tuple(systems), rows, Renderer.load(base.path), "d" * 64, "a test",
        train=train, **more,
    )  # fmt: skip
    with Progress(disable=True) as progress:
        return await evaluate(comparison, settings, open_models, progress)

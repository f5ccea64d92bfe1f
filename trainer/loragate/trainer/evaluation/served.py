"""Answers of models on a real server, over HTTP as users ask them.

`started` runs `loragate serve` in a temporary home; `running` asks a server that runs already.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from rich.progress import Progress

from loragate.adapters.base_models.preparation import prepare
from loragate.adapters.format.peft_config import CONFIG, read_config
from loragate.adapters.home import Home
from loragate.adapters.names import CHAMPION, AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.settings import SpecialTokensInText
from loragate.adapters.store import ArtifactStore
from loragate.adapters.temporary_folders import temporary_folder
from loragate.trainer.data.example import Message, call_of, said
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.scores import Answer

BASE: Final = "base"

_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1

_TENANT: Final = "evaluation"
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)  # what engine.max_lora_rank can be
_START_SECONDS: Final = 600.0
_STOP_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Serving:
    """How the temporary server runs. `source` is a base model that was prepared under `models`,
    or a folder that holds one; `chat_template` is a file that replaces the model's own.
    `max_model_len` is in tokens. All is asked with `chat_template_kwargs`. An empty parser is
    the server's default.
    """

    source: str
    models: Path
    max_model_len: int
    dtype: str = "auto"
    chat_template: str = ""
    special_tokens_in_text: SpecialTokensInText = "text"
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    reasoning_parser: str = ""
    tool_call_parser: str = ""
    # Variables of the environment for an engine here, under those that the evaluation sets.
    engine: Mapping[str, str] = field(default_factory=dict)


class _Answering:
    """Which version answers to a model's name: always the same, and the one that was expected."""

    def __init__(self, model: str, expected: str) -> None:
        self._model = model
        self._expected = expected
        self._first: str | None = None

    def check(self, headers: httpx.Headers) -> None:
        """Raises EvaluationError."""
        digest = headers.get("x-loragate-digest", "")
        version = headers.get("x-loragate-adapter", "") or "the base model"
        if self._expected and digest != self._expected:
            raise EvaluationError(
                f"{self._model!r} is answered by {version} ({digest[:12] or 'without a digest'}), "
                f"and not by what is evaluated ({self._expected[:12]}); name the version that this "
                "run became, such as support@v3"
            )
        if self._first is None:
            self._first = digest
        if digest != self._first:
            raise EvaluationError(
                f"the server changed the version behind {self._model!r} while it was asked (now "
                f"{version}); name a version instead of an alias, and evaluate again"
            )


class ServedModels:
    """The models of one server: `BASE`, and adapters by their names. The caller closes `client`. At
    most `concurrency` requests are under way at once.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        concurrency: int,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> None:
        """`chat_template_kwargs` go with each question, to the base model as to the others."""
        self._client = client
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._permits = asyncio.Semaphore(concurrency)

    async def ask(
        self,
        model: str,
        prompts: Sequence[Sequence[Message]],
        max_tokens: int,
        done: Callable[[], None] = lambda: None,
        tools: Sequence[str] = (),
        digest: str = "",
    ) -> list[Answer]:
        """The greedy answers, in the order of the prompts. `done` is called after each. `tools` are
        what the first prompts may call, as `Example` has them. `digest` is that of the version
        which has to answer, where that is known.

        Raises EvaluationError where the server refuses one or cannot be reached, where another
        version answers, and where it changes in between; the requests under way are cancelled then.
        """
        answering = _Answering(model, digest)

        async def one(prompt: Sequence[Message], tools: str) -> Answer:
            async with self._permits:
                answer = await self._ask(model, prompt, tools, max_tokens, answering)
            done()
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(one(prompt, tools[n] if n < len(tools) else ""))
                    for n, prompt in enumerate(prompts)
                ]
        except ExceptionGroup as failed:
            # The others were cancelled by it, or failed for the same reason.
            raise failed.exceptions[0] from failed
        return [task.result() for task in tasks]

    async def _ask(
        self,
        model: str,
        prompt: Sequence[Message],
        tools: str,
        max_tokens: int,
        answering: _Answering,
    ) -> Answer:
        body: dict[str, object] = {
            "model": model,
            "messages": [replace(turn, is_learnt=True).to_json() for turn in prompt],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if self._chat_template_kwargs:
            body["chat_template_kwargs"] = self._chat_template_kwargs
        if tools:
            body["tools"] = json.loads(tools)
        try:
            response = await self._client.post("/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            raise EvaluationError(
                f"the server at {self._client.base_url} does not answer ({error!r}); see its log, "
                "then evaluate again"
            ) from error
        if not response.is_success:
            raise EvaluationError(
                f"the server refuses a question to {model!r} with {response.status_code}: "
                f"{response.text}"
            )
        answering.check(response.headers)
        answer = response.json()
        choice = answer["choices"][0]
        calls = map(call_of, choice["message"].get("tool_calls") or ())
        return Answer(
            said(choice["message"]["content"] or "", calls),
            choice["finish_reason"] == "stop",
            answer["usage"]["completion_tokens"],
            answer["usage"].get("prompt_tokens", 0),
        )


@asynccontextmanager
async def running(
    url: str,
    key: str,
    concurrency: int,
    chat_template_kwargs: Mapping[str, object] | None = None,
) -> AsyncIterator[ServedModels]:
    """The models of the server at `url`, asked with a tenant's key."""
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_ANSWER_SECONDS) as client:
        yield ServedModels(client, concurrency, chat_template_kwargs)


@asynccontextmanager
async def started(
    serving: Serving, adapters: Mapping[str, Path], concurrency: int
) -> AsyncIterator[ServedModels]:
    """A server of the base model and of adapter folders, by name; it has ended when the block has.

    The folders pass the same checks as any version. Raises EvaluationError with the end of the
    server's log where it does not become ready, or with the reason where an adapter cannot serve.
    """
    with temporary_folder("evaluation") as scratch:
        home = Home(scratch).ensure()
        _link_model(serving, home)
        with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
            key = await asyncio.to_thread(_publish, registry, adapters)
            address = f"127.0.0.1:{_free_port()}"
            async with (
                _server(home, address, _environment(serving, adapters)),
                running(
                    f"http://{address}", key, concurrency, serving.chat_template_kwargs
                ) as models,
            ):
                await asyncio.to_thread(_require_serving, registry, adapters)
                yield models


def _link_model(serving: Serving, home: Home) -> None:
    """Links the prepared models into `home`, and prepares `source` where it is a folder."""
    for entry in serving.models.iterdir():
        if not entry.name.startswith("."):
            (home.models / entry.name).symlink_to(entry.absolute())
    with Progress(disable=True) as progress:
        prepare(serving.source, home.models, progress)


def _publish(registry: Registry, adapters: Mapping[str, Path]) -> str:
    key = registry.tenants.create(_TENANT, actor="trainer").key
    for name, folder in adapters.items():
        adapter = AdapterName(_TENANT, name)
        version = registry.versions.publish(adapter, folder, "trainer")
        registry.aliases.set(adapter, CHAMPION, version.number, "trainer")
    return key


def _environment(serving: Serving, adapters: Mapping[str, Path]) -> dict[str, str]:
    ranks = [read_config(folder / CONFIG).largest_rank for folder in adapters.values()]
    rank = next(allowed for allowed in _RANKS if allowed >= max(ranks, default=1))
    own = {
        "LORAGATE_ENGINE_MODEL": serving.source,
        "LORAGATE_ENGINE_MAX_LORAS": str(max(1, len(adapters))),
        "LORAGATE_ENGINE_MAX_CPU_LORAS": str(max(1, len(adapters))),
        "LORAGATE_ENGINE_MAX_LORA_RANK": str(rank),
        "LORAGATE_ENGINE_MAX_MODEL_LEN": str(serving.max_model_len),
        "LORAGATE_ENGINE_CHAT_TEMPLATE": serving.chat_template,
        "LORAGATE_ENGINE_SPECIAL_TOKENS_IN_TEXT": serving.special_tokens_in_text,
        "LORAGATE_SERVER_LOG_LEVEL": "warning",
        "LORAGATE_ENGINE_REASONING_PARSER": serving.reasoning_parser,
    } | (
        {"LORAGATE_ENGINE_TOOL_CALL_PARSER": parser} if (parser := serving.tool_call_parser) else {}
    )
    if serving.dtype != "auto":
        own["LORAGATE_ENGINE_DTYPE"] = serving.dtype
    # What memory and devices a server here may take is the user's to say.
    return {"LORAGATE_ENGINE_KV_CACHE_GIB": "1", **serving.engine, **own}


@asynccontextmanager
async def _server(home: Home, address: str, settings: Mapping[str, str]) -> AsyncIterator[None]:
    """Runs the process: it is ready when the block begins, and has ended when the block has."""
    log_path = home.root / "serve.log"
    # Settings of the caller's own server are not for this one.
    inherited = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    environment = inherited | {
        **settings,
        "LORAGATE_HOME": str(home.root),
        "LORAGATE_SERVER_HTTP": address,
        "LORAGATE_SERVER_GRPC": "127.0.0.1:0",
    }
    command = Path(sys.executable).with_name("loragate")
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            # A session of its own: Ctrl-C is for the evaluation, which then stops the server.
            *(str(command), "serve"),
            env=environment,
            cwd=home.root,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=partial(_end_with, os.getpid(), _LIBC),
        )
        try:
            await _wait_until_ready(process, address, log_path)
            yield
        finally:
            await _stop(process)


def _end_with(parent: int, libc: ctypes.CDLL) -> None:
    """Have the kernel end this process as soon as `parent` is gone, however that came to its end.

    Runs between fork and exec, where other threads' locks may be held: it calls the system alone.
    """
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # gone before that
        os._exit(1)


async def _wait_until_ready(
    process: asyncio.subprocess.Process, address: str, log_path: Path
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline:
            if process.returncode is not None:
                raise EvaluationError(f"the server for the evaluation ended: {_end_of(log_path)}")
            try:
                if (await client.get(f"http://{address}/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            await asyncio.sleep(0.2)
    raise EvaluationError(
        f"the server for the evaluation was not ready in {_START_SECONDS:g} s: {_end_of(log_path)}"
    )


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    # Unlike SIGKILL, this lets it end its engine's processes.
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def _require_serving(registry: Registry, adapters: Mapping[str, Path]) -> None:
    """Blocks until each adapter serves. Raises EvaluationError where one cannot."""
    deadline = time.monotonic() + _START_SECONDS
    for name in adapters:
        adapter = AdapterName(_TENANT, name)
        while (page := registry.versions.show(adapter)).aliases[CHAMPION].serving is None:
            newest = page.versions[0]
            if newest.state is AdapterState.FAILED:
                raise EvaluationError(f"the adapter {name!r} cannot be served: {newest.reason}")
            if time.monotonic() > deadline:
                raise EvaluationError(f"the adapter {name!r} is still {newest.state}; try again")
            time.sleep(0.1)


def _is_setting(name: str) -> bool:
    return name.startswith("LORAGATE_")


def _end_of(log_path: Path) -> str:
    return log_path.read_text(errors="replace")[-2000:].strip() or "its log is empty"


def _free_port() -> int:
    # Another process may take it before the server does; the server then ends and says why.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

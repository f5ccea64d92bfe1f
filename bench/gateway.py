"""Where the time goes between a client and the engine, part by part: `make bench-gateway`.

One stream at a time asks the whole server over HTTP, around an engine that answers at once. The
parts end where the server calls from one of its rooms into the next; both processes read the same
clock. What a real engine adds between is `make bench-direct`'s to say.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import statistics
import time
from collections.abc import AsyncGenerator, Callable

import uvloop

from bench import processor
from bench.frontend import PROMPT, Connection, EmittingEngine, served_by
from bench.streams import Door, stream
from loragate.server.core import Delta
from loragate.server.engine.protocol import EngineRequest
from loragate.server.gateway.prompting import PromptBuilder
from loragate.server.http.generation import GenerationResponse
from loragate.server.http.middleware import Envelope

ANSWER_TOKENS = 8
_WARM = 100  # requests that are not counted
PARTS = (
    "connection, head read, until the application has it",
    "limits, key, route, body decoded and checked",
    "version chosen, its contract found, until the prompt is made",
    "prompt made (token ids checked; a text is tokenised here)",
    "booked in limits and usage, through the queue, to the engine",
    "(the engine)",
    "choices put together, event written, until it is sent",
    "socket, and the client's reading",
)
Marks = list[float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000, help="counted (default 1000)")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = multiprocessing.Pipe()
    server = context.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    try:
        print(processor.measure(None))
        asyncio.run(_measure(ours, options.requests))
    finally:
        server.terminate()


async def _measure(server: Connection, requests: int) -> None:
    doors: dict[str, str] = server.recv()
    door = Door(f"http://{doors['http']}", "base", doors["key"])
    for _ in range(_WARM):
        await stream(door, PROMPT, ANSWER_TOKENS)
    server.send(None)
    server.recv()
    begins, firsts, gaps = [], [], []
    for _ in range(requests):
        answer = await stream(door, PROMPT, ANSWER_TOKENS)
        begins.append(answer.started)
        firsts.append(answer.arrivals[0])
        gaps += answer.gaps
    server.send(None)
    marks: list[Marks] = server.recv()
    parts = [
        [later - earlier for earlier, later in itertools.pairwise(each)]
        for each in ([b, *m, f] for b, m, f in zip(begins, marks, firsts, strict=True))
    ]
    print("\n| until the first token | median, ms | 90th percentile |\n|---|---|---|")
    for name, taken in zip(PARTS, zip(*parts, strict=True), strict=True):
        print(f"| {name} | {_shown(taken)} |")
    whole = [first - begin for begin, first in zip(begins, firsts, strict=True)]
    print(f"| all | {_shown(whole)} |\n| each further token | {_shown(gaps)} |")


def _shown(seconds: "list[float] | tuple[float, ...]") -> str:
    tenth = statistics.quantiles(seconds, n=10)[-1]
    return f"{statistics.median(seconds) * 1e3:.3f} | {tenth * 1e3:.3f}"


def _serve(parent: Connection) -> None:
    uvloop.run(_run(parent))


async def _run(parent: Connection) -> None:
    marks: list[Marks] = []
    _mark(marks)
    async with served_by(lambda base: _AtOnce(base, marks)) as doors:
        parent.send(doors)

        def answer() -> None:
            try:
                parent.recv()
            except EOFError:
                raise SystemExit from None
            parent.send(list(marks))
            marks.clear()

        asyncio.get_running_loop().add_reader(parent.fileno(), answer)
        await asyncio.Event().wait()


class _AtOnce(EmittingEngine):
    """Answers with all its tokens as they are asked for."""

    def __init__(self, base: object, marks: list[Marks]) -> None:
        super().__init__(base)  # type: ignore[arg-type]
        self._marks = marks

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.sampling.prompt_logprobs is not None:
            async for delta in super().generate(request):
                yield delta
            return
        self._marks[-1] += [time.perf_counter()] * 2  # asked, and answered
        for left in range(ANSWER_TOKENS, 0, -1):
            end = "length" if left == 1 else None
            yield Delta(index=0, text=" token", token_ids=(1,), finish_reason=end)
            await asyncio.sleep(0)


def _mark(marks: list[Marks]) -> None:
    """Notes when each part begins, in the server's own process, which serves nobody else."""

    def begin() -> None:
        marks.append([time.perf_counter()])

    def note() -> None:
        marks[-1].append(time.perf_counter())

    _before(Envelope, "__call__", begin)
    _before(GenerationResponse, "__call__", note)
    _before(PromptBuilder, "prepare", note)
    _after(PromptBuilder, "prepare", note)
    answer = GenerationResponse._answer

    async def watched(self: GenerationResponse, send: object) -> None:
        is_first = True

        async def sending(message: dict[str, object]) -> None:
            nonlocal is_first
            await send(message)  # type: ignore[operator]
            if is_first and message["type"] == "http.response.body":
                is_first = False
                note()

        await answer(self, sending)  # type: ignore[arg-type]

    GenerationResponse._answer = watched  # type: ignore[method-assign]


def _before(owner: type, name: str, call: Callable[[], None]) -> None:
    plain = getattr(owner, name)

    async def wrapped(*args: object, **kwargs: object) -> object:
        call()
        return await plain(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after(owner: type, name: str, call: Callable[[], None]) -> None:
    plain = getattr(owner, name)

    async def wrapped(*args: object, **kwargs: object) -> object:
        result = await plain(*args, **kwargs)
        call()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    main()

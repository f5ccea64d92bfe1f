"""An hour of mixed load while versions come and go and everything fails once: `make bench-soak`.

Tenants ask their adapters over HTTP and gRPC, streaming and not, leave in the middle, and send what
is wrong; champions move every few seconds; every background task of the server raises about once a
minute. In float32 each answer is compared, token for token, with vLLM's own offline `LLM`, and the
engine compares all of its LoRA slots with what was placed there before each step. At the end the
server gets SIGTERM under load.
"""

import argparse
import asyncio
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import psutil
from rich.progress import Progress

from bench.adapters import make_adapter
from bench.offline import Answers, answer_offline
from bench.servers import Bounds, Running, loragate, model_path
from loragate.v1 import inference_pb2 as pb
from loragate.v1 import inference_pb2_grpc

TENANTS, VERSIONS, PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 6, 2, 6, 24, 24
BOUNDS = Bounds(max_loras=3, max_cpu_loras=10)
LOOK_SECONDS = 1.0
ENDS_WITHIN_SECONDS = 45.0  # server.drain_seconds and what is added to it
_LEFT_SECONDS = 5.0  # for what notices that the server is gone
CHAMPION = "/admin/v1/tenants/{tenant}/adapters/adapter/aliases/champion"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="default 60")
    parser.add_argument("--clients", type=int, default=8, help="at once (default 8)")
    options = parser.parse_args()
    asyncio.run(_soak(options.minutes * 60, options.clients))


@dataclass(slots=True)
class Tally:
    """What came of it all."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    promotions: int = 0
    refused_promotions: Counter[str] = field(default_factory=Counter)
    unready_seconds: float = 0.0
    worst_livez_seconds: float = 0.0
    memory_mib: list[float] = field(default_factory=list)
    is_stopping: bool = False  # from here on everything may be refused

    def answered(self, kind: str, status: object, expected: Sequence[object], text: str) -> None:
        if self.is_stopping:
            return
        self.by_kind[f"{kind}: {status}"] += 1
        if status not in expected:
            self.unexpected.append(f"{kind}: {status} {text[:200]}")


async def _soak(seconds: float, clients: int) -> None:
    draw = random.Random(0)
    prompts = [[draw.randrange(100, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        versions = {
            f"tenant-{tenant}": [
                make_adapter(
                    Path(folder) / f"{tenant}-{number}", model_path(), 10 * tenant + number
                )
                for number in range(1, VERSIONS + 1)
            ]
            for tenant in range(TENANTS)
        }
        named = {
            f"{tenant}/adapter@v{number}": path
            for tenant, paths in versions.items()
            for number, path in enumerate(paths, start=1)
        }
        reference = await answer_offline(Path(folder), model_path(), named, prompts, ANSWER_TOKENS)
        async with loragate(
            {},
            dtype="float32",
            versions=versions,
            settings={
                "LORAGATE_ENGINE_CHECK_SLOTS": "step",
                "LORAGATE_LIMITS_SLOT_TURN_SECONDS": "0.05",
            },
            bounds=BOUNDS,
            module="bench.planted_server",
        ) as running:
            tally = Tally()
            await _load(running, prompts, reference, tally, seconds, clients)


async def _load(
    running: Running,
    prompts: Sequence[list[int]],
    reference: Answers,
    tally: Tally,
    seconds: float,
    clients: int,
) -> None:
    is_over = asyncio.Event()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        client = Client(http, running, prompts, reference, tally)
        before = psutil.Process(running.process.pid).children(recursive=True)
        tasks = [asyncio.create_task(client.ask_until(is_over, seed)) for seed in range(clients)]
        tasks.append(asyncio.create_task(_promote(http, running, tally, is_over)))
        tasks.append(asyncio.create_task(_watch(http, running, tally, is_over)))
        await _show_progress(seconds, tasks)
        metrics = (await http.get(f"{running.url}/metrics", headers=running.admin)).text
        # In the middle of the load, which ends with refusals or whole answers.
        tally.is_stopping = True
        asked = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(running.process.wait, ENDS_WITHIN_SECONDS * 2)
        took = time.monotonic() - asked
        is_over.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        _, alive = await asyncio.to_thread(psutil.wait_procs, before, _LEFT_SECONDS)
        left = [each.pid for each in alive]
    _print(tally, metrics, status, took, left, seconds, running.log)


async def _show_progress(seconds: float, tasks: Sequence[asyncio.Task[None]]) -> None:
    began = time.monotonic()
    with Progress() as progress:
        bar = progress.add_task("under load", total=seconds)
        while (passed := time.monotonic() - began) < seconds:
            progress.update(bar, completed=passed)
            done, _ = await asyncio.wait(tasks, timeout=1, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()


@dataclass(slots=True)
class Client:
    """Asks as tenants do, good and bad."""

    http: httpx.AsyncClient
    running: Running
    prompts: Sequence[list[int]]
    reference: Answers
    tally: Tally

    async def ask_until(self, is_over: asyncio.Event, seed: int) -> None:
        draw = random.Random(seed)
        kinds = [self._whole] * 4 + [self._stream] * 4 + [self._over_grpc] * 4
        kinds += [self._leave, self._send_nonsense, self._use_a_wrong_key, self._give_feedback]
        async with grpc.aio.insecure_channel(self.running.grpc) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            while not is_over.is_set():
                tenant = f"tenant-{draw.randrange(TENANTS)}"
                number = draw.randrange(len(self.prompts))
                kind = draw.choice(kinds)
                try:
                    await kind(tenant, number, stub)
                except (httpx.TransportError, grpc.aio.AioRpcError) as error:
                    if not self.tally.is_stopping:
                        self.tally.unexpected.append(f"{kind.__name__}: {error!r}"[:300])
                        await asyncio.sleep(1)
                    else:
                        return

    def _body(self, number: int, **more: object) -> dict[str, object]:
        return {
            "model": "adapter",
            "prompt": self.prompts[number],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **more,
        }

    def _headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.running.doors[tenant].key}"}

    def _judge(self, version: str, number: int, token_ids: Sequence[int]) -> None:
        if list(token_ids) == self.reference[version][number]:
            self.tally.right += 1
        else:
            self.tally.wrong.append(f"{version}, prompt {number}")

    async def _whole(self, tenant: str, number: int, stub: object) -> httpx.Response:
        url = f"{self.running.url}/v1/completions"
        answer = await self.http.post(url, json=self._body(number), headers=self._headers(tenant))
        self.tally.answered("whole", answer.status_code, (200, 503), answer.text)
        if answer.is_success:
            version = answer.headers["x-loragate-adapter"]
            self._judge(version, number, answer.json()["choices"][0]["token_ids"])
        return answer

    async def _stream(self, tenant: str, number: int, stub: object) -> None:
        body, ids = self._body(number, stream=True), list[int]()
        url = f"{self.running.url}/v1/completions"
        async with self.http.stream(
            "POST", url, json=body, headers=self._headers(tenant)
        ) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        failed = any('"error"' in line for line in lines)
        self.tally.answered("stream", answer.status_code, (200, 503), " ".join(lines))
        if answer.is_success and not failed:
            for line in lines:
                if found := re.search(r'"token_ids":\[([\d,]*)\]', line):
                    ids += map(int, filter(None, found[1].split(",")))
            self._judge(answer.headers["x-loragate-adapter"], number, ids)

    async def _over_grpc(self, tenant: str, number: int, stub: object) -> None:
        assert isinstance(stub, inference_pb2_grpc.InferenceStub)
        request = pb.CompletionRequest(
            model="adapter",
            prompts=[pb.Prompt(token_ids=pb.TokenIds(ids=self.prompts[number]))],
            sampling=pb.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0, ignore_eos=True),
            options=pb.Options(return_token_ids=True),
        )
        call = stub.Complete(request, metadata=tuple(self._headers(tenant).items()))
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            self.tally.answered("grpc", error.code(), (grpc.StatusCode.UNAVAILABLE,), str(error))
            if self.tally.is_stopping:
                raise
            return
        self.tally.answered("grpc", "OK", ("OK",), "")
        version = dict(await call.initial_metadata())["x-loragate-adapter"]
        self._judge(version, number, answer.choices[0].token_ids)

    async def _leave(self, tenant: str, number: int, stub: object) -> None:
        body = self._body(number, stream=True, max_tokens=400)
        url = f"{self.running.url}/v1/completions"
        async with self.http.stream(
            "POST", url, json=body, headers=self._headers(tenant)
        ) as answer:
            async for _ in answer.aiter_lines():
                break
        self.tally.answered("left", answer.status_code, (200, 503), "")

    async def _send_nonsense(self, tenant: str, number: int, stub: object) -> None:
        bad = random.choice((b"{", b'{"model": 1}', b'{"model": "nothing", "prompt": "a"}'))
        answer = await self.http.post(
            f"{self.running.url}/v1/completions",
            content=bad,
            headers=self._headers(tenant) | {"content-type": "application/json"},
        )
        self.tally.answered("nonsense", answer.status_code, (400, 404, 503), answer.text)

    async def _use_a_wrong_key(self, tenant: str, number: int, stub: object) -> None:
        answer = await self.http.post(
            f"{self.running.url}/t/{tenant}/v1/completions",
            json=self._body(number),
            headers=self._headers("nobody"),
        )
        self.tally.answered("another's key", answer.status_code, (404,), answer.text)

    async def _give_feedback(self, tenant: str, number: int, stub: object) -> None:
        answer = await self._whole(tenant, number, stub)
        if not answer.is_success:
            return
        said = {"request_id": answer.headers["x-request-id"], "metric": "rating", "value": 4}
        reply = await self.http.post(
            f"{self.running.url}/v1/feedback", json=said, headers=self._headers(tenant)
        )
        self.tally.answered("feedback", reply.status_code, (200, 503), reply.text)


async def _promote(
    http: httpx.AsyncClient, running: Running, tally: Tally, is_over: asyncio.Event
) -> None:
    draw = random.Random(1)
    serving = dict.fromkeys(range(TENANTS), 1)
    while not is_over.is_set():
        await asyncio.sleep(draw.uniform(1, 5))
        tenant = draw.randrange(TENANTS)
        serving[tenant] = 3 - serving[tenant]
        try:
            answer = await http.put(
                running.url + CHAMPION.format(tenant=f"tenant-{tenant}"),
                json={"version": f"v{serving[tenant]}", "reason": "soak"},
                headers=running.admin,
            )
        except httpx.TransportError:
            return  # it has stopped
        if answer.is_success:
            tally.promotions += 1
        else:
            tally.refused_promotions[f"{answer.status_code} {answer.text[:120]}"] += 1


async def _watch(
    http: httpx.AsyncClient, running: Running, tally: Tally, is_over: asyncio.Event
) -> None:
    while not is_over.is_set():
        asked = time.perf_counter()
        try:
            await http.get(f"{running.url}/livez")
            tally.worst_livez_seconds = max(tally.worst_livez_seconds, time.perf_counter() - asked)
            is_unready = (await http.get(f"{running.url}/readyz")).is_error
            if is_unready and not tally.is_stopping:
                tally.unready_seconds += LOOK_SECONDS
            tally.memory_mib.append(await asyncio.to_thread(running.memory_mib))
        except (httpx.TransportError, psutil.Error):
            return
        await asyncio.sleep(LOOK_SECONDS)


def _print(
    tally: Tally,
    metrics: str,
    status: int,
    took: float,
    left: Sequence[int],
    seconds: float,
    log: Path,
) -> None:
    print(f"\n{seconds / 60:.0f} minutes: {tally.right} answers, each token for token that of the")
    print(f"version in its header; {len(tally.wrong)} others; {tally.promotions} promotions.")
    for example in (*tally.wrong[:5], *tally.unexpected[:10]):
        print(f"  {example}")
    print(f"unexpected answers: {len(tally.unexpected)}")
    print(f"promotions refused: {dict(tally.refused_promotions)}")
    print("\n| request: answer | times |\n|---|---|")
    for kind, times in sorted(tally.by_kind.items()):
        print(f"| {kind} | {times} |")
    print("\n| background task | failures planted and overcome | is up |\n|---|---|---|")
    up = dict(re.findall(r'^loragate_background_task_up\{task="(.+?)"\} (\S+)$', metrics, re.M))
    restarts = r'^loragate_background_task_restarts_total\{task="(.+?)"\} (\S+)$'
    for task, times in re.findall(restarts, metrics, re.M):
        print(f"| {task} | {float(times):.0f} | {up.get(task)} |")
    settled = tally.memory_mib[len(tally.memory_mib) // 5 :] or [0.0]
    print(
        f"\nmemory of all processes: {settled[0]:.0f} MiB after a fifth, {settled[-1]:.0f} at the"
    )
    print(f"end; not ready {tally.unready_seconds:.0f} s; worst /livez")
    print(
        f"{tally.worst_livez_seconds:.2f} s. SIGTERM under load: status {status} after {took:.1f}"
    )
    print(f"s, {len(left)} processes left. The server's log: {log}")


if __name__ == "__main__":
    main()

"""The running server as its operators and its users meet it."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from typing import Any

import grpc
import httpx
import openai
import pytest

from loragate.v1 import inference_pb2 as pb
from support.clients.both_transports import GrpcClient, HttpClient
from support.server.real_server import ROOT, Served
from support.waiting import wait_for

ASK: list[Any] = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]


def _cli(served: Served, *arguments: str) -> Any:
    environment = os.environ | {"LORAGATE_HOME": str(served.world.home.root)}
    command = [sys.executable, "-m", "loragate.server.cli.main", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _metric(served: Served, name: str) -> float:
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line))


async def test_openais_async_client_streams(served: Served) -> None:
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.world.keys["acme"])
    stream = await client.chat.completions.create(
        model="support", messages=ASK, max_tokens=6, stream=True
    )
    assert "".join([c.choices[0].delta.content or "" async for c in stream])


def test_per_tenant_endpoint_serves_its_own_tenant_only(served: Served) -> None:
    own = {"authorization": f"Bearer {served.world.keys['acme']}"}

    assert httpx.get(f"{served.url}/t/acme/v1/models", headers=own).status_code == 200
    assert httpx.get(f"{served.url}/t/globex/v1/models", headers=own).status_code == 404


def test_client_that_leaves_frees_its_engine_request_within_a_second(served: Served) -> None:
    def running() -> float:
        return _metric(served, "loragate_requests_running")

    key = served.world.keys["acme"]
    stream = HttpClient(served, key).openai.chat.completions.create(
        model="support", messages=ASK, max_tokens=800, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert running() == 1
    stream.close()
    assert wait_for(lambda: running() == 0, 1)

    async def leave_without_streaming() -> None:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)
        asking = asyncio.create_task(
            client.chat.completions.create(
                model="support", messages=ASK, max_tokens=800, extra_body={"ignore_eos": True}
            )
        )
        assert await asyncio.to_thread(wait_for, lambda: running() == 1, 10)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking

    asyncio.run(leave_without_streaming())
    assert wait_for(lambda: running() == 0, 1)

    rpc = GrpcClient(served, key)
    call = rpc.stub.ChatStream(
        pb.ChatRequest(
            model="support",
            messages=[pb.Message(**message) for message in ASK],
            sampling=pb.SamplingParams(max_tokens=800, ignore_eos=True),
        ),
        metadata=rpc.metadata,
    )
    next(call)
    assert running() == 1
    call.cancel()
    assert wait_for(lambda: running() == 0, 1)


def test_grpc_deadline_ends_the_engine_request(served: Served) -> None:
    client = GrpcClient(served, served.world.keys["acme"])
    request = pb.ChatRequest(
        model="base",
        messages=[pb.Message(**message) for message in ASK],
        sampling=pb.SamplingParams(max_tokens=900, ignore_eos=True),
    )
    with pytest.raises(grpc.RpcError) as caught:
        client.stub.Chat(request, metadata=client.metadata, timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert wait_for(lambda: _metric(served, "loragate_requests_running") == 0, 1)


def test_publish_and_promote_of_another_process_serve_without_a_restart(served: Served) -> None:
    client = HttpClient(served, served.world.keys["acme"])
    before = client.chat("support", ASK, max_tokens=1)
    folder = served.world.folders["acme/loud"]

    published = _cli(served, "adapter", "publish", "acme/support", str(folder))
    _cli(served, "adapter", "promote", "acme/support", published["version"])
    seen = wait_for(
        lambda: client.chat("support", ASK, max_tokens=1).digest == published["digest"], 5
    )
    _cli(served, "adapter", "promote", "acme/support", "v1")

    assert seen
    assert wait_for(lambda: client.chat("support", ASK, max_tokens=1).adapter == before.adapter, 5)


def test_usage_is_kept_in_the_registry(served: Served) -> None:
    client = HttpClient(served, served.world.keys["globex"])
    answer = client.chat("odd", ASK, max_tokens=5, temperature=0)

    def recorded() -> bool:
        rows = _cli(served, "usage", "globex")
        return any(row["adapter"] == answer.adapter for row in rows)

    assert wait_for(recorded, 5)


def test_metrics_count_by_tenant_and_adapter(served: Served) -> None:
    HttpClient(served, served.world.keys["acme"]).chat("loud", ASK, max_tokens=3)
    text = httpx.get(f"{served.url}/metrics").text
    assert 'loragate_requests_total{adapter="acme/loud",outcome="ok",tenant="acme"' in text
    assert 'loragate_time_to_first_token_seconds_count{adapter="acme/loud"' in text


def test_terminal_chat_streams_an_answer(served: Served) -> None:
    command = [
        sys.executable,
        "-m",
        "loragate.server.cli.main",
        "chat",
        "acme/support",
        "--url",
        served.url,
        "--key",
        served.world.keys["acme"],
        "--message",
        "I smell gas",
        "--max-tokens",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "acme/support@v1" in done.stdout + done.stderr


def test_log_never_holds_a_prompt_or_a_key(served: Served) -> None:
    secret = "xylophone-4711"
    key = served.world.keys["acme"]
    HttpClient(served, key).chat("base", [{"role": "user", "content": secret}], max_tokens=1)
    log = served.log.read_text()
    assert secret not in log
    assert key not in log

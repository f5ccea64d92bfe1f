"""Who calls is asked first: what is not let in is never read, and what is let in counts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from loragate.server.config import LimitsConfig
from support.server.small_server import Served, ServeWith, bearer, on_a_socket
from support.waiting import until

CHAT = "/v1/chat/completions"
NO_MESSAGE = b"\xff" * 64  # no protobuf message begins like this


@asynccontextmanager
async def unfinished(
    served: Served, path: str, key: str, method: str = "POST"
) -> AsyncIterator[asyncio.StreamReader]:
    """A request whose headers promise a body that never comes; yields what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.http_port)
    head = f"{method} {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {key}\r\n"
    body = "content-type: application/json\r\ncontent-length: 50000\r\n\r\n{"
    writer.write((head + body).encode())
    try:
        yield reader
    finally:
        writer.close()


async def status_of(reader: asyncio.StreamReader) -> int:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
    return int(head.split()[1])


async def call(served: Served, method: str, message: bytes, key: str) -> grpc.aio.AioRpcError:
    """How a call of these bytes is refused."""
    async with served.channel() as channel:
        metadata = (("authorization", f"Bearer {key}"),)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary(f"/loragate.v1.{method}")(message, metadata=metadata)
    return failure.value


def code_of(failure: grpc.aio.AioRpcError) -> str:
    return str(dict(failure.trailing_metadata() or ())["x-error-code"])


# ---- nothing is read for strangers


STRANGERS_OVER_HTTP = [
    (CHAT, "nobody", 401),
    ("/t/acme/v1/chat/completions", "nobody", 401),
    ("/v1/completions", "admin", 403),
    ("/t/globex/v1/completions", "acme", 404),
    ("/v1/feedback", "nobody", 401),
    ("/admin/v1/tenants", "nobody", 401),
    ("/admin/v1/tenants", "acme", 403),
]


async def test_over_http_strangers_are_refused_before_their_body_has_come(served: Served) -> None:
    keys = {**served.keys, "admin": served.admin_key, "nobody": "lg-nobody"}
    async with on_a_socket(served):
        for path, key, status in STRANGERS_OVER_HTTP:
            async with unfinished(served, path, keys[key]) as reader:
                assert (path, await status_of(reader)) == (path, status)


CALLS_WITHOUT_A_MESSAGE = [
    ("Inference/Chat", "nobody", grpc.StatusCode.UNAUTHENTICATED),
    ("Inference/ChatStream", "nobody", grpc.StatusCode.UNAUTHENTICATED),
    ("Inference/Feedback", "nobody", grpc.StatusCode.UNAUTHENTICATED),
    ("AdapterRegistry/SetAlias", "nobody", grpc.StatusCode.UNAUTHENTICATED),
    ("AdapterRegistry/SetAlias", "acme", grpc.StatusCode.PERMISSION_DENIED),
    ("Experiments/StartRollout", "acme", grpc.StatusCode.PERMISSION_DENIED),
    ("Inference/Chat", "acme", grpc.StatusCode.INVALID_ARGUMENT),
    ("AdapterRegistry/SetAlias", "admin", grpc.StatusCode.INVALID_ARGUMENT),
]


async def test_over_grpc_a_message_is_decoded_for_those_who_are_let_in_alone(
    served: Served,
) -> None:
    keys = {**served.keys, "admin": served.admin_key, "nobody": "lg-nobody"}
    async with on_a_socket(served):
        for method, key, code in CALLS_WITHOUT_A_MESSAGE:
            failure = await call(served, method, NO_MESSAGE, keys[key])
            assert (method, failure.code()) == (method, code)


async def test_a_tenant_at_its_limits_is_refused_before_its_body_has_come(
    serve_with: ServeWith,
) -> None:
    async with serve_with(limits=LimitsConfig(max_concurrent=2)) as served, on_a_socket(served):
        key = served.keys["acme"]
        async with unfinished(served, CHAT, key), unfinished(served, "/v1/feedback", key):
            await until(lambda: served.server.admission.present == 2)
            async with unfinished(served, "/v1/completions", key) as reader:
                assert await status_of(reader) == 429
            failure = await call(served, "Inference/Complete", NO_MESSAGE, key)
            assert code_of(failure) == "concurrency_limit_exceeded"
            ask = {"model": "base", "prompt": "abc"}
            assert (await served.post("/v1/completions", ask, "globex")).status_code == 200
        await until(lambda: served.server.admission.present == 0)
        assert (await served.complete()).status_code == 200


# ---- whatever arrived counts


async def test_every_request_counts_whatever_it_asks_for_and_however_it_ends(
    serve_with: ServeWith,
) -> None:
    limits = LimitsConfig(requests_per_minute=7)
    async with serve_with(limits=limits) as served, on_a_socket(served):
        auth = served.auth
        json = {**auth, "content-type": "application/json"}
        replies = [
            await served.client.post(CHAT, content=b"{", headers=json),
            await served.chat(no_such_parameter=1),
            await served.chat(model="nothing"),
            await served.post("/v1/feedback", {"request_id": "r", "metric": "thumbs", "value": 1}),
            await served.client.get("/v1/models", headers=auth),
            await served.client.get("/v1/models/support", headers=auth),
        ]
        assert [reply.status_code for reply in replies] == [400, 400, 404, 404, 200, 200]
        key = served.keys["acme"]
        assert code_of(await call(served, "Inference/Chat", NO_MESSAGE, key)) == "invalid_value"

        for path in (CHAT, "/v1/feedback"):
            reply = await served.post(path, {})
            assert reply.status_code == 429
            assert reply.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await served.client.get("/v1/models", headers=auth)).status_code == 429
        for method in ("Chat", "ListModels", "Feedback"):
            failure = await call(served, f"Inference/{method}", b"", key)
            assert code_of(failure) == "rate_limit_exceeded"
        assert (await served.post(CHAT, {}, key="globex")).status_code == 400

        text = (await served.client.get("/metrics")).text
        of = 'code="rate_limit_exceeded"'
        assert f'loragate_requests_refused_total{{{of},transport="http"}} 3.0' in text
        assert f'loragate_requests_refused_total{{{of},transport="grpc"}} 3.0' in text


async def test_who_calls_without_a_good_key_uses_up_nobodys_limit(serve_with: ServeWith) -> None:
    async with serve_with(limits=LimitsConfig(requests_per_minute=1)) as served:
        for _ in range(3):
            reply = await served.client.post(CHAT, json={}, headers=bearer("lg-nobody"))
            assert reply.status_code == 401
        assert (await served.complete()).status_code == 200


async def test_a_server_that_stops_takes_no_request_that_it_has_not_begun(served: Served) -> None:
    async with on_a_socket(served), unfinished(served, CHAT, served.keys["acme"]) as begun:
        await until(lambda: served.server.admission.present == 1)
        served.server.admission.is_draining = True
        async with unfinished(served, CHAT, served.keys["acme"]) as reader:
            assert await status_of(reader) == 503
        failure = await call(served, "Inference/Chat", NO_MESSAGE, served.keys["acme"])
        assert code_of(failure) == "draining"
        assert not begun.at_eof()

"""Connections over real sockets that do not do what clients do: each ends, and holds nobody up."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import grpc
import msgspec
import pytest

from loragate.server.config import ServerConfig
from loragate.v1 import inference_pb2 as pb
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.clients.grpc_messages import refusal
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.server.small_server import Served, ServeWith
from support.waiting import until

LIVEZ = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
SECONDS = 0.3
LONG = 20.0  # a test that waits as long has failed


def quick(**changed: object) -> ServerConfig:
    values = {
        "http": "127.0.0.1:0",
        "grpc": "127.0.0.1:0",
        "head_timeout_seconds": LONG,
        "body_timeout_seconds": LONG,
        "write_timeout_seconds": LONG,
    }
    return msgspec.convert(values | changed, ServerConfig)


@dataclass
class Line:
    """One connection to the server, byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        said = b""
        async with asyncio.timeout(LONG / 2):
            with suppress(ConnectionResetError):
                while piece := await self.reader.read(65_536):
                    said += piece
        return said

    async def answer(self) -> bytes:
        """Status line, headers and a short body of one answer."""
        async with asyncio.timeout(LONG / 2):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            return head + await self.reader.readexactly(length)


@asynccontextmanager
async def line(served: Served, receive_bytes: int = 0) -> AsyncIterator[Line]:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.setblocking(False)
    address = ("127.0.0.1", served.server.http_port)
    await asyncio.get_running_loop().sock_connect(connection, address)
    reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


def post(served: Served, body: bytes = b"", length: int | None = None, key: str = "") -> bytes:
    key = key or served.keys["acme"]
    length = len(body) if length is None else length
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n" % (key.encode(), length)
    ) + body


async def test_a_head_that_does_not_come_whole_ends_its_connection(serve_with: ServeWith) -> None:
    async def end_of(served: Served, *sent: bytes) -> bytes:
        async with line(served) as slow:
            for each in sent[:-1]:
                slow.send(each)
                assert (await slow.answer()).startswith(b"HTTP/1.1 200 ")
            slow.send(sent[-1])
            return await slow.rest()

    async with (
        serve_with(server=quick(head_timeout_seconds=SECONDS)) as served,
        served.server.listening(),
    ):
        silent, *begun = await asyncio.gather(
            end_of(served, b""),
            end_of(served, b"GET /livez HT"),
            end_of(served, LIVEZ[:-2] + b"x-a"),
            end_of(served, LIVEZ, LIVEZ[:-4]),  # the second on its connection
            end_of(served, LIVEZ, LIVEZ, LIVEZ[:4]),
        )
    assert silent == b""
    assert [said.partition(b"\r\n")[0] for said in begun] == [b"HTTP/1.1 408 Request Timeout"] * 4


async def test_a_head_that_comes_byte_by_byte_gains_no_time(serve_with: ServeWith) -> None:
    async with (
        serve_with(server=quick(head_timeout_seconds=SECONDS)) as served,
        served.server.listening(),
        line(served) as slow,
    ):
        ended = asyncio.create_task(slow.rest())
        slow.send(b"GET /livez HTTP/1.1\r\n")
        while not ended.done():
            slow.send(b"x-a: 1\r\n")
            await asyncio.sleep(SECONDS / 10)
        assert (await ended).startswith(b"HTTP/1.1 408 ")


async def test_an_answer_may_take_longer_than_a_head(serve_with: ServeWith) -> None:
    async with (
        serve_with(server=quick(head_timeout_seconds=SECONDS)) as served,
        served.server.listening(),
        line(served) as patient,
    ):
        served.engine.pace_seconds = SECONDS
        body = b'{"model":"base","max_tokens":3,"messages":[{"role":"user","content":"hi"}]}'
        patient.send(post(served, body))
        assert (await patient.answer()).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_does_not_come_whole_is_408_and_frees_its_place(
    serve_with: ServeWith,
) -> None:
    async with (
        serve_with(server=quick(body_timeout_seconds=SECONDS)) as served,
        served.server.listening(),
        line(served) as slow,
    ):
        slow.send(post(served, b'{"model":', length=500))
        said = await slow.answer()
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in said
        await until(lambda: served.server.admission.in_flight == 0)


async def test_many_bodies_that_do_not_come_whole_hold_nobody_up_and_all_end(
    serve_with: ServeWith,
) -> None:
    async def end_of(served: Served) -> bytes:
        async with line(served) as slow:
            slow.send(post(served, b'{"model":', length=500))
            return (await slow.answer()).partition(b"\r\n")[0]

    async with (
        serve_with(server=quick(body_timeout_seconds=2 * SECONDS)) as served,
        served.server.listening(),
    ):
        slow = [asyncio.create_task(end_of(served)) for _ in range(60)]
        await until(lambda: served.server.admission.present == 60)
        async with line(served) as other:
            other.send(LIVEZ)
            assert (await other.answer()).startswith(b"HTTP/1.1 200 ")
        assert set(await asyncio.gather(*slow)) == {b"HTTP/1.1 408 Request Timeout"}
        assert served.server.admission.present == 0


async def test_a_body_that_nobody_waits_for_is_dropped_for_as_long_as_a_head(
    serve_with: ServeWith,
) -> None:
    async with (
        serve_with(server=quick(head_timeout_seconds=SECONDS)) as served,
        served.server.listening(),
        line(served) as stranger,
    ):
        stranger.send(post(served, b"{", length=500, key="nobody's"))
        said = await stranger.rest()
        assert said.startswith(b"HTTP/1.1 401 ")
        assert said.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"".join(b"x-%d: 1\r\n" % i for i in range(101)), b"431"),
        (b"".join(b"x-%d: 1\r\n" % i for i in range(20_000)), b"431"),
        (b"x-long: " + b"a" * 33_000 + b"\r\n", b"431"),
        (b"x-endless: " + b"a" * 400_000, b"431"),
    ],
    ids=["many", "thousands", "long", "endless"],
)
async def test_heads_that_no_client_sends_are_refused(
    served: Served, head: bytes, status: bytes
) -> None:
    async with served.server.listening(), line(served) as bold:
        bold.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + head + b"connection: close\r\n\r\n")
        assert (await bold.answer()).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(("length", "status"), [(8000, 404), (9000, 414)])
async def test_an_address_has_a_longest(served: Served, length: int, status: int) -> None:
    path = "/v1/models/" + "a" * length
    reply = await served.client.get(path, headers=served.auth)
    assert reply.status_code == status


async def test_connections_that_ask_for_nothing_make_way_for_one_that_does(
    serve_with: ServeWith,
) -> None:
    async with (
        serve_with(server=quick(max_connections=16)) as served,
        served.server.listening(),
        line(served) as asked,
        line(served) as first,
    ):
        body = b'{"model":"base","max_tokens":2,"messages":[{"role":"user","content":"hi"}]}'
        served.engine.pace_seconds = 0.5
        asked.send(post(served, body))
        await until(lambda: bool(served.engine.running))
        idle = [
            await asyncio.open_connection("127.0.0.1", served.server.http_port) for _ in range(40)
        ]
        async with line(served) as late:
            late.send(LIVEZ)
            assert (await late.answer()).startswith(b"HTTP/1.1 200 ")
        assert await first.rest() == b""
        assert (await asked.answer()).startswith(b"HTTP/1.1 200 ")
        for _, writer in idle:
            writer.close()


class TestWithMuchToSay:
    @pytest.fixture
    def engine(self) -> EchoEngine:
        return EchoEngine(replace(TINY_MODEL, max_model_len=200_000))

    async def test_a_client_that_does_not_read_loses_its_place(
        self, serve_with: ServeWith, engine: EchoEngine
    ) -> None:
        async with (
            serve_with(server=quick(write_timeout_seconds=SECONDS)) as served,
            served.server.listening(),
            line(served, receive_bytes=4096) as deaf,
        ):
            body = {"model": "base", "stream": True, "echo": True, "n": 60, "max_tokens": 2}
            request = post(served, msgspec.json.encode({**body, "prompt": "a" * 150_000}))
            deaf.send(request.replace(b"/chat/completions", b"/completions"))
            await until(lambda: served.server.admission.in_flight == 1)
            await until(lambda: served.server.admission.in_flight == 0, LONG / 2)
            assert b"[DONE]" not in await deaf.rest()
            assert not engine.running

    async def test_a_call_that_does_not_read_its_stream_loses_its_place(
        self, serve_with: ServeWith, engine: EchoEngine
    ) -> None:
        async with (
            serve_with(server=quick(write_timeout_seconds=SECONDS)) as served,
            served.server.listening(),
            served.channel() as channel,
        ):
            request = pb.CompletionRequest(
                model="base",
                prompts=[pb.Prompt(text="a" * 150_000)],
                sampling=pb.SamplingParams(n=60, max_tokens=2),
                echo=True,
            )
            auth = (("authorization", f"Bearer {served.keys['acme']}"),)
            deaf = InferenceStub(channel).CompleteStream(request, metadata=auth)
            await deaf.read()
            assert served.server.admission.present == 1
            await until(lambda: served.server.admission.present == 0, LONG / 2)
            assert not engine.running
            with suppress(grpc.aio.AioRpcError):
                while isinstance(await deaf.read(), pb.CompletionChunk):
                    pass
            assert await deaf.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_connection_cannot_become_a_websocket(served: Served) -> None:
    async with served.server.listening(), line(served) as bold:
        bold.send(
            LIVEZ[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert not (await bold.answer()).startswith(b"HTTP/1.1 101 ")


# ---- gRPC


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def nothing() -> AsyncIterator[bytes]:
    for _ in range(0):
        yield b""


async def test_a_call_whose_message_does_not_come_is_refused_by_its_key_or_in_its_time(
    serve_with: ServeWith,
) -> None:
    async with (
        serve_with(server=quick(body_timeout_seconds=SECONDS)) as served,
        served.server.listening(),
        served.channel() as channel,
    ):
        auth = (("authorization", f"Bearer {served.keys['acme']}"),)
        chat = channel.stream_unary("/loragate.v1.Inference/Chat")
        stream = channel.stream_stream("/loragate.v1.Inference/ChatStream")
        stranger = await refusal(chat(never()))
        assert stranger.code() is grpc.StatusCode.UNAUTHENTICATED
        for slow in (chat(never(), metadata=auth), stream(never(), metadata=auth)):
            failure = await refusal(slow)
            assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert dict(failure.trailing_metadata() or ())["x-error-code"] == "request_timeout"
        silent = await refusal(chat(nothing(), metadata=auth))
        assert silent.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert served.server.admission.present == 0

"""A server whose pace is known: `python -m loadtests.pace_server TTFT_SECONDS PACE_SECONDS`.

It answers chats over HTTP and gRPC as loragate does, with the number of tokens that was asked for:
the first after the one time, the others each after the other. Moments are reckoned from the
request's arrival, so that lateness does not add up. Prints its two addresses as JSON.
"""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from loragate.v1 import inference_pb2 as pb
from loragate.v1 import inference_pb2_grpc

_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" t"},"token_ids":[1]}]}\n\n'
_DONE = b"data: [DONE]\n\n"
_CHUNK = pb.ChatChunk(choices=[pb.ChatChunkChoice(delta=pb.ChatDelta(content=" t"), token_ids=[1])])


@dataclass(frozen=True, slots=True)
class Pace:
    ttft_seconds: float
    gap_seconds: float

    async def beats(self, count: int) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        first = loop.time() + self.ttft_seconds
        for beat in range(count):
            await asyncio.sleep(first + beat * self.gap_seconds - loop.time())
            yield


def http_app(pace: Pace) -> Starlette:
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()

        async def events() -> AsyncIterator[bytes]:
            async for _ in pace.beats(body["max_tokens"]):
                yield _EVENT
            yield _DONE

        return StreamingResponse(events(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


class PacedInference(inference_pb2_grpc.InferenceServicer):
    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    async def ChatStream(  # noqa: N802 - as the .proto file names it
        self, request: pb.ChatRequest, context: object
    ) -> AsyncIterator[pb.ChatChunk]:
        async for _ in self._pace.beats(request.sampling.max_tokens):
            yield _CHUNK


async def serve(pace: Pace) -> None:
    """Serves on free ports of this machine until it is ended."""
    rpc = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(PacedInference(pace), rpc)
    rpc_port = rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    config = uvicorn.Config(http_app(pace), log_level="warning", access_log=False, lifespan="off")
    web = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio does so by itself only for sockets that it has made.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    http_port = listener.getsockname()[1]
    addresses = {"http": f"http://127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{rpc_port}"}
    print(json.dumps(addresses), flush=True)
    await web.serve([listener])
    await rpc.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(Pace(float(sys.argv[1]), float(sys.argv[2]))))

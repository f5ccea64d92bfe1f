"""Chat over gRPC server streams, under gevent: grpcio's own integration, never `grpc.aio`."""

import time
from collections.abc import Mapping

import gevent
import grpc

from loadtests.plans import Ask
from loadtests.reading import SLOW_READ_SECONDS, Arrived, Frames, Refusal, as_sample
from loadtests.records import Sample
from loadtests.target import Target
from loragate.v1 import inference_pb2 as pb

_METHOD = "/loragate.v1.Inference/ChatStream"
_TURNED_AWAY = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")


class GrpcClient:
    """Makes calls on one channel; `grpc.experimental.gevent.init_gevent` has been called before."""

    def __init__(self, target: Target, timeout_seconds: float) -> None:
        self._target = target
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(target.grpc)
        # Without a deserializer: bytes are parsed after the stream, as they are over HTTP.
        self._call = self._channel.unary_stream(
            _METHOD, request_serializer=pb.ChatRequest.SerializeToString
        )

    def ask(self, ask: Ask, origin: float) -> Sample:
        """Makes one call and reads its answer as `ask.client` would."""
        request = _request(ask)
        metadata = (("authorization", f"Bearer {self._target.key_of(ask.tenant)}"),)
        arrived = Arrived(sent=time.perf_counter())
        call = self._call(request, timeout=self._timeout_seconds, metadata=metadata)
        leaving = (
            None if ask.client == "stays" else gevent.spawn_later(ask.patience_seconds, call.cancel)
        )
        try:
            for piece in call:
                arrived.note(piece)
                if ask.client == "lingers":
                    gevent.sleep(SLOW_READ_SECONDS)
            arrived.headers = _texts(call.initial_metadata())
            arrived.status = "OK"
        except grpc.RpcError:
            arrived.status = call.code().name
            arrived.has_left = leaving is not None and arrived.status == "CANCELLED"
            trailers = _texts(call.trailing_metadata())
            arrived.headers = {**_texts(call.initial_metadata()), **trailers}
            arrived.is_unreachable = _is_unreachable(arrived)
            arrived.error = call.details() or ""
        finally:
            if leaving is not None:
                leaving.kill()
            call.cancel()  # where this greenlet was killed; nothing where the call has ended
        arrived.ended = time.perf_counter()
        return as_sample(ask, origin, arrived, _frames(arrived), _refusal(arrived))

    def close(self) -> None:
        self._channel.close()


def _request(ask: Ask) -> pb.ChatRequest:
    sampling = pb.SamplingParams(max_tokens=ask.output_tokens, temperature=0.0, ignore_eos=True)
    if ask.client == "lingers":
        sampling.logprobs, sampling.top_logprobs = True, 5
    return pb.ChatRequest(
        model=ask.model,
        messages=[pb.Message(role="user", content=ask.prompt)],
        sampling=sampling,
        options=pb.Options(include_usage=True, return_token_ids=True),
    )


def _frames(arrived: Arrived) -> Frames:
    frames = Frames(is_whole=arrived.status == "OK")
    for at, piece in arrived.pieces:
        chunk = pb.ChatChunk.FromString(piece)
        if tokens := sum(len(choice.token_ids) for choice in chunk.choices):
            frames.add(at, tokens)
        if chunk.HasField("usage"):
            frames.prompt_tokens = chunk.usage.prompt_tokens
    return frames


def _refusal(arrived: Arrived) -> Refusal | None:
    """Proper: a status that clients retry on or not by its trailers, and a code."""
    if arrived.status == "OK":
        return None
    after = arrived.headers.get("retry-after-ms")
    code = arrived.headers.get("x-error-code", "")
    is_proper = arrived.status in _TURNED_AWAY and bool(code) and not arrived.pieces
    return Refusal(code, float(after) / 1000 if after else None, is_proper)


def _is_unreachable(arrived: Arrived) -> bool:
    """UNAVAILABLE without our trailer comes from the channel: nobody listens there."""
    is_ours = "x-error-code" in arrived.headers
    return arrived.status == "UNAVAILABLE" and not is_ours and not arrived.pieces


def _texts(metadata: object) -> Mapping[str, str]:
    pairs = metadata if isinstance(metadata, tuple) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}

"""The gRPC transport: `loragate.v1.Inference` over the gateway, and the server that carries it.

Each method converts, calls the gateway and converts back; `calls.answering` does what all of
them share. Streams are written, not yielded: a cancellation then always arrives inside the method,
whose contexts close the request at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import msgspec
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from loragate.server.admin.administration import Administration
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import ChatRequest, CompletionRequest
from loragate.server.errors import InvalidRequest
from loragate.server.experiments.feedback import Feedback
from loragate.server.gateway.bounds import MOST_PROMPT_TOKENS, SMALL_MESSAGE, check_count
from loragate.server.gateway.choices import collect, has_many_scores
from loragate.server.gateway.routing import ModelCard
from loragate.server.gateway.services import TenantServices
from loragate.server.rpc import encode
from loragate.server.rpc.calls import AdminCalls, GuardingInterceptor, InferenceCalls, announce
from loragate.server.rpc.decode import chat_request, completion_request
from loragate.server.rpc.experiments import ExperimentsService
from loragate.server.rpc.registry import RegistryService
from loragate.server.rpc.writing import writing
from loragate.v1 import (
    experiments_pb2,
    experiments_pb2_grpc,
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)
from loragate.v1 import inference_pb2 as pb

INFERENCE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
REGISTRY = registry_pb2.DESCRIPTOR.services_by_name["AdapterRegistry"].full_name
EXPERIMENTS = experiments_pb2.DESCRIPTOR.services_by_name["Experiments"].full_name
SERVICES = INFERENCE, REGISTRY, EXPERIMENTS


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Chat, completions and models for tenants. `InferenceCalls` stands around each method."""

    def __init__(
        self,
        services: TenantServices,
        calls: InferenceCalls,
        threads: FairThreads,
        write_seconds: float,
    ) -> None:
        self._gateway = services.gateway
        self._models = services.models
        self._feedback = services.feedback
        self._calls = calls
        self._threads = threads
        self._write_seconds = write_seconds

    async def Chat(
        self,
        request: pb.ChatRequest,
        context: grpc.aio.ServicerContext[pb.ChatRequest, pb.ChatResponse],
    ) -> pb.ChatResponse:
        arrival = self._calls.arrival(context)
        asked = await self._threads.do(
            arrival.tenant, _is_large(request), chat_request, request, stream=False
        )
        async with self._gateway.generate(asked, arrival) as generation:
            await announce(context, arrival.caller, generation.route)
            choices = await collect(generation)
            return await self._threads.do(
                arrival.tenant,
                any(map(has_many_scores, choices)),
                encode.chat_response,
                generation,
                choices,
            )

    async def ChatStream(
        self,
        request: pb.ChatRequest,
        context: grpc.aio.ServicerContext[pb.ChatRequest, pb.ChatChunk],
    ) -> None:
        arrival = self._calls.arrival(context)
        asked = await self._threads.do(
            arrival.tenant, _is_large(request), chat_request, request, stream=True
        )
        async with (
            self._gateway.generate(asked, arrival) as generation,
            writing(context, self._write_seconds) as write,
        ):
            await announce(context, arrival.caller, generation.route)
            chunks = encode.ChatChunks(generation)
            async for delta in generation.deltas:
                is_large = has_many_scores(delta)
                chunk = await self._threads.do(arrival.tenant, is_large, chunks.chunk, delta)
                if chunk is not None:
                    await write(chunk)
            if (last := chunks.last()) is not None:
                await write(last)

    async def Complete(
        self,
        request: pb.CompletionRequest,
        context: grpc.aio.ServicerContext[pb.CompletionRequest, pb.CompletionResponse],
    ) -> pb.CompletionResponse:
        arrival = self._calls.arrival(context)
        asked = await self._threads.do(
            arrival.tenant, _is_large(request), completion_request, request, stream=False
        )
        async with self._gateway.generate(asked, arrival) as generation:
            await announce(context, arrival.caller, generation.route)
            choices = await collect(generation)
            return await self._threads.do(
                arrival.tenant,
                any(map(has_many_scores, choices)),
                encode.completion_response,
                generation,
                choices,
            )

    async def CompleteStream(
        self,
        request: pb.CompletionRequest,
        context: grpc.aio.ServicerContext[pb.CompletionRequest, pb.CompletionChunk],
    ) -> None:
        arrival = self._calls.arrival(context)
        asked = await self._threads.do(
            arrival.tenant, _is_large(request), completion_request, request, stream=True
        )
        async with (
            self._gateway.generate(asked, arrival) as generation,
            writing(context, self._write_seconds) as write,
        ):
            await announce(context, arrival.caller, generation.route)
            chunks = encode.CompletionChunks(generation)
            async for delta in generation.deltas:
                is_large = has_many_scores(delta)
                chunk = await self._threads.do(arrival.tenant, is_large, chunks.chunk, delta)
                if chunk is not None:
                    await write(chunk)
            if (last := chunks.last()) is not None:
                await write(last)

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        arrival = self._calls.arrival(context)
        return await self._models.view(arrival, _list_of_models)

    async def GetModel(
        self,
        request: pb.GetModelRequest,
        context: grpc.aio.ServicerContext[pb.GetModelRequest, pb.GetModelResponse],
    ) -> pb.GetModelResponse:
        arrival = self._calls.arrival(context)
        card = self._models.get(request.model, arrival)
        return pb.GetModelResponse(model=encode.model(card))

    async def Tokenize(
        self,
        request: pb.TokenizeRequest,
        context: grpc.aio.ServicerContext[pb.TokenizeRequest, pb.TokenizeResponse],
    ) -> pb.TokenizeResponse:
        arrival = self._calls.arrival(context)
        is_large = _is_large(request)
        asked = await self._threads.do(arrival.tenant, is_large, _to_tokenize, request)
        tokens = await self._gateway.tokenize(asked, arrival, strings=request.return_token_strs)
        fields = msgspec.structs.asdict(tokens)
        return await self._threads.do(arrival.tenant, is_large, pb.TokenizeResponse, **fields)

    async def Detokenize(
        self,
        request: pb.DetokenizeRequest,
        context: grpc.aio.ServicerContext[pb.DetokenizeRequest, pb.DetokenizeResponse],
    ) -> pb.DetokenizeResponse:
        arrival = self._calls.arrival(context)
        check_count("tokens", len(request.tokens), MOST_PROMPT_TOKENS)
        text = await self._gateway.detokenize(request.model, request.tokens, arrival)
        return pb.DetokenizeResponse(prompt=text)

    async def Feedback(
        self,
        request: pb.FeedbackRequest,
        context: grpc.aio.ServicerContext[pb.FeedbackRequest, pb.FeedbackResponse],
    ) -> pb.FeedbackResponse:
        arrival = self._calls.arrival(context)
        value = request.value if request.HasField("value") else None
        said = Feedback(request.request_id, request.metric, value, request.comment)
        return pb.FeedbackResponse(is_new=await self._feedback.give(arrival.tenant, said))


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """Bounds in bytes: of one message, and of all files of a published adapter together; and the
    seconds in which a message has to come, and a piece of an answer to be read.
    """

    max_message_bytes: int
    max_adapter_bytes: int
    message_seconds: float
    write_seconds: float


class GrpcServer:
    """`grpc.aio`'s server with all services on it. Health says NOT_SERVING until told otherwise."""

    def __init__(
        self,
        server: grpc.aio.Server,
        health_service: health.aio.HealthServicer,  # pyright: ignore[reportAttributeAccessIssue]
        registry_service: RegistryService,
    ) -> None:
        self._server = server
        self._health = health_service
        self._registry_service = registry_service

    async def start(self, address: str) -> int:
        """Listens on `HOST:PORT`, of which 0 is any free port, and returns the port.

        Raises RuntimeError where the address is taken or is none.
        """
        port = self._server.add_insecure_port(address)
        await self.set_serving(False)
        await self._server.start()
        return port

    async def set_serving(self, is_serving: bool) -> None:
        """What health says from now on, of the whole server and of each service."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if is_serving else states.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, state)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls and lets those under way finish; cancels what is left at the end.

        Watches of the registry end at once. Watches of health never do, so with one of those this
        takes the whole grace time: let requests finish before, and be short here.
        """
        await self.set_serving(False)
        self._registry_service.end_watches()
        await self._server.stop(grace_seconds)


def build_server(
    services: TenantServices,
    administration: Administration,
    *,
    admin_key: str,
    is_tenant_key: Callable[[str], bool],
    options: GrpcOptions,
    threads: FairThreads,
) -> GrpcServer:
    """Call it in the event loop that will serve."""
    tenants_calls = InferenceCalls(services.arrivals)
    calls = AdminCalls(admin_key, is_tenant_key)
    guards = {
        INFERENCE: tenants_calls.answering,
        REGISTRY: calls.answering,
        EXPERIMENTS: calls.answering,
    }
    guarding = GuardingInterceptor(guards, threads, options.message_seconds)
    server = grpc.aio.server(interceptors=[guarding], options=_channel_options(options))
    inference = InferenceService(services, tenants_calls, threads, options.write_seconds)
    inference_pb2_grpc.add_InferenceServicer_to_server(inference, server)
    registry_service = RegistryService(administration, calls, options.max_adapter_bytes)
    registry_pb2_grpc.add_AdapterRegistryServicer_to_server(registry_service, server)
    experiments = ExperimentsService(administration, calls)
    experiments_pb2_grpc.add_ExperimentsServicer_to_server(experiments, server)
    health_service = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return GrpcServer(server, health_service, registry_service)


def _list_of_models(cards: Sequence[ModelCard]) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(models=map(encode.model, cards))


def _to_tokenize(wire: pb.TokenizeRequest) -> ChatRequest | CompletionRequest:
    kind = wire.WhichOneof("request")
    if kind is None:
        raise InvalidRequest("Set either 'chat' or 'completion'.", param="request")
    convert = chat_request if kind == "chat" else completion_request
    return convert(getattr(wire, kind), stream=False)


def _is_large(message: Message) -> bool:
    return message.ByteSize() > SMALL_MESSAGE


def _channel_options(options: GrpcOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        # A second server on the same port is an error, not a silent sharing of its calls.
        ("grpc.so_reuseport", 0),
        # Clients may ping during a long silent decode; gRPC's default is to hang up on them.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # What a client may hold without a key: a handshake, headers, calls on one connection.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_metadata_size", 16_384),
        ("grpc.absolute_max_metadata_size", 32_768),
        ("grpc.max_concurrent_streams", 1024),
        # A connection whose client is gone, or that carries no call, is closed.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 300_000),
    ]

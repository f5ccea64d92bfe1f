"""Every failure has one status, told the same way, whatever method it happens in."""

import logging
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from loragate.adapters import errors as registry
from loragate.adapters.child_process.process import ChildUnavailable
from loragate.server import errors
from loragate.server.core import Caller, Route
from loragate.server.rpc.calls import announce, answering
from loragate.server.wire.statuses import TABLE, describe

REGISTRY_ERRORS: list[Exception] = [
    registry.InvalidName("tenant", "Acme", "use lower case"),
    registry.BaseModelName("adapter", "tiny", "choose another"),
    registry.InvalidLimits("max_concurrent", -1),
    registry.InvalidAdapter("pickle_file", "pickles are refused"),
    registry.TenantNotFound("acme"),
    registry.AdapterNotFound("acme", "support"),
    registry.VersionNotFound("acme", "support", "v9"),
    registry.AliasNotFound("acme", "support", "champion"),
    registry.KeyNotFound("lg-abcd"),
    registry.TenantExists("acme"),
    registry.VersionRetired("acme", "support", "v1"),
    registry.VersionInUse("acme", "support", "v1", ("champion",)),
    registry.NothingToRollBack("acme", "support", "v1"),
    registry.AliasNotServing("acme", "support", "champion", "v1", "LOADING"),
    registry.VersionFailed("acme", "support", "v1", "it has no effect"),
    registry.VersionNotReady("acme", "support", "v1", "LOADING"),
    registry.AliasMovedOn("acme", "support", "champion", "v1", "v2"),
    registry.IllegalMove("RETIRED", "READY", ()),
    registry.NotMerged("acme/support@v1 has no merged model"),
    registry.NotServedMerged("acme", "support", "v1"),
    registry.MergedInUse("acme", "support", "v1", ("alias champion",)),
    registry.VersionHeld("acme", "support", "v1", "rollout 3"),
    registry.TrialUnderWay("acme", "support", "rollout 3"),
    registry.TrialMovedOn("rollout 3", "running", "paused"),
    registry.TrialNotFound(3),
    registry.RequestNotFound("acme", "request-1"),
    registry.FeedbackGiven("request-1", "thumbs"),
    registry.StoreError("the disk is full"),
    registry.InvalidRecord("what cannot be kept"),
    registry.InvalidCursor("nowhere"),
    ChildUnavailable("the child process does not start"),
]
REQUEST_ERRORS: list[Exception] = [
    kind("what is wrong") for kind in TABLE if issubclass(kind, errors.RequestError)
]


class Failing:
    """A method that fails as it is told to, or answers with who called."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.callers: list[Caller] = []

    async def call(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        async with answering(context) as caller:
            self.callers.append(caller)
            if self.error is not None:
                raise self.error
            await announce(context, caller, Route("acme"))
            return request

    async def fail_late(
        self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        async with answering(context) as caller:
            await announce(context, caller, Route("acme"))
            await context.write(b"a piece")
            raise errors.EngineDead("the engine has died", retry_after_seconds=5)


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest_asyncio.fixture
async def channel(failing: Failing) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    methods = {
        "Call": grpc.unary_unary_rpc_method_handler(failing.call),
        "FailLate": grpc.unary_stream_rpc_method_handler(failing.fail_late),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def fail(
    channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()
) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/t.Test/Call")(b"", metadata=metadata)
    return failure.value


def trailers(failure: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    return dict(failure.trailing_metadata())


@pytest.mark.parametrize(
    "error", [*REQUEST_ERRORS, *REGISTRY_ERRORS], ids=lambda error: type(error).__name__
)
async def test_each_error_has_the_status_code_and_text_of_the_table(
    failing: Failing, channel: grpc.aio.Channel, error: Exception
) -> None:
    failing.error = error
    failure = await fail(channel)
    expected = describe(error)
    assert failure.code() is expected.status.grpc_code
    assert failure.details() == expected.message
    assert trailers(failure)["x-error-code"] == expected.code


async def test_the_errors_above_are_the_whole_table() -> None:
    tried = {type(error) for error in (*REQUEST_ERRORS, *REGISTRY_ERRORS)}
    assert tried == set(TABLE)


async def test_an_unknown_error_is_logged_by_request_id_and_tells_nothing(
    failing: Failing, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    failing.error = KeyError("the secret of acme")
    with caplog.at_level(logging.ERROR):
        failure = await fail(channel, (("x-request-id", "mine-1"),))
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in f"{failure.details()}{trailers(failure)}"
    assert trailers(failure)["x-request-id"] == "mine-1"
    (record,) = caplog.records
    assert record.__dict__["request_id"] == "mine-1"
    assert record.exc_info is not None


async def test_a_retry_hint_comes_as_milliseconds_and_as_retry_info(
    failing: Failing, channel: grpc.aio.Channel
) -> None:
    failing.error = errors.RateLimited("wait a little", retry_after_seconds=1.5)
    failure = await fail(channel)
    assert trailers(failure)["retry-after-ms"] == "1500"
    status = rpc_status.from_call(failure)  # pyright: ignore[reportArgumentType]  # written for sync calls, reads only what both have
    assert status is not None
    hint = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(hint)
    assert hint.retry_delay.ToMilliseconds() == 1500


async def test_without_a_hint_there_is_no_word_of_trying_again(
    failing: Failing, channel: grpc.aio.Channel
) -> None:
    failing.error = errors.RequestExceedsLimit("never")
    failure = await fail(channel)
    assert "retry-after-ms" not in trailers(failure)


async def test_the_field_at_fault_is_named(failing: Failing, channel: grpc.aio.Channel) -> None:
    failing.error = errors.InvalidRequest("n is too high", param="n")
    failure = await fail(channel)
    assert trailers(failure)["x-error-param"] == "n"


async def test_a_long_text_from_the_client_does_not_burst_the_trailers(
    failing: Failing, channel: grpc.aio.Channel
) -> None:
    failing.error = errors.ModelNotFound("ü€😀\ud800" * 20_000, param="ü", retry_after_seconds=1)
    failure = await fail(channel)
    assert failure.code() is grpc.StatusCode.NOT_FOUND
    assert trailers(failure)["x-error-code"] == "model_not_found"


async def test_an_error_after_the_first_piece_ends_the_stream_with_its_status(
    channel: grpc.aio.Channel,
) -> None:
    call = channel.unary_stream("/t.Test/FailLate")(b"")
    pieces: list[bytes] = []

    async def read() -> None:
        async for piece in call:
            pieces.append(piece)

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await read()
    assert pieces == [b"a piece"]
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert trailers(failure.value)["x-loragate-adapter"] == "base"
    assert trailers(failure.value)["x-error-code"] == "engine_dead"


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ((("authorization", "Bearer k1"),), "k1"),
        ((("authorization", "bearer  k1 "),), "k1"),
        ((("x-api-key", "k2"),), "k2"),
        ((("authorization", "Bearer k1"), ("x-api-key", "k1")), "k1"),
        ((("api-key", "k2"),), "k2"),
        ((("authorization", "Basic k1"), ("x-api-key", "k2")), "k2"),
        ((("authorization", "Bearer"),), None),
        ((), None),
    ],
)
async def test_the_key_comes_as_a_bearer_or_as_x_api_key(
    failing: Failing,
    channel: grpc.aio.Channel,
    metadata: tuple[tuple[str, str], ...],
    key: str | None,
) -> None:
    await channel.unary_unary("/t.Test/Call")(b"", metadata=metadata)
    assert failing.callers[0].api_key == key


@pytest.mark.parametrize(("sent", "kept"), [("a.B-9_", True), ("x" * 129, False), ("a b", False)])
async def test_a_request_id_is_kept_where_it_is_plain_and_made_where_not(
    failing: Failing, channel: grpc.aio.Channel, sent: str, kept: bool
) -> None:
    call = channel.unary_unary("/t.Test/Call")(b"", metadata=(("x-request-id", sent),))
    await call
    echoed = dict(await call.initial_metadata())["x-request-id"]
    assert echoed == dict(await call.trailing_metadata())["x-request-id"]
    assert (echoed == sent) is kept
    assert kept or str(echoed).startswith("req-")


async def test_the_tenant_of_an_endpoint_comes_as_metadata(
    failing: Failing, channel: grpc.aio.Channel
) -> None:
    await channel.unary_unary("/t.Test/Call")(b"", metadata=(("x-loragate-tenant", "acme"),))
    assert failing.callers[0].tenant == "acme"
    assert failing.callers[0].transport == "grpc"

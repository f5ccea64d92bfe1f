"""Feedback over HTTP and gRPC: whose it is, how often it counts, what is refused."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import pytest
import pytest_asyncio

from loragate.adapters.errors import RequestNotFound
from loragate.adapters.registry.trial_records import FeedbackRow
from loragate.server.errors import Overloaded
from loragate.server.experiments.feedback import Feedback, FeedbackService
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.experiments.trial_router import TrialRouter
from loragate.v1 import inference_pb2 as pb
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.clients.grpc_messages import refusal
from support.server.small_server import Served
from support.waiting import until


@dataclass(frozen=True)
class Said:
    """What came back: `new`, `known`, or an error's code."""

    answer: str
    words: str = ""


Say = Callable[..., Awaitable[Said]]


@pytest_asyncio.fixture(params=["http", "grpc"])
async def say(request: pytest.FixtureRequest, served: Served) -> AsyncIterator[Say]:
    async def over_http(
        request_id: str,
        metric: str,
        value: float | None = None,
        comment: str = "",
        key: str = "acme",
    ) -> Said:
        body = {"request_id": request_id, "metric": metric, "value": value, "comment": comment}
        reply = (await served.post("/v1/feedback", body, key)).json()
        if "error" in reply:
            return Said(reply["error"]["code"], reply["error"]["message"])
        return Said("new" if reply["is_new"] else "known")

    if request.param == "http":
        yield over_http
        return

    async with served.server.listening(), served.channel() as channel:

        async def over_grpc(
            request_id: str,
            metric: str,
            value: float | None = None,
            comment: str = "",
            key: str = "acme",
        ) -> Said:
            message = pb.FeedbackRequest(
                request_id=request_id, metric=metric, value=value, comment=comment
            )
            metadata = (("authorization", f"Bearer {served.keys[key]}"),)
            call = InferenceStub(channel).Feedback(message, metadata=metadata)
            if await call.code() is grpc.StatusCode.OK:
                return Said("new" if (await call).is_new else "known")
            failure = await refusal(call)
            trailers = dict(failure.trailing_metadata() or ())
            return Said(str(trailers["x-error-code"]), failure.details() or "")

        yield over_grpc


async def answered(served: Served) -> str:
    return (await served.chat("hi", max_tokens=1)).headers["x-request-id"]


async def test_feedback_of_a_fresh_answer_is_taken_and_counts_once(
    served: Served, say: Say
) -> None:
    request_id = await answered(served)

    assert (await say(request_id, "rating", 4)).answer == "new"
    assert (await say(request_id, "rating", 4)).answer == "known"
    assert (await say(request_id, "rating", 5)).answer == "feedback_given"
    assert (await say(request_id, "thumbs", 1, "quick")).answer == "new"
    assert (await say(request_id, "comment", None, "but wrong")).answer == "new"


async def test_another_tenants_request_is_not_found_like_one_that_never_was(
    served: Served, say: Say
) -> None:
    request_id = await answered(served)

    theirs = await say(request_id, "rating", 1, key="globex")
    nobodys = await say("req-nobodys", "rating", 1, key="globex")

    assert theirs.answer == nobodys.answer == "request_not_found"
    assert theirs.words.replace(request_id, "") == nobodys.words.replace("req-nobodys", "")
    assert (await say(request_id, "rating", 5)).answer == "new"


@pytest.mark.parametrize(
    ("metric", "value", "comment", "problem"),
    [
        ("charm", 1, "", "no feedback 'charm'"),
        ("ttft", 1, "", "no feedback 'ttft'"),
        ("rating", 6, "", "from 1 to 5"),
        ("thumbs", 0.5, "", "0 or 1"),
        ("rating", None, "", "from 1 to 5"),
        ("comment", None, "", "has a text"),
    ],
)
async def test_feedback_that_says_nothing_clear_is_refused(
    served: Served, say: Say, metric: str, value: float | None, comment: str, problem: str
) -> None:
    refused = await say(await answered(served), metric, value, comment)
    assert refused.answer == "invalid_value"
    assert problem in refused.words


@dataclass
class SlowLedger:
    """Knows no request, and says so when it is let go."""

    go: threading.Event = field(default_factory=threading.Event)

    def add_feedback(self, row: FeedbackRow) -> FeedbackRow | None:
        self.go.wait(10)
        raise RequestNotFound(row.tenant, row.request_id)


async def test_feedback_on_requests_that_never_were_costs_few_writes_and_its_tenant_alone(
    served: Served,
) -> None:
    ledger, writes = SlowLedger(), Counter[str]()

    async def flush() -> None:
        writes["flushes"] += 1

    trial_router = TrialRouter(ObservationLog(served.registry.observations), lambda version: True)
    feedback_service = FeedbackService(ledger, trial_router, [flush])

    async def give(tenant: str) -> str:
        try:
            await feedback_service.give(tenant, Feedback("req-nobodys", "thumbs", 1.0))
        except (RequestNotFound, Overloaded) as error:
            return type(error).__name__
        return "taken"

    giving = [asyncio.create_task(give("acme")) for _ in range(40)]
    other = asyncio.create_task(give("globex"))
    await until(lambda: sum(task.done() for task in giving) == 24, 10)
    assert not other.done()  # it is taken, and waits for the ledger as the first sixteen do
    ledger.go.set()
    said = Counter(await asyncio.gather(*giving))
    assert said == {"RequestNotFound": 16, "Overloaded": 24}
    assert await other == "RequestNotFound"
    assert writes["flushes"] <= 3

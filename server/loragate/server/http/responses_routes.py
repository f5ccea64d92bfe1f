"""`/v1/responses`: the routes of OpenAI's Responses API, which keeps nothing here."""

from functools import partial

from fastapi import APIRouter, Request, Response

from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.errors import RouteNotFound
from loragate.server.gateway.gateway import Gateway
from loragate.server.http.generation import GenerationResponse
from loragate.server.http.guarded_routes import arrival_of
from loragate.server.http.responses_answers import ResponsesWriter
from loragate.server.http.responses_requests import NOTHING_STORED, ResponsesBody, reworded


def add_responses(router: APIRouter, gateway: Gateway, threads: FairThreads) -> None:
    """To a router of which each route is guarded."""

    @router.post("/responses", summary="Answer a conversation of items")
    async def create_response(body: ResponsesBody, request: Request) -> Response:
        arrival, is_large = arrival_of(request), request.state.is_large
        asked, echo = await threads.do(arrival.tenant, is_large, body.to_core)
        return GenerationResponse(
            gateway, asked, arrival, threads, partial(ResponsesWriter, echo=echo), reworded
        )

    @router.get("/responses/{response_id:path}", summary="Refused: no response is kept")
    @router.post("/responses/{response_id:path}", include_in_schema=False)
    @router.delete("/responses/{response_id:path}", include_in_schema=False)
    async def stored_response(response_id: str) -> Response:
        raise RouteNotFound(
            f"{NOTHING_STORED}, so there is none to fetch, cancel or delete; keep what "
            "/v1/responses answers, and send it back as input."
        )

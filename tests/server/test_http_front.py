"""What stands before the routes: keys in several headers, browsers, HEAD, and slashes."""

import grpc
import pytest

from loragate.server.config import ServerConfig
from loragate.v1 import inference_pb2 as pb
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.clients.grpc_messages import refusal
from support.server.small_server import Served, ServeWith, bearer, on_a_socket

CHAT = "/v1/chat/completions"
BODY = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
PAGE = "https://chat.example.org"
KEY_HEADERS = ["authorization", "x-api-key", "api-key"]


def header(name: str, key: str) -> tuple[str, str]:
    return name, f"Bearer {key}" if name == "authorization" else key


# ---- keys


@pytest.mark.parametrize("name", KEY_HEADERS)
async def test_a_key_may_come_in_any_of_three_headers(served: Served, name: str) -> None:
    for key, status in ((served.keys["acme"], 200), ("lg-nobody", 401)):
        reply = await served.client.post(CHAT, json=BODY, headers=[header(name, key)])
        assert reply.status_code == status, reply.text
    for key, status in ((served.admin_key, 200), (served.keys["acme"], 403)):
        headers = [header(name, key)]
        reply = await served.client.get("/admin/v1/tenants", headers=headers)
        assert reply.status_code == status, reply.text


@pytest.mark.parametrize("names", [KEY_HEADERS, KEY_HEADERS[:2], ["x-api-key", "x-api-key"]])
async def test_one_key_said_twice_is_one_and_two_keys_are_none(
    served: Served, names: list[str]
) -> None:
    acme, globex = (served.keys[tenant] for tenant in ("acme", "globex"))
    same = [header(name, acme) for name in names]
    assert (await served.client.post(CHAT, json=BODY, headers=same)).status_code == 200
    for headers in ([*same[:-1], header(names[-1], globex)], [*same[:-1], header(names[-1], "x")]):
        reply = await served.client.post(CHAT, json=BODY, headers=headers)
        assert reply.status_code == 401
        assert "Two different keys" in reply.json()["error"]["message"]


async def test_the_same_holds_over_grpc(served: Served) -> None:
    request = pb.ListModelsRequest()
    acme = served.keys["acme"]
    async with on_a_socket(served), served.channel() as channel:
        stub = InferenceStub(channel)
        for name in KEY_HEADERS:
            assert (await stub.ListModels(request, metadata=(header(name, acme),))).models
        both = (header("authorization", acme), header("api-key", served.keys["globex"]))
        failure = await refusal(stub.ListModels(request, metadata=both))
    assert failure.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "Two different keys" in (failure.details() or "")


async def test_cards_say_the_same_over_grpc(served: Served) -> None:
    async with on_a_socket(served) as client, served.channel() as channel:
        stub = InferenceStub(channel)
        metadata = (header("authorization", served.keys["acme"]),)
        listed = (await client.get("/v1/models")).json()["data"]
        cards = (await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)).models
    for said, card in zip(listed, cards, strict=True):
        for field in ("id", "root", "max_model_len", "adapter", "owned_by"):
            assert said[field] == getattr(card, field)


# ---- browsers


async def test_browsers_are_let_in_from_nowhere_unless_it_is_said(served: Served) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    reply = await served.client.options(CHAT, headers=asked)
    assert reply.status_code == 405
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("said", ["*", f" {PAGE}, https://b.example", (PAGE,)])
async def test_a_page_of_an_allowed_origin_may_call_and_asks_first_without_a_key(
    serve_with: ServeWith, said: str | tuple[str, ...]
) -> None:
    async with serve_with(server=ServerConfig(cors_origins=said)) as served:
        asked = {
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        }
        before = await served.client.options(CHAT, headers=asked)
        assert before.status_code == 200
        allowed = before.headers["access-control-allow-headers"].lower()
        assert {"authorization", "x-stainless-os"} <= {each.strip() for each in allowed.split(",")}
        assert served.engine.seen == []
        for key, status in ((served.keys["acme"], 200), ("lg-nobody", 401)):
            headers = {"origin": PAGE, **bearer(key)}
            for body in (BODY, {**BODY, "stream": True}):
                reply = await served.client.post(CHAT, json=body, headers=headers)
                assert reply.status_code == status
                assert reply.headers["access-control-allow-origin"] in (PAGE, "*")
                assert reply.headers["access-control-expose-headers"] == "*"


async def test_a_page_of_another_origin_may_not(serve_with: ServeWith) -> None:
    async with serve_with(server=ServerConfig(cors_origins=(PAGE,))) as served:
        headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        assert (await served.client.options(CHAT, headers=headers)).status_code == 400
        reply = await served.client.get("/livez", headers=headers)
        assert "access-control-allow-origin" not in reply.headers


# ---- HEAD and slashes


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/v1/models", "/metrics", "/docs"]
)
async def test_a_head_is_what_a_get_would_be_without_its_body(served: Served, path: str) -> None:
    async with on_a_socket(served) as client:
        got, head = await client.get(path), await client.head(path)
        assert head.status_code == got.status_code == 200
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
        assert (await client.head(CHAT)).status_code == 405
        nobody = await client.head("/v1/models", headers={"authorization": ""})
        assert nobody.status_code == 401


@pytest.mark.parametrize("slashes", ["/", "//"])
async def test_a_slash_at_the_end_leads_to_no_other_place(served: Served, slashes: str) -> None:
    reply = await served.post(f"{CHAT}{slashes}", BODY)
    assert reply.status_code == 200
    for path in ("/v1/models", "/v1/models/support", "/livez"):
        got = await served.client.get(f"{path}{slashes}", headers=served.auth)
        assert got.json() == (await served.client.get(path, headers=served.auth)).json()
    assert (await served.client.get("/v1/nothing/", headers=served.auth)).status_code == 404

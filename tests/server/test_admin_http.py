"""`/admin/v1` on a real registry."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.files import inspect
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.merged_states import MergedState
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.admin.administration import Administration
from support.models.one_layer import write_adapter
from support.registry.promotions import let_serve
from support.server.admin_app import ADMIN_KEY, MAX_ADAPTER_BYTES, build_app

SUPPORT = "/tenants/acme/adapters/support"


@pytest.fixture
def registry(tmp_path: Path, empty_registry: Path) -> Iterator[Registry]:
    path = shutil.copy(empty_registry, tmp_path)
    with Registry(f"sqlite:///{path}", ArtifactStore(tmp_path / "artifacts")) as opened:
        yield opened


@pytest.fixture
def incoming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where received files lie until they are published."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
async def admin(registry: Registry, incoming: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(build_app(registry)),
        base_url="http://test/admin/v1",
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
    ) as client:
        yield client


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def files_of(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]


async def publish(admin: httpx.AsyncClient, folder: Path) -> httpx.Response:
    return await admin.post(f"{SUPPORT}/versions", files=files_of(folder))


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_tenant_lives_from_creation_to_deletion(admin: httpx.AsyncClient) -> None:
    created = await admin.post("/tenants", json={"tenant": "acme"})
    assert created.status_code == 201
    assert created.json()["tenant"] == "acme"
    assert created.json()["key"].startswith(created.json()["id"] + "-")

    assert [tenant["tenant"] for tenant in (await admin.get("/tenants")).json()] == ["acme"]

    assert (await admin.delete("/tenants/acme")).status_code == 204
    assert (await admin.get("/tenants")).json() == []
    assert code_of(await admin.delete("/tenants/acme")) == (404, "tenant_not_found")
    again = await admin.post("/tenants", json={"tenant": "acme"})
    assert code_of(again) == (409, "tenant_exists")


async def test_limits_change_one_by_one(admin: httpx.AsyncClient) -> None:
    limits = {"requests_per_minute": 60, "max_concurrent": 4}
    await admin.post("/tenants", json={"tenant": "acme", "limits": limits})

    change = {"limits": {"tokens_per_minute": 1000, "max_concurrent": None}}
    changed = await admin.patch("/tenants/acme", json=change)

    assert changed.json()["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "max_concurrent": None,
    }
    unknown = await admin.patch("/tenants/globex", json=change)
    assert code_of(unknown) == (404, "tenant_not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tenant": "acme", "limit": {}}, "limit"),
        ({"tenant": "acme", "limits": {"requests_per_hour": 1}}, "requests_per_hour"),
        ({"tenant": "acme", "limits": {"max_concurrent": 0}}, "max_concurrent"),
    ],
)
async def test_field_that_nobody_reads_is_refused_by_name(
    admin: httpx.AsyncClient, body: dict[str, object], field: str
) -> None:
    refused = await admin.post("/tenants", json=body)

    assert refused.is_client_error
    assert field in refused.text
    assert (await admin.get("/tenants")).json() == []


async def test_key_is_shown_once_and_can_be_revoked(
    admin: httpx.AsyncClient, registry: Registry
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    made = (await admin.post("/tenants/acme/keys", json={"name": "billing"})).json()

    listed = await admin.get("/tenants/acme/keys")
    assert made["key"] not in listed.text
    assert [key["id"] for key in listed.json() if key["name"] == "billing"] == [made["id"]]

    assert (await admin.delete(f"/keys/{made['id']}")).status_code == 204
    after = {key["id"]: key["revoked_at"] for key in (await admin.get("/tenants/acme/keys")).json()}
    assert after[made["id"]] is not None
    assert code_of(await admin.delete("/keys/lg-nobody22")) == (404, "key_not_found")


async def test_versions_are_published_promoted_rolled_back_and_retired(
    admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    first = await publish(admin, write_adapter(tmp_path / "one", seed=1))
    assert first.status_code == 201
    assert first.json() | {"digest": ""} == {
        "adapter": "acme/support",
        "version": "v1",
        "digest": "",
    }
    second = (await publish(admin, write_adapter(tmp_path / "two", seed=2, rank=4))).json()
    assert second["version"] == "v2"
    assert second["digest"] != first.json()["digest"]

    champion = f"{SUPPORT}/aliases/champion"
    assert (await admin.put(champion, json={"version": "v1"})).json() == first.json()
    await admin.put(champion, json={"version": "v2", "reason": "better"})
    in_use = await admin.post(f"{SUPPORT}/versions/v2/retire")
    assert code_of(in_use) == (409, "version_in_use")
    assert (await admin.post(f"{SUPPORT}/rollback")).json() == first.json()
    assert (await admin.post(f"{SUPPORT}/versions/v2/retire")).json() == second

    page = (await admin.get(SUPPORT)).json()
    assert (page["aliases"], page["serving"]) == ({"champion": "v1"}, {})
    states = [(one["version"], one["state"], one["rank"]) for one in page["versions"]]
    assert states == [("v2", "RETIRED", 4), ("v1", "PUBLISHED", 2)]
    assert page["versions"][1]["aliases"] == ["champion"]
    assert {row["actor"] for row in page["audit"]} == {"http"}
    assert "better" in [row["reason"] for row in page["audit"]]

    listed = (await admin.get("/adapters", params={"tenant": "acme"})).json()
    assert listed == [
        {
            "adapter": "acme/support",
            "versions": ["v1"],
            "aliases": {"champion": "v1"},
            "serving": {},
        }
    ]
    assert (await admin.delete(champion)).status_code == 204
    assert code_of(await admin.delete(champion)) == (404, "alias_not_found")


async def test_page_tells_what_serves_and_why_a_version_failed(
    admin: httpx.AsyncClient, registry: Registry, tmp_path: Path
) -> None:
    adapter = AdapterName("acme", "support")
    registry.tenants.create("acme")
    for seed in (1, 2):
        registry.versions.publish(adapter, write_adapter(tmp_path / f"v{seed}", seed))
    let_serve(registry, adapter, "champion", 1)
    await admin.put(f"{SUPPORT}/aliases/champion", json={"version": "v2"})
    two = registry.snapshot().resolve("acme", "support", "v2")
    registry.states.set(two, AdapterState.LOADING, "server")
    registry.states.set(two, AdapterState.FAILED, "server", "it has no effect")

    page = (await admin.get(SUPPORT)).json()

    assert (page["aliases"], page["serving"]) == ({"champion": "v2"}, {"champion": "v1"})
    assert [
        (one["version"], one["state"], one["reason"], one["aliases"], one["serves"])
        for one in page["versions"]
    ] == [
        ("v2", "FAILED", "it has no effect", ["champion"], []),
        ("v1", "READY", "", [], ["champion"]),
    ]
    latest = page["audit"][0]
    assert (latest["subject"], latest["actor"]) == ("acme/support@v2", "server")
    assert (latest["from_state"], latest["to_state"]) == ("LOADING", "FAILED")
    assert (latest["digest"], latest["reason"]) == (two.digest, "it has no effect")


async def test_merged_model_is_asked_for_routed_to_and_stopped(
    admin: httpx.AsyncClient, registry: Registry, tmp_path: Path
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    published = (await publish(admin, write_adapter(tmp_path / "one"))).json()
    merged = f"{SUPPORT}/versions/v1/merged"
    champion = {"version": "v1", "mode": "merged"}
    assert code_of(await admin.put(f"{SUPPORT}/aliases/champion", json=champion)) == (
        *(409, "not_served_merged"),
    )

    assert (await admin.put(merged)).json() == published
    assert (await admin.put(f"{SUPPORT}/aliases/champion", json=champion)).json() == published
    one = registry.snapshot().resolve("acme", "support", "v1")
    registry.merged.set_state(one, MergedState.REFUSED, "server", "there is no room")

    page = (await admin.get(SUPPORT)).json()
    assert page["modes"] == {"champion": "merged"}
    assert page["versions"][0]["merged"] == {
        "size_bytes": None,
        "wanted": True,
        "state": "REFUSED",
        "reason": "there is no room",
    }
    assert code_of(await admin.delete(merged)) == (409, "merged_in_use")
    await admin.put(f"{SUPPORT}/aliases/champion", json={"version": "v1"})
    assert (await admin.delete(merged)).json() == published
    assert (await admin.get(SUPPORT)).json()["versions"][0]["merged"] is None
    assert (await admin.get("/engines")).json() == []


async def test_versions_are_pinned_by_number_or_alias_and_unpinned(
    admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    published = (await publish(admin, write_adapter(tmp_path / "one"))).json()
    await admin.put(f"{SUPPORT}/aliases/champion", json={"version": "v1"})

    assert (await admin.put(f"{SUPPORT}/pins/champion")).json() == published
    assert (await admin.get(SUPPORT)).json()["versions"][0]["pinned"] is True
    assert (await admin.delete(f"{SUPPORT}/pins/v1")).json() == published
    assert (await admin.get(SUPPORT)).json()["versions"][0]["pinned"] is False
    assert code_of(await admin.put(f"{SUPPORT}/pins/v9")) == (404, "version_not_found")


async def test_files_of_retired_versions_are_collected(
    admin: httpx.AsyncClient, registry: Registry, tmp_path: Path
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    published = (await publish(admin, write_adapter(tmp_path / "one"))).json()
    assert (await admin.post("/collect")).json() == {"collected": []}
    await admin.post(f"{SUPPORT}/versions/v1/retire")

    assert (await admin.post("/collect")).json() == {"collected": [published["digest"]]}


async def test_publishing_the_same_files_again_gives_the_same_version(
    admin: httpx.AsyncClient, tmp_path: Path, incoming: Path
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    folder = write_adapter(tmp_path / "one")

    answers = [(await publish(admin, folder)).json() for _ in range(2)]

    assert answers[0] == answers[1]
    assert names_in(incoming) == []


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([("files", ("../adapter_config.json", b"{}"))], "unexpected_file"),
        ([("files", ("pytorch_model.bin", b"x"))], "unexpected_file"),
        ([("files", ("README.md", b"a")), ("files", ("README.md", b"b"))], "invalid_value"),
        ([("files", ("README.md", b"x" * (MAX_ADAPTER_BYTES + 1)))], "adapter_too_large"),
        ([("files", ("README.md", b"no adapter"))], "missing_file"),
    ],
)
async def test_files_that_are_no_adapter_are_refused_and_removed(
    admin: httpx.AsyncClient,
    incoming: Path,
    files: list[tuple[str, tuple[str, bytes]]],
    code: str,
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})

    refused = await admin.post(f"{SUPPORT}/versions", files=files)

    assert code_of(refused) == (400, code)
    assert str(incoming) not in refused.text
    assert names_in(incoming) == []
    assert (await admin.get("/adapters")).json() == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b""),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="f"; filename="README.md"\r\n\r\ncut',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="f"\r\n\r\nfield\r\n--x--\r\n',
        ),
    ],
)
async def test_body_that_is_no_form_of_files_is_refused(
    admin: httpx.AsyncClient, incoming: Path, content_type: str, body: bytes
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})

    refused = await admin.post(
        f"{SUPPORT}/versions", content=body, headers={"content-type": content_type}
    )

    assert code_of(refused) == (400, "invalid_value")
    assert names_in(incoming) == []


async def test_nothing_is_read_of_an_upload_without_the_admin_key(
    admin: httpx.AsyncClient,
) -> None:
    pieces_read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal pieces_read
        pieces_read += 1
        yield b"--x\r\n"

    headers = {"authorization": "Bearer wrong", "content-type": "multipart/form-data; boundary=x"}
    refused = await admin.post(f"{SUPPORT}/versions", content=body(), headers=headers)

    assert code_of(refused) == (401, "invalid_api_key")
    assert pieces_read == 0


async def test_file_that_comes_again_after_another_is_refused(
    registry: Registry, incoming: Path
) -> None:
    registry.tenants.create("acme")

    async def pieces() -> AsyncIterator[tuple[str, bytes]]:
        for name in ("README.md", "manifest.json", "README.md"):
            yield name, b"{}"

    with pytest.raises(InvalidAdapter, match="came twice") as refused:
        await Administration(registry, "test").publish_files(
            AdapterName("acme", "support"), pieces(), 1000
        )

    assert refused.value.code == "duplicate_file"
    assert names_in(incoming) == []


async def test_upload_that_is_cancelled_leaves_nothing_behind(
    registry: Registry, incoming: Path
) -> None:
    registry.tenants.create("acme")
    has_begun = asyncio.Event()

    async def endless() -> AsyncIterator[tuple[str, bytes]]:
        yield "README.md", b"begun"
        yield "README.md", b"on"
        has_begun.set()
        await asyncio.Event().wait()

    administration = Administration(registry, "test")
    upload = asyncio.create_task(
        administration.publish_files(AdapterName("acme", "support"), endless(), 1000)
    )
    await has_begun.wait()
    assert len(names_in(incoming)) == 1
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload

    assert names_in(incoming) == []


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (None, 401, "invalid_api_key"),
        ("", 401, "invalid_api_key"),
        ("wrong", 401, "invalid_api_key"),
        ("wröng", 401, "invalid_api_key"),
        ("of a tenant", 403, "permission_denied"),
    ],
)
async def test_only_the_admin_key_opens_administration(
    admin: httpx.AsyncClient, registry: Registry, key: str | None, status: int, code: str
) -> None:
    tenant_key = registry.tenants.create("acme").key
    sent = tenant_key if key == "of a tenant" else key
    admin.headers = httpx.Headers(
        {} if sent is None else {b"authorization": f"Bearer {sent}".encode()}
    )
    schema = build_app(registry).openapi()

    for path, operations in schema["paths"].items():
        for method in operations:
            route = path.removeprefix("/admin/v1")
            answer = await admin.request(method, route, json={"tenant": "globex"})
            assert code_of(answer) == (status, code), (method, path)
    assert [record.tenant for record in registry.tenants.list()] == ["acme"]


async def test_audit_tells_what_was_changed_by_whom(
    admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    await admin.post("/tenants", json={"tenant": "globex"})
    await publish(admin, write_adapter(tmp_path / "one"))

    rows = (await admin.get("/audit", params={"subject": "acme/support"})).json()

    assert [(row["action"], row["actor"], row["to_version"]) for row in rows] == [
        ("adapter.publish", "http", "v1")
    ]
    everything = (await admin.get("/audit", params={"limit": 2})).json()
    assert len(everything) == 2


def test_every_route_says_what_it_does(registry: Registry) -> None:
    for path, operations in build_app(registry).openapi()["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            assert operation["tags"], (method, path)
            assert operation["security"] == [{"AdminKey": []}], (method, path)


async def test_a_dry_run_of_the_collection_names_what_it_leaves(
    admin: httpx.AsyncClient, registry: Registry, tmp_path: Path
) -> None:
    await admin.post("/tenants", json={"tenant": "acme"})
    published = (await publish(admin, write_adapter(tmp_path / "one"))).json()
    await admin.post(f"{SUPPORT}/versions/v1/retire")
    store = ArtifactStore(tmp_path / "artifacts")
    orphan = store.put(inspect(write_adapter(tmp_path / "two", 5)))
    settled = store.put(inspect(write_adapter(tmp_path / "three", 6)))
    store.settle(settled)
    for digest in (orphan, settled):
        os.utime(store.path(digest), (0, 0))
    named = sorted([published["digest"], orphan])
    with_all = sorted([*named, settled])

    for query, expected in (("", named), ("&unreferenced=true", with_all)):
        answer = (await admin.post(f"/collect?dry_run=true{query}")).json()
        assert answer == {"collected": expected}
    assert sorted(store.digests()) == with_all
    assert (await admin.post("/collect")).json() == {"collected": named}
    assert store.digests() == [settled]
